//! When the change happened that a write of endpoints answers to, for measuring how long it took to take effect.
//!
//! Behaves as staging/endpointslice/util/trigger_time_tracker.go, v1.36.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use rkube_api::k8s::core::v1::{Pod, Service};
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::time;

use super::pods;

pub(crate) const LAST_CHANGE_TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

#[derive(Default)]
pub(crate) struct TriggerTimes(Mutex<HashMap<ObjectKey, Seen>>);

#[derive(Default)]
struct Seen {
    pods: HashMap<String, Timestamp>,
    service: Option<Timestamp>,
}

impl TriggerTimes {
    /// The earliest change since the last call for this Service, as an annotation's text.
    pub(crate) fn last_change(&self, key: &ObjectKey, service: &Service, pods: &[Arc<Pod>]) -> Option<String> {
        let mut all = self.0.lock();
        let fresh = !all.contains_key(key);
        let seen = all.entry(key.clone()).or_default();
        let times: HashMap<String, Timestamp> =
            pods.iter().filter_map(|pod| Some((pod.metadata.name.clone()?, trigger_time(pod)?))).collect();
        let changed = times.iter().filter(|(name, time)| seen.pods.get(*name).is_none_or(|known| known < *time));
        let earliest = changed.map(|(_, time)| *time).min();
        let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let service_changed = created.filter(|created| fresh || seen.service != Some(*created));
        *seen = Seen { pods: times, service: created };
        let first = [earliest, service_changed].into_iter().flatten().min();
        first.map(time::format)
    }

    pub(crate) fn forget(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }
}

/// When the pod last became ready or not, or was made.
fn trigger_time(pod: &Pod) -> Option<Timestamp> {
    let transition = pods::condition(pod, "Ready").and_then(|ready| ready.last_transition_time.as_ref());
    transition.or(pod.metadata.creation_timestamp.as_ref()).map(|time| time.0)
}
