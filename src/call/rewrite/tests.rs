//! What is changed is what was asked for, and nothing else.

use http::Method;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use super::*;
use crate::api::{Asked, Field};
use crate::call::reading::Reading;

fn read(body: &str) -> Reading {
    let asked = Asked::find(&Method::POST, "/api/chat", &[]).unwrap();
    Reading::of_json(&Bytes::copy_from_slice(body.as_bytes()), &asked).unwrap()
}

fn rewritten(body: &str, edits: &[Edit]) -> String {
    String::from_utf8(rewrite(body.as_bytes(), edits).to_vec()).unwrap()
}

fn options(reading: &Reading) -> Span {
    reading.field(Field::Options).unwrap().value
}

#[test]
fn a_value_is_replaced_and_the_rest_stays() {
    let body = "{ \"model\":\"m\",\t\"keep_alive\" : -1 ,\n\"x\":\"\\u0041\", \"options\":{\"num_ctx\":1e3}} ";
    let reading = read(body);
    let keep_alive = reading.field(Field::KeepAlive).unwrap().value;
    let context = reading.option("num_ctx").unwrap().value;
    let edits = [
        Edit::Replace { value: context, with: "4096".to_owned() },
        Edit::Replace { value: keep_alive, with: "\"5m\"".to_owned() },
    ];
    let expected = body.replace("-1", "\"5m\"").replace("1e3", "4096");
    assert_eq!(rewritten(body, &edits), expected);
    assert_eq!(rewritten(body, &[]), body);
}

#[test]
fn a_member_is_taken_out_with_one_comma() {
    let left = |body: &str, names: &[&str]| {
        let reading = read(body);
        let remove = |name: &&str| Edit::Remove { whole: reading.option(name).unwrap().whole };
        rewritten(body, &names.iter().map(remove).collect::<Vec<_>>())
    };
    let body = r#"{"options":{"a":1, "b" : 2 ,"c":[3]}}"#;
    assert_eq!(left(body, &["a"]), r#"{"options":{"b" : 2 ,"c":[3]}}"#);
    assert_eq!(left(body, &["b"]), r#"{"options":{"a":1 ,"c":[3]}}"#);
    assert_eq!(left(body, &["c"]), r#"{"options":{"a":1, "b" : 2 }}"#);
    assert_eq!(left(body, &["a", "b"]), r#"{"options":{"c":[3]}}"#);
    assert_eq!(left(body, &["c", "b"]), r#"{"options":{"a":1}}"#);
    assert_eq!(left(body, &["c", "a"]), r#"{"options":{"b" : 2 }}"#);
    assert_eq!(left(body, &["c", "a", "b"]), r#"{"options":{}}"#);
}

#[test]
fn a_member_is_put_in_with_a_comma_where_one_is_needed() {
    let with = |body: &str, also: &[&str]| {
        let reading = read(body);
        let object = options(&reading);
        let mut edits = vec![
            Edit::Insert { object, key: "num_ctx".to_owned(), value: "1".to_owned() },
            Edit::Insert { object, key: "num_gpu".to_owned(), value: "2".to_owned() },
        ];
        let remove = |name: &&str| Edit::Remove { whole: reading.option(name).unwrap().whole };
        edits.extend(also.iter().map(remove));
        rewritten(body, &edits)
    };
    let new = r#""num_ctx":1,"num_gpu":2"#;
    assert_eq!(with(r#"{"options":{ }}"#, &[]), format!("{{\"options\":{{{new} }}}}"));
    assert_eq!(with(r#"{"options":{"a":1}}"#, &[]), format!("{{\"options\":{{{new},\"a\":1}}}}"));
    assert_eq!(with(r#"{"options":{"a":1}}"#, &["a"]), format!("{{\"options\":{{{new}}}}}"));
    let body = r#"{"options":{ "a":1 , "b":2}}"#;
    assert_eq!(with(body, &["a"]), format!("{{\"options\":{{{new}, \"b\":2}}}}"));
    assert_eq!(with(body, &["b", "a"]), format!("{{\"options\":{{{new} }}}}"));
}

#[test]
fn what_goes_is_not_changed_as_well() {
    let body = r#"{"options":{"num_ctx":1},"model":"m"}"#;
    let reading = read(body);
    let edits = [
        Edit::Replace { value: reading.option("num_ctx").unwrap().value, with: "9".to_owned() },
        Edit::Remove { whole: reading.option("num_ctx").unwrap().whole },
        Edit::Remove { whole: reading.field(Field::Options).unwrap().whole },
    ];
    assert_eq!(rewritten(body, &edits), r#"{"model":"m"}"#);
}

fn blank() -> impl Strategy<Value = String> {
    "[ \n\t\r]{0,2}"
}

fn value() -> impl Strategy<Value = String> {
    select(vec![
        "1",
        "-2.5e3",
        "\"a,}\\\"{\"",
        "null",
        "[1, {\"num_ctx\":2}]",
        "{\"a\":{}}",
        "true",
    ])
    .prop_map(str::to_owned)
}

/// Options in any spelling, and which of them are replaced (1) or removed (2).
fn written() -> impl Strategy<Value = Vec<(String, String, u8)>> {
    proptest::collection::vec((blank(), value(), 0..3_u8), 0..7)
}

proptest! {
    #[test]
    fn the_rest_is_byte_for_byte_the_same(
        members in written(), inserts in 0..3_usize, before in blank(), after in blank(),
    ) {
        let pieces: Vec<_> = members
            .iter()
            .enumerate()
            .map(|(at, (blank, value, _))| format!("{blank}\"o{at}\"{blank}:{blank}{value}{blank}"))
            .collect();
        let body = format!(
            "{before}{{\"x\":[1],{before}\"options\"{after}:{{{}}}{after},\"y\":\"\\u0041\"}}{after}",
            pieces.join(","),
        );
        let reading = read(&body);
        let mut edits = Vec::new();
        let mut expected = Map::new();
        for (at, (_, value, what)) in members.iter().enumerate() {
            let name = format!("o{at}");
            let member = reading.option(&name).unwrap();
            match what {
                1 => edits.push(Edit::Replace { value: member.value, with: "[\"new\"]".to_owned() }),
                2 => edits.push(Edit::Remove { whole: member.whole }),
                _ => {}
            }
            match what {
                1 => drop(expected.insert(name, json!(["new"]))),
                2 => {}
                _ => drop(expected.insert(name, serde_json::from_str(value).unwrap())),
            }
        }
        let object = options(&reading);
        for (key, _) in ["i0", "i1", "i2"].iter().zip(0..inserts) {
            edits.push(Edit::Insert { object, key: (*key).to_owned(), value: "{}".to_owned() });
            expected.insert((*key).to_owned(), json!({}));
        }
        let new = rewritten(&body, &edits);
        let parsed: Value = serde_json::from_str(&new).map_err(|error| {
            TestCaseError::fail(format!("{error}: {new}"))
        })?;
        prop_assert_eq!(&parsed["options"], &Value::Object(expected));
        // What is outside of the changed object, and each member that was left alone.
        let (head, tail) = (object.range().start, body.len() - object.range().end);
        prop_assert_eq!(&new[..=head], &body[..=head]);
        prop_assert_eq!(&new[new.len() - tail..], &body[body.len() - tail..]);
        for (at, (_, _, what)) in members.iter().enumerate() {
            if *what == 0 {
                let whole = reading.written(reading.option(&format!("o{at}")).unwrap().whole);
                prop_assert!(new.contains(whole), "{} is not in {}", whole, new);
            }
        }
    }
}
