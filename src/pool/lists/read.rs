//! What stands in a list of models, read within bounds whatever it holds.

use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::List;
use crate::config::ModelName;
use crate::pool::plain::Plain;

/// Models of one backend that are listed; nobody has as many.
const MOST_MODELS: usize = 100_000;
/// Longer than what any server tells of a model.
const MOST_ENTRY: usize = 64 << 10;

/// One model of a list, or the version.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key: Key,
    /// When it was made, in milliseconds; `None` where that is not told.
    pub made: Option<i64>,
    /// As the backend wrote it.
    pub text: Bytes,
}

/// By what an entry is the same as another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    Model(ModelName),
    /// What no model of Ollama's is called.
    Other(Box<str>),
}

impl Key {
    fn of(name: &str) -> Self {
        ModelName::parse(name).map_or_else(|_| Self::Other(name.into()), Self::Model)
    }
}

/// Ollama's lists, and OpenAI's.
#[derive(Deserialize)]
struct Whole<'a> {
    #[serde(borrow, default, deserialize_with = "there")]
    models: Option<Items<'a>>,
    #[serde(borrow, default, deserialize_with = "there")]
    data: Option<Items<'a>>,
    version: Option<Plain>,
}

/// The first so many; none where there is null, as an Ollama without a model may say.
struct Items<'a>(Vec<&'a RawValue>);

/// What counts of an entry, whatever is written there.
#[derive(Deserialize)]
struct Item {
    model: Option<Plain>,
    name: Option<Plain>,
    id: Option<Plain>,
    modified_at: Option<Plain>,
    created: Option<Plain>,
}

fn there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Items<'de>>, D::Error> {
    Items::deserialize(deserializer).map(Some)
}

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Few;
        impl<'de> Visitor<'de> for Few {
            type Value = Vec<&'de RawValue>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of models")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Vec::new())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut kept = Vec::new();
                while kept.len() < MOST_MODELS {
                    let Some(item) = items.next_element()? else { return Ok(kept) };
                    kept.push(item);
                }
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(kept)
            }
        }
        deserializer.deserialize_any(Few).map(Self)
    }
}

/// `None` for what is no such list.
pub(super) fn entries(list: List, body: &Bytes) -> Option<Vec<Entry>> {
    let whole: Whole<'_> = serde_json::from_slice(body).ok()?;
    let items = match list {
        List::Tags | List::Running => whole.models,
        List::Models => whole.data,
        List::Version => {
            let version = whole.version?.text()?.to_owned();
            let text = Bytes::from(version.clone());
            return Some(vec![Entry { key: Key::Other(version.into()), made: None, text }]);
        }
    };
    let mut entries: Vec<_> =
        items?.0.into_iter().filter_map(|item| entry(list, item, body)).collect();
    let kept: usize = entries.iter().map(|entry| entry.text.len()).sum();
    if kept < body.len() / 2 {
        // They would keep all of the body.
        entries.iter_mut().for_each(|entry| entry.text = Bytes::copy_from_slice(&entry.text));
    }
    Some(entries)
}

/// Nobody can ask for what has no name.
fn entry(list: List, item: &RawValue, body: &Bytes) -> Option<Entry> {
    let written = Some(item.get()).filter(|it| it.len() <= MOST_ENTRY)?;
    let text = body.slice_ref(written.as_bytes());
    let item: Item = serde_json::from_str(written).ok()?;
    let name = match list {
        List::Models => item.id,
        List::Tags | List::Running | List::Version => item.model.or(item.name),
    };
    let made = match list {
        List::Models => item.created.and_then(|it| it.whole()?.checked_mul(1000)),
        List::Tags | List::Running | List::Version => item.modified_at.and_then(|it| moment(&it)),
    };
    Some(Entry { key: Key::of(name?.text()?), made, text })
}

