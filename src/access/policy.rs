//! What a rule's policy changes in a body: those values alone, the rest byte for byte.

use std::borrow::Cow;
use std::fmt::Write as _;

use http::HeaderValue;

use super::{Ground, Reach};
use crate::api::Field;
use crate::call::Call;
use crate::call::reading::{Member, Reading};
use crate::call::rewrite::Edit;
use crate::config::{Bounds, Change};
use crate::reject::{Denied, Dialect, Reject, Why};

/// Longest report of what was changed.
const LONGEST_REPORT: usize = 1024;
/// A value that a report repeats, at most.
const LONGEST_VALUE: usize = 32;

/// Makes the body what the policy wants; says what was changed, for the caller.
///
/// # Errors
/// 403 for images or tools that are not wanted, 400 for a parameter that cannot be compared.
pub(super) fn apply(
    reach: &Reach,
    call: &mut Call<'_>,
    ground: &Ground<'_>,
) -> Result<Option<HeaderValue>, Reject> {
    let policy = &reach.rule().policy;
    let refused = if policy.refuses_images && call.reading.has_images() {
        Some("images")
    } else if policy.refuses_tools && call.reading.has_tools() {
        Some("tools")
    } else {
        None
    };
    if let Some(what) = refused {
        let (operation, name) = (call.asked.operation(), reach.who().name().to_string());
        let why = Why::Content(what);
        return Err(Reject::Forbidden(Box::new(Denied { operation, name, why })));
    }
    if call.reading.object().is_none() {
        return Ok(None);
    }
    let mut changes = Changes {
        call,
        loaded_context: ground.loaded_context,
        edits: Vec::new(),
        new_options: Vec::new(),
        report: String::new(),
    };
    for (name, change) in &policy.changes {
        changes.make(name, change)?;
    }
    let (edits, report) = changes.finish();
    call.edit(&edits, ground.bounds)?;
    Ok(HeaderValue::from_str(&report).ok().filter(|report| !report.is_empty()))
}

struct Changes<'a, 'b> {
    call: &'a Call<'b>,
    loaded_context: Option<u32>,
    edits: Vec<Edit>,
    /// Members for `options`, each with its JSON.
    new_options: Vec<(String, String)>,
    report: String,
}

/// Where a parameter stands, or would.
#[derive(Clone, Copy)]
enum Place<'n> {
    Top(Field),
    Option(&'n str),
}

impl Place<'_> {
    fn key(&self) -> &str {
        match self {
            Self::Top(field) => field.key(),
            Self::Option(name) => name,
        }
    }
}

impl Changes<'_, '_> {
    fn make(&mut self, name: &str, change: &Change) -> Result<(), Reject> {
        let fields = self.call.asked.fields();
        let takes = |field: &Field| fields.contains(field);
        match (name, Dialect::of(self.call.asked.path())) {
            ("keep_alive", _) if takes(&Field::KeepAlive) => {
                self.one(Place::Top(Field::KeepAlive), change, Unlimited::Negative)
            }
            ("keep_alive", _) => Ok(()),
            ("n", _) if takes(&Field::N) => {
                self.one(Place::Top(Field::N), change, Unlimited::Never)?;
                match self.value(Place::Top(Field::NCmpl)) {
                    Some(_) => self.one(Place::Top(Field::NCmpl), change, Unlimited::Never),
                    None => Ok(()),
                }
            }
            ("n", _) => Ok(()),
            ("num_predict", Dialect::OpenAi | Dialect::Anthropic) => self.longest_answer(change),
            // The other dialects have no options.
            (_, Dialect::OpenAi | Dialect::Anthropic) => Ok(()),
            ("num_predict", Dialect::Native) if self.call.asked.generates() => {
                self.one(Place::Option(name), change, Unlimited::UnlessPositive)
            }
            (name, Dialect::Native) if takes(&Field::Options) => {
                self.one(Place::Option(name), change, Unlimited::Never)
            }
            (_, Dialect::Native) => Ok(()),
        }
    }

    /// Ollama makes `num_predict` of all three [ollama openai/openai.go fromChatRequest].
    fn longest_answer(&mut self, change: &Change) -> Result<(), Reject> {
        let names =
            [Field::MaxTokens, Field::MaxCompletionTokens, Field::MaxOutputTokens, Field::NPredict];
        let fields = self.call.asked.fields();
        let known = || names.into_iter().filter(|field| fields.contains(field));
        // A server may know the first of them only, so that one has to be there.
        let first = known().next();
        let is_meant =
            |field: &Field| Some(*field) == first || self.value(Place::Top(*field)).is_some();
        let meant: Vec<_> = known().filter(is_meant).collect();
        for field in meant {
            self.one(Place::Top(field), change, Unlimited::UnlessPositive)?;
        }
        Ok(())
    }

    fn one(
        &mut self,
        place: Place<'_>,
        change: &Change,
        unlimited: Unlimited,
    ) -> Result<(), Reject> {
        match change {
            Change::Drop => {
                if let Some(member) = self.member(place) {
                    self.report(place.key(), Some(member), "dropped");
                    self.edits.push(Edit::Remove { whole: member.whole });
                }
                Ok(())
            }
            Change::Force(json) => {
                self.set(place, json);
                Ok(())
            }
            Change::Clamp(bounds) => self.clamp(place, *bounds, unlimited),
            Change::Loaded => {
                if let Some(size) = self.loaded_context {
                    let asked = self.value(place).and_then(|member| self.reading().number(member));
                    if asked.is_none_or(|asked| asked <= f64::from(size)) {
                        self.set(place, &size.to_string());
                    }
                }
                Ok(())
            }
        }
    }

