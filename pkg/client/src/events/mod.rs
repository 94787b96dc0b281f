//! Records what happened to objects as Event objects, without letting a loop flood the server.
//!
//! A recorder puts events into a bounded queue and never waits; one task correlates and writes them:
//! repeats become a count, many similar ones become one combined event, and a source may send 25 events
//! about an object at once and one per five minutes after that.
//! Behaves as `k8s.io/client-go/tools/record`, and as `tools/events` for events with an action, v1.36.

mod series;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Event, EventSource, ObjectReference};
use rkube_api::meta::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::random;
use rkube_apimachinery::task;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info_span, warn};

use crate::api::Patch;
use crate::client::Client;
use crate::events::series::{AllSeries, series_patch};
use crate::owner::api_version;
use crate::transport::ClientError;

/// Events waiting to be written. More are dropped: an event is never worth blocking for.
const QUEUED_MAX: usize = 1000;
/// Entries of each correlation cache.
const CACHE_MAX: usize = 4096;
/// Distinct messages of one kind of event within the interval before they are combined.
const AGGREGATE_EVENTS_MAX: usize = 10;
const AGGREGATE_INTERVAL: Duration = Duration::from_secs(600);
/// Events of one source about one object: 25 at once, then one per 300 s.
const SPAM_BURST: f64 = 25.0;
const SPAM_REFILL_PER_SECOND: f64 = 1.0 / 300.0;
const TRIES_MAX: u32 = 12;
const RETRY_DELAY: Duration = Duration::from_secs(10);
/// An object name is a DNS subdomain.
const NAME_MAX: usize = 253;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// An event on its way to the writer.
enum Record {
    /// Repeats are counted on the event, similar ones are combined, and too many are dropped.
    Plain(Event),
    /// Repeats make a series.
    Series(Event),
}

/// Records events of one component. Clones share the queue.
#[derive(Clone)]
pub struct EventRecorder {
    sender: mpsc::Sender<Record>,
    client: Client,
    component: Arc<str>,
    host: Arc<str>,
    /// The time part of the last name given out, so that two events in one clock tick get two names.
    last_nanos: Arc<AtomicI64>,
}

impl EventRecorder {
    /// Starts the task that writes what this recorder and its clones record, until `stop`.
    pub fn start(client: Client, component: &str, stop: CancellationToken) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUED_MAX);
        let writer = Writer {
            client: client.clone(),
            correlator: Correlator::default(),
            series: AllSeries::default(),
            receiver,
        };
        task::spawn(info_span!("events", component), async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = writer.run() => {}
            }
        });
        let last_nanos = Arc::new(AtomicI64::new(0));
        Self { sender, client, component: component.into(), host: Arc::from(""), last_nanos }
    }

    /// The same queue under another component's name.
    #[must_use]
    pub fn for_component(&self, component: &str) -> Self {
        Self { component: component.into(), ..self.clone() }
    }

    /// The same recorder, naming the machine it speaks of (the kubelet's node).
    #[must_use]
    pub fn on_host(&self, host: &str) -> Self {
        Self { host: host.into(), ..self.clone() }
    }

    /// Records an event about `object`.
    pub fn event<K: Kind>(&self, object: &K, event_type: EventType, reason: &str, message: impl Into<String>) {
        self.event_about(reference_to(object), event_type, reason, message);
    }

    pub fn normal<K: Kind>(&self, object: &K, reason: &str, message: impl Into<String>) {
        self.event(object, EventType::Normal, reason, message);
    }

    pub fn warning<K: Kind>(&self, object: &K, reason: &str, message: impl Into<String>) {
        self.event(object, EventType::Warning, reason, message);
    }

    /// Records an event about whatever `reference` names: a container of a pod, an object that is gone.
    pub fn event_about(
        &self,
        reference: ObjectReference,
        event_type: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.send(Record::Plain(self.make(reference, event_type, reason, message.into())));
    }

    /// Records an event in the form of `events.k8s.io`: with what was done and a second object. A repeat with another
    /// note is a repeat.
    pub fn event_with_action(
        &self,
        regarding: ObjectReference,
        related: Option<ObjectReference>,
        event_type: EventType,
        reason: &str,
        action: &str,
        note: impl Into<String>,
    ) {
        let event = self.make(regarding, event_type, reason, note.into());
        let now = event.first_timestamp.as_ref().map_or_else(|| self.client.clock().now(), |time| time.0);
        let instance = if self.host.is_empty() { String::new() } else { format!("-{}", self.host) };
        self.send(Record::Series(Event {
            event_time: Some(MicroTime(now)),
            action: Some(action.to_owned()),
            related,
            reporting_instance: Some(format!("{}{instance}", self.component)),
            count: None,
            first_timestamp: None,
            last_timestamp: None,
            source: None,
            ..event
        }));
    }

    fn make(&self, reference: ObjectReference, event_type: EventType, reason: &str, message: String) -> Event {
        let now = self.client.clock().now();
        let nanos = i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX);
        let previous = self.last_nanos.fetch_max(nanos, Ordering::Relaxed);
        let nanos = if previous >= nanos { self.last_nanos.fetch_add(1, Ordering::Relaxed) + 1 } else { nanos };
        let namespace = reference.namespace.clone().filter(|namespace| !namespace.is_empty());
        Event {
            metadata: ObjectMeta {
                name: Some(event_name(reference.name.as_deref().unwrap_or_default(), nanos)),
                namespace: Some(namespace.unwrap_or_else(|| "default".to_owned())),
                ..ObjectMeta::default()
            },
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            involved_object: reference,
            message: Some(message),
            reason: Some(reason.to_owned()),
            type_: Some(event_type.name().to_owned()),
            source: Some(EventSource {
                component: Some(self.component.to_string()),
                host: Some(self.host.to_string()).filter(|host| !host.is_empty()),
            }),
            reporting_component: Some(self.component.to_string()),
            reporting_instance: Some(self.host.to_string()),
            ..Event::default()
        }
    }

    fn send(&self, record: Record) {
        if self.sender.try_send(record).is_err() {
            debug!(component = %self.component, "Dropped an event: the queue is full or closed");
        }
    }
}

