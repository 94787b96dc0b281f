//! Writes under way: what a writer has put together is not taken apart again by the feed.
//!
//! In: an object in stored form, before it is written. Out: the one `Arc` of it that the writer answers with and the
//! cache holds, made by whichever of the two needs it first.
//!
//! **Invariant:** the object that is made depends on nothing but the stored bytes and the revision, so an
//! announcement that is missed or matched by another write of the same bytes changes nothing.
//! **Invariant:** an announcement goes when its change comes, when its write fails or is given up, and when the cache
//! is loaded anew.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use rkube_api::StoredObject;
use rkube_api::object::Selection;
use rkube_apimachinery::key::ObjectKey;

use crate::encode::{self, Encoded};

/// The writes under way of one resource; of each key the newest.
#[derive(Default)]
pub(super) struct Announcements {
    by_key: Mutex<HashMap<ObjectKey, Arc<Announced>>>,
}

struct Announced {
    bytes: Bytes,
    selection: Mutex<Option<Selection>>,
    object: OnceLock<Option<Arc<StoredObject>>>,
}

impl Announced {
    fn object(&self, key: &ObjectKey, revision: u64) -> Option<Arc<StoredObject>> {
        let made = self.object.get_or_init(|| {
            let json = encode::with_revision(&self.bytes, revision).ok()?;
            let selection = self.selection.lock().take()?;
            Some(Arc::new(StoredObject::new(key.clone(), revision, json, selection)))
        });
        made.clone().filter(|object| object.revision == revision)
    }
}

impl Announcements {
    pub(super) fn announce(&self, key: &ObjectKey, stored: Encoded) -> Announcement<'_> {
        let announced = Arc::new(Announced {
            bytes: stored.bytes,
            selection: Mutex::new(Some(stored.selection)),
            object: OnceLock::new(),
        });
        self.by_key.lock().insert(key.clone(), announced.clone());
        Announcement { all: self, key: key.clone(), announced, is_written: false }
    }

    /// The object that the change of `key` to `stored` made, if that was announced.
    pub(super) fn take(&self, key: &ObjectKey, revision: u64, stored: &Bytes) -> Option<Arc<StoredObject>> {
        let announced = {
            let mut by_key = self.by_key.lock();
            by_key.get(key).filter(|announced| announced.bytes == *stored)?;
            by_key.remove(key)?
        };
        announced.object(key, revision)
    }

    pub(super) fn clear(&self) {
        self.by_key.lock().clear();
    }
}

/// A write that was announced.
pub(crate) struct Announcement<'a> {
    all: &'a Announcements,
    key: ObjectKey,
    announced: Arc<Announced>,
    is_written: bool,
}

impl Announcement<'_> {
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.announced.bytes
    }

    /// The object, now that it is written. The announcement stays until the change has come.
    pub(crate) fn written(mut self, revision: u64) -> Option<Arc<StoredObject>> {
        self.is_written = true;
        self.announced.object(&self.key, revision)
    }
}

impl Drop for Announcement<'_> {
    fn drop(&mut self) {
        if self.is_written {
            return;
        }
        let mut by_key = self.all.by_key.lock();
        if by_key.get(&self.key).is_some_and(|known| Arc::ptr_eq(known, &self.announced)) {
            by_key.remove(&self.key);
        }
    }
}
