//! Sums over the rows of the ledger, from those by hours and by days where these will do.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rusqlite::types::Value;
use rusqlite::{Row, Transaction, params_from_iter};

use super::calendar::Calendar;
use super::usage::{
    By, LAST_MOMENT, Spent, Tally, UsageEntry, UsageFilter, UsageQuery, UsageSum, place_at,
};
use super::words::{Filter, Words};
use super::{Store, StoreError, files, fold};

/// A range up to this long is summed from its hours, a longer one from its whole days.
const BY_HOURS: i64 = 62 * 24 * HOUR;
const HOURS: &str = "usage_hour";
const DAYS: &str = "usage_day";
const HOUR: i64 = 3600;
/// On which the clock is set back.
const LONGEST_DAY: i64 = 25 * HOUR;
/// Half a day after its beginning it is the same day in all zones that people move between.
const NOON: i64 = 12 * HOUR;
/// Most lines of one answer.
const MOST: usize = 1_000_000;
/// Columns of all three tables, and where they stand in an answer.
const COLUMNS: [(By, &str); 5] =
    [(By::Name, "2"), (By::Key, "3"), (By::Model, "4"), (By::Operation, "5"), (By::Backend, "6")];

impl Store {
    /// Sums, in the order of their columns.
    ///
    /// # Errors
    /// Where it cannot be read; [`StoreError::Refused`] for more lines than anybody reads.
    pub fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageSum>, StoreError> {
        self.sum(query, Grain::Best)
    }

    /// What was used since then by each account, key, model and operation, to restore limits: ask with
    /// the beginning of a day and of a month.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn spent_since(&self, since: Timestamp) -> Result<Vec<Spent>, StoreError> {
        let query = UsageQuery {
            by: vec![By::Name, By::Key, By::Model, By::Operation],
            since,
            until: Timestamp::MAX,
            zone: TimeZone::UTC,
            only: UsageFilter::default(),
        };
        // Days of another zone, from before it was changed, would not do.
        Ok(self.sum(&query, Grain::Hours)?.into_iter().map(Spent::from).collect())
    }

    fn sum(&self, query: &UsageQuery, grain: Grain) -> Result<Vec<UsageSum>, StoreError> {
        let journal = self.unfolded()?;
        let mut sums = Sums::new(query);
        let marks = self.read(|transaction| {
            if let Some(filter) = Filter::of(transaction, &query.only)? {
                for piece in pieces(transaction, query, grain)? {
                    sums.read(transaction, &piece, &filter)?;
                }
            }
            fold::marks(transaction)
        })?;
        let read = journal.each(&marks, |entry| sums.add_entry(&entry));
        read.map_err(|error| files::failed(self.folder(), &error))?;
        sums.told()
    }
}

/// Of a sum by name, key, model and operation.
impl From<UsageSum> for Spent {
    fn from(sum: UsageSum) -> Self {
        let mut columns = sum.columns.into_iter();
        let mut next = || columns.next().flatten();
        Self {
            name: next().unwrap_or_default(),
            key: next(),
            model: next(),
            operation: next().unwrap_or_default(),
            requests: sum.tally.requests,
            tokens: sum.tally.tokens(),
            backend_time: sum.tally.backend_time,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grain {
    Best,
    Hours,
}

/// One table's share of a range.
#[derive(Debug, Clone, Copy)]
struct Piece {
    table: Table,
    from: i64,
    to: i64,
}

#[derive(Debug, Clone, Copy)]
enum Table {
    /// From place to place.
    Rows,
    /// From second to second.
    Hours,
    Days,
}

impl Table {
    fn select(self) -> &'static str {
        match self {
            Self::Rows => {
                "count(*), sum(estimated), sum(prompt), sum(completion), sum(ifnull(cached, 0)),
                 sum(ifnull(reasoning, 0)), sum(backend_time)
                 FROM usage WHERE place >= ?1 AND place < ?2"
            }
            Self::Hours => {
                "sum(requests), sum(estimated), sum(prompt), sum(completion), sum(cached),
                 sum(reasoning), sum(backend_time) FROM usage_hour WHERE start >= ?1 AND start < ?2"
            }
            Self::Days => {
                "sum(requests), sum(estimated), sum(prompt), sum(completion), sum(cached),
                 sum(reasoning), sum(backend_time) FROM usage_day WHERE start >= ?1 AND start < ?2"
            }
        }
    }

    fn column(self, by: By) -> &'static str {
        match (by, self) {
            (By::Model, Self::Rows) => "iif(status = 404, 0, model)",
            (By::Model, Self::Hours | Self::Days) => "model",
            (By::Name, _) => "name",
            (By::Key, _) => "key",
            (By::Operation, _) => "operation",
            (By::Backend, _) => "backend",
            (By::Day | By::Hour, _) => self.second(),
        }
    }

    /// A second of the hour or the day.
    fn second(self) -> &'static str {
        match self {
            // By quarters: hours of all zones are made of them.
            Self::Rows => "((place >> 20) / 900000) * 900",
            Self::Hours | Self::Days => "start",
        }
    }
}

