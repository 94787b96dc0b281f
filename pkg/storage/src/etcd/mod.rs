//! A store on an etcd cluster, for clusters that outgrow one machine's datastore.
//!
//! Inputs: endpoints and, for TLS, certificates. Outputs: `Storage` with etcd's revisions.
//! Behaves as staging/src/k8s.io/apiserver/pkg/storage/etcd3/store.go, v1.36, where it speaks to etcd: writes are
//! transactions that compare `mod_revision`, lists are ranges in pages at one revision.
//!
//! Reads are repeated while etcd has no leader or cannot be reached, until it has been away for `PATIENCE`; from then
//! on each fails after one short attempt, so that a request that needs several does not wait for each. A write is
//! repeated only when it certainly did not happen; else its outcome is `Unknown`, never a guess.

mod failure;
mod watch;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, GetOptions, GetResponse, Identity, KvClient, TlsOptions,
    Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rkube_apimachinery::clock::SharedClock;
use tokio::sync::{OnceCell, watch as signal};

use self::failure::Failure;
use crate::types::check_limits;
use crate::{
    KeyValue, ListRange, Page, Precondition, Revision, Size, Storage, StorageError, WatchStream, WriteOutcome,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// One attempt at a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
/// How long etcd may be away before reads, and writes that certainly did not happen, fail at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// One attempt at a request when etcd has been away for longer.
const AWAY_TIMEOUT: Duration = Duration::from_secs(1);
const BACKOFF: std::ops::Range<Duration> = Duration::from_millis(20)..Duration::from_millis(500);
/// A peer that is gone without a word is noticed after the sum of these.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// Keys asked for at once; what one answer may hold follows from the largest value.
const PAGE_KEYS: usize = 500;
/// Answers may be as large as etcd makes them: a page of the largest values.
const MAX_ANSWER: usize = i32::MAX as usize;

/// Where etcd is and how to speak to it.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// URLs, all `http` or all `https`.
    pub endpoints: Vec<String>,
    /// PEM of the CA that signed etcd's certificates.
    pub ca: Option<Vec<u8>>,
    /// PEM of a client certificate and its key.
    pub identity: Option<ClientIdentity>,
    /// Waits between attempts pass on it.
    pub clock: SharedClock,
}

#[derive(Clone)]
pub struct ClientIdentity {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

impl std::fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientIdentity")
    }
}

impl EtcdOptions {
    /// From a list like `https://a:2379,https://b:2379`.
    pub fn new(endpoints: &str, clock: SharedClock) -> Self {
        let endpoints = endpoints.split(',').map(str::trim).filter(|endpoint| !endpoint.is_empty());
        Self { endpoints: endpoints.map(str::to_owned).collect(), ca: None, identity: None, clock }
    }
}

/// See the module.
#[derive(Clone)]
pub struct EtcdStorage {
    shared: Arc<Shared>,
}

struct Shared {
    clock: SharedClock,
    client: Client,
    kv: KvClient,
    /// The newest compaction this process knows of, to name the oldest revision in errors.
    compacted: AtomicU64,
    /// Counts requests for progress; watches listen to it.
    progress: signal::Sender<u64>,
    orders_progress: OnceCell<bool>,
    /// Since when etcd has answered nothing, by the clock's `monotonic`.
    away_since: Mutex<Option<Duration>>,
}

impl std::fmt::Debug for EtcdStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EtcdStorage")
    }
}

