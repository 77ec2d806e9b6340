//! What a rule does to the parameters of a request: clamp, force, drop, refuse.

use super::problems::{Found, shown, shown_key};
use super::values;
use super::written::{Field, Form};

/// The changes that a rule makes; none is the default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Policy {
    /// By the parameter's name: `keep_alive`, or one of Ollama's options.
    pub changes: Vec<(String, Change)>,
    pub refuses_images: bool,
    pub refuses_tools: bool,
}

/// What is done to one parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Taken out, so that the server's own setting counts.
    Drop,
    /// This JSON text stands in its place, also where none was sent.
    Force(String),
    /// Kept between two bounds; `keep_alive` in seconds.
    Clamp(Bounds),
    /// `num_ctx` as the loaded model has it, where that suffices.
    Loaded,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bounds {
    pub min: Option<f64>,
    pub max: Option<f64>,
}

/// What a request is about, and cannot be changed on the way.
const FIXED: [&str; 9] =
    ["model", "name", "source", "destination", "from", "stream", "messages", "prompt", "options"];
const WANTED: &str = "write { max = 8192 }, { min = 1, max = 8192 }, { force = 4096 } or \"drop\"";

impl Policy {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && !self.refuses_images && !self.refuses_tools
    }

    pub(super) fn read(fields: &[Field]) -> Result<Self, Found> {
        let mut policy = Self::default();
        let mut found = Found::default();
        for Field { name, form, place } in fields {
            let read = match name.as_str() {
                "images" => refused(form).map(|()| policy.refuses_images = true),
                "tools" => refused(form).map(|()| policy.refuses_tools = true),
                name => {
                    change(name, form).map(|change| policy.changes.push((name.to_owned(), change)))
                }
            };
            if let Err(says) = read {
                found.add(place.clone(), format!("{}: {says}", shown_key(name)));
            }
        }
        if found.is_empty() { Ok(policy) } else { Err(found) }
    }
}

fn refused(form: &Form) -> Result<(), String> {
    if matches!(form, Form::Text(text) if text == "refuse") {
        return Ok(());
    }
    Err(format!("only \"refuse\" can be written here, found {}", form.name()))
}

fn change(name: &str, form: &Form) -> Result<Change, String> {
    if name.is_empty()
        || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    {
        return Err("is no parameter; their names are like num_ctx".to_owned());
    }
    if FIXED.contains(&name) {
        return Err("cannot be changed by a policy".to_owned());
    }
    if let Form::Table(fields) = form {
        return bounds_or_value(name, fields);
    }
    let Form::Text(text) = form else { return Err(format!("found {}; {WANTED}", form.name())) };
    match (text.as_str(), name) {
        ("drop", _) => Ok(Change::Drop),
        ("loaded", "num_ctx") => Ok(Change::Loaded),
        (text, _) => Err(format!("{} is no change; {WANTED}", shown(text))),
    }
}

fn bounds_or_value(name: &str, fields: &[Field]) -> Result<Change, String> {
    let mut bounds = Bounds::default();
    let mut force = None;
    for field in fields {
        match field.name.as_str() {
            "min" => bounds.min = Some(number(name, &field.form)?),
            "max" => bounds.max = Some(number(name, &field.form)?),
            "force" => force = Some(json(name, &field.form)?),
            other => return Err(format!("has min, max and force, and no {}", shown(other))),
        }
    }
    match (bounds, force) {
        (Bounds { min: None, max: None }, Some(force)) => Ok(Change::Force(force)),
        (_, Some(_)) => Err("is either forced or kept within bounds".to_owned()),
        (Bounds { min: None, max: None }, None) => Err(format!("changes nothing; {WANTED}")),
        (Bounds { min: Some(min), max: Some(max) }, None) if min > max => {
            Err("has a min above its max".to_owned())
        }
        (bounds, None) => Ok(Change::Clamp(bounds)),
    }
}

/// Of `keep_alive` the seconds, which may be written as a duration.
fn number(name: &str, form: &Form) -> Result<f64, String> {
    if let Form::Text(text) = form
        && name == "keep_alive"
    {
        return Ok(values::duration(text)?.as_secs_f64());
    }
    let text = plain(form).filter(|_| !matches!(form, Form::Text(_) | Form::Switch(_)));
    let number = text.and_then(|text| text.parse().ok()).filter(|number: &f64| number.is_finite());
    number.ok_or_else(|| format!("a bound is a number, found {}", form.name()))
}

fn json(name: &str, form: &Form) -> Result<String, String> {
    if let Form::Text(text) = form {
        if name == "keep_alive" {
            values::duration(text)?;
        }
        return Ok(serde_json::Value::from(text.as_str()).to_string());
    }
    plain(form).ok_or_else(|| format!("cannot be forced to {}", form.name()))
}

/// A scalar as JSON writes it.
fn plain(form: &Form) -> Option<String> {
    if let Form::Number(number) = form {
        return Some(number.to_string());
    }
    if let Form::Switch(on) = form {
        return Some(on.to_string());
    }
    let Form::Fraction(text) = form else { return None };
    let number: f64 = text.replace('_', "").parse().ok()?;
    number.is_finite().then(|| number.to_string())
}
