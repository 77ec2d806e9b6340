//! What a collector of traces is told of a line.

use serde_json::json;

use super::text::short;
use super::{Line, Outcome};
use crate::traces::{Span, Trace};

/// Who only asks whether the gate lives is not told of.
pub(super) fn post(line: &Line, trace: &Trace) {
    if line.operation.is_some() || line.status >= 400 {
        trace.post(span(line, trace));
    }
}

fn span(line: &Line, trace: &Trace) -> Span {
    let mut facts = vec![
        ("url.path", json!(short(&line.path))),
        ("http.response.status_code", json!(line.status)),
        ("portcullis.request_id", json!(line.id.as_str())),
        ("portcullis.outcome", json!(line.outcome.to_string())),
        ("portcullis.bytes_in", json!(line.bytes_in)),
        ("portcullis.bytes_out", json!(line.bytes_out)),
    ];
    if let Some(method) = &line.method {
        facts.push(("http.request.method", json!(short(method.as_str()))));
    }
    if let Some(model) = &line.model {
        facts.push(("gen_ai.request.model", json!(short(model))));
    }
    if let Some(backend) = &line.backend {
        facts.push(("portcullis.backend", json!(&**backend)));
    }
    let turn = line.backend.is_some().then_some(("turn", line.queue));
    let first_byte = line.first_byte.map(|after| ("first byte", after));
    Span {
        context: trace.context,
        name: line.operation.unwrap_or("none"),
        began: line.time,
        lasted: line.total,
        events: turn.into_iter().chain(first_byte).collect(),
        facts,
        is_error: line.status >= 500
            || matches!(line.outcome, Outcome::BackendFailed | Outcome::BackendTimeout),
    }
}
