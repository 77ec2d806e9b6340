//! The rows of the ledger themselves, and the loads of models among them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Cell, Period, Sheet, grouped, printable};
use crate::config::{Prices, Spent};
use crate::store::{
    LoadedBy, Reload, RowsQuery, Store, StoreError, Usage, UsageEntry, UsageFilter,
};

/// Rows of one page, at most.
pub const MOST_ROWS: usize = 1000;

/// The columns of a row.
pub const ROW: [&str; 29] = [
    "time",
    "id",
    "client",
    "user",
    "key",
    "model",
    "operation",
    "backend",
    "status",
    "outcome",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "estimated",
    "queue_ms",
    "first_byte_ms",
    "first_token_ms",
    "total_ms",
    "load_ms",
    "prefill_ms",
    "generation_ms",
    "backend_total_ms",
    "prompt_tokens_per_second",
    "tokens_per_second",
    "backend_seconds",
    "bytes_in",
    "bytes_out",
    "options",
];
/// The columns of a load.
pub const RELOAD: [&str; 10] = [
    "time",
    "model",
    "backend",
    "load_seconds",
    "user",
    "options",
    "cause",
    "before_time",
    "before_user",
    "before_options",
];

/// A page of the newest rows, and the place behind its last one.
#[derive(Debug)]
pub struct Page {
    pub sheet: Sheet,
    /// The next page begins before it; `None` at the end.
    pub next: Option<u64>,
}

/// Why a model was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Nobody had asked for it of late.
    First,
    /// The request before asked for it with other options.
    Options,
    /// It was to be the same, but was not in memory any more.
    Unloaded,
}

#[must_use]
pub fn rows_query(period: Period, only: UsageFilter) -> RowsQuery {
    let Period { since, until } = period;
    RowsQuery { since, until, only, before: None, limit: MOST_ROWS }
}

/// One page of rows, the newest first.
///
/// # Errors
/// Where the store cannot be read.
pub fn rows(store: &Store, query: &RowsQuery, prices: &Prices) -> Result<Page, StoreError> {
    let entries = store.usage_rows(query)?;
    let next = entries.last().filter(|_| entries.len() >= query.limit).map(|last| last.place);
    Ok(Page { sheet: row_sheet(&entries, prices), next })
}

fn row_sheet(entries: &[UsageEntry], prices: &Prices) -> Sheet {
    let cost = (!prices.is_empty()).then_some("cost");
    Sheet {
        columns: ROW.into_iter().chain(cost).collect(),
        rows: entries.iter().map(|entry| row(entry, prices)).collect(),
    }
}

fn row(entry: &UsageEntry, prices: &Prices) -> Vec<Cell> {
    let usage = &entry.usage;
    let count = |number: Option<u64>| number.map_or(Cell::Nothing, Cell::Count);
    let mut cells = vec![
        Cell::Text(format!("{:.3}", entry.time)),
        Cell::Text(entry.id.clone()),
        entry.client.map_or(Cell::Nothing, |client| Cell::Text(client.to_string())),
        Cell::Text(entry.name.clone()),
        Cell::text(entry.key.as_deref()),
        Cell::text(entry.model.as_deref()),
        Cell::Text(entry.operation.clone()),
        Cell::Text(entry.backend.clone()),
        Cell::Count(entry.status.into()),
        Cell::Text(entry.outcome.clone()),
        Cell::Count(usage.prompt),
        Cell::Count(usage.completion),
        count(usage.cached),
        count(usage.reasoning),
        Cell::Flag(usage.estimated),
        millis(Some(entry.queue)),
        millis(entry.first_byte),
        millis(entry.first_token),
        millis(Some(entry.total)),
        millis(usage.load),
        millis(usage.prefill),
        millis(usage.generation),
        millis(usage.total),
        prompt_tokens_per_second(usage).map_or(Cell::Nothing, Cell::Number),
        tokens_per_second(entry).map_or(Cell::Nothing, Cell::Number),
        Cell::Number(entry.backend_time.as_secs_f64()),
        Cell::Count(entry.bytes_in),
        Cell::Count(entry.bytes_out),
        Cell::text(entry.runner_options.as_deref()),
    ];
    if !prices.is_empty() {
        let model = entry.model.as_deref().filter(|_| entry.is_inference);
        let price = model.and_then(|model| prices.of(model));
        let spent = Spent {
            prompt: usage.prompt,
            cached: usage.cached.unwrap_or_default(),
            completion: usage.completion,
            backend_time: entry.backend_time,
        };
        cells.push(price.map_or(Cell::Nothing, |price| Cell::Money(price.cost(&spent))));
    }
    cells
}

