//! The results as a text that people read: what was reached, every figure, and what it came from.

use std::fmt::Write as _;

use crate::machine::Machine;
use crate::measures::{Goal, Limit, Line, Outcome, Table};
use crate::peer::Kind;

/// All that the text is made from.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    pub(crate) table: Table,
    pub(crate) outcomes: &'a [Outcome],
    pub(crate) machine: &'a Machine,
    /// Which mode, and how it was placed.
    pub(crate) manner: String,
    /// Those that were there, with their versions.
    pub(crate) present: Vec<(&'static Kind, String)>,
    /// Those that were not, and how to get them.
    pub(crate) missing: Vec<(&'static Kind, String)>,
}

const ROUNDS: &str = "Every figure below comes from one run: the proxies take turns round by round, on one core, with \
     the callers and the backend on the other. Each answer was checked to the last byte; a run with \
     a single wrong one has no results. A figure is the median of the rounds, with the least and \
     the most of them behind it; a ratio is taken within each round. The processor's time is that \
     of all processes of a proxy, in and outside the kernel, as `/proc` has it.";

impl Report<'_> {
    /// The whole text, as Markdown.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("# {}\n\n", self.title());
        for paragraph in [ROUNDS, self.subjects(), self.elsewhere()] {
            push(&mut text, format_args!("{paragraph}\n\n"));
        }
        push(&mut text, format_args!("{}\n\n", self.manner));
        self.goals(&mut text);
        for outcome in self.outcomes {
            detail(outcome, &mut text);
        }
        self.surroundings(&mut text);
        text
    }

    fn title(&self) -> &'static str {
        match self.table {
            Table::Plain => "Results",
            Table::Tls => "Results over TLS and HTTP/2",
            Table::Ledger => "What rows of usage cost",
        }
    }

    fn subjects(&self) -> &'static str {
        match self.table {
            Table::Plain | Table::Tls => {
                "Portcullis checks a login, knows roles and writes one line per request in all of \
                 them; \"nginx tuned\", HAProxy and Caddy check nobody and write nothing."
            }
            Table::Ledger => {
                "All of them are Portcullis: without `data_dir`, where no rows are kept; with it, \
                 where the last bytes of an answer wait until its row is written to the journal; \
                 and with `ledger = \"durable\"`, where they wait until the row is on the disk. \
                 Each counts the tokens that pass."
            }
        }
    }

    fn elsewhere(&self) -> &'static str {
        match self.table {
            Table::Plain => {
                "What TLS and HTTP/2 cost is in [a table of its own](RESULTS-TLS.md), and so is \
                 [what rows of usage cost](RESULTS-LEDGER.md), both from other runs."
            }
            Table::Tls => {
                "Figures without TLS are in [another table](RESULTS.md), from another run. All \
                 proxies show the same certificate (ECDSA P-256), and all callers offer TLS 1.3 \
                 with one key exchange and one cipher and never resume."
            }
            Table::Ledger => "Other proxies are in [another table](RESULTS.md), from another run.",
        }
    }

    fn goals(&self, text: &mut String) {
        text.push_str("## What was reached\n\n| row | goal | found | |\n|---|---|---|---|\n");
        for outcome in self.outcomes {
            for goal in &outcome.goals {
                let Some(found) = Found::of(goal, outcome) else {
                    let (row, what) = (outcome.row, goal.what);
                    push(text, format_args!("| {row} | {what} | not measured | – |\n"));
                    continue;
                };
                let said = if found.met { "met" } else { "**not met**" };
                let (row, what, found) = (outcome.row, goal.what, &found.text);
                push(text, format_args!("| {row} | {what} | {found} | {said} |\n"));
            }
        }
        text.push('\n');
    }

    fn surroundings(&self, text: &mut String) {
        text.push_str("## The machine\n\n| | |\n|---|---|\n");
        for (name, value) in self.machine.rows() {
            push(text, format_args!("| {name} | {value} |\n"));
        }
        if self.table == Table::Ledger {
            return;
        }
        text.push_str("\n## The proxies\n\n| | version | login |\n|---|---|---|\n");
        for (kind, version) in &self.present {
            push(text, format_args!("| {} | {version} | {} |\n", kind.name, kind.login));
        }
        for (kind, how) in &self.missing {
            push(text, format_args!("| {} | not here: {how} | {} |\n", kind.name, kind.login));
        }
        text.push_str("\nTheir configurations are in [peers](peers).\n");
    }
}

fn detail(outcome: &Outcome, text: &mut String) {
    push(text, format_args!("## {}: {}\n\n{}\n\n", outcome.row, outcome.title, outcome.how));
    let against = outcome.against.as_deref().and_then(|name| line(outcome, name));
    text.push_str("| |");
    for metric in &outcome.metrics {
        push(text, format_args!(" {} |", metric.name));
    }
    if let Some(against) = against {
        push(text, format_args!(" × {} |", against.name));
    }
    text.push_str("\n|---|");
    let columns = outcome.metrics.len() + usize::from(against.is_some());
    text.push_str(&"---:|".repeat(columns));
    text.push('\n');
    for line in &outcome.lines {
        push(text, format_args!("| {} |", line.name));
        for (at, metric) in outcome.metrics.iter().enumerate() {
            push(text, format_args!(" {} |", spread(&line.values(at), metric.digits)));
        }
        if let Some(against) = against {
            let ratios = paired(line, against, 0, |own, other| own / other);
            push(text, format_args!(" {} |", spread(&ratios, 2)));
        }
        text.push('\n');
    }
    text.push('\n');
}

