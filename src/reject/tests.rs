//! The table is whole, and what a caller is told has the form that its clients know.

use super::*;
use crate::config::Role;

/// One of each kind. The match has no `_`: whoever adds a variant adds it here too.
fn checked() -> Vec<Reject> {
    let all = one_of_each();
    for reject in &all {
        match reject {
            Reject::BadRequest(_)
            | Reject::BadPath(_)
            | Reject::BadBody(_)
            | Reject::AmbiguousBody(_)
            | Reject::NoCredentials
            | Reject::BadCredentials(..)
            | Reject::Forbidden(_)
            | Reject::ModelForbidden(_)
            | Reject::UnknownModel(_)
            | Reject::TlsRequired
            | Reject::UnknownEndpoint
            | Reject::MethodNotAllowed { .. }
            | Reject::RequestTimeout
            | Reject::BodyTooLarge { .. }
            | Reject::TargetTooLong
            | Reject::UnsupportedEncoding(_)
            | Reject::BadExpectation
            | Reject::UnsupportedMediaType
            | Reject::NotFound(_)
            | Reject::NoStore
            | Reject::Conflict(_)
            | Reject::Invalid(_)
            | Reject::StoreFailed(_)
            | Reject::WrongHost
            | Reject::HeadersTooLarge
            | Reject::TooManyFailures { .. }
            | Reject::RateLimited(_)
            | Reject::QuotaExhausted(_)
            | Reject::TooManyConcurrent(_)
            | Reject::Internal
            | Reject::BadVersion
            | Reject::LoopDetected
            | Reject::BackendFailed(_)
            | Reject::NoBackend(_)
            | Reject::Overloaded(_)
            | Reject::QueueFull { .. }
            | Reject::QueueTimeout { .. }
            | Reject::Stopped
            | Reject::BackendTimeout => {}
        }
    }
    let variants = include_str!("../reject.rs").matches("#[error(").count();
    assert_eq!(all.len(), variants, "add the new variant to the list above too");
    all
}

/// Those that are told in words of ours: a hidden model is told of as Ollama tells of a missing one.
fn ours() -> Vec<Reject> {
    let mut all = checked();
    all.retain(|reject| !matches!(reject, Reject::UnknownModel(_)));
    all
}

fn told(dialect: Dialect) -> Told<'static> {
    let challenges = Challenges { basic: true, bearer: true };
    Told { dialect, request_id: "r1", signin_url: "http://gate/help", challenges }
}

fn json(reject: &Reject, dialect: Dialect) -> Value {
    serde_json::from_slice(reject.response(&told(dialect)).body()).unwrap()
}

fn header<'a>(response: &'a Response<Bytes>, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn every_refusal_has_a_code_of_its_own_and_the_list_has_them_all() {
    let mut codes: Vec<_> = checked().iter().map(|it| it.row().code).collect();
    let mut listed = CODES.to_vec();
    codes.sort_unstable();
    listed.sort_unstable();
    // Whoever finds the queue full has met an overload.
    let queue_full = Reject::QueueFull { wait: Duration::ZERO }.row().code;
    let doubled = codes.iter().position(|code| *code == queue_full);
    codes.remove(doubled.unwrap());
    assert_eq!(codes, listed);
    codes.dedup();
    assert_eq!(codes.len(), CODES.len());
}

#[test]
fn a_code_goes_with_the_status_that_is_promised() {
    let promised = [
        (400, ["bad_request", "bad_path", "bad_body", "ambiguous_body"].as_slice()),
        (401, &["no_credentials", "bad_credentials"]),
        (403, &["forbidden", "model_forbidden", "tls_required"]),
        (404, &["unknown_endpoint", "unknown_model", "not_found", "no_store"]),
        (405, &["method_not_allowed"]),
        (408, &["request_timeout"]),
        (413, &["body_too_large"]),
        (414, &["target_too_long"]),
        (409, &["conflict"]),
        (415, &["unsupported_encoding", "unsupported_media_type"]),
        (422, &["invalid"]),
        (417, &["bad_expectation"]),
        (421, &["wrong_host"]),
        (429, &["too_many_failures", "rate_limited", "quota_exhausted", "too_many_concurrent"]),
        (431, &["headers_too_large"]),
        (500, &["internal"]),
        (502, &["backend_failed"]),
        (503, &["no_backend", "queue_timeout", "overloaded", "store_failed", "stopped"]),
        (504, &["backend_timeout"]),
        (505, &["bad_version"]),
        (508, &["loop_detected"]),
    ];
    for reject in checked() {
        let Row { status, code, .. } = reject.row();
        let (expected, _) = promised.iter().find(|(_, codes)| codes.contains(&code)).unwrap();
        assert_eq!(status, *expected, "{code}");
        assert_eq!(reject.response(&told(Dialect::Native)).status(), status, "{code}");
    }
}

