//! Whether a backend is well, as far as its answers tell; time and chance are handed in.
//!
//! A backend that fails is out for a while, then one request is let through to see, then it gets its
//! share again little by little. What is decided on this is which of several backends goes first; one
//! that nobody else can stand in for is asked whatever is thought of it.

use std::fmt;
use std::time::{Duration, Instant};

/// The first time out, and the longest.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// Failures one after the other that put it out: one may be the request's own fault, and of what a
/// caller can provoke several of the same caller's.
const FAILURES: u32 = 3;
const SILENCES: u32 = 2;
const PROBES: u32 = 2;
/// In which it gets its share again.
const RETURN: Duration = Duration::from_secs(30);
/// At the beginning of that, in thousandths of its share.
const LEAST_SHARE: u64 = 100;
/// A model may take as long to load; no first byte for longer, nor for ten times what was the longest
/// yet, is a bad sign.
const STALL: Duration = Duration::from_secs(60);

/// What a request or a probe found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// An answer that is not a failure began.
    Answer,
    /// It came to its end.
    Whole,
    /// It broke off, or fell silent, after its first byte.
    BrokeOff,
    /// No connection could be made.
    NoConnection,
    /// It broke off before the first byte, or answered that it is broken (502, 503, 504, 508).
    Failure,
    /// It answered 500, which a caller can provoke, as by a template that does not parse; `to` tells
    /// callers apart.
    Error {
        to: u64,
    },
    /// The first byte did not come in time.
    Silence,
    /// It answered a question of the gate's own.
    ProbeAnswered,
    ProbeFailed,
}

impl Finding {
    pub(super) fn is_good(self) -> bool {
        matches!(self, Self::Answer | Self::Whole | Self::ProbeAnswered)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answer | Self::Whole | Self::ProbeAnswered => "it answers",
            Self::BrokeOff => "one answer after the other breaks off",
            Self::NoConnection => "no connection can be made",
            Self::Failure => "one request after the other fails",
            Self::Error { .. } => "one caller after the other is answered 500",
            Self::Silence => "requests get no first byte",
            Self::ProbeFailed => "it does not answer GET /api/version or /v1/models",
        })
    }
}

/// Whether a backend gets requests, the fittest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fitness {
    /// With its part of its share, in thousandths.
    Fit {
        share: u64,
    },
    /// Others go first.
    Stuck,
    Out,
}

/// See the top of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Health {
    standing: Standing,
    /// Of each kind, one after the other.
    failures: u32,
    breaks: u32,
    silences: u32,
    failed_probes: u32,
    /// Each to another caller than the one before it, and to whom the last was.
    errors: u32,
    last_error: Option<u64>,
    /// How often in a row it was put out.
    times_out: u32,
    /// Requests that wait for their first byte, and since when nothing was heard while some did.
    waiting: u32,
    silent_since: Option<Instant>,
    /// The longest that a first byte took, going down again little by little.
    slowest: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    In {
        returned: Option<Instant>,
    },
    Out {
        until: Instant,
        hung: bool,
        answers: bool,
    },
    /// One request is under way to see how it is.
    Tried {
        hung: bool,
    },
}

impl Default for Health {
    fn default() -> Self {
        Self {
            standing: Standing::In { returned: None },
            failures: 0,
            breaks: 0,
            silences: 0,
            failed_probes: 0,
            errors: 0,
            last_error: None,
            times_out: 0,
            waiting: 0,
            silent_since: None,
            slowest: Duration::ZERO,
        }
    }
}

impl Health {
    /// Whether it gets requests like any other.
    #[must_use]
    pub(super) fn is_in(&self) -> bool {
        matches!(self.standing, Standing::In { .. })
    }

    /// Whether it is in, or was put out and answers again.
    #[must_use]
    pub(super) fn is_up(&self) -> bool {
        match self.standing {
            Standing::In { .. } | Standing::Tried { .. } => true,
            Standing::Out { answers, .. } => answers,
        }
    }

    /// Whether a single request may go to it, to see. It was asked before, unless it is one of those
    /// that answer and do nothing else.
    #[must_use]
    pub(super) fn may_be_tried(&self, now: Instant) -> bool {
        match self.standing {
            Standing::Out { until, hung, answers } => until <= now && (hung || answers),
            Standing::In { .. } | Standing::Tried { .. } => false,
        }
    }

    /// Whether it should be asked how it is; the answer counts as a finding.
    #[must_use]
    pub(super) fn wants_probe(&self, now: Instant) -> bool {
        match self.standing {
            Standing::In { .. } => true,
            Standing::Out { until, hung, answers } => !hung && !answers && until <= now,
            Standing::Tried { .. } => false,
        }
    }

    /// How it stands beside others.
    #[must_use]
    pub(super) fn fitness(&self, now: Instant) -> Fitness {
        match self.standing {
            Standing::In { .. } if self.seems_stuck(now) => Fitness::Stuck,
            Standing::In { .. } => Fitness::Fit { share: self.share(now) },
            // Somebody has to be the one who shows how it is.
            Standing::Out { .. } if self.may_be_tried(now) => Fitness::Fit { share: LEAST_SHARE },
            Standing::Out { .. } | Standing::Tried { .. } => Fitness::Out,
        }
    }

