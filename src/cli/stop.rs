//! `portcullis stop`: ends what runs or waits at a running gate.

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use super::check::counted;
use super::desk::{Desk, Said};
use super::say;
use crate::record::RequestId;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// A request's id, as `portcullis running` shows it; or a caller's name, of whom everything is ended
    #[arg(value_name = "REQUEST|NAME")]
    what: String,
    #[command(flatten)]
    desk: Desk,
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let Options { what, desk } = options;
    if RequestId::parse(what).is_some() {
        let said = desk.ask("POST", &format!("/api/v1/running/{what}/stop"), None)?;
        match said.status {
            200 => {
                say(&format!("the request {what} is ended"));
                return Ok(());
            }
            // Somebody may be called so.
            404 => {}
            _ => bail!("{}", said.error()),
        }
    }
    let said = desk.ask("POST", "/api/v1/running/stop", Some(&json!({"name": what})))?;
    match stopped(&said)? {
        0 => {
            bail!("nothing runs or waits by that id or name; `portcullis running` shows what does")
        }
        number => {
            let ended = counted(number, "request of", "requests of");
            say(&format!("{ended} {what} {} ended", if number == 1 { "is" } else { "are" }));
        }
    }
    Ok(())
}

fn stopped(said: &Said) -> anyhow::Result<usize> {
    if said.status != 200 {
        bail!("{}", said.error());
    }
    let number = said.body.get("stopped").and_then(Value::as_u64).unwrap_or_default();
    Ok(usize::try_from(number).unwrap_or(usize::MAX))
}
