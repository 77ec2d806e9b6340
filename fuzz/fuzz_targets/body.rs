//! A JSON body: what is found in it is what a tree of it says, and an edit changes nothing else.
#![no_main]

use bytes::Bytes;
use http::Method;
use libfuzzer_sys::fuzz_target;
use portcullis::api::{Asked, Field};
use portcullis::call::reading::Reading;
use portcullis::call::rewrite::{Edit, rewrite};
use serde_json::Value;

/// A key that is put in.
const NEW: &str = "new";

fuzz_target!(|body: &[u8]| {
    let bytes = Bytes::copy_from_slice(body);
    for path in ["/api/chat", "/api/create", "/api/copy", "/v1/chat/completions", "/v1/responses"] {
        let asked = Asked::find(&Method::POST, path, &[]).expect("it is in the table");
        let Ok(reading) = Reading::of_json(&bytes, &asked) else { continue };
        let Some(object) = reading.object() else { continue };
        // Half a surrogate pair and a number beyond f64 are JSON, but not to this reader.
        let Ok(tree) = serde_json::from_slice::<Value>(body) else { continue };
        if tree.get(NEW).is_some() {
            continue;
        }
        for field in asked.fields() {
            let found = reading.field(*field).map(|it| reading.written(it.value));
            let found = found.map(|text| serde_json::from_str::<Value>(text).expect("a value"));
            assert_eq!(found.as_ref(), tree.get(field.key()), "{}", field.key());
        }
        if let Some(model) = reading.field(Field::Model).and_then(|it| reading.text(it)) {
            assert_eq!(tree["model"].as_str(), Some(&*model));
        }
        let mut edits = vec![Edit::Insert { object, key: NEW.to_owned(), value: "1".to_owned() }];
        let mut expected = tree.clone();
        expected[NEW] = 1.into();
        if let Some(member) = reading.field(Field::Model) {
            edits.push(Edit::Remove { whole: member.whole });
            expected.as_object_mut().expect("an object").remove("model");
        }
        if let Some(member) = reading.field(Field::Options) {
            edits.push(Edit::Replace { value: member.value, with: "{}".to_owned() });
            expected["options"] = Value::Object(serde_json::Map::new());
        }
        let changed = rewrite(body, &edits);
        let changed: Value = serde_json::from_slice(&changed).expect("what was JSON stays JSON");
        assert_eq!(changed, expected);
    }
});
