//! The schema, version by version, only ever forward.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::{StoreError, because};

/// Each takes the schema from the number before to its own, which is its place here, from 1.
pub(super) const MIGRATIONS: [&str; 6] = [
    include_str!("migrations/0001.sql"),
    include_str!("migrations/0002.sql"),
    include_str!("migrations/0003.sql"),
    include_str!("migrations/0004.sql"),
    include_str!("migrations/0005.sql"),
    include_str!("migrations/0006.sql"),
];
/// `pcul`: tells our file from another program's.
pub(super) const APPLICATION: u32 = 0x7063_756c;

/// Brings the schema up to this version's, whole or not at all. Of two who do it at once one waits.
pub(super) fn migrate(connection: &mut Connection, file: &Path) -> Result<(), StoreError> {
    let known = known();
    if found(connection, file)? == known {
        return Ok(());
    }
    let forward = |connection: &mut Connection| -> rusqlite::Result<()> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Somebody else may have been quicker.
        let (found, _) = version(&transaction)?;
        let found = usize::try_from(found).unwrap_or(usize::MAX);
        for migration in MIGRATIONS.iter().skip(found) {
            transaction.execute_batch(migration)?;
        }
        transaction.pragma_update(None, "user_version", known)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.commit()
    };
    forward(connection).map_err(|error| because(file, &error))
}

/// The schema's version, if this program can go on from it; 0 is an empty file.
pub(super) fn found(connection: &Connection, file: &Path) -> Result<u32, StoreError> {
    let (found, whose) = version(connection).map_err(|error| because(file, &error))?;
    if whose != APPLICATION && !(whose == 0 && found == 0) {
        return Err(StoreError::NotOurs { path: file.to_owned() });
    }
    let known = known();
    if found > known {
        return Err(StoreError::Newer { path: file.to_owned(), found, known });
    }
    Ok(found)
}

pub(super) fn is_current(connection: &Connection, file: &Path) -> Result<bool, StoreError> {
    Ok(found(connection, file)? == known())
}

fn known() -> u32 {
    u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX)
}

fn version(connection: &Connection) -> rusqlite::Result<(u32, u32)> {
    let of = |name| connection.pragma_query_value(None, name, |row| row.get(0));
    Ok((of("user_version")?, of("application_id")?))
}