    /// Less for a while after it was out.
    fn share(&self, now: Instant) -> u64 {
        let Standing::In { returned: Some(returned) } = self.standing else { return 1000 };
        let passed = now.saturating_duration_since(returned).min(RETURN).as_millis();
        let grown = u64::try_from(passed * 1000 / RETURN.as_millis()).unwrap_or(1000);
        grown.max(LEAST_SHARE)
    }

    /// Whether requests wait there for so long, without a sign of life to any, that others go first.
    fn seems_stuck(&self, now: Instant) -> bool {
        let patience = STALL.max(self.slowest * 10);
        self.silent_since.is_some_and(|since| now.saturating_duration_since(since) > patience)
    }

    /// A request goes to it. Whether that is the one which shows how it is.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        self.waiting = self.waiting.saturating_add(1);
        self.silent_since.get_or_insert(now);
        let is_trial = self.may_be_tried(now);
        if let (true, Standing::Out { hung, .. }) = (is_trial, self.standing) {
            self.standing = Standing::Tried { hung };
        }
        is_trial
    }

    /// The request goes to it that shows how it is, if there is to be one. Whether it does.
    pub(super) fn begin_trial(&mut self, now: Instant) -> bool {
        self.may_be_tried(now) && self.begin(now)
    }

    /// A request does not wait any more, without anything having been found out: its caller left.
    pub(super) fn leave(&mut self, was_trial: bool, now: Instant) {
        self.stop_waiting(None);
        if let (true, Standing::Tried { hung }) = (was_trial, self.standing) {
            self.standing = Standing::Out { until: now, hung, answers: true };
        }
    }

    /// What became of a request that began at `began`; `chance` is any number.
    pub(super) fn end(&mut self, finding: Finding, began: Instant, now: Instant, chance: u32) {
        let is_heard = matches!(finding, Finding::Answer | Finding::Error { .. });
        self.stop_waiting(is_heard.then_some(now));
        if finding == Finding::Answer {
            let took = now.saturating_duration_since(began);
            self.slowest = took.max(self.slowest - self.slowest / 8);
        }
        self.find(finding, now, chance);
    }

    /// What was found out; `chance` is any number.
    pub(super) fn find(&mut self, finding: Finding, now: Instant, chance: u32) {
        let hung = matches!(
            self.standing,
            Standing::Out { hung: true, .. } | Standing::Tried { hung: true }
        );
        match finding {
            Finding::Answer => {
                (self.errors, self.last_error) = (0, None);
                self.is_well(now);
            }
            Finding::Error { to } => {
                self.errors += u32::from(self.last_error.replace(to) != Some(to));
                match self.errors >= FAILURES {
                    true => self.put_out(false, now, chance),
                    // It is there, and more is not known.
                    false => self.is_well(now),
                }
            }
            Finding::Whole => self.breaks = 0,
            // That another one began says nothing: the next that breaks puts it out again.
            Finding::BrokeOff => {
                self.breaks += 1;
                if self.breaks >= FAILURES || !self.is_in() {
                    self.put_out(false, now, chance);
                }
            }
            Finding::ProbeAnswered => {
                self.failed_probes = 0;
                if let Standing::Out { hung: false, until, answers } = &mut self.standing {
                    *answers |= *until <= now;
                }
            }
            Finding::NoConnection => self.put_out(false, now, chance),
            Finding::Failure => {
                self.failures += 1;
                if self.failures >= FAILURES || !self.is_in() {
                    self.put_out(false, now, chance);
                }
            }
            Finding::Silence => {
                self.silences += 1;
                if self.silences >= SILENCES || !self.is_in() {
                    self.put_out(true, now, chance);
                }
            }
            Finding::ProbeFailed => {
                self.failed_probes += 1;
                if self.failed_probes >= PROBES || !self.is_in() {
                    self.put_out(hung, now, chance);
                }
            }
        }
    }

    fn is_well(&mut self, now: Instant) {
        (self.failures, self.silences, self.failed_probes) = (0, 0, 0);
        match self.standing {
            Standing::In { returned: Some(returned) }
                if now.saturating_duration_since(returned) >= RETURN =>
            {
                self.times_out = 0;
                self.standing = Standing::In { returned: None };
            }
            Standing::In { .. } => {}
            Standing::Out { .. } | Standing::Tried { .. } => {
                self.standing = Standing::In { returned: Some(now) };
            }
        }
    }

    fn put_out(&mut self, hung: bool, now: Instant, chance: u32) {
        if let Standing::Out { until, .. } = self.standing
            && until > now
        {
            // Others that were under way with the one which put it out say nothing new.
            return;
        }
        let longest = SHORTEST * 2u32.saturating_pow(self.times_out.min(16));
        let longest = longest.min(LONGEST);
        // From three quarters to all of it, so that several gates do not come at once.
        let off = longest / 4 * (chance % 1024) / 1024;
        self.times_out = self.times_out.saturating_add(1);
        self.standing = Standing::Out { until: now + longest - off, hung, answers: false };
    }

    fn stop_waiting(&mut self, heard: Option<Instant>) {
        self.waiting = self.waiting.saturating_sub(1);
        if self.waiting == 0 {
            self.silent_since = None;
        } else if heard.is_some() {
            self.silent_since = heard;
        }
    }
}

#[cfg(test)]
mod tests;
