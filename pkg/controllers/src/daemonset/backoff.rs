//! How long a failed daemon pod stays before it is replaced: a kubelet may refuse every one of them at once.
//!
//! Behaves as `Backoff` of k8s.io/client-go/util/flowcontrol with kube-controller-manager's settings, v1.36, on a clock
//! that does not jump.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

const INITIAL: Duration = Duration::from_secs(1);
const MAX: Duration = Duration::from_secs(15 * 60);
/// A pod that was not replaced for this long has earned a fresh start.
const EXPIRY: Duration = Duration::from_secs(2 * 15 * 60);
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);

/// A set by uid, the generation it has observed, and a node: a changed set starts over.
pub(super) type Key = (String, i64, String);

#[derive(Default)]
pub(super) struct FailedPods(Mutex<State>);

#[derive(Default)]
struct State {
    entries: HashMap<Key, Entry>,
    pruned: Duration,
}

struct Entry {
    delay: Duration,
    updated: Duration,
}

impl FailedPods {
    /// `None` if a failed pod may be replaced now, which makes the next delay longer; or else when to ask again.
    pub(super) fn hold(&self, key: Key, now: Duration) -> Option<Duration> {
        let mut state = self.0.lock();
        let expired = |entry: &Entry| now.saturating_sub(entry.updated) > EXPIRY;
        if now.saturating_sub(state.pruned) > PRUNE_INTERVAL {
            state.pruned = now;
            state.entries.retain(|_, entry| !expired(entry));
        }
        let known = state.entries.get(&key).filter(|entry| !expired(entry));
        let delay = match known {
            Some(entry) if now.saturating_sub(entry.updated) < entry.delay => return Some(entry.delay),
            Some(entry) => (entry.delay * 2).min(MAX),
            None => INITIAL,
        };
        state.entries.insert(key, Entry { delay, updated: now });
        None
    }
}
