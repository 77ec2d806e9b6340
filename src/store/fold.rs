//! From the journal into the tables: rows, their sums, and how far it came, all in one transaction.

use std::collections::HashMap;
use std::time::Duration;

use rusqlite::{CachedStatement, OptionalExtension, Transaction, params};

use super::Fault;
use super::calendar::Calendar;
use super::usage::{Tally, UsageEntry, place_at};

/// Sums are held here, far above what anything uses and far below where the store would refuse them.
const MOST: &str = "9007199254740992";
/// Rows that begin in the same millisecond with the same twenty bits are told apart by going on.
const NEIGHBOURS: u64 = 1000;
/// Rows that go in one step, so that others get their turn.
const STEP: i64 = 5000;
const DAY: i64 = 24 * 3600;
/// Limits and short ranges are summed from hours, so that these are there for two months.
const HOURS_KEPT: i64 = 62 * DAY;
const DAYS_KEPT: i64 = 3653 * DAY;

/// Records of one file of the journal, as they go into the store together.
pub(super) struct Group {
    pub(super) segment: String,
    /// Where the first begins.
    pub(super) from: u64,
    /// Each with where it ends.
    pub(super) rows: Vec<(u64, UsageEntry)>,
}

/// How far each file of the journal is in the tables.
pub(super) fn marks(transaction: &Transaction<'_>) -> rusqlite::Result<HashMap<String, u64>> {
    let mut statement = transaction.prepare("SELECT segment, folded FROM usage_journal")?;
    let rows = statement
        .query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.try_into().unwrap_or(0))))?;
    rows.collect()
}

pub(super) fn mark(transaction: &Transaction<'_>, segment: &str) -> rusqlite::Result<u64> {
    let folded: Option<i64> = transaction
        .prepare_cached("SELECT folded FROM usage_journal WHERE segment = ?1")?
        .query_row([segment], |row| row.get(0))
        .optional()?;
    Ok(folded.and_then(|folded| folded.try_into().ok()).unwrap_or(0))
}

/// Of a file that is gone.
pub(super) fn forget(transaction: &Transaction<'_>, segment: &str) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM usage_journal WHERE segment = ?1", [segment]).map(drop)
}

/// Where the file is folded up to now. What was there already, because somebody else was quicker or
/// because it had to be written to the journal twice, counts once.
pub(super) fn fold(
    transaction: &Transaction<'_>,
    group: &Group,
    calendar: &Calendar,
) -> Result<u64, Fault> {
    let folded = mark(transaction, &group.segment)?;
    if folded != group.from {
        return Ok(folded);
    }
    let end = group.rows.last().map_or(folded, |(ends, _)| *ends);
    // One that comes behind all others costs the table the least, and rows come as they ended.
    let mut rows: Vec<_> = group.rows.iter().map(|(_, entry)| entry).collect();
    rows.sort_by_key(|entry| entry.place);
    let mut words = Words { transaction, known: HashMap::new() };
    let mut table = Table::of(transaction)?;
    let (mut hours, mut hour_of, mut day_of) = (HashMap::new(), HashMap::new(), HashMap::new());
    for entry in rows {
        let columns = words.of(entry)?;
        if table.insert(entry, &columns)? {
            let quarter = entry.time.as_second() / 900 * 900;
            let hour = *hour_of.entry(quarter).or_insert_with(|| calendar.hour(quarter));
            hours.entry((hour, columns.sums)).or_insert_with(Tally::default).add(&entry.tally());
        }
    }
    let mut days: HashMap<_, Tally> = HashMap::new();
    for ((hour, sums), tally) in &hours {
        let day = *day_of.entry(*hour).or_insert_with(|| calendar.day(*hour));
        days.entry((day, *sums)).or_default().add(tally);
    }
    add(transaction, "usage_hour", &hours)?;
    add(transaction, "usage_day", &days)?;
    let end_mark = i64::try_from(end).unwrap_or(i64::MAX);
    transaction
        .prepare_cached(
            "INSERT INTO usage_journal (segment, folded) VALUES (?1, ?2)
             ON CONFLICT (segment) DO UPDATE SET folded = excluded.folded",
        )?
        .execute(params![group.segment, end_mark])?;
    Ok(end)
}

/// The second by which the age of rows is told: now, but no more than a day after the last one. A clock
/// that is years ahead must not take away everything, also where rows came by it.
pub(super) fn age_by(transaction: &Transaction<'_>, now: i64) -> rusqlite::Result<i64> {
    let last: Option<i64> = transaction.query_row(
        "SELECT ifnull((SELECT looked FROM usage_age), (SELECT max(start) FROM usage_hour))",
        [],
        |row| row.get(0),
    )?;
    let now = last.map_or(now, |last| now.min(last.saturating_add(DAY)));
    transaction.execute(
        "INSERT INTO usage_age (one, looked) VALUES (1, ?1)
         ON CONFLICT (one) DO UPDATE SET looked = excluded.looked",
        [now],
    )?;
    Ok(now)
}

/// Takes away some of what is older than it is kept; whether there is more.
pub(super) fn prune(transaction: &Transaction<'_>, now: i64, keep: i64) -> rusqlite::Result<bool> {
    let cut = |keep: i64| now.saturating_sub(keep);
    let rows = transaction.execute(
        "DELETE FROM usage WHERE place IN
         (SELECT place FROM usage WHERE place < ?1 ORDER BY place LIMIT ?2)",
        [place_at(cut(keep).saturating_mul(1000)), STEP],
    )?;
    // Of whole days, so that what is left of them is all of it.
    let hours = transaction.execute(
        "DELETE FROM usage_hour WHERE start < min((SELECT max(start) FROM usage_day WHERE start <= ?1),
         (SELECT min(start) FROM usage_hour) + ?2)",
        [cut(keep.max(HOURS_KEPT)), DAY],
    )?;
    let days = transaction.execute(
        "DELETE FROM usage_day WHERE start < min(?1, (SELECT min(start) FROM usage_day) + ?2)",
        [cut(keep.max(DAYS_KEPT)), 30 * DAY],
    )?;
    Ok(rows + hours + days > 0)
}

