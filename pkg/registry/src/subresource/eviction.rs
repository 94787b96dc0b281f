//! `pods/eviction`: deletes a pod if its disruption budget allows.
//!
//! Behaves as `pkg/registry/core/pod/storage/eviction.go`, v1.36.

use std::sync::Arc;

use rkube_api::draft::Draft;
use rkube_api::k8s::core::v1::Pod;
use rkube_api::k8s::policy::v1::PodDisruptionBudget;
use rkube_apimachinery::field::{Error, Path};
use rkube_apimachinery::gvk::{GroupKind, GroupResource, GroupVersionKind, GroupVersionResource};
use rkube_apimachinery::labels::Selector;
use rkube_apimachinery::meta::{Condition, Meta, find_condition, set_condition};
use rkube_apimachinery::status::{ApiStatus, Reason, Status};
use rkube_apimachinery::time;
use serde_json::{Map, Value};

use super::{Raw, member, set_pod_condition};
use crate::admission::{Operation, OperationOptions};
use crate::context::RequestContext;
use crate::metadata;
use crate::options::{CreateOptions, DeleteOptions, GetOptions};
use crate::store::core::decode_status;
use crate::store::{Answer, Store, Target, success};

/// More evictions than this that the controller has not yet confirmed are too many.
const DISRUPTED_PODS_MAX: usize = 2000;

/// Attempts at a pod that changes under the eviction.
const ATTEMPTS_MAX: usize = 20;

const VIOLATES: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
const BUDGET_CAUSE: &str = "DisruptionBudget";

impl Store {
    pub(crate) async fn evict(
        &self,
        context: &Arc<RequestContext>,
        target: &Target,
        mut eviction: Value,
        options: &CreateOptions,
    ) -> Result<Answer, ApiStatus> {
        options.validate()?;
        metadata::wipe_system_fields(&mut eviction);
        metadata::ensure_namespace(&mut eviction, true, &target.namespace)?;
        let mut attributes = self.attributes(
            context,
            target,
            Operation::Create,
            target.name.clone(),
            Some(Draft::new(eviction)),
            None,
            OperationOptions::Create(options.clone()),
            options.is_dry_run(),
        );
        attributes.kind = GroupVersionKind::new("policy", "v1", "Eviction");
        context.admission.admit(&mut attributes).await?;
        let draft = attributes.object.as_mut().ok_or_else(|| ApiStatus::internal("admission removed the eviction"))?;
        if draft.value().name() != &*target.name {
            return Err(ApiStatus::bad_request("name in URL does not match name in Eviction object"));
        }
        let delete = delete_options(draft.value(), target, options)?;
        context.admission.validate(&mut attributes).await?;
        let target = Target::new(target.namespace.clone(), target.name.clone());
        self.evict_pod(&target, delete).await?;
        Ok(Answer::Status(Box::new(success(None))))
    }

    async fn evict_pod(&self, target: &Target, original: DeleteOptions) -> Result<(), ApiStatus> {
        let internal = Arc::new(RequestContext::internal());
        let versioned = version_of(&original).is_some();
        for attempt in 1..=ATTEMPTS_MAX {
            let object = self.get_object(&internal, target, &GetOptions::default()).await?;
            let pod = object.typed::<Pod>().map_err(|error| decode_status(&error))?;
            if !needs_no_budget(&pod) {
                return self.evict_guarded(&pod, &object.selection.labels, target, original).await;
            }
            let mut delete = original.clone();
            if !versioned && !is_over(&pod) {
                // A pod that becomes ready in between counts towards its budget again.
                delete.preconditions.get_or_insert_default().resource_version = Some(object.revision.to_string());
            }
            match self.mark_and_delete(target, delete).await {
                Err(status) if status.is_conflict() && !versioned && attempt < ATTEMPTS_MAX => {}
                other => return other,
            }
        }
        Ok(())
    }

    async fn evict_guarded(
        &self,
        pod: &Pod,
        labels: &[(String, String)],
        target: &Target,
        original: DeleteOptions,
    ) -> Result<(), ApiStatus> {
        let Some(budget) = self.budget_of(labels, &target.namespace).await? else {
            return self.mark_and_delete(target, original).await;
        };
        let name = budget.metadata.name.clone().unwrap_or_default();
        if !is_ready(pod) && tolerates_unhealthy(&budget) {
            // It does not count, provided that it is still not ready when it is deleted.
            let mut delete = original.clone();
            delete.preconditions.get_or_insert_default().resource_version = pod.metadata.resource_version.clone();
            return match self.mark_and_delete(target, delete).await {
                Err(status) if status.is_conflict() && version_of(&original).is_none() => Err(still_processed(&name)),
                other => other,
            };
        }
        self.take_from_budget(&name, target, original.is_dry_run()).await?;
        self.mark_and_delete(target, original).await
    }

