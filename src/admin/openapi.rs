//! The description of the API, made from the table of routes.

use serde_json::{Map, Value, json};

mod running;
mod usage;

use super::query::{MOST, USUAL};
use super::routes::{Body, Needs, ROUTES, Route};
use crate::config::Measure;

/// OpenAPI 3.1.
#[must_use]
pub fn description() -> Value {
    let mut paths = Map::new();
    for route in &ROUTES {
        let item = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Value::Object(item) = item {
            item.insert(route.method.as_str().to_ascii_lowercase(), operation(route));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Portcullis admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Who may use the models behind this gate, who changed that, and what was \
                            decided about each request, what was used, and what runs and waits.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"basic": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
            },
            "schemas": schemas(),
        },
    })
}

fn operation(route: &Route) -> Value {
    let needs = match route.needs {
        Needs::Viewer => "the role viewer or admin",
        Needs::Admin => "the role admin",
    };
    let mut says = route.says.to_owned();
    says.get_mut(..1).map(str::make_ascii_uppercase);
    let mut operation = json!({
        "operationId": route.operation,
        "summary": format!("{says}."),
        "description": format!("Needs {needs}."),
        "parameters": parameters(route),
        "responses": responses(route),
    });
    if let (Value::Object(operation), Some((schema, body))) = (&mut operation, route.takes) {
        let required = body == Body::Required;
        let content = json!({"application/json": {"schema": reference(schema)}});
        let body = json!({"required": required, "content": content});
        operation.insert("requestBody".to_owned(), body);
    }
    operation
}

fn parameters(route: &Route) -> Vec<Value> {
    let braces = route.path.split(['{', '}']).nth(1);
    let in_path = braces.map(
        |name| json!({"name": name, "in": "path", "required": true, "schema": reference(route.id)}),
    );
    let in_query = route.query.iter().map(|name| {
        json!({"name": name, "in": "query", "required": false, "schema": query_schema(route, name)})
    });
    in_path.into_iter().chain(in_query).collect()
}

fn query_schema(route: &Route, name: &str) -> Value {
    match (name, route.operation) {
        ("limit", _) => {
            json!({"type": "integer", "minimum": 1, "maximum": MOST, "default": USUAL})
        }
        ("after", "list_audit") => json!({"type": "integer", "minimum": 0, "maximum": i64::MAX}),
        ("after", "list_decisions") => reference("RequestId"),
        ("after", "list_usage" | "list_reloads") => {
            json!({"type": "integer", "minimum": 0, "maximum": i64::MAX})
        }
        ("after", _) => reference("KeyId"),
        ("format", _) => json!({"type": "string", "enum": ["json", "csv"], "default": "json"}),
        ("by", _) => usage::by(),
        ("since", _) => usage::moment(crate::report::USUAL),
        ("until", _) => usage::moment("now"),
        ("state", _) => reference("KeyState"),
        (_, _) => json!({"type": "string", "pattern": "^[^\\x00]*$"}),
    }
}

fn responses(route: &Route) -> Value {
    let said = if route.status == 201 { "made" } else { "done" };
    let mut responses = Map::new();
    let mut content = json!({kind_of(route): {"schema": reference(route.gives)}});
    if let (Value::Object(kinds), true) = (&mut content, route.query.contains(&"format")) {
        kinds.insert("text/csv".to_owned(), json!({"schema": {"type": "string"}}));
    }
    let good = json!({"description": said, "content": content});
    responses.insert(route.status.to_string(), good);
    let refusals: [(u16, &str, bool); 12] = [
        (400, "the request cannot be understood", true),
        (401, "no login, or a wrong one", true),
        (403, "another role is needed, or a page of another site asked", true),
        (404, "there is no such thing, or the gate has no data_dir", true),
        (408, "the body did not arrive in time", route.takes.is_some()),
        (409, "it contradicts what is there", route.method != http::Method::GET),
        (413, "the body is too large", route.takes.is_some()),
        (415, "the body is not said to be JSON", route.takes.is_some()),
        (421, "the Host is not this gate's", true),
        (422, "a field or a parameter is not as it has to be; the text names it", true),
        (429, "too many failed logins", true),
        (503, "the store cannot be used right now", true),
    ];
    for (status, says, _) in refusals.into_iter().filter(|(_, _, applies)| *applies) {
        let refusal = json!({
            "description": says,
            "content": {"application/json": {"schema": reference("Error")}},
        });
        responses.insert(status.to_string(), refusal);
    }
    Value::Object(responses)
}

