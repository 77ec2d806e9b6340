//! Durations counted in buckets about 1.6 % wide, from which percentiles are read.

/// How often each duration came, in nanoseconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

/// Buckets in each doubling.
const FINE: u64 = 64;

impl Histogram {
    pub(crate) fn add(&mut self, nanos: u64) {
        let at = bucket(nanos);
        if self.buckets.len() <= at {
            self.buckets.resize(at + 1, 0);
        }
        if let Some(bucket) = self.buckets.get_mut(at) {
            *bucket += 1;
        }
        self.count += 1;
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// In milliseconds, the duration that this share of all did not exceed; 0 when there is none.
    pub(crate) fn millis(&self, share: f64) -> f64 {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (at, number) in self.buckets.iter().enumerate() {
            seen += number;
            if seen >= rank {
                return middle(at as u64) / 1e6;
            }
        }
        0.0
    }
}

fn bucket(nanos: u64) -> usize {
    let doubling = (nanos | FINE).ilog2() - FINE.ilog2();
    // up to FINE each value has its own; above, the highest bits after the first choose
    (u64::from(doubling) * FINE + (nanos >> doubling)) as usize
}

fn middle(bucket: u64) -> f64 {
    let doubling = (bucket / FINE).saturating_sub(1);
    let low = (bucket - doubling * FINE) << doubling;
    low as f64 + (1u64 << doubling) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_within_a_few_percent() {
        let mut histogram = Histogram::default();
        (1..=100_000u64).for_each(|number| histogram.add(number * 1000));
        for (share, millis) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let found = histogram.millis(share);
            assert!((found - millis).abs() < 0.02 * millis, "{found} for {millis}");
        }
    }

    #[test]
    fn buckets_follow_each_other_and_hold_their_middle() {
        let mut last = 0;
        for nanos in 0..100_000u64 {
            let at = bucket(nanos);
            assert!(at == last || at == last + 1, "{nanos}");
            last = at;
            assert_eq!(bucket(middle(at as u64) as u64), at);
        }
    }
}
