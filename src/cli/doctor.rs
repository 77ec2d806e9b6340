//! `portcullis doctor`: what `check` finds, then a live look, and in plain words what to do.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::check::{self, counted};
use super::{Settings, ask, say, say_to};
use crate::client_addr::container_gateway;
use crate::config::{self, Config, Given, ListenAddr};
use crate::doctor::{Finding, OwnAddress, Section, Subject, Verdict, examine};
use crate::gateway::State;

const PATIENCE: Duration = Duration::from_secs(5);
/// Of a terminal; most are wider.
const WIDTH: usize = 80;
/// Where the text of a finding begins, behind its verdict and behind what was looked at.
const BEHIND_VERDICT: usize = 8;
const BEHIND_WHAT: usize = 22;

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    settings: Settings,
    /// The model to try streaming with; it is loaded if need be. Without one, one that is loaded
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Print JSON for programs: an object with the findings and how many there are of each kind
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> ExitCode {
    let mut told = match options.json {
        true => Told::Gathered(Vec::new()),
        false => Told::Printed(Tally::default(), Looks::of_stdout()),
    };
    if let Err(error) = look(options, &mut told) {
        say_to(&mut io::stderr(), &format!("portcullis: {error:#}"));
        return ExitCode::FAILURE;
    }
    told.end()
}

fn look(options: &Options, told: &mut Told) -> anyhow::Result<()> {
    let (section, state) = configuration(&options.settings.given());
    told.tell(section);
    let Some(state) = state else { return Ok(()) };
    let subject = Subject {
        state: &state,
        gate: gate_address(state.config()),
        model: options.model.as_deref(),
        addresses: OwnAddress::all().context("could not read this machine's addresses")?,
        container_gateway: container_gateway(),
        patience: PATIENCE,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the runtime")?;
    runtime.block_on(examine(&subject, |section| told.tell(section)));
    Ok(())
}

/// Of its addresses, one that is known before it starts.
fn gate_address(config: &Config) -> Option<SocketAddr> {
    let known = config.listen.iter().filter_map(ListenAddr::tcp).find(|at| at.port() != 0)?;
    Some(ask::on_this_machine(known))
}

/// What `check` finds. A gate without a login does not start, but can be looked at; with other
/// problems there is nothing more to look at before they are mended.
fn configuration(given: &Given) -> (Section, Option<State>) {
    let finding = |verdict| move |found: String| Finding::new(verdict, "", found);
    let mut findings = Vec::new();
    let loaded = config::load(given).or_else(|problems| {
        let problems = problems.0.iter().map(|it| format!("{}: {}", it.place, it.says));
        findings.extend(problems.map(finding(Verdict::Fail)));
        config::load_without_credentials(given)
    });
    let state = loaded.ok().and_then(|loaded| {
        let (found, state) = check::examine(loaded);
        findings.extend(found.good.into_iter().map(finding(Verdict::Ok)));
        findings.extend(found.warnings.into_iter().map(finding(Verdict::Warn)));
        findings.extend(found.problems.into_iter().map(finding(Verdict::Fail)));
        state
    });
    if state.is_none() {
        let rest = "nothing else was looked at: first mend this";
        findings.push(Finding::new(Verdict::Skip, "", rest));
    }
    (Section { title: "configuration".to_owned(), findings }, state)
}

/// Where the findings go.
enum Told {
    Printed(Tally, Looks),
    Gathered(Vec<Section>),
}

impl Told {
    fn tell(&mut self, section: Section) {
        match self {
            Self::Printed(tally, looks) => {
                tally.count(&section);
                say(&looks.section(&section));
            }
            Self::Gathered(sections) => sections.push(section),
        }
    }

    fn end(self) -> ExitCode {
        let tally = match self {
            Self::Printed(tally, _) => {
                say(&tally.to_string());
                tally
            }
            Self::Gathered(sections) => {
                let mut tally = Tally::default();
                sections.iter().for_each(|section| tally.count(section));
                say(&format!("{:#}", as_json(&sections, &tally)));
                tally
            }
        };
        if tally.fail > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// How many findings there are of each kind.
#[derive(Debug, Default)]
struct Tally {
    ok: usize,
    warn: usize,
    fail: usize,
    skip: usize,
}

impl Tally {
    fn count(&mut self, section: &Section) {
        for finding in &section.findings {
            *match finding.verdict {
                Verdict::Ok => &mut self.ok,
                Verdict::Warn => &mut self.warn,
                Verdict::Fail => &mut self.fail,
                Verdict::Skip => &mut self.skip,
            } += 1;
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fail = counted(self.fail, "failure", "failures");
        let warn = counted(self.warn, "warning", "warnings");
        write!(f, "{fail}, {warn}, {} ok, {} skipped", self.ok, self.skip)
    }
}

fn as_json(sections: &[Section], tally: &Tally) -> Value {
    let findings: Vec<_> = sections
        .iter()
        .flat_map(|section| section.findings.iter().map(move |it| (section, it)))
        .map(|(section, it)| {
            json!({
                "section": section.title.split("  ").next(), "what": it.what,
                "verdict": it.verdict.as_str(), "found": it.found, "advice": it.advice,
            })
        })
        .collect();
    let Tally { ok, warn, fail, skip } = tally;
    json!({"fail": fail, "warn": warn, "ok": ok, "skip": skip, "findings": findings})
}

/// How it looks to a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looks {
    Plain,
    Coloured,
}

impl Looks {
    fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|it| !it.is_empty());
        match io::stdout().is_terminal() && !refused {
            true => Self::Coloured,
            false => Self::Plain,
        }
    }

    fn section(self, section: &Section) -> String {
        let findings = section.findings.iter().map(|it| self.finding(it));
        format!("{}\n{}", self.painted("1", &section.title), findings.collect::<String>())
    }

    fn finding(self, finding: &Finding) -> String {
        let Finding { verdict, what, found, advice } = finding;
        let indent = if what.is_empty() { BEHIND_VERDICT } else { BEHIND_WHAT };
        let colour = match verdict {
            Verdict::Ok => "32",
            Verdict::Warn => "33",
            Verdict::Fail => "31",
            Verdict::Skip => "2",
        };
        let verdict = self.painted(colour, &format!("{verdict:<4}"));
        let what = format!("{what:<width$}", width = indent - BEHIND_VERDICT);
        let advice = advice.iter().flat_map(|it| wrapped(&format!("→ {it}"), indent, "  "));
        let lines: Vec<_> = wrapped(found, indent, "").into_iter().chain(advice).collect();
        let between = format!("\n{:indent$}", "");
        format!("  {verdict}  {what}{}\n", lines.join(&between))
    }

    fn painted(self, colour: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Coloured => format!("\u{1b}[{colour}m{text}\u{1b}[0m"),
        }
    }
}

