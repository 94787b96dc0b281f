//! Pod Security Standards, enforced, audited and warned about as a namespace's labels ask.
//!
//! Behaves as `pod-security-admission/admission/admission.go`, v1.36.

mod baseline;
mod evaluate;
mod policy;
mod restricted;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_api::Kind;
use rkube_api::k8s::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use rkube_api::k8s::batch::v1::{CronJob, Job};
use rkube_api::k8s::core::v1::{Namespace, Pod, PodSpec, PodTemplate, PodTemplateSpec, ReplicationController};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};

use self::evaluate::{details, evaluate, reasons};
use self::policy::{Level, LevelVersion, Policy};
use super::{Objects, Plugin, forbidden, not_convertible, object};

/// Pods looked at when a namespace asks for a stricter level; the rest is said not to have been.
const NAMESPACE_PODS_MAX: usize = 3_000;
/// Subresources that change no pod spec.
const IGNORED_SUBRESOURCES: [&str; 8] =
    ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];

pub(super) struct PodSecurity {
    objects: Objects,
}

impl PodSecurity {
    pub(super) fn new(objects: Objects) -> Self {
        Self { objects }
    }

    async fn check(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        let resource = attributes.resource.clone();
        match (resource.group.as_ref(), resource.plural.as_ref(), attributes.subresource.as_str()) {
            ("", "namespaces", "") => self.namespace(attributes).await,
            ("", "pods", subresource) if !IGNORED_SUBRESOURCES.contains(&subresource) => self.pod(attributes).await,
            (_, _, "") => self.template(attributes).await,
            _ => Ok(()),
        }
    }

    async fn policy(&self, attributes: &Attributes) -> Result<Policy, ApiStatus> {
        let name = &attributes.namespace;
        let namespace = self.objects.cached_or_live::<Namespace>("", name).await?;
        let namespace = namespace.ok_or_else(|| ApiStatus::internal(format!("failed to lookup namespace {name:?}")))?;
        Ok(Policy::from_labels(namespace.metadata.labels.as_ref()).0)
    }

    async fn pod(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        let policy = self.policy(attributes).await?;
        if policy.is_privileged() {
            return Ok(());
        }
        let pod = object!(attributes, Pod).clone();
        if attributes.operation == Operation::Update
            && let Some(old) = &attributes.old_object
            && !is_significant(&pod, old.typed::<Pod>().map_err(not_convertible)?.as_ref())
        {
            return Ok(());
        }
        let spec = pod.spec.unwrap_or_default();
        let violations = evaluate(policy.enforce, &pod.metadata, &spec);
        attributes.context.audit("pod-security.kubernetes.io/enforce-policy", policy.enforce.to_string());
        if !violations.is_empty() {
            audit(attributes, policy.audit, &pod.metadata, &spec);
            let standard = policy.enforce.to_string();
            let text = format!("violates PodSecurity {standard:?}: {}", details(&violations));
            return Err(forbidden(attributes, text));
        }
        audit(attributes, policy.audit, &pod.metadata, &spec);
        warn(attributes, policy.warn, &pod.metadata, &spec);
        Ok(())
    }

    /// Controllers are not refused: their pods will be. Whoever writes one is told.
    async fn template(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        let Some(read) = template_reader(attributes) else { return Ok(()) };
        let Ok(policy) = self.policy(attributes).await else { return Ok(()) };
        if policy.warn.level == Level::Privileged && policy.audit.level == Level::Privileged {
            return Ok(());
        }
        let Some(template) = read(attributes)? else { return Ok(()) };
        let metadata = template.metadata.unwrap_or_default();
        let spec = template.spec.unwrap_or_default();
        audit(attributes, policy.audit, &metadata, &spec);
        warn(attributes, policy.warn, &metadata, &spec);
        Ok(())
    }

    async fn namespace(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        let namespace = object!(attributes, Namespace);
        let name = namespace.metadata.name.clone().unwrap_or_default();
        let (new, errors) = Policy::from_labels(namespace.metadata.labels.as_ref());
        let old = match (attributes.operation, &attributes.old_object) {
            (Operation::Update, Some(old)) => {
                let old = old.typed::<Namespace>().map_err(not_convertible)?;
                Some(Policy::from_labels(old.metadata.labels.as_ref()))
            }
            _ => None,
        };
        let is_new_fault = old.as_ref().is_none_or(|(_, old_errors)| *old_errors != errors);
        if !errors.is_empty() && is_new_fault {
            return Err(ApiStatus::invalid(&attributes.resource.group_kind(), &name, &errors));
        }
        let Some((old, _)) = old else { return Ok(()) };
        let is_relaxed = new.enforce.version == old.enforce.version && new.enforce.level <= old.enforce.level;
        if new.enforce == old.enforce || new.enforce.level == Level::Privileged || is_relaxed {
            return Ok(());
        }
        for warning in self.namespace_warnings(&name, new.enforce).await {
            attributes.context.warn(warning);
        }
        Ok(())
    }

