//! So many a minute: the generic cell rate algorithm, told in units instead of in times, so that a
//! debt and a changed number keep their meaning.

use std::time::{Duration, Instant};

/// What was used and has not leaked away yet, at a rate of so many units a minute.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Bucket {
    /// In parts, of which a unit has as many as a minute has nanoseconds: nothing is ever rounded.
    level: u128,
    /// Of what was put in, in parts, what may turn out to be less.
    held: u128,
    /// All that has, or would have, leaked away since the beginning, in parts.
    leaked: u128,
    rate: u64,
    at: Option<Instant>,
    /// How far who asks is behind the last who asked.
    behind: Duration,
}

/// Units that are in a bucket until it is known how many it were.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hold {
    units: u64,
    /// What was below it.
    level: u128,
    leaked: u128,
}

const UNIT: u128 = 60_000_000_000;

impl Bucket {
    /// Lets leak what is due, then at this rate. A moment before the last one is that one.
    pub(super) fn flow(&mut self, rate: u64, now: Instant) {
        self.leak(now);
        self.rate = rate;
    }

    /// How long until there is room for one; nothing where there is.
    pub(super) fn wait_for_one(&self) -> Duration {
        self.wait_for((self.level + UNIT).saturating_sub(self.size()))
    }

    /// How long until it is not full; nothing where it is not.
    pub(super) fn wait_for_any(&self) -> Duration {
        self.wait_for((self.level + 1).saturating_sub(self.size()))
    }

    /// It is full only of what may turn out to be less.
    pub(super) fn is_only_held(&self) -> bool {
        self.level >= self.size() && self.level.saturating_sub(self.held) < self.size()
    }

    /// How long until it is empty.
    pub(super) fn wait_for_all(&self) -> Duration {
        self.wait_for(self.level)
    }

    pub(super) fn remaining(&self) -> u64 {
        whole(self.size().saturating_sub(self.level) / UNIT)
    }

    /// Whole units; part of one is one.
    pub(super) fn used(&self) -> u64 {
        whole(self.level.div_ceil(UNIT))
    }

    pub(super) fn put(&mut self, units: u64) {
        self.level = self.level.saturating_add(parts(units));
    }

    pub(super) fn hold(&mut self, units: u64) -> Hold {
        let hold = Hold { units, level: self.level, leaked: self.leaked };
        self.put(units);
        self.held = self.held.saturating_add(parts(units));
        hold
    }

    /// Puts the true number in the place of what was held. What leaked away of the hold was waited
    /// for, so it is not given back a second time.
    pub(super) fn settle(&mut self, hold: Hold, units: u64, now: Instant) {
        self.leak(now);
        self.held = self.held.saturating_sub(parts(hold.units));
        if units >= hold.units {
            return self.put(units - hold.units);
        }
        let since = self.leaked.saturating_sub(hold.leaked);
        let left = hold.level.saturating_add(parts(hold.units)).saturating_sub(since);
        let back = parts(hold.units - units).min(left);
        self.level = self.level.saturating_sub(back);
    }

    pub(super) fn is_empty(&mut self, now: Instant) -> bool {
        self.leak(now);
        self.level == 0
    }

    fn leak(&mut self, now: Instant) {
        let at = self.at.get_or_insert(now);
        let passed = now.saturating_duration_since(*at).as_nanos();
        self.behind = at.saturating_duration_since(now);
        *at = now.max(*at);
        let leaked = passed.saturating_mul(u128::from(self.rate));
        self.level = self.level.saturating_sub(leaked);
        self.leaked = self.leaked.saturating_add(leaked);
    }

    fn size(&self) -> u128 {
        parts(self.rate)
    }

    /// Until so many parts have leaked away, rounded up.
    fn wait_for(&self, parts: u128) -> Duration {
        if parts == 0 {
            return Duration::ZERO;
        }
        let nanos = parts.div_ceil(u128::from(self.rate.max(1)));
        Duration::from_nanos(whole(nanos)) + self.behind
    }
}

fn parts(units: u64) -> u128 {
    u128::from(units) * UNIT
}

