//! What one request took from every account that it counts for; given back or settled when it ends.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::account::{Account, Moment, Obstacle, Open, Taken, wait};
use super::book::{AccountId, Book};
use super::plan::Bearing;
use crate::config::{Measure, Models};
use crate::reject::{Again, Left, Limited, Reject};

/// Held by the request's ticket.
#[derive(Debug)]
pub struct Charges {
    taken: Vec<(Arc<Account>, Taken)>,
    left: Left,
    /// Whether what it comes to is counted, as the ledger does.
    spends: bool,
    /// When a backend had it, and the tokens of its prompt.
    begun: OnceLock<(Instant, u64)>,
    is_settled: bool,
}

impl Charges {
    /// All or nothing: every account is held for the moment of the decision, always in the same
    /// order.
    pub(super) fn take(
        book: &Book,
        bearing: Vec<Bearing<'_>>,
        held: u64,
        moment: &Moment,
    ) -> Result<Self, Reject> {
        let mut bearing: Vec<(AccountId, Bearing<'_>)> =
            bearing.into_iter().map(|it| (book.id(&it.scope), it)).collect();
        bearing.sort_unstable_by_key(|(id, _)| *id);
        // Nobody waits for what is their own.
        bearing.dedup_by_key(|(id, _)| *id);
        let account = |(id, _): &(AccountId, _)| book.account(*id, moment.now, &moment.almanac);
        let accounts: Vec<_> = bearing.iter().map(account).collect();
        let mut open: Vec<Open<'_>> = accounts.iter().map(|it| it.open()).collect();
        let mut reached: Option<(&Bearing<'_>, Obstacle)> = None;
        for (counts, (_, it)) in open.iter_mut().zip(&bearing) {
            counts.come(it.allowance, moment);
            let longest = reached.as_ref().map(|(_, obstacle)| wait(&obstacle.again));
            let obstacle = counts.obstacle(it.allowance, moment);
            let worse = |it: &Obstacle| longest.is_none_or(|longest| wait(&it.again) > longest);
            if let Some(obstacle) = obstacle.filter(worse) {
                reached = Some((it, obstacle));
            }
        }
        let left = |open: &[Open<'_>]| {
            let each = open.iter().zip(&bearing);
            let each = each.map(|(counts, (_, it))| counts.left(it.allowance, &moment.almanac));
            each.fold(Left::default(), Left::and)
        };
        if let Some((it, obstacle)) = reached {
            return Err(refusal(it, obstacle, left(&open)));
        }
        let take = |(counts, (_, it)): (&mut Open<'_>, &(_, Bearing<'_>))| {
            counts.take(it.allowance, held, moment)
        };
        let taken: Vec<_> = open.iter_mut().zip(&bearing).map(take).collect();
        let left = left(&open);
        drop(open);
        let taken = accounts.into_iter().zip(taken).collect();
        Ok(Self { taken, left, spends: moment.spends, begun: OnceLock::new(), is_settled: false })
    }

    pub(super) fn begin(&self, now: Instant, prompt: u64) {
        // Sent again over another connection, it began with the first.
        let _ = self.begun.set((now, prompt));
    }

    /// No answer came of it, which is not the caller's fault.
    pub(super) fn fail(&mut self, now: Instant) {
        let began = self.begun.get().map_or(now, |(began, _)| *began);
        self.settle(0, now.saturating_duration_since(began), now);
    }

    /// The true numbers in the place of what was held, once; the request runs no longer. Whoever has the
    /// last byte may ask again at once, so this comes before that.
    pub fn settle(&mut self, tokens: u64, backend_time: Duration, now: Instant) {
        if !std::mem::replace(&mut self.is_settled, true) {
            let (tokens, backend_time) =
                if self.spends { (tokens, backend_time) } else { (0, Duration::ZERO) };
            for (account, taken) in &self.taken {
                account.open().settle(taken, tokens, backend_time, now);
            }
        }
    }

    /// After this request was let through.
    #[must_use]
    pub fn left(&self) -> &Left {
        &self.left
    }
}

impl Drop for Charges {
    fn drop(&mut self) {
        if !self.is_settled {
            // Whoever leaves before an answer has had a backend at work on the prompt.
            let now = Instant::now();
            let (began, prompt) = self.begun.get().copied().unwrap_or((now, 0));
            self.settle(prompt, now.saturating_duration_since(began), now);
        }
    }
}

fn refusal(Bearing { scope, models, .. }: &Bearing<'_>, obstacle: Obstacle, left: Left) -> Reject {
    let Obstacle { measure, number, again } = obstacle;
    let models = match models {
        Models::All => None,
        Models::Only(_) => Some(models.to_string()),
    };
    let is_used_up = matches!(again, Again::At(..));
    let limited = Box::new(Limited { measure, number, whose: scope.whose(), models, again, left });
    if measure == Measure::Concurrent {
        Reject::TooManyConcurrent(limited)
    } else if is_used_up {
        Reject::QuotaExhausted(limited)
    } else {
        Reject::RateLimited(limited)
    }
}
