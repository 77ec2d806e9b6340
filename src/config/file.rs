//! The TOML file: which keys stand where, and on which line.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, LATER};
use super::{Problem, Typed, Value, folder_of};

/// The tables whose keys are known by `table.key`.
const TABLES: [&str; 3] = ["roles", "cors", "timeouts"];

pub(super) fn read(path: &Path, problems: &mut Vec<Problem>) -> Vec<Typed> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let mut reader = Reader { path, text: &text, typed: Vec::new(), problems };
            reader.document();
            reader.typed
        }
        Err(error) => {
            let says = format!("cannot be read: {error}");
            problems.push(Problem { place: path.display().to_string(), says });
            Vec::new()
        }
    }
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    typed: Vec<Typed>,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn document(&mut self) {
        let text = self.text;
        let document = match DeTable::parse(text) {
            Ok(document) => document,
            Err(error) => {
                let span = error.span().unwrap_or(0..0);
                let column = text.get(..span.start).map_or(1, |before| {
                    before.rsplit('\n').next().unwrap_or_default().chars().count() + 1
                });
                let says = format!("not TOML at column {column}: {}", error.message());
                return self.problem(span, says);
            }
        };
        for (name, value) in document.get_ref() {
            let span = name.span();
            match (name.get_ref().as_ref(), value.get_ref()) {
                (name, DeValue::Table(table)) if TABLES.contains(&name) => self.table(name, table),
                ("backend", DeValue::Array(backends)) => {
                    for (number, backend) in backends.iter().enumerate() {
                        self.backend(number, backend);
                    }
                }
                ("backend", _) => {
                    self.problem(span, "write it as [[backend]], with two brackets".to_owned());
                }
                (name, value_of) => self.entry(name, span, value_of, value.span()),
            }
        }
        self.one_backend(document.get_ref());
    }

    fn backend(&mut self, number: usize, backend: &Spanned<DeValue<'_>>) {
        let DeValue::Table(table) = backend.get_ref() else {
            return self.problem(backend.span(), "write it as [[backend]]".to_owned());
        };
        match number {
            0 => self.table("backend", table),
            _ => self.problem(
                backend.span(),
                "several backends are not yet known to this version".to_owned(),
            ),
        }
    }

    fn table(&mut self, table: &str, entries: &DeTable<'_>) {
        for (name, value) in entries {
            let full = format!("{table}.{}", name.get_ref());
            self.entry(&full, name.span(), value.get_ref(), value.span());
        }
    }

    fn entry(&mut self, name: &str, at: Range<usize>, value: &DeValue<'_>, value_at: Range<usize>) {
        let Some(key) = keys::find(name) else { return self.unknown(name, at) };
        match self.value(value, value_at.clone()) {
            Ok(value) => {
                let (place, folder) = (self.place(&at), folder_of(self.path));
                self.typed.push(Typed { key: key.name, value, place, folder });
            }
            Err(found) => {
                let says =
                    format!("{name}: {found} does not fit here; the default is {}", key.default);
                self.problem(value_at, says);
            }
        }
    }

    fn value(&self, value: &DeValue<'_>, at: Range<usize>) -> Result<Value, &'static str> {
        match value {
            DeValue::String(text) => Ok(Value::Text(text.to_string())),
            DeValue::Boolean(on) => Ok(Value::Switch(*on)),
            DeValue::Integer(_) => {
                let digits = self.text.get(at).unwrap_or_default().replace('_', "");
                digits.parse().map(Value::Number).map_err(|_| "this number")
            }
            DeValue::Array(items) => items
                .iter()
                .map(|item| {
                    let text = item.get_ref().as_str().map(str::to_owned);
                    text.ok_or("a list of something else than texts")
                })
                .collect::<Result<_, _>>()
                .map(Value::List),
            DeValue::Float(_) => Err("a number with a fraction"),
            DeValue::Datetime(_) => Err("a date"),
            DeValue::Table(_) => Err("a table"),
        }
    }

    fn unknown(&mut self, name: &str, at: Range<usize>) {
        let later = LATER.contains(&name);
        let says = if later {
            format!("{name} is not yet known to this version; a later one brings it. Take it out")
        } else {
            match keys::nearest(name, name.len() / 2) {
                Some(near) => format!("there is no key {name}; did you mean {}?", near.name),
                None => format!("there is no key {name}; portcullis.example.toml has them all"),
            }
        };
        self.problem(at, says);
    }

    fn one_backend(&mut self, document: &DeTable<'_>) {
        let upstream = document.iter().find(|(name, _)| name.get_ref() == "upstream");
        let backend = document.iter().any(|(name, _)| name.get_ref() == "backend");
        if let Some((name, _)) = upstream.filter(|_| backend) {
            let says = "upstream and [[backend]] name two backends; keep one of them".to_owned();
            self.problem(name.span(), says);
        }
    }

    fn problem(&mut self, at: Range<usize>, says: String) {
        let place = self.place(&at);
        self.problems.push(Problem { place, says });
    }

    fn place(&self, at: &Range<usize>) -> String {
        let before = self.text.get(..at.start).unwrap_or_default();
        let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
        format!("{}:{line}", self.path.display())
    }
}