/// How a goal came out.
struct Found {
    text: String,
    met: bool,
}

impl Found {
    /// None when one of the lines was not measured.
    fn of(goal: &Goal, outcome: &Outcome) -> Option<Self> {
        let own = line(outcome, &goal.line)?;
        let digits = outcome.metrics.get(goal.metric)?.digits;
        let (values, digits, unit) = match &goal.limit {
            Limit::AtMost(_) => (own.values(goal.metric), digits, ""),
            Limit::TimesAtMost(_, to) | Limit::TimesAtLeast(_, to) => {
                let other = line(outcome, to)?;
                (paired(own, other, goal.metric, |own, other| own / other), 2, " ×")
            }
            Limit::AboveAtMost(_, to) => {
                let other = line(outcome, to)?;
                (paired(own, other, goal.metric, |own, other| own - other), digits, " more")
            }
        };
        let middle = median(&values)?;
        let met = match &goal.limit {
            Limit::AtMost(most) | Limit::TimesAtMost(most, _) | Limit::AboveAtMost(most, _) => {
                middle <= *most
            }
            Limit::TimesAtLeast(least, _) => middle >= *least,
        };
        Some(Self { text: format!("{}{unit}", spread(&values, digits)), met })
    }
}

impl Line {
    /// One metric's figures, round by round.
    fn values(&self, metric: usize) -> Vec<f64> {
        self.rounds.iter().filter_map(|round| round.get(metric).copied()).collect()
    }
}

fn line<'o>(outcome: &'o Outcome, name: &str) -> Option<&'o Line> {
    outcome.lines.iter().find(|line| line.name == name)
}

/// Two lines' figures of the same round, made into one.
fn paired(own: &Line, other: &Line, metric: usize, of: fn(f64, f64) -> f64) -> Vec<f64> {
    let pairs = own.values(metric).into_iter().zip(other.values(metric));
    pairs.map(|(own, other)| of(own, other)).collect()
}

/// The median, and behind it the least and the most.
fn spread(values: &[f64], digits: usize) -> String {
    let Some(middle) = median(values) else { return "–".to_owned() };
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let [middle, least, most] = [middle, least, most].map(|value| number(value, digits));
    if least == most { middle } else { format!("{middle} ({least}–{most})") }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(sorted.len() / 2 - 1)?;
    Some((lower + upper) / 2.0)
}

/// With commas between thousands.
fn number(value: f64, digits: usize) -> String {
    let plain = format!("{value:.digits$}");
    let (sign, plain) = plain.strip_prefix('-').map_or(("", plain.as_str()), |rest| ("-", rest));
    let (whole, rest) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{rest}")
}

fn push(text: &mut String, words: std::fmt::Arguments<'_>) {
    let written = text.write_fmt(words);
    debug_assert!(written.is_ok(), "a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measures::Metric;

    fn outcome(limit: Limit) -> Outcome {
        let line = |name: &str, values: &[f64]| Line {
            name: name.into(),
            rounds: values.iter().map(|value| vec![*value]).collect(),
        };
        Outcome {
            metrics: vec![Metric { name: "µs", digits: 1 }],
            lines: vec![line("ours", &[10.0, 22.0, 30.0]), line("theirs", &[10.0, 20.0, 40.0])],
            goals: vec![Goal { what: "", line: "ours".into(), metric: 0, limit }],
            ..Outcome::default()
        }
    }

    fn found(limit: Limit) -> (String, bool) {
        let outcome = outcome(limit);
        let found = Found::of(&outcome.goals[0], &outcome).unwrap();
        (found.text, found.met)
    }

    #[test]
    fn a_ratio_is_taken_in_each_round_and_its_median_counts() {
        let to = || "theirs".to_owned();
        assert_eq!(found(Limit::TimesAtMost(1.0, to())), ("1.00 (0.75–1.10) ×".into(), true));
        assert!(!found(Limit::TimesAtMost(0.99, to())).1);
        assert!(found(Limit::TimesAtLeast(1.0, to())).1);
        assert_eq!(found(Limit::AboveAtMost(0.0, to())).0, "0.0 (-10.0–2.0) more");
        assert!(!found(Limit::AtMost(21.9)).1);
    }

    #[test]
    fn thousands_are_told_apart() {
        let said = [(0.0, "0"), (999.0, "999"), (1000.0, "1,000"), (-1_234_567.0, "-1,234,567")];
        for (value, text) in said {
            assert_eq!(number(value, 0), text);
        }
        assert_eq!(number(1234.5, 1), "1,234.5");
    }
}
