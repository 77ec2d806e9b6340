//! Lists of models, as those may see them who may not use all.

use bytes::Bytes;
use serde_json::Value;

use super::Reach;
use crate::config::ModelName;

/// The list without what the caller may not use; `None` for what is no list of models.
///
/// Ollama's own lists have `models`, with `name` and `model` in each [ollama api/types.go
/// ListModelResponse, ProcessModelResponse]; OpenAI's have `data`, with `id` in each.
#[must_use]
pub fn narrowed(written: &Bytes, reach: &Reach) -> Option<Bytes> {
    let mut list: Value = serde_json::from_slice(written).ok()?;
    let object = list.as_object_mut()?;
    let mut taken_out = 0;
    for key in ["models", "data"] {
        if let Some(models) = object.get_mut(key) {
            match models {
                Value::Array(models) => {
                    let before = models.len();
                    models.retain(|model| may_see(reach, model));
                    taken_out += before - models.len();
                }
                // An Ollama without a model says null.
                Value::Null => {}
                Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                    return None;
                }
            }
        }
    }
    // Byte for byte where nothing is kept back.
    Some(if taken_out == 0 { written.clone() } else { list.to_string().into() })
}

/// Each name that it goes by has to be one that may be used; one without a name is seen by nobody.
fn may_see(reach: &Reach, model: &Value) -> bool {
    let mut names = ["name", "model", "id"].into_iter().filter_map(|key| model.get(key)).peekable();
    let may_use = |name: &Value| {
        let name = name.as_str().and_then(|name| ModelName::parse(name).ok());
        name.is_some_and(|name| reach.may_use(&name).is_ok())
    };
    // A stub is a local name of a model that runs elsewhere [ollama server/routes.go ListHandler].
    let is_remote =
        model.get("remote_host").and_then(Value::as_str).is_some_and(|it| !it.is_empty());
    names.peek().is_some() && names.all(may_use) && (!is_remote || reach.may_use_cloud())
}
