//! Pods get their priority from their class, and at most one class is the default.
//!
//! Behaves as `plugin/pkg/admission/priority/admission.go`, v1.36.

use futures_util::future::BoxFuture;
use rkube_api::k8s::core::v1::Pod;
use rkube_api::k8s::scheduling::v1::PriorityClass;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};

use super::{Objects, Plugin, forbidden, is_resource, not_convertible, object};

const PREEMPT_LOWER_PRIORITY: &str = "PreemptLowerPriority";

pub(super) struct PriorityAdmission {
    objects: Objects,
}

/// What a class gives to its pods.
struct Resolved {
    class: Option<String>,
    priority: i32,
    preemption_policy: String,
}

impl PriorityAdmission {
    pub(super) fn new(objects: Objects) -> Self {
        Self { objects }
    }

    async fn pod(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        if attributes.operation == Operation::Update {
            return keep_on_update(attributes);
        }
        let spec = object!(attributes, Pod).spec.get_or_insert_default();
        let (class, given) = (spec.priority_class_name.clone().unwrap_or_default(), spec.priority);
        let given_policy = spec.preemption_policy.clone();
        let resolved = self.resolve(&class, attributes).await?;
        if let Some(given) = given.filter(|&given| given != resolved.priority) {
            let text = format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
                 computed {} from the given PriorityClass name",
                resolved.priority
            );
            return Err(forbidden(attributes, text));
        }
        if let Some(given) = given_policy.filter(|given| *given != resolved.preemption_policy) {
            let text = format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
                 controller computed {} from the given PriorityClass name",
                resolved.preemption_policy
            );
            return Err(forbidden(attributes, text));
        }
        let spec = object!(attributes, Pod).spec.get_or_insert_default();
        spec.priority_class_name = resolved.class;
        spec.priority = Some(resolved.priority);
        spec.preemption_policy = Some(resolved.preemption_policy);
        Ok(())
    }

    async fn resolve(&self, class: &str, attributes: &mut Attributes) -> Result<Resolved, ApiStatus> {
        let found = if class.is_empty() {
            self.default_class().await?
        } else {
            let found = self.objects.cached_or_live::<PriorityClass>("", class).await?;
            if found.is_none() {
                return Err(forbidden(attributes, format!("no PriorityClass with name {class} was found")));
            }
            found
        };
        Ok(match found {
            Some(class) => Resolved {
                class: class.metadata.name.clone(),
                priority: class.value.unwrap_or_default(),
                preemption_policy: class.preemption_policy.clone().unwrap_or_else(|| PREEMPT_LOWER_PRIORITY.to_owned()),
            },
            None => Resolved { class: None, priority: 0, preemption_policy: PREEMPT_LOWER_PRIORITY.to_owned() },
        })
    }

    /// The lowest of the default classes: a race can make two.
    async fn default_class(&self) -> Result<Option<std::sync::Arc<PriorityClass>>, ApiStatus> {
        let classes = self.objects.list::<PriorityClass>("").await?;
        Ok(classes.into_iter().filter(|class| class.global_default == Some(true)).min_by_key(|class| class.value))
    }

    async fn class(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        if object!(attributes, PriorityClass).global_default != Some(true) {
            return Ok(());
        }
        let Some(known) = self.default_class().await? else { return Ok(()) };
        let known = known.metadata.name.clone().unwrap_or_default();
        let name = object!(attributes, PriorityClass).metadata.name.clone().unwrap_or_default();
        if attributes.operation == Operation::Create || known != name {
            let text = format!("PriorityClass {known} is already marked as default. Only one default can exist");
            return Err(forbidden(attributes, text));
        }
        Ok(())
    }
}

/// Clients that do not know the fields drop them; they cannot change anyway.
fn keep_on_update(attributes: &mut Attributes) -> Result<(), ApiStatus> {
    let Some(old) = attributes.old_object.clone() else { return Ok(()) };
    let old = old.typed::<Pod>().map_err(not_convertible)?;
    let Some(old) = old.spec.as_ref() else { return Ok(()) };
    let spec = object!(attributes, Pod).spec.get_or_insert_default();
    spec.priority = spec.priority.or(old.priority);
    spec.preemption_policy = spec.preemption_policy.take().or_else(|| old.preemption_policy.clone());
    Ok(())
}

impl Plugin for PriorityAdmission {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn admit<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(async move { if is_resource(attributes, "", "pods") { self.pod(attributes).await } else { Ok(()) } })
    }

    fn validate<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(async move {
            if is_resource(attributes, "scheduling.k8s.io", "priorityclasses") {
                self.class(attributes).await
            } else {
                Ok(())
            }
        })
    }
}