fn millis(time: Option<Duration>) -> Cell {
    time.map_or(Cell::Nothing, |time| Cell::Number(time.as_secs_f64() * 1000.0))
}

/// Of the tokens that were read: without those that were worked out before, where that is told.
fn prompt_tokens_per_second(usage: &Usage) -> Option<f64> {
    rate(usage.prompt.saturating_sub(usage.cached.unwrap_or_default()), usage.prefill)
}

/// As the backend says, or else from the first token on.
fn tokens_per_second(entry: &UsageEntry) -> Option<f64> {
    let streamed = || entry.total.checked_sub(entry.first_token?);
    rate(entry.usage.completion, entry.usage.generation.or_else(streamed))
}

#[expect(clippy::cast_precision_loss, reason = "nobody counts 2^53 tokens")]
fn rate(tokens: u64, time: Option<Duration>) -> Option<f64> {
    let rate = tokens as f64 / time?.as_secs_f64();
    (tokens > 0 && rate.is_finite()).then_some(rate)
}

/// A page of loads, the newest first.
///
/// # Errors
/// Where the store cannot be read.
pub fn reloads(store: &Store, query: &RowsQuery) -> Result<(Page, Vec<Reload>), StoreError> {
    let reloads = store.reloads(query)?;
    let next = reloads.last().filter(|_| reloads.len() >= query.limit).map(|it| it.entry.place);
    let sheet = Sheet { columns: RELOAD.to_vec(), rows: reloads.iter().map(reload).collect() };
    Ok((Page { sheet, next }, reloads))
}

fn reload(Reload { entry, before }: &Reload) -> Vec<Cell> {
    let options = |options: &Option<String>| Cell::text(options.as_deref());
    let load = entry.usage.load.unwrap_or_default();
    let [time, user, then] = match before {
        None => [Cell::Nothing, Cell::Nothing, Cell::Nothing],
        Some(LoadedBy { name, time, runner_options }) => {
            [Cell::Text(format!("{time:.0}")), Cell::Text(name.clone()), options(runner_options)]
        }
    };
    vec![
        Cell::Text(format!("{:.0}", entry.time)),
        Cell::text(entry.model.as_deref()),
        Cell::Text(entry.backend.clone()),
        Cell::Number(load.as_secs_f64()),
        Cell::Text(entry.name.clone()),
        options(&entry.runner_options),
        Cell::Text(Cause::of(entry, before.as_ref()).as_str().to_owned()),
        time,
        user,
        then,
    ]
}

impl Cause {
    fn of(entry: &UsageEntry, before: Option<&LoadedBy>) -> Self {
        match before {
            None => Self::First,
            Some(before) if before.runner_options != entry.runner_options => Self::Options,
            Some(_) => Self::Unloaded,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Options => "options",
            Self::Unloaded => "unloaded",
        }
    }
}

