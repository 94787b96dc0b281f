//! A queue of keys to work on: each key at most once in the queue and with at most one worker.
//!
//! Walk through one key: `add` puts it into `queue` and `dirty`. `get` moves it to `processing`. An `add`
//! meanwhile only marks it `dirty`, so that no second worker takes it; `done` puts it back into `queue`
//! because it is dirty. A key that is not dirty at `done` is forgotten.
//!
//! Behaves as `k8s.io/client-go/util/workqueue`, v1.36, metric names included.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::task;
use tokio::sync::Notify;
use tracing::info_span;

use crate::metrics::{Progress, QueueMetrics, workqueue};

/// What may be queued: a key, small and cheap to clone.
pub trait Item: Clone + Eq + Hash + Ord + Send + Sync + std::fmt::Debug + 'static {}
impl<T: Clone + Eq + Hash + Ord + Send + Sync + std::fmt::Debug + 'static> Item for T {}

/// How fast failed keys come back: the later of a per-key exponential delay and an overall rate.
#[derive(Clone, Debug)]
pub struct RateLimits {
    pub base_delay: Duration,
    pub delay_max: Duration,
    /// Retries per second over all keys, and how many at once.
    pub rate: f64,
    pub burst: u32,
}

impl Default for RateLimits {
    /// client-go's: 5 ms doubling to 1000 s per key, 10 per second with bursts of 100 for all.
    fn default() -> Self {
        Self { base_delay: Duration::from_millis(5), delay_max: Duration::from_secs(1000), rate: 10.0, burst: 100 }
    }
}

/// A queue of keys. Clones share one queue.
///
/// # Guarantees
/// A key added is handed out after the `add`, unless the queue is shut down. No key is with two workers.
/// Keys are handed out in the order of their first `add` since they were last handed out.
/// # Caveats
/// Not bounded: it holds at most one entry per existing key, and keys are of existing objects.
pub struct WorkQueue<T: Item>(Arc<Shared<T>>);

impl<T: Item> Clone for WorkQueue<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<T: Item> {
    name: &'static str,
    clock: SharedClock,
    limits: RateLimits,
    state: Mutex<State<T>>,
    /// Permits for workers; one notification per key put into `queue`.
    available: Notify,
    /// The earliest delayed key changed.
    rearm: Notify,
    /// The queue has nothing queued and nothing with a worker.
    idle: Notify,
    metrics: QueueMetrics,
}

struct State<T> {
    queue: VecDeque<(T, Duration)>,
    dirty: HashSet<T>,
    processing: HashMap<T, Duration>,
    /// By due time, then by insertion.
    delayed: BinaryHeap<Reverse<(Duration, u64, T)>>,
    /// The due time of each delayed key; an entry of `delayed` that is not named here is superseded.
    due: HashMap<T, Duration>,
    next_delay_id: u64,
    timer_runs: bool,
    failures: HashMap<T, u32>,
    /// When the overall bucket is next full of no tokens: reservations push it into the future.
    bucket_tokens: f64,
    bucket_at: Duration,
    shut_down: bool,
}

impl<T: Item> WorkQueue<T> {
    pub fn new(name: &'static str, clock: SharedClock) -> Self {
        Self::with_limits(name, clock, RateLimits::default())
    }

    pub fn with_limits(name: &'static str, clock: SharedClock, limits: RateLimits) -> Self {
        let state = State {
            queue: VecDeque::new(),
            dirty: HashSet::new(),
            processing: HashMap::new(),
            delayed: BinaryHeap::new(),
            due: HashMap::new(),
            next_delay_id: 0,
            timer_runs: false,
            failures: HashMap::new(),
            bucket_tokens: f64::from(limits.burst),
            bucket_at: clock.monotonic(),
            shut_down: false,
        };
        let shared = Arc::new(Shared {
            name,
            clock,
            limits,
            state: Mutex::new(state),
            available: Notify::new(),
            rearm: Notify::new(),
            idle: Notify::new(),
            metrics: workqueue().queue(name),
        });
        let weak = Arc::downgrade(&shared);
        workqueue().watch(name, weak);
        Self(shared)
    }

    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// Marks a key as needing work.
    pub fn add(&self, item: T) {
        let mut state = self.0.state.lock();
        self.0.add_locked(&mut state, item);
    }

