//! A caller's limits, and what is used of them, for the caller and for who looks after the gate.

use std::time::Instant;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::account::Moment;
use super::period::Almanac;
use super::plan::{Bearing, Plan, Subject};
use super::{Ask, Limits, bearing, model_of};
use crate::config::{Limit, Measure, Models};

/// Objects with the same names: the numbers, and what is used and what is left of each.
#[derive(Debug, Default)]
pub struct Shown {
    pub limits: Map<String, Value>,
    pub used: Map<String, Value>,
    pub left: Map<String, Value>,
}

/// One limit that bears on a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bears {
    pub measure: Measure,
    pub number: u64,
    pub used: u64,
    /// Who shares the count.
    pub whose: String,
    /// The models that it is about, if not all.
    pub models: Option<String>,
}

impl Limits {
    /// Every limit that [`Limits::take`] would ask, and what is used of it.
    #[must_use]
    pub fn bearing(&self, plan: &Plan, who: &Subject<'_>, ask: &Ask<'_>) -> Vec<Bears> {
        let almanac = Almanac::of(ask.wall, plan.zone());
        let moment = Moment { now: ask.now, almanac, is_work: true, spends: true };
        let model = model_of(ask);
        let mut all = Vec::new();
        for it in bearing(plan, who, ask, model.as_ref()) {
            for (measure, number) in it.allowance.iter() {
                let used = self.number(&it, measure, &moment).map_or(0, |(_, used)| used);
                let models = match it.models {
                    Models::All => None,
                    Models::Only(_) => Some(it.models.to_string()),
                };
                all.push(Bears { measure, number, used, whose: it.scope.whose(), models });
            }
        }
        all
    }

    /// Of each kind of limit the one of which the least is left; those about models apart.
    #[must_use]
    pub fn spent(&self, plan: &Plan, who: &Subject<'_>, now: Instant, wall: Timestamp) -> Shown {
        let almanac = Almanac::of(wall, plan.zone());
        let moment = Moment { now, almanac, is_work: true, spends: true };
        let mut shown = Shown::default();
        if plan.is_free(who.own()) {
            return shown;
        }
        let all = plan.bearing(who, None);
        for measure in Measure::ALL {
            let numbers = all.iter().filter_map(|it| self.number(it, measure, &moment));
            let tightest = numbers.min_by_key(|(limit, used)| limit.saturating_sub(*used));
            if let Some((limit, used)) = tightest {
                shown.limits.insert(measure.as_str().to_owned(), json!(limit));
                shown.used.insert(measure.as_str().to_owned(), json!(used));
                let left = limit.saturating_sub(used);
                shown.left.insert(measure.as_str().to_owned(), json!(left));
            }
        }
        let of_models: Vec<_> = plan.of_models(who).collect();
        if !of_models.is_empty() {
            let each: Vec<_> = of_models
                .iter()
                .map(|(limit, counts)| self.of_models(limit, counts, &moment))
                .collect();
            let column = |of: fn(&Shown) -> &Map<String, Value>| {
                json!(each.iter().map(of).collect::<Vec<_>>())
            };
            shown.limits.insert("models".to_owned(), column(|it| &it.limits));
            shown.used.insert("models".to_owned(), column(|it| &it.used));
            shown.left.insert("models".to_owned(), column(|it| &it.left));
        }
        shown
    }

    /// One that is about models: of its counts the one of which the least is left.
    fn of_models(&self, limit: &Limit, counts: &[Bearing<'_>], moment: &Moment) -> Shown {
        let mut head = Map::new();
        head.insert("models".to_owned(), json!(limit.models.to_string()));
        head.insert("per".to_owned(), json!(limit.per.as_str()));
        let mut shown = Shown { limits: head.clone(), used: head.clone(), left: head };
        for (measure, number) in limit.allowance.iter() {
            shown.limits.insert(measure.as_str().to_owned(), json!(number));
            let each = counts.iter().filter_map(|it| self.number(it, measure, moment));
            if let Some(most) = each.map(|(_, used)| used).max() {
                shown.used.insert(measure.as_str().to_owned(), json!(most));
                let left = number.saturating_sub(most);
                shown.left.insert(measure.as_str().to_owned(), json!(left));
            }
        }
        shown
    }

    /// The limit, and what is used of it.
    fn number(&self, it: &Bearing<'_>, measure: Measure, moment: &Moment) -> Option<(u64, u64)> {
        let limit = it.allowance.get(measure)?;
        let id = self.book.id(&it.scope);
        let account = self.book.account(id, moment.now, &moment.almanac);
        let mut counts = account.open();
        counts.come(it.allowance, moment);
        Some((limit, counts.used(measure)))
    }
}
