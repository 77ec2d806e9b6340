//! The TOML file: which keys stand where, and on which line.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeArray, DeInteger, DeTable, DeValue};

use super::keys::{
    ALIAS, BACKEND, KEY, Key, LATER_TABLES, LIMIT, Named, RULE, TABLES, distance, in_table,
};
use super::problems::{Found, Place, Source, shown_key};
use super::written::{Field, Fields, Form, Item, Written};

/// More than anybody writes by hand; a wrong name (a log, a model) is not read to its end.
const MOST_BYTES: u64 = 1 << 20;
/// Past these a file is something else than a configuration.
const MOST_SYNTAX_ERRORS: usize = 10;

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) written: Vec<Written>,
    pub(super) found: Found,
    /// Something in it could not be read, so that a key may be there which was not seen.
    pub(super) is_partial: bool,
}

pub(super) fn read(path: &Path) -> Contents {
    let place = |shown: String| Place::new(Source::File, 0, shown);
    let unreadable = |shown: String, says: String| Contents {
        found: Found::one(&place(shown), says),
        is_partial: true,
        ..Contents::default()
    };
    let name = path.display().to_string();
    let bytes = match bytes_of(path) {
        Ok(bytes) => bytes,
        Err(error) => return unreadable(name, unreadable_because(&error)),
    };
    if bytes.len() as u64 > MOST_BYTES {
        return unreadable(name, "is larger than 1MiB, so it is no configuration".to_owned());
    }
    match String::from_utf8(bytes) {
        Ok(text) => Reader::new(path, &text).document(),
        Err(error) => {
            let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
            if good.is_empty() && matches!(error.as_bytes(), [0xff, 0xfe, ..] | [0xfe, 0xff, ..]) {
                return unreadable(name, "is UTF-16; save it as UTF-8".to_owned());
            }
            let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
            unreadable(
                format!("{name}:{line}"),
                "is not UTF-8 from here; save it as UTF-8".to_owned(),
            )
        }
    }
}

fn bytes_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unreadable_because(error: &io::Error) -> String {
    let kind = error.kind();
    if kind == io::ErrorKind::NotFound {
        "does not exist; `portcullis init` writes one to begin with".to_owned()
    } else if kind == io::ErrorKind::PermissionDenied {
        "may not be read by the user that this runs as; change its owner or its mode".to_owned()
    } else if kind == io::ErrorKind::IsADirectory {
        "is a folder; name the file in it".to_owned()
    } else {
        format!("cannot be read: {error}")
    }
}

/// Walks over the parsed text; a key's byte range gives its line.
#[derive(Debug)]
struct Reader<'a> {
    name: String,
    folder: PathBuf,
    text: &'a str,
    /// Where each line starts.
    lines: Vec<usize>,
    contents: Contents,
}

