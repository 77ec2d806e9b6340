//! The schemas of what was used.

use serde_json::{Map, Value, json};

use super::{closed, page};
use crate::report::{RELOAD, ROW};
use crate::store::By;

/// Columns behind commas.
pub(super) fn by() -> Value {
    let names = By::ALL.map(By::as_str).join("|");
    json!({
        "type": "string", "default": "user", "pattern": format!("^({names})(,({names}))*$"),
        "description": "columns behind commas, each once",
    })
}

pub(super) fn moment(usual: &str) -> Value {
    json!({
        "anyOf": [
            {"type": "string", "pattern": "^[0-9]{1,4}[smhd]$", "examples": ["7d", "24h"]},
            {"type": "string", "format": "date"},
            {"type": "string", "format": "date-time"},
        ],
        "description": format!("how long ago, a day, or a moment; {usual} if it is left out"),
    })
}

pub(super) fn schemas() -> Value {
    let columns = By::ALL.map(|by| (by.as_str(), text_or_none()));
    let counts = ["requests", "prompt_tokens", "completion_tokens", "estimated"];
    let required: Vec<_> = counts.into_iter().chain(["backend_seconds"]).collect();
    let numbers = required.iter().map(|name| (*name, number(name)));
    let cost = std::iter::once(("cost", number("cost")));
    let sum = properties(columns.into_iter().chain(numbers).chain(cost));
    let row = ROW.iter().map(|name| (*name, of_column(name)));
    let row = properties(row.chain(std::iter::once(("cost", number("cost")))));
    let reload = properties(RELOAD.iter().map(|name| (*name, of_column(name))));
    let place = json!({"type": "integer"});
    json!({
        "UsageSum": closed(&sum, &required),
        "UsageSums": {"type": "array", "items": {"$ref": "#/components/schemas/UsageSum"}},
        "UsageRow": closed(&row, &ROW),
        "UsagePage": page("rows", "UsageRow", &place),
        "Reload": closed(&reload, &RELOAD),
        "ReloadPage": page("reloads", "Reload", &place),
    })
}

fn properties<'a>(fields: impl Iterator<Item = (&'a str, Value)>) -> Value {
    Value::Object(fields.map(|(name, schema)| (name.to_owned(), schema)).collect::<Map<_, _>>())
}

fn text_or_none() -> Value {
    json!({"type": ["string", "null"]})
}

fn of_column(name: &str) -> Value {
    match name {
        "time" => json!({"type": "string", "format": "date-time"}),
        "estimated" => json!({"type": "boolean"}),
        "client" | "id" | "user" | "key" | "model" | "operation" | "backend" | "outcome"
        | "options" | "cause" | "before_time" | "before_user" | "before_options" => text_or_none(),
        _ => number(name),
    }
}

fn number(name: &str) -> Value {
    match name {
        "requests" | "prompt_tokens" | "completion_tokens" | "estimated" | "status"
        | "bytes_in" | "bytes_out" => json!({"type": "integer"}),
        "cached_tokens" | "reasoning_tokens" => json!({"type": ["integer", "null"]}),
        "cost" => json!({
            "type": ["number", "null"],
            "description": "only where there are prices; null for what has none",
        }),
        _ => json!({"type": ["number", "null"]}),
    }
}
