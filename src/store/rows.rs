//! The rows of the ledger, the newest first, and which of them had to wait for a model to be loaded.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{OptionalExtension, Row, Transaction, params, params_from_iter};

use super::usage::{
    By, LoadedBy, NUMBER_BITS, Reload, RowsQuery, UsageEntry, UsageFilter, place_at,
};
use super::words::{Filter, Words};
use super::{Store, StoreError, Usage, files, fold, journal};

/// Most rows of one page.
const MOST: usize = 1000;
/// What was asked of a model longer ago says nothing of how it was loaded.
const LOOK_BACK: i64 = 6 * 3600 * 1000;
const COLUMNS: &str = "place, id, client, name, key, model, operation, backend, inference, status,
     outcome, options, prompt, completion, cached, reasoning, estimated, load, generation, bytes_in,
     bytes_out, queue, first_byte, first_token, total, backend_time, prefill, total_told";

impl Store {
    /// One page of rows; the next one begins before the last one's place.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn usage_rows(&self, query: &RowsQuery) -> Result<Vec<UsageEntry>, StoreError> {
        let journal = self.unfolded()?;
        let limit = query.limit.min(MOST);
        let (mut rows, marks) = self.read(|transaction| {
            let rows = page(transaction, query, "TRUE", limit)?;
            Ok((rows, fold::marks(transaction)?))
        })?;
        let newest_first = |rows: &mut Vec<UsageEntry>| {
            rows.sort_unstable_by_key(|row| std::cmp::Reverse(row.place));
            rows.truncate(limit);
        };
        let read = journal.each(&marks, |entry| {
            if query.lets(&entry) {
                rows.push(entry);
            }
            if rows.len() > 2 * MOST {
                newest_first(&mut rows);
            }
        });
        read.map_err(|error| files::failed(self.folder(), &error))?;
        newest_first(&mut rows);
        Ok(rows)
    }

    /// Requests that had to wait a second or more for a model to be loaded, a page of them as of rows;
    /// without those of the last seconds.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn reloads(&self, query: &RowsQuery) -> Result<Vec<Reload>, StoreError> {
        self.read(|transaction| {
            let loads = page(transaction, query, "load >= 1000000", query.limit.min(MOST))?;
            let mut reloads = Vec::with_capacity(loads.len());
            for entry in loads {
                let before = before(transaction, &entry)?;
                reloads.push(Reload { entry, before });
            }
            Ok(reloads)
        })
    }

    /// What is in the journal; see [`journal::Unfolded`] for what has to come after it.
    pub(super) fn unfolded(&self) -> Result<journal::Unfolded, StoreError> {
        journal::Unfolded::open(self.folder()).map_err(|error| files::failed(self.folder(), &error))
    }
}

impl RowsQuery {
    fn lets(&self, entry: &UsageEntry) -> bool {
        (self.since..self.until).contains(&entry.time)
            && self.before.is_none_or(|before| entry.place < before)
            && self.only.lets(entry, entry.model.as_deref())
    }
}

impl UsageFilter {
    pub(super) fn lets(&self, entry: &UsageEntry, model: Option<&str>) -> bool {
        let is = |asked: &Option<String>, found: Option<&str>| {
            asked.as_deref().is_none_or(|asked| found == Some(asked))
        };
        is(&self.name, Some(&entry.name))
            && is(&self.key, entry.key.as_deref())
            && is(&self.model, model)
            && is(&self.backend, Some(&entry.backend))
            && is(&self.operation, Some(&entry.operation))
    }
}

