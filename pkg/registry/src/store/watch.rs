//! What a watch delivers.

use std::sync::Arc;

use rkube_api::StoredObject;
use rkube_apimachinery::status::ApiStatus;

/// A change, a point in time, or the end.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    Added(Arc<StoredObject>),
    Modified(Arc<StoredObject>),
    /// The last state of an object, at the revision of its deletion.
    Deleted(Arc<StoredObject>),
    /// Everything up to and including this revision was delivered.
    Bookmark {
        revision: u64,
        initial_events_end: bool,
    },
    /// The last event of a watch that failed.
    Error(ApiStatus),
}

/// The receiving end of a watch. Dropping it ends the watch.
pub struct Watcher {
    _private: (),
}

impl Watcher {
    /// Waits for events and moves all that are there to `into`, in order. False: the watch is over (its
    /// time is up, it failed, or it was too slow) and nothing was added.
    pub async fn next_batch(&mut self, into: &mut Vec<WatchEvent>) -> bool {
        into.clear();
        false
    }
}
