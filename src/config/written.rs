//! A value as it was written, and what its key can make of it.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::keys::{Key, Kind};
use super::problems::{Found, Place, shown, shown_key};
use super::roles::{Pattern, Role, Roles};
use super::{ListenAddr, Origins, PairFiles, values};

/// A value, and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) key: &'static Key,
    pub(super) form: Form,
    pub(super) place: Place,
    /// What relative paths are relative to.
    pub(super) folder: PathBuf,
}

#[derive(Debug, Clone)]
pub(super) enum Form {
    Text(String),
    Switch(bool),
    Number(i128),
    List(Vec<Item>),
    /// A list of small tables.
    Tables(Vec<Fields>),
    /// As it stands there.
    Fraction(String),
    Table(Vec<Field>),
    /// What no key takes, by name: a date.
    Other(&'static str),
}

/// One entry of a table.
#[derive(Debug, Clone)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) form: Form,
    pub(super) place: Place,
}

#[derive(Debug, Clone)]
pub(super) struct Item {
    /// Or what stands in the place of a text.
    pub(super) text: Result<String, &'static str>,
    pub(super) place: Place,
}

/// A small table in a list: each key with what stands for it.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    pub(super) fields: Vec<(String, Item)>,
    pub(super) place: Place,
}

impl Form {
    /// Flags and variables are text; the items of a list are parted by commas.
    pub(super) fn of_text(text: &str, kind: Kind, place: &Place) -> Result<Self, String> {
        let not = || Err(format!("{} is not {}", shown(text), kind.wanted()));
        match kind {
            Kind::Policy | Kind::Groups | Kind::Prices | Kind::Weight => not(),
            Kind::Switch => text.parse().map_or_else(|_| not(), |on| Ok(Self::Switch(on))),
            Kind::Count => text.parse().map_or_else(|_| not(), |number| Ok(Self::Number(number))),
            Kind::Addresses
            | Kind::Headers
            | Kind::Endpoints
            | Kind::Networks
            | Kind::Origins
            | Kind::Names
            | Kind::Models
            | Kind::Tags
            | Kind::ModelNames
            | Kind::Openings => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                let item = |text: &str| Item { text: Ok(text.to_owned()), place: place.clone() };
                Ok(Self::List(items.map(item).collect()))
            }
            Kind::Text
            | Kind::File
            | Kind::Folder
            | Kind::Backend
            | Kind::Web
            | Kind::Choice(_)
            | Kind::Size
            | Kind::Pairs
            | Kind::Expiry
            | Kind::Zone
            | Kind::AtOnce
            | Kind::Duration => Ok(Self::Text(text.to_owned())),
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Switch(_) => "true or false",
            Self::Number(_) => "a number",
            Self::List(_) => "a list",
            Self::Tables(_) => "a list of tables",
            Self::Fraction(_) => "a number with a fraction",
            Self::Table(_) => "a table",
            Self::Other(name) => name,
        }
    }
}

/// Stores a value that could be read.
pub(super) fn put<T>(field: &mut T, value: Result<T, Found>) -> Result<(), Found> {
    *field = value?;
    Ok(())
}

