//! What a caller is told of its limits: when one is reached, and how much is left.

use std::cmp::Reverse;
use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::Measure;

/// A limit that was reached.
#[derive(Debug, Clone)]
pub struct Limited {
    pub measure: Measure,
    pub number: u64,
    /// Who shares the count: `anna`, `the group students`, `everybody together`.
    pub whose: String,
    /// The models that it is about, if not all.
    pub models: Option<String>,
    pub again: Again,
    pub left: Left,
}

/// When the same request would be let through, if nobody else used the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Again {
    After(Duration),
    /// The first moment of the next day or month, as people there write it.
    At(String, Duration),
    /// When something that runs ends, which nobody knows.
    Ended,
}

/// How much is left, of the tightest limit of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    pub requests: Option<Quota>,
    pub tokens: Option<Quota>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    pub limit: u64,
    pub remaining: u64,
    /// Until all of it is there again.
    pub reset: Duration,
}

impl Limited {
    /// For the reference and for the tests.
    pub(super) fn example(measure: Measure) -> Self {
        let (whose, wait) = ("anna".to_owned(), Duration::from_millis(5500));
        let again = match measure {
            Measure::RequestsPerMinute | Measure::TokensPerMinute => Again::After(wait),
            Measure::Concurrent => Again::Ended,
            Measure::TokensPerDay
            | Measure::TokensPerMonth
            | Measure::GpuSecondsPerDay
            | Measure::GpuSecondsPerMonth => Again::At("2026-12-01 00:00 UTC".to_owned(), wait),
        };
        Self { measure, number: 10, whose, models: None, again, left: Left::default() }
    }

    #[must_use]
    pub fn retry_after(&self) -> Duration {
        match &self.again {
            Again::After(wait) | Again::At(_, wait) => (*wait).max(SOON),
            Again::Ended => SOON,
        }
    }
}

/// For the caller, and for the log.
impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { measure, number, whose, models, again, .. } = self;
        write!(f, "{} is {number} for {whose}", measure.as_str())?;
        if let Some(models) = models {
            write!(f, " with {models}")?;
        }
        match again {
            Again::After(wait) => {
                write!(f, "; try again in {} s", super::whole_seconds((*wait).max(SOON)))
            }
            Again::At(moment, _) => write!(f, ", and is used up; there is more from {moment}"),
            Again::Ended => f.write_str("; try again when something that runs has ended"),
        }
    }
}

impl Left {
    /// The tighter of both: less is left of it or, where that is the same, it lasts longer.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let room = |quota: &Quota| (quota.remaining, Reverse(quota.reset));
        let tighter = |a: Option<Quota>, b: Option<Quota>| match (a, b) {
            (Some(a), Some(b)) if room(&b) < room(&a) => Some(b),
            (None, b) => b,
            (a, _) => a,
        };
        Self {
            requests: tighter(self.requests, other.requests),
            tokens: tighter(self.tokens, other.tokens),
        }
    }

    /// As OpenAI's clients know them; nothing for who has no such limit.
    pub fn write(&self, headers: &mut HeaderMap) {
        let kinds = [(REQUESTS, self.requests), (TOKENS, self.tokens)];
        for ([limit, remaining, reset], quota) in kinds {
            let Some(quota) = quota else { continue };
            headers.insert(limit, HeaderValue::from(quota.limit));
            headers.insert(remaining, HeaderValue::from(quota.remaining));
            if let Ok(value) = HeaderValue::from_str(&span(quota.reset)) {
                headers.insert(reset, value);
            }
        }
    }
}

/// `6m0s`, in whole seconds, rounded up.
fn span(time: Duration) -> String {
    let seconds = super::whole_seconds(time);
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, minutes) => format!("{minutes}m{rest}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
    }
}

/// At least this; to come back at once would be no waiting.
const SOON: Duration = Duration::from_secs(1);

const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(limit: u64, remaining: u64, millis: u64) -> Option<Quota> {
        Some(Quota { limit, remaining, reset: Duration::from_millis(millis) })
    }

    #[test]
    fn the_tightest_is_told_in_the_form_that_clients_know() {
        let left = Left { requests: quota(10, 3, 42_000), tokens: None };
        let left = left.and(Left { requests: quota(5, 1, 360_000), tokens: quota(100, 7, 1) });
        let left = left.and(Left { requests: quota(50, 9, 1), tokens: quota(9, 8, 1) });
        let mut headers = HeaderMap::new();
        left.write(&mut headers);
        for (name, value) in [
            ("limit-requests", "5"),
            ("remaining-requests", "1"),
            ("reset-requests", "6m0s"),
            ("limit-tokens", "100"),
            ("remaining-tokens", "7"),
            ("reset-tokens", "1s"),
        ] {
            assert_eq!(headers[format!("x-ratelimit-{name}")], value, "{name}");
        }
        // Of two that are used up the day's: the minute's end helps nobody.
        for (first, second) in [(85_000, 46_000_000), (46_000_000, 85_000)] {
            let one = Left { requests: None, tokens: quota(100, 0, first) };
            let left = one.and(Left { requests: None, tokens: quota(150, 0, second) });
            assert_eq!(left.tokens.unwrap().reset, Duration::from_millis(46_000_000));
        }
        assert_eq!(span(Duration::from_secs(13 * 3600 + 5)), "13h0m5s");
        assert_eq!(span(Duration::ZERO), "0s");
    }
}
