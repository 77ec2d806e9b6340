//! What stands in a list of models, read within bounds whatever it holds.

use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::List;
use crate::config::ModelName;

/// Models of one backend that are listed; nobody has as many.
const MOST_MODELS: usize = 100_000;
/// Longer than the longest name that a model can have.
const MOST_NAME: usize = 2048;

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
    fn of(name: &str) -> Option<Self> {
        let other = || (name.len() <= MOST_NAME).then(|| Self::Other(name.into()));
        ModelName::parse(name).ok().map(Self::Model).or_else(other)
    }
}

/// Ollama's lists, and OpenAI's.
#[derive(Deserialize)]
struct Whole<'a> {
    #[serde(borrow)]
    models: Option<Items<'a>>,
    #[serde(borrow)]
    data: Option<Items<'a>>,
    version: Option<String>,
}

/// The first so many; none where there is null.
struct Items<'a>(Vec<&'a RawValue>);

/// What counts of an entry, whatever is written there.
#[derive(Deserialize)]
struct Item {
    model: Option<Value>,
    name: Option<Value>,
    id: Option<Value>,
    modified_at: Option<Value>,
    created: Option<Value>,
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
            let version = whole.version.filter(|version| version.len() <= MOST_NAME)?;
            let text = Bytes::from(version.clone());
            return Some(vec![Entry { key: Key::Other(version.into()), made: None, text }]);
        }
    };
    let has_list = || serde_json::from_slice::<Value>(body).is_ok_and(|it| is_empty(list, &it));
    let Some(Items(items)) = items else { return has_list().then(Vec::new) };
    Some(items.into_iter().filter_map(|item| entry(list, item, body)).collect())
}

/// An Ollama without a model may say null.
fn is_empty(list: List, whole: &Value) -> bool {
    whole.get(if list == List::Models { "data" } else { "models" }).is_some()
}

/// Nobody can ask for what has no name.
fn entry(list: List, item: &RawValue, body: &Bytes) -> Option<Entry> {
    let text = body.slice_ref(item.get().as_bytes());
    let item: Item = serde_json::from_str(item.get()).ok()?;
    let name = match list {
        List::Models => item.id,
        List::Tags | List::Running | List::Version => item.model.or(item.name),
    };
    let made = match list {
        List::Models => item.created.and_then(|it| it.as_i64()?.checked_mul(1000)),
        List::Tags | List::Running | List::Version => item.modified_at.and_then(|it| moment(&it)),
    };
    Some(Entry { key: Key::of(name?.as_str()?)?, made, text })
}

fn moment(written: &Value) -> Option<i64> {
    Some(written.as_str()?.parse::<Timestamp>().ok()?.as_millisecond())
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
}