    /// The one budget that selects the pod.
    async fn budget_of(
        &self,
        labels: &[(String, String)],
        namespace: &str,
    ) -> Result<Option<Arc<PodDisruptionBudget>>, ApiStatus> {
        let Some(budgets) = self.budgets() else {
            return Ok(None);
        };
        let internal = Arc::new(RequestContext::internal());
        let page = budgets.list(&internal, namespace, &crate::options::ListOptions::default()).await?;
        let mut found = Vec::new();
        for item in &page.items {
            let budget = item.typed::<PodDisruptionBudget>().map_err(|error| decode_status(&error))?;
            let selector = item.value().ok().and_then(|value| value.pointer("/spec/selector").cloned());
            // An invalid selector selects nothing.
            if Selector::from_json(selector.as_ref()).is_ok_and(|selector| selector.matches(labels)) {
                found.push(budget);
            }
        }
        if found.len() > 1 {
            return Err(ApiStatus::from_wire(Status {
                kind: "Status".to_owned(),
                api_version: "v1".to_owned(),
                status: "Failure".to_owned(),
                message: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not \
                          support."
                    .to_owned(),
                code: 500,
                ..Status::default()
            }));
        }
        Ok(found.pop())
    }

    fn budgets(&self) -> Option<Store> {
        self.core().shared.store(&GroupVersionResource::new("policy", "v1", "poddisruptionbudgets"))
    }

    /// Checks and lowers the budget in one write, so that two evictions never share one allowance.
    async fn take_from_budget(&self, budget: &str, target: &Target, dry_run: bool) -> Result<(), ApiStatus> {
        let Some(budgets) = self.budgets() else {
            return Ok(());
        };
        let resource = budgets.resource().group_resource();
        let now = self.core().shared.clock.now();
        let change = |value: &mut Value| {
            check_budget(value, budget)?;
            let observed = number(value, "/status/observedGeneration");
            let left = number(value, "/status/disruptionsAllowed") - 1;
            let status = member(value, "status")?;
            status.insert("disruptionsAllowed".to_owned(), Value::from(left));
            let disrupted = status.entry("disruptedPods").or_insert_with(|| Value::Object(Map::new()));
            if let Some(disrupted) = disrupted.as_object_mut() {
                disrupted.insert(target.name.to_string(), Value::from(time::format(now)));
            }
            if left == 0 {
                let conditions = status.entry("conditions").or_insert_with(|| Value::Array(Vec::new()));
                let condition = Condition {
                    kind: "DisruptionAllowed",
                    status: "False",
                    reason: "InsufficientPods",
                    observed_generation: observed,
                    ..Condition::default()
                };
                if let Some(conditions) = conditions.as_array_mut() {
                    set_condition(conditions, &condition, now);
                }
            }
            Ok(())
        };
        let key = budgets.key(&Target::new(target.namespace.clone(), budget));
        let core = budgets.core();
        let mut raw = Raw { core, resource: &resource, name: budget, preconditions: None, change };
        core.guaranteed_update(&resource, &key, dry_run, &mut raw).await?;
        Ok(())
    }

    async fn mark_and_delete(&self, target: &Target, mut options: DeleteOptions) -> Result<(), ApiStatus> {
        let resource = self.resource().group_resource();
        if !options.is_dry_run() {
            let now = self.core().shared.clock.now();
            let condition = Condition {
                kind: "DisruptionTarget",
                status: "True",
                reason: "EvictionByEvictionAPI",
                message: "Eviction API: evicting",
                ..Condition::default()
            };
            let change = |pod: &mut Value| set_pod_condition(pod, &condition, now);
            let (core, name, preconditions) = (self.core(), &target.name, options.preconditions.as_ref());
            let mut raw = Raw { core, resource: &resource, name, preconditions, change };
            let updated = core.guaranteed_update(&resource, &self.key(target), false, &mut raw).await?;
            if let Some(preconditions) = options.preconditions.as_mut().filter(|p| p.resource_version.is_some()) {
                // The version asked for was the one before our own change.
                preconditions.resource_version = Some(updated.object.revision.to_string());
            }
        }
        let internal = Arc::new(RequestContext::internal());
        self.delete_object(&internal, target, options).await?;
        Ok(())
    }
}

