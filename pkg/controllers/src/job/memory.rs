//! What the controller remembers of a Job between syncs, and may lose with the process.
//!
//! Behaves as pkg/controller/job/tracking_utils.go and the store of backoff_utils.go, v1.36.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use rkube_apimachinery::key::ObjectKey;

use super::backoff::Backoff;

#[derive(Default)]
pub(super) struct Memory(Mutex<HashMap<ObjectKey, Remembered>>);

#[derive(Default)]
struct Remembered {
    backoff: Backoff,
    /// Pods that lost their finalizer while the cache still shows it.
    ///
    /// Invariant: a uid goes in before the write and comes out with its event. There is no time limit: a pod that
    /// left too early would be counted twice.
    releasing: HashSet<String>,
    /// Failed pods that their index's next pod waits for, and when each was first seen failed.
    failures_seen: HashMap<String, Duration>,
    /// The last sync stopped at a limit: the next is due when the cache shows what was done, not a batch later.
    hurried: bool,
}

impl Memory {
    pub(super) fn forget(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }

    pub(super) fn backoff(&self, key: &ObjectKey) -> Backoff {
        self.0.lock().get(key).map(|known| known.backoff).unwrap_or_default()
    }

    pub(super) fn set_backoff(&self, key: &ObjectKey, backoff: Backoff) {
        self.0.lock().entry(key.clone()).or_default().backoff = backoff;
    }

    /// Notes which pods have failed; since when each is known to.
    pub(super) fn note_failures(
        &self,
        key: &ObjectKey,
        uids: impl Iterator<Item = String>,
        now: Duration,
    ) -> HashMap<String, Duration> {
        let mut all = self.0.lock();
        let known = &mut all.entry(key.clone()).or_default().failures_seen;
        let seen = |uid: String| (known.get(&uid).copied().unwrap_or(now), uid);
        *known = uids.map(seen).map(|(seen, uid)| (uid, seen)).collect();
        known.clone()
    }

    pub(super) fn is_hurried(&self, key: &ObjectKey) -> bool {
        self.0.lock().get(key).is_some_and(|known| known.hurried)
    }

    pub(super) fn hurry(&self, key: &ObjectKey) {
        self.0.lock().entry(key.clone()).or_default().hurried = true;
    }

    /// Ends the hurry; whether there was one.
    pub(super) fn take_hurry(&self, key: &ObjectKey) -> bool {
        self.0.lock().get_mut(key).is_some_and(|known| std::mem::take(&mut known.hurried))
    }

    pub(super) fn releasing(&self, key: &ObjectKey) -> HashSet<String> {
        self.0.lock().get(key).map(|known| known.releasing.clone()).unwrap_or_default()
    }

    pub(super) fn expect_release(&self, key: &ObjectKey, uids: impl IntoIterator<Item = String>) {
        self.0.lock().entry(key.clone()).or_default().releasing.extend(uids);
    }

    /// The cache shows the pod without the finalizer or not at all, or the write failed.
    pub(super) fn release_observed(&self, key: &ObjectKey, uid: &str) {
        if let Some(known) = self.0.lock().get_mut(key) {
            known.releasing.remove(uid);
        }
    }
}
