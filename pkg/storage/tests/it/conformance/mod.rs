//! One suite for every backend: what `Storage` promises, tried from outside.
//!
//! Each test works under a prefix of its own and may compact, so tests on a shared backend run one after the
//! other. Cases named `etcd_<issue>` are bugs that etcd had.

mod bugs;
mod history;
mod reads;
mod watches;
mod writes;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use rkube_storage::{
    Change, ChangeKind, KeyValue, ListRange, Precondition, Revision, Storage, StorageError, WatchItem, WatchStream,
    WriteOutcome,
};

pub(crate) type Store = Arc<dyn Storage>;
pub(crate) type Test = fn(Store) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// Defines the suite once: `suite!(backend, open)` makes a test of each case, `all()` lists them.
macro_rules! define_suite {
    ($($area:ident: $($name:ident),+;)+) => {
        /// Every case with its name.
        pub(crate) fn all() -> Vec<(&'static str, Test)> {
            vec![$($((stringify!($name), (|store| Box::pin($area::$name(store))) as Test),)+)+]
        }

        macro_rules! suite {
            ($open:path) => {
                $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    crate::conformance::run(stringify!($name), $open).await;
                })+)+
            };
        }
        pub(crate) use suite;
    };
}

define_suite! {
    writes: create_update_delete, failed_precondition_changes_nothing, one_of_many_creators_wins,
        no_update_is_lost, limits_of_keys_and_values, odd_keys_and_values, dropped_writes_happen_wholly_or_not;
    reads: list_ranges, list_at_past_revisions, pages_are_consistent_under_writes, future_revisions,
        compacted_revisions;
    watches: watch_delivers_every_change_once_in_order, watch_resumes_where_it_stopped,
        watch_filters_by_prefix, watch_replays_history, watchers_under_load_agree, progress_on_request,
        slow_watcher_has_no_gap, many_watches_come_and_go;
    history: concurrent_history_is_linearizable;
    bugs: etcd_18089_delete_is_not_lost_by_compaction, etcd_19179_delete_at_the_compacted_revision,
        etcd_20221_future_watch_gets_nothing_old, etcd_17780_compaction_keeps_the_revision,
        etcd_15271_watch_never_goes_back;
}

/// A store for a test, and what must live as long.
pub(crate) struct Opened {
    pub(crate) store: Store,
    pub(crate) _keep: Box<dyn std::any::Any + Send>,
}

pub(crate) async fn run<F: Future<Output = Opened>>(name: &str, open: fn() -> F) {
    let Some((_, test)) = all().into_iter().find(|(known, _)| *known == name) else { panic!("no test {name}") };
    let opened = open().await;
    within(name, test(opened.store.clone())).await;
}

/// Fails loudly when something that must happen does not.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(60), future).await {
        Ok(value) => value,
        Err(_) => panic!("waited a minute for {what}"),
    }
}

pub(crate) fn value(text: &str) -> Bytes {
    Bytes::from(text.to_owned())
}

pub(crate) async fn create(store: &Store, key: &str, text: &str) -> Revision {
    done(store.put(key.to_owned(), value(text), Precondition::Absent).await)
}

pub(crate) async fn update(store: &Store, key: &str, text: &str, unchanged: Revision) -> Revision {
    done(store.put(key.to_owned(), value(text), Precondition::Unchanged(unchanged)).await)
}

pub(crate) async fn delete(store: &Store, key: &str, unchanged: Revision) -> Revision {
    done(store.delete(key.to_owned(), unchanged).await)
}

pub(crate) fn done(outcome: Result<WriteOutcome, StorageError>) -> Revision {
    match outcome {
        Ok(WriteOutcome::Done(revision)) => revision,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn current(store: &Store) -> Revision {
    store.current_revision().await.unwrap()
}

pub(crate) async fn get(store: &Store, key: &str) -> Option<KeyValue> {
    store.get(key).await.unwrap().0
}

pub(crate) fn range(prefix: &str) -> ListRange {
    ListRange { prefix: prefix.to_owned(), ..ListRange::default() }
}

/// Keys and values, for comparing.
pub(crate) fn texts(items: &[KeyValue]) -> Vec<String> {
    items.iter().map(|item| format!("{}={}", item.key, String::from_utf8_lossy(&item.value))).collect()
}

pub(crate) async fn watch(store: &Store, prefix: &str, from: Revision) -> WatchStream {
    store.watch(prefix.to_owned(), from).await.unwrap()
}

/// The changes up to and including `revision`, which must be one of them.
pub(crate) async fn changes_until(stream: &mut WatchStream, revision: Revision) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    let what = format!("the change of revision {}", revision.0);
    within(&what, async {
        while changes.last().is_none_or(|last| last.revision < revision) {
            match stream.next().await {
                Some(Ok(WatchItem::Changes(batch))) => {
                    assert!(!batch.is_empty(), "an empty batch");
                    changes.extend(batch);
                }
                Some(Ok(WatchItem::Progress(_))) => {}
                other => panic!("{other:?} after {:?}", changes.last()),
            }
        }
    })
    .await;
    let ordered = changes.windows(2).all(|pair| pair[0].revision < pair[1].revision);
    assert!(ordered, "out of order or twice: {:?}", changes.iter().map(|change| change.revision.0).collect::<Vec<_>>());
    changes
}

/// `key=value` or `-key`.
pub(crate) fn describe(change: &Change) -> String {
    match &change.kind {
        ChangeKind::Put(value) => format!("{}={}", change.key, String::from_utf8_lossy(value)),
        ChangeKind::Delete => format!("-{}", change.key),
    }
}

/// What ends a stream that is not read any further by its writer: everything that comes, and the error.
pub(crate) async fn drain(stream: &mut WatchStream) -> (Vec<Change>, Option<StorageError>) {
    let mut changes = Vec::new();
    loop {
        match within("the next item of the watch", stream.next()).await {
            Some(Ok(WatchItem::Changes(batch))) => changes.extend(batch),
            Some(Ok(WatchItem::Progress(_))) => return (changes, None),
            Some(Err(error)) => {
                assert!(stream.next().await.is_none(), "items after {error}");
                return (changes, Some(error));
            }
            None => panic!("the watch ended without an error"),
        }
    }
}