/// The options inside an eviction, with the request's dry run.
fn delete_options(eviction: &Value, target: &Target, options: &CreateOptions) -> Result<DeleteOptions, ApiStatus> {
    let mut delete: DeleteOptions = match eviction.get("deleteOptions").filter(|options| !options.is_null()) {
        Some(options) => serde_json::from_value(options.clone())
            .map_err(|error| ApiStatus::bad_request(format!("decoding deleteOptions: {error}")))?,
        None => DeleteOptions::default(),
    };
    if delete.ignore_store_read_error_with_cluster_breaking_potential == Some(true) {
        let path = Path::new("deleteOptions").child("ignoreStoreReadErrorWithClusterBreakingPotential");
        let error = Error::invalid(&path, true, "can not be set for pod eviction, try after removing the option");
        return Err(ApiStatus::invalid(&GroupKind::new("policy", "Eviction"), &target.name, &[error]));
    }
    if delete.dry_run.is_empty() {
        delete.dry_run.clone_from(&options.dry_run);
    } else if !options.dry_run.is_empty() && delete.dry_run != options.dry_run {
        let text = format!(
            "Non-matching dry-run options in request and content: [{}] and [{}]",
            options.dry_run.join(" "),
            delete.dry_run.join(" ")
        );
        return Err(ApiStatus::failure(Reason::Unknown, text));
    }
    Ok(delete)
}

fn version_of(options: &DeleteOptions) -> Option<&str> {
    options.preconditions.as_ref()?.resource_version.as_deref()
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn is_over(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed") || pod.metadata.deletion_timestamp.is_some()
}

/// Pods that run nothing, or are going already, disrupt nothing.
fn needs_no_budget(pod: &Pod) -> bool {
    is_over(pod) || phase(pod) == "Pending"
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn tolerates_unhealthy(budget: &PodDisruptionBudget) -> bool {
    let policy = budget.spec.as_ref().and_then(|spec| spec.unhealthy_pod_eviction_policy.as_deref());
    let healthy = |status: &rkube_api::k8s::policy::v1::PodDisruptionBudgetStatus| {
        let (current, desired) = (status.current_healthy.unwrap_or(0), status.desired_healthy.unwrap_or(0));
        current >= desired && desired > 0
    };
    policy == Some("AlwaysAllow") || budget.status.as_ref().is_some_and(healthy)
}

fn still_processed(budget: &str) -> ApiStatus {
    let text = format!("The disruption budget {budget} is still being processed by the server.");
    ApiStatus::too_many_requests(VIOLATES, 10).cause(BUDGET_CAUSE, text, "")
}

fn number(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

fn check_budget(budget: &Value, name: &str) -> Result<(), ApiStatus> {
    if number(budget, "/status/observedGeneration") < budget.generation() {
        return Err(still_processed(name));
    }
    let allowed = number(budget, "/status/disruptionsAllowed");
    let resource = GroupResource::new("policy", "poddisruptionbudget");
    if allowed < 0 {
        return Err(ApiStatus::forbidden(&resource, name, "pdb disruptions allowed is negative"));
    }
    let disrupted = budget.pointer("/status/disruptedPods").and_then(Value::as_object).map_or(0, Map::len);
    if disrupted > DISRUPTED_PODS_MAX {
        let text = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(ApiStatus::forbidden(&resource, name, text));
    }
    if allowed > 0 {
        return Ok(());
    }
    let conditions = budget.pointer("/status/conditions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let condition = find_condition(conditions, "DisruptionAllowed");
    let text = |field: &str| condition.and_then(|it| it.get(field)).and_then(Value::as_str).unwrap_or_default();
    let refused = text("status") == "False" && !text("message").is_empty();
    let (current, desired) = (number(budget, "/status/currentHealthy"), number(budget, "/status/desiredHealthy"));
    let message = if refused && text("reason") == "SyncFailed" {
        format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
            text("message")
        )
    } else if current <= desired {
        format!("The disruption budget {name} needs {desired} healthy pods and has {current} currently")
    } else if refused {
        format!(
            "The disruption budget {name} does not allow evicting pods currently ({}): {}",
            text("reason"),
            text("message")
        )
    } else {
        format!("The disruption budget {name} does not allow evicting pods currently")
    };
    Err(ApiStatus::too_many_requests(VIOLATES, 0).cause(BUDGET_CAUSE, message, ""))
}
