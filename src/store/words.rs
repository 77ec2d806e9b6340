//! The names in the ledger's tables, by their numbers.

use std::collections::{HashMap, HashSet};

use rusqlite::{OptionalExtension, Rows, Transaction};

use super::usage::{By, UsageFilter};

/// Rows that are looked at, and words that go, in one step.
const STEP: usize = 5000;

/// What numbers stand for, each asked for once.
#[derive(Default)]
pub(super) struct Words {
    known: HashMap<i64, Option<String>>,
}

impl Words {
    /// `None` for 0.
    pub(super) fn find(
        &mut self,
        transaction: &Transaction<'_>,
        number: i64,
    ) -> rusqlite::Result<Option<String>> {
        if let Some(known) = self.known.get(&number) {
            return Ok(known.clone());
        }
        let found: Option<String> = transaction
            .prepare_cached("SELECT word FROM usage_word WHERE id = ?1")?
            .query_row([number], |row| row.get(0))
            .optional()?;
        self.known.insert(number, found.clone());
        Ok(found)
    }
}

/// What is asked for, in numbers.
pub(super) struct Filter {
    only: Vec<(By, i64)>,
}

impl Filter {
    /// `None` where a word is asked for that no row has.
    pub(super) fn of(
        transaction: &Transaction<'_>,
        only: &UsageFilter,
    ) -> rusqlite::Result<Option<Self>> {
        let mut found = Vec::new();
        for by in By::ALL {
            let Some(word) = only.of(by) else { continue };
            let number = transaction
                .query_row("SELECT id FROM usage_word WHERE word = ?1", [word], |row| row.get(0))
                .optional()?;
            let Some(number) = number else { return Ok(None) };
            found.push((by, number));
        }
        Ok(Some(Self { only: found }))
    }

    /// To stand behind a condition with two values.
    pub(super) fn sql(&self, column: impl Fn(By) -> &'static str) -> String {
        let each = self.only.iter().zip(3..);
        each.map(|((by, _), place)| format!(" AND {} = ?{place}", column(*by))).collect()
    }

    pub(super) fn words(&self) -> impl Iterator<Item = i64> {
        self.only.iter().map(|(_, number)| *number)
    }
}

/// Words that nothing was found to refer to. They are looked for beside all others, and go only if no row
/// has come in the meantime, for that may have one of them again.
#[derive(Debug)]
pub(super) struct Unused {
    words: HashSet<i64>,
    requests: i64,
    /// The first place of the rows that are still to be looked at.
    from: i64,
}

impl Unused {
    /// All but those that sums refer to.
    pub(super) fn begin(transaction: &Transaction<'_>) -> rusqlite::Result<Self> {
        let mut words = transaction.prepare("SELECT id FROM usage_word")?;
        let words = words.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let mut unused = Self { words, requests: requests(transaction)?, from: i64::MIN };
        for table in ["usage_day", "usage_hour"] {
            let sql = format!("SELECT name, key, model, operation, backend FROM {table}");
            unused.strike::<5>(transaction.prepare(&sql)?.query([])?)?;
        }
        Ok(unused)
    }

    /// Without those of some more rows; whether there are more to look at.
    pub(super) fn look(&mut self, transaction: &Transaction<'_>) -> rusqlite::Result<bool> {
        if self.words.is_empty() {
            return Ok(false);
        }
        let sql = format!(
            "SELECT max(place) FROM
             (SELECT place FROM usage WHERE place >= ?1 ORDER BY place LIMIT {STEP})"
        );
        let mut last = transaction.prepare_cached(&sql)?;
        let last: Option<i64> = last.query_row([self.from], |row| row.get(0))?;
        let Some(last) = last else { return Ok(false) };
        let mut rows = transaction.prepare_cached(
            "SELECT name, key, model, operation, backend, outcome, options FROM usage
             WHERE place BETWEEN ?1 AND ?2",
        )?;
        self.strike::<7>(rows.query([self.from, last])?)?;
        self.from = last.saturating_add(1);
        Ok(last < i64::MAX)
    }

    fn strike<const COLUMNS: usize>(&mut self, mut rows: Rows<'_>) -> rusqlite::Result<()> {
        while let Some(row) = rows.next()? {
            for column in 0..COLUMNS {
                self.words.remove(&row.get(column)?);
            }
        }
        Ok(())
    }

    /// Some that may go, and no more once there is none.
    pub(super) fn next(&mut self) -> Option<Forget> {
        let words: Vec<_> = self.words.iter().copied().take(STEP).collect();
        self.words.retain(|word| !words.contains(word));
        (!words.is_empty()).then_some(Forget { words, requests: self.requests })
    }
}

/// Words that go together.
#[derive(Debug)]
pub(super) struct Forget {
    words: Vec<i64>,
    requests: i64,
}

impl Forget {
    /// Whether they are gone.
    pub(super) fn run(&self, transaction: &Transaction<'_>) -> rusqlite::Result<bool> {
        if requests(transaction)? != self.requests {
            return Ok(false);
        }
        let mut delete = transaction.prepare_cached("DELETE FROM usage_word WHERE id = ?1")?;
        for word in &self.words {
            delete.execute([word])?;
        }
        Ok(true)
    }
}

/// Each row that comes adds to it.
fn requests(transaction: &Transaction<'_>) -> rusqlite::Result<i64> {
    let sql = "SELECT ifnull(sum(requests), 0) FROM usage_day";
    transaction.query_row(sql, [], |row| row.get(0))
}