/// The numbers of name, key, model, operation and backend.
type Dimensions = [i64; 5];

struct Columns {
    row: Dimensions,
    /// As they are summed.
    sums: Dimensions,
    outcome: i64,
    options: i64,
}

struct Words<'a> {
    transaction: &'a Transaction<'a>,
    known: HashMap<String, i64>,
}

impl Words<'_> {
    fn of(&mut self, entry: &UsageEntry) -> rusqlite::Result<Columns> {
        let row = [
            self.number(Some(&entry.name))?,
            self.number(entry.key.as_deref())?,
            self.number(entry.model.as_deref())?,
            self.number(Some(&entry.operation))?,
            self.number(Some(&entry.backend))?,
        ];
        let [name, key, model, operation, backend] = row;
        let model = if entry.summed_model().is_some() { model } else { 0 };
        Ok(Columns {
            row,
            sums: [name, key, model, operation, backend],
            outcome: self.number(Some(&entry.outcome))?,
            options: self.number(entry.runner_options.as_deref())?,
        })
    }

    fn number(&mut self, word: Option<&str>) -> rusqlite::Result<i64> {
        let Some(word) = word else { return Ok(0) };
        if let Some(number) = self.known.get(word) {
            return Ok(*number);
        }
        let find = "SELECT id FROM usage_word WHERE word = ?1";
        let found = self
            .transaction
            .prepare_cached(find)?
            .query_row([word], |row| row.get(0))
            .optional()?;
        let number = match found {
            Some(number) => number,
            None => self
                .transaction
                .prepare_cached("INSERT INTO usage_word (word) VALUES (?1) RETURNING id")?
                .query_row([word], |row| row.get(0))?,
        };
        self.known.insert(word.to_owned(), number);
        Ok(number)
    }
}

/// The rows' own table.
struct Table<'a> {
    insert: CachedStatement<'a>,
    find: CachedStatement<'a>,
}

impl<'a> Table<'a> {
    fn of(transaction: &'a Transaction<'_>) -> rusqlite::Result<Self> {
        let insert = transaction.prepare_cached(
            "INSERT INTO usage (place, id, client, name, key, model, operation, backend, inference,
             status, outcome, options, prompt, completion, cached, reasoning, estimated, load,
             generation, bytes_in, bytes_out, queue, first_byte, first_token, total, backend_time,
             prefill, total_told)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
             ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28) ON CONFLICT DO NOTHING",
        )?;
        let find = transaction.prepare_cached("SELECT id FROM usage WHERE place = ?1")?;
        Ok(Self { insert, find })
    }

    /// Whether it was not there yet.
    fn insert(&mut self, entry: &UsageEntry, columns: &Columns) -> rusqlite::Result<bool> {
        for place in entry.place..entry.place.saturating_add(NEIGHBOURS) {
            if put(&mut self.insert, place, entry, columns)? {
                return Ok(true);
            }
            let there: String = self.find.query_row([integer(place)], |row| row.get(0))?;
            if there == entry.id {
                return Ok(false);
            }
        }
        Ok(false)
    }
}

fn put(
    insert: &mut CachedStatement<'_>,
    place: u64,
    entry: &UsageEntry,
    columns: &Columns,
) -> rusqlite::Result<bool> {
    let [name, key, model, operation, backend] = columns.row;
    let usage = &entry.usage;
    let rows = insert.execute(params![
        integer(place),
        entry.id,
        entry.client.map(|client| client.to_string()),
        name,
        key,
        model,
        operation,
        backend,
        entry.is_inference,
        entry.status,
        columns.outcome,
        columns.options,
        integer(usage.prompt),
        integer(usage.completion),
        usage.cached.map(integer),
        usage.reasoning.map(integer),
        usage.estimated,
        usage.load.map(micros),
        usage.generation.map(micros),
        integer(entry.bytes_in),
        integer(entry.bytes_out),
        micros(entry.queue),
        entry.first_byte.map(micros),
        entry.first_token.map(micros),
        micros(entry.total),
        micros(entry.backend_time),
        usage.prefill.map(micros),
        usage.total.map(micros),
    ])?;
    Ok(rows > 0)
}

/// The sums of a group, on top of those that are there.
fn add(
    transaction: &Transaction<'_>,
    table: &str,
    sums: &HashMap<(i64, Dimensions), Tally>,
) -> rusqlite::Result<()> {
    let mut sql = format!(
        "INSERT INTO {table} (start, name, key, model, operation, backend, requests, estimated,
         prompt, completion, cached, reasoning, backend_time)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
         ON CONFLICT (start, name, key, model, operation, backend) DO UPDATE SET "
    );
    let columns =
        ["requests", "estimated", "prompt", "completion", "cached", "reasoning", "backend_time"];
    let sum = |column| format!("{column} = min({column} + excluded.{column}, {MOST})");
    sql.push_str(&columns.map(sum).join(", "));
    let mut upsert = transaction.prepare_cached(&sql)?;
    for ((start, [name, key, model, operation, backend]), sum) in sums {
        upsert.execute(params![
            start,
            name,
            key,
            model,
            operation,
            backend,
            integer(sum.requests),
            integer(sum.estimated),
            integer(sum.prompt),
            integer(sum.completion),
            integer(sum.cached),
            integer(sum.reasoning),
            micros(sum.backend_time),
        ])?;
    }
    Ok(())
}

fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}
