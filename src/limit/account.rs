//! Everything that is counted of one limit for those who share it.

use std::sync::PoisonError;
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use jiff::civil::Date;
#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};

use super::bucket::{Bucket, Hold};
use super::period::{Almanac, Period, Span};
use crate::config::{Allowance, Measure};
use crate::reject::{Again, Left, Quota};

/// The counts, one request at a time.
#[derive(Debug, Default)]
pub(super) struct Account(Mutex<Counts>);

#[derive(Debug, Default)]
pub(super) struct Counts {
    requests: Bucket,
    tokens: Bucket,
    day: Period,
    month: Period,
    running: u64,
}

/// An account at which nobody else is.
pub(super) type Open<'a> = MutexGuard<'a, Counts>;

/// What one request took from an account, until it is settled.
#[derive(Debug)]
pub(super) struct Taken {
    tokens: Option<Hold>,
    held: u64,
    /// The first days of the day and the month that it counts for.
    day: Date,
    month: Date,
}

/// When somebody asks, and what for.
#[derive(Debug)]
pub(super) struct Moment {
    pub(super) now: Instant,
    pub(super) almanac: Almanac,
    /// Whether it may be work that tokens and backend time are limited for.
    pub(super) is_work: bool,
    /// Whether it is known to be.
    pub(super) spends: bool,
}

/// A limit that is reached.
#[derive(Debug)]
pub(super) struct Obstacle {
    pub(super) measure: Measure,
    pub(super) number: u64,
    pub(super) again: Again,
}

impl Account {
    pub(super) fn with(day: Period, month: Period) -> Self {
        Self(Mutex::new(Counts { day, month, ..Counts::default() }))
    }

    pub(super) fn open(&self) -> Open<'_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    /// Brings everything to this moment; nothing is taken.
    pub(super) fn come(&mut self, allowance: &Allowance, moment: &Moment) {
        let Almanac { day, month, .. } = moment.almanac;
        self.day.come(day, day);
        self.month.come(month, day);
        for (bucket, measure) in [
            (&mut self.requests, Measure::RequestsPerMinute),
            (&mut self.tokens, Measure::TokensPerMinute),
        ] {
            if let Some(rate) = allowance.get(measure) {
                bucket.flow(rate, moment.now);
            }
        }
    }

    /// Of the limits that are reached the one that has to be waited for longest.
    pub(super) fn obstacle(&self, allowance: &Allowance, moment: &Moment) -> Option<Obstacle> {
        let reached =
            allowance.iter().filter(|(measure, _)| moment.is_work || !is_of_work(*measure));
        let reached = reached.filter_map(|(measure, number)| {
            let again = self.again(measure, number, &moment.almanac)?;
            Some(Obstacle { measure, number, again })
        });
        reached.max_by_key(|obstacle| wait(&obstacle.again))
    }

    /// `None` where there is room.
    fn again(&self, measure: Measure, number: u64, almanac: &Almanac) -> Option<Again> {
        let after = |wait: Duration| (wait > Duration::ZERO).then_some(Again::After(wait));
        match measure {
            Measure::RequestsPerMinute => after(self.requests.wait_for_one()),
            // It is not to be waited for what may never be used.
            Measure::TokensPerMinute if self.tokens.is_only_held() => Some(Again::Ended),
            Measure::TokensPerMinute => after(self.tokens.wait_for_any()),
            Measure::Concurrent => (self.running >= number).then_some(Again::Ended),
            Measure::TokensPerDay => tokens_of(&self.day, number, Span::Day, almanac),
            Measure::TokensPerMonth => tokens_of(&self.month, number, Span::Month, almanac),
            Measure::GpuSecondsPerDay => work_of(&self.day, number, Span::Day, almanac),
            Measure::GpuSecondsPerMonth => work_of(&self.month, number, Span::Month, almanac),
        }
    }

    /// Takes one request, with so many tokens until the true number is known.
    pub(super) fn take(&mut self, allowance: &Allowance, held: u64, moment: &Moment) -> Taken {
        if allowance.get(Measure::RequestsPerMinute).is_some() {
            self.requests.put(1);
        }
        self.running += 1;
        let held = if moment.spends { held } else { 0 };
        self.day.hold(held);
        self.month.hold(held);
        let is_rated = allowance.get(Measure::TokensPerMinute).is_some();
        Taken {
            tokens: is_rated.then(|| self.tokens.hold(held)),
            held,
            day: self.day.begins(),
            month: self.month.begins(),
        }
    }

