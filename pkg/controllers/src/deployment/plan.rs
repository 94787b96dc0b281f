//! The arithmetic of rollouts: which ReplicaSet is to have how many replicas.
//!
//! Behaves as pkg/controller/deployment/{sync,rolling}.go and util/deployment_util.go, v1.36.

use std::sync::Arc;

use rkube_api::k8s::apps::v1::{Deployment, ReplicaSet, RollingUpdateDeployment};
use rkube_api::k8s::core::v1::PodTemplateSpec;
use rkube_apimachinery::int_or_string::Rounding;

use super::annotations::{desired_replicas, max_replicas, revision};
use crate::common::numbers::scaled;

pub(super) const HASH_LABEL: &str = "pod-template-hash";

/// One ReplicaSet and the replicas it is to have.
pub(super) type Scaling = (Arc<ReplicaSet>, i32);

/// The ReplicaSets of a Deployment: the one of its template, if it exists, and the others.
#[derive(Clone, Debug, Default)]
pub(super) struct ReplicaSets {
    pub(super) new: Option<Arc<ReplicaSet>>,
    pub(super) old: Vec<Arc<ReplicaSet>>,
}

impl ReplicaSets {
    /// Of several with the Deployment's template, the oldest is the new one.
    pub(super) fn sort(deployment: &Deployment, mut all: Vec<Arc<ReplicaSet>>) -> Self {
        all.sort_by(|a, b| by_age(a).cmp(&by_age(b)));
        let template = deployment.spec.as_ref().map(|spec| &spec.template);
        let position = all.iter().position(|replica_set| {
            let own = replica_set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            own.zip(template).is_some_and(|(own, wanted)| equal_ignoring_hash(own, wanted))
        });
        let new = position.map(|position| all.remove(position));
        Self { new, old: all }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.old.iter().chain(&self.new).map(|replica_set| &**replica_set)
    }

    fn active(&self) -> Vec<Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new).filter(|replica_set| size(replica_set) > 0).cloned().collect()
    }
}

/// The oldest first.
fn by_age(replica_set: &ReplicaSet) -> (Option<jiff::Timestamp>, &str) {
    let created = replica_set.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (created, replica_set.metadata.name.as_deref().unwrap_or_default())
}

pub(super) fn size(replica_set: &ReplicaSet) -> i32 {
    replica_set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(super) fn available(replica_set: &ReplicaSet) -> i32 {
    replica_set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

pub(super) fn actual(replica_set: &ReplicaSet) -> i32 {
    replica_set.status.as_ref().map_or(0, |status| status.replicas)
}

pub(super) fn total<'a>(replica_sets: impl IntoIterator<Item = &'a ReplicaSet>, of: fn(&ReplicaSet) -> i32) -> i32 {
    replica_sets.into_iter().map(of).fold(0, i32::saturating_add)
}

pub(super) fn replicas_of(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(super) fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

fn rolling_update(deployment: &Deployment) -> Option<&RollingUpdateDeployment> {
    deployment.spec.as_ref()?.strategy.as_ref()?.rolling_update.as_ref()
}

/// How many pods may exist above, and be missing below, the wanted number. Not both are zero.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let desired = replicas_of(deployment);
    let rolling = rolling_update(deployment);
    let surge = scaled(rolling.and_then(|rolling| rolling.max_surge.as_ref()), desired, Rounding::Up);
    let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
    let unavailable = scaled(unavailable, desired, Rounding::Down);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    if is_recreate(deployment) { 0 } else { fenceposts(deployment).0 }
}

pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    let desired = replicas_of(deployment);
    if is_recreate(deployment) || desired == 0 { 0 } else { fenceposts(deployment).1.min(desired) }
}

/// Equal but for the label that tells ReplicaSets apart.
pub(super) fn equal_ignoring_hash(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    if a.spec != b.spec {
        return false;
    }
    let clean = |template: &PodTemplateSpec| {
        let mut metadata = template.metadata.clone().unwrap_or_default();
        if let Some(labels) = &mut metadata.labels {
            labels.remove(HASH_LABEL);
        }
        // Absent and empty are the same to the API.
        metadata.labels = metadata.labels.filter(|labels| !labels.is_empty());
        metadata.annotations = metadata.annotations.filter(|annotations| !annotations.is_empty());
        metadata
    };
    clean(a) == clean(b)
}

/// The size a new ReplicaSet starts with or grows to, within the surge.
pub(super) fn new_size(deployment: &Deployment, current: i32, all_sizes: i32) -> i32 {
    let desired = replicas_of(deployment);
    if is_recreate(deployment) {
        return desired;
    }
    let surge = scaled(rolling_update(deployment).and_then(|r| r.max_surge.as_ref()), desired, Rounding::Up);
    let room = desired.saturating_add(surge).saturating_sub(all_sizes);
    if room <= 0 { current } else { current + room.min(desired - current) }
}

/// Whether `spec.replicas` changed since the active ReplicaSets were last sized.
pub(super) fn is_scaling_event(deployment: &Deployment, sets: &ReplicaSets) -> bool {
    let desired = replicas_of(deployment);
    sets.active().iter().filter_map(|active| desired_replicas(active)).any(|was| was != desired)
}

