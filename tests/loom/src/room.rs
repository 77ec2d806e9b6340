//! The limits' own room, opened for these tests.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::account::Moment;
use super::book::Book;
use super::course::Course;
use super::leash::{Leash, Leashes};
use super::period::{Almanac, Period};
use super::plan::{Bearing, Scope};
use super::Charges;
use crate::config::{Allowance, Measure, Models};
use crate::reject::Reject;
use crate::store::KeyId;

/// All counts, at one moment.
pub struct Room {
    book: Book,
    moment: Moment,
}

impl Room {
    pub fn new() -> Self {
        let almanac = Almanac::of(Timestamp::UNIX_EPOCH, &TimeZone::UTC);
        let moment = Moment { now: Instant::now(), almanac, is_work: true, spends: true };
        Self { book: Book::default(), moment }
    }

    /// A request that counts for all of these, and holds so many tokens.
    pub fn take(&self, whose: &[&str], allowance: &Allowance, held: u64) -> Result<Charges, Reject> {
        let bearing = |name| Bearing { scope: Scope(name), allowance, models: &Models::All };
        let bearing = whose.iter().copied().map(bearing).collect();
        Charges::take(&self.book, bearing, held, &self.moment)
    }

    pub fn settle(&self, charges: &mut Charges, tokens: u64) {
        charges.settle(tokens, Duration::ZERO, self.moment.now);
    }

    pub fn used(&self, whose: &str, measure: Measure) -> u64 {
        let Moment { now, almanac, .. } = &self.moment;
        let account = self.book.account(self.book.id(&Scope(whose)), *now, almanac);
        account.open().used(measure)
    }

    /// So many tokens are known of today from before.
    pub fn recall(&self, whose: &str, tokens: u64) {
        let mut day = Period::default();
        day.raise(self.moment.almanac.day, tokens, Duration::ZERO);
        let known = (self.book.id(&Scope(whose)), (day, Period::default()));
        self.book.carry(HashMap::from([known]));
    }
}

/// One managed key, and what runs by it.
#[derive(Clone, Default)]
pub struct Key(Leashes);

/// A request that came with it.
pub struct Led {
    course: Arc<Course>,
    _leash: Leash,
}

impl Key {
    const ID: KeyId = KeyId(1);

    pub fn lead(&self) -> Led {
        let course = Arc::new(Course::new([b'0'; 16], "a".into(), "chat"));
        Led { _leash: self.0.take(Self::ID, &course), course }
    }

    pub fn take_away(&self) -> usize {
        self.0.end(Self::ID)
    }
}

impl Led {
    pub fn has_to_end(&self) -> bool {
        self.course.ended(&Context::from_waker(Waker::noop())).is_some()
    }
}
