//! Lists of models, as those may see them who may not use all.
//!
//! They are read and written in one pass, so that a list takes no more memory than it has bytes,
//! whatever stands in it.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::Deserializer;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::Reach;
use crate::config::ModelName;

/// The list without what the caller may not use; `None` for what is no list of models.
///
/// Ollama's own lists have `models`, with `name` and `model` in each [ollama api/types.go
/// ListModelResponse, ProcessModelResponse]; OpenAI's have `data`, with `id` in each.
#[must_use]
pub fn narrowed(written: &Bytes, reach: &Reach) -> Option<Bytes> {
    let model = |model: &ModelName| reach.may_use(model).is_ok();
    narrowed_to(May { use_it: &model, use_cloud: reach.may_use_cloud() }, written)
}

/// What a caller may.
#[derive(Clone, Copy)]
struct May<'a> {
    use_it: &'a dyn Fn(&ModelName) -> bool,
    use_cloud: bool,
}

fn narrowed_to(may: May<'_>, written: &Bytes) -> Option<Bytes> {
    let text = Vec::with_capacity(written.len());
    let mut narrowed = Narrowed { may, text, taken_out: 0 };
    let mut json = serde_json::Deserializer::from_slice(written);
    json.deserialize_map(&mut narrowed).ok()?;
    json.end().ok()?;
    // Byte for byte where nothing is kept back.
    Some(if narrowed.taken_out == 0 { written.clone() } else { narrowed.text.into() })
}

struct Narrowed<'a> {
    may: May<'a>,
    text: Vec<u8>,
    taken_out: usize,
}

impl<'de> Visitor<'de> for &mut Narrowed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a list of models")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        self.text.push(b'{');
        while let Some(key) = members.next_key::<Cow<'_, str>>()? {
            if self.text.len() > 1 {
                self.text.push(b',');
            }
            // Writing into a Vec cannot fail.
            let _ = serde_json::to_writer(&mut self.text, &key);
            self.text.push(b':');
            if matches!(&*key, "models" | "data") {
                members.next_value_seed(Models(&mut *self))?;
            } else {
                let value: &RawValue = members.next_value()?;
                self.text.extend_from_slice(value.get().as_bytes());
            }
        }
        self.text.push(b'}');
        Ok(())
    }
}

struct Models<'a, 'b>(&'a mut Narrowed<'b>);

impl<'de> DeserializeSeed<'de> for Models<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Models<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of models")
    }

    /// An Ollama without a model says null.
    fn visit_unit<E>(self) -> Result<(), E> {
        self.0.text.extend_from_slice(b"null");
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut models: A) -> Result<(), A::Error> {
        let Self(Narrowed { may, text, taken_out }) = self;
        text.push(b'[');
        let begin = text.len();
        while let Some(model) = models.next_element::<&RawValue>()? {
            if !may_see(*may, model) {
                *taken_out += 1;
                continue;
            }
            if text.len() > begin {
                text.push(b',');
            }
            text.extend_from_slice(model.get().as_bytes());
        }
        text.push(b']');
        Ok(())
    }
}

/// Each name that it goes by has to be one that may be used; one without a name is seen by nobody.
fn may_see(may: May<'_>, model: &RawValue) -> bool {
    let mut json = serde_json::Deserializer::from_str(model.get());
    let looked = json.deserialize_map(Look { may, is_named: false, may_use: true });
    looked.is_ok_and(|look| look.is_named && look.may_use)
}

/// What is seen of a model so far.
struct Look<'a> {
    may: May<'a>,
    is_named: bool,
    may_use: bool,
}

impl<'de> Visitor<'de> for Look<'_> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a model")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<Self, A::Error> {
        while let Some(key) = members.next_key::<Cow<'_, str>>()? {
            let value: &RawValue = members.next_value()?;
            let text = || serde_json::from_str::<Cow<'_, str>>(value.get()).ok();
            match &*key {
                "name" | "model" | "id" => {
                    self.is_named = true;
                    let name = text().and_then(|name| ModelName::parse(&name).ok());
                    self.may_use &= name.is_some_and(|it| (self.may.use_it)(&it));
                }
                // A stub is a local name of a model that runs elsewhere [ollama server/routes.go
                // ListHandler].
                "remote_host" if text().is_some_and(|it| !it.is_empty()) => {
                    self.may_use &= self.may.use_cloud;
                }
                _ => {}
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_gemma(list: &str, use_cloud: bool) -> Option<String> {
        let use_it = |model: &ModelName| !model.to_string().contains("gemma");
        let list = Bytes::copy_from_slice(list.as_bytes());
        let narrowed = narrowed_to(May { use_it: &use_it, use_cloud }, &list)?;
        Some(String::from_utf8(narrowed.to_vec()).unwrap())
    }

    #[test]
    fn what_may_be_used_stays_as_it_was_written() {
        let stub = r#"{"name":"c","remote_host":"https://x"}"#;
        for (list, expected) in [
            (r#"{ "models" : [ {"name":"a"} ] }"#, r#"{ "models" : [ {"name":"a"} ] }"#),
            (
                r#"{"x":[1, 2],"models":[{"name":"gemma3"}, {"name":"a","size": 1.50},5],"y":{}}"#,
                r#"{"x":[1, 2],"models":[{"name":"a","size": 1.50}],"y":{}}"#,
            ),
            (
                r#"{"data":[{"id":"a","name":"gemma3"},{}],"models":null}"#,
                r#"{"data":[],"models":null}"#,
            ),
            (r#"{"models":[{"name":"a","n\u0061me":"gemma3"}]}"#, r#"{"models":[]}"#),
            (
                r#"{"models":[{"name":["a"]}],"models":[{"id":"gemma"}]}"#,
                r#"{"models":[],"models":[]}"#,
            ),
        ] {
            assert_eq!(without_gemma(list, true).unwrap(), expected);
        }
        let list = format!(r#"{{"models":[{stub}]}}"#);
        assert_eq!(without_gemma(&list, true).unwrap(), list);
        assert_eq!(without_gemma(&list, false).unwrap(), r#"{"models":[]}"#);
    }

    #[test]
    fn what_is_no_list_is_none() {
        for list in ["", "[]", "5", r#"{"models":{}}"#, r#"{"data":"x"}"#, r#"{"models":[]"#, "{}x"]
        {
            assert_eq!(without_gemma(list, true), None, "{list}");
        }
    }

    #[test]
    fn a_list_is_narrowed_in_no_more_memory_than_it_has_bytes() {
        let times = |text: &str| text.repeat((4 << 20) / text.len());
        for items in [
            times("[],"),
            times(r#"{"name":"a"},"#),
            format!("{}{},", times("["), times("]")),
            format!(r#"{{"name":[{}1]}},"#, times("{},")),
        ] {
            let list = Bytes::from(format!(r#"{{"models":[{items}{{"name":"a"}}]}}"#));
            let may = May { use_it: &|_| true, use_cloud: true };
            let used = allocation_counter::measure(|| drop(narrowed_to(may, &list))).bytes_max;
            assert!(used <= list.len() as u64 * 2, "{used} of {}: {}", list.len(), &items[..20]);
        }
    }
}
