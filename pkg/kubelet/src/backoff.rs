//! Crash and pull back-off: doubling delays per key, forgotten after a quiet time.
//!
//! Behaves as staging/src/k8s.io/client-go/util/flowcontrol/backoff.go, v1.36.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

/// A container that failed once waits 10 s, then 20, 40 … up to 5 minutes.
pub const FIRST: Duration = Duration::from_secs(10);
pub const MAX: Duration = Duration::from_secs(300);

/// Delays by key.
///
/// Times are wall times because the moment a container ended is one. A jump of the clock backwards makes
/// an entry look as if it lay in the future: then no more is waited than the entry's own delay.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    entries: HashMap<String, Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    delay: Duration,
    last_update: Timestamp,
}

impl Backoff {
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, entries: HashMap::new() }
    }

    pub fn crash_loop() -> Self {
        Self::new(FIRST, MAX)
    }

    /// The delay of a key, zero when it has none.
    pub fn get(&self, key: &str) -> Duration {
        self.entries.get(key).map_or(Duration::ZERO, |entry| entry.delay)
    }

    /// Records an attempt at `event`: the first is free of delay, each further one doubles it. A key that
    /// was quiet for twice the longest delay begins anew.
    pub fn next(&mut self, key: &str, event: Timestamp, now: Timestamp) {
        match self.entries.get_mut(key) {
            Some(entry) if !expired(entry, event, self.max) => {
                entry.delay = (entry.delay * 2).min(self.max);
                entry.last_update = now;
            }
            _ => {
                self.entries.insert(key.to_owned(), Entry { delay: self.first, last_update: now });
            }
        }
    }

    /// How much longer a key has to wait, counted from `event` (the moment its container ended).
    pub fn remaining(&self, key: &str, event: Timestamp, now: Timestamp) -> Option<Duration> {
        let entry = self.entries.get(key)?;
        if expired(entry, event, self.max) {
            return None;
        }
        let since = elapsed(event, now);
        (since < entry.delay).then(|| entry.delay - since)
    }

    /// As [`remaining`](Self::remaining), counted from the last attempt.
    pub fn remaining_since_update(&self, key: &str, now: Timestamp) -> Option<Duration> {
        let entry = self.entries.get(key)?;
        if expired(entry, now, self.max) {
            return None;
        }
        let since = elapsed(entry.last_update, now);
        (since < entry.delay).then(|| entry.delay - since)
    }

    pub fn reset(&mut self, key: &str) {
        self.entries.remove(key);
    }

    /// Forgets what has been quiet, so that the map is bounded by what runs.
    pub fn collect(&mut self, now: Timestamp) {
        let max = self.max;
        self.entries.retain(|_, entry| !expired(entry, now, max));
    }
}

fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}

fn expired(entry: &Entry, event: Timestamp, max: Duration) -> bool {
    elapsed(entry.last_update, event) > max * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    #[test]
    fn delays_double_up_to_five_minutes_and_are_forgotten_after_ten() {
        let mut backoff = Backoff::crash_loop();
        let mut now = 0;
        let mut delays = vec![];
        for _ in 0..8 {
            // A container ends, waits out its delay, starts and ends at once.
            backoff.next("c", at(now), at(now));
            let wait = backoff.remaining("c", at(now), at(now)).unwrap();
            delays.push(wait.as_secs());
            now += i64::try_from(wait.as_secs()).unwrap();
            assert_eq!(backoff.remaining("c", at(now) - wait, at(now)), None);
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300, 300]);
        backoff.next("c", at(now + 601), at(now + 601));
        assert_eq!(backoff.get("c"), FIRST);
    }

    #[test]
    fn a_clock_that_jumps_back_waits_no_longer_than_the_delay() {
        let mut backoff = Backoff::crash_loop();
        backoff.next("c", at(0), at(0));
        assert_eq!(backoff.remaining("c", at(0), at(-86_400)), Some(FIRST));
    }
}