#[test]
fn a_client_may_try_again_where_that_can_help() {
    for reject in ours() {
        let Row { status, code, retry, .. } = reject.row();
        let passing = matches!(status, 502..=504) && !matches!(code, "queue_timeout" | "stopped");
        let soon = matches!(code, "rate_limited" | "too_many_concurrent");
        assert_eq!(retry, passing || soon, "{code}");
        let response = reject.response(&told(Dialect::OpenAi));
        let expected = if retry { "true" } else { "false" };
        assert_eq!(header(&response, "x-should-retry"), Some(expected), "{code}");
        if matches!(status, 429 | 503) {
            assert!(header(&response, "retry-after").is_some(), "{code} says when");
        }
    }
}

#[test]
fn a_wait_is_rounded_up_to_whole_seconds() {
    for (millis, says) in [(1, "1"), (999, "1"), (1000, "1"), (1001, "2"), (59_000, "59")] {
        let retry_after = Duration::from_millis(millis);
        let response = Reject::TooManyFailures { retry_after }.response(&told(Dialect::Native));
        assert_eq!(header(&response, "retry-after"), Some(says), "{millis} ms");
    }
}

#[test]
fn ollamas_clients_find_the_text_at_error() {
    for reject in ours() {
        let json = json(&reject, Dialect::Native);
        assert_eq!(json["error"], reject.says());
        assert_eq!(json["code"], reject.row().code);
        assert_eq!(json.get("signin_url").is_some(), reject.row().status == 401);
    }
}

#[test]
fn a_401_tells_the_stock_command_line_where_to_read_on() {
    for reject in [Reject::NoCredentials, Reject::BadCredentials("why", None)] {
        let json = json(&reject, Dialect::Native);
        assert_eq!(json["signin_url"], "http://gate/help");
        assert_eq!(json["status"], format!("{}; see http://gate/help", reject.says()));
    }
}

#[test]
fn openais_clients_find_type_message_param_and_code() {
    for (reject, kind) in kinds("api_error") {
        let code = reject.row().code;
        let expected = serde_json::json!({"error": {
            "message": reject.says(), "type": kind, "param": null, "code": code,
        }});
        assert_eq!(json(&reject, Dialect::OpenAi), expected, "{code}");
    }
}

#[test]
fn anthropics_clients_find_type_message_and_request_id() {
    for (reject, kind) in kinds("overloaded_error") {
        let code = reject.row().code;
        let expected = serde_json::json!({
            "type": "error",
            "error": {"type": kind, "message": reject.says(), "code": code},
            "request_id": "r1",
        });
        assert_eq!(json(&reject, Dialect::Anthropic), expected, "{code}");
    }
}

/// Each refusal with the type that the SDKs know it by; 503 differs.
fn kinds(of_503: &'static str) -> impl Iterator<Item = (Reject, &'static str)> {
    ours().into_iter().map(move |reject| {
        let kind = match reject.row().status {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => of_503,
            status if status >= 500 => "api_error",
            _ => "invalid_request_error",
        };
        (reject, kind)
    })
}

#[test]
fn a_caller_is_never_told_what_only_the_log_should_hold() {
    for dialect in [Dialect::Native, Dialect::OpenAi, Dialect::Anthropic] {
        for reject in ours() {
            let response = reject.response(&told(dialect));
            let body = String::from_utf8_lossy(response.body());
            assert!(!body.contains("secret cause"), "{body}");
            assert_eq!(header(&response, "content-type"), Some("application/json"));
        }
    }
}

#[test]
fn only_a_401_challenges_and_only_a_405_lists_methods() {
    for reject in checked() {
        let Row { status, code, .. } = reject.row();
        let response = reject.response(&told(Dialect::Native));
        let challenges = response.headers().get_all("www-authenticate").iter().count();
        assert_eq!(challenges, if status == 401 { 2 } else { 0 }, "{code}");
        assert_eq!(header(&response, "allow"), (status == 405).then_some("GET"), "{code}");
    }
}