/// `name.hex-of-nanoseconds`, shortened so that it remains a valid name.
fn event_name(object: &str, nanos: i64) -> String {
    let suffix = format!(".{nanos:x}");
    let keep = NAME_MAX - suffix.len();
    let object: String = object.chars().map(|c| if c == ':' { '-' } else { c }).take(keep).collect();
    format!("{}{suffix}", object.trim_end_matches(['.', '-']))
}

pub fn reference_to<K: Kind>(object: &K) -> ObjectReference {
    let metadata = object.metadata();
    ObjectReference {
        api_version: Some(api_version::<K>()),
        kind: Some(K::KIND.to_owned()),
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        resource_version: metadata.resource_version.clone(),
        field_path: None,
    }
}

struct Writer {
    client: Client,
    correlator: Correlator,
    series: AllSeries,
    receiver: mpsc::Receiver<Record>,
}

impl Writer {
    async fn run(mut self) {
        loop {
            let clock = self.client.clock();
            let due = self.series.next_check().map(|due| due.saturating_sub(clock.monotonic()));
            let check = async {
                match due {
                    Some(due) => clock.sleep(due).await,
                    None => std::future::pending().await,
                }
            };
            let record = tokio::select! {
                record = self.receiver.recv() => record,
                () = check => {
                    for event in self.series.check(self.client.clock().monotonic()) {
                        self.write(event).await;
                    }
                    continue;
                }
            };
            let clock = self.client.clock();
            let event = match record {
                None => return,
                Some(Record::Plain(event)) => self.correlator.correlate(event, clock.now(), clock.monotonic()),
                Some(Record::Series(event)) => self.series.note(event, clock.now(), clock.monotonic()),
            };
            if let Some(event) = event {
                self.write(event).await;
            }
        }
    }

    async fn write(&mut self, event: Event) {
        for attempt in 1..=TRIES_MAX {
            match self.write_once(&event).await {
                Ok(stored) if stored.event_time.is_none() => return self.correlator.stored(&stored),
                Ok(_) => return,
                // The server understood and refused; it will not change its mind.
                Err(error @ ClientError::Api(_)) => {
                    debug!(error = %chain(&error), reason = event.reason, "Server rejected event");
                    return;
                }
                Err(ClientError::Unreachable { .. }) => {}
                Err(error) => {
                    warn!(error = %chain(&error), reason = event.reason, "Discarded event");
                    return;
                }
            }
            // The first wait is random so that clients do not all come back at once.
            let share = if attempt == 1 { random::unit(self.client.random().as_ref()) } else { 1.0 };
            self.client.clock().sleep(RETRY_DELAY.mul_f64(share)).await;
        }
        warn!(reason = event.reason, "Gave up writing event");
    }

    async fn write_once(&self, event: &Event) -> Result<Event, ClientError> {
        let api = self.client.namespaced::<Event>(event.metadata.namespace.as_deref().unwrap_or_default());
        let patch = match &event.series {
            Some(series) => Some(series_patch(series)),
            None if event.count.unwrap_or(1) > 1 => Some(json!({
                "count": event.count,
                "lastTimestamp": event.last_timestamp.as_ref().map(|time| seconds(time.0)),
                "message": event.message,
            })),
            None => None,
        };
        if let Some(patch) = patch {
            let name = event.metadata.name.as_deref().unwrap_or_default();
            match api.patch(name, &Patch::Strategic(patch)).await {
                // Events expire; a repeat of one that did starts a new one.
                Err(error) if error.is_not_found() => {}
                result => return result,
            }
        }
        let mut fresh = event.clone();
        fresh.metadata.resource_version = None;
        api.create(&fresh).await
    }
}

fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A map that forgets the entry not used for longest.
struct Lru<K, V> {
    entries: HashMap<K, (V, u64)>,
    /// Uses in order, with stale entries for keys used again since.
    order: VecDeque<(K, u64)>,
    tick: u64,
}

