//! The embedded store under `kill -9`: a process that writes, watches and compacts is killed at random, again and
//! again, and each time the store is opened and compared with what the process had said.
//!
//! `RKUBE_KILLS` sets how often (default 25), `RKUBE_SEED` when.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rkube_apimachinery::task;
use rkube_storage::embedded::{EmbeddedOptions, EmbeddedStorage};
use rkube_storage::{Change, ChangeKind, Precondition, Revision, WatchItem, WriteOutcome};

use crate::conformance::{Store, range, value};

const DIRECTORY: &str = "RKUBE_CRASH_DIRECTORY";
const WRITERS: u64 = 8;
const WATCHERS: usize = 4;
/// The kill comes at a random one of this many lines.
const LINES_MAX: u64 = 3000;

fn options() -> EmbeddedOptions {
    EmbeddedOptions { segment_bytes: Some(256 * 1024), history_changes: 4000, ..EmbeddedOptions::default() }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Says something that the parent sees even if this process is killed right after.
#[allow(clippy::print_stdout, reason = "the parent reads it")]
fn say(line: &str) {
    println!("{line}");
}

/// What the process that is killed does.
async fn write_until_killed(directory: &Path) {
    let store: Store = Arc::new(EmbeddedStorage::open(directory, options()).await.unwrap());
    say("");
    say("ready");
    let serial = Arc::new(AtomicU64::new(u64::from(std::process::id()) << 32));
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        let (store, serial) = (store.clone(), serial.clone());
        tasks.push(task::spawn(tracing::Span::none(), async move { write_forever(&store, &serial, writer).await }));
    }
    for _ in 0..WATCHERS {
        let store = store.clone();
        tasks.push(task::spawn(tracing::Span::none(), async move { watch_forever(&store).await }));
    }
    tasks.push(task::spawn(tracing::Span::none(), async move {
        loop {
            let current = store.current_revision().await.unwrap();
            store.compact(Revision(current.0.saturating_sub(200))).await.unwrap();
        }
    }));
    futures_util::future::join_all(tasks).await;
}

/// Each value is unique and says what it replaces, so that the history can be checked.
async fn write_forever(store: &Store, serial: &AtomicU64, writer: u64) {
    let mut rng = StdRng::seed_from_u64(serial.fetch_add(1, Ordering::Relaxed));
    loop {
        let key = format!("/crash/{writer}/{}", rng.random_range(0..6));
        let known = store.get(&key).await.unwrap().0.map(|known| known.mod_revision);
        let unique = serial.fetch_add(1, Ordering::Relaxed);
        let replaces = known.map_or(0, |revision| revision.0);
        let outcome = match known {
            Some(revision) if rng.random_range(0..5) == 0 => {
                say(&format!("try {key} -"));
                let outcome = store.delete(key.clone(), revision).await.unwrap();
                if let WriteOutcome::Done(revision) = outcome {
                    say(&format!("done {key} {} -", revision.0));
                }
                outcome
            }
            known => {
                let precondition = known.map_or(Precondition::Absent, Precondition::Unchanged);
                say(&format!("try {key} {unique}"));
                let padding = "x".repeat(rng.random_range(0..3000));
                let text = value(&format!("{unique} {replaces} {padding}"));
                let outcome = store.put(key.clone(), text, precondition).await.unwrap();
                if let WriteOutcome::Done(revision) = outcome {
                    say(&format!("done {key} {} {unique}", revision.0));
                }
                outcome
            }
        };
        assert!(matches!(outcome, WriteOutcome::Done(_)), "only this task writes {key}: {outcome:?}");
    }
}

async fn watch_forever(store: &Store) {
    loop {
        let from = store.current_revision().await.unwrap();
        let mut stream = store.watch("/crash/".to_owned(), from).await.unwrap();
        let mut last = from;
        while let Some(Ok(item)) = stream.next().await {
            let WatchItem::Changes(changes) = item else { continue };
            for change in changes {
                assert!(change.revision > last, "a watch went from {last:?} to {:?}", change.revision);
                last = change.revision;
                say(&format!("seen {} {} {}", change.key, change.revision.0, unique(&change)));
            }
        }
    }
}

