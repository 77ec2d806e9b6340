//! `[[rule]]` and `[[key]]`: who may do what, and keys by their digest.

use http::HeaderName;
use ipnet::IpNet;

use super::problems::{Found, shown};
use super::written::{Form, Written};
use super::{
    Allowance, Config, Models, NamedBackends, Pattern, Policy, Priority, Role, Weight,
    fault_of_note, values,
};

mod overlap;

pub(super) use overlap::overlaps;

/// One rule: whom it is about, and what it gives them. The first that matches counts.
#[derive(Debug, Clone, Default)]
pub struct Rule {
    /// Where it stands, for `check` and `explain`.
    pub place: String,
    /// Of each of these four that is written one has to match; a rule without any is everybody's.
    pub names: Option<Vec<Pattern>>,
    pub roles: Option<Vec<Role>>,
    pub groups: Option<Vec<String>>,
    pub keys: Option<Vec<Pattern>>,
    pub models: Models,
    /// Models that run on ollama.com, under the account of the server's owner.
    pub cloud: bool,
    /// `None` is all that the role allows.
    pub endpoints: Option<Vec<Opening>>,
    pub policy: Policy,
    /// The header in which this caller may say for whom it asks.
    pub acts_for: Option<HeaderName>,
    /// The share of each caller that it is about.
    pub weight: Weight,
    pub priority: Priority,
    /// Where calls that manage models go, each to all of them; nowhere in particular if empty.
    pub manage: Vec<NamedBackends>,
    /// Of each caller that it is about.
    pub allowance: Allowance,
}

/// What a rule opens: a class of endpoints, or a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    Class(&'static str),
    Path(Pattern),
}

/// The classes of the API table that can be opened by name.
const CLASSES: [&str; 4] = ["inference", "models", "manage", "owner"];

/// The members of a group, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub members: Vec<Pattern>,
}

/// A key that stands in the configuration by its digest.
#[derive(Debug, Clone, Default)]
pub struct FileKey {
    pub place: String,
    pub name: String,
    /// Whose it is, if not its own: then it shares that name's account.
    pub owner: Option<String>,
    pub role: Option<Role>,
    pub digest: [u8; 32],
    pub models: Option<Models>,
    /// Models in the cloud; `None` is what the rule says.
    pub cloud: Option<bool>,
    /// The first moment at which it does not count any more.
    pub expires: Option<jiff::Timestamp>,
    /// Where it may be used from; anywhere if empty.
    pub networks: Vec<IpNet>,
    pub allowance: Allowance,
    /// To remember it by.
    pub note: String,
}

impl Rule {
    /// Whether it speaks of nobody in particular.
    #[must_use]
    pub fn is_everybodys(&self) -> bool {
        self.names.is_none() && self.roles.is_none() && self.groups.is_none() && self.keys.is_none()
    }
}

pub(super) fn open_rule(config: &mut Config, written: &Written) -> Result<(), Found> {
    config.rules.push(Rule { place: written.place.to_string(), ..Rule::default() });
    Ok(())
}

pub(super) fn open_key(config: &mut Config, written: &Written) -> Result<(), Found> {
    config.keys.push(FileKey { place: written.place.to_string(), ..FileKey::default() });
    Ok(())
}

/// The rule that is being read; its header came before its keys.
pub(super) fn rule(
    config: &mut Config,
    set: impl FnOnce(&mut Rule) -> Result<(), Found>,
) -> Result<(), Found> {
    config.rules.last_mut().map_or(Ok(()), set)
}

pub(super) fn key(
    config: &mut Config,
    set: impl FnOnce(&mut FileKey) -> Result<(), Found>,
) -> Result<(), Found> {
    config.keys.last_mut().map_or(Ok(()), set)
}

impl Written {
    /// Names or patterns; an empty list would match nobody.
    pub(super) fn patterns(&self) -> Result<Option<Vec<Pattern>>, Found> {
        let patterns = self.each(|name| match name {
            "" => Err("a name is not empty".to_owned()),
            name if name.chars().any(char::is_control) => {
                Err("a name holds no control characters".to_owned())
            }
            name => Ok(Pattern::new(name)),
        })?;
        self.filled_list(patterns)
    }

    pub(super) fn filled_list<T>(&self, list: Vec<T>) -> Result<Option<Vec<T>>, Found> {
        match list.is_empty() {
            true => Err(self.wrong("an empty list is nobody; take the line out, or name somebody")),
            false => Ok(Some(list)),
        }
    }

    /// `"all"`, or a list of patterns; an empty list is no model at all.
    pub(super) fn models(&self) -> Result<Models, Found> {
        if let Form::Text(text) = &self.form {
            return match text.as_str() {
                "all" => Ok(Models::All),
                text => text.parse().map(|one| Models::Only(vec![one])).map_err(|error| {
                    self.wrong(format!("{} is no pattern of models: {error}", shown(text)))
                }),
            };
        }
        self.each(|text| match text {
            "all" => Err("\"all\" stands alone: models = \"all\"".to_owned()),
            text => text
                .parse()
                .map_err(|error| format!("{} is no pattern of models: {error}", shown(text))),
        })
        .map(Models::Only)
    }

    pub(super) fn openings(&self) -> Result<Option<Vec<Opening>>, Found> {
        self.each(opening).map(Some)
    }

