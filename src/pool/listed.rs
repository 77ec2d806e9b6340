//! Lists of models as backends tell them, read within bounds whatever they hold.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::plain::Plain;
use crate::config::{BackendKind, ModelName};

/// Models of one backend that are kept; nobody has as many.
const MOST_MODELS: usize = 100_000;
/// Models in memory at once, of one backend.
const MOST_LOADED: usize = 1_000;

/// Models in memory, with their context sizes where those are told.
pub(super) type Loaded = Vec<(ModelName, Option<u32>)>;
/// Every model, and whether it is a stub of one that runs elsewhere; `None` where no list is kept.
pub(super) type Listed = Option<HashMap<ModelName, bool>>;

/// Ollama's lists.
#[derive(Deserialize)]
#[serde(bound = "T: Kept")]
struct Ollamas<T> {
    #[serde(default = "Items::none")]
    models: Items<T>,
}

/// OpenAI's.
#[derive(Deserialize)]
#[serde(bound = "T: Kept")]
struct OpenAis<T> {
    #[serde(default = "Items::none")]
    data: Items<T>,
}

/// What is kept of the first so many entries; `None` where there is no list.
struct Items<T>(Option<Vec<T>>);

/// What is kept of an entry.
trait Kept: Sized {
    const MOST: usize;

    fn of(entry: &Entry) -> Option<Self>;
}

/// On disk: whether it is a stub [ollama api/types.go ListModelResponse, `remote_host`;
/// openai/openai.go ListCompletion].
impl Kept for (ModelName, bool) {
    const MOST: usize = MOST_MODELS;

    fn of(entry: &Entry) -> Option<Self> {
        let is_filled = |it: &Plain| it.text().is_some_and(|text| !text.is_empty());
        let is_stub =
            [&entry.remote_host, &entry.remote_model].into_iter().flatten().any(is_filled);
        Some((entry.model_name()?.without_source().into_owned(), is_stub))
    }
}

/// In memory [ollama api/types.go ProcessModelResponse].
impl Kept for (ModelName, Option<u32>) {
    const MOST: usize = MOST_LOADED;

    fn of(entry: &Entry) -> Option<Self> {
        let context = entry.context_length.as_ref().and_then(Plain::whole);
        let context = context.and_then(|it| u32::try_from(it).ok()).filter(|it| *it > 0);
        Some((entry.model_name()?, context))
    }
}

/// What counts of an entry, whatever is written there.
#[derive(Deserialize)]
struct Entry {
    model: Option<Plain>,
    name: Option<Plain>,
    id: Option<Plain>,
    remote_host: Option<Plain>,
    remote_model: Option<Plain>,
    context_length: Option<Plain>,
}

impl Entry {
    fn model_name(&self) -> Option<ModelName> {
        let name = self.model.as_ref().or(self.name.as_ref()).or(self.id.as_ref())?;
        ModelName::parse(name.text()?).ok()
    }
}

impl<T> Items<T> {
    fn none() -> Self {
        Self(None)
    }
}

impl<'de, T: Kept> Deserialize<'de> for Items<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Few<T>(PhantomData<T>);
        impl<'de, T: Kept> Visitor<'de> for Few<T> {
            type Value = Items<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of models")
            }

            fn visit_unit<E>(self) -> Result<Items<T>, E> {
                Ok(Items(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Items<T>, A::Error> {
                let mut kept = Vec::new();
                while kept.len() < T::MOST {
                    // What is no entry is none, whatever else stands there.
                    let Some(written) = items.next_element::<&RawValue>()? else {
                        return Ok(Items(Some(kept)));
                    };
                    let entry = serde_json::from_str(written.get()).ok();
                    kept.extend(entry.as_ref().and_then(T::of));
                }
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Items(Some(kept)))
            }
        }
        deserializer.deserialize_any(Few(PhantomData))
    }
}

pub(super) fn on_disk(answer: &[u8], kind: BackendKind) -> Listed {
    Some(entries(answer, kind)?.into_iter().collect())
}

pub(super) fn in_memory(answer: &[u8]) -> Loaded {
    entries(answer, BackendKind::Ollama).unwrap_or_default()
}

fn entries<T: Kept>(answer: &[u8], kind: BackendKind) -> Option<Vec<T>> {
    match kind {
        BackendKind::Ollama => serde_json::from_slice::<Ollamas<T>>(answer).ok()?.models.0,
        BackendKind::OpenAi => serde_json::from_slice::<OpenAis<T>>(answer).ok()?.data.0,
    }
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

    /// What a hostile backend may answer in 4 MiB.
    fn hostile() -> Vec<String> {
        let times = |text: &str| text.repeat((4 << 20) / text.len());
        let models = |items: String| format!(r#"{{"models":[{items}5],"data":[{items}5]}}"#);
        let name = |value: String| models(format!(r#"{{"model":{value}}},"#));
        vec![
            models(times("[],")),
            models(times("{},")),
            models(times(r#"{"model":{"a":[]}},"#)),
            models(format!("{}{},", times("["), times("]"))),
            name(format!("[{}1]", times("[],"))),
            name(format!("{}1{}", times("["), times("]"))),
            name(format!("\"{}\"", times("a"))),
            name(format!("\"{}\"", times("\\n"))),
            format!(r#"{{"x":[{}1]}}"#, times("{},")),
        ]
    }

    #[test]
    fn what_is_read_takes_no_more_memory_than_it_has_bytes() {
        for list in hostile() {
            for kind in [BackendKind::Ollama, BackendKind::OpenAi] {
                let read = || drop((on_disk(list.as_bytes(), kind), in_memory(list.as_bytes())));
                let used = allocation_counter::measure(read).bytes_max;
                let bytes = list.len() as u64;
                assert!(used <= bytes * 3, "{used} of {bytes}: {}", &list[..40]);
            }
        }
    }
}
