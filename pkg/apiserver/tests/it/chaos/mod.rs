//! An API server over the embedded store that is killed (`kill -9`) again and again while clients write and watch and
//! history is compacted; then what the clients were told is checked.
//!
//! Holds: no acknowledged write is lost, versions never decrease, the operations on each object are linearizable, and
//! every watcher and informer saw every change exactly once, across restarts.
//! `RKUBE_KILLS` sets how often (default 6), `RKUBE_SEED` when.

mod linearizable;
mod watches;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, Uri};
use parking_lot::Mutex;
use rkube_apimachinery::clock::SystemClock;
use rkube_apimachinery::random::{self, SeededRandom, SystemRandom};
use rkube_apimachinery::task;
use rkube_client::transport::{
    ClientError, ListRequest, ObjectList, SharedResource, Transport, WatchRequest, WatchStream,
};
use rkube_client::{Client, reflector};
use rkube_http::client::HttpClient;
use rkube_http::connect::Connector;
use rkube_http::tls;
use rkube_http::transport::RemoteTransport;
use rkube_registry::Config;
use rkube_storage::embedded::{EmbeddedOptions, EmbeddedStorage};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::server::{Server, TOKEN};
use linearizable::{Answer, Call, Operation, Tag};
use watches::{Change, Changes, Log, PARITY, Reflected, SELECTOR, Watcher};

const DIRECTORY: &str = "RKUBE_CHAOS_DIRECTORY";
pub(crate) const NAMESPACE: &str = "default";
const WRITERS: u64 = 8;
/// Objects that are written between two kills.
const NAMES: u64 = 6;
/// The kill comes after a random number of answers below this.
const ANSWERS_MAX: u64 = 300;
/// For whatever must happen at last.
const PATIENCE: Duration = Duration::from_secs(90);

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What the process that is killed does.
#[allow(clippy::print_stdout, reason = "the parent reads it")]
async fn serve(directory: &Path) {
    let options =
        EmbeddedOptions { segment_bytes: Some(256 * 1024), history_changes: 4000, ..EmbeddedOptions::default() };
    let storage = Arc::new(EmbeddedStorage::open(directory, options).await.unwrap());
    let config = Config { compaction_interval: Duration::from_millis(500), ..Config::default() };
    let server = Server::start_with(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), storage, config).await;
    println!("\nserving {}", server.address);
    std::future::pending::<()>().await;
}

/// Starts this test again as the process that serves.
async fn start(directory: &Path) -> (Child, SocketAddr) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["chaos::kill_9_loses_nothing", "--exact", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("the server ended early");
            if let Some(address) = line.strip_prefix("serving ") {
                return address.parse().unwrap();
            }
        }
    };
    let address = tokio::time::timeout(PATIENCE, address).await.expect("the server serves");
    // Nothing more comes; an open pipe costs nothing.
    drop(lines);
    (child, address)
}

/// Reaches the server there is now.
struct Current(ArcSwap<RemoteTransport>);

impl Current {
    fn transport(address: SocketAddr) -> RemoteTransport {
        let config = tls::unverified_client_config().unwrap();
        let connector = Connector::new(Some(Arc::new(ArcSwap::from_pointee(config))));
        let base: Uri = format!("https://{address}").parse().unwrap();
        let client = HttpClient::new(&base, connector).unwrap();
        let client = client.with_token(Arc::new(|| Some(TOKEN.to_owned())));
        RemoteTransport::new(client, HeaderValue::from_static("chaos"))
    }
}

impl Transport for Current {
    fn send(&self, request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Bytes>, ClientError>> {
        let transport = self.0.load_full();
        Box::pin(async move { transport.send(request).await })
    }

    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, ClientError>> {
        let transport = self.0.load_full();
        Box::pin(async move { transport.watch(request).await })
    }

    fn list(&self, request: ListRequest) -> BoxFuture<'_, Result<ObjectList, ClientError>> {
        let transport = self.0.load_full();
        Box::pin(async move { transport.list(request).await })
    }
}

