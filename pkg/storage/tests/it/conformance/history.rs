//! A checker of linearizability. Concurrent clients record what they did and when; afterwards the revisions give
//! the order in which it happened, and everything that was answered must fit that order and real time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rkube_apimachinery::task;

use super::*;

#[derive(Debug)]
struct Event {
    /// Ticks of one counter: what ended before another began has smaller ones.
    began: u64,
    ended: u64,
    key: String,
    what: What,
}

#[derive(Debug)]
enum What {
    Read { found: Option<KeyValue>, revision: Revision },
    Write { value: Option<Bytes>, precondition: Precondition, outcome: WriteOutcome },
}

pub(super) async fn concurrent_history_is_linearizable(store: Store) {
    const CLIENTS: u64 = 8;
    const EACH: usize = 80;
    let from = current(&store).await;
    let ticks = Arc::new(AtomicU64::new(0));
    let clients = (0..CLIENTS)
        .map(|client| task::spawn(tracing::Span::none(), run_client(store.clone(), ticks.clone(), client, EACH)));
    let mut events = Vec::new();
    for client in futures_util::future::join_all(clients).await {
        events.extend(client.unwrap());
    }
    let newest = current(&store).await;
    let mut stream = watch(&store, "/lin/", from).await;
    store.request_progress().await.unwrap();
    let (changes, error) = drain(&mut stream).await;
    assert!(error.is_none(), "{error:?}");
    check(&events, &changes, newest);
}

async fn run_client(store: Store, ticks: Arc<AtomicU64>, client: u64, count: usize) -> Vec<Event> {
    let mut rng = StdRng::seed_from_u64(client);
    let mut known: BTreeMap<String, Option<Revision>> = BTreeMap::new();
    let mut events = Vec::new();
    for n in 0..count {
        let key = format!("/lin/{}", rng.random_range(0..3));
        let began = ticks.fetch_add(1, Ordering::SeqCst);
        let expected = known.get(&key).copied().flatten();
        let what = match (rng.random_range(0..10), expected) {
            (0..3, _) => {
                let (found, revision) = store.get(&key).await.unwrap();
                known.insert(key.clone(), found.as_ref().map(|found| found.mod_revision));
                What::Read { found, revision }
            }
            (3, Some(revision)) => {
                let outcome = store.delete(key.clone(), revision).await.unwrap();
                What::Write { value: None, precondition: Precondition::Unchanged(revision), outcome }
            }
            (_, expected) => {
                let value = value(&format!("{client}/{n}"));
                let precondition = expected.map_or(Precondition::Absent, Precondition::Unchanged);
                let outcome = store.put(key.clone(), value.clone(), precondition).await.unwrap();
                What::Write { value: Some(value), precondition, outcome }
            }
        };
        if let What::Write { value, outcome, .. } = &what {
            let now = match outcome {
                WriteOutcome::Done(revision) => value.as_ref().map(|_| *revision),
                WriteOutcome::Failed(existing) => existing.as_ref().map(|existing| existing.mod_revision),
            };
            known.insert(key.clone(), now);
        }
        let ended = ticks.fetch_add(1, Ordering::SeqCst);
        events.push(Event { began, ended, key, what });
    }
    events
}

/// The value of `key` as the changes up to `revision` left it.
fn state_at(changes: &[Change], key: &str, revision: Revision) -> Option<KeyValue> {
    let last = changes.iter().rev().find(|change| change.key == key && change.revision <= revision)?;
    match &last.kind {
        ChangeKind::Put(value) => {
            Some(KeyValue { key: key.to_owned(), value: value.clone(), mod_revision: last.revision })
        }
        ChangeKind::Delete => None,
    }
}

fn check(events: &[Event], changes: &[Change], newest: Revision) {
    let acknowledged =
        events.iter().filter(|event| matches!(event.what, What::Write { outcome: WriteOutcome::Done(_), .. }));
    assert_eq!(acknowledged.count(), changes.len(), "every acknowledged write is one change, and nothing else is");
    for event in events {
        // Revisions that were known to somebody before this began, and those that can have existed by its end.
        let before = events.iter().filter(|other| other.ended < event.began).filter_map(seen).max().unwrap_or_default();
        let after = events
            .iter()
            .filter(|other| other.began > event.ended)
            .filter_map(written)
            .min()
            .unwrap_or(Revision(newest.0 + 1));
        match &event.what {
            What::Read { found, revision } => {
                assert_eq!(*found, state_at(changes, &event.key, *revision), "{event:?}");
                assert!(*revision >= before, "a stale read: {event:?}, {before:?} was known");
                assert!(*revision < after, "a read of what was not written yet: {event:?}");
            }
            What::Write { value, precondition, outcome: WriteOutcome::Done(revision) } => {
                assert!(*revision > before && *revision < after, "out of order: {event:?}");
                let change = changes.iter().find(|change| change.revision == *revision);
                let change = change.unwrap_or_else(|| panic!("lost: {event:?}"));
                let kind = value.clone().map_or(ChangeKind::Delete, ChangeKind::Put);
                assert_eq!((&change.key, &change.kind), (&event.key, &kind));
                let was = state_at(changes, &event.key, Revision(revision.0 - 1));
                let holds = match precondition {
                    Precondition::Absent => was.is_none(),
                    Precondition::Unchanged(expected) => was.is_some_and(|was| was.mod_revision == *expected),
                };
                assert!(holds, "the precondition did not hold: {event:?}");
            }
            What::Write { outcome: WriteOutcome::Failed(existing), precondition, .. } => {
                let fits = |revision: Revision| {
                    revision >= before && revision < after && state_at(changes, &event.key, revision) == *existing
                };
                let moments = changes.iter().map(|change| change.revision).chain([before]);
                assert!(moments.into_iter().any(fits), "never so: {event:?}");
                let holds = match precondition {
                    Precondition::Absent => existing.is_none(),
                    Precondition::Unchanged(expected) => existing.as_ref().is_some_and(|e| e.mod_revision == *expected),
                };
                assert!(!holds, "failed though it held: {event:?}");
            }
        }
    }
}

/// The newest revision that an event told its client.
fn seen(event: &Event) -> Option<Revision> {
    match &event.what {
        What::Read { revision, .. } => Some(*revision),
        What::Write { outcome: WriteOutcome::Done(revision), .. } => Some(*revision),
        What::Write { outcome: WriteOutcome::Failed(existing), .. } => existing.as_ref().map(|e| e.mod_revision),
    }
}

fn written(event: &Event) -> Option<Revision> {
    match &event.what {
        What::Write { outcome: WriteOutcome::Done(revision), .. } => Some(*revision),
        _ => None,
    }
}
