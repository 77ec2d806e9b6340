//! What the ledger knows of the day and the month that a gate is started in.

use std::collections::HashMap;

use jiff::Timestamp;
use jiff::civil::Date;

use super::Limits;
use super::book::AccountId;
use super::period::{Almanac, Period, Span};
use super::plan::{Plan, Subject};
use crate::api::{Class, ENDPOINTS};
use crate::config::{Allowance, ModelName};
use crate::store::Spent;

impl Limits {
    /// Takes over what inference used since this day and since this month began, where the plan's time
    /// zone says. What is counted already is never made less, so that it may be done again, for a
    /// plan with new limits.
    pub fn restore(&self, plan: &Plan, wall: Timestamp, day: &[Spent], month: &[Spent]) {
        let almanac = Almanac::of(wall, plan.zone());
        let mut sums = HashMap::new();
        for spent in day.iter().filter(|it| is_inference(&it.operation)) {
            self.add(plan, spent, (Span::Day, almanac.day), &mut sums);
        }
        for spent in month.iter().filter(|it| is_inference(&it.operation)) {
            self.add(plan, spent, (Span::Month, almanac.month), &mut sums);
        }
        self.book.carry(sums);
    }

    fn add(
        &self,
        plan: &Plan,
        spent: &Spent,
        (span, begins): (Span, Date),
        sums: &mut HashMap<AccountId, (Period, Period)>,
    ) {
        let account = spent.name.split('/').next().unwrap_or_default();
        let who = Subject {
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
        let model = spent.model.as_deref().and_then(|model| ModelName::parse(model).ok());
        for bearing in plan.bearing(&who, model.as_ref()) {
            let (day, month) = sums.entry(self.book.id(&bearing.scope)).or_default();
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

fn is_inference(operation: &str) -> bool {
    let row = ENDPOINTS.iter().find(|row| row.operation == operation);
    row.is_some_and(|row| row.class == Class::Inference)
}
