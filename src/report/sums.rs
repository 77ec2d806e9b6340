//! Sums of what was used by chosen columns, and what they cost.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use serde_json::Value;

use super::{Cell, Period, Sheet};
use crate::api;
use crate::config::{ModelName, Prices, Spent};
use crate::store::{By, Store, StoreError, Tally, UsageFilter, UsageQuery, UsageSum};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Question {
    pub by: Vec<By>,
    pub period: Period,
    pub zone: TimeZone,
    pub only: UsageFilter,
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Sums {
    pub sheet: Sheet,
    /// Over all rows, in the same columns.
    pub all: Vec<Cell>,
    /// Models that were used and have no price, where others have one.
    pub unpriced: BTreeSet<String>,
}

impl Sums {
    /// Of all rows, as an object.
    #[must_use]
    pub fn all_to_json(&self) -> Value {
        self.sheet.object(&self.all)
    }
}

/// Behind the columns that are asked for.
const COLUMNS: [&str; 5] =
    ["requests", "prompt_tokens", "completion_tokens", "estimated", "backend_seconds"];
/// Only where there are prices.
const COST: &str = "cost";

/// Columns behind commas, as `user,model`.
///
/// # Errors
/// Names what is no column.
pub fn columns(text: &str) -> Result<Vec<By>, String> {
    let mut columns = Vec::new();
    for name in text.split(',') {
        let by: By = name.trim().parse()?;
        if !columns.contains(&by) {
            columns.push(by);
        }
    }
    Ok(columns)
}

/// A model as rows have it, however it is spelt.
#[must_use]
pub fn model_as_stored(text: &str) -> String {
    ModelName::parse(text).map_or_else(|_| text.to_owned(), |name| name.to_string())
}

/// # Errors
/// Where the store cannot be read, or nobody could read the answer.
pub fn sums(store: &Store, asked: &Question, prices: &Prices) -> Result<Sums, StoreError> {
    let mut by = asked.by.clone();
    if !prices.is_empty() && !by.contains(&By::Operation) {
        // The time of a pull has no price: it keeps no model busy.
        by.push(By::Operation);
    }
    let query = UsageQuery {
        by,
        since: asked.period.since,
        until: asked.period.until,
        zone: asked.zone.clone(),
        only: asked.only.clone(),
    };
    Ok(priced(&query, &asked.by, &store.usage(&query)?, prices))
}

fn priced(query: &UsageQuery, by: &[By], sums: &[UsageSum], prices: &Prices) -> Sums {
    let operation = query.by.iter().position(|by| *by == By::Operation);
    let mut lines: BTreeMap<&[Option<String>], Line> = BTreeMap::new();
    let mut all = Line::default();
    let mut unpriced = BTreeSet::new();
    for sum in sums {
        let line = lines.entry(sum.columns.get(..by.len()).unwrap_or_default()).or_default();
        line.tally.add(&sum.tally);
        all.tally.add(&sum.tally);
        let operation = operation.and_then(|at| sum.columns.get(at)?.as_deref());
        for (model, tally) in sum.models.iter().filter(|_| !prices.is_empty()) {
            let Some(model) = model.as_deref().filter(|_| operation.is_some_and(api::is_inference))
            else {
                continue;
            };
            match prices.of(model) {
                Some(price) => {
                    let cost = price.cost(&spent(tally));
                    line.cost = Some(line.cost.unwrap_or_default() + cost);
                    all.cost = Some(all.cost.unwrap_or_default() + cost);
                }
                None => drop(unpriced.insert(model.to_owned())),
            }
        }
    }
    let cells = |line: &Line| line.cells(!prices.is_empty());
    let row = |(columns, line): (&&[Option<String>], &Line)| {
        columns.iter().map(|text| Cell::text(text.as_deref())).chain(cells(line)).collect()
    };
    let names = by.iter().map(|by| by.as_str()).chain(COLUMNS);
    let sheet = Sheet {
        columns: names.chain((!prices.is_empty()).then_some(COST)).collect(),
        rows: lines.iter().map(row).collect(),
    };
    let blanks = by.iter().enumerate().map(|(at, _)| match at {
        0 => Cell::Text("all".to_owned()),
        _ => Cell::Nothing,
    });
    Sums { sheet, all: blanks.chain(cells(&all)).collect(), unpriced }
}

#[derive(Debug, Default)]
struct Line {
    tally: Tally,
    /// `None` where no model in it has a price.
    cost: Option<f64>,
}

impl Line {
    fn cells(&self, with_cost: bool) -> impl Iterator<Item = Cell> + use<> {
        let Tally { requests, estimated, prompt, completion, backend_time, .. } = self.tally;
        let counts = [
            Cell::Count(requests),
            Cell::Count(prompt),
            Cell::Count(completion),
            Cell::Count(estimated),
            Cell::Number(backend_time.as_secs_f64()),
        ];
        let cost = self.cost.map_or(Cell::Nothing, Cell::Money);
        counts.into_iter().chain(with_cost.then_some(cost))
    }
}

fn spent(tally: &Tally) -> Spent {
    let Tally { prompt, cached, completion, backend_time, .. } = *tally;
    Spent { prompt, cached, completion, backend_time }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tally(requests: u64, prompt: u64) -> Tally {
        let backend_time = Duration::from_millis(1500);
        Tally { requests, prompt, completion: 2_000_000, backend_time, ..Tally::default() }
    }

    fn sum(columns: &[&str], model: &str, tally: Tally) -> UsageSum {
        UsageSum {
            columns: columns.iter().map(|it| Some((*it).to_owned())).collect(),
            tally,
            models: vec![(Some(model.to_owned()), tally)],
        }
    }

    fn query(by: &[By]) -> UsageQuery {
        UsageQuery {
            by: by.to_vec(),
            since: jiff::Timestamp::UNIX_EPOCH,
            until: jiff::Timestamp::MAX,
            zone: TimeZone::UTC,
            only: UsageFilter::default(),
        }
    }

    fn prices(text: &str) -> Prices {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.toml");
        std::fs::write(&file, format!("[prices]\n{text}")).unwrap();
        let given = crate::config::Given { file: Some(file), ..Default::default() };
        crate::config::load_without_credentials(&given).unwrap().config.prices
    }

    #[test]
    fn without_prices_there_is_no_money_column() {
        let lines = [sum(&["anna"], "gemma3:latest", tally(2, 10))];
        let told = priced(&query(&[By::Name]), &[By::Name], &lines, &Prices::default());
        let columns = "user,requests,prompt_tokens,completion_tokens,estimated,backend_seconds";
        assert_eq!(told.sheet.to_csv(), format!("{columns}\nanna,2,10,2000000,0,1.500\n"));
        assert!(told.unpriced.is_empty());
    }

    #[test]
    fn each_model_has_its_price_and_a_pull_has_none() {
        let lines = [
            sum(&["anna", "chat"], "gemma3:latest", tally(2, 1_000_000)),
            sum(&["anna", "generate"], "qwen3:8b", tally(1, 0)),
            sum(&["bert", "pull"], "gemma3:latest", tally(1, 0)),
            sum(&["carl", "chat"], "other", tally(1, 0)),
        ];
        let prices = prices(
            "\"gemma3*\" = { prompt = 0.1, completion = 0.4, backend_hour = 2400 }\n\
             \"qwen3*\" = { completion = 1 }\n",
        );
        let told = priced(&query(&[By::Name, By::Operation]), &[By::Name], &lines, &prices);
        let costs: Vec<_> =
            told.sheet.rows.iter().map(|row| row.last().unwrap().to_json()).collect();
        // 0.1 + 0.8 for tokens and 1.0 for a second and a half; then 2.0.
        assert_eq!(serde_json::json!(costs), serde_json::json!([3.9, null, null]));
        assert_eq!(told.all.last().unwrap().to_json(), serde_json::json!(3.9));
        assert_eq!(told.unpriced.into_iter().collect::<Vec<_>>(), ["other"]);
        assert_eq!(told.sheet.rows[0][1], Cell::Count(3), "two operations are one line");
    }

    #[test]
    fn columns_are_parted_by_commas_and_stand_there_once() {
        assert_eq!(columns("user, day,user"), Ok(vec![By::Name, By::Day]));
        for (bad, word) in [("", "none of"), ("user,", "none of"), ("users", "none of")] {
            assert!(columns(bad).unwrap_err().contains(word), "{bad}");
        }
        assert_eq!(model_as_stored("Gemma3"), "gemma3:latest");
        assert_eq!(model_as_stored("no name"), "no name");
    }
}
