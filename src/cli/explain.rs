//! `portcullis explain`: what would become of a request, stage by stage.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http::{HeaderName, HeaderValue, Method, Request};

use super::{Settings, say, say_to};
use crate::auth::Identity;
use crate::config;
use crate::gateway::{Explained, State, explain, recall};
use crate::limit::Limits;
use crate::reject::Reject;
use crate::store::{Store, StoreError};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Who asks: a name of a users' or keys' file, or of a [[key]]
    #[arg(long = "as", value_name = "NAME", required_unless_present = "key")]
    who: Option<String>,
    /// The managed key that is asked with, by id or name
    #[arg(long, value_name = "ID", conflicts_with = "who")]
    key: Option<String>,
    /// Such as POST
    method: Method,
    /// Such as /api/chat
    path: String,
    /// The request's body
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
    /// A header of the request, as `Name: value`; may be given several times
    #[arg(long = "header", value_name = "HEADER", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    #[command(flatten)]
    settings: Settings,
}

/// The exit status says whether the request would be passed on.
pub(super) fn run(options: &Options) -> ExitCode {
    let explained = match decided(options) {
        Ok(explained) => explained,
        Err(error) => {
            say_to(&mut std::io::stderr(), &format!("portcullis: {error:#}"));
            return ExitCode::from(2);
        }
    };
    for stage in &explained.stages {
        say(&format!("{:<10}{}", stage.name, stage.says));
    }
    match explained.refused {
        None => {
            say("passed on");
            ExitCode::SUCCESS
        }
        Some(reject) => {
            say(&refusal(&reject));
            if let Some(remedy) = reject.remedy() {
                say(&format!("what would allow it: {remedy}"));
            }
            ExitCode::FAILURE
        }
    }
}

fn refusal(reject: &Reject) -> String {
    let row = reject.row();
    format!("{:<10}{} {}: {}", "refused", row.status, row.code, reject.says())
}

fn decided(options: &Options) -> anyhow::Result<Explained> {
    let loaded =
        config::load(&options.settings.given()).map_err(|problems| anyhow!("{problems}"))?;
    let body = match &options.body {
        Some(file) => std::fs::read(file)
            .with_context(|| format!("could not read the body in {}", file.display()))?,
        None => Vec::new(),
    };
    let mut request = Request::builder()
        .method(&options.method)
        .uri(&options.path)
        .header(http::header::HOST, "gate")
        .body(())
        .context("such a request cannot be")?;
    for (name, value) in &options.headers {
        request.headers_mut().append(name, value.clone());
    }
    let (parts, ()) = request.into_parts();
    let state = State::new(loaded.config, None)?;
    let who = asker(options, &state)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let limits = used(&state)?;
    Ok(runtime.block_on(explain((&state, &limits), who, &parts, Bytes::from(body))))
}

/// What the ledger has of this day and month.
fn used(state: &State) -> anyhow::Result<Limits> {
    let limits = Limits::default();
    let Some(folder) = &state.config().data_dir else { return Ok(limits) };
    match Store::open_current(folder) {
        Ok(store) => recall(&limits, &store, state)?,
        // No gate has used it yet.
        Err(StoreError::Missing { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(limits)
}

fn asker(options: &Options, state: &State) -> anyhow::Result<Identity> {
    let Some(id) = &options.key else {
        return Ok(state.auth().suppose(options.who.as_deref().unwrap_or_default()));
    };
    let Some(folder) = &state.config().data_dir else {
        bail!("without `data_dir` there are no managed keys");
    };
    let keys = Store::open_existing(folder)?.find_keys(id)?;
    match keys.as_slice() {
        [] => bail!("there is no managed key {id}; `portcullis key list` tells them"),
        [key] => Ok(state.auth().suppose_key(key)),
        [_, _, ..] => bail!("several managed keys are called {id}; name one by its id"),
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as `Name: value`")?;
    let name = name.trim().parse().map_err(|_| "that is no header's name")?;
    let value = value.trim().parse().map_err(|_| "that is no header's value")?;
    Ok((name, value))
}
