//! `portcullis allow`: lets the machine in that was told a code.

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use super::desk::Desk;
use super::say;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The code that the machine was told, as ABCD-EFGH; good for an hour, and once
    code: String,
    /// What the machine is to be called
    name: String,
    #[command(flatten)]
    desk: Desk,
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let Options { code, name, desk } = options;
    let path = format!("/api/v1/knocks/{code}/allow");
    let said = desk.ask("POST", &path, Some(&json!({"name": name})))?;
    if said.status != 201 {
        bail!("{}", said.error());
    }
    let id = said.body.get("id").and_then(Value::as_str).unwrap_or_default();
    say(&format!("{name} may come in from now on, by its own signing key, which is called {id}"));
    Ok(())
}