impl EtcdStorage {
    /// Prepares connections; they are made when they are needed, and again when they are lost.
    ///
    /// # Errors
    /// `Unavailable` for endpoints or certificates that cannot be used. An etcd that is away is no error.
    pub async fn connect(options: EtcdOptions) -> Result<Self, StorageError> {
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if options.endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
            let mut tls = TlsOptions::new();
            if let Some(ca) = &options.ca {
                tls = tls.ca_certificate(Certificate::from_pem(ca));
            }
            if let Some(identity) = &options.identity {
                tls = tls.identity(Identity::from_pem(&identity.certificate, &identity.key));
            }
            connect = connect.with_tls(tls);
        }
        let client = Client::connect(&options.endpoints, Some(connect)).await.map_err(failure::unavailable)?;
        let kv = client.kv_client().max_decoding_message_size(MAX_ANSWER);
        let shared = Shared {
            clock: options.clock,
            client,
            kv,
            compacted: AtomicU64::new(0),
            progress: signal::Sender::new(0),
            orders_progress: OnceCell::new(),
            away_since: Mutex::new(None),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    async fn write(
        &self,
        key: String,
        value: Option<Bytes>,
        precondition: Precondition,
    ) -> Result<WriteOutcome, StorageError> {
        let size = value.as_ref().map_or(0, Bytes::len);
        check_limits(&key, size)?;
        let expected = match precondition {
            Precondition::Absent => 0,
            // No key has it, while etcd takes 0 for "no key".
            Precondition::Unchanged(Revision(0)) => -1,
            Precondition::Unchanged(revision) => to_etcd(revision),
        };
        let written = self
            .shared
            .repeat(
                |mut kv| {
                    let operation = match &value {
                        Some(value) => TxnOp::put(key.as_str(), value.to_vec(), None),
                        None => TxnOp::delete(key.as_str(), None),
                    };
                    let transaction = Txn::new()
                        .when([Compare::mod_revision(key.as_str(), CompareOp::Equal, expected)])
                        .and_then([operation])
                        .or_else([TxnOp::get(key.as_str(), None)]);
                    async move { kv.txn(transaction).await }
                },
                Failure::certainly_not_done,
            )
            .await;
        let response = written.map_err(|failure| failure.of_write(size))?;
        if response.succeeded() {
            return Ok(WriteOutcome::Done(revision_of(response.header())?));
        }
        Ok(WriteOutcome::Failed(existing(&response)?))
    }
}

impl Shared {
    /// How long etcd has been away.
    fn away(&self) -> Duration {
        let since = *self.away_since.lock();
        since.map_or(Duration::ZERO, |since| self.clock.monotonic().saturating_sub(since))
    }

    /// Learns from the end of an attempt that began at `began` whether etcd is there.
    fn note(&self, began: Duration, failure: Option<&Failure>) {
        let mut since = self.away_since.lock();
        match failure {
            Some(failure) if failure.is_passing() => {
                since.get_or_insert(began);
            }
            _ => *since = None,
        }
    }

    /// Asks again while `again` says so and patience lasts.
    async fn repeat<T, F>(&self, ask: impl Fn(KvClient) -> F, again: fn(&Failure) -> bool) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut wait = BACKOFF.start;
        loop {
            let began = self.clock.monotonic();
            let limit = PATIENCE.saturating_sub(self.away()).clamp(AWAY_TIMEOUT, REQUEST_TIMEOUT);
            let failure = match tokio::time::timeout(limit, ask(self.kv.clone())).await {
                Ok(Ok(answer)) => {
                    self.note(began, None);
                    return Ok(answer);
                }
                Ok(Err(error)) => Failure::new(error),
                Err(_) => Failure::TimedOut,
            };
            self.note(began, Some(&failure));
            if !again(&failure) || self.away() >= PATIENCE {
                return Err(failure);
            }
            self.clock.sleep(wait).await;
            wait = (wait * 2).min(BACKOFF.end);
        }
    }

    async fn range(&self, key: Vec<u8>, options: GetOptions) -> Result<GetResponse, Failure> {
        let ask = |mut kv: KvClient| {
            let (key, options) = (key.clone(), options.clone());
            async move { kv.get(key, Some(options)).await }
        };
        self.repeat(ask, Failure::is_passing).await
    }

    async fn current(&self) -> Result<Revision, StorageError> {
        // Any key will do: the header of a linearizable read has the revision.
        let read = self.range(vec![0], GetOptions::new().with_count_only()).await;
        revision_of(read.map_err(Failure::of_read)?.header())
    }

