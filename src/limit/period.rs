//! So much a day or a month, by the calendar of a time zone.

use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// What was used in a day, or in a month.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Period {
    /// Its first day; a later one with time.
    begins: Date,
    tokens: u64,
    /// Of requests that run.
    held: u64,
    work: Duration,
}

/// The day and the month of a moment, each by its first day.
#[derive(Debug, Clone)]
pub(super) struct Almanac {
    wall: Timestamp,
    zone: TimeZone,
    pub(super) day: Date,
    pub(super) month: Date,
}

/// How long a period is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Span {
    Day,
    Month,
}

impl Almanac {
    pub(super) fn of(wall: Timestamp, zone: &TimeZone) -> Self {
        let day = wall.to_zoned(zone.clone()).date();
        Self { wall, zone: zone.clone(), day, month: day.first_of_month() }
    }

    /// When a period that begins so is over; where the calendar ends, at once.
    pub(super) fn end(&self, begins: Date, span: Span) -> Zoned {
        let last = match span {
            Span::Day => begins,
            Span::Month => begins.last_of_month(),
        };
        // A midnight that a change of the clock leaves out is the first moment after it.
        let next = last.tomorrow().and_then(|next| next.to_zoned(self.zone.clone()));
        next.unwrap_or_else(|_| self.wall.to_zoned(self.zone.clone()))
    }

    pub(super) fn until(&self, end: &Zoned) -> Duration {
        Duration::try_from(end.timestamp().duration_since(self.wall)).unwrap_or_default()
    }
}

impl Period {
    /// Begins anew where a later one has come. A clock that was set back goes on with the later one; if
    /// that is days ahead, it was never true, and what it has counts from here on.
    pub(super) fn come(&mut self, begins: Date, today: Date) {
        if begins > self.begins {
            *self = Self { begins, ..Self::default() };
        } else if today.tomorrow().is_ok_and(|tomorrow| self.begins > tomorrow) {
            // Who holds something settles it for a day that will not come.
            let (tokens, work) = (self.tokens(), self.work);
            *self = Self { begins, tokens, held: 0, work };
        }
    }

    pub(super) fn begins(&self) -> Date {
        self.begins
    }