/// What the writers did and were told.
struct History {
    clock: AtomicU64,
    tags: AtomicU64,
    operations: Mutex<BTreeMap<String, Vec<Operation>>>,
    /// Acknowledged writes.
    changes: Mutex<Changes>,
    answers: watch::Sender<u64>,
    newest: AtomicU64,
}

impl History {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }
}

/// One client that writes.
struct Writer {
    client: Client,
    resource: SharedResource,
    history: Arc<History>,
    random: SeededRandom,
}

impl Writer {
    fn path(&self, name: &str) -> String {
        let collection = rkube_client::client::collection_path(&self.resource, NAMESPACE);
        if name.is_empty() { collection } else { format!("{collection}/{name}") }
    }

    /// Reads and writes until there is no answer.
    async fn run(self, epoch: u64) {
        let mut go_on = true;
        while go_on {
            let name = format!("e{epoch}-{}", random::below(&self.random, NAMES));
            let Some(read) = self.read(&name).await else { return };
            go_on = match read {
                None => self.create(&name).await,
                Some((known, version)) if random::below(&self.random, 4) == 0 => {
                    self.delete(&name, known, &version).await
                }
                Some((known, version)) => self.replace(&name, known, &version).await,
            };
        }
    }

    /// The value and its version; the outer `None` is no answer.
    async fn read(&self, name: &str) -> Option<Option<(Tag, String)>> {
        let called = self.history.tick();
        let answer = self.send(http::Method::GET, &self.path(name), Value::Null).await;
        let found = match answer {
            Ok(object) => {
                let tag = object["data"]["tag"].as_str().unwrap().parse().unwrap();
                Some((tag, object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()))
            }
            Err(Some(404)) => None,
            Err(_) => return None,
        };
        self.note(name, called, Call::Read, Answer::Value(found.as_ref().map(|(tag, _)| *tag)));
        Some(found)
    }

    fn body(&self, name: &str, version: &str) -> (Tag, Value) {
        let tag = self.history.tags.fetch_add(1, Ordering::SeqCst);
        let parity = if watches::is_selected(tag) { "even" } else { "odd" };
        let metadata = json!({"name": name, "labels": {PARITY: parity}, "resourceVersion": version});
        (tag, json!({"metadata": metadata, "data": {"tag": tag.to_string()}}))
    }

    async fn create(&self, name: &str) -> bool {
        let (tag, body) = self.body(name, "");
        self.write(name, Call::Create(tag), http::Method::POST, &self.path(""), body, Some(tag)).await
    }

    async fn replace(&self, name: &str, known: Tag, version: &str) -> bool {
        let (by, body) = self.body(name, version);
        let call = Call::Replace { known, by };
        self.write(name, call, http::Method::PUT, &self.path(name), body, Some(by)).await
    }

    async fn delete(&self, name: &str, known: Tag, version: &str) -> bool {
        let body = json!({"preconditions": {"resourceVersion": version}});
        self.write(name, Call::Delete { known }, http::Method::DELETE, &self.path(name), body, None).await
    }

    /// Whether there was an answer.
    async fn write(
        &self,
        name: &str,
        call: Call,
        method: http::Method,
        path: &str,
        body: Value,
        tag: Option<Tag>,
    ) -> bool {
        let called = self.history.tick();
        let answer = match self.send(method, path, body).await {
            Ok(object) => {
                if let Some(version) = object["metadata"]["resourceVersion"].as_str() {
                    let version: u64 = version.parse().unwrap();
                    let change = Change { name: name.to_owned(), tag };
                    let before = self.history.changes.lock().insert(version, change);
                    assert_eq!(before, None, "two writes have version {version}");
                    self.history.newest.fetch_max(version, Ordering::SeqCst);
                }
                Answer::Done
            }
            Err(Some(404)) => Answer::Missing,
            Err(Some(409)) => Answer::Refused,
            Err(_) => Answer::Unknown,
        };
        self.note(name, called, call, answer);
        answer != Answer::Unknown
    }