impl Written {
    /// The key's; of a table whose names are the reader's own with that name.
    pub(super) fn name(&self) -> Cow<'static, str> {
        let table = self.key.name.strip_suffix('*');
        let Some((table, Form::Table(entries))) = table.map(|table| (table, &self.form)) else {
            return Cow::Borrowed(self.key.name);
        };
        let own: String = entries.iter().map(|entry| shown_key(&entry.name)).collect();
        let is_bare = own.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        let quote = if is_bare { "" } else { "\"" };
        Cow::Owned(format!("{table}{quote}{own}{quote}"))
    }

    pub(super) fn wrong(&self, says: impl Into<String>) -> Found {
        Found::one(&self.place, says)
    }

    pub(super) fn misfit(&self) -> Found {
        let (wanted, found) = (self.key.kind.wanted(), self.form.name());
        self.wrong(format!("expected {wanted}, found {found}"))
    }

    fn text(&self) -> Result<&str, Found> {
        let Form::Text(text) = &self.form else { return Err(self.misfit()) };
        Ok(text)
    }

    pub(super) fn parsed<T, E: ToString>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, Found> {
        parse(self.text()?).map_err(|says| self.wrong(says.to_string()))
    }

    /// An empty text is no value.
    pub(super) fn filled<T>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Found> {
        self.parsed(|text| if text.is_empty() { Ok(None) } else { parse(text).map(Some) })
    }

    pub(super) fn path(&self) -> Result<Option<PathBuf>, Found> {
        self.filled(|text| match text.contains('\0') {
            true => Err("a file's name cannot hold NUL".to_owned()),
            false => Ok(self.folder.join(text)),
        })
    }

    pub(super) fn switch(&self) -> Result<bool, Found> {
        let Form::Switch(on) = &self.form else { return Err(self.misfit()) };
        Ok(*on)
    }

    pub(super) fn count(&self, range: RangeInclusive<u32>) -> Result<u32, Found> {
        let Form::Number(number) = &self.form else { return Err(self.misfit()) };
        let count = u32::try_from(*number).ok().filter(|count| range.contains(count));
        count.ok_or_else(|| {
            self.wrong(format!("from {} to {}; {number} is not", range.start(), range.end()))
        })
    }

    pub(super) fn one_of<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Found> {
        self.parsed(|text| {
            let choice = choices.iter().find(|(name, _)| *name == text);
            let not = || format!("{} is not {}", shown(text), self.key.kind.wanted());
            choice.map(|(_, value)| *value).ok_or_else(not)
        })
    }

    pub(super) fn size(&self) -> Result<u64, Found> {
        let size = if let Form::Number(number) = &self.form {
            u64::try_from(*number).map_err(|_| self.misfit())?
        } else {
            self.parsed(values::size)?
        };
        match size {
            0 => Err(self.wrong("with 0 bytes every body would be refused")),
            size if size > 1 << 50 => Err(self.wrong("more than a machine has; at most 1024TiB")),
            size => Ok(size),
        }
    }

    pub(super) fn duration(&self, most: Duration) -> Result<Duration, Found> {
        let duration = self.parsed(values::duration)?;
        let hours = most.as_secs() / 3600;
        let most = if hours == 1 { "an hour".to_owned() } else { format!("{hours} hours") };
        if duration.as_secs() > hours * 3600 {
            return Err(self.wrong(format!("at most {most}")));
        }
        Ok(duration)
    }

    pub(super) fn kept(&self) -> Result<Duration, Found> {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        match self.parsed(values::duration)? {
            short if short < DAY => Err(self.wrong("at least a day, as 1d")),
            long if long > 3650 * DAY => Err(self.wrong("at most ten years, as 3650d")),
            kept => Ok(kept),
        }
    }

    pub(super) fn timeout(&self) -> Result<Duration, Found> {
        let duration = self.duration(Duration::from_secs(30 * 24 * 3600))?;
        if duration.is_zero() {
            return Err(self.wrong("nothing can be done in no time; write it as 10s"));
        }
        Ok(duration)
    }

    /// Every item that cannot be read is a problem of its own.
    pub(super) fn each<T>(
        &self,
        mut parse: impl FnMut(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, Found> {
        let mut found = Found::default();
        let mut good = Vec::new();
        for item in self.items()? {
            let value = match &item.text {
                Ok(text) => parse(text),
                Err(other) => {
                    Err(format!("expected {}, found {other} in it", self.key.kind.wanted()))
                }
            };
            match value {
                Ok(value) => good.push(value),
                Err(says) => found.add(item.place.clone(), says),
            }
        }
        if found.is_empty() { Ok(good) } else { Err(found) }
    }

    /// A single text stands for a list of one.
    fn items(&self) -> Result<Vec<Item>, Found> {
        if let Form::List(items) = &self.form {
            return Ok(items.clone());
        }
        let Form::Text(one) = &self.form else { return Err(self.misfit()) };
        Ok(vec![Item { text: Ok(one.clone()), place: self.place.clone() }])
    }

    /// The same, where an item that stands there twice is a slip.
    pub(super) fn each_once<T: PartialEq + Clone>(
        &self,
        parse: impl Fn(&str) -> Result<T, String>,
        may_repeat: impl Fn(&T) -> bool,
    ) -> Result<Vec<T>, Found> {
        let mut seen = Vec::new();
        self.each(|text| {
            let value = parse(text)?;
            if seen.contains(&value) && !may_repeat(&value) {
                return Err(format!("{} stands here twice; take one out", shown(text)));
            }
            seen.push(value.clone());
            Ok(value)
        })
    }

    pub(super) fn listen(&self) -> Result<Vec<ListenAddr>, Found> {
        let place = |text: &str| match values::listen(text)? {
            ListenAddr::Unix(path) => Ok(ListenAddr::Unix(self.folder.join(path))),
            ListenAddr::Tcp(address) => Ok(ListenAddr::Tcp(address)),
        };
        // Port 0 is any free one, so each is another.
        let is_any = |it: &ListenAddr| matches!(it, ListenAddr::Tcp(it) if it.port() == 0);
        let addresses = self.each_once(place, is_any)?;
        if addresses.is_empty() {
            return Err(self.wrong("one address at least is needed, such as 0.0.0.0:8880"));
        }
        Ok(addresses)
    }

    /// Each a certificate with its key, and nothing else.
    pub(super) fn pairs(&self) -> Result<Vec<PairFiles>, Found> {
        let tables = if let Form::Tables(tables) = &self.form {
            tables.as_slice()
        } else {
            // An empty list looks like one of anything.
            let Form::List(items) = &self.form else { return Err(self.misfit()) };
            if !items.is_empty() {
                return Err(self.misfit());
            }
            &[]
        };
        let mut found = Found::default();
        let mut pairs = Vec::new();
        for table in tables {
            match self.pair(table) {
                Ok(pair) => pairs.push(pair),
                Err(wrong) => found.extend(wrong),
            }
        }
        if found.is_empty() { Ok(pairs) } else { Err(found) }
    }

    fn pair(&self, table: &Fields) -> Result<PairFiles, Found> {
        let (mut cert, mut key) = (None, None);
        for (name, item) in &table.fields {
            let path = match item.text.as_deref() {
                Ok(text) if !text.is_empty() && !text.contains('\0') => self.folder.join(text),
                Ok(_) | Err(_) => return Err(Found::one(&item.place, "names no file")),
            };
            match name.as_str() {
                "cert" => cert = Some(path),
                "key" => key = Some(path),
                other => {
                    let says = format!("a pair has cert and key, and no {}", shown(other));
                    return Err(Found::one(&item.place, says));
                }
            }
        }
        match (cert, key) {
            (Some(cert), Some(key)) => Ok(PairFiles { cert, key }),
            (None, _) | (_, None) => Err(Found::one(&table.place, "a pair has both cert and key")),
        }
    }

    pub(super) fn origins(&self) -> Result<Origins, Found> {
        let items = self.items()?;
        let star = items.iter().find(|item| item.text.as_deref() == Ok("*"));
        match star {
            Some(_) if items.len() == 1 => Ok(Origins::Any),
            Some(star) => {
                let says = "\"*\" is every site; let it stand alone, or take it out";
                Err(Found::one(&star.place, says))
            }
            None => self.each(values::origin).map(Origins::Listed),
        }
    }

    pub(super) fn names(&self, roles: &mut Roles, role: Role) -> Result<(), Found> {
        self.each(|name| {
            if name.is_empty() || name.chars().any(char::is_control) {
                return Err("a name is neither empty nor holds control characters".to_owned());
            }
            roles.add(Pattern::new(name), role)
        })
        .map(drop)
    }
}
