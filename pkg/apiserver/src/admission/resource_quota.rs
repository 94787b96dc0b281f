//! Resource quotas, charged before an object is stored: requests that race cannot together exceed one.
//!
//! A namespace's charges are made one at a time, and each is a conditional write of the quota's status,
//! so servers that share a datastore cannot overdraw either.
//!
//! Behaves as `apiserver/pkg/admission/plugin/resourcequota/controller.go`, v1.36.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rkube_api::Kind;
use rkube_api::k8s::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use rkube_api::meta::pkg::api::resource::Quantity as Text;
use rkube_api::pod_resources::{self, ResourceList};
use rkube_api::quota::{self, Subject};
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::quantity::Quantity;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};

use super::{Objects, Plugin, forbidden, not_convertible};

/// Times a charge is tried again because another server changed the quota.
const CONFLICTS_MAX: usize = 3;

pub(super) struct ResourceQuotaAdmission {
    objects: Objects,
    clock: SharedClock,
    /// One charge at a time in a namespace. Entries go when nobody holds them.
    namespaces: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl ResourceQuotaAdmission {
    pub(super) fn new(objects: Objects, clock: SharedClock) -> Self {
        Self { objects, clock, namespaces: Mutex::default() }
    }

    async fn check(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        if !is_charged(attributes) || self.objects.list::<ResourceQuota>(&attributes.namespace).await?.is_empty() {
            return Ok(());
        }
        let Some(after) = self.measure_new(attributes)? else { return Ok(()) };
        let before = self.measure_old(attributes)?;
        if only_changes(attributes, &after, before.as_ref()) {
            return Ok(());
        }
        let namespace = attributes.namespace.to_string();
        let lock = Arc::clone(self.namespaces.lock().entry(namespace.clone()).or_default());
        let outcome = {
            let _turn = lock.lock().await;
            self.charge(attributes, &namespace, &after, before.as_ref()).await
        };
        drop(lock);
        self.namespaces.lock().retain(|_, lock| Arc::strong_count(lock) > 1);
        outcome
    }

    async fn charge(
        &self,
        attributes: &mut Attributes,
        namespace: &str,
        after: &Measured,
        before: Option<&Measured>,
    ) -> Result<(), ApiStatus> {
        let mut names: Option<Vec<String>> = None;
        for _ in 0..=CONFLICTS_MAX {
            // Live: the cache may not show the charge before this one yet.
            let mut quotas = self.objects.list_live::<ResourceQuota>(namespace).await?;
            if let Some(names) = &names {
                quotas.retain(|quota| quota.metadata.name.as_ref().is_some_and(|name| names.contains(name)));
            }
            let changed = charges(attributes, &quotas, after, before)?;
            if attributes.dry_run {
                return Ok(());
            }
            let mut conflicted = Vec::new();
            for quota in changed {
                match self.objects.update_status(&quota).await {
                    Ok(()) => {}
                    Err(status) if status.is_conflict() => conflicted.extend(quota.metadata.name),
                    Err(status) if status.is_not_found() => {}
                    Err(status) => return Err(status),
                }
            }
            if conflicted.is_empty() {
                return Ok(());
            }
            names = Some(conflicted);
        }
        let text = format!("the resource quota of namespace {namespace} changed too often, please try again");
        Err(ApiStatus::conflict(&attributes.resource.group_resource(), &attributes.name, &text))
    }

    fn measure_new(&self, attributes: &mut Attributes) -> Result<Option<Measured>, ApiStatus> {
        let row = attributes.resource.clone();
        let Some(object) = attributes.object.as_mut() else { return Ok(None) };
        let owned = match (row.group.as_ref(), row.plural.as_ref()) {
            ("", Pod::PLURAL) => Owned::Pod(Box::new(object.typed::<Pod>().map_err(not_convertible)?.clone())),
            ("", Service::PLURAL) => {
                Owned::Service(Box::new(object.typed::<Service>().map_err(not_convertible)?.clone()))
            }
            ("", PersistentVolumeClaim::PLURAL) => {
                Owned::Claim(Box::new(object.typed::<PersistentVolumeClaim>().map_err(not_convertible)?.clone()))
            }
            _ => Owned::Other,
        };
        Ok(Some(self.measure(attributes, owned)))
    }

    fn measure_old(&self, attributes: &Attributes) -> Result<Option<Measured>, ApiStatus> {
        if attributes.operation != Operation::Update {
            return Ok(None);
        }
        let Some(old) = attributes.old_object.as_ref() else { return Ok(None) };
        let owned = match (attributes.resource.group.as_ref(), attributes.resource.plural.as_ref()) {
            ("", Pod::PLURAL) => Owned::Pod(Box::new(old.typed::<Pod>().map_err(not_convertible)?.as_ref().clone())),
            ("", Service::PLURAL) => {
                Owned::Service(Box::new(old.typed::<Service>().map_err(not_convertible)?.as_ref().clone()))
            }
            ("", PersistentVolumeClaim::PLURAL) => {
                Owned::Claim(Box::new(old.typed::<PersistentVolumeClaim>().map_err(not_convertible)?.as_ref().clone()))
            }
            _ => Owned::Other,
        };
        Ok(Some(self.measure(attributes, owned)))
    }

    fn measure(&self, attributes: &Attributes, owned: Owned) -> Measured {
        let (group, plural) = (&attributes.resource.group, &attributes.resource.plural);
        let usage = quota::usage(&owned.subject(), group, plural, self.clock.now());
        Measured { owned, usage }
    }
}

/// An object and what it uses.
struct Measured {
    owned: Owned,
    usage: ResourceList,
}

enum Owned {
    Pod(Box<Pod>),
    Service(Box<Service>),
    Claim(Box<PersistentVolumeClaim>),
    Other,
}

impl Owned {
    fn subject(&self) -> Subject<'_> {
        match self {
            Self::Pod(pod) => Subject::Pod(pod),
            Self::Service(service) => Subject::Service(service),
            Self::Claim(claim) => Subject::Claim(claim),
            Self::Other => Subject::Other,
        }
    }
}