/// How much was loaded, and whose options did it, in a sentence.
#[must_use]
pub fn reloads_told(reloads: &[Reload]) -> String {
    let loads: Duration = reloads.iter().filter_map(|it| it.entry.usage.load).sum();
    let mut culprits: BTreeMap<&str, u64> = BTreeMap::new();
    for Reload { entry, before } in reloads {
        if Cause::of(entry, before.as_ref()) == Cause::Options {
            *culprits.entry(&entry.name).or_default() += 1;
        }
    }
    let by_options: u64 = culprits.values().sum();
    let number = grouped(reloads.len() as u64);
    let mut told = format!("{number} loads, {:.0} s in all", loads.as_secs_f64());
    if by_options > 0 {
        let mut culprits: Vec<_> = culprits.into_iter().collect();
        culprits.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
        let names: Vec<_> = culprits
            .iter()
            .take(5)
            .map(|(name, times)| format!("{times} by {}", printable(name)))
            .collect();
        told += &format!("; {by_options} because of options: {}", names.join(", "));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, options: Option<&str>) -> UsageEntry {
        UsageEntry {
            place: 7,
            id: "5c1be70300000b2a".to_owned(),
            time: "2026-11-24T10:12:44.1204Z".parse().unwrap(),
            client: Some([10, 0, 0, 7].into()),
            name: name.to_owned(),
            key: None,
            model: Some("gemma3:latest".to_owned()),
            operation: "chat".to_owned(),
            is_inference: true,
            backend: "ollama".to_owned(),
            status: 200,
            outcome: "done".to_owned(),
            usage: Usage {
                prompt: 1_000_000,
                completion: 50,
                cached: Some(10),
                load: Some(Duration::from_secs(12)),
                prefill: Some(Duration::from_millis(500)),
                generation: Some(Duration::from_secs(2)),
                total: Some(Duration::from_millis(14_510)),
                ..Usage::default()
            },
            runner_options: options.map(str::to_owned),
            bytes_in: 3,
            bytes_out: 4,
            queue: Duration::from_micros(1500),
            first_byte: Some(Duration::from_millis(20)),
            first_token: None,
            total: Duration::from_secs(3),
            backend_time: Duration::from_millis(2980),
        }
    }

    fn loaded(name: &str, options: Option<&str>) -> Option<LoadedBy> {
        let time = "2026-11-24T10:12:00Z".parse().unwrap();
        Some(LoadedBy { name: name.to_owned(), time, runner_options: options.map(str::to_owned) })
    }

    #[test]
    fn a_row_tells_everything_in_the_order_of_its_columns() {
        let sheet = row_sheet(&[entry("anna", Some("num_ctx=8192"))], &Prices::default());
        let csv = sheet.to_csv();
        let row = csv.lines().nth(1).unwrap();
        let expected = "2026-11-24T10:12:44.120Z,5c1be70300000b2a,10.0.0.7,anna,,gemma3:latest,chat,\
                        ollama,200,done,1000000,50,10,,false,1.500,20.000,,3000.000,12000.000,\
                        500.000,2000.000,14510.000,1999980.000,25.000,2.980,3,4,num_ctx=8192";
        assert_eq!(row, expected);
        assert_eq!(sheet.columns.len(), sheet.rows[0].len());
    }

    #[test]
    fn speed_is_the_backends_word_or_from_the_first_token_on() {
        let mut entry = entry("anna", None);
        assert_eq!(tokens_per_second(&entry), Some(25.0));
        entry.usage.generation = None;
        assert_eq!(tokens_per_second(&entry), None, "nobody knows when it began");
        entry.first_token = Some(Duration::from_secs(1));
        assert_eq!(tokens_per_second(&entry), Some(25.0));
        entry.first_token = Some(entry.total);
        assert_eq!(tokens_per_second(&entry), None, "in no time");
        entry.usage.completion = 0;
        assert_eq!(tokens_per_second(&entry), None);
    }

    #[test]
    fn whose_options_caused_a_load_is_told() {
        let (small, large) = (Some("num_ctx=4096"), Some("num_ctx=65536"));
        let reloads = [
            Reload { entry: entry("anna", small), before: None },
            Reload { entry: entry("bert", large), before: loaded("anna", small) },
            Reload { entry: entry("anna", small), before: loaded("bert", large) },
            Reload { entry: entry("bert", large), before: loaded("anna", small) },
            Reload { entry: entry("bert", large), before: loaded("bert", large) },
            Reload { entry: entry("carl", None), before: loaded("bert", large) },
        ];
        let causes: Vec<_> =
            reloads.iter().map(|it| Cause::of(&it.entry, it.before.as_ref()).as_str()).collect();
        assert_eq!(causes, ["first", "options", "options", "options", "unloaded", "options"]);
        let told = reloads_told(&reloads);
        let expected =
            "6 loads, 72 s in all; 4 because of options: 2 by bert, 1 by anna, 1 by carl";
        assert_eq!(told, expected);
        let row = reload(&reloads[1]);
        assert_eq!(row.len(), RELOAD.len());
        assert_eq!(row[8], Cell::Text("anna".to_owned()));
        assert_eq!(reloads_told(&[]), "0 loads, 0 s in all");
    }
}
