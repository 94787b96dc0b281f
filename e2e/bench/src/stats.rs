//! Distributions of durations in constant memory, and medians.
//!
//! Invariant: a value read back from a [`Histogram`] is at most 1/64 (1.6 %) below the one recorded, and never above it.

use std::time::Duration;

/// Buckets per power of two.
const STEPS: u64 = 64;
/// Microseconds below this are counted exactly.
const EXACT: u64 = STEPS * 2;
/// Enough for `u64::MAX` microseconds: the exact ones, then one group of `STEPS` per power of two above.
const BUCKETS: usize = (EXACT + (64 - 7) * STEPS) as usize;

/// How often each duration was seen, to the microsecond when short, to 1.6 % when long.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    buckets: Box<[u64]>,
    count: u64,
    sum: Duration,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS].into(), count: 0, sum: Duration::ZERO, max: Duration::ZERO }
    }
}

fn bucket(micros: u64) -> usize {
    if micros < EXACT {
        return micros as usize;
    }
    let power = u64::from(micros.ilog2());
    let step = (micros >> (power - 6)) - STEPS;
    (EXACT + (power - 7) * STEPS + step) as usize
}

/// The smallest duration that falls into the bucket.
fn floor(bucket: usize) -> Duration {
    let bucket = bucket as u64;
    if bucket < EXACT {
        return Duration::from_micros(bucket);
    }
    let (power, step) = ((bucket - EXACT) / STEPS + 7, (bucket - EXACT) % STEPS);
    Duration::from_micros((STEPS + step) << (power - 6))
}

impl Histogram {
    pub(crate) fn record(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(micros)] += 1;
        self.count += 1;
        self.sum += duration;
        self.max = self.max.max(duration);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn max(&self) -> Duration {
        self.max
    }

    /// The value that `share` of all values do not exceed (0.5 is the median); zero when nothing was recorded.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank && *count > 0 {
                return floor(index);
            }
        }
        Duration::ZERO
    }
}

/// The middle of `values`, the mean of the two middle ones if their number is even; 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_begins_where_it_says() {
        for index in 0..BUCKETS {
            let micros = u64::try_from(floor(index).as_micros()).unwrap();
            assert_eq!(bucket(micros), index, "{micros}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_within_the_promised_error() {
        let mut histogram = Histogram::default();
        for micros in 1..=100_000 {
            histogram.record(Duration::from_micros(micros));
        }
        for (share, exact) in [(0.5, 50_000.0), (0.99, 99_000.0), (1.0, 100_000.0), (0.0, 1.0)] {
            let got = histogram.quantile(share).as_secs_f64() * 1e6;
            assert!(got <= exact && got >= exact * (1.0 - 1.0 / 64.0) - 1e-6, "{share}: {got}");
        }
        assert_eq!(histogram.max(), Duration::from_millis(100));
    }

    #[test]
    fn merged_histograms_are_those_of_all_values() {
        let (mut left, mut right) = (Histogram::default(), Histogram::default());
        left.record(Duration::from_micros(10));
        right.record(Duration::from_micros(30));
        right.record(Duration::from_micros(20));
        left.merge(&right);
        assert_eq!((left.count(), left.quantile(0.5)), (3, Duration::from_micros(20)));
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }
}
