//! What to do about one claim.
//!
//! Behaves as `syncUnboundClaim` and `syncBoundClaim` of pv_controller.go, v1.36.

use std::sync::Arc;

use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim};
use rkube_api::k8s::storage::v1::StorageClass;
use rkube_api::volumes::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, SELECTED_NODE, claim_class, is_reserved_for, requested_class, volume_name,
};
use rkube_client::EventType;

use super::matching::{best_match, mismatch};
use crate::common::migrated_plugins::driver_of;

/// An event about the claim.
#[derive(Clone, Debug)]
pub(super) struct Note {
    pub(super) event_type: EventType,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Note {
    fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { event_type: EventType::Normal, reason, message: message.into() }
    }

    fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { event_type: EventType::Warning, reason, message: message.into() }
    }
}

/// What is to happen with a claim.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Complete the binding to this volume, or begin it.
    Bind(Arc<PersistentVolume>),
    /// It left the class open, and there is a default now.
    AssignClass(String),
    /// Hand it to an external provisioner.
    Provision(String),
    /// Nothing can be done now.
    Wait(Option<Note>),
    /// As `Wait`, and the status is left alone.
    Report(Note),
    /// Its volume is gone, or is not its own.
    Lose(Note),
    /// A state that only lasts while others write.
    Retry(Note, String),
}

/// What a claim's fate depends on.
pub(super) trait Storage {
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>>;
    /// Volumes that no claim has, and those reserved for this one.
    fn candidates(&self, claim: &PersistentVolumeClaim) -> Vec<Arc<PersistentVolume>>;
    fn class(&self, name: &str) -> Option<Arc<StorageClass>>;
    fn default_class(&self) -> Option<String>;
    /// Pods with this claim that have no node yet.
    fn unscheduled_pods(&self, claim: &PersistentVolumeClaim) -> Vec<String>;
}

fn has_annotation(claim: &PersistentVolumeClaim, name: &str) -> bool {
    claim.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(name))
}

pub(super) fn plan(claim: &PersistentVolumeClaim, storage: &dyn Storage) -> Step {
    if has_annotation(claim, BIND_COMPLETED) {
        bound(claim, storage)
    } else if volume_name(claim).is_empty() {
        unbound(claim, storage)
    } else {
        requested(claim, storage)
    }
}

/// A claim that was bound once.
fn bound(claim: &PersistentVolumeClaim, storage: &dyn Storage) -> Step {
    let lost = |reason, message: &str| Step::Lose(Note::warning(reason, message));
    if volume_name(claim).is_empty() {
        return lost("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!");
    }
    let Some(volume) = storage.volume(volume_name(claim)) else {
        return lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!");
    };
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if reference.is_none_or(|reference| reference.uid == claim.metadata.uid) {
        Step::Bind(volume)
    } else {
        lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
    }
}

/// A claim that takes any volume that fits.
fn unbound(claim: &PersistentVolumeClaim, storage: &dyn Storage) -> Step {
    let class = claim_class(claim);
    let known = Some(class).filter(|class| !class.is_empty()).and_then(|class| storage.class(class));
    let mode = known.as_ref().and_then(|class| class.volume_binding_mode.as_deref());
    let delayed = mode == Some("WaitForFirstConsumer");
    if let Some(volume) = best_match(claim, &storage.candidates(claim), delayed) {
        return Step::Bind(volume);
    }
    if requested_class(claim).is_none()
        && let Some(class) = storage.default_class()
    {
        return Step::AssignClass(class);
    }
    if delayed && !has_annotation(claim, SELECTED_NODE) {
        return Step::Wait(Some(waiting(&storage.unscheduled_pods(claim))));
    }
    if class.is_empty() {
        let text = "no persistent volumes available for this claim and no storage class is set";
        return Step::Wait(Some(Note::normal("FailedBinding", text)));
    }
    let failed = |message| Step::Report(Note::warning("ProvisioningFailed", message));
    match known {
        None => failed(format!("storageclass.storage.k8s.io {class:?} not found")),
        Some(class) => match provisioner(&class.provisioner) {
            Some(provisioner) => Step::Provision(provisioner.to_owned()),
            None => failed(format!("no volume plugin matched name: {}", class.provisioner)),
        },
    }
}

/// Who makes volumes of a class; `None` if nobody does.
fn provisioner(name: &str) -> Option<&str> {
    driver_of(name).or_else(|| (!name.starts_with("kubernetes.io/")).then_some(name))
}

fn waiting(pods: &[String]) -> Note {
    match pods {
        [] => Note::normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
        [pod] => Note::normal("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
        pods => Note::normal("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", pods.join(","))),
    }
}

/// A claim that asks for one volume by name.
fn requested(claim: &PersistentVolumeClaim, storage: &dyn Storage) -> Step {
    let name = volume_name(claim);
    let Some(volume) = storage.volume(name) else { return Step::Wait(None) };
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let Some(reference) = reference else {
        return match mismatch(&volume, claim) {
            None => Step::Bind(volume),
            Some(why) => {
                let text = format!("Cannot bind to requested volume {name:?}: {why}");
                Step::Wait(Some(Note::warning("VolumeMismatch", text)))
            }
        };
    };
    if is_reserved_for(&volume, claim) {
        return Step::Bind(volume);
    }
    let taken = Note::warning("FailedBinding", format!("volume {name:?} already bound to a different claim."));
    if !has_annotation(claim, BOUND_BY_CONTROLLER) {
        return Step::Wait(Some(taken));
    }
    let key = |namespace: &Option<String>, name: &Option<String>| {
        format!("{}/{}", namespace.as_deref().unwrap_or_default(), name.as_deref().unwrap_or_default())
    };
    let (own, other) =
        (key(&claim.metadata.namespace, &claim.metadata.name), key(&reference.namespace, &reference.name));
    let error = format!("invalid binding of claim {own:?} to volume {name:?}: volume already claimed by {other:?}");
    Step::Retry(taken, error)
}
