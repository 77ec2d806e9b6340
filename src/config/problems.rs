//! What is wrong, where, and what to do about it.

use std::fmt;

/// One thing that is wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `portcullis.toml:12`, `--listen`, `PORTCULLIS_LISTEN`, or `configuration`.
    pub place: String,
    pub says: String,
}

/// Everything that is wrong, one problem a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = self.0.iter().map(|problem| problem.place.chars().count()).max().unwrap_or(0);
        for (number, Problem { place, says }) in self.0.iter().enumerate() {
            let line_end = if number == 0 { "" } else { "\n" };
            write!(f, "{line_end}{place:<widest$}  {says}")?;
        }
        Ok(())
    }
}

/// Where something was written; the file first, from its top, then variables, then flags.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    source: Source,
    number: usize,
    shown: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    File,
    Variable,
    Flag,
}

impl Place {
    pub(super) fn new(source: Source, number: usize, shown: String) -> Self {
        Self { source, number, shown }
    }

    /// The lines of a file do not name the key that they are about; the other places do.
    pub(super) fn names_the_key(&self) -> bool {
        self.source != Source::File
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Problems on their way to be sorted: a table is read in another order than it was written in.
#[derive(Debug, Clone, Default)]
pub(super) struct Found(Vec<(Place, String)>);

impl Found {
    pub(super) fn one(place: &Place, says: impl Into<String>) -> Self {
        Self(vec![(place.clone(), says.into())])
    }

    pub(super) fn add(&mut self, place: Place, says: impl Into<String>) {
        self.0.push((place, says.into()));
    }

    pub(super) fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Says before each problem which key it is about, where its place does not.
    pub(super) fn about(mut self, key: &str) -> Self {
        for (place, says) in &mut self.0 {
            if !place.names_the_key() {
                *says = format!("{key}: {says}");
            }
        }
        self
    }

    pub(super) fn sorted(mut self) -> Vec<Problem> {
        self.0.sort();
        self.0.into_iter().map(|(place, says)| Problem { place: place.shown, says }).collect()
    }
}

/// A value as it may be repeated: an address may hold a password, and a terminal obeys control
/// characters.
pub(super) fn shown(text: &str) -> String {
    if text.contains('@') {
        return "this value (not repeated, for it may hold a password)".to_owned();
    }
    let start: String = text.chars().take(MOST_SHOWN).collect();
    let more = if start.len() < text.len() { "…" } else { "" };
    format!("{start:?}{more}")
}

/// A key's name as it may be repeated.
pub(super) fn shown_key(name: &str) -> String {
    let start: String = name.chars().take(MOST_SHOWN).collect();
    let more = if start.len() < name.len() { "…" } else { "" };
    format!("{}{more}", start.escape_debug())
}

const MOST_SHOWN: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_told_one_a_line_and_in_columns() {
        let problem =
            |place: &str, says: &str| Problem { place: place.to_owned(), says: says.to_owned() };
        let problems = Problems(vec![problem("p.toml:7", "one"), problem("--listen", "two")]);
        assert_eq!(problems.to_string(), "p.toml:7  one\n--listen  two");
        let problems = Problems(vec![problem("p.toml:7", "one"), problem("PORTCULLIS_X", "two")]);
        assert_eq!(problems.to_string(), "p.toml:7      one\nPORTCULLIS_X  two");
    }

    #[test]
    fn the_file_comes_before_variables_and_these_before_flags() {
        let mut found = Found::default();
        found.add(Place::new(Source::Flag, 0, "flag".to_owned()), "");
        found.add(Place::new(Source::File, 10, "line 10".to_owned()), "");
        found.add(Place::new(Source::Variable, 0, "variable".to_owned()), "");
        found.add(Place::new(Source::File, 9, "line 9".to_owned()), "");
        let places: Vec<_> = found.sorted().into_iter().map(|problem| problem.place).collect();
        assert_eq!(places, ["line 9", "line 10", "variable", "flag"]);
    }

    #[test]
    fn what_may_hold_a_password_is_not_repeated() {
        assert!(!shown("http://user:canary@gpu").contains("canary"));
        assert_eq!(shown("a\u{1b}[31m"), "\"a\\u{1b}[31m\"");
        assert!(shown(&"x".repeat(500)).len() < 80);
        assert_eq!(shown_key("a\u{1b}b"), "a\\u{1b}b");
    }
}