    /// The true numbers in the place of what was held; it runs no longer.
    pub(super) fn settle(&mut self, taken: &Taken, tokens: u64, work: Duration, now: Instant) {
        if let Some(hold) = taken.tokens {
            self.tokens.settle(hold, tokens, now);
        }
        self.day.settle(taken.day, taken.held, tokens, work);
        self.month.settle(taken.month, taken.held, tokens, work);
        self.running = self.running.saturating_sub(1);
    }

    /// The tightest of each kind.
    pub(super) fn left(&self, allowance: &Allowance, almanac: &Almanac) -> Left {
        let mut left = Left::default();
        for (measure, limit) in allowance.iter() {
            let period = |period: &Period, span| Quota {
                limit,
                remaining: limit.saturating_sub(period.tokens()),
                reset: almanac.until(&almanac.end(period.begins(), span)),
            };
            let bucket = |bucket: &Bucket| Quota {
                limit,
                remaining: bucket.remaining(),
                reset: bucket.wait_for_all(),
            };
            let (requests, tokens) = match measure {
                Measure::RequestsPerMinute => (Some(bucket(&self.requests)), None),
                Measure::TokensPerMinute => (None, Some(bucket(&self.tokens))),
                Measure::TokensPerDay => (None, Some(period(&self.day, Span::Day))),
                Measure::TokensPerMonth => (None, Some(period(&self.month, Span::Month))),
                Measure::GpuSecondsPerDay | Measure::GpuSecondsPerMonth | Measure::Concurrent => {
                    (None, None)
                }
            };
            left = left.and(Left { requests, tokens });
        }
        left
    }

    pub(super) fn used(&self, measure: Measure) -> u64 {
        match measure {
            Measure::RequestsPerMinute => self.requests.used(),
            Measure::TokensPerMinute => self.tokens.used(),
            Measure::TokensPerDay => self.day.tokens_used(),
            Measure::TokensPerMonth => self.month.tokens_used(),
            Measure::GpuSecondsPerDay => self.day.work().as_secs(),
            Measure::GpuSecondsPerMonth => self.month.work().as_secs(),
            Measure::Concurrent => self.running,
        }
    }

    pub(super) fn raise(&mut self, day: &Period, month: &Period) {
        self.day.raise(day.begins(), day.tokens_used(), day.work());
        self.month.raise(month.begins(), month.tokens_used(), month.work());
    }

    /// Whether it could be forgotten and made anew without a difference.
    pub(super) fn is_idle(&mut self, now: Instant, almanac: &Almanac) -> bool {
        self.running == 0
            && self.day.is_idle(almanac.day)
            && self.month.is_idle(almanac.month)
            && self.requests.is_empty(now)
            && self.tokens.is_empty(now)
    }
}

/// What is not asked of a request that makes no model work.
fn is_of_work(measure: Measure) -> bool {
    match measure {
        Measure::RequestsPerMinute | Measure::Concurrent => false,
        Measure::TokensPerMinute
        | Measure::TokensPerDay
        | Measure::TokensPerMonth
        | Measure::GpuSecondsPerDay
        | Measure::GpuSecondsPerMonth => true,
    }
}

fn tokens_of(period: &Period, number: u64, span: Span, almanac: &Almanac) -> Option<Again> {
    if period.tokens_used() >= number {
        return Some(at_end(period, span, almanac));
    }
    // What is held may turn out to be less.
    (period.tokens() >= number).then_some(Again::Ended)
}

fn work_of(period: &Period, number: u64, span: Span, almanac: &Almanac) -> Option<Again> {
    (period.work() >= Duration::from_secs(number)).then(|| at_end(period, span, almanac))
}

fn at_end(period: &Period, span: Span, almanac: &Almanac) -> Again {
    let end = almanac.end(period.begins(), span);
    Again::At(end.strftime("%Y-%m-%d %H:%M %Z").to_string(), almanac.until(&end))
}

/// To put them in order; what nobody knows last.
pub(super) fn wait(again: &Again) -> Duration {
    match again {
        Again::After(wait) | Again::At(_, wait) => *wait,
        Again::Ended => Duration::ZERO,
    }
}