    fn clamp(
        &mut self,
        place: Place<'_>,
        bounds: Bounds,
        unlimited: Unlimited,
    ) -> Result<(), Reject> {
        let Some(member) = self.value(place) else {
            // What is not sent is the server's own setting, but for answers that would not end.
            if let (Unlimited::UnlessPositive, Some(max)) = (unlimited, bounds.max) {
                self.set(place, &plain(max));
            }
            return Ok(());
        };
        let asked = match place {
            Place::Top(Field::KeepAlive) => self.seconds(member),
            Place::Top(_) | Place::Option(_) => self.reading().number(member),
        };
        let asked =
            asked.ok_or(Reject::BadBody("a parameter that has a limit here is not a number"))?;
        let endless = match unlimited {
            Unlimited::Never => false,
            Unlimited::Negative => asked < 0.0,
            // Ollama cuts the fraction off.
            Unlimited::UnlessPositive => asked < 1.0,
        };
        let asked = if endless { f64::INFINITY } else { asked };
        let kept = asked.max(bounds.min.unwrap_or(f64::NEG_INFINITY));
        let kept = kept.min(bounds.max.unwrap_or(f64::INFINITY));
        if kept != asked {
            let kept = plain(kept);
            self.set(place, &kept);
        }
        Ok(())
    }

    /// A number of seconds, or a duration as Go writes it.
    fn seconds(&self, member: Member) -> Option<f64> {
        let reading = self.reading();
        reading.number(member).or_else(|| go_seconds(&reading.text(member)?))
    }

    fn set(&mut self, place: Place<'_>, json: &str) {
        let member = self.member(place);
        match member {
            Some(member) if self.reading().written(member.value) == json => return,
            Some(member) => {
                self.edits.push(Edit::Replace { value: member.value, with: json.to_owned() });
            }
            None => {
                let (key, value) = (place.key().to_owned(), json.to_owned());
                match (place, self.reading().object()) {
                    (Place::Option(_), _) => self.new_options.push((key, value)),
                    (Place::Top(_), Some(object)) => {
                        self.edits.push(Edit::Insert { object, key, value });
                    }
                    (Place::Top(_), None) => return,
                }
            }
        }
        self.report(place.key(), member, json);
    }

    fn report(&mut self, key: &str, before: Option<Member>, after: &str) {
        if self.report.len() > LONGEST_REPORT {
            return;
        }
        let separator = if self.report.is_empty() { "" } else { ", " };
        let before = before.map(|member| self.reading().written(member.value));
        let before = before.map_or(Cow::Borrowed("unset"), |before| {
            let plain =
                before.bytes().all(|b| b.is_ascii_graphic()) && before.len() <= LONGEST_VALUE;
            if plain { Cow::Owned(before.to_owned()) } else { Cow::Borrowed("…") }
        });
        let before = if before == "…" { "another value".into() } else { before };
        // Writing into a String cannot fail.
        let _ = write!(self.report, "{separator}{key}: {before} -> {after}");
    }

    fn finish(mut self) -> (Vec<Edit>, String) {
        let added = std::mem::take(&mut self.new_options);
        let options = self.reading().field(Field::Options);
        let object = options.filter(|it| self.reading().written(it.value).starts_with('{'));
        if let Some(options) = object {
            let insert = |(key, value)| Edit::Insert { object: options.value, key, value };
            self.edits.extend(added.into_iter().map(insert));
        } else if !added.is_empty() {
            let members: Vec<_> =
                added.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
            let value = format!("{{{}}}", members.join(","));
            let key = Field::Options.key().to_owned();
            match (options, self.reading().object()) {
                (Some(null), _) => {
                    self.edits.push(Edit::Replace { value: null.value, with: value })
                }
                (None, Some(object)) => self.edits.push(Edit::Insert { object, key, value }),
                (None, None) => {}
            }
        }
        (self.edits, self.report)
    }

    fn reading(&self) -> &Reading {
        &self.call.reading
    }

    fn member(&self, place: Place<'_>) -> Option<Member> {
        match place {
            Place::Top(field) => self.reading().field(field),
            Place::Option(name) => self.reading().option(name),
        }
    }

    /// A member with a value; `null` leaves the server's own setting [Go encoding/json].
    fn value(&self, place: Place<'_>) -> Option<Member> {
        self.member(place).filter(|member| self.reading().written(member.value) != "null")
    }
}

/// Which values of a parameter stand for no end.
#[derive(Clone, Copy)]
enum Unlimited {
    Never,
    Negative,
    /// Ollama generates without an end for 0 too [ollama runner/ollamarunner/runner.go].
    UnlessPositive,
}

/// As JSON writes it, whole where it is whole.
fn plain(number: f64) -> String {
    number.to_string()
}

/// Seconds of a duration such as `1h30m` or `-1s` [Go time.ParseDuration].
fn go_seconds(text: &str) -> Option<f64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0.0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at_checked(end)?;
        let number: f64 = number.parse().ok()?;
        let end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let (unit, next) = unit.split_at_checked(end)?;
        seconds += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = next;
    }
    Some(sign * seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, seconds) in [
            ("5m", Some(300.0)),
            ("1h30m", Some(5400.0)),
            ("1.5h", Some(5400.0)),
            ("-1s", Some(-1.0)),
            ("+2s", Some(2.0)),
            ("0", Some(0.0)),
            ("300ms", Some(0.3)),
            ("", None),
            ("5", None),
            ("-", None),
            ("m", None),
            ("5 m", None),
            ("1d", None),
        ] {
            assert_eq!(go_seconds(text), seconds, "{text}");
        }
    }
}