    fn note(&self, name: &str, called: u64, call: Call, answer: Answer) {
        let answered = if answer == Answer::Unknown { u64::MAX } else { self.history.tick() };
        let operation = Operation { called, answered, call, answer };
        self.history.operations.lock().entry(name.to_owned()).or_default().push(operation);
        self.history.answers.send_modify(|answers| *answers += 1);
    }

    /// The answer's body, or its code if it has one.
    async fn send(&self, method: http::Method, path: &str, body: Value) -> Result<Value, Option<u16>> {
        let bytes = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = Request::builder().method(&method).uri(path).body(bytes).unwrap();
        let answer = tokio::time::timeout(PATIENCE, self.client.transport().send(request)).await;
        match answer.unwrap_or_else(|_| panic!("{method} {path} is neither answered nor refused")) {
            Ok(response) => Ok(serde_json::from_slice(response.body()).unwrap()),
            Err(error) => Err(error.status().map(|status| status.code())),
        }
    }
}

/// Everything on the parent's side.
struct Chaos {
    transport: Arc<Current>,
    client: Client,
    resource: SharedResource,
    history: Arc<History>,
    epoch: watch::Sender<u64>,
    seed: u64,
}

impl Chaos {
    fn writer(&self, stream: u64) -> Writer {
        Writer {
            client: self.client.clone(),
            resource: self.resource.clone(),
            history: self.history.clone(),
            random: SeededRandom::new(self.seed.wrapping_mul(1_000_003).wrapping_add(stream)),
        }
    }