impl<'a> Reader<'a> {
    fn new(path: &Path, text: &'a str) -> Self {
        let line_starts = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            name: path.display().to_string(),
            folder: path.parent().map(Path::to_owned).unwrap_or_default(),
            text,
            lines: std::iter::once(0).chain(line_starts).collect(),
            contents: Contents::default(),
        }
    }

    fn document(mut self) -> Contents {
        let (document, errors) = DeTable::parse_recoverable(self.text);
        for error in errors.iter().take(MOST_SYNTAX_ERRORS) {
            self.syntax(error.span().unwrap_or(0..0), error.message());
        }
        // What the parser made of a broken line would only be told wrong.
        if errors.is_empty() {
            for (name, value) in document.get_ref() {
                self.top(name.get_ref(), name.span(), value.get_ref(), value.span());
            }
            self.one_backend(document.get_ref());
        }
        self.contents
    }

    fn syntax(&mut self, at: Range<usize>, says: &str) {
        self.contents.is_partial = true;
        let (line, start) = self.line(at.start);
        let before = self.text.get(start..at.start).unwrap_or_default();
        let shown = format!("{}:{line}:{}", self.name, before.chars().count() + 1);
        let place = Place::new(Source::File, at.start, shown);
        self.contents.found.add(place, format!("not TOML: {says}"));
    }

    fn top(&mut self, name: &str, at: Range<usize>, value: &DeValue<'_>, value_at: Range<usize>) {
        match (name, value) {
            ("backend", DeValue::Array(backends)) if is_table(value) => {
                self.blocks(&BACKEND, backends);
            }
            ("alias", DeValue::Array(aliases)) if is_table(value) => self.blocks(&ALIAS, aliases),
            ("rule", DeValue::Array(rules)) if is_table(value) => self.blocks(&RULE, rules),
            ("key", DeValue::Array(keys)) if is_table(value) => self.blocks(&KEY, keys),
            ("limit", DeValue::Array(limits)) if is_table(value) => self.blocks(&LIMIT, limits),
            ("backend" | "alias" | "rule" | "key" | "limit", _) => {
                self.problem(at, format!("{name} is written [[{name}]], with two brackets"));
            }
            ("groups", DeValue::Table(groups)) => self.named("groups.*", groups),
            ("prices", DeValue::Table(prices)) => self.named("prices.*", prices),
            (name, DeValue::Table(table)) if TABLES.contains(&name) => self.table(name, table),
            (name, value) if Named::find(name).is_none() && is_table(value) => {
                self.problem(at, table_advice(name));
            }
            (name, _) if TABLES.contains(&name) => {
                let says = format!("{name} is a table; write [{name}] and its keys below it");
                self.problem(at, says);
            }
            (name, value) => self.entry(name, at, value, value_at),
        }
    }

    /// Tables of which there may be any number: each begins with its opening.
    fn blocks(&mut self, opening: &'static Key, blocks: &DeArray<'_>) {
        for block in blocks {
            let Some(table) = block.get_ref().as_table() else { continue };
            let first = table.iter().map(|(name, _)| name.span().start).min();
            let at = block.span().start.min(first.unwrap_or(usize::MAX));
            self.write(opening, Form::Other("a table"), at);
            self.table(opening.name, table);
        }
    }

    /// Their names are the reader's own.
    fn named(&mut self, key: &str, entries: &DeTable<'_>) {
        let Some(Named::Known(key)) = Named::find(key) else { return };
        for field in self.entries(entries) {
            let place = field.place.clone();
            let form = Form::Table(vec![field]);
            let folder = self.folder.clone();
            self.contents.written.push(Written { key, form, place, folder });
        }
    }

    fn write(&mut self, key: &'static Key, form: Form, at: usize) {
        let written = Written { key, form, place: self.place(at), folder: self.folder.clone() };
        self.contents.written.push(written);
    }

    fn table(&mut self, table: &str, entries: &DeTable<'_>) {
        for (name, value) in entries {
            let full = format!("{table}.{}", name.get_ref());
            self.entry(&full, name.span(), value.get_ref(), value.span());
        }
    }

    fn entry(&mut self, name: &str, at: Range<usize>, value: &DeValue<'_>, value_at: Range<usize>) {
        let Some(Named::Known(key)) = Named::find(name) else {
            return self.problem(at, advice(name));
        };
        let form = self.form(value, value_at);
        self.write(key, form, at.start);
    }

    fn form(&self, value: &DeValue<'_>, at: Range<usize>) -> Form {
        match value {
            DeValue::String(text) => Form::Text(text.to_string()),
            DeValue::Boolean(on) => Form::Switch(*on),
            DeValue::Integer(number) => whole(number),
            DeValue::Float(number) => Form::Fraction(number.as_str().to_owned()),
            DeValue::Datetime(_) => Form::Other("a date"),
            DeValue::Table(table) => Form::Table(self.entries(table)),
            DeValue::Array(items)
                if !items.is_empty() && items.iter().all(|it| it.get_ref().is_table()) =>
            {
                let tables =
                    items.iter().filter_map(|item| Some((item, item.get_ref().as_table()?)));
                Form::Tables(tables.map(|(item, table)| self.fields(table, item.span())).collect())
            }
            DeValue::Array(items) => {
                let items = items.iter().map(|item| Item {
                    text: text_of(self.form(item.get_ref(), at.clone())),
                    place: self.place(item.span().start),
                });
                Form::List(items.collect())
            }
        }
    }

    fn entries(&self, table: &DeTable<'_>) -> Vec<Field> {
        let field = |(name, value): (&Spanned<Cow<'_, str>>, &Spanned<DeValue<'_>>)| Field {
            name: name.get_ref().to_string(),
            form: self.form(value.get_ref(), value.span()),
            place: self.place(name.span().start),
        };
        table.iter().map(field).collect()
    }

    /// A small table within a list.
    fn fields(&self, table: &DeTable<'_>, at: Range<usize>) -> Fields {
        let field = |name: &str, value: &DeValue<'_>, at: Range<usize>| {
            let place = self.place(at.start);
            let text = text_of(self.form(value, at));
            (name.to_owned(), Item { text, place })
        };
        let fields =
            table.iter().map(|(name, value)| field(name.get_ref(), value.get_ref(), name.span()));
        Fields { fields: fields.collect(), place: self.place(at.start) }
    }

    fn one_backend(&mut self, document: &DeTable<'_>) {
        let upstream = document.iter().find(|(name, _)| name.get_ref() == "upstream");
        let backend = document.iter().any(|(name, _)| name.get_ref() == "backend");
        if let Some((name, _)) = upstream.filter(|_| backend) {
            let says = "upstream and [[backend]] both name the model server; keep one of them, \
                        upstream is short for the url of [[backend]]";
            self.problem(name.span(), says);
        }
    }

    fn problem(&mut self, at: Range<usize>, says: impl Into<String>) {
        let place = self.place(at.start);
        self.contents.found.add(place, says);
    }

    fn place(&self, at: usize) -> Place {
        Place::new(Source::File, at, format!("{}:{}", self.name, self.line(at).0))
    }

    /// Number and start of the line that holds a byte.
    fn line(&self, at: usize) -> (usize, usize) {
        let number = self.lines.partition_point(|start| *start <= at);
        (number, self.lines.get(number.saturating_sub(1)).copied().unwrap_or(0))
    }
}