fn moment(written: &Plain) -> Option<i64> {
    Some(written.text()?.parse::<Timestamp>().ok()?.as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: List, body: &'static str) -> Option<Vec<String>> {
        let entries = entries(list, &Bytes::from_static(body.as_bytes()))?;
        let text = |it: Entry| String::from_utf8(it.text.to_vec()).unwrap();
        Some(entries.into_iter().map(text).collect())
    }

    #[test]
    fn entries_are_kept_as_they_were_written() {
        let body = r#"{"x":1,"models":[{"name":"a","size": 1.50},  {"model":"B:1","name":"c"}]}"#;
        let expected = [r#"{"name":"a","size": 1.50}"#, r#"{"model":"B:1","name":"c"}"#];
        assert_eq!(names(List::Tags, body).unwrap(), expected);
        let body = r#"{"object":"list","models":[1],"data":[{"id":"/m/x.gguf"},{"id":7},{},3]}"#;
        assert_eq!(names(List::Models, body).unwrap(), [r#"{"id":"/m/x.gguf"}"#]);
        assert_eq!(names(List::Version, r#"{"version":"0.5.1"}"#).unwrap(), ["0.5.1"]);
    }

    #[test]
    fn an_empty_list_is_one_and_what_else_is_answered_is_none() {
        for (body, is_list) in [
            (r#"{"models":[]}"#, true),
            (r#"{"models":null}"#, true),
            (r#"{}"#, false),
            (r#"{"models":{}}"#, false),
            (r#"{"models":[],"models":[]}"#, false),
            (r#"{"models":[]"#, false),
            ("<html></html>", false),
            ("", false),
        ] {
            assert_eq!(names(List::Tags, body), is_list.then(Vec::new), "{body}");
        }
        assert_eq!(names(List::Version, r#"{"version":5}"#), None);
    }

    #[test]
    fn the_same_model_is_the_same_however_it_is_written_and_knows_its_age() {
        let body = r#"{"models":[{"name":"A","modified_at":"2026-01-01T01:00:00.5+01:00"},
            {"name":"registry.ollama.ai/library/a:latest","modified_at":"2026-01-01T00:00:00.5Z"},
            {"name":"b","modified_at":7}]}"#;
        let found = entries(List::Tags, &Bytes::from_static(body.as_bytes())).unwrap();
        assert_eq!((&found[0].key, found[0].made), (&found[1].key, found[1].made));
        assert_eq!(found[2].made, None);
    }

    #[test]
    fn no_more_is_kept_than_anybody_has() {
        let body =
            format!(r#"{{"models":[{}{{"name":"a"}}]}}"#, r#"{"name":"a"},"#.repeat(100_005));
        assert_eq!(entries(List::Tags, &body.into()).unwrap().len(), MOST_MODELS);
    }

    #[test]
    fn what_is_read_takes_no_more_memory_than_it_has_bytes() {
        let times = |text: &str| text.repeat((4 << 20) / text.len());
        for items in [
            times("[],"),
            times("{},"),
            format!("{}{},", times("["), times("]")),
            format!(r#"{{"name":[{}1]}},"#, times("{},")),
            format!(r#"{{"name":"a","x":[{}1]}},"#, times("[],")),
            format!(r#"{{"name":"{}"}},"#, times("a")),
        ] {
            for list in [List::Tags, List::Running, List::Models, List::Version] {
                let body =
                    format!(r#"{{"models":[{items}1],"data":[{items}1],"version":[{items}1]}}"#);
                let body = Bytes::from(body);
                let used = allocation_counter::measure(|| drop(entries(list, &body))).bytes_max;
                let bytes = body.len() as u64;
                assert!(used <= bytes * 2, "{used} of {bytes}: {}", &items[..20]);
            }
        }
    }

    #[test]
    fn a_short_list_does_not_keep_a_long_answer() {
        let padding = "x".repeat(10_000);
        let body = Bytes::from(format!(r#"{{"models":[{{"name":"a"}}],"x":"{padding}"}}"#));
        let found = entries(List::Tags, &body).unwrap();
        assert_eq!(&found[0].text[..], br#"{"name":"a"}"#);
        assert!(!body.as_ptr_range().contains(&found[0].text.as_ptr()));
    }
}
