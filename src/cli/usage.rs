//! `portcullis usage`: what was used, read from the store, whether the gate runs or not.

use std::io;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::{NO_FOLDER, configured, say, say_to};
use crate::config::Config;
use crate::report::{self, Format, Period, Question, Sheet};
use crate::store::{Store, UsageFilter};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// What to sum by, parted by commas: user, key, model, backend, operation, day, hour
    #[arg(long, value_name = "COLUMNS", default_value = "user", conflicts_with = "reloads")]
    by: String,
    /// From when on: 7d, 24h, 2026-11-01 or 2026-11-01T08:00:00Z
    #[arg(long, value_name = "WHEN", default_value = report::USUAL)]
    since: String,
    /// Until when, in the same forms, a day to its end; without it until now
    #[arg(long, value_name = "WHEN")]
    until: Option<String>,
    /// How to print: table, json or csv
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Which models had to be loaded, for whom, and whose options were the cause
    #[arg(long)]
    reloads: bool,
    #[command(flatten)]
    only: Only,
    /// The gate's data folder; without it the one that the configuration names
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The configuration that names the data folder, the prices and the time zone
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Which requests count.
#[derive(Debug, Args)]
struct Only {
    /// Only this user's
    #[arg(long)]
    name: Option<String>,
    /// Only by the key of this name
    #[arg(long)]
    key: Option<String>,
    /// Only of this model
    #[arg(long)]
    model: Option<String>,
    /// Only of this backend
    #[arg(long)]
    backend: Option<String>,
    /// Only this operation, such as chat
    #[arg(long)]
    operation: Option<String>,
}

impl Only {
    fn filter(&self) -> UsageFilter {
        UsageFilter {
            name: self.name.clone(),
            key: self.key.clone(),
            model: self.model.as_deref().map(report::model_as_stored),
            backend: self.backend.clone(),
            operation: self.operation.clone(),
        }
    }
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let config = configured(options.config.as_deref()).context("cannot read the configuration")?;
    let said = |says: String| anyhow!(says);
    let by = report::columns(&options.by).map_err(said).context("--by")?;
    let zone = config.time_zone.clone();
    let (since, until) = (Some(&*options.since), options.until.as_deref());
    let period = Period::read(since, until, Timestamp::now(), &zone).map_err(said)?;
    if period.is_empty() {
        bail!("since: the period ends before it begins");
    }
    let folder = options.data_dir.as_ref().or(config.data_dir.as_ref()).context(NO_FOLDER)?;
    let store = Store::open_existing(folder)?;
    match options.reloads {
        true => reloads(&store, options, period),
        false => {
            let asked = Question { by, period, zone, only: options.only.filter() };
            sums(&store, options, &asked, &config)
        }
    }
}

fn sums(store: &Store, options: &Options, asked: &Question, config: &Config) -> anyhow::Result<()> {
    let sums = report::sums(store, asked, &config.prices)?;
    if options.format == Format::Table && sums.sheet.rows.is_empty() {
        say(&nothing(&asked.period, &asked.zone));
        return Ok(());
    }
    let all = (sums.sheet.rows.len() > 1).then_some(sums.all.as_slice());
    print(&sums.sheet, all, options.format);
    if !sums.unpriced.is_empty() {
        let models: Vec<_> = sums.unpriced.iter().map(|it| report::printable(it)).collect();
        let says =
            format!("not in the cost, for [prices] says nothing of them: {}", models.join(", "));
        say_to(&mut io::stderr(), &says);
    }
    Ok(())
}

fn reloads(store: &Store, options: &Options, period: Period) -> anyhow::Result<()> {
    let mut query = report::rows_query(period, options.only.filter());
    let (mut sheet, mut all) = (None::<Sheet>, Vec::new());
    loop {
        let (page, reloads) = report::reloads(store, &query)?;
        all.extend(reloads);
        match &mut sheet {
            Some(sheet) => sheet.rows.extend(page.sheet.rows),
            None => sheet = Some(page.sheet),
        }
        query.before = page.next;
        if page.next.is_none() {
            break;
        }
    }
    let sheet = sheet.context("no page was read")?;
    if !sheet.rows.is_empty() || options.format != Format::Table {
        print(&sheet, None, options.format);
    }
    if options.format == Format::Table {
        say(&report::reloads_told(&all));
    }
    Ok(())
}

fn print(sheet: &Sheet, all: Option<&[report::Cell]>, format: Format) {
    match format {
        Format::Table => say(&sheet.to_table(all)),
        Format::Csv => say(sheet.to_csv().trim_end()),
        Format::Json => {
            let json: Value = sheet.to_json();
            say(&format!("{json:#}"));
        }
    }
}

fn nothing(period: &Period, zone: &TimeZone) -> String {
    let shown = |at: Timestamp| at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M").to_string();
    format!("nothing was used from {} to {}", shown(period.since), shown(period.until))
}
