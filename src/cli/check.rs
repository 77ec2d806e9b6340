//! `portcullis check`: every problem of the configuration and of the files it names, at once.

use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;

mod against;

use super::{Settings, say, say_to};
use crate::auth::Files;
use crate::config::{self, Config, Loaded};
use crate::gateway::State;
use crate::live_file::{Report, mode_warning};
use crate::record::Chain;
use crate::store::{Store, StoreError};
use crate::tls::FEW_DAYS;

/// What was found; problems decide the exit status.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<String>,
    pub(super) warnings: Vec<String>,
    pub(super) good: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Also tell what its roles, rules, models and limits would have refused of what was used since then, as 7d
    #[arg(long, value_name = "SINCE")]
    against_usage: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(options: &Options) -> ExitCode {
    match config::load(&options.settings.given()) {
        Ok(loaded) => {
            let (mut findings, state) = examine(loaded);
            if let (Some(since), Some(state)) = (&options.against_usage, &state) {
                findings.usage(state, since);
            }
            findings.print()
        }
        Err(problems) => {
            say_to(&mut std::io::stderr(), &problems.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Everything that can be found without asking anybody, and what would serve.
pub(super) fn examine(loaded: Loaded) -> (Findings, Option<State>) {
    let mut findings = Findings::default();
    match &loaded.file {
        Some(file) => findings.good.push(format!("{}: read", file.display())),
        None => findings.good.push("no configuration file; flags and defaults".to_owned()),
    }
    for warning in &loaded.warnings {
        findings.warnings.push(format!("{}: {}", warning.place, warning.says));
    }
    let files = Files::open(&loaded.config, None);
    for (what, report) in files.reports() {
        findings.file(what, &report);
    }
    for key in loaded.config.backends.iter().filter_map(|it| it.key_file.as_ref()) {
        findings.mode(key);
    }
    findings.store(&loaded.config);
    findings.roles(&files, &loaded.config);
    findings.rules(&files, &loaded.config);
    findings.models(&loaded.config);
    // The rest of what serving needs: the backend's key, its name.
    let state = State::new(loaded.config, None);
    let state = state.map_err(|error| findings.problems.push(Chain(&error).to_string()));
    if let Ok(state) = &state {
        findings.tls(state);
    }
    (findings, state.ok())
}

impl Findings {
    fn file(&mut self, what: &str, report: &Report) {
        let path = report.path.display();
        match &report.trouble {
            Some(trouble) if trouble.is_fault() => {
                self.problems.push(format!("{path}: {what} {trouble}"));
            }
            Some(trouble) => self.warnings.push(format!("{path}: {what} {trouble}")),
            None => {
                let entries = counted(report.entries, "entry", "entries");
                self.good.push(format!("{path}: {what}, {entries}"));
            }
        }
        self.mode(&report.path);
        for note in &report.notes {
            let says = format!("{path}:{}: {}", note.line, note.says);
            match note.skipped {
                true => self.problems.push(says),
                false => self.warnings.push(says),
            }
        }
    }

    fn store(&mut self, config: &Config) {
        let Some(folder) = &config.data_dir else { return };
        let path = folder.display();
        match Store::inspect(folder) {
            Ok(1) => self.good.push(format!("{path}: data_dir, 1 managed key")),
            Ok(keys) => self.good.push(format!("{path}: data_dir, {keys} managed keys")),
            Err(StoreError::Missing { .. }) => {
                self.good.push(format!("{path}: data_dir, no store yet; the first start makes it"));
            }
            Err(error) => self.problems.push(format!("data_dir: {error}")),
        }
    }

    fn tls(&mut self, state: &State) {
        let Some(tls) = state.tls() else { return };
        self.problems.extend(tls.troubles().iter().map(|fault| format!("TLS: {fault}")));
        for (file, names, days) in tls.certificates(SystemTime::now()) {
            let says = format!("{file}: certificate for {}, {days} days left", names.join(" "));
            match days {
                0..FEW_DAYS => self.warnings.push(says + "; renew it"),
                _ if days < 0 => {}
                _ => self.good.push(says),
            }
        }
        for files in state.config().tls_pairs() {
            self.mode(&files.key);
        }
    }

    fn mode(&mut self, path: &Path) {
        if let Some(warning) = mode_warning(path) {
            self.warnings.push(format!("{}: {warning}", path.display()));
        }
    }

    /// A name that two patterns give two roles has the lesser one, which may surprise.
    fn roles(&mut self, files: &Files, config: &Config) {
        for (name, _) in files.names() {
            let matching = config.roles.patterns_matching(&name);
            let mut roles: Vec<_> = matching.iter().map(|(_, role)| *role).collect();
            roles.dedup();
            if roles.len() > 1 {
                let held = config.roles.role_of(&name);
                let patterns: Vec<_> =
                    matching.iter().map(|(pattern, role)| format!("{pattern} ({role})")).collect();
                let patterns = patterns.join(" and ");
                self.warnings.push(format!(
                    "[roles]: {name} matches {patterns}; it has the lesser role, {held}"
                ));
            }
        }
    }

    /// A rule, or a limit, for somebody who has no credential is mostly a slip in the name.
    fn rules(&mut self, files: &Files, config: &Config) {
        let mut names: Vec<_> = files.names().into_iter().map(|(name, _)| name).collect();
        names.extend(config.keys.iter().map(|key| key.owner.clone().unwrap_or(key.name.clone())));
        // Managed keys and certificates may have any name.
        let is_closed = config.data_dir.is_none() && !config.certificates_log_in();
        let rules = config.rules.iter().map(|rule| (&rule.place, &rule.names));
        let limits = config.limits.iter().map(|limit| (&limit.place, &limit.names));
        for (place, patterns) in rules.chain(limits).filter(|_| is_closed) {
            for pattern in patterns.iter().flatten() {
                if !names.iter().any(|name| pattern.matches(name)) {
                    let says = format!("{place}: nobody who can log in is called {pattern}");
                    self.warnings.push(says);
                }
            }
        }
    }

    /// Mostly a slip in the name of the model.
    fn models(&mut self, config: &Config) {
        for (place, pattern) in against::patterns_of_nothing(config) {
            let says = format!("{place}: no model that was used is called {pattern}");
            self.warnings.push(says);
        }
    }

    fn usage(&mut self, state: &State, since: &str) {
        match against::tried(state, since) {
            Ok(tried) if tried.refused == 0 => self.good.push(format!("usage: {}", tried.told())),
            Ok(tried) => self.warnings.push(format!("usage: {}", tried.told())),
            Err(error) => self.problems.push(format!("--against-usage: {error:#}")),
        }
    }

    fn print(self) -> ExitCode {
        let lists = [("ok", self.good), ("warning", self.warnings), ("problem", self.problems)];
        let failed = lists.iter().any(|(kind, list)| *kind == "problem" && !list.is_empty());
        for (kind, list) in &lists {
            for line in list {
                say(&format!("{kind:<8} {line}"));
            }
        }
        let count =
            |kind| lists.iter().filter(|(k, _)| *k == kind).map(|(_, l)| l.len()).sum::<usize>();
        say(&format!(
            "{}, {}",
            counted(count("problem"), "problem", "problems"),
            counted(count("warning"), "warning", "warnings"),
        ));
        if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

pub(super) fn counted(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
