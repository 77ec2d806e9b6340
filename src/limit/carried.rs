//! What the ledger knows of the day and the month that a gate is started in.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use jiff::civil::Date;

use super::Limits;
use super::book::AccountId;
use super::period::{Almanac, Period, Span};
use super::plan::{Plan, Subject};
use crate::api::{Class, ENDPOINTS};
use crate::auth::Identity;
use crate::config::{Allowance, ModelName};
use crate::store::{KeyId, Spent};

impl Limits {
    /// Takes over what inference used since this day and since this month began, where the plan's time
    /// zone says. What is counted already is never made less, so that it may be done again, for a
    /// plan with new limits. `holders` knows which keys of an account have a name: rows have neither
    /// their roles nor their ids.
    ///
    /// # Errors
    /// Those of `holders`.
    pub fn restore<E>(
        &self,
        plan: &Plan,
        wall: Timestamp,
        (day, month): (&[Spent], &[Spent]),
        mut holders: impl FnMut(&str, &str) -> Result<Vec<Identity>, E>,
    ) -> Result<(), E> {
        let almanac = Almanac::of(wall, plan.zone());
        let mut sums = HashMap::new();
        for (all, span) in [(day, (Span::Day, almanac.day)), (month, (Span::Month, almanac.month))]
        {
            for spent in all.iter().filter(|it| is_inference(&it.operation)) {
                let key = spent.key.as_deref().filter(|_| plan.minds_the_key());
                let held = key.map(|key| holders(account_of(&spent.name), key)).transpose()?;
                self.add(plan, (spent, &held.unwrap_or_default()), span, &mut sums);
            }
        }
        self.book.carry(sums);
        Ok(())
    }

    /// To every count that this may have been about: where no key is known for it, to all.
    fn add(
        &self,
        plan: &Plan,
        (spent, held): (&Spent, &[Identity]),
        (span, begins): (Span, Date),
        sums: &mut HashMap<AccountId, (Period, Period)>,
    ) {
        let account = account_of(&spent.name);
        let somebody = Subject {
            name: &spent.name,
            account,
            role: plan.role_of(account),
            key: spent.key.as_deref(),
            key_id: None,
            is_recalled: true,
            // Whichever these are.
            by_rule: &Allowance::NONE,
            by_key: &Allowance::NONE,
        };
        let known = held.iter().map(|held| Subject {
            role: held.role(),
            key_id: held.grant().and_then(|grant| grant.key_id.as_ref()).map(KeyId::as_str),
            is_recalled: false,
            ..somebody
        });
        let known: Vec<_> = if held.is_empty() { vec![somebody] } else { known.collect() };
        let model = spent.model.as_deref().and_then(|model| ModelName::parse(model).ok());
        let bearing = known.iter().flat_map(|who| plan.bearing(who, model.as_ref()));
        let counts: HashSet<_> = bearing.map(|it| self.book.id(&it.scope)).collect();
        for count in counts {
            let (day, month) = sums.entry(count).or_default();
            let period = match span {
                Span::Day => day,
                Span::Month => month,
            };
            period.come(begins, begins);
            period.settle(begins, 0, spent.tokens, spent.backend_time);
        }
    }

    /// Since when [`Limits::restore`] wants to know: the beginning of the day, and of the month.
    #[must_use]
    pub fn wants_since(plan: &Plan, wall: Timestamp) -> (Timestamp, Timestamp) {
        let almanac = Almanac::of(wall, plan.zone());
        let start =
            |date: Date| date.to_zoned(plan.zone().clone()).map_or(wall, |start| start.timestamp());
        (start(almanac.day), start(almanac.month))
    }
}

/// `NAME` of `NAME/USER`.
fn account_of(name: &str) -> &str {
    name.split('/').next().unwrap_or_default()
}

fn is_inference(operation: &str) -> bool {
    let row = ENDPOINTS.iter().find(|row| row.operation == operation);
    row.is_some_and(|row| row.class == Class::Inference)
}
