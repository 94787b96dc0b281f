//! Exponential back-off with jitter and a cap.
//!
//! Behaves as apimachinery/pkg/util/wait/backoff.go, v1.36.

use std::time::Duration;

use crate::random::{Random, unit};

/// How long to wait before each next attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Backoff {
    /// The next delay, before jitter.
    pub duration: Duration,
    /// What each step multiplies the delay by; 0 leaves it.
    pub factor: f64,
    /// Up to this share of the delay is added at random; it does not accumulate.
    pub jitter: f64,
    /// How many steps may change the delay.
    pub steps: u32,
    /// The delay grows no further than this; zero is no cap.
    pub cap: Duration,
}

impl Backoff {
    /// Doubles from `first` to `cap` without jitter and without end.
    pub fn doubling(first: Duration, cap: Duration) -> Self {
        Self { duration: first, factor: 2.0, jitter: 0.0, steps: u32::MAX, cap }
    }

    #[must_use]
    pub fn with_jitter(self, jitter: f64) -> Self {
        Self { jitter, ..self }
    }

    /// The delay to wait now; the next one is longer.
    pub fn step(&mut self, random: &dyn Random) -> Duration {
        let current = self.duration;
        if self.steps > 0 {
            self.steps -= 1;
            if self.factor != 0.0 {
                let next = scaled(current, self.factor);
                if !self.cap.is_zero() && next > self.cap {
                    self.duration = self.cap;
                    self.steps = 0;
                } else {
                    self.duration = next;
                }
            }
        }
        jitter(current, self.jitter, random)
    }
}

/// `duration` plus up to `factor` of it.
pub fn jitter(duration: Duration, factor: f64, random: &dyn Random) -> Duration {
    if factor > 0.0 { duration.saturating_add(scaled(duration, factor * unit(random))) } else { duration }
}

fn scaled(duration: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(duration.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SeededRandom;

    #[test]
    fn grows_to_the_cap() {
        let random = SeededRandom::new(0);
        let mut backoff = Backoff::doubling(Duration::from_secs(1), Duration::from_secs(5));
        let delays: Vec<u64> = (0..6).map(|_| backoff.step(&random).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 5, 5, 5]);
    }

    #[test]
    fn jitter_adds_at_most_its_share() {
        let random = SeededRandom::new(7);
        for _ in 0..100 {
            let delay = jitter(Duration::from_secs(10), 0.5, &random);
            assert!((Duration::from_secs(10)..Duration::from_secs(15)).contains(&delay), "{delay:?}");
        }
        let mut forever = Backoff::doubling(Duration::from_secs(1), Duration::ZERO);
        for _ in 0..200 {
            forever.step(&random);
        }
        assert_eq!(forever.step(&random), Duration::MAX);
    }
}