/// Rows up to the first hour that begins inside, hours up to the first day, and back again at the end.
/// Where rows are kept no longer, the hour counts whole, and where hours are not, the day.
fn pieces(
    transaction: &Transaction<'_>,
    query: &UsageQuery,
    grain: Grain,
) -> rusqlite::Result<Vec<Piece>> {
    let kept = Kept { transaction };
    let since = query.since.as_millisecond().clamp(0, LAST_MOMENT);
    let until = query.until.as_millisecond().clamp(0, LAST_MOMENT);
    if since >= until {
        return Ok(Vec::new());
    }
    let (from, to) = (place_at(since), place_at(until));
    let (since, before_until, until) = ((since + 999) / 1000, until / 1000, (until + 999) / 1000);
    let mut first_hour = match kept.has_row_before(from)? {
        true => kept.next(HOURS, since)?,
        false => kept.with(HOURS, since, HOUR)?,
    };
    let has_last_hour = kept.has_hour_before(until)?;
    let last_hour = match has_last_hour && kept.has_row_from(to)? {
        true => kept.last(HOURS, before_until)?,
        false => until,
    };
    let by_hours = grain == Grain::Hours || query.by.contains(&By::Hour);
    let (mut first_day, mut last_day) = (last_hour, last_hour);
    if !by_hours && !kept.has_hour_before(since)? && kept.has_lost_hours()? {
        first_day = kept.with(DAYS, since, LONGEST_DAY)?.min(last_hour);
        first_hour = first_day;
    } else if !by_hours && last_hour - first_hour > BY_HOURS {
        first_day = kept.next(DAYS, first_hour)?.min(last_hour);
    } else if first_hour > last_hour {
        return Ok(vec![Piece { table: Table::Rows, from, to }]);
    }
    if first_day < last_hour && has_last_hour {
        last_day = kept.last(DAYS, last_hour)?.max(first_day);
    }
    let hour_place = |hour: i64| place_at(hour.saturating_mul(1000));
    Ok(vec![
        Piece { table: Table::Rows, from, to: hour_place(first_hour).min(to) },
        Piece { table: Table::Hours, from: first_hour, to: first_day },
        Piece { table: Table::Days, from: first_day, to: last_day },
        Piece { table: Table::Hours, from: last_day, to: last_hour },
        Piece { table: Table::Rows, from: hour_place(last_hour).max(from), to },
    ])
}

/// What is in the tables. Hours and days are looked for where they begin: the zone may have been another
/// one then.
struct Kept<'a> {
    transaction: &'a Transaction<'a>,
}