    /// Writes and kills, and checks what was written before on the next server.
    async fn epoch(&self, number: u64, child: &mut Child, answers: u64) {
        let begun = *self.history.answers.borrow();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let writer = self.writer(number * WRITERS + writer);
                task::spawn(Span::none(), async move { writer.run(number).await })
            })
            .collect();
        let mut counted = self.history.answers.subscribe();
        let enough = counted.wait_for(|now| *now >= begun + answers);
        tokio::time::timeout(PATIENCE, enough).await.expect("the server answers").unwrap();
        child.kill().await.unwrap();
        for writer in writers {
            tokio::time::timeout(PATIENCE, writer).await.expect("writers end with the server").unwrap();
        }
    }

    async fn check_epoch(&self, number: u64) -> BTreeMap<String, Option<Tag>> {
        let reader = self.writer(u64::MAX - number);
        let mut left = BTreeMap::new();
        for name in (0..NAMES).map(|name| format!("e{number}-{name}")) {
            let found = reader.read(&name).await.expect("the new server answers");
            left.insert(name, found.map(|(tag, _)| tag));
        }
        let operations = std::mem::take(&mut *self.history.operations.lock());
        for (name, operations) in operations {
            linearizable::check(&operations).unwrap_or_else(|error| panic!("seed {}: {name}: {error}", self.seed));
        }
        left
    }

    async fn listed(&self) -> (u64, BTreeMap<String, Tag>) {
        let list = self
            .client
            .list(ListRequest {
                resource: self.resource.clone(),
                namespace: NAMESPACE.to_owned(),
                label_selector: String::new(),
                field_selector: String::new(),
                resource_version: String::new(),
                resource_version_match: String::new(),
                limit: 0,
                continue_token: String::new(),
            })
            .await
            .expect("the server lists");
        let state = list.items.iter().map(|object| (object.key.name.to_string(), watches::tag_of(object))).collect();
        (list.resource_version.parse().unwrap(), state)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_loses_nothing() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return serve(Path::new(&directory)).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let (kills, seed) = (number("RKUBE_KILLS", 6), number("RKUBE_SEED", 1));
    let random = SeededRandom::new(seed);
    let (mut child, address) = start(directory.path()).await;
    let transport = Arc::new(Current(ArcSwap::from_pointee(Current::transport(address))));
    let client = Client::new(transport.clone(), SystemClock::shared(), Arc::new(SystemRandom));
    let resource = rkube_client::client::resource_of::<rkube_api::k8s::core::v1::ConfigMap>();
    let history = Arc::new(History {
        clock: AtomicU64::new(0),
        tags: AtomicU64::new(1),
        operations: Mutex::default(),
        changes: Mutex::default(),
        answers: watch::channel(0).0,
        newest: AtomicU64::new(0),
    });
    let chaos = Chaos { transport, client, resource, history, epoch: watch::channel(0).0, seed };
    let namespace = json!({"metadata": {"name": NAMESPACE}});
    chaos.writer(0).send(http::Method::POST, "/api/v1/namespaces", namespace).await.expect("makes the namespace");

    let mut watchers = Vec::new();
    for selector in ["", "", SELECTOR] {
        let (log, progress) = (Log::default(), watch::channel(0));
        let watcher = Watcher {
            client: chaos.client.clone(),
            resource: chaos.resource.clone(),
            selector,
            log: log.clone(),
            progress: progress.0,
            epoch: chaos.epoch.subscribe(),
        };
        watchers.push((selector, log, progress.1));
        task::spawn(Span::none(), watcher.run());
    }
    let stop = CancellationToken::new();
    let (log, progress) = (Log::default(), watch::channel(0));
    let sink = Arc::new(Reflected { log: log.clone(), known: Mutex::default(), progress: progress.0 });
    let scope = watches::scope(chaos.resource.clone());
    task::spawn(Span::none(), reflector::run(chaos.client.clone(), scope, sink.clone(), stop.clone()));
    watchers.push(("", log, progress.1));

    let mut expected: BTreeMap<String, Option<Tag>> = BTreeMap::new();
    for kill in 0..kills {
        chaos.epoch(kill, &mut child, random::below(&random, ANSWERS_MAX)).await;
        let (next, address) = start(directory.path()).await;
        child = next;
        chaos.transport.0.store(Arc::new(Current::transport(address)));
        chaos.epoch.send_modify(|epoch| *epoch += 1);
        let (version, _) = chaos.listed().await;
        let newest = chaos.history.newest.load(Ordering::SeqCst);
        assert!(version >= newest, "seed {seed}, kill {kill}: version {version} after {newest}");
        expected.extend(chaos.check_epoch(kill).await);
    }

    // What is written last is seen by everyone at last: a number of either parity would do, this one is selected.
    let writer = chaos.writer(kills);
    while !watches::is_selected(chaos.history.tags.load(Ordering::SeqCst)) {
        chaos.history.tags.fetch_add(1, Ordering::SeqCst);
    }
    assert!(writer.create("last").await, "the server answers");
    let last = chaos.history.newest.load(Ordering::SeqCst);
    for (index, (_, _, progress)) in watchers.iter_mut().enumerate() {
        let seen = tokio::time::timeout(PATIENCE, progress.wait_for(|version| *version >= last)).await;
        seen.unwrap_or_else(|_| panic!("seed {seed}: watcher {index} does not see version {last}")).unwrap();
    }
    stop.cancel();

    let mut changes = chaos.history.changes.lock().clone();
    for (_, log, _) in watchers.iter().filter(|(selector, ..)| selector.is_empty()) {
        watches::merge(&mut changes, &log.lock()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    for (index, (selector, log, _)) in watchers.iter().enumerate() {
        let log = log.lock();
        let resumed = watches::check(&log, &changes, selector);
        let resumed = resumed.unwrap_or_else(|error| panic!("seed {seed}: watcher {index}: {error}"));
        // A reflector does not tell.
        assert!(resumed > 0 || index == 3, "watcher {index} never resumed: nothing was tried");
    }
    let (_, mut state) = chaos.listed().await;
    let reflected: BTreeMap<String, Tag> =
        sink.known.lock().values().map(|object| (object.key.name.to_string(), watches::tag_of(object))).collect();
    assert_eq!(reflected, state, "seed {seed}: the informer's store is what the server has");
    state.remove("last");
    expected.retain(|_, tag| tag.is_some());
    let expected: BTreeMap<String, Tag> = expected.into_iter().filter_map(|(name, tag)| Some((name, tag?))).collect();
    assert_eq!(state, expected, "seed {seed}: what was there after each kill is there at the end");
    assert!(changes.len() as u64 > kills, "nothing was tried: {} changes", changes.len());
    child.kill().await.unwrap();
}