    /// Whether etcd answers a request for progress only after the changes before it, see `watch`.
    async fn orders_progress(&self) -> bool {
        let ask = async {
            let mut maintenance = self.client.maintenance_client();
            match tokio::time::timeout(REQUEST_TIMEOUT, maintenance.status()).await {
                Ok(Ok(status)) => Ok(orders_progress(status.version())),
                _ => Err(()),
            }
        };
        self.orders_progress.get_or_try_init(|| ask).await.copied().unwrap_or(false)
    }

    fn note_compacted(&self, revision: Revision) -> Revision {
        Revision(self.compacted.fetch_max(revision.0, Ordering::Relaxed).max(revision.0))
    }

    /// What a failed read at `requested` means.
    async fn read_failed(&self, failure: Failure, requested: Revision) -> StorageError {
        match failure {
            Failure::Compacted => StorageError::Compacted { requested, oldest: self.note_compacted(requested.next()) },
            Failure::Future => match self.current().await {
                Ok(current) => StorageError::FutureRevision { requested, current },
                Err(error) => error,
            },
            other => other.of_read(),
        }
    }

    async fn list(&self, range: ListRange) -> Result<Page, StorageError> {
        let limit = if range.limit == 0 { usize::MAX } else { range.limit };
        let end = prefix_end(&range.prefix);
        let mut start = match &range.after {
            Some(after) if after.as_str() >= range.prefix.as_str() => after_key(after),
            _ => start_key(&range.prefix),
        };
        let mut at = range.at;
        let mut items: Vec<KeyValue> = Vec::new();
        loop {
            let asked = PAGE_KEYS.min(limit - items.len());
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(asked as i64);
            if let Some(at) = at {
                if at == Revision(0) {
                    return Err(StorageError::Compacted { requested: at, oldest: self.note_compacted(Revision(1)) });
                }
                options = options.with_revision(to_etcd(at));
            }
            let mut answer = match self.range(start, options).await {
                Ok(answer) => answer,
                Err(failure) => return Err(self.read_failed(failure, at.unwrap_or_default()).await),
            };
            // The first page decides at which revision the others are read.
            let revision = match at {
                Some(at) => at,
                None => revision_of(answer.header())?,
            };
            at = Some(revision);
            let (more, total) = (answer.more(), answer.count());
            let page = answer.take_kvs();
            let got = page.len();
            for kv in page {
                items.push(key_value(kv)?);
            }
            if !more || items.len() >= limit || got == 0 {
                let remaining = u64::try_from(total).unwrap_or(0).saturating_sub(got as u64);
                return Ok(Page { items, revision, remaining });
            }
            start = items.last().map(|last| after_key(&last.key)).unwrap_or_default();
        }
    }
}

impl Storage for EtcdStorage {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<KeyValue>, Revision), StorageError>> {
        async move {
            let read = self.shared.range(key.as_bytes().to_vec(), GetOptions::new()).await;
            let mut answer = read.map_err(Failure::of_read)?;
            let revision = revision_of(answer.header())?;
            let found = answer.take_kvs().pop().map(key_value).transpose()?;
            Ok((found, revision))
        }
        .boxed()
    }

    fn list(&self, range: ListRange) -> BoxFuture<'_, Result<Page, StorageError>> {
        self.shared.list(range).boxed()
    }

    fn put(
        &self,
        key: String,
        value: Bytes,
        precondition: Precondition,
    ) -> BoxFuture<'_, Result<WriteOutcome, StorageError>> {
        self.write(key, Some(value), precondition).boxed()
    }

    fn delete(&self, key: String, unchanged: Revision) -> BoxFuture<'_, Result<WriteOutcome, StorageError>> {
        self.write(key, None, Precondition::Unchanged(unchanged)).boxed()
    }

    fn watch(&self, prefix: String, from: Revision) -> BoxFuture<'_, Result<WatchStream, StorageError>> {
        watch::open(self.shared.clone(), prefix, from).boxed()
    }

    fn request_progress(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        async move {
            self.shared.progress.send_modify(|count| *count += 1);
            Ok(())
        }
        .boxed()
    }

    fn current_revision(&self) -> BoxFuture<'_, Result<Revision, StorageError>> {
        self.shared.current().boxed()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StorageError>> {
        async move {
            let ask = |mut kv: KvClient| async move { kv.compact(to_etcd(revision), None).await };
            match self.shared.repeat(ask, Failure::is_passing).await {
                Ok(_) | Err(Failure::Compacted) => {
                    self.shared.note_compacted(revision);
                    Ok(())
                }
                Err(failure) => Err(self.shared.read_failed(failure, revision).await),
            }
        }
        .boxed()
    }

    fn size(&self) -> BoxFuture<'_, Result<Size, StorageError>> {
        async move {
            let mut maintenance = self.shared.client.maintenance_client();
            let asked = tokio::time::timeout(REQUEST_TIMEOUT, maintenance.status()).await;
            let status = match asked {
                Ok(Ok(status)) => status,
                Ok(Err(error)) => return Err(Failure::new(error).of_read()),
                Err(_) => return Err(Failure::TimedOut.of_read()),
            };
            let bytes = |size: i64| u64::try_from(size).unwrap_or(0);
            Ok(Size { on_disk: bytes(status.db_size()), in_use: bytes(status.raft_used_db_size()) })
        }
        .boxed()
    }
}

