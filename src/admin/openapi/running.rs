//! The schemas of what runs and waits, and of the backends.

use serde_json::{Value, json};

use super::{closed, reference};

pub(super) fn schemas() -> Value {
    let count = || json!({"type": "integer", "minimum": 0});
    json!({
        "Running": closed(&json!({
            "running": count(), "waiting": count(),
            "requests": {"type": "array", "items": reference("Request")},
        }), &["running", "waiting", "requests"]),
        "Request": request(),
        "Whose": closed(&json!({"name": {"type": "string"}}), &["name"]),
        "Stopped": closed(
            &json!({"stopped": {"type": "integer", "minimum": 0, "description": "how many requests"}}),
            &["stopped"],
        ),
        "BackendName": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
        "Backends": closed(
            &json!({"backends": {"type": "array", "items": reference("Backend")}}),
            &["backends"],
        ),
        "Backend": backend(),
    })
}

fn request() -> Value {
    let count = || json!({"type": "integer", "minimum": 0});
    let common = json!({
        "id": reference("RequestId"), "name": {"type": "string"},
        "model": {"type": ["string", "null"]}, "operation": {"type": "string"},
        "class": {"type": "string", "enum": ["interactive", "batch"]},
        "since": {"type": "string", "format": "date-time", "description": "when it asked for its turn"},
        "waited_ms": count(),
        "state": {"type": "string", "enum": ["waiting", "running"]},
        "backends": {
            "type": "array", "items": {"type": "string"},
            "description": "where it runs, or for which it waits",
        },
        "position": {"type": "integer", "minimum": 1, "description": "of what waits: 1 is next"},
        "expected_s": {"type": "integer", "minimum": 0, "description": "of what waits: until its turn, about"},
        "runs_ms": count(),
        "first_byte": {"type": "boolean", "description": "whether its answer has begun"},
        "tokens": {"type": "integer", "minimum": 0, "description": "of its answer so far"},
        "tokens_per_second": {"type": ["number", "null"]},
    });
    let always =
        ["id", "name", "model", "operation", "class", "since", "waited_ms", "state", "backends"];
    closed(&common, &always)
}

fn backend() -> Value {
    let bound =
        || json!({"type": ["integer", "null"], "minimum": 1, "description": "null: no bound"});
    let model = closed(
        &json!({
            "name": {"type": "string"}, "in_memory": {"type": "boolean"},
            "running": {"type": "integer", "minimum": 0}, "parallel": bound(),
            "parallel_is": {"type": "string", "enum": ["learned", "set"]},
        }),
        &["name", "in_memory", "running", "parallel", "parallel_is"],
    );
    let properties = json!({
        "name": {"type": "string"}, "url": {"type": "string"},
        "kind": {"type": "string", "enum": ["ollama", "openai"]},
        "up": {"type": "boolean"}, "drained": {"type": "boolean"},
        "busy": {"type": "integer", "minimum": 0}, "weight": {"type": "number"},
        "parallel": {"type": "string", "description": "requests of one model at once, in words"},
        "models_at_once": bound(), "models": {"type": "array", "items": model},
        "tags": {"type": "array", "items": {"type": "string"}},
    });
    let always = [
        "name",
        "url",
        "kind",
        "up",
        "drained",
        "busy",
        "weight",
        "parallel",
        "models_at_once",
        "models",
        "tags",
    ];
    closed(&properties, &always)
}