    pub(super) fn policy(&self) -> Result<Policy, Found> {
        let Form::Table(fields) = &self.form else { return Err(self.misfit()) };
        Policy::read(fields)
    }

    pub(super) fn groups(&self, groups: &mut Vec<Group>) -> Result<(), Found> {
        let Form::Table(fields) = &self.form else { return Err(self.misfit()) };
        for field in fields {
            let list =
                Self { form: field.form.clone(), place: field.place.clone(), ..self.clone() };
            let members = list.each(|name| match name.is_empty() {
                true => Err("a name is not empty".to_owned()),
                false => Ok(Pattern::new(name)),
            })?;
            groups.push(Group { name: field.name.clone(), members });
        }
        Ok(())
    }
}

fn opening(text: &str) -> Result<Opening, String> {
    if let Some(class) = CLASSES.iter().find(|class| **class == text) {
        return Ok(Opening::Class(class));
    }
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~:@*".contains(&b));
    match text.starts_with('/') && plain && !text.contains("//") {
        true => Ok(Opening::Path(Pattern::new(text))),
        false => Err(format!(
            "{} is neither a path such as \"/api/chat\" nor one of {}",
            shown(text),
            CLASSES.join(", ")
        )),
    }
}

/// `sha256sum` of a key, with or without `sha256:` before it.
pub(super) fn digest(text: &str) -> Result<[u8; 32], String> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    key_digest(hex).map_err(str::to_owned)
}

/// Of a key that nobody is to see: 64 hex digits. That of no key at all is none; it is what a shell makes of
/// a variable that is not set.
///
/// # Errors
/// Says how to make one.
pub fn key_digest(hex: &str) -> Result<[u8; 32], &'static str> {
    let says = "a key's digest has 64 hex digits; `printf %s KEY | sha256sum` tells it";
    let mut digest = [0; 32];
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(says);
    }
    for (at, byte) in digest.iter_mut().enumerate() {
        let pair = hex.get(2 * at..2 * at + 2).ok_or(says)?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| says)?;
    }
    match digest == OF_NOTHING {
        true => Err("this is the digest of an empty text; was the variable with the key set?"),
        false => Ok(digest),
    }
}

/// SHA-256 of no byte.
const OF_NOTHING: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
    0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

/// The moment from which something does not count: a day, to whose end it does, or a moment.
///
/// # Errors
/// Says how to write it.
pub fn expiry(text: &str) -> Result<jiff::Timestamp, String> {
    let says = "write it as a day, \"2027-01-31\" (it counts to the day's end in UTC), or as a \
                moment, \"2027-01-31T18:00:00Z\"";
    if let Ok(moment) = text.parse::<jiff::Timestamp>() {
        return Ok(moment);
    }
    let day: jiff::civil::Date = text.parse().map_err(|_| says)?;
    let next = day.tomorrow().map_err(|_| says)?;
    let next = next.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| says)?;
    Ok(next.timestamp())
}

/// A name as credentials have them: no `/`, which parts a front end from whom it asks for.
pub(super) fn name(text: &str) -> Result<String, String> {
    let odd = |c: char| c.is_control() || c == '/';
    match text.is_empty() || text.len() > 255 || text.chars().any(odd) {
        true => Err("a name has 1 to 255 bytes, without a / and control characters".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// What a key is remembered by.
pub(super) fn note(text: &str) -> Result<String, String> {
    fault_of_note(text).map_or_else(|| Ok(text.to_owned()), |fault| Err(fault.to_owned()))
}

/// The header in which a front end names its user.
pub(super) fn user_header(text: &str) -> Result<HeaderName, String> {
    values::header(text)
}

/// Whether a whole configuration makes sense as far as its rules go.
pub(super) fn faults(config: &Config) -> Vec<(String, String)> {
    let mut faults = Vec::new();
    let mut add = |place: &str, says: String| faults.push((place.to_owned(), says));
    for rule in &config.rules {
        for group in rule.groups.iter().flatten() {
            if !config.groups.iter().any(|known| known.name == *group) {
                add(
                    &rule.place,
                    format!("there is no group {}; [groups] names them", shown(group)),
                );
            }
        }
    }
    for rule in config.rules.iter().filter(|rule| rule.acts_for.is_some()) {
        let named = |list: &Option<Vec<Pattern>>| list.iter().flatten().count();
        let mut patterns = rule.names.iter().flatten().chain(rule.keys.iter().flatten());
        if named(&rule.names) + named(&rule.keys) == 0 || patterns.any(|it| !it.is_exact()) {
            let says = "acts_for is for front ends that are named: names or keys, without a *";
            add(&rule.place, says.to_owned());
        }
    }
    for (at, key) in config.keys.iter().enumerate() {
        let earlier = config.keys.get(..at).unwrap_or_default();
        if key.name.is_empty() {
            add(&key.place, "a key needs a name".to_owned());
        }
        if key.digest == [0; 32] {
            add(&key.place, "a key needs sha256, the digest of the secret itself".to_owned());
        } else if earlier.iter().any(|other| other.digest == key.digest) {
            add(&key.place, "this digest stands at another [[key]] already".to_owned());
        }
    }
    faults
}

#[cfg(test)]
mod tests;