/// One step of a rolling update. The new ReplicaSet grows first; the old ones shrink when it has.
pub(super) fn rolling_step(deployment: &Deployment, sets: &ReplicaSets) -> Vec<Scaling> {
    let desired = replicas_of(deployment);
    let Some(new) = &sets.new else { return Vec::new() };
    let all_sizes = total(sets.all(), size);
    let wanted = if size(new) > desired { desired } else { new_size(deployment, size(new), all_sizes) };
    if wanted != size(new) {
        return vec![(Arc::clone(new), wanted)];
    }

    let min_available = desired - max_unavailable(deployment);
    let new_unavailable = size(new) - available(new);
    let may_go = all_sizes - min_available - new_unavailable;
    let mut old: Vec<(Arc<ReplicaSet>, i32)> =
        sets.old.iter().filter(|old| size(old) > 0).map(|old| (Arc::clone(old), size(old))).collect();
    if old.is_empty() || may_go <= 0 {
        return Vec::new();
    }

    // Replicas that are not available go first: that costs no availability.
    let mut left = may_go;
    for (replica_set, wanted) in &mut old {
        let unhealthy = (*wanted - available(replica_set)).clamp(0, left.max(0));
        *wanted -= unhealthy;
        left -= unhealthy;
    }
    let mut spare = total(sets.all(), available) - min_available;
    for (_, wanted) in &mut old {
        let gone = (*wanted).min(spare.max(0));
        *wanted -= gone;
        spare -= gone;
    }
    old.retain(|(replica_set, wanted)| *wanted != size(replica_set));
    old
}

/// Whether the new ReplicaSet has all replicas, and knows it.
fn is_saturated(deployment: &Deployment, new: Option<&Arc<ReplicaSet>>) -> bool {
    let desired = replicas_of(deployment);
    new.is_some_and(|new| size(new) == desired && desired_replicas(new) == Some(desired) && available(new) == desired)
}

/// What a change of `spec.replicas` means to the ReplicaSets: proportionally the same to all of them while a
/// rollout is under way. The flag says to refresh annotations although the size is right.
pub(super) fn scaling(deployment: &Deployment, sets: &ReplicaSets) -> Vec<(Scaling, bool)> {
    let desired = replicas_of(deployment);
    let mut active = sets.active();
    if active.len() <= 1 {
        let newest = || sets.old.iter().max_by(|a, b| by_age(a).cmp(&by_age(b)));
        let only = active.first().or(sets.new.as_ref()).or_else(newest);
        return only.map(|only| ((Arc::clone(only), desired), false)).into_iter().collect();
    }
    if is_saturated(deployment, sets.new.as_ref()) {
        let old = sets.old.iter().filter(|old| size(old) > 0);
        return old.map(|old| ((Arc::clone(old), 0), false)).collect();
    }
    if is_recreate(deployment) {
        return Vec::new();
    }

    let allowed = if desired > 0 { desired.saturating_add(max_surge(deployment)) } else { 0 };
    let to_add = allowed - total(active.iter().map(|set| &**set), size);
    // The largest changes most. Of equal ones, the newest grows and the oldest shrinks.
    if to_add > 0 {
        active.sort_by(|a, b| size(b).cmp(&size(a)).then_with(|| by_age(b).cmp(&by_age(a))));
    } else {
        active.sort_by(|a, b| size(b).cmp(&size(a)).then_with(|| by_age(a).cmp(&by_age(b))));
    }
    let mut added = 0;
    let mut sizes = Vec::with_capacity(active.len());
    for replica_set in &active {
        let share = proportion(deployment, replica_set, to_add, added);
        added += share;
        sizes.push(size(replica_set) + share);
    }
    // Rounding leaves something over; the largest takes it.
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    active.into_iter().zip(sizes).map(|scaling| (scaling, true)).collect()
}

/// The share of `to_add` (which may be negative) that falls to one ReplicaSet, when `added` is given out already.
fn proportion(deployment: &Deployment, replica_set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    if size(replica_set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(deployment, replica_set);
    if to_add > 0 { fraction.min(to_add - added) } else { fraction.max(to_add - added) }
}

/// By how much a ReplicaSet changes when it keeps its share of the Deployment.
fn fraction(deployment: &Deployment, replica_set: &ReplicaSet) -> i32 {
    let (desired, current) = (replicas_of(deployment), size(replica_set));
    if desired == 0 {
        return -current;
    }
    let status = deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
    let before = max_replicas(replica_set).filter(|maximum| *maximum != 0).unwrap_or(status);
    if before == 0 {
        return 0;
    }
    let after = desired.saturating_add(max_surge(deployment));
    let new = f64::from(current) * f64::from(after) / f64::from(before);
    // The quotient of counts fits; a float to integer cast saturates.
    #[allow(clippy::cast_possible_truncation, reason = "rounded and saturating")]
    let rounded = new.round() as i32;
    rounded - current
}

/// Old ReplicaSets beyond the history limit that are done with, the oldest revisions first.
pub(super) fn to_clean_up(deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> Vec<Arc<ReplicaSet>> {
    let limit = deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
    if limit == i32::MAX {
        return Vec::new();
    }
    let mut alive: Vec<_> = old.iter().filter(|old| old.metadata.deletion_timestamp.is_none()).cloned().collect();
    let excess = alive.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    alive.sort_by(|a, b| match (revision(a), revision(b)) {
        (Some(first), Some(second)) if first != second => first.cmp(&second),
        _ => by_age(a).cmp(&by_age(b)),
    });
    alive.truncate(excess);
    alive.retain(|old| {
        let observed = old.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
        actual(old) == 0 && size(old) == 0 && old.metadata.generation.unwrap_or(0) <= observed
    });
    alive
}
