//! The store stays as large as its data, and lives with a full disk.

use super::sim::SimDisk;
use super::*;

const SEGMENT: u64 = 16 * 1024;

fn options() -> EmbeddedOptions {
    EmbeddedOptions { segment_bytes: Some(SEGMENT), history_changes: 200, ..EmbeddedOptions::default() }
}

fn value(n: usize) -> Bytes {
    Bytes::from(vec![b'a' + (n % 26) as u8; 500])
}

async fn overwrite(storage: &EmbeddedStorage, keys: usize, rounds: usize) -> Result<(), StorageError> {
    let page = storage.list(ListRange::default()).await?;
    let mut known: BTreeMap<_, _> = page.items.into_iter().map(|item| (item.key, item.mod_revision)).collect();
    for round in 0..rounds {
        for n in 0..keys {
            let key = format!("/registry/things/{n}");
            let precondition =
                known.get(&key).map_or(Precondition::Absent, |revision| Precondition::Unchanged(*revision));
            match storage.put(key.clone(), value(round + n), precondition).await? {
                WriteOutcome::Done(revision) => known.insert(key, revision),
                WriteOutcome::Failed(existing) => panic!("{key}: {existing:?}"),
            };
        }
    }
    Ok(())
}

#[tokio::test]
async fn endless_overwriting_does_not_grow_the_files() {
    let disk = SimDisk::default();
    let storage = open(&disk, options()).unwrap();
    let mut largest = 0;
    for _ in 0..30 {
        overwrite(&storage, 50, 10).await.unwrap();
        // Nobody compacts: the bound on history does.
        largest = largest.max(disk.sizes().iter().map(|(_, size)| *size as u64).sum());
    }
    let live = storage.size().await.unwrap().in_use;
    assert!(largest <= 2 * live + 8 * SEGMENT, "{largest} bytes for {live} live ones");
    storage.verify().await.unwrap();
}

#[tokio::test]
async fn over_the_quota_puts_fail_and_deletions_make_room() {
    let disk = SimDisk::default();
    let quota_bytes = 20 * SEGMENT;
    let storage = open(&disk, EmbeddedOptions { quota_bytes, ..options() }).unwrap();
    let mut written = Vec::new();
    let full = loop {
        let key = format!("/registry/things/{}", written.len());
        match storage.put(key.clone(), value(0), Precondition::Absent).await {
            Ok(WriteOutcome::Done(revision)) => written.push((key, revision)),
            Ok(failed) => panic!("{failed:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(full, StorageError::Full(None)), "{full:?}");
    assert!(written.len() > 300, "full after {}", written.len());
    let (_, revision) = storage.get(&written[0].0).await.unwrap();
    for (key, revision) in written.drain(..200) {
        assert!(matches!(storage.delete(key, revision).await.unwrap(), WriteOutcome::Done(_)));
    }
    let revision = Revision(revision.0 + 200);
    storage.compact(revision).await.unwrap();
    overwrite(&storage, 100, 1).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_recovers_when_there_is_room() {
    let disk = SimDisk::default();
    let storage = open(&disk, options()).unwrap();
    overwrite(&storage, 40, 2).await.unwrap();
    disk.set_capacity(Some(0));
    for _ in 0..5 {
        let refused = storage.put("/registry/new".to_owned(), value(1), Precondition::Absent).await;
        assert!(matches!(refused, Err(StorageError::Full(Some(_)))), "{refused:?}");
        assert_eq!(storage.list(ListRange::default()).await.unwrap().items.len(), 40);
    }
    disk.set_capacity(None);
    overwrite(&storage, 40, 2).await.unwrap();
    drop(storage);
    let storage = open(&disk.after_kill(), options()).unwrap();
    assert_eq!(storage.list(ListRange::default()).await.unwrap().items.len(), 40);
}

#[tokio::test]
async fn a_second_opening_is_refused_and_says_by_whom() {
    let directory = tempfile::tempdir().unwrap();
    let first = EmbeddedStorage::open(directory.path(), EmbeddedOptions::default()).await.unwrap();
    let second = EmbeddedStorage::open(directory.path(), EmbeddedOptions::default()).await;
    let Err(StorageError::InUse { path, holder }) = second else { panic!("{second:?}") };
    assert_eq!((path.as_str(), holder), (directory.path().to_str().unwrap(), std::process::id().to_string()));
    drop(first);
    EmbeddedStorage::open(directory.path(), EmbeddedOptions::default()).await.unwrap();
}
