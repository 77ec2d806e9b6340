//! One request as a span of OTLP.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::Context;

/// In OTLP's numbers: the side that is asked.
const SERVER: u8 = 2;
const ERROR: u8 = 2;

/// What is told of a request. Never a credential, a query, a name, or content.
#[derive(Debug, Clone)]
pub struct Span {
    pub context: Context,
    /// What was asked for, as in the log.
    pub name: &'static str,
    pub began: SystemTime,
    pub lasted: Duration,
    /// What happened, and how long after the beginning.
    pub events: Vec<(&'static str, Duration)>,
    pub facts: Vec<(&'static str, Value)>,
    /// It is the gate's or the backend's fault that it did not go well.
    pub is_error: bool,
}

/// All of them as one request to a collector [opentelemetry-proto collector/trace/v1, JSON].
pub(super) fn document(spans: &[Span]) -> String {
    let spans: Vec<_> = spans.iter().map(Span::to_json).collect();
    let attributes = attributes(&[
        ("service.name", json!("portcullis")),
        ("service.version", json!(env!("CARGO_PKG_VERSION"))),
    ]);
    json!({"resourceSpans": [{
        "resource": {"attributes": attributes},
        "scopeSpans": [{"scope": {"name": "portcullis"}, "spans": spans}],
    }]})
    .to_string()
}

impl Span {
    fn to_json(&self) -> Value {
        let event = |(name, after): &(&'static str, Duration)| json!({"name": name, "timeUnixNano": nanos(self.began + *after)});
        let mut span = json!({
            "traceId": self.context.trace_id(),
            "spanId": self.context.span_id(),
            "name": self.name,
            "kind": SERVER,
            "startTimeUnixNano": nanos(self.began),
            "endTimeUnixNano": nanos(self.began + self.lasted),
            "attributes": attributes(&self.facts),
            "events": self.events.iter().map(event).collect::<Vec<_>>(),
            "status": if self.is_error { json!({"code": ERROR}) } else { json!({}) },
        });
        if let (Some(parent), Value::Object(span)) = (self.context.parent_id(), &mut span) {
            span.insert("parentSpanId".to_owned(), json!(parent));
        }
        span
    }
}

/// A 64-bit number is a text in this JSON.
fn nanos(time: SystemTime) -> String {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

fn attributes(facts: &[(&'static str, Value)]) -> Vec<Value> {
    let value = |value: &Value| match value {
        Value::Number(number) if number.is_f64() => json!({"doubleValue": number}),
        Value::Number(number) => json!({"intValue": number.to_string()}),
        Value::Bool(bool) => json!({"boolValue": bool}),
        Value::String(text) => json!({"stringValue": text}),
        Value::Null | Value::Array(_) | Value::Object(_) => json!({}),
    };
    facts.iter().map(|(key, fact)| json!({"key": key, "value": value(fact)})).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_its_times_as_texts_and_its_facts_by_kind() {
        let span = Span {
            context: Context::draw().unwrap().child().unwrap(),
            name: "chat",
            began: UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789),
            lasted: Duration::from_millis(1),
            events: vec![("first byte", Duration::from_nanos(1))],
            facts: vec![("a", json!("b")), ("n", json!(7)), ("f", json!(0.5))],
            is_error: true,
        };
        let document: Value = serde_json::from_str(&document(&[span.clone(), span])).unwrap();
        let resource = &document["resourceSpans"][0];
        assert_eq!(
            resource["resource"]["attributes"][0],
            json!({"key": "service.name", "value": {"stringValue": "portcullis"}})
        );
        let spans = resource["scopeSpans"][0]["spans"].as_array().unwrap();
        assert_eq!(spans.len(), 2);
        let seen = &spans[0];
        assert_eq!(seen["startTimeUnixNano"], "1700000000123456789");
        assert_eq!(seen["endTimeUnixNano"], "1700000000124456789");
        assert_eq!(
            seen["events"][0],
            json!({"name": "first byte", "timeUnixNano": "1700000000123456790"})
        );
        assert_eq!(seen["attributes"][1], json!({"key": "n", "value": {"intValue": "7"}}));
        assert_eq!(seen["attributes"][2], json!({"key": "f", "value": {"doubleValue": 0.5}}));
        assert_eq!((&seen["kind"], &seen["status"]["code"]), (&json!(2), &json!(2)));
        assert_eq!(seen["parentSpanId"].as_str().unwrap().len(), 16);
    }
}
