//! The status of a quota, from the objects of its namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rkube_api::Kind;
use rkube_api::StoredObject;
use rkube_api::k8s::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use rkube_api::meta::pkg::api::resource::Quantity as Text;
use rkube_api::pod_resources::{ResourceList, add_all, parse};
use rkube_api::quota::{self, Subject};
use rkube_api::volumes::attributes_classes;
use rkube_apimachinery::quantity::{Format, Quantity};

use crate::common::pods;

/// Group and plural.
pub(super) type KindName = (String, String);

/// The kinds a quota is about.
pub(super) fn kinds(quota: &ResourceQuota) -> BTreeSet<KindName> {
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
    let kinds = hard.into_iter().flatten().filter_map(|(name, _)| quota::kind_of(name));
    kinds.map(|(group, plural)| (group.to_owned(), plural.to_owned())).collect()
}

/// A stored object as quota sees it.
enum Owned {
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    Claim(Arc<PersistentVolumeClaim>),
    Other,
}

impl Owned {
    fn of(object: &StoredObject, (group, plural): (&str, &str)) -> Option<Self> {
        Some(match (group, plural) {
            ("", Pod::PLURAL) => Self::Pod(object.typed().ok()?),
            ("", Service::PLURAL) => Self::Service(object.typed().ok()?),
            ("", PersistentVolumeClaim::PLURAL) => Self::Claim(object.typed().ok()?),
            _ => Self::Other,
        })
    }

    fn subject(&self) -> Subject<'_> {
        match self {
            Self::Pod(pod) => Subject::Pod(pod),
            Self::Service(service) => Subject::Service(service),
            Self::Claim(claim) => Subject::Claim(claim),
            Self::Other => Subject::Other,
        }
    }
}

/// What objects of one kind use of a quota.
#[derive(Debug, Default)]
pub(super) struct Usage {
    pub(super) used: ResourceList,
    /// When a pod that is being deleted stops to count, although nothing happens to it.
    pub(super) changes_in: Option<Duration>,
}

pub(super) fn usage(quota: &ResourceQuota, kind: (&str, &str), objects: &[Arc<StoredObject>], now: Timestamp) -> Usage {
    let mut total = Usage::default();
    let (group, plural) = kind;
    if !quota::is_measured(group, plural) {
        // All objects of the kind use the same, so that none has to be decoded.
        let counted = if quota::in_scope(quota, &Subject::Other) { objects.len() } else { 0 };
        let counted = i64::try_from(counted).unwrap_or(i64::MAX);
        let one = quota::usage(&Subject::Other, group, plural, now);
        total.used = one.into_iter().map(|(name, amount)| (name, amount.times(counted))).collect();
        return total;
    }
    for object in objects {
        // One that does not decode is not counted, as it is not seen by any controller.
        let Some(owned) = Owned::of(object, kind) else { continue };
        if !quota::in_scope(quota, &owned.subject()) {
            continue;
        }
        add_all(&mut total.used, &quota::usage(&owned.subject(), group, plural, now));
        if let Owned::Pod(pod) = &owned {
            let next = grace_left(pod, now);
            total.changes_in = total.changes_in.into_iter().chain(next).min();
        }
    }
    total
}

/// How long a pod that is being deleted still counts.
fn grace_left(pod: &Pod, now: Timestamp) -> Option<Duration> {
    if pods::is_terminal(pod) {
        return None;
    }
    let deleted = pod.metadata.deletion_timestamp.as_ref()?;
    let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds?.max(0));
    let end = deleted.0.checked_add(grace).ok()?;
    let left = Duration::try_from(end.duration_since(now)).ok()?;
    // It counts until just after the end.
    Some(left + Duration::from_millis(1))
}

/// The status a quota is to have. `measured` has what each kind uses; of a kind that could not be counted the last
/// known usage stays.
pub(super) fn status(quota: &ResourceQuota, measured: &BTreeMap<KindName, ResourceList>) -> ResourceQuotaStatus {
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
    let known = quota.status.as_ref().and_then(|status| status.used.as_ref());
    let used = hard.keys().filter_map(|name| {
        let (group, plural) = quota::kind_of(name).unwrap_or_default();
        let amount = match measured.get(&(group.to_owned(), plural.to_owned())) {
            Some(used) => {
                let amount = used.get(name).cloned().unwrap_or_else(|| Quantity::new(0, Format::DecimalSi));
                Text(amount.to_string())
            }
            None => known?.get(name)?.clone(),
        };
        Some((name.clone(), amount))
    });
    ResourceQuotaStatus { used: Some(used.collect()), hard: Some(hard) }
}

type Amounts = Option<BTreeMap<String, Text>>;

/// The same amounts, however they are written.
fn same(one: &Amounts, other: &Amounts) -> bool {
    parse(one.as_ref()) == parse(other.as_ref())
}

/// Whether a status says what another one says. An empty list and none are the same.
pub(super) fn is_up_to_date(quota: &ResourceQuota, wanted: &ResourceQuotaStatus) -> bool {
    let status = quota.status.clone().unwrap_or_default();
    same(&status.hard, &wanted.hard) && same(&status.used, &wanted.used)
}

/// Limits that are not in force yet: admission does not know them, or refuses everything until they are counted.
pub(super) fn is_urgent(quota: &ResourceQuota) -> bool {
    let spec = quota.spec.as_ref().and_then(|spec| spec.hard.clone());
    let Some(status) = quota.status.as_ref() else { return true };
    let used = status.used.as_ref();
    let is_counted = |name: &String| used.is_some_and(|used| used.contains_key(name));
    !same(&spec, &status.hard)
        || status.hard.iter().flatten().any(|(name, _)| quota::kind_of(name).is_some() && !is_counted(name))
}

/// Whether an update of an object can change what quotas say, in either direction.
pub(super) fn changes_usage(old: &StoredObject, new: &StoredObject, kind: (&str, &str), now: Timestamp) -> bool {
    if !quota::is_measured(kind.0, kind.1) {
        return false;
    }
    let (Some(old), Some(new)) = (Owned::of(old, kind), Owned::of(new, kind)) else { return true };
    let scope_moved = match (&old, &new) {
        (Owned::Pod(old), Owned::Pod(new)) => {
            let deadline = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
            let deleted = |pod: &Pod| (pods::is_terminating(pod), pod.metadata.deletion_grace_period_seconds);
            deadline(old).is_some() != deadline(new).is_some() || deleted(old) != deleted(new)
        }
        (Owned::Claim(old), Owned::Claim(new)) => attributes_classes(old).ne(attributes_classes(new)),
        _ => false,
    };
    let used = |owned: &Owned| quota::usage(&owned.subject(), kind.0, kind.1, now);
    scope_moved || used(&old) != used(&new)
}