impl Kept<'_> {
    fn ask(&self, sql: &str, at: i64) -> rusqlite::Result<Option<i64>> {
        self.transaction.prepare_cached(sql)?.query_row([at], |row| row.get(0))
    }

    fn has_row_before(&self, place: i64) -> rusqlite::Result<bool> {
        Ok(self.ask("SELECT min(place) FROM usage WHERE place <= ?1", place)?.is_some())
    }

    fn has_row_from(&self, place: i64) -> rusqlite::Result<bool> {
        Ok(self.ask("SELECT max(place) FROM usage WHERE place >= ?1", place)?.is_some())
    }

    fn has_hour_before(&self, second: i64) -> rusqlite::Result<bool> {
        Ok(self.ask("SELECT min(start) FROM usage_hour WHERE start <= ?1", second)?.is_some())
    }

    /// The first that begins then or later.
    fn next(&self, table: &str, second: i64) -> rusqlite::Result<i64> {
        let sql = format!("SELECT min(start) FROM {table} WHERE start >= ?1");
        Ok(self.ask(&sql, second)?.unwrap_or(LAST_MOMENT))
    }

    /// The one within which that is, as each is so long at the most, or else the first one later.
    fn with(&self, table: &str, second: i64, length: i64) -> rusqlite::Result<i64> {
        let last = self.last(table, second)?;
        if second - last < length { Ok(last) } else { self.next(table, second) }
    }

    /// Whether the hours of the oldest days are not kept any more.
    fn has_lost_hours(&self) -> rusqlite::Result<bool> {
        let oldest = self.ask("SELECT min(start) FROM usage_hour WHERE start >= ?1", 0)?;
        let day = oldest.map_or(Ok(LAST_MOMENT), |oldest| self.last(DAYS, oldest))?;
        Ok(self.ask("SELECT min(start) FROM usage_day WHERE start < ?1", day)?.is_some())
    }

    /// The last that begins then or earlier, or else the first one later.
    fn last(&self, table: &str, second: i64) -> rusqlite::Result<i64> {
        let sql = format!("SELECT max(start) FROM {table} WHERE start <= ?1");
        match self.ask(&sql, second)? {
            Some(last) => Ok(last),
            None => self.next(table, second),
        }
    }
}

type Columns = Vec<Option<String>>;

/// By their names. A line has few, and there may be a million lines.
#[derive(Default)]
struct Models(Vec<(Option<String>, Tally)>);

impl Models {
    fn add(&mut self, model: Option<String>, tally: &Tally) {
        let at = match self.0.binary_search_by(|(known, _)| known.cmp(&model)) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (model, Tally::default()));
                at
            }
        };
        if let Some((_, sum)) = self.0.get_mut(at) {
            sum.add(tally);
        }
    }
}

/// The answer as it grows.
struct Sums<'a> {
    query: &'a UsageQuery,
    calendar: Calendar,
    words: Words,
    lines: BTreeMap<Columns, Models>,
    /// The line under way: most rows are of the same one as the row before.
    open: Open,
}

/// A line in numbers: its second and the words that are asked for.
#[derive(Default)]
struct Open {
    numbers: [i64; 6],
    models: Vec<(i64, Tally)>,
}

impl<'a> Sums<'a> {
    fn new(query: &'a UsageQuery) -> Self {
        let calendar = Calendar::new(query.zone.clone());
        let (words, lines, open) = (Words::default(), BTreeMap::new(), Open::default());
        Self { query, calendar, words, lines, open }
    }

    fn read(
        &mut self,
        transaction: &Transaction<'_>,
        piece: &Piece,
        filter: &Filter,
    ) -> rusqlite::Result<()> {
        if piece.from >= piece.to {
            return Ok(());
        }
        let table = piece.table;
        let by_time = self.query.by.iter().any(|by| matches!(by, By::Day | By::Hour));
        let mut sql = format!("SELECT {}", if by_time { table.second() } else { "0" });
        let mut groups = if by_time { vec!["1"] } else { Vec::new() };
        // By the table's own order nothing has to be sorted.
        let in_order = by_time && self.query.by.contains(&By::Name);
        for (by, number) in COLUMNS {
            // Prices are by model.
            let is_asked = by == By::Model
                || self.query.by.contains(&by)
                || in_order && by == By::Key && !matches!(table, Table::Rows);
            sql.push_str(", ");
            sql.push_str(if is_asked { table.column(by) } else { "0" });
            // A column that is always the same makes sorting slow all the same.
            groups.extend(is_asked.then_some(number));
        }
        sql.push_str(", ");
        sql.push_str(table.select());
        sql.push_str(&filter.sql(|by| table.column(by)));
        sql.push_str(" GROUP BY ");
        sql.push_str(&groups.join(", "));
        let mut statement = transaction.prepare(&sql)?;
        let values = [piece.from, piece.to].into_iter().chain(filter.words());
        let mut rows = statement.query(params_from_iter(values.map(Value::Integer)))?;
        while let Some(row) = rows.next()? {
            self.add(transaction, table, row)?;
            if self.lines.len() > MOST {
                break;
            }
        }
        self.close(transaction, table)
    }

