//! Time comes in by argument. Nothing else in the workspace reads the system's clocks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Wall time, monotonic time, and waiting for it.
///
/// # Guarantees
/// `monotonic` never decreases. A future from `sleep` ends no earlier than asked by `monotonic`.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Wall time. May jump, both ways: use it for what is stored in objects, never to measure.
    fn now(&self) -> Timestamp;

    /// Time since some fixed point, for deadlines and intervals.
    fn monotonic(&self) -> Duration;

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

pub type SharedClock = Arc<dyn Clock>;

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    pub fn shared() -> SharedClock {
        Arc::new(Self::new())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    #[allow(clippy::disallowed_methods, reason = "the one place that waits for time to pass")]
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A clock that moves when it is told to. Clones share one time.
#[derive(Clone, Debug)]
pub struct FakeClock(Arc<Mutex<FakeState>>);

#[derive(Debug)]
struct FakeState {
    now: Timestamp,
    monotonic: Duration,
    next_id: u64,
    sleepers: BTreeMap<(Duration, u64), oneshot::Sender<()>>,
}

impl FakeClock {
    pub fn new(now: Timestamp) -> Self {
        let monotonic = Duration::ZERO;
        Self(Arc::new(Mutex::new(FakeState { now, monotonic, next_id: 0, sleepers: BTreeMap::new() })))
    }

    pub fn shared(&self) -> SharedClock {
        Arc::new(self.clone())
    }

    /// Moves both times forward and wakes whoever waited for a moment passed.
    pub fn advance(&self, by: Duration) {
        let mut state = self.0.lock();
        state.monotonic += by;
        state.now += by;
        let due = (state.monotonic, u64::MAX);
        let later = state.sleepers.split_off(&due);
        for (_, sleeper) in std::mem::replace(&mut state.sleepers, later) {
            // A sleeper that was dropped no longer waits.
            let _ = sleeper.send(());
        }
    }

    /// Moves wall time only, as an administrator or NTP does.
    pub fn set_wall(&self, now: Timestamp) {
        self.0.lock().now = now;
    }

    /// When the next sleeper wakes, by `monotonic`. Lets a test jump straight to the next event.
    pub fn next_wake(&self) -> Option<Duration> {
        self.0.lock().sleepers.keys().next().map(|(at, _)| *at)
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        self.0.lock().now
    }

    fn monotonic(&self) -> Duration {
        self.0.lock().monotonic
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let (wake, woken) = oneshot::channel();
        let mut state = self.0.lock();
        if duration.is_zero() {
            return Box::pin(std::future::ready(()));
        }
        let key = (state.monotonic + duration, state.next_id);
        state.next_id += 1;
        state.sleepers.insert(key, wake);
        Box::pin(async move {
            // The sender lives as long as the clock does; a clock that is gone never moves again.
            if woken.await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}