fn orders_progress(version: &str) -> bool {
    let mut parts = version.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    match version {
        (3, 4, patch) => patch >= 25,
        (3, 5, patch) => patch >= 8,
        other => other > (3, 5, 0),
    }
}

fn existing(response: &TxnResponse) -> Result<Option<KeyValue>, StorageError> {
    let read = response.op_responses().into_iter().find_map(|response| match response {
        TxnOpResponse::Get(mut read) => read.take_kvs().pop(),
        _ => None,
    });
    read.map(key_value).transpose()
}

fn key_value(kv: etcd_client::KeyValue) -> Result<KeyValue, StorageError> {
    let mod_revision = from_etcd(kv.mod_revision());
    let (key, value) = kv.into_key_value();
    let key = String::from_utf8(key)
        .map_err(|_| StorageError::Corrupt { detail: format!("a key of revision {} is not text", mod_revision.0) })?;
    Ok(KeyValue { key, value: value.into(), mod_revision })
}

fn revision_of(header: Option<&etcd_client::ResponseHeader>) -> Result<Revision, StorageError> {
    match header {
        Some(header) => Ok(from_etcd(header.revision())),
        None => Err(StorageError::Corrupt { detail: "an answer without a revision".to_owned() }),
    }
}

fn from_etcd(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}

fn to_etcd(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

fn after_key(key: &str) -> Vec<u8> {
    let mut next = key.as_bytes().to_vec();
    next.push(0);
    next
}

/// etcd has no empty key; the smallest stands for all.
fn start_key(prefix: &str) -> Vec<u8> {
    if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() }
}

/// The first key after all with this prefix; a zero byte is "the end".
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // UTF-8 has no byte 0xff, so there is always one to increase.
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0),
    }
    end
}

#[cfg(test)]
mod tests {
    use rkube_apimachinery::clock::SystemClock;

    use super::*;

    #[test]
    fn ranges_of_prefixes() {
        assert_eq!(prefix_end("/a/"), b"/a0");
        assert_eq!(prefix_end("\u{10FFFF}"), [0xf4, 0x8f, 0xbf, 0xc0]);
        assert_eq!((start_key(""), prefix_end("")), (vec![0], vec![0]));
        assert_eq!(after_key("/a"), b"/a\0");
    }

    #[test]
    fn versions_that_order_progress() {
        let all = ["3.4.23", "3.4.25", "3.5.7", "3.5.8", "3.5.10-rc.1", "3.6.0", "4.0.0", "2.3.9", ""];
        let ordered: Vec<_> = all.into_iter().filter(|version| orders_progress(version)).collect();
        assert_eq!(ordered, ["3.4.25", "3.5.8", "3.5.10-rc.1", "3.6.0", "4.0.0"]);
    }

    #[test]
    fn endpoints_are_a_list() {
        assert_eq!(
            EtcdOptions::new("https://a:2379, https://b:2379,", SystemClock::shared()).endpoints,
            ["https://a:2379", "https://b:2379"]
        );
    }
}
