//! Lists now and at past revisions.

use super::*;

pub(super) async fn list_ranges(store: Store) {
    for key in ["/ranges/b/1", "/ranges/b", "/ranges/b/10", "/ranges/b/2", "/ranges/b0", "/ranges/c/1", "/range"] {
        create(&store, key, "v").await;
    }
    let list = async |prefix: &str, after: Option<&str>, limit: usize| {
        let range = ListRange { prefix: prefix.to_owned(), after: after.map(str::to_owned), limit, at: None };
        let page = store.list(range).await.unwrap();
        let keys: Vec<_> = page.items.iter().map(|item| item.key.trim_start_matches("/ranges")).collect();
        format!("{} +{}", keys.join(" "), page.remaining)
    };
    assert_eq!(list("/ranges/b/", None, 0).await, "/b/1 /b/10 /b/2 +0");
    assert_eq!(list("/ranges/b", None, 0).await, "/b /b/1 /b/10 /b/2 /b0 +0");
    assert_eq!(list("/ranges/b/", None, 2).await, "/b/1 /b/10 +1");
    assert_eq!(list("/ranges/b/", None, 3).await, "/b/1 /b/10 /b/2 +0");
    assert_eq!(list("/ranges/b/", None, 4).await, "/b/1 /b/10 /b/2 +0");
    assert_eq!(list("/ranges/b/", Some("/ranges/b/1"), 1).await, "/b/10 +1");
    assert_eq!(list("/ranges/b/", Some("/ranges/b/15"), 0).await, "/b/2 +0");
    assert_eq!(list("/ranges/b/", Some("/ranges/b/2"), 5).await, " +0");
    assert_eq!(list("/ranges/b/", Some("/ranges/a"), 1).await, "/b/1 +2");
    assert_eq!(list("/ranges/", Some("/ranges/b0"), 0).await, "/c/1 +0");
    assert_eq!(list("/ranges/none", None, 0).await, " +0");
}

pub(super) async fn list_at_past_revisions(store: Store) {
    let prefix = "/past/";
    let mut revisions = vec![(current(&store).await, Vec::<String>::new())];
    let mut known = std::collections::BTreeMap::new();
    let steps = [("a", "1"), ("b", "2"), ("a", "3"), ("b", ""), ("c", "5"), ("a", ""), ("b", "7"), ("a", "8")];
    for (name, text) in steps {
        let key = format!("{prefix}{name}");
        let revision = match (known.get(&key).copied(), text) {
            (Some((revision, _)), "") => {
                known.remove(&key);
                delete(&store, &key, revision).await
            }
            (Some((revision, _)), text) => update(&store, &key, text, revision).await,
            (None, text) => create(&store, &key, text).await,
        };
        if !text.is_empty() {
            known.insert(key, (revision, text));
        }
        revisions.push((revision, known.iter().map(|(key, (_, text))| format!("{key}={text}")).collect()));
    }
    for (revision, expected) in revisions {
        let page = store.list(ListRange { at: Some(revision), ..range(prefix) }).await.unwrap();
        assert_eq!(page.revision, revision);
        assert_eq!(texts(&page.items), expected, "at {}", revision.0);
    }
}

pub(super) async fn pages_are_consistent_under_writes(store: Store) {
    const KEYS: usize = 60;
    let prefix = "/pages/";
    let mut revisions = Vec::new();
    for n in 0..KEYS {
        revisions.push(create(&store, &format!("{prefix}{n:03}"), "old").await);
    }
    let whole = store.list(range(prefix)).await.unwrap();
    let first = store.list(ListRange { limit: 7, ..range(prefix) }).await.unwrap();
    let (mut items, mut remaining, at) = (first.items, first.remaining, first.revision);
    let mut n = 0;
    while remaining > 0 {
        assert_eq!(items.len() + remaining as usize, KEYS);
        // Behind and before the reader: updates, deletions, new keys.
        update(&store, &format!("{prefix}{n:03}"), "new", revisions[n]).await;
        delete(&store, &format!("{prefix}{:03}", KEYS - 1 - n), revisions[KEYS - 1 - n]).await;
        create(&store, &format!("{prefix}{n:03}x"), "new").await;
        n += 1;
        let after = items.last().map(|item| item.key.clone());
        let page = store.list(ListRange { limit: 7, after, at: Some(at), prefix: prefix.to_owned() }).await.unwrap();
        assert_eq!(page.revision, at);
        items.extend(page.items);
        remaining = page.remaining;
    }
    assert_eq!(items, whole.items);
    assert_eq!(n, 8);
}

pub(super) async fn future_revisions(store: Store) {
    create(&store, "/future/a", "v").await;
    let newest = current(&store).await;
    let requested = Revision(newest.0 + 100);
    let listed = store.list(ListRange { at: Some(requested), ..range("/future/") }).await;
    assert!(matches!(listed, Err(StorageError::FutureRevision { requested: r, .. }) if r == requested), "{listed:?}");
    let watched = store.watch("/future/".to_owned(), requested).await.err();
    assert!(matches!(watched, Some(StorageError::FutureRevision { .. })), "{watched:?}");
    let compacted = store.compact(requested).await;
    assert!(matches!(compacted, Err(StorageError::FutureRevision { .. })), "{compacted:?}");
    assert_eq!(store.list(range("/future/")).await.unwrap().items.len(), 1);
}

pub(super) async fn compacted_revisions(store: Store) {
    let (key, other) = ("/compacted/a", "/compacted/b");
    let first = create(&store, key, "1").await;
    let second = update(&store, key, "2", first).await;
    let third = create(&store, other, "3").await;
    let fourth = update(&store, key, "4", second).await;
    store.compact(third).await.unwrap();
    store.compact(third).await.unwrap();
    store.compact(first).await.unwrap();

    for at in [first, second] {
        let listed = store.list(ListRange { at: Some(at), ..range("/compacted/") }).await;
        assert!(matches!(listed, Err(StorageError::Compacted { .. })), "{listed:?}");
        let watched = store.watch("/compacted/".to_owned(), first).await;
        let error = match watched {
            Err(error) => error,
            Ok(mut stream) => drain(&mut stream).await.1.unwrap(),
        };
        assert!(matches!(error, StorageError::Compacted { .. }), "{error:?}");
    }
    let page = store.list(ListRange { at: Some(third), ..range("/compacted/") }).await.unwrap();
    assert_eq!(texts(&page.items), ["/compacted/a=2", "/compacted/b=3"]);
    let mut stream = watch(&store, "/compacted/", third).await;
    let changes = changes_until(&mut stream, fourth).await;
    assert_eq!(changes.iter().map(|change| change.revision).collect::<Vec<_>>(), [fourth]);
    assert_eq!(texts(&store.list(range("/compacted/")).await.unwrap().items), ["/compacted/a=4", "/compacted/b=3"]);
}