/// New objects of stored, namespaced kinds, and updates that can change what an object uses. Events are
/// not counted, as upstream.
fn is_charged(attributes: &Attributes) -> bool {
    let row = &attributes.resource;
    if !row.namespaced || row.stored_as.is_none() || row.plural == "events" {
        return false;
    }
    let is_core = row.group.is_empty();
    match (attributes.subresource.as_str(), attributes.operation) {
        ("", Operation::Create) => true,
        ("", Operation::Update) => is_core && quota::is_measured(&row.group, &row.plural),
        ("resize", Operation::Update) => is_core && row.plural == "pods",
        // What is allocated for a volume is in its status.
        ("status", Operation::Update) => is_core && row.plural == "persistentvolumeclaims",
        _ => false,
    }
}

/// An update of a pod changes what it uses by moving it from one scope to another, which a deadline does; else
/// pods from before a quota could not be labelled.
fn only_changes(attributes: &Attributes, after: &Measured, before: Option<&Measured>) -> bool {
    let has_deadline =
        |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds).is_some_and(|seconds| seconds >= 0);
    match (&after.owned, before.map(|before| &before.owned)) {
        (Owned::Pod(new), Some(Owned::Pod(old))) => {
            attributes.subresource.is_empty() && has_deadline(new) == has_deadline(old)
        }
        _ => false,
    }
}

/// The quotas a request charges, with the charge added; or why it is refused.
fn charges(
    attributes: &mut Attributes,
    quotas: &[Arc<ResourceQuota>],
    after: &Measured,
    before: Option<&Measured>,
) -> Result<Vec<ResourceQuota>, ApiStatus> {
    let row = attributes.resource.clone();
    let mut changed = Vec::new();
    for quota in quotas {
        let name = quota.metadata.name.clone().unwrap_or_default();
        let status = quota.status.as_ref();
        let hard = pod_resources::parse(status.and_then(|status| status.hard.as_ref()));
        let used = pod_resources::parse(status.and_then(|status| status.used.as_ref()));
        let about: Vec<&str> =
            hard.keys().map(String::as_str).filter(|name| quota::is_about(name, &row.group, &row.plural)).collect();
        if about.is_empty() || !quota::in_scope(quota, &after.owned.subject()) {
            continue;
        }
        if let Owned::Pod(pod) = &after.owned
            && let Some(missing) = quota::missing_constraints(pod, about.iter().copied())
        {
            return Err(forbidden(attributes, format!("failed quota: {name}: {missing}")));
        }
        let unknown: Vec<&str> = about.iter().copied().filter(|name| !used.contains_key(*name)).collect();
        if !unknown.is_empty() {
            let text = format!("status unknown for quota: {name}, resources: {}", about.join(","));
            return Err(forbidden(attributes, text));
        }
        let negative = after.usage.iter().filter(|(_, amount)| amount.is_negative());
        let negative: Vec<&str> = negative.map(|(name, _)| name.as_str()).collect();
        if !negative.is_empty() {
            let text = format!("quota usage is negative for resource(s): {}", negative.join(","));
            return Err(forbidden(attributes, text));
        }
        let counted_before = before.filter(|before| quota::in_scope(quota, &before.owned.subject()));
        let delta = delta(&after.usage, counted_before.map(|before| &before.usage), &about);
        if delta.is_empty() {
            continue;
        }
        let mut total = used.clone();
        pod_resources::add_all(&mut total, &delta);
        let exceeded: Vec<&str> = delta
            .keys()
            .map(String::as_str)
            .filter(|name| matches!((total.get(*name), hard.get(*name)), (Some(total), Some(hard)) if total > hard))
            .collect();
        if !exceeded.is_empty() {
            let text = format!(
                "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
                show(&delta, &exceeded),
                show(&used, &exceeded),
                show(&hard, &exceeded)
            );
            return Err(forbidden(attributes, text));
        }
        let mut quota = ResourceQuota::clone(quota);
        let texts = total.iter().map(|(name, amount)| (name.clone(), Text(amount.to_string()))).collect();
        quota.status.get_or_insert_default().used = Some(texts);
        changed.push(quota);
    }
    Ok(changed)
}

/// What is used more than before. An update that shrinks is recounted by the controller.
fn delta(after: &ResourceList, before: Option<&ResourceList>, about: &[&str]) -> ResourceList {
    let mut delta = ResourceList::new();
    for name in about {
        let Some(amount) = after.get(*name) else { continue };
        let mut more = amount.clone();
        if let Some(before) = before.and_then(|before| before.get(*name)) {
            more.sub(before);
        }
        if more > Quantity::zero() {
            delta.insert((*name).to_owned(), more);
        }
    }
    delta
}

/// `cpu=1,pods=2`
fn show(list: &ResourceList, names: &[&str]) -> String {
    let parts = names.iter().filter_map(|name| list.get(*name).map(|amount| format!("{name}={amount}")));
    parts.collect::<Vec<_>>().join(",")
}

impl Plugin for ResourceQuotaAdmission {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn validate<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(self.check(attributes))
    }
}
