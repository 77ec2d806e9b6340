//! `portcullis backend`: the model servers of a running gate, and maintenance of one.

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::Value;

use super::check::counted;
use super::desk::Desk;
use super::key::Format;
use super::say;
use crate::report::{Cell, Sheet};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the model servers
    List {
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        #[command(flatten)]
        desk: Desk,
    },
    /// Give one no new requests, for maintenance; what runs there goes on
    Drain(Which),
    /// Give it new requests again
    Undrain(Which),
}

#[derive(Debug, Args)]
struct Which {
    /// Its name
    name: String,
    #[command(flatten)]
    desk: Desk,
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    match &options.action {
        Action::List { format, desk } => list(desk, *format),
        Action::Drain(which) => {
            let busy = set(which, "drain")?;
            let rest = match busy {
                0 => "nothing runs there".to_owned(),
                busy => {
                    format!("{} there", counted(busy, "request still runs", "requests still run"))
                }
            };
            let name = &which.name;
            say(&format!(
                "{name} gets no new requests, and {rest}; `portcullis backend undrain {name}` ends that"
            ));
            Ok(())
        }
        Action::Undrain(which) => {
            set(which, "undrain")?;
            say(&format!("{} gets new requests", which.name));
            Ok(())
        }
    }
}

fn list(desk: &Desk, format: Format) -> anyhow::Result<()> {
    let said = desk.ask("GET", "/api/v1/backends", None)?;
    if said.status != 200 {
        bail!("{}", said.error());
    }
    let all = said.body.get("backends").cloned().unwrap_or_default();
    match format {
        Format::Json => say(&format!("{all:#}")),
        Format::Table => say(&table(&all)),
    }
    Ok(())
}

/// How many requests it has.
fn set(which: &Which, action: &str) -> anyhow::Result<usize> {
    let name = &which.name;
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if name.is_empty() || !name.bytes().all(is_plain) {
        bail!("no backend has such a name; `portcullis backend list` shows them");
    }
    let said = which.desk.ask("POST", &format!("/api/v1/backends/{name}/{action}"), None)?;
    if said.status != 200 {
        bail!("{}", said.error());
    }
    let busy = said.body.get("busy").and_then(Value::as_u64).unwrap_or_default();
    Ok(usize::try_from(busy).unwrap_or(usize::MAX))
}

fn table(all: &Value) -> String {
    let columns = vec!["name", "url", "kind", "state", "weight", "busy", "in_memory", "tags"];
    let rows = all.as_array().into_iter().flatten().map(row).collect();
    Sheet { columns, rows }.to_table(None)
}

fn row(backend: &Value) -> Vec<Cell> {
    let text = |field: &str| Cell::text(backend.get(field).and_then(Value::as_str));
    let is = |field: &str| backend.get(field).and_then(Value::as_bool) == Some(true);
    let state = match (is("drained"), is("up")) {
        (true, _) => "drained",
        (false, true) => "up",
        (false, false) => "down",
    };
    let listed = |field: &str, text_of: fn(&Value) -> Option<&str>| {
        let list = backend.get(field).and_then(Value::as_array).into_iter().flatten();
        let all = list.filter_map(text_of).collect::<Vec<_>>().join(", ");
        if all.is_empty() { Cell::Nothing } else { Cell::Text(all) }
    };
    vec![
        text("name"),
        text("url"),
        text("kind"),
        Cell::Text(state.to_owned()),
        backend.get("weight").and_then(Value::as_f64).map_or(Cell::Nothing, Cell::Number),
        backend.get("busy").and_then(Value::as_u64).map_or(Cell::Nothing, Cell::Count),
        listed("models", |it| {
            it.get("name").filter(|_| it.get("in_memory") == Some(&Value::Bool(true)))?.as_str()
        }),
        listed("tags", Value::as_str),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn backends_stand_in_columns() {
        let all = json!([
            {"name": "gpu-1", "url": "http://10.0.0.1:11434", "kind": "ollama", "up": true,
             "drained": false, "busy": 2, "weight": 1.0, "tags": [], "models": [
                {"name": "a", "in_memory": true}, {"name": "b", "in_memory": true},
                {"name": "c", "in_memory": false},
            ]},
            {"name": "cpp", "url": "unix:/run/cpp", "kind": "openai", "up": true,
             "drained": true, "busy": 0, "weight": 0.5, "models": [], "tags": ["room=4"]},
        ]);
        let expected = "\
NAME   URL                    KIND    STATE    WEIGHT  BUSY  IN MEMORY  TAGS
 gpu-1  http://10.0.0.1:11434  ollama  up          1.0     2  a, b       -
 cpp    unix:/run/cpp          openai  drained     0.5     0  -          room=4";
        assert_eq!(table(&all).trim_start(), expected);
    }
}