#[test]
fn a_challenge_names_the_schemes_in_use() {
    let both = Challenges { basic: true, bearer: true };
    let cases = [
        (
            both,
            vec!["Basic realm=\"portcullis\", charset=\"UTF-8\"", "Bearer realm=\"portcullis\""],
        ),
        (Challenges { basic: false, ..both }, vec!["Bearer realm=\"portcullis\""]),
    ];
    for (challenges, expected) in cases {
        let told = Told { challenges, ..told(Dialect::Native) };
        let response = Reject::NoCredentials.response(&told);
        let named = response.headers().get_all("www-authenticate").iter();
        let named: Vec<_> = named.map(|value| value.to_str().unwrap()).collect();
        assert_eq!(named, expected);
    }
}

#[test]
fn the_dialect_is_that_of_the_path() {
    for (path, dialect) in [
        ("/v1/messages", Dialect::Anthropic),
        ("/v1/messages/count_tokens", Dialect::Anthropic),
        ("/v1/messagesx", Dialect::OpenAi),
        ("/v1", Dialect::OpenAi),
        ("/v1/nowhere", Dialect::OpenAi),
        ("/v10", Dialect::Native),
        ("/api/chat", Dialect::Native),
        ("/", Dialect::Native),
    ] {
        assert_eq!(Dialect::of(path), dialect, "{path}");
    }
}

#[test]
fn a_denial_names_operation_caller_and_roles() {
    let why = Why::Role { held: Role::User, needed: Role::Operator };
    let denied = Denied { operation: "pull", name: "anna".to_owned(), why };
    let says = Reject::Forbidden(Box::new(denied)).says();
    for part in ["pull", "anna", "user", "operator"] {
        assert!(says.contains(part), "{says}");
    }
}

fn denied_model() -> Box<ModelDenied> {
    Box::new(ModelDenied {
        operation: "chat",
        model: "big".to_owned(),
        stands_for: None,
        who: "anna".to_owned(),
        lack: Lack::Pattern,
        allowed: Allowed { by_rule: Some(vec!["small*".to_owned()]), by_key: None },
    })
}

#[test]
fn a_denied_model_is_told_with_what_is_allowed() {
    let says = |change: fn(&mut ModelDenied)| {
        let mut denied = denied_model();
        change(&mut denied);
        denied.to_string()
    };
    assert_eq!(says(|_| {}), "anna may not use big; allowed are small*");
    fn many() -> Option<Vec<String>> {
        Some(vec!["m".to_owned(); 99])
    }
    assert!(says(|it| it.allowed.by_rule = Some(Vec::new())).ends_with("nor any other model here"));
    assert!(says(|it| it.allowed.by_key = Some(Vec::new())).ends_with("nor any other model here"));
    assert!(says(|it| it.allowed = Allowed { by_rule: None, by_key: many() }).ends_with("m, …"));
    assert!(says(|it| it.allowed.by_key = many()).contains("m, … (the key's)"));
    assert!(says(|it| it.lack = Lack::Cloud).contains("cloud = true"));
    assert!(says(|it| it.lack = Lack::AllModels).contains("another's"));
}

#[test]
fn a_hidden_model_is_told_of_as_ollama_tells_of_a_missing_one() {
    let reject = Reject::UnknownModel(denied_model());
    let native = reject.response(&told(Dialect::Native));
    assert_eq!(native.body(), r#"{"error":"model 'big' not found"}"#);
    let names: Vec<_> = native.headers().keys().map(HeaderName::as_str).collect();
    assert_eq!(names, ["content-type"]);
    let expected = serde_json::json!({"error": {
        "message": "model 'big' not found", "type": "not_found_error", "param": null, "code": null,
    }});
    let openai = reject.response(&told(Dialect::OpenAi));
    assert_eq!(*openai.body(), format!("{expected}\n"));
    assert_eq!(header(&openai, "content-type"), Some("application/json"));
    let expected = serde_json::json!({
        "type": "error",
        "error": {"type": "not_found_error", "message": "model 'big' not found"},
        "request_id": "r1",
    });
    assert_eq!(json(&reject, Dialect::Anthropic), expected);
}