fn page(
    transaction: &Transaction<'_>,
    query: &RowsQuery,
    which: &str,
    limit: usize,
) -> rusqlite::Result<Vec<UsageEntry>> {
    let Some(filter) = Filter::of(transaction, &query.only)? else { return Ok(Vec::new()) };
    let column = |by| match by {
        By::Name => "name",
        By::Key => "key",
        By::Model => "model",
        By::Backend => "backend",
        By::Operation => "operation",
        By::Day | By::Hour => "place",
    };
    let sql = format!(
        "SELECT {COLUMNS} FROM usage WHERE place >= ?1 AND place < ?2{} AND {which}
         ORDER BY place DESC LIMIT {limit}",
        filter.sql(column)
    );
    let until = place_at(query.until.as_millisecond());
    let before = query.before.map_or(i64::MAX, |place| i64::try_from(place).unwrap_or(i64::MAX));
    let range = [place_at(query.since.as_millisecond()), until.min(before)];
    let values = range.into_iter().chain(filter.words()).map(Value::Integer);
    let mut statement = transaction.prepare(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let (mut page, mut words) = (Vec::new(), Words::default());
    while let Some(row) = rows.next()? {
        page.push(entry(transaction, &mut words, row)?);
    }
    Ok(page)
}

/// Who had the model before, and how.
fn before(transaction: &Transaction<'_>, entry: &UsageEntry) -> rusqlite::Result<Option<LoadedBy>> {
    let Some(model) = &entry.model else { return Ok(None) };
    let place = i64::try_from(entry.place).unwrap_or(i64::MAX);
    let from = place_at((place >> NUMBER_BITS) - LOOK_BACK);
    let found = transaction
        .prepare_cached(
            "SELECT place, name, options FROM usage
             WHERE place < ?1 AND place >= ?2 AND inference AND status < 400
             AND model = (SELECT id FROM usage_word WHERE word = ?3)
             AND backend = (SELECT id FROM usage_word WHERE word = ?4)
             ORDER BY place DESC LIMIT 1",
        )?
        .query_row(params![place, from, model, entry.backend], |row| {
            Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    let Some((place, name, options)) = found else { return Ok(None) };
    let mut words = Words::default();
    Ok(Some(LoadedBy {
        name: words.find(transaction, name)?.unwrap_or_default(),
        time: time(place),
        runner_options: words.find(transaction, options)?,
    }))
}

fn entry(
    transaction: &Transaction<'_>,
    words: &mut Words,
    row: &Row<'_>,
) -> rusqlite::Result<UsageEntry> {
    let count = |column: usize| row.get::<_, i64>(column).map(|n| u64::try_from(n).unwrap_or(0));
    let some = |column: usize| {
        let number = row.get::<_, Option<i64>>(column);
        number.map(|number| number.and_then(|number| u64::try_from(number).ok()))
    };
    let micros = |column: usize| count(column).map(Duration::from_micros);
    let some_micros = |column: usize| some(column).map(|it| it.map(Duration::from_micros));
    let mut word = |column: usize| words.find(transaction, row.get(column)?);
    let client: Option<String> = row.get(2)?;
    Ok(UsageEntry {
        place: count(0)?,
        id: row.get(1)?,
        time: time(row.get(0)?),
        client: client.and_then(|client| client.parse().ok()),
        name: word(3)?.unwrap_or_default(),
        key: word(4)?,
        model: word(5)?,
        operation: word(6)?.unwrap_or_default(),
        backend: word(7)?.unwrap_or_default(),
        is_inference: row.get(8)?,
        status: row.get(9)?,
        outcome: word(10)?.unwrap_or_default(),
        runner_options: word(11)?,
        usage: Usage {
            prompt: count(12)?,
            completion: count(13)?,
            cached: some(14)?,
            reasoning: some(15)?,
            estimated: row.get(16)?,
            load: some_micros(17)?,
            prefill: some_micros(26)?,
            generation: some_micros(18)?,
            total: some_micros(27)?,
        },
        bytes_in: count(19)?,
        bytes_out: count(20)?,
        queue: micros(21)?,
        first_byte: some_micros(22)?,
        first_token: some_micros(23)?,
        total: micros(24)?,
        backend_time: micros(25)?,
    })
}

fn time(place: i64) -> Timestamp {
    Timestamp::from_millisecond(place >> NUMBER_BITS).unwrap_or_default()
}
