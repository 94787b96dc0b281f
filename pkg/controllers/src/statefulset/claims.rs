//! Who owns the claims of a StatefulSet's pods: what its retention policy says is to happen to them.
//!
//! A claim owned by the set goes with the set; one owned by a pod that is scaled away goes with that pod.
//! Behaves as the claim helpers of pkg/controller/statefulset/stateful_set_utils.go, v1.36.

use rkube_api::Kind;
use rkube_api::k8s::apps::v1::StatefulSet;
use rkube_api::k8s::core::v1::{PersistentVolumeClaim, Pod};
use rkube_api::meta::pkg::apis::meta::v1::OwnerReference;
use rkube_client::owner::{api_version, new_controller_ref, uid_of};

use super::pods::{in_range, ordinal};

/// Whether claims are deleted when the pod is scaled away, and when the set is deleted.
pub(super) fn retention(set: &StatefulSet) -> (bool, bool) {
    let policy = set.spec.as_ref().and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    let deletes = |text: Option<&String>| text.is_some_and(|text| text == "Delete");
    (
        deletes(policy.and_then(|policy| policy.when_scaled.as_ref())),
        deletes(policy.and_then(|policy| policy.when_deleted.as_ref())),
    )
}

fn references(claim: &PersistentVolumeClaim) -> &[OwnerReference] {
    claim.metadata.owner_references.as_deref().unwrap_or_default()
}

/// Names this object, of whatever uid.
fn names<O: Kind>(reference: &OwnerReference, owner: &O) -> bool {
    reference.api_version == api_version::<O>()
        && reference.kind == O::KIND
        && Some(&reference.name) == owner.metadata().name.as_ref()
}

fn owned_by<O: Kind>(claim: &PersistentVolumeClaim, owner: &O) -> bool {
    references(claim).iter().any(|reference| reference.uid == uid_of(owner))
}

/// Refers to an earlier object of this name: the claim is about to be collected with it.
pub(super) fn is_stale<O: Kind>(claim: &PersistentVolumeClaim, owner: &O) -> bool {
    let reference = references(claim).iter().find(|reference| names(reference, owner));
    reference.is_some_and(|reference| reference.uid != uid_of(owner))
}

/// Somebody else manages the claim; then its retention is none of our business.
pub(super) fn has_other_controller(claim: &PersistentVolumeClaim, set: &StatefulSet, pod: &Pod) -> bool {
    if retention(set) == (false, false) {
        return false;
    }
    references(claim).iter().any(|reference| {
        if names(reference, set) {
            reference.uid != uid_of(set)
        } else if names(reference, pod) {
            reference.uid != uid_of(pod)
        } else {
            reference.controller == Some(true)
        }
    })
}

/// Whether set and pod are to own the claim.
fn wanted_owners(set: &StatefulSet, pod: &Pod) -> (bool, bool) {
    let scaled_away = !ordinal(pod).is_some_and(|ordinal| in_range(set, ordinal));
    match retention(set) {
        (false, deleted) => (deleted, false),
        (true, false) => (false, scaled_away),
        (true, true) => (!scaled_away, scaled_away),
    }
}

pub(super) fn is_up_to_date(claim: &PersistentVolumeClaim, set: &StatefulSet, pod: &Pod) -> bool {
    if is_stale(claim, set) || is_stale(claim, pod) {
        // Let it be collected first.
        return true;
    }
    if has_other_controller(claim, set, pod) {
        return !(owned_by(claim, set) || owned_by(claim, pod));
    }
    let ours = [uid_of(set), uid_of(pod)];
    let half = references(claim)
        .iter()
        .any(|reference| ours.contains(&reference.uid.as_str()) && reference.controller != Some(true));
    !half && wanted_owners(set, pod) == (owned_by(claim, set), owned_by(claim, pod))
}

/// The claim with the owners it is to have.
pub(super) fn with_owners(claim: &PersistentVolumeClaim, set: &StatefulSet, pod: &Pod) -> PersistentVolumeClaim {
    let mut updated = claim.clone();
    let mut kept = references(claim).to_vec();
    kept.retain(|reference| !names(reference, set) && !names(reference, pod));
    if !has_other_controller(claim, set, pod) {
        let (by_set, by_pod) = wanted_owners(set, pod);
        if by_set {
            kept.push(new_controller_ref(set));
        }
        if by_pod {
            kept.push(new_controller_ref(pod));
        }
    }
    updated.metadata.owner_references = Some(kept).filter(|kept| !kept.is_empty());
    updated
}