/// Or what stands in the place of a text.
fn text_of(form: Form) -> Result<String, &'static str> {
    let Form::Text(text) = form else { return Err(form.name()) };
    Ok(text)
}

fn whole(number: &DeInteger<'_>) -> Form {
    i128::from_str_radix(number.as_str(), number.radix())
        .map_or(Form::Other("a number that is too large"), Form::Number)
}

/// Written with a header, of either kind.
fn is_table(value: &DeValue<'_>) -> bool {
    let tables = |items: &DeArray<'_>| {
        !items.is_empty() && items.iter().all(|item| item.get_ref().is_table())
    };
    value.is_table() || value.as_array().is_some_and(tables)
}

fn table_advice(name: &str) -> String {
    let shown = shown_key(name);
    // Of two that are as near, the one that this begins like.
    let tables = TABLES.iter().chain(&LATER_TABLES);
    let tables = tables.map(|table| (distance(name, table), !name.starts_with(table), table));
    let nearest = tables.min().map(|(distance, _, table)| (distance, table));
    match nearest.filter(|(distance, _)| *distance <= 2) {
        Some((_, table @ &("backend" | "alias" | "rule" | "key" | "limit"))) => {
            format!("there is no table {shown}; did you mean [[{table}]]?")
        }
        Some((_, table)) if TABLES.contains(table) => {
            format!("there is no table {shown}; did you mean [{table}]?")
        }
        Some((_, table)) => {
            format!(
                "there is no table {shown}; {table}, if you mean that, comes with a later version"
            )
        }
        None => format!(
            "there is no table {shown}; roles, groups, prices, tls, cors, timeouts, backend, alias, rule, key and limit are"
        ),
    }
}

/// What to do about a name that is no key here.
fn advice(name: &str) -> String {
    let shown = shown_key(name);
    match Named::find(name).or_else(|| Named::elsewhere(name)) {
        Some(Named::Later(_)) => {
            let other = match Named::elsewhere(name) {
                Some(Named::Known(key)) => format!("; {}", stands(key)),
                Some(Named::Later(_)) | None => String::new(),
            };
            return not_yet(&shown) + &other;
        }
        Some(Named::Known(key)) => return format!("there is no key {shown}; {}", stands(key)),
        None => {}
    }
    let slips = (in_table(name).1.chars().count() / 2).max(2);
    match Named::nearest(name, slips) {
        Some(Named::Known(key)) => {
            format!("there is no key {shown}; did you mean {}?", key.name)
        }
        Some(Named::Later(later)) => {
            format!(
                "there is no key {shown}; {later}, if you mean that, comes with a later version"
            )
        }
        None if in_table(name).0 == Some("roles") => {
            format!("there is no key {shown}; a role has its names: admin = [\"anna\"]")
        }
        None => {
            format!("there is no key {shown}; `portcullis init` writes a file with all of them")
        }
    }
}

fn stands(key: &Key) -> String {
    let place = match key.in_table().0 {
        None => "at the top of the file, above the first [table]".to_owned(),
        Some(table @ ("backend" | "alias" | "rule" | "key" | "limit")) => {
            format!("under [[{table}]]")
        }
        Some(table) => format!("under [{table}]"),
    };
    format!("{} stands {place}", key.name)
}

pub(super) fn not_yet(name: &str) -> String {
    format!(
        "{name} is not yet known to this version, a later one brings it; take it out until then"
    )
}