    /// What runs in a namespace already and would be refused now.
    async fn namespace_warnings(&self, namespace: &str, standard: LevelVersion) -> Vec<String> {
        let Ok(pods) = self.objects.list::<Pod>(namespace).await else {
            return vec!["failed to list pods while checking new PodSecurity enforce level".to_owned()];
        };
        let mut warnings = Vec::new();
        let total = pods.len();
        let checked = one_per_controller_first(pods).into_iter().take(NAMESPACE_PODS_MAX);
        // By warning: the first pod by name, and how many there are.
        let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
        for pod in checked {
            let spec = pod.spec.clone().unwrap_or_default();
            let violations = evaluate(standard, &pod.metadata, &spec);
            if violations.is_empty() {
                continue;
            }
            let name = pod.metadata.name.clone().unwrap_or_default();
            let entry = found.entry(reasons(&violations)).or_insert_with(|| (name.clone(), 0));
            entry.0 = entry.0.clone().min(name);
            entry.1 += 1;
        }
        if total > NAMESPACE_PODS_MAX {
            warnings.push(format!(
                "new PodSecurity enforce level only checked against the first {NAMESPACE_PODS_MAX} of {total} existing pods"
            ));
        }
        if !found.is_empty() {
            let standard = standard.to_string();
            warnings.push(format!(
                "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level {standard:?}"
            ));
        }
        let mut lines: Vec<String> = found
            .into_iter()
            .map(|(warning, (pod, count))| match count {
                1 => format!("{pod}: {warning}"),
                2 => format!("{pod} (and 1 other pod): {warning}"),
                _ => format!("{pod} (and {} other pods): {warning}", count - 1),
            })
            .collect();
        lines.sort();
        warnings.extend(lines);
        warnings
    }
}

fn audit(attributes: &Attributes, standard: LevelVersion, metadata: &ObjectMeta, spec: &PodSpec) {
    let violations = evaluate(standard, metadata, spec);
    if !violations.is_empty() {
        let name = standard.to_string();
        let text = format!("would violate PodSecurity {name:?}: {}", details(&violations));
        attributes.context.audit("pod-security.kubernetes.io/audit-violations", text);
    }
}

fn warn(attributes: &Attributes, standard: LevelVersion, metadata: &ObjectMeta, spec: &PodSpec) {
    let violations = evaluate(standard, metadata, spec);
    if !violations.is_empty() {
        let name = standard.to_string();
        attributes.context.warn(format!("would violate PodSecurity {name:?}: {}", details(&violations)));
    }
}

/// Whether an update changes anything the standard could care about: images, and new containers.
fn is_significant(new: &Pod, old: &Pod) -> bool {
    let (Some(new), Some(old)) = (new.spec.as_ref(), old.spec.as_ref()) else { return true };
    let images = |spec: &PodSpec| -> Vec<Vec<Option<String>>> {
        let init = spec.init_containers.iter().flatten().map(|container| container.image.clone()).collect();
        vec![init, spec.containers.iter().map(|container| container.image.clone()).collect()]
    };
    let known: BTreeMap<&str, &Option<String>> = old
        .ephemeral_containers
        .iter()
        .flatten()
        .map(|container| (container.name.as_str(), &container.image))
        .collect();
    let mut ephemeral = new.ephemeral_containers.iter().flatten();
    images(new) != images(old)
        || ephemeral.any(|container| known.get(container.name.as_str()) != Some(&&container.image))
}

/// The first pod of each controller before its siblings, which are alike.
fn one_per_controller_first(pods: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    let mut controllers = BTreeSet::new();
    let (mut first, siblings): (Vec<_>, Vec<_>) = pods.into_iter().partition(|pod| {
        let mut owners = pod.metadata.owner_references.iter().flatten();
        match owners.find(|owner| owner.controller == Some(true)) {
            Some(owner) => controllers.insert(owner.uid.clone()),
            None => true,
        }
    });
    first.extend(siblings);
    first
}

type TemplateReader = fn(&mut Attributes) -> Result<Option<PodTemplateSpec>, ApiStatus>;

/// How to find the pod template in the request's object, for the kinds that have one.
fn template_reader(attributes: &Attributes) -> Option<TemplateReader> {
    fn read<K: Kind>(
        attributes: &mut Attributes,
        find: fn(&K) -> Option<&PodTemplateSpec>,
    ) -> Result<Option<PodTemplateSpec>, ApiStatus> {
        let Some(object) = attributes.object.as_mut() else { return Ok(None) };
        Ok(find(object.typed::<K>().map_err(not_convertible)?).cloned())
    }
    let reader: TemplateReader = match (attributes.resource.group.as_ref(), attributes.resource.plural.as_ref()) {
        ("apps", "deployments") => |a| read::<Deployment>(a, |object| Some(&object.spec.as_ref()?.template)),
        ("apps", "replicasets") => |a| read::<ReplicaSet>(a, |object| object.spec.as_ref()?.template.as_ref()),
        ("apps", "daemonsets") => |a| read::<DaemonSet>(a, |object| Some(&object.spec.as_ref()?.template)),
        ("apps", "statefulsets") => |a| read::<StatefulSet>(a, |object| Some(&object.spec.as_ref()?.template)),
        ("batch", "jobs") => |a| read::<Job>(a, |object| Some(&object.spec.as_ref()?.template)),
        ("batch", "cronjobs") => {
            |a| read::<CronJob>(a, |object| Some(&object.spec.job_template.spec.as_ref()?.template))
        }
        ("", "replicationcontrollers") => {
            |a| read::<ReplicationController>(a, |object| object.spec.as_ref()?.template.as_ref())
        }
        ("", "podtemplates") => |a| read::<PodTemplate>(a, |object| object.template.as_ref()),
        _ => return None,
    };
    Some(reader)
}

impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn validate<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(self.check(attributes))
    }
}
