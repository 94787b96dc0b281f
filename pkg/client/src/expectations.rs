//! What a controller has done and its cache does not show yet.
//!
//! Behaves as `ControllerExpectations` and `UIDTrackingControllerExpectations` of
//! `pkg/controller/controller_utils.go`, v1.36.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;

/// A watch that lags longer than this is broken; better to act on an old cache than never again.
const TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// Creations and deletions a controller still waits to see, per key.
///
/// Deletions are tracked by UID: a pod's deletion may be seen twice, once as a deletion timestamp and once
/// as its removal, and must count once.
///
/// Invariant: `expect_*` is called before the writes, `*_observed` by event handlers and for writes that
/// failed. The other order would miss an event that arrives before the answer.
pub struct Expectations {
    clock: SharedClock,
    keys: Mutex<HashMap<ObjectKey, Expected>>,
}

#[derive(Debug)]
struct Expected {
    creations: i64,
    deletions: HashSet<String>,
    since: Duration,
}

impl Expectations {
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, keys: Mutex::new(HashMap::new()) }
    }

    /// Whether the cache shows everything done for `key`, or has had five minutes to.
    pub fn satisfied(&self, key: &ObjectKey) -> bool {
        let keys = self.keys.lock();
        keys.get(key).is_none_or(|expected| {
            (expected.creations <= 0 && expected.deletions.is_empty())
                || self.clock.monotonic().saturating_sub(expected.since) > TIMEOUT
        })
    }

    /// Replaces what was expected for `key`.
    pub fn expect(&self, key: &ObjectKey, creations: usize, deletions: impl IntoIterator<Item = String>) {
        let expected = Expected {
            creations: i64::try_from(creations).unwrap_or(i64::MAX),
            deletions: deletions.into_iter().collect(),
            since: self.clock.monotonic(),
        };
        self.keys.lock().insert(key.clone(), expected);
    }

    pub fn expect_creations(&self, key: &ObjectKey, creations: usize) {
        self.expect(key, creations, []);
    }

    pub fn expect_deletions(&self, key: &ObjectKey, uids: impl IntoIterator<Item = String>) {
        self.expect(key, 0, uids);
    }

    pub fn creation_observed(&self, key: &ObjectKey) {
        self.creations_observed(key, 1);
    }

    /// Also for creations that were expected and not attempted.
    pub fn creations_observed(&self, key: &ObjectKey, count: usize) {
        if let Some(expected) = self.keys.lock().get_mut(key) {
            expected.creations = expected.creations.saturating_sub(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub fn deletion_observed(&self, key: &ObjectKey, uid: &str) {
        if let Some(expected) = self.keys.lock().get_mut(key) {
            expected.deletions.remove(uid);
        }
    }

    /// The controlling object is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.keys.lock().remove(key);
    }
}