fn whole(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NANO: Duration = Duration::from_nanos(1);

    fn one(bucket: &mut Bucket, rate: u64, now: Instant) -> bool {
        bucket.flow(rate, now);
        let is_room = bucket.wait_for_one() == Duration::ZERO;
        if is_room {
            bucket.put(1);
        }
        is_room
    }

    /// The algorithm as it is usually written: the theoretical arrival time, in nanoseconds times the
    /// rate so that it is exact.
    #[derive(Default)]
    struct Slow(u128);

    impl Slow {
        fn one(&mut self, rate: u64, now: Duration) -> bool {
            let now = now.as_nanos() * u128::from(rate);
            let next = self.0.max(now) + UNIT;
            let is_early = next - now > u128::from(rate) * UNIT;
            if !is_early {
                self.0 = next;
            }
            !is_early
        }
    }

    #[test]
    fn so_many_at_once_and_then_one_at_a_time() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        assert_eq!((0..200).filter(|_| one(&mut bucket, 10, start)).count(), 10);
        assert_eq!(bucket.wait_for_one(), Duration::from_secs(6));
        assert!(!one(&mut bucket, 10, start + Duration::from_secs(6) - NANO));
        assert!(one(&mut bucket, 10, start + Duration::from_secs(6)));
        assert!(!one(&mut bucket, 10, start + Duration::from_secs(6)));
        assert_eq!((bucket.remaining(), bucket.used()), (0, 10));
    }

    #[test]
    fn a_debt_is_waited_for() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        bucket.flow(1000, start);
        let hold = bucket.hold(10);
        bucket.settle(hold, 5000, start);
        // 4000 too many, and a part of one more.
        assert_eq!(bucket.wait_for_any(), Duration::from_secs(240) + NANO);
        assert_eq!(bucket.wait_for_all(), Duration::from_secs(300));
        bucket.flow(1000, start + Duration::from_secs(240));
        assert!(bucket.wait_for_any() > Duration::ZERO);
        bucket.flow(1000, start + Duration::from_secs(240) + NANO);
        assert_eq!(bucket.wait_for_any(), Duration::ZERO);
    }

    #[test]
    fn what_is_held_may_be_given_back_sooner_than_it_leaks_away() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        bucket.flow(1000, start);
        bucket.put(400);
        let (one, other) = (bucket.hold(5000), bucket.hold(500));
        assert!(bucket.is_only_held());
        bucket.settle(one, 10, start);
        assert!(!bucket.is_only_held(), "there is room");
        bucket.put(600);
        assert!(!bucket.is_only_held(), "what was used is enough");
        bucket.settle(other, 0, start);
        assert_eq!(bucket.wait_for_any(), Duration::from_millis(600) + NANO);
    }

    #[test]
    fn a_raised_number_counts_at_once_and_a_lowered_one_too() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        bucket.flow(10, start);
        bucket.put(10);
        bucket.flow(1000, start);
        assert_eq!((bucket.wait_for_one(), bucket.remaining()), (Duration::ZERO, 990));
        bucket.flow(5, start);
        assert_eq!(bucket.wait_for_one(), Duration::from_secs(72));
    }

    #[test]
    fn time_that_goes_back_or_far_ahead_breaks_nothing() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        let later = start + Duration::from_secs(60);
        bucket.flow(10, later);
        bucket.put(10);
        bucket.flow(10, start);
        assert_eq!(bucket.wait_for_one(), Duration::from_secs(66));
        bucket.flow(1_000_000_000_000_000, start + Duration::from_secs(60 * 60 * 24 * 36500));
        bucket.put(u64::MAX);
        bucket.put(u64::MAX);
        bucket.flow(1, later);
        assert!(bucket.wait_for_any() > Duration::from_secs(1 << 30));
    }

    proptest! {
        #[test]
        fn it_decides_as_the_slow_one_does(
            rate in 1u64..200,
            steps in prop::collection::vec((0u64..20_000_000_000, 1usize..30), 1..60),
        ) {
            let (mut bucket, mut slow, start) = (Bucket::default(), Slow::default(), Instant::now());
            let mut passed = Duration::ZERO;
            for (step, asks) in steps {
                passed += Duration::from_nanos(step);
                for _ in 0..asks {
                    let wanted = slow.one(rate, passed);
                    prop_assert_eq!(one(&mut bucket, rate, start + passed), wanted);
                }
                let wait = bucket.wait_for_one();
                if wait > Duration::ZERO {
                    let at = start + passed + wait;
                    let mut copy = bucket;
                    copy.flow(rate, at - NANO);
                    prop_assert!(copy.wait_for_one() > Duration::ZERO);
                    copy.flow(rate, at);
                    prop_assert_eq!(copy.wait_for_one(), Duration::ZERO);
                }
            }
        }

        /// A hold that is given back leaves it never emptier than if it had not been there.
        #[test]
        fn nothing_is_given_back_that_leaked_away(
            rate in 1u64..1000,
            held in 0u64..5000,
            before in 0u64..5000,
            steps in prop::collection::vec((0u64..60_000_000_000, 0u64..2000), 0..10),
            used in 0u64..6000,
        ) {
            let (mut held_in, mut without) = (Bucket::default(), Bucket::default());
            let start = Instant::now();
            let mut at = start;
            for bucket in [&mut held_in, &mut without] {
                bucket.flow(rate, start);
                bucket.put(before);
            }
            let hold = held_in.hold(held);
            let mut nothing_else = true;
            for (step, units) in steps {
                at += Duration::from_nanos(step);
                for bucket in [&mut held_in, &mut without] {
                    bucket.flow(rate, at);
                    bucket.put(units);
                }
                nothing_else &= units == 0;
            }
            if used == 0 {
                held_in.settle(hold, 0, at);
                prop_assert!(held_in.level >= without.level);
                prop_assert!(!nothing_else || held_in.level == without.level);
            } else {
                held_in.settle(hold, used, at);
                prop_assert!(held_in.level >= without.level.min(u128::from(used) * UNIT));
            }
        }
    }
}