/// In lines that fit behind the indent, if each word does; all but the first begin with `hanging`.
fn wrapped(text: &str, indent: usize, hanging: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in words(text) {
        if !line.trim().is_empty() && indent + width(&line) + 1 + width(&word) > WIDTH {
            lines.push(std::mem::replace(&mut line, hanging.to_owned()));
        } else if !line.trim().is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    lines.push(line);
    lines
}

/// What stands between backticks is to be copied, so it stays in one piece.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut copied = false;
    for word in text.split_whitespace() {
        match words.last_mut().filter(|_| copied) {
            Some(last) => {
                last.push(' ');
                last.push_str(word);
            }
            None => words.push(word.to_owned()),
        }
        copied ^= word.matches('`').count() % 2 == 1;
    }
    words
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(verdict: Verdict, what: &'static str, found: &str, advice: &str) -> Finding {
        let advice = Some(advice.to_owned()).filter(|advice| !advice.is_empty());
        Finding { verdict, what, found: found.to_owned(), advice }
    }

    fn sections() -> Vec<Section> {
        let long =
            "it is said in words that do not fit into a line of a terminal with eighty columns";
        let findings = vec![
            finding(Verdict::Ok, "", "portcullis.toml: read", ""),
            finding(
                Verdict::Warn,
                "clock",
                long,
                "set it, and tell those who rely upon it that it was not right",
            ),
        ];
        vec![Section { title: "this machine  here".to_owned(), findings }]
    }

    #[test]
    fn it_stands_in_columns_and_fits_eighty() {
        let text = Looks::Plain.section(&sections()[0]);
        let expected = "\
this machine  here
  ok    portcullis.toml: read
  warn  clock         it is said in words that do not fit into a line of a
                      terminal with eighty columns
                      → set it, and tell those who rely upon it that it was not
                        right
";
        assert_eq!(text, expected);
        assert!(text.lines().all(|line| width(line) <= WIDTH));
    }

    #[test]
    fn a_word_that_does_not_fit_stands_alone() {
        let word = "x".repeat(100);
        assert_eq!(wrapped(&format!("a {word} b"), 22, ""), ["a", &word, "b"]);
        assert_eq!(wrapped("", 22, ""), [""]);
    }

    #[test]
    fn a_line_to_copy_is_not_broken() {
        let text = format!("{} run `chmod 600 keys` again", "x".repeat(46));
        assert_eq!(wrapped(&text, 22, "")[1..], ["`chmod 600 keys` again"]);
        assert_eq!(words("(`a b`), `c`d `e f"), ["(`a b`),", "`c`d", "`e f"]);
    }

    #[test]
    fn colours_stand_round_words_only() {
        let text = Looks::Coloured.section(&sections()[0]);
        assert!(text.contains("  \u{1b}[33mwarn\u{1b}[0m  clock "), "{text:?}");
    }

    #[test]
    fn programs_get_every_finding_and_the_counts() {
        let mut tally = Tally::default();
        tally.count(&sections()[0]);
        let json = as_json(&sections(), &tally);
        assert_eq!(json["warn"], 1);
        assert_eq!(json["fail"], 0);
        assert_eq!(json["findings"][0]["section"], "this machine");
        assert_eq!(json["findings"][0]["advice"], Value::Null);
        assert_eq!(json["findings"][1]["verdict"], "warn");
        assert_eq!(tally.to_string(), "0 failures, 1 warning, 1 ok, 0 skipped");
    }
}
