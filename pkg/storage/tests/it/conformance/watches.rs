//! Watches: ordered, unique, atomic, reliable, resumable, filtered, and with progress.

use super::*;

pub(super) async fn watch_delivers_every_change_once_in_order(store: Store) {
    let from = current(&store).await;
    let mut stream = watch(&store, "/w1/", from).await;
    let a = create(&store, "/w1/a", "1").await;
    let b = create(&store, "/w1/b", "2").await;
    let a2 = update(&store, "/w1/a", "3", a).await;
    let gone = delete(&store, "/w1/b", b).await;
    let again = create(&store, "/w1/b", "5").await;
    let changes = changes_until(&mut stream, again).await;
    let seen: Vec<_> = changes.iter().map(|change| (change.revision, describe(change))).collect();
    let expected = [
        (a, "/w1/a=1".to_owned()),
        (b, "/w1/b=2".to_owned()),
        (a2, "/w1/a=3".to_owned()),
        (gone, "-/w1/b".to_owned()),
        (again, "/w1/b=5".to_owned()),
    ];
    assert_eq!(seen, expected);
}

pub(super) async fn watch_resumes_where_it_stopped(store: Store) {
    let from = current(&store).await;
    let mut last = from;
    for n in 0..200 {
        last = create(&store, &format!("/w2/{n:03}"), "v").await;
    }
    let whole = changes_until(&mut watch(&store, "/w2/", from).await, last).await;
    assert_eq!(whole.len(), 200);
    for stop in [0, 1, 99, 198] {
        let resumed = changes_until(&mut watch(&store, "/w2/", whole[stop].revision).await, last).await;
        assert_eq!(resumed, whole[stop + 1..]);
    }
}

pub(super) async fn watch_filters_by_prefix(store: Store) {
    let from = current(&store).await;
    let mut streams = Vec::new();
    for prefix in ["/w3/a/", "/w3/a", "/w3/b/", "/w3/"] {
        streams.push((prefix, watch(&store, prefix, from).await));
    }
    let mut last = from;
    let keys = ["/w3/a/1", "/w3/ab", "/w3/b/1", "/w3/a/2", "/w", "/w3/b/2", "/w3/a", "/w3/a/3", "/w3/ac", "/w3/b/3"];
    for key in keys {
        last = create(&store, key, "v").await;
    }
    for (prefix, mut stream) in streams {
        let expected: Vec<_> = keys.into_iter().filter(|key| key.starts_with(prefix)).collect();
        let mut seen = Vec::new();
        while seen.len() < expected.len() {
            match within("a filtered change", stream.next()).await {
                Some(Ok(WatchItem::Changes(batch))) => seen.extend(batch.into_iter().map(|change| change.key)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, expected, "{prefix} up to {}", last.0);
    }
}

pub(super) async fn watch_replays_history(store: Store) {
    let from = current(&store).await;
    let a = create(&store, "/w4/a", "1").await;
    let a2 = update(&store, "/w4/a", "2", a).await;
    let gone = delete(&store, "/w4/a", a2).await;
    let b = create(&store, "/w4/b", "4").await;
    for (from, expected) in [
        (from, &["/w4/a=1", "/w4/a=2", "-/w4/a", "/w4/b=4"][..]),
        (a, &["/w4/a=2", "-/w4/a", "/w4/b=4"]),
        (a2, &["-/w4/a", "/w4/b=4"]),
        (gone, &["/w4/b=4"]),
    ] {
        let changes = changes_until(&mut watch(&store, "/w4/", from).await, b).await;
        assert_eq!(changes.iter().map(describe).collect::<Vec<_>>(), expected);
    }
}

/// Watchers that begin at different times during concurrent writes all see the same history.
pub(super) async fn watchers_under_load_agree(store: Store) {
    const WRITERS: usize = 8;
    const EACH: usize = 60;
    let from = current(&store).await;
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        async move {
            let mut last = Revision(0);
            for n in 0..EACH {
                let key = format!("/w5/{writer}/{}", n % 5);
                let known = get(&store, &key).await;
                last = match known {
                    Some(known) if n % 7 == 6 => delete(&store, &key, known.mod_revision).await,
                    Some(known) => update(&store, &key, &n.to_string(), known.mod_revision).await,
                    None => create(&store, &key, &n.to_string()).await,
                };
            }
            last
        }
    });
    let watchers = (0..12).map(|n| {
        let store = store.clone();
        async move {
            let mut from = from;
            while current(&store).await.0 < from.0 + n * 30 {
                tokio::task::yield_now().await;
            }
            if n % 2 == 1 {
                from = current(&store).await;
            }
            (from, watch(&store, "/w5/", from).await)
        }
    });
    let (lasts, streams) =
        futures_util::future::join(futures_util::future::join_all(writers), futures_util::future::join_all(watchers))
            .await;
    let last = lasts.into_iter().max().unwrap();
    let whole = changes_until(&mut watch(&store, "/w5/", from).await, last).await;
    assert_eq!(whole.len(), WRITERS * EACH);
    for (from, mut stream) in streams {
        if from == last {
            continue;
        }
        let seen = changes_until(&mut stream, last).await;
        let expected: Vec<_> = whole.iter().filter(|change| change.revision > from).cloned().collect();
        assert_eq!(seen, expected, "from {}", from.0);
    }
}

