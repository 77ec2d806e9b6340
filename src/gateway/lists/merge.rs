//! The lists of several backends made one.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::sync::Arc;

use serde_json::Value;

use crate::pool::{Backend, Entry, Key, List, Told};

/// The body of an answer, of what each backend told, in the order of the file.
pub(super) fn merged(list: List, told: &[(Arc<Backend>, Arc<Told>)]) -> String {
    let all = told.iter().map(|(backend, told)| (&**backend.name(), told.entries.as_slice()));
    let all: Vec<_> = all.collect();
    match list {
        List::Tags => written(r#"{"models":["#, each_once(&all).iter().map(|it| text(it))),
        List::Models => {
            let entries = each_once(&all);
            written(r#"{"object":"list","data":["#, entries.iter().map(|it| text(it)))
        }
        List::Running => {
            let each =
                all.iter().flat_map(|(name, entries)| entries.iter().map(move |it| (name, it)));
            let each: Vec<_> = each.filter_map(|(name, it)| with_backend(name, it)).collect();
            written(r#"{"models":["#, each.iter().map(String::as_str))
        }
        List::Version => {
            let versions = all.iter().flat_map(|(_, entries)| entries.iter().map(text));
            let lowest = versions.min_by_key(|version| numbers(version)).unwrap_or_default();
            serde_json::json!({ "version": lowest }).to_string()
        }
    }
}

/// Of the entries for one model the newest, or else the first.
fn each_once<'a>(all: &[(&str, &'a [Entry])]) -> Vec<&'a Entry> {
    let mut places: HashMap<&Key, usize> = HashMap::new();
    let mut kept: Vec<&Entry> = Vec::new();
    for entry in all.iter().flat_map(|(_, entries)| *entries) {
        match places.entry(&entry.key) {
            Place::Vacant(place) => {
                place.insert(kept.len());
                kept.push(entry);
            }
            Place::Occupied(place) => {
                if let Some(known) = kept.get_mut(*place.get())
                    && entry.made > known.made
                {
                    *known = entry;
                }
            }
        }
    }
    // As Ollama does: what was changed last comes first [ollama server/routes.go ListHandler].
    kept.sort_by_key(|entry| std::cmp::Reverse(entry.made));
    kept
}

fn written<'a>(begin: &str, entries: impl Iterator<Item = &'a str>) -> String {
    let mut body = begin.to_owned();
    for (at, entry) in entries.enumerate() {
        if at > 0 {
            body.push(',');
        }
        body.push_str(entry);
    }
    body + "]}"
}

fn text(entry: &Entry) -> &str {
    // It was read as text.
    std::str::from_utf8(&entry.text).unwrap_or("null")
}

/// One model may be in memory in several places.
fn with_backend(name: &str, entry: &Entry) -> Option<String> {
    let mut fields: Value = serde_json::from_slice(&entry.text).ok()?;
    fields.as_object_mut()?.insert("backend".to_owned(), name.into());
    Some(fields.to_string())
}

/// By which versions are compared; what is behind a hyphen came before.
fn numbers(version: &str) -> (Vec<u64>, bool) {
    let (numbers, preview) = version.split_once('-').unwrap_or((version, ""));
    let number = |part: &str| part.trim_start_matches('v').parse().unwrap_or(0);
    (numbers.split('.').map(number).collect(), preview.is_empty())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::config::ModelName;

    fn entry(name: &str, made: Option<i64>, text: &'static str) -> Entry {
        let key = Key::Model(ModelName::parse(name).unwrap());
        Entry { key, made, text: Bytes::from_static(text.as_bytes()) }
    }

    #[test]
    fn of_one_model_the_newest_entry_is_kept_or_else_the_first() {
        let (a, b) = (
            [entry("a", Some(1), "1"), entry("b", None, "2")],
            [entry("A:latest", Some(2), "3"), entry("b", None, "4"), entry("c", None, "5")],
        );
        let kept = each_once(&[("x", &a), ("y", &b)]);
        assert_eq!(kept.into_iter().map(text).collect::<Vec<_>>(), ["3", "2", "5"]);
    }

    #[test]
    fn the_lowest_version_is_the_lowest_by_number() {
        let mut versions = ["0.10.0", "0.9.3", "0.9.3-rc2", "0.33.0-rc2", "1"];
        versions.sort_by_key(|version| numbers(version));
        assert_eq!(versions, ["0.9.3-rc2", "0.9.3", "0.10.0", "0.33.0-rc2", "1"]);
    }

    #[test]
    fn an_entry_in_memory_says_where_once() {
        let entry = entry("a", None, r#"{"name":"a","backend":"liar"}"#);
        assert_eq!(with_backend("x", &entry).unwrap(), r#"{"name":"a","backend":"x"}"#);
        assert_eq!(written("[", ["1", "2"].into_iter()), "[1,2]}");
    }
}
