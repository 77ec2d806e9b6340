//! Counts by size, in fixed buckets that two additions keep.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds in microseconds, from what the gate itself takes to a long generation.
pub(super) static TIMES: [u64; 14] = [
    1_000,
    5_000,
    20_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    120_000_000,
    600_000_000,
];
/// Upper bounds in thousandths of a token a second.
pub(super) static SPEEDS: [u64; 10] =
    [1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000];

/// Of whole millionths or thousandths, as `bounds` has them.
#[derive(Debug)]
pub(super) struct Histogram {
    bounds: &'static [u64],
    /// How many of its numbers make one of its unit.
    scale: f64,
    /// One more than there are bounds.
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

/// What it held at one time.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) sum: f64,
    pub(super) count: u64,
    /// Upper bound, and how many are in this one; the last bound is that of everything.
    pub(super) buckets: Vec<(f64, u64)>,
}

impl Histogram {
    pub(super) fn of_times() -> Self {
        Self::new(&TIMES, 1_000_000.0)
    }

    pub(super) fn of_speeds() -> Self {
        Self::new(&SPEEDS, 1_000.0)
    }

    fn new(bounds: &'static [u64], scale: f64) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, scale, buckets, sum: AtomicU64::new(0) }
    }

    pub(super) fn time(&self, time: Duration) {
        // 500,000 years fit.
        self.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    pub(super) fn add(&self, value: u64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get(place) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let bounds = self.bounds.iter().map(|bound| float(*bound) / self.scale);
        let bounds = bounds.chain([f64::INFINITY]);
        let counts = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        Snapshot { sum: float(self.sum.load(Ordering::Relaxed)) / self.scale, count, buckets }
    }
}

/// A sample of Prometheus is a float in any case.
pub(super) fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(histogram: &Histogram) -> Vec<u64> {
        histogram.snapshot().buckets.iter().map(|(_, count)| *count).collect()
    }

    #[test]
    fn a_value_is_in_the_first_bucket_whose_bound_it_does_not_pass() {
        for (place, bound) in TIMES.iter().enumerate() {
            let histogram = Histogram::of_times();
            histogram.time(Duration::from_micros(*bound));
            histogram.time(Duration::from_micros(*bound + 1));
            let counts = counts(&histogram);
            assert_eq!((counts[place], counts[place + 1]), (1, 1), "{bound}");
            assert_eq!(counts.iter().sum::<u64>(), 2);
        }
    }

    #[test]
    fn sum_and_bounds_are_in_seconds() {
        let histogram = Histogram::of_times();
        histogram.time(Duration::from_millis(1_500));
        histogram.time(Duration::from_secs(10_000));
        let seen = histogram.snapshot();
        assert_eq!((seen.sum, seen.count), (10_001.5, 2));
        assert_eq!(seen.buckets.first().unwrap().0, 0.001);
        assert_eq!(seen.buckets.last().unwrap(), &(f64::INFINITY, 1));
        assert!(TIMES.is_sorted() && SPEEDS.is_sorted());
    }

    #[test]
    fn a_speed_is_in_tokens_a_second() {
        let histogram = Histogram::of_speeds();
        histogram.add(42_500);
        assert_eq!(histogram.snapshot().sum, 42.5);
    }
}
