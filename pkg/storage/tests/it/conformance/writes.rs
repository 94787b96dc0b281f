//! Conditional writes.

use super::*;

pub(super) async fn create_update_delete(store: Store) {
    let key = "/cud/a";
    let before = current(&store).await;
    let created = create(&store, key, "one").await;
    assert!(created > before);
    let kv = get(&store, key).await.unwrap();
    assert_eq!((kv.key.as_str(), kv.value, kv.mod_revision), (key, value("one"), created));

    let updated = update(&store, key, "two", created).await;
    assert!(updated > created);
    let (kv, revision) = store.get(key).await.unwrap();
    let kv = kv.unwrap();
    assert_eq!((kv.value, kv.mod_revision), (value("two"), updated));
    assert!(revision >= updated);

    let deleted = delete(&store, key, updated).await;
    assert!(deleted > updated);
    assert_eq!(get(&store, key).await, None);
    assert!(current(&store).await >= deleted);
    assert!(create(&store, key, "three").await > deleted);
}

pub(super) async fn failed_precondition_changes_nothing(store: Store) {
    let key = "/failed/a";
    let created = create(&store, key, "one").await;
    let updated = update(&store, key, "two", created).await;
    let now = KeyValue { key: key.to_owned(), value: value("two"), mod_revision: updated };
    let before = current(&store).await;

    let again = store.put(key.to_owned(), value("x"), Precondition::Absent).await.unwrap();
    assert_eq!(again, WriteOutcome::Failed(Some(now.clone())));
    let stale = store.put(key.to_owned(), value("x"), Precondition::Unchanged(created)).await.unwrap();
    assert_eq!(stale, WriteOutcome::Failed(Some(now.clone())));
    let stale = store.delete(key.to_owned(), created).await.unwrap();
    assert_eq!(stale, WriteOutcome::Failed(Some(now)));
    let missing = store.put("/failed/b".to_owned(), value("x"), Precondition::Unchanged(created)).await.unwrap();
    assert_eq!(missing, WriteOutcome::Failed(None));
    let missing = store.delete("/failed/b".to_owned(), created).await.unwrap();
    assert_eq!(missing, WriteOutcome::Failed(None));

    assert_eq!(current(&store).await, before, "a failed write took a revision");
    assert_eq!(texts(&store.list(range("/failed/")).await.unwrap().items), ["/failed/a=two"]);
}

pub(super) async fn one_of_many_creators_wins(store: Store) {
    for round in 0..10 {
        let key = format!("/race/{round}");
        let outcomes = futures_util::future::join_all((0..16).map(|n| {
            let (store, key) = (store.clone(), key.clone());
            async move { store.put(key, value(&format!("by {n}")), Precondition::Absent).await.unwrap() }
        }))
        .await;
        let winners: Vec<_> = (0..16).filter(|n| matches!(outcomes[*n], WriteOutcome::Done(_))).collect();
        let [winner] = winners[..] else { panic!("winners {winners:?}") };
        let expected = get(&store, &key).await;
        assert_eq!(expected.as_ref().unwrap().value, value(&format!("by {winner}")));
        for outcome in outcomes {
            if let WriteOutcome::Failed(existing) = outcome {
                assert_eq!(existing, expected);
            }
        }
    }
}

pub(super) async fn no_update_is_lost(store: Store) {
    const TASKS: usize = 8;
    const EACH: usize = 25;
    let key = "/counter/a";
    create(&store, key, "0").await;
    futures_util::future::join_all((0..TASKS).map(|_| {
        let store = store.clone();
        async move {
            let mut known = get(&store, key).await.unwrap();
            for _ in 0..EACH {
                loop {
                    let count: usize = std::str::from_utf8(&known.value).unwrap().parse().unwrap();
                    let next = value(&(count + 1).to_string());
                    let unchanged = Precondition::Unchanged(known.mod_revision);
                    match store.put(key.to_owned(), next.clone(), unchanged).await.unwrap() {
                        WriteOutcome::Done(mod_revision) => {
                            known = KeyValue { key: key.to_owned(), value: next, mod_revision };
                            break;
                        }
                        WriteOutcome::Failed(existing) => known = existing.unwrap(),
                    }
                }
            }
        }
    }))
    .await;
    assert_eq!(get(&store, key).await.unwrap().value, value(&(TASKS * EACH).to_string()));
}

pub(super) async fn limits_of_keys_and_values(store: Store) {
    let before = current(&store).await;
    let empty = store.put(String::new(), value("x"), Precondition::Absent).await;
    assert!(matches!(empty, Err(StorageError::EmptyKey)), "{empty:?}");
    let long = store.put("k".repeat(5000), value("x"), Precondition::Absent).await;
    assert!(matches!(long, Err(StorageError::TooLarge { what: "key", .. })), "{long:?}");
    let large = Bytes::from(vec![b'x'; 1536 * 1024 + 1]);
    let large = store.put("/limits/large".to_owned(), large, Precondition::Absent).await;
    assert!(matches!(large, Err(StorageError::TooLarge { what: "value", .. })), "{large:?}");
    assert_eq!(current(&store).await, before);

    let most = Bytes::from(vec![b'x'; 1500 * 1024]);
    done(store.put("/limits/most".to_owned(), most.clone(), Precondition::Absent).await);
    assert_eq!(get(&store, "/limits/most").await.unwrap().value, most);
}

pub(super) async fn odd_keys_and_values(store: Store) {
    let keys = ["/odd/ ", "/odd/ü/日本", "/odd/a\nb", "/odd/%2F", "/odd/\u{10FFFF}"];
    for (n, key) in keys.iter().enumerate() {
        let bytes = Bytes::from((0..=255).cycle().take(n * 300).collect::<Vec<u8>>());
        let revision = done(store.put((*key).to_owned(), bytes.clone(), Precondition::Absent).await);
        let kv = get(&store, key).await.unwrap();
        assert_eq!((kv.value, kv.mod_revision), (bytes, revision));
    }
    let found = store.list(range("/odd/")).await.unwrap().items;
    let mut expected: Vec<_> = keys.into_iter().collect();
    expected.sort_unstable();
    assert_eq!(found.iter().map(|item| item.key.as_str()).collect::<Vec<_>>(), expected);
}

/// A caller that gives up leaves the write done or not done.
pub(super) async fn dropped_writes_happen_wholly_or_not(store: Store) {
    for n in 0..50 {
        let put = store.put(format!("/dropped/{n}"), value("whole"), Precondition::Absent);
        tokio::select! {
            biased;
            _ = put => {}
            () = tokio::task::yield_now() => {}
        }
    }
    let revision = create(&store, "/dropped/last", "whole").await;
    let found = store.list(range("/dropped/")).await.unwrap();
    assert!(found.items.iter().all(|item| item.value == value("whole")));
    assert!(found.items.iter().any(|item| item.mod_revision == revision));
}
