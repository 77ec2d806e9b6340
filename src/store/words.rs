//! The names in the ledger's tables, by their numbers.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, Transaction};

use super::usage::{By, UsageFilter};

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
