//! `portcullis store`: a copy of what is kept, and whether it is whole.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Subcommand};

use super::key::Place;
use super::say;
use crate::store::Store;

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Write a whole copy into a file, also while the gate serves
    Backup {
        /// The file, which must not be there yet
        file: PathBuf,
    },
    /// Read everything and tell whether it is whole
    Check,
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let store = Store::open_existing(&options.place.folder()?)?;
    match &options.action {
        Action::Backup { file } => {
            store.backup(file)?;
            say(&format!(
                "copied to {}; to go back to it, stop the gate and put it in the place of \
                 portcullis.db, with portcullis.db-wal and portcullis.db-shm taken away",
                file.display()
            ));
        }
        Action::Check => {
            let faults = store.check()?;
            if !faults.is_empty() {
                bail!("the store is damaged:\n{}\nrestore a backup", faults.join("\n"));
            }
            say("the store is whole");
        }
    }
    Ok(())
}