    fn add(
        &mut self,
        transaction: &Transaction<'_>,
        table: Table,
        row: &Row<'_>,
    ) -> rusqlite::Result<()> {
        let mut numbers = [0; 6];
        for by in &self.query.by {
            let column = number_of(*by);
            if let Some(number) = numbers.get_mut(column) {
                *number = row.get(column)?;
            }
        }
        if numbers != self.open.numbers {
            self.close(transaction, table)?;
            self.open.numbers = numbers;
        }
        self.open.models.push((row.get(number_of(By::Model))?, tally(row)?));
        Ok(())
    }

    /// The line under way is among the others, in words.
    fn close(&mut self, transaction: &Transaction<'_>, table: Table) -> rusqlite::Result<()> {
        let Open { numbers, models } = &mut self.open;
        if models.is_empty() {
            return Ok(());
        }
        let number = |by: By| numbers.get(number_of(by)).copied().unwrap_or_default();
        let second = match table {
            Table::Rows | Table::Hours => number(By::Hour),
            Table::Days => number(By::Day).saturating_add(NOON),
        };
        let mut columns = Vec::with_capacity(self.query.by.len());
        for by in &self.query.by {
            columns.push(match by {
                By::Day => Some(self.calendar.day_name(second)),
                By::Hour => Some(self.calendar.hour_name(second)),
                By::Name | By::Key | By::Model | By::Operation | By::Backend => {
                    self.words.find(transaction, number(*by))?
                }
            });
        }
        let line = self.lines.entry(columns).or_default();
        for (model, tally) in models.drain(..) {
            line.add(self.words.find(transaction, model)?, &tally);
        }
        Ok(())
    }

    fn add_entry(&mut self, entry: &UsageEntry) {
        let time = entry.time;
        let is_asked = self.query.only.lets(entry, entry.summed_model())
            && (self.query.since..self.query.until).contains(&time);
        if !is_asked || self.lines.len() > MOST {
            return;
        }
        let column = |by: &By| match by {
            By::Name => Some(entry.name.clone()),
            By::Key => entry.key.clone(),
            By::Model => entry.summed_model().map(str::to_owned),
            By::Backend => Some(entry.backend.clone()),
            By::Operation => Some(entry.operation.clone()),
            By::Day => Some(self.calendar.day_name(time.as_second())),
            By::Hour => Some(self.calendar.hour_name(time.as_second())),
        };
        let columns = self.query.by.iter().map(column).collect();
        let model = entry.summed_model().map(str::to_owned);
        self.lines.entry(columns).or_default().add(model, &entry.tally());
    }

    fn told(self) -> Result<Vec<UsageSum>, StoreError> {
        if self.lines.len() > MOST {
            let says = format!("more than {MOST} lines; ask for a shorter time or fewer columns");
            return Err(StoreError::Refused(says));
        }
        let sum = |(columns, Models(models)): (Columns, Models)| {
            let mut whole = Tally::default();
            models.iter().for_each(|(_, tally)| whole.add(tally));
            UsageSum { columns, tally: whole, models }
        };
        Ok(self.lines.into_iter().map(sum).collect())
    }
}

/// Where it stands in an answer.
fn number_of(by: By) -> usize {
    match by {
        By::Day | By::Hour => 0,
        By::Name => 1,
        By::Key => 2,
        By::Model => 3,
        By::Operation => 4,
        By::Backend => 5,
    }
}

fn tally(row: &Row<'_>) -> rusqlite::Result<Tally> {
    let count = |column: usize| row.get::<_, i64>(column).map(|n| u64::try_from(n).unwrap_or(0));
    Ok(Tally {
        requests: count(6)?,
        estimated: count(7)?,
        prompt: count(8)?,
        completion: count(9)?,
        cached: count(10)?,
        reasoning: count(11)?,
        backend_time: Duration::from_micros(count(12)?),
    })
}

#[cfg(test)]
mod tests;