fn unique(change: &Change) -> String {
    match &change.kind {
        ChangeKind::Put(value) => text(value).split(' ').next().unwrap_or_default().to_owned(),
        ChangeKind::Delete => "-".to_owned(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a killed process had said.
#[derive(Default)]
struct Said {
    /// Revision to key and value, of writes that were acknowledged or seen by a watcher.
    happened: BTreeMap<u64, (String, String)>,
    /// Writes that were begun.
    tried: BTreeSet<(String, String)>,
}

/// Starts this test again as the process that writes, and kills it when it has said so many lines.
fn run_and_kill(directory: &Path, lines: u64) -> Said {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["crash::kill_9_loses_nothing", "--exact", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut errors = child.stderr.take().unwrap();
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text);
        text
    });
    let mut line = String::new();
    while line.trim_end() != "ready" {
        line.clear();
        let read = output.read_line(&mut line).unwrap();
        assert!(read > 0, "the child ended early: {}", errors.join().unwrap());
    }
    let mut said_bytes = Vec::new();
    for _ in 0..lines {
        let read = output.read_until(b'\n', &mut said_bytes).unwrap();
        assert!(read > 0, "the child ended early: {}", errors.join().unwrap());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    output.read_to_end(&mut said_bytes).unwrap();
    let (output, errors) = (text(&said_bytes), errors.join().unwrap());
    assert!(!errors.contains("panicked"), "{errors}");
    let mut said = Said::default();
    // The last line may be cut.
    let whole = output.rfind('\n').map_or("", |end| &output[..end]);
    for line in whole.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["try", key, what] => {
                said.tried.insert((key.to_owned(), what.to_owned()));
            }
            ["done" | "seen", key, revision, what] => {
                let fact = (key.to_owned(), what.to_owned());
                let before = said.happened.insert(revision.parse().unwrap(), fact.clone());
                assert!(before.is_none_or(|before| before == fact), "two changes at {revision}: {line}");
            }
            _ => panic!("unexpected line {line:?}"),
        }
    }
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_loses_nothing() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return write_until_killed(Path::new(&directory)).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let (kills, seed) = (number("RKUBE_KILLS", 25), number("RKUBE_SEED", 1));
    let mut rng = StdRng::seed_from_u64(seed);
    let mut newest = Revision(0);
    let mut state: BTreeMap<String, String> = BTreeMap::new();
    let (mut acknowledged, mut checked) = (0, 0);
    for kill in 0..kills {
        let context = format!("seed {seed}, kill {kill}");
        let lines = rng.random_range(0..LINES_MAX);
        let path = directory.path().to_owned();
        let said = tokio::task::spawn_blocking(move || run_and_kill(&path, lines)).await.unwrap();
        acknowledged += said.happened.len();

        let embedded = Arc::new(EmbeddedStorage::open(directory.path(), options()).await.expect(&context));
        embedded.verify().await.expect(&context);
        let store: Store = embedded.clone();
        let current = store.current_revision().await.unwrap();
        let last = said.happened.keys().next_back().copied().map_or(newest, Revision);
        assert!(current >= newest.max(last), "{context}: {current:?} after {newest:?} and {last:?}");

        let changes = all_changes(&store).await;
        checked += check_history(&changes, &said, newest, &context);
        state = check_state(&store, state, &said, &context).await;
        newest = current;
        if kill % 5 == 4 {
            embedded.close().await.unwrap();
        }
    }
    assert!(acknowledged > 0 && checked > 0, "nothing was tried: {acknowledged} writes, {checked} changes");
}

async fn all_changes(store: &Store) -> Vec<Change> {
    let oldest = match store.watch(String::new(), Revision(0)).await {
        Err(rkube_storage::StorageError::Compacted { oldest, .. }) => oldest,
        _ => Revision(0),
    };
    let mut stream = store.watch("/crash/".to_owned(), oldest).await.unwrap();
    store.request_progress().await.unwrap();
    let mut changes = Vec::new();
    while let Some(item) = stream.next().await {
        match item.unwrap() {
            WatchItem::Changes(batch) => changes.extend(batch),
            WatchItem::Progress(_) => break,
        }
    }
    changes
}

/// What was acknowledged or seen is in the history; what else is new there was at least tried.
fn check_history(changes: &[Change], said: &Said, newest: Revision, context: &str) -> usize {
    let Some(first) = changes.first() else { return 0 };
    let by_revision: BTreeMap<u64, &Change> = changes.iter().map(|change| (change.revision.0, change)).collect();
    for (revision, (key, what)) in said.happened.range(first.revision.0..) {
        let found = by_revision.get(revision).unwrap_or_else(|| panic!("{context}: revision {revision} is lost"));
        assert_eq!((&found.key, &unique(found)), (key, what), "{context}");
    }
    // What each key was last written at, as far as the history tells: 0 after a deletion.
    let mut written: BTreeMap<&str, u64> = BTreeMap::new();
    for change in changes {
        if change.revision > newest {
            let fact = (change.key.clone(), unique(change));
            assert!(said.tried.contains(&fact), "{context}: {fact:?} came from nowhere");
        }
        if let ChangeKind::Put(value) = &change.kind {
            let replaces: u64 = text(value).split(' ').nth(1).unwrap().parse().unwrap();
            if let Some(before) = written.get(change.key.as_str()) {
                assert_eq!(*before, replaces, "{context}: {}", change.key);
            }
        }
        let now = if change.kind == ChangeKind::Delete { 0 } else { change.revision.0 };
        written.insert(&change.key, now);
    }
    changes.len()
}

/// Every key is as its last acknowledged write left it, or as one left it that was being tried.
async fn check_state(
    store: &Store,
    mut expected: BTreeMap<String, String>,
    said: &Said,
    context: &str,
) -> BTreeMap<String, String> {
    for (key, what) in said.happened.values() {
        if what == "-" {
            expected.remove(key);
        } else {
            expected.insert(key.clone(), what.clone());
        }
    }
    let page = store.list(range("/crash/")).await.unwrap();
    let found: BTreeMap<String, String> = page
        .items
        .into_iter()
        .map(|item| (item.key, text(&item.value).split(' ').next().unwrap_or_default().to_owned()))
        .collect();
    let keys: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    for key in keys {
        let (was, is) = (expected.get(key), found.get(key));
        if was == is {
            continue;
        }
        let what = is.map_or("-", String::as_str);
        let in_doubt = said.tried.contains(&(key.clone(), what.to_owned()))
            && !said.happened.values().any(|(k, w)| k == key && w == what && what != "-");
        assert!(in_doubt, "{context}: {key} was {was:?}, is {is:?}");
    }
    found
}
