//! `portcullis why`: what became of a request that was, stage by stage.

use anyhow::bail;
use clap::Args;
use serde_json::Value;

use super::desk::Desk;
use super::say;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The request's id, which every answer has in `X-Request-Id` and every line of the log
    request_id: String,
    /// Print what the admin API says
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    desk: Desk,
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let path = format!("/api/v1/decisions/{}", options.request_id);
    let said = options.desk.ask("GET", &path, None)?;
    if said.status != 200 {
        bail!("{}", said.error());
    }
    if options.json {
        say(&format!("{:#}", said.body));
    } else {
        say(&in_words(&said.body));
    }
    Ok(())
}

fn in_words(decision: &Value) -> String {
    let text = |field: &str| decision.get(field).and_then(Value::as_str);
    let status = decision.get("status").and_then(Value::as_u64).unwrap_or_default();
    let mut lines = vec![format!(
        "request {} of {}, from {}: {status} {}",
        text("id").unwrap_or("-"),
        text("time").unwrap_or("-"),
        text("client").unwrap_or("nobody knows where"),
        text("outcome").unwrap_or("-"),
    )];
    for stage in decision.get("stages").and_then(Value::as_array).into_iter().flatten() {
        let of = |field: &str| stage.get(field).and_then(Value::as_str).unwrap_or_default();
        let line = format!("  {:<9} {:<12} {}", of("stage"), of("result"), of("says"));
        lines.push(line.trim_end().to_owned());
    }
    if let Some(remedy) = text("would_allow") {
        lines.push(format!("what would have allowed it: {remedy}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_reads_as_its_stages_and_what_would_have_allowed_it() {
        let told = json!({
            "id": "00000000deadbeef", "time": "2026-01-01T00:00:00.000Z", "client": "192.0.2.1",
            "status": 403, "outcome": "refused:forbidden", "would_allow": "the role operator",
            "stages": [
                {"stage": "login", "result": "passed", "says": "anna by key"},
                {"stage": "access", "result": "refused", "says": "no"},
                {"stage": "body", "result": "not reached", "says": ""},
            ],
        });
        let expected = "request 00000000deadbeef of 2026-01-01T00:00:00.000Z, from 192.0.2.1: 403 refused:forbidden\n  \
             login     passed       anna by key\n  access    refused      no\n  body      not reached\n\
             what would have allowed it: the role operator";
        assert_eq!(in_words(&told), expected);
    }
}
