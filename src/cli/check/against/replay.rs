//! Past requests one after the other, as limits would have met them that were not there then.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::access::Reach;
use crate::api::Class;
use crate::auth::Identity;
use crate::config::Allowance;
use crate::limit::{Ask, Charges, Limits, Plan, Subject};
use crate::reject::Reject;
use crate::report::{MOST_ROWS, Period};
use crate::store::{RowsQuery, Spent, Store, StoreError, UsageEntry, UsageFilter};

/// The limits, and what runs while the next request comes.
pub(super) struct Replay<'a> {
    plan: &'a Plan,
    limits: Limits,
    /// A moment of the calendar, and what the clock of the limits says then.
    began: (Timestamp, Instant),
    /// By when it ended.
    running: BTreeMap<(Timestamp, u64), Running>,
}

struct Running {
    charges: Box<Charges>,
    tokens: u64,
    backend_time: Duration,
}

impl<'a> Replay<'a> {
    pub(super) fn new(plan: &'a Plan, began: (Timestamp, Instant)) -> Self {
        Self { plan, limits: Limits::default(), began, running: BTreeMap::new() }
    }

    /// What was used before in the day and the month in which it begins.
    ///
    /// # Errors
    /// Those of `holders`; see [`Limits::restore`].
    pub(super) fn recall(
        &self,
        spent: (&[Spent], &[Spent]),
        holders: impl FnMut(&str, &str) -> Result<Vec<Identity>, StoreError>,
    ) -> Result<(), StoreError> {
        self.limits.restore(self.plan, self.began.0, spent, holders)
    }

    /// The next request; what is refused uses nothing.
    ///
    /// # Errors
    /// As [`Limits::take`].
    pub(super) fn take(&mut self, row: &UsageEntry, who: &Subject<'_>) -> Result<(), Reject> {
        self.end_until(row.time);
        let ask = Ask {
            class: if row.is_inference { Class::Inference } else { Class::Manage },
            model: row.model.as_deref(),
            // How long the answer might have become is not kept.
            tokens_held: row.usage.prompt,
            now: self.clock(row.time),
            wall: row.time,
            ledger_full: false,
        };
        let Some(charges) = self.limits.take(self.plan, who, &ask)? else { return Ok(()) };
        let ends = row.time.checked_add(row.total).unwrap_or(row.time);
        let (tokens, backend_time) = (row.usage.tokens(), row.backend_time);
        self.running.insert((ends, row.place), Running { charges, tokens, backend_time });
        Ok(())
    }

    fn end_until(&mut self, time: Timestamp) {
        while let Some(first) = self.running.first_entry()
            && first.key().0 <= time
        {
            let ((ends, _), Running { mut charges, tokens, backend_time }) = first.remove_entry();
            charges.settle(tokens, backend_time, self.clock(ends));
        }
    }

    fn clock(&self, time: Timestamp) -> Instant {
        let (began, clock) = self.began;
        let since = Duration::try_from(time.duration_since(began)).unwrap_or_default();
        clock.checked_add(since).unwrap_or(clock)
    }
}

/// Who asked, as far as limits go: the name and the key as the row has them, the rest as it is now.
pub(super) fn subject<'a>(reach: &'a Reach, name: &'a str, key: Option<&'a str>) -> Subject<'a> {
    let now = Subject::of(reach);
    if now.key == key {
        return Subject { name, ..now };
    }
    Subject { name, key, key_id: None, by_key: &NOTHING, ..now }
}

/// Rows from the oldest on, a page at a time; the store gives the newest first.
pub(super) struct Pages<'a> {
    store: &'a Store,
    /// In milliseconds since 1970, as rows have them.
    from: i64,
    until: i64,
    /// Of the time that is looked at next.
    width: i64,
}

static NOTHING: Allowance = Allowance::NONE;
const HOUR: i64 = 3600 * 1000;
const LONGEST: i64 = 24 * HOUR;

impl<'a> Pages<'a> {
    pub(super) fn new(store: &'a Store, period: Period) -> Self {
        let (from, until) = (period.since.as_millisecond(), period.until.as_millisecond());
        Self { store, from, until, width: HOUR }
    }

    fn read(&self, to: i64) -> Result<Vec<UsageEntry>, StoreError> {
        let moment = |at| Timestamp::from_millisecond(at).unwrap_or_default();
        self.store.usage_rows(&RowsQuery {
            since: moment(self.from),
            until: moment(to),
            only: UsageFilter::default(),
            before: None,
            limit: MOST_ROWS,
        })
    }
}

impl Iterator for Pages<'_> {
    type Item = Result<Vec<UsageEntry>, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.from < self.until {
            let to = self.from.saturating_add(self.width).min(self.until);
            let rows = match self.read(to) {
                Ok(rows) => rows,
                Err(error) => {
                    self.from = self.until;
                    return Some(Err(error));
                }
            };
            let is_cut_off = rows.len() >= MOST_ROWS && self.width > 1;
            if is_cut_off {
                self.width /= 2;
                continue;
            }
            self.from = to;
            if rows.len() < MOST_ROWS / 4 {
                self.width = LONGEST.min(2 * self.width);
            }
            if !rows.is_empty() {
                return Some(Ok(rows.into_iter().rev().collect()));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