pub(super) async fn progress_on_request(store: Store) {
    let from = current(&store).await;
    let mut quiet = watch(&store, "/w6/quiet/", from).await;
    let mut busy = watch(&store, "/w6/busy/", from).await;
    for round in 0..3 {
        let mut last = Revision(0);
        for n in 0..20 {
            last = create(&store, &format!("/w6/busy/{round}/{n}"), "v").await;
        }
        let mut reached = Revision(0);
        let mut seen = 0;
        store.request_progress().await.unwrap();
        while reached < last {
            match within("progress", quiet.next()).await {
                Some(Ok(WatchItem::Progress(revision))) => reached = revision,
                other => panic!("{other:?}"),
            }
        }
        let mut told = Revision(0);
        while told < last {
            match within("progress after changes", busy.next()).await {
                Some(Ok(WatchItem::Progress(revision))) => told = revision,
                Some(Ok(WatchItem::Changes(batch))) => {
                    assert!(batch.iter().all(|change| change.revision > told), "a change after its progress");
                    seen += batch.len();
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, 20, "progress before all changes");
    }
}

/// A watcher that does not read gets everything later, or the beginning of it and an error. Never a gap.
pub(super) async fn slow_watcher_has_no_gap(store: Store) {
    const WRITES: usize = 9_000;
    let from = current(&store).await;
    let mut stalled = watch(&store, "/w7/", from).await;
    let first = create(&store, "/w7/first", "v").await;
    assert_eq!(changes_until(&mut stalled, first).await.len(), 1);
    let next = std::sync::atomic::AtomicUsize::new(0);
    futures_util::future::join_all((0..64).map(|_| async {
        loop {
            let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if n >= WRITES {
                return;
            }
            create(&store, &format!("/w7/{n}"), "v").await;
        }
    }))
    .await;
    let whole = changes_until(&mut watch(&store, "/w7/", first).await, current(&store).await).await;
    assert_eq!(whole.len(), WRITES);
    store.compact(current(&store).await).await.unwrap();
    create(&store, "/w7/last", "v").await;
    store.request_progress().await.unwrap();
    let (seen, error) = drain(&mut stalled).await;
    let known = seen.len().min(WRITES);
    assert_eq!(seen[..known], whole[..known]);
    match error {
        None => assert_eq!(seen.len(), WRITES + 1),
        Some(StorageError::SlowWatcher | StorageError::Compacted { .. }) => assert!(seen.len() <= WRITES),
        Some(error) => panic!("{error}"),
    }
}

pub(super) async fn many_watches_come_and_go(store: Store) {
    let from = current(&store).await;
    for round in 0..5 {
        let mut streams = Vec::new();
        for n in 0..50 {
            streams.push(watch(&store, &format!("/w8/{}", n % 7), from).await);
        }
        let revision = create(&store, &format!("/w8/3/{round}"), "v").await;
        for (n, stream) in streams.iter_mut().enumerate() {
            if n % 7 == 3 {
                let seen = changes_until(stream, revision).await;
                assert_eq!(seen.len(), round + 1);
            }
        }
    }
}
