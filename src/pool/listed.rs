//! Lists of models as backends tell them, read within bounds whatever they hold.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::Value;

use crate::config::{BackendKind, ModelName};

/// Models of one backend that are kept; nobody has as many.
const MOST_MODELS: usize = 100_000;
/// Models in memory at once, of one backend.
const MOST_LOADED: usize = 1_000;

/// Models in memory, with their context sizes where those are told.
pub(super) type Loaded = Vec<(ModelName, Option<u32>)>;
/// Every model, and whether it is a stub of one that runs elsewhere; `None` where no list is kept.
pub(super) type Listed = Option<HashMap<ModelName, bool>>;

/// Ollama's lists, and OpenAI's.
#[derive(Debug, Deserialize)]
struct List {
    #[serde(default)]
    models: Items,
    #[serde(default)]
    data: Items,
}

/// The first so many entries; `None` where there is no list.
#[derive(Debug, Default)]
struct Items(Option<Vec<Entry>>);

/// What counts of an entry, whatever is written there.
#[derive(Debug, Deserialize)]
struct Entry {
    model: Option<Value>,
    name: Option<Value>,
    id: Option<Value>,
    remote_host: Option<Value>,
    remote_model: Option<Value>,
    context_length: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Item {
    Entry(Box<Entry>),
    Other(IgnoredAny),
}

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Few;
        impl<'de> Visitor<'de> for Few {
            type Value = Items;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of models")
            }

            fn visit_unit<E>(self) -> Result<Items, E> {
                Ok(Items(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Items, A::Error> {
                let mut kept = Vec::new();
                while kept.len() < MOST_MODELS {
                    match items.next_element()? {
                        Some(Item::Entry(entry)) => kept.push(*entry),
                        Some(Item::Other(_)) => {}
                        None => return Ok(Items(Some(kept))),
                    }
                }
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Items(Some(kept)))
            }
        }
        deserializer.deserialize_any(Few)
    }
}

/// [ollama api/types.go ListModelResponse, `remote_host`; openai/openai.go ListCompletion]
pub(super) fn on_disk(answer: &[u8], kind: BackendKind) -> Listed {
    let entries = entries(answer, kind)?;
    let of_one = |entry: &Entry| {
        let is_stub =
            [&entry.remote_host, &entry.remote_model].into_iter().flatten().any(is_filled);
        Some((entry.model_name()?.without_source().into_owned(), is_stub))
    };
    Some(entries.iter().filter_map(of_one).collect())
}

/// [ollama api/types.go ProcessModelResponse]
pub(super) fn in_memory(answer: &[u8]) -> Loaded {
    let entries = entries(answer, BackendKind::Ollama).unwrap_or_default();
    let of_one = |entry: &Entry| {
        let context = entry.context_length.as_ref().and_then(Value::as_u64);
        let context = context.and_then(|it| u32::try_from(it).ok()).filter(|it| *it > 0);
        Some((entry.model_name()?, context))
    };
    entries.iter().filter_map(of_one).take(MOST_LOADED).collect()
}

fn entries(answer: &[u8], kind: BackendKind) -> Option<Vec<Entry>> {
    let List { models, data } = serde_json::from_slice(answer).ok()?;
    match kind {
        BackendKind::Ollama => models.0,
        BackendKind::OpenAi => data.0,
    }
}

impl Entry {
    fn model_name(&self) -> Option<ModelName> {
        let name = self.model.as_ref().or(self.name.as_ref()).or(self.id.as_ref())?;
        ModelName::parse(name.as_str()?).ok()
    }
}

fn is_filled(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ModelName {
        ModelName::parse(text).unwrap()
    }

    #[test]
    fn names_are_read_from_either_kind_of_list() {
        let tags = br#"{"models":[{"model":"a:1","name":"x"},{"name":"B"},{"model":"c","remote_host":"h"}]}"#;
        let listed = on_disk(tags, BackendKind::Ollama).unwrap();
        assert_eq!(listed.len(), 3);
        assert_eq!(listed.get(&name("b:latest")), Some(&false));
        assert_eq!(listed.get(&name("c")), Some(&true));
        let models = br#"{"object":"list","data":[{"id":"meta/Llama-3"},{"id":"/no/name.gguf"}]}"#;
        let listed = on_disk(models, BackendKind::OpenAi).unwrap();
        assert!(listed.len() == 1 && listed.contains_key(&name("meta/llama-3")));
        // Each kind has its own list.
        assert_eq!(on_disk(models, BackendKind::Ollama), None);
    }

    #[test]
    fn what_is_in_memory_may_tell_its_context() {
        let ps = br#"{"models":[{"model":"a","context_length":4096},{"model":"b","context_length":-1},{"model":"c"}]}"#;
        let loaded = in_memory(ps);
        let contexts: Vec<_> = loaded.iter().map(|(_, context)| *context).collect();
        assert_eq!(contexts, [Some(4096), None, None]);
    }

    #[test]
    fn hostile_lists_are_read_for_what_is_good_in_them() {
        let odd = br#"{"models":[5,null,[1],"x",{"model":{"a":[1]}},{"model":"../etc"},{"model":"\u0000"},{"name":"ok"}]}"#;
        assert_eq!(on_disk(odd, BackendKind::Ollama).unwrap().len(), 1);
        for no_list in
            ["", "[]", "<html>", "{}", r#"{"models":null}"#, r#"{"models":5}"#, "{\"models\":["]
        {
            assert_eq!(on_disk(no_list.as_bytes(), BackendKind::Ollama), None, "{no_list}");
            assert_eq!(in_memory(no_list.as_bytes()), [], "{no_list}");
        }
    }

    #[test]
    fn of_a_list_without_end_the_beginning_is_kept() {
        let entry = |at: usize| format!(r#"{{"model":"m{at}"}}"#);
        let entries: Vec<_> = (0..MOST_MODELS + 10).map(entry).collect();
        let list = format!(r#"{{"models":[{}]}}"#, entries.join(","));
        assert_eq!(on_disk(list.as_bytes(), BackendKind::Ollama).unwrap().len(), MOST_MODELS);
        assert_eq!(in_memory(list.as_bytes()).len(), MOST_LOADED);
    }
}