fn kind_of(route: &Route) -> &'static str {
    if route.is_text() { "application/openmetrics-text" } else { "application/json" }
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn closed(properties: &Value, required: &[&str]) -> Value {
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn page(entries: &str, of: &str, next: &Value) -> Value {
    let list = json!({"type": "array", "items": reference(of)});
    let next = json!({"description": "`after` of the next page; null at the end", "anyOf": [next, {"type": "null"}]});
    let mut properties = Map::new();
    properties.insert(entries.to_owned(), list);
    properties.insert("next".to_owned(), next);
    closed(&Value::Object(properties), &[entries, "next"])
}

fn schemas() -> Value {
    let mut schemas = json!({
        "Description": {"type": "object"},
        "Metrics": {"type": "string"},
        "Error": closed(
            &json!({"error": {"type": "string"}, "code": {"type": "string"}}),
            &["error", "code"],
        ),
        "KeyId": {"type": "string", "pattern": "^k[0-9A-Za-z]{11}$"},
        "RequestId": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
        "Code": {"type": "string", "pattern": "^[2-9A-HJ-NP-Z]{4}-[2-9A-HJ-NP-Z]{4}$"},
        "KeyState": {"type": "string", "enum": ["active", "disabled", "revoked"]},
        "Role": {"type": "string", "enum": ["viewer", "user", "operator", "admin"]},
        "Nothing": closed(&json!({}), &[]),
        "KeyTerms": closed(&terms(), &["name"]),
        "KeyChange": closed(&terms(), &[]),
        "KeyImport": closed(&json!({"keys": {"type": "array", "maxItems": 10_000, "items": closed(
            &json!({"sha256": {"type": "string", "pattern": "^[0-9A-Fa-f]{64}$"}, "name": name()}),
            &["sha256", "name"],
        )}}), &["keys"]),
        "Imported": closed(
            &json!({"added": {"type": "integer"}, "known": {"type": "integer"}}),
            &["added", "known"],
        ),
        "Revocation": closed(&json!({"now": {"type": "boolean"}}), &[]),
        "Rotation": closed(&json!({
            "overlap": {"type": ["string", "null"], "pattern": "^([0-9]{1,3}(ms|s|m|h)|[0-3]?[0-9]{1,2}d)$", "examples": ["24h"]},
        }), &[]),
        "Admission": closed(&json!({"name": name()}), &["name"]),
    });
    for more in [answers(), usage::schemas(), running::schemas()] {
        if let (Value::Object(schemas), Value::Object(more)) = (&mut schemas, more) {
            schemas.extend(more);
        }
    }
    schemas
}

fn answers() -> Value {
    let key = key();
    let more = |field: &str, schema: Value| {
        let mut properties = key.clone();
        if let Value::Object(properties) = &mut properties {
            properties.insert(field.to_owned(), schema);
        }
        closed(&properties, &["id", "name", "state", field])
    };
    let secret = json!({"type": "string", "pattern": "^pc_[0-9A-Za-z]{49}$", "description": "shown this once"});
    json!({
        "Key": closed(&key, &["id", "name", "state"]),
        "NewKey": more("secret", secret),
        "Revoked": more("ended", json!({"type": "integer", "description": "requests that were ended"})),
        "KeyPage": page("keys", "Key", &reference("KeyId")),
        "AuditEntry": closed(&json!({
            "number": {"type": "integer"}, "at": {"type": "string", "format": "date-time"},
            "who": {"type": "string"}, "client": {"type": ["string", "null"]},
            "action": {"type": "string"}, "subject": {"type": "string"},
            "before": {"type": ["object", "null"]}, "after": {"type": ["object", "null"]},
        }), &["number", "at", "who", "action", "subject"]),
        "AuditPage": page("entries", "AuditEntry", &json!({"type": "integer"})),
        "DecisionLine": closed(&decision(), &["id", "time", "status", "outcome"]),
        "DecisionPage": page("decisions", "DecisionLine", &reference("RequestId")),
        "Decision": whole_decision(),
    })
}

fn name() -> Value {
    json!({"type": "string", "minLength": 1, "pattern": "^[^/\\x00-\\x1f\\x7f-\\x9f]+$", "description": "255 bytes at most"})
}

/// An address, or a network as CIDR.
fn network() -> Value {
    let four = "((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
    let six = "([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}";
    json!({
        "type": "string",
        "pattern": format!("^({four}(/(3[0-2]|[12]?[0-9]))?|{six}(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?)$"),
        "description": "IPv6 may be shortened", "examples": ["10.0.0.0/8"],
    })
}

/// What may be sent of a key.
fn terms() -> Value {
    let nullable = |schema: Value| json!({"anyOf": [schema, {"type": "null"}]});
    json!({
        "name": name(),
        "owner": nullable(name()),
        "role": nullable(reference("Role")),
        "models": nullable(json!({"anyOf": [{"const": "all"}, {
            "type": "array", "minItems": 1, "maxItems": 1000,
            "items": {"type": "string", "pattern": "^[a-z0-9][a-z0-9.]{0,30}[*]?$"},
        }]})),
        "cloud": {"type": ["boolean", "null"]},
        "expires": nullable(json!({"type": "string", "format": "date-time"})),
        "networks": nullable(json!({
            "type": "array", "minItems": 1, "maxItems": 1000, "items": network(),
        })),
        "limits": nullable(limits()),
        "note": {"type": ["string", "null"], "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f]*$", "description": "1000 bytes at most"},
    })
}

fn key() -> Value {
    let text = || json!({"type": ["string", "null"]});
    json!({
        "id": reference("KeyId"), "form": {"type": "string", "enum": ["secret", "signing"]},
        "state": reference("KeyState"),
        "name": {"type": "string"}, "owner": text(),
        "role": {"anyOf": [reference("Role"), {"type": "null"}]},
        "models": {"anyOf": [{"const": "all"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        "cloud": {"type": ["boolean", "null"]}, "expires": text(),
        "networks": {"type": ["array", "null"], "items": {"type": "string"}},
        "limits": limits(), "note": {"type": "string"},
        "created": {"type": "string"}, "created_by": {"type": "string"},
        "rotated_to": text(), "overlap_until": text(), "used": text(), "used_from": text(),
        "fingerprint": {"type": "string", "description": "the first 8 hex digits of the key's SHA-256"},
    })
}

/// How much a key may have.
fn limits() -> Value {
    let number = json!({"type": "integer", "minimum": 1, "maximum": 1_000_000_000_000_000_u64});
    let each =
        Measure::ALL.into_iter().map(|measure| (measure.as_str().to_owned(), number.clone()));
    json!({"type": "object", "additionalProperties": false, "properties": each.collect::<Value>()})
}

fn decision() -> Value {
    let text = || json!({"type": ["string", "null"]});
    let number = || json!({"type": ["number", "null"]});
    json!({
        "id": reference("RequestId"), "time": {"type": "string", "format": "date-time"},
        "client": text(), "name": text(), "credential": text(), "role": text(), "key": text(),
        "method": text(), "path": {"type": "string"}, "operation": text(), "model": text(),
        "backend": text(), "status": {"type": "integer"}, "code": text(),
        "outcome": {"type": "string"}, "bytes_in": {"type": "integer"},
        "bytes_out": {"type": "integer"}, "queue_ms": number(), "first_byte_ms": number(),
        "total_ms": number(), "position": {"type": ["integer", "null"]},
    })
}

fn whole_decision() -> Value {
    let mut properties = decision();
    let text = || json!({"type": ["string", "null"]});
    let stage = closed(
        &json!({
            "stage": {"type": "string"},
            "result": {"type": "string", "enum": ["passed", "refused", "left", "broke off", "not reached"]},
            "says": {"type": "string"},
        }),
        &["stage", "result", "says"],
    );
    if let Value::Object(properties) = &mut properties {
        properties.insert("says".to_owned(), text());
        properties.insert("would_allow".to_owned(), text());
        properties.insert("stages".to_owned(), json!({"type": "array", "items": stage}));
    }
    closed(&properties, &["id", "time", "status", "outcome", "says", "would_allow", "stages"])
}