    /// With what is held.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens.saturating_add(self.held)
    }

    /// What is certain.
    pub(super) fn tokens_used(&self) -> u64 {
        self.tokens
    }

    pub(super) fn work(&self) -> Duration {
        self.work
    }

    pub(super) fn hold(&mut self, tokens: u64) {
        self.held = self.held.saturating_add(tokens);
    }

    /// What a request of the period that began then came to, in place of what it held. It counts for
    /// the period in which it began, as the ledger has it; that one may be over.
    pub(super) fn settle(&mut self, began: Date, held: u64, tokens: u64, work: Duration) {
        if self.begins == began {
            self.held = self.held.saturating_sub(held);
            self.tokens = self.tokens.saturating_add(tokens);
            self.work = self.work.saturating_add(work);
        }
    }

    /// What is known from before; never less than what was counted here.
    pub(super) fn raise(&mut self, begins: Date, tokens: u64, work: Duration) {
        self.come(begins, begins);
        if self.begins == begins {
            self.tokens = self.tokens.max(tokens);
            self.work = self.work.max(work);
        }
    }

    /// Whether nothing would be forgotten with it.
    pub(super) fn is_idle(&self, begins: Date) -> bool {
        self.begins < begins || self.tokens() == 0 && self.work == Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn almanac(wall: &str) -> Almanac {
        Almanac::of(wall.parse().unwrap(), &berlin())
    }

    #[test]
    fn days_and_months_begin_at_midnight_of_the_zone() {
        for (wall, day, until_day, until_month) in [
            ("2026-11-24T22:59:59Z", "2026-11-24", 1, 6 * 86_400 + 1),
            ("2026-11-24T23:00:00Z", "2026-11-25", 86_400, 6 * 86_400),
            // 23 and 25 hours.
            ("2026-03-28T23:00:00Z", "2026-03-29", 23 * 3600, 23 * 3600 + 2 * 86_400),
            ("2026-10-24T22:00:00Z", "2026-10-25", 25 * 3600, 25 * 3600 + 6 * 86_400),
            ("2026-12-31T22:00:00Z", "2026-12-31", 3600, 3600),
            ("2028-02-28T23:00:00Z", "2028-02-29", 86_400, 86_400),
        ] {
            let almanac = almanac(wall);
            assert_eq!(almanac.day.to_string(), day);
            for (span, seconds) in [(Span::Day, until_day), (Span::Month, until_month)] {
                let end = almanac.end(begins(&almanac, span), span);
                assert_eq!(almanac.until(&end), Duration::from_secs(seconds), "{wall} {span:?}");
                let then = Almanac::of(end.timestamp(), &berlin());
                assert!(begins(&then, span) > begins(&almanac, span));
            }
        }
        let last = Almanac::of(Timestamp::MAX, &TimeZone::UTC);
        assert_eq!(last.until(&last.end(last.day, Span::Day)), Duration::ZERO);
    }

    #[test]
    fn a_request_counts_where_it_began_and_a_clock_set_back_refills_nothing() {
        let (november, december) =
            (almanac("2026-11-30T22:59:00Z"), almanac("2026-11-30T23:01:00Z"));
        let mut month = Period::default();
        month.come(november.month, november.day);
        month.hold(500);
        let began = month.begins();
        month.come(december.month, december.day);
        assert_eq!(month.tokens(), 0);
        month.hold(10);
        month.settle(began, 500, 700, Duration::from_secs(9));
        assert_eq!((month.tokens(), month.work()), (10, Duration::ZERO));
        month.settle(month.begins(), 10, 20, Duration::from_secs(3));
        month.come(november.month, november.day);
        assert_eq!(month.begins(), december.month);
        assert_eq!((month.tokens(), month.work()), (20, Duration::from_secs(3)));
        assert!(!month.is_idle(december.month) && !month.is_idle(november.month));
        assert!(month.is_idle(almanac("2027-01-01T00:00:00Z").month));
    }

    #[test]
    fn a_clock_that_was_far_ahead_pins_no_count_to_its_day() {
        let (today, ahead) = (almanac("2026-11-24T12:00:00Z"), almanac("2031-05-07T12:00:00Z"));
        let next = almanac("2026-12-01T12:00:00Z");
        for (span, first) in [(Span::Day, 3), (Span::Month, 3)] {
            let mut period = Period::default();
            let come = |period: &mut Period, it: &Almanac| period.come(begins(it, span), it.day);
            come(&mut period, &ahead);
            period.hold(500);
            period.settle(period.begins(), 0, first, Duration::from_secs(9));
            let began = period.begins();
            come(&mut period, &today);
            // Nothing is refilled, and what runs counts as what it holds.
            assert_eq!(period.begins(), begins(&today, span));
            assert_eq!((period.tokens_used(), period.work()), (503, Duration::from_secs(9)));
            period.settle(began, 500, 700, Duration::ZERO);
            assert_eq!(period.tokens(), 503);
            come(&mut period, &next);
            assert_eq!(period.tokens(), 0, "{span:?}");
        }
    }

    #[test]
    fn what_is_known_from_before_is_no_less_than_what_was_counted() {
        let today = almanac("2026-11-24T12:00:00Z");
        let mut day = Period::default();
        day.raise(today.day, 100, Duration::from_secs(5));
        day.raise(today.day, 50, Duration::from_secs(7));
        assert_eq!((day.tokens_used(), day.work()), (100, Duration::from_secs(7)));
        day.raise(today.day.yesterday().unwrap(), 5000, Duration::ZERO);
        assert_eq!(day.tokens_used(), 100);
    }

    fn begins(almanac: &Almanac, span: Span) -> Date {
        match span {
            Span::Day => almanac.day,
            Span::Month => almanac.month,
        }
    }

    proptest! {
        /// Against a list of everything that was ever settled.
        #[test]
        fn a_period_has_what_began_in_it(
            steps in prop::collection::vec((0i64..90_000, -4000i64..90_000, 0u64..100, 0u64..100), 1..80),
        ) {
            let mut wall: Timestamp = "2026-03-27T00:00:00Z".parse().unwrap();
            let mut latest = Date::MIN;
            let (mut day, mut all, mut open) = (Period::default(), Vec::new(), Vec::new());
            for (at, (ahead, jitter, held, tokens)) in steps.into_iter().enumerate() {
                wall += Duration::from_secs(u64::try_from(ahead).unwrap());
                // The clock is sometimes behind itself.
                let seen = wall.as_second() + jitter.min(0);
                let seen = Almanac::of(Timestamp::from_second(seen).unwrap(), &berlin());
                latest = latest.max(seen.day);
                day.come(seen.day, seen.day);
                day.hold(held);
                open.push((day.begins(), held));
                if at % 3 == 2 {
                    let (began, held) = open.remove(0);
                    day.settle(began, held, tokens, Duration::from_secs(tokens));
                    all.push((began, tokens));
                }
                let used: u64 = all.iter().filter(|(day, _)| *day == latest).map(|it| it.1).sum();
                let held: u64 = open.iter().filter(|(day, _)| *day == latest).map(|it| it.1).sum();
                prop_assert_eq!(day.begins(), latest);
                prop_assert_eq!(day.tokens(), used + held);
                prop_assert_eq!(day.work(), Duration::from_secs(used));
            }
        }
    }
}
