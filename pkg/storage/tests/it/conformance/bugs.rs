//! Bugs that etcd had, by issue. Those of crashes are in `crash` and in the unit tests of the embedded store.

use super::*;

pub(super) async fn etcd_18089_delete_is_not_lost_by_compaction(store: Store) {
    let key = "/b1/a";
    let created = create(&store, key, "v").await;
    let mut stream = watch(&store, "/b1/", created).await;
    let deleted = delete(&store, key, created).await;
    store.compact(deleted).await.unwrap();
    let last = create(&store, "/b1/last", "v").await;
    let seen: Vec<_> = match watch_until(&mut stream, last).await {
        Ok(changes) => changes.iter().map(|change| change.revision).collect(),
        // Told that something is missing, which is allowed.
        Err(_) => return,
    };
    assert_eq!(seen, [deleted, last]);
}

pub(super) async fn etcd_19179_delete_at_the_compacted_revision(store: Store) {
    let key = "/b2/a";
    let created = create(&store, key, "v").await;
    let deleted = delete(&store, key, created).await;
    let last = create(&store, "/b2/last", "v").await;
    store.compact(deleted).await.unwrap();
    // The change of the compacted revision itself is gone: say so or deliver it.
    let from = Revision(deleted.0 - 1);
    let seen = match store.watch("/b2/".to_owned(), from).await {
        Ok(mut stream) => watch_until(&mut stream, last).await,
        Err(error) => Err(error),
    };
    match seen {
        Ok(changes) => {
            let revisions: Vec<_> = changes.iter().map(|change| change.revision).collect();
            assert_eq!(revisions, [deleted, last]);
        }
        Err(StorageError::Compacted { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    let seen = changes_until(&mut watch(&store, "/b2/", deleted).await, last).await;
    assert_eq!(seen.len(), 1);
}

pub(super) async fn etcd_20221_future_watch_gets_nothing_old(store: Store) {
    create(&store, "/b3/a", "v").await;
    let future = Revision(current(&store).await.0 + 10);
    let watched = store.watch("/b3/".to_owned(), future).await.err();
    assert!(matches!(watched, Some(StorageError::FutureRevision { .. })), "{watched:?}");
}

pub(super) async fn etcd_17780_compaction_keeps_the_revision(store: Store) {
    let created = create(&store, "/b4/a", "v").await;
    let deleted = delete(&store, "/b4/a", created).await;
    store.compact(deleted).await.unwrap();
    assert!(current(&store).await >= deleted);
    assert!(create(&store, "/b4/b", "v").await > deleted);
}

/// A watch that is followed while revisions are compacted behind it goes on forward only.
pub(super) async fn etcd_15271_watch_never_goes_back(store: Store) {
    let from = current(&store).await;
    let mut stream = watch(&store, "/b5/", from).await;
    let mut seen = from;
    for n in 0..30 {
        let created = create(&store, &format!("/b5/{n}"), "v").await;
        let changes = changes_until(&mut stream, created).await;
        assert!(changes.iter().all(|change| change.revision > seen));
        seen = created;
        store.compact(created).await.unwrap();
    }
}

async fn watch_until(stream: &mut WatchStream, revision: Revision) -> Result<Vec<Change>, StorageError> {
    let mut changes: Vec<Change> = Vec::new();
    while changes.last().is_none_or(|last| last.revision < revision) {
        match within("a change or an error", stream.next()).await {
            Some(Ok(WatchItem::Changes(batch))) => changes.extend(batch),
            Some(Ok(WatchItem::Progress(_))) => {}
            Some(Err(error)) => return Err(error),
            None => panic!("the watch ended without an error"),
        }
    }
    Ok(changes)
}