impl<K, V> Default for Lru<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), tick: 0 }
    }
}

impl<K: Clone + Eq + Hash, V> Lru<K, V> {
    fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        self.tick += 1;
        self.order.push_back((key.clone(), self.tick));
        while self.entries.len() >= CACHE_MAX || self.order.len() > 2 * CACHE_MAX {
            let Some((oldest, used)) = self.order.pop_front() else { break };
            if oldest != key && self.entries.get(&oldest).is_some_and(|(_, last)| *last == used) {
                self.entries.remove(&oldest);
            }
        }
        let entry = self.entries.entry(key).or_insert_with(|| (make(), 0));
        entry.1 = self.tick;
        &mut entry.0
    }
}

impl<K: Eq + Hash, V> Lru<K, V> {
    fn retain(&mut self, mut keep: impl FnMut(&mut V) -> bool) {
        self.entries.retain(|_, (value, _)| keep(value));
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[derive(Default)]
struct Correlator {
    spam: Lru<String, Bucket>,
    similar: Lru<String, Similar>,
    seen: Lru<String, Option<Seen>>,
}

struct Bucket {
    tokens: f64,
    at: Duration,
}

struct Similar {
    messages: BTreeSet<String>,
    last: Duration,
}

/// The stored event that a repeat is counted on.
#[derive(Clone)]
struct Seen {
    count: i32,
    first_timestamp: Option<Time>,
    name: Option<String>,
    resource_version: Option<String>,
}

impl Correlator {
    /// The event to write, or `None` for one too many. With a count above 1 it is an update.
    fn correlate(&mut self, event: Event, now: Timestamp, monotonic: Duration) -> Option<Event> {
        let (mut event, key) = self.aggregate(event, now, monotonic);
        let seen = self.seen.get_or_insert_with(key, || None);
        if let Some(known) = seen.as_ref() {
            event.metadata.name.clone_from(&known.name);
            event.metadata.resource_version.clone_from(&known.resource_version);
            event.first_timestamp.clone_from(&known.first_timestamp);
            event.count = Some(known.count.saturating_add(1));
        }
        *seen = Some(Seen::of(&event));
        self.admit(&event, monotonic).then_some(event)
    }

    /// Remembers the name and version the server gave.
    fn stored(&mut self, event: &Event) {
        *self.seen.get_or_insert_with(event_key(event), || None) = Some(Seen::of(event));
    }

    fn aggregate(&mut self, event: Event, now: Timestamp, monotonic: Duration) -> (Event, String) {
        let full_key = event_key(&event);
        let key = aggregate_key(&event);
        let fresh = || Similar { messages: BTreeSet::new(), last: monotonic };
        let similar = self.similar.get_or_insert_with(key.clone(), fresh);
        if monotonic.saturating_sub(similar.last) > AGGREGATE_INTERVAL {
            similar.messages.clear();
        }
        similar.messages.insert(event.message.clone().unwrap_or_default());
        similar.last = monotonic;
        if similar.messages.len() < AGGREGATE_EVENTS_MAX {
            return (event, full_key);
        }
        similar.messages.pop_first();
        let message = format!("(combined from similar events): {}", event.message.unwrap_or_default());
        let combined = Event {
            message: Some(message),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            ..event
        };
        (combined, key)
    }

    fn admit(&mut self, event: &Event, now: Duration) -> bool {
        let bucket = self.spam.get_or_insert_with(spam_key(event), || Bucket { tokens: SPAM_BURST, at: now });
        let refilled = now.saturating_sub(bucket.at).as_secs_f64() * SPAM_REFILL_PER_SECOND;
        bucket.tokens = (bucket.tokens + refilled).min(SPAM_BURST);
        bucket.at = now;
        let admitted = bucket.tokens >= 1.0;
        if admitted {
            bucket.tokens -= 1.0;
        }
        admitted
    }
}

impl Seen {
    fn of(event: &Event) -> Self {
        Self {
            count: event.count.unwrap_or(1),
            first_timestamp: event.first_timestamp.clone(),
            name: event.metadata.name.clone(),
            resource_version: event.metadata.resource_version.clone(),
        }
    }
}

/// Source, object and type, joined by a character that no name holds.
fn spam_key(event: &Event) -> String {
    let source = event.source.as_ref();
    let object = &event.involved_object;
    let parts = [
        source.and_then(|source| source.component.as_deref()),
        source.and_then(|source| source.host.as_deref()),
        object.kind.as_deref(),
        object.namespace.as_deref(),
        object.name.as_deref(),
        object.uid.as_deref(),
        object.api_version.as_deref(),
        event.type_.as_deref(),
    ];
    parts.map(Option::unwrap_or_default).join("\n")
}

fn aggregate_key(event: &Event) -> String {
    format!("{}\n{}", spam_key(event), event.reason.as_deref().unwrap_or_default())
}

fn event_key(event: &Event) -> String {
    let field = event.involved_object.field_path.as_deref().unwrap_or_default();
    format!("{}\n{field}\n{}", aggregate_key(event), event.message.as_deref().unwrap_or_default())
}