    /// Adds the key once `delay` has passed. Of several delays for one key the earliest counts.
    pub fn add_after(&self, item: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(item);
        }
        let mut state = self.0.state.lock();
        if state.shut_down {
            return;
        }
        let due = self.0.clock.monotonic().saturating_add(delay);
        if state.due.get(&item).is_some_and(|known| *known <= due) {
            return;
        }
        self.0.metrics.retries.inc();
        state.due.insert(item.clone(), due);
        let id = state.next_delay_id;
        state.next_delay_id += 1;
        let earliest = state.delayed.peek().is_none_or(|Reverse((at, _, _))| due < *at);
        state.delayed.push(Reverse((due, id, item)));
        if !state.timer_runs {
            state.timer_runs = true;
            let shared = Arc::clone(&self.0);
            task::spawn(info_span!("workqueue-timer", queue = self.0.name), async move { shared.run_timer().await });
        } else if earliest {
            self.0.rearm.notify_one();
        }
    }

    /// Adds the key after its back-off, which grows with each call until `forget`.
    pub fn add_rate_limited(&self, item: T) {
        let delay = {
            let mut state = self.0.state.lock();
            self.0.next_delay(&mut state, &item)
        };
        self.add_after(item, delay);
    }

    /// Ends the key's back-off: it succeeded, or is given up.
    pub fn forget(&self, item: &T) {
        self.0.state.lock().failures.remove(item);
    }

    /// How often the key failed since it was last forgotten.
    pub fn num_requeues(&self, item: &T) -> u32 {
        self.0.state.lock().failures.get(item).copied().unwrap_or(0)
    }

    /// The next key, now with the caller until `done`. `None` once the queue is shut down and empty.
    pub async fn get(&self) -> Option<T> {
        loop {
            let available = self.0.available.notified();
            tokio::pin!(available);
            // Registered before looking, so that an `add` between the two is not missed.
            available.as_mut().enable();
            {
                let mut state = self.0.state.lock();
                if let Some((item, added)) = state.queue.pop_front() {
                    let now = self.0.clock.monotonic();
                    self.0.metrics.depth.set(state.queue.len() as i64);
                    self.0.metrics.queue_duration.observe(now.saturating_sub(added).as_secs_f64());
                    state.dirty.remove(&item);
                    state.processing.insert(item.clone(), now);
                    if !state.queue.is_empty() {
                        // Passes on a permit that may have gone to this worker while it was not waiting.
                        self.0.available.notify_one();
                    }
                    return Some(item);
                }
                if state.shut_down {
                    return None;
                }
            }
            available.await;
        }
    }

    /// The caller is finished with the key, for better or worse.
    pub fn done(&self, item: &T) {
        let mut state = self.0.state.lock();
        let now = self.0.clock.monotonic();
        if let Some(started) = state.processing.remove(item) {
            self.0.metrics.work_duration.observe(now.saturating_sub(started).as_secs_f64());
        }
        if state.dirty.contains(item) {
            state.queue.push_back((item.clone(), now));
            self.0.metrics.depth.set(state.queue.len() as i64);
            self.0.available.notify_one();
        } else if state.queue.is_empty() && state.processing.is_empty() {
            self.0.idle.notify_waiters();
        }
    }

    pub fn len(&self) -> usize {
        self.0.state.lock().queue.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether nothing is queued and nothing is with a worker. Delayed keys do not count.
    pub fn is_idle(&self) -> bool {
        let state = self.0.state.lock();
        state.queue.is_empty() && state.processing.is_empty()
    }

    /// Waits until the queue is idle.
    pub async fn wait_idle(&self) {
        loop {
            let idle = self.0.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.is_idle() {
                return;
            }
            idle.await;
        }
    }

    /// Refuses new keys. Workers get what is queued, then `None`.
    pub fn shut_down(&self) {
        let mut state = self.0.state.lock();
        state.shut_down = true;
        state.delayed.clear();
        state.due.clear();
        drop(state);
        self.0.available.notify_waiters();
        self.0.available.notify_one();
        self.0.rearm.notify_one();
    }

    pub fn is_shut_down(&self) -> bool {
        self.0.state.lock().shut_down
    }
}

impl<T: Item> Progress for Shared<T> {
    fn unfinished(&self) -> (f64, f64) {
        let now = self.clock.monotonic();
        let state = self.state.lock();
        let ages = || state.processing.values().map(|began| now.saturating_sub(*began).as_secs_f64());
        (ages().sum(), ages().fold(0.0, f64::max))
    }
}

impl<T: Item> Shared<T> {
    fn add_locked(&self, state: &mut State<T>, item: T) {
        if state.shut_down || !state.dirty.insert(item.clone()) {
            return;
        }
        self.metrics.adds.inc();
        if state.processing.contains_key(&item) {
            return;
        }
        state.queue.push_back((item, self.clock.monotonic()));
        self.metrics.depth.set(state.queue.len() as i64);
        self.available.notify_one();
    }

    fn next_delay(&self, state: &mut State<T>, item: &T) -> Duration {
        let failures = state.failures.entry(item.clone()).or_insert(0);
        let exponent = *failures;
        *failures = failures.saturating_add(1);
        let factor = 2f64.powi(i32::try_from(exponent.min(64)).unwrap_or(64));
        let own = self.limits.base_delay.as_secs_f64() * factor;
        let own = Duration::from_secs_f64(own.min(self.limits.delay_max.as_secs_f64()));

        let now = self.clock.monotonic();
        let refilled = now.saturating_sub(state.bucket_at).as_secs_f64() * self.limits.rate;
        let tokens = (state.bucket_tokens + refilled).min(f64::from(self.limits.burst)) - 1.0;
        state.bucket_tokens = tokens;
        state.bucket_at = now;
        let overall = if tokens < 0.0 { -tokens / self.limits.rate } else { 0.0 };
        own.max(Duration::from_secs_f64(overall))
    }

    /// Moves delayed keys into the queue when they are due. Ends when none is left, so that an idle queue
    /// has no timer.
    async fn run_timer(&self) {
        loop {
            let wait = {
                let mut state = self.state.lock();
                let now = self.clock.monotonic();
                loop {
                    match state.delayed.peek() {
                        Some(Reverse((due, _, _))) if *due <= now => {}
                        Some(Reverse((due, _, _))) => break *due - now,
                        None => {
                            state.timer_runs = false;
                            return;
                        }
                    }
                    let Some(Reverse((due, _, item))) = state.delayed.pop() else { continue };
                    if state.due.get(&item) == Some(&due) {
                        state.due.remove(&item);
                        self.add_locked(&mut state, item);
                    }
                }
            };
            tokio::select! {
                () = self.clock.sleep(wait) => {}
                () = self.rearm.notified() => {}
            }
        }
    }
}
