//! The admin API: who may ask it, from where, what it takes, what it does, and what stays of it.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine;
use jiff::Timestamp;
use portcullis::admin::{Needs, ROUTES, Route, description};
use portcullis::config::{Pattern, Role, Roles};
use serde_json::{Value, json};

use crate::house::{Answer, Backend, Caller, House, Step, chunk, ok_json, stream_head, until};
use crate::machine::{Machine, code_in};

const ROLES: [(&str, Role); 4] = [
    ("viewer", Role::Viewer),
    ("user", Role::User),
    ("operator", Role::Operator),
    ("admin", Role::Admin),
];

/// With a key for each role, which is called like it.
async fn house(backend: &Backend) -> House {
    House::with(backend, |config, folder| {
        config.admin = Some("127.0.0.1:0".parse().unwrap());
        config.data_dir = Some(folder.path().join("data"));
        config.failed_attempts_per_minute = 0;
        let keys = ROLES.map(|(name, _)| format!("key-of-{name} # {name}\n")).concat();
        std::fs::write(folder.path().join("api_keys.txt"), keys).unwrap();
        let named = ROLES.map(|(name, role)| (Pattern::new(name), role)).to_vec();
        config.roles = Roles::new(Role::User, named);
    })
    .await
}

fn request(line: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\n{fields}Connection: close\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

async fn send(house: &House, request: String) -> Answer {
    let head = request.starts_with("HEAD ");
    let mut caller = Caller::connect(house.admin.unwrap()).await;
    caller.send(request).await;
    caller.answer_to(if head { "HEAD" } else { "GET" }).await
}

/// As the admin, with JSON.
async fn ask(house: &House, line: &str, body: &str) -> Answer {
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    send(house, request(line, &format!("Authorization: Bearer key-of-admin\r\n{kind}"), body)).await
}

async fn made(house: &House, name: &str) -> Value {
    let answer = ask(house, "POST /api/v1/keys", &json!({"name": name}).to_string()).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()
}

fn text<'a>(json: &'a Value, field: &str) -> &'a str {
    json[field].as_str().unwrap_or_else(|| panic!("{field}: {json}"))
}

/// What a caller with this key is told on the gate's own port.
async fn at_the_gate(house: &House, key: &str) -> u16 {
    let head =
        format!("GET /api/tags HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {key}\r\n\r\n");
    house.ask(head).await.status
}

fn line(route: &Route, id: &str) -> String {
    let path =
        route.path.replace("{id}", id).replace("{code}", "ABCD-2345").replace("{name}", "ollama");
    format!("{} {path}", route.method)
}

async fn audit(house: &House) -> Vec<Value> {
    let answer = ask(house, "GET /api/v1/audit?limit=999", "").await;
    answer.json()["entries"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_for_the_roles_that_the_table_says_and_for_nobody_else() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let id = text(&made(&house, "bot").await, "id").to_owned();
    let before = audit(&house).await.len();
    for route in &ROUTES {
        for (name, role) in ROLES {
            let may = match route.needs {
                Needs::Viewer => matches!(role, Role::Viewer | Role::Admin),
                Needs::Admin => role == Role::Admin,
            };
            if may {
                continue; // the test below is about these
            }
            let key = format!("Authorization: Bearer key-of-{name}\r\n");
            let answer = send(&house, request(&line(route, &id), &key, "")).await;
            assert_eq!(
                (answer.status, answer.code()),
                (403, "forbidden".into()),
                "{name} {route:?}"
            );
            assert!(answer.text().contains(route.operation), "{}", answer.text());
        }
        for (fields, code) in [
            ("", "no_credentials"),
            ("Authorization: Bearer wrong\r\n", "bad_credentials"),
            ("x-api-key: wrong\r\n", "bad_credentials"),
            ("Authorization: Basic YW5uYTp3cm9uZw==\r\n", "bad_credentials"),
        ] {
            let answer = send(&house, request(&line(route, &id), fields, "")).await;
            assert_eq!((answer.status, answer.code()), (401, code.into()), "{route:?}");
        }
    }
    let viewer = "Authorization: Bearer key-of-viewer\r\n";
    let may_look = send(&house, request("GET /api/v1/openapi.json", viewer, "")).await;
    assert_eq!(may_look.status, 200);
    let changes = |it: &&Value| it["action"] != "login failed";
    assert_eq!(audit(&house).await.iter().filter(changes).count(), before, "nothing was changed");
}

/// A backend whose chats do not end.
async fn endless() -> Backend {
    Backend::scripted(move |seen| match seen.line().contains("/api/chat") {
        true => vec![
            Step::Send(stream_head("application/x-ndjson").into()),
            Step::Send(chunk("{\"n\":1}\n").into()),
            Step::AwaitClose,
        ],
        false => vec![Step::Send(ok_json("{}").into())],
    })
    .await
}

/// Makes true what the route is about; how it is asked, and who has to stay meanwhile.
async fn prepared(house: &House, route: &Route) -> (String, String, Option<Caller>) {
    let mut id = text(&made(house, "bot").await, "id").to_owned();
    let mut stays = None;
    let mut code = String::new();
    match route.operation {
        "enable_key" => drop(ask(house, &format!("POST /api/v1/keys/{id}/disable"), "").await),
        "undrain_backend" => drop(ask(house, "POST /api/v1/backends/ollama/drain", "").await),
        "allow_knock" => {
            let refused = house.ask(Machine::new(8).asks("/api/tags", 0)).await;
            code = code_in(&refused.text()).unwrap();
        }
        "show_decision" => {
            let none = house.ask("GET /api/tags HTTP/1.1\r\nHost: gate\r\n\r\n").await;
            id = none.header("x-request-id").unwrap().to_owned();
            let asked = format!("GET /api/v1/decisions/{id}");
            while ask(house, &asked, "").await.status == 404 {}
        }
        "stop_request" | "stop_requests" => {
            let mut caller = house.connect().await;
            let key = "Authorization: Bearer key-of-user\r\n";
            caller.send(request("POST /api/chat", key, r#"{"model":"m"}"#)).await;
            assert!(caller.sees_content("{\"n\":1}").await);
            let running = ask(house, "GET /api/v1/running", "").await.json();
            id = text(&running["requests"][0], "id").to_owned();
            stays = Some(caller);
        }
        _ => {}
    }
    let body = match route.body() {
        None => String::new(),
        Some("Nothing" | "Revocation" | "Rotation") => "{}".to_owned(),
        Some("KeyTerms" | "Admission") => json!({"name": "next"}).to_string(),
        Some("KeyChange") => json!({"note": "changed"}).to_string(),
        Some("Whose") => json!({"name": "user"}).to_string(),
        Some("KeyImport") => {
            json!({"keys": [{"name": "old", "sha256": sha256_of("an-old-key")}]}).to_string()
        }
        Some(other) => panic!("say what is sent as {other}"),
    };
    (line(route, &id).replace("ABCD-2345", &code), body, stays)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_does_its_work_for_every_role_that_the_table_says_and_changes_leave_a_trace() {
    let backend = endless().await;
    let house = house(&backend).await;
    let description = description();
    for route in &ROUTES {
        let method = route.method.as_str().to_ascii_lowercase();
        let responses = description["paths"][route.path][&method]["responses"].as_object().unwrap();
        let (status, good) = responses.iter().find(|(status, _)| status.starts_with('2')).unwrap();
        let roles: &[&str] = match route.needs {
            Needs::Viewer => &["viewer", "admin"],
            Needs::Admin => &["admin"],
        };
        for role in roles {
            let (line, body, _stays) = prepared(&house, route).await;
            let before = audit(&house).await.len();
            let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
            let fields = format!("Authorization: Bearer key-of-{role}\r\n{kind}");
            let answer = send(&house, request(&line, &fields, &body)).await;
            let told = answer.text();
            assert_eq!(answer.status.to_string(), *status, "{role} {line}: {told}");
            if route.is_text() {
                assert!(told.ends_with("# EOF\n"), "{told}");
            } else {
                let schema = &good["content"]["application/json"]["schema"]["$ref"];
                let schema = schema.as_str().unwrap().rsplit('/').next().unwrap();
                let required = &description["components"]["schemas"][schema]["required"];
                for field in required.as_array().into_iter().flatten() {
                    assert!(answer.json().get(field.as_str().unwrap()).is_some(), "{line}: {told}");
                }
            }
            let trail = audit(&house).await;
            let new = &trail[..trail.len() - before];
            assert_eq!(new.is_empty(), route.method == "GET", "{line}: {new:?}");
            assert!(new.iter().all(|entry| text(entry, "who") == "admin"), "{new:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_listener_answers_for_the_other() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    // Other model servers have metrics of their own, at the same path.
    for route in ROUTES.iter().filter(|route| route.path != "/metrics") {
        let asked = request(&line(route, "k1"), "Authorization: Bearer key-of-admin\r\n", "");
        let answer = house.ask(asked).await;
        assert_eq!((answer.status, answer.code()), (404, "unknown_endpoint".into()), "{route:?}");
    }
    for path in [
        "/",
        "/api/tags",
        "/v1/models",
        "/_portcullis/health",
        "/_portcullis/me",
        "/api/v1",
        "/metric",
    ] {
        for method in ["GET", "HEAD", "POST"] {
            let answer = ask(&house, &format!("{method} {path}"), "").await;
            assert_eq!(answer.status, 404, "{method} {path}");
        }
    }
    let by_path = send(&house, request("GET /k/key-of-admin/api/v1/keys", "", "")).await;
    assert_eq!(by_path.status, 404, "a key in an address gets into histories");
    assert!(backend.seen().is_empty(), "{:?}", backend.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_sites_and_foreign_names_are_refused_before_the_login() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let key = "Authorization: Bearer key-of-admin\r\nContent-Type: application/json\r\n";
    let body = r#"{"name":"planted"}"#;
    for (field, status) in [
        ("Sec-Fetch-Site: cross-site\r\n", 403),
        ("Sec-Fetch-Site: same-site\r\n", 403),
        ("Origin: https://evil.example\r\n", 403),
        ("Origin: null\r\n", 403),
        ("Origin: http://localhost:1\r\n", 403),
    ] {
        for line in ["POST /api/v1/keys", "GET /api/v1/keys", "GET /nowhere"] {
            let answer = send(&house, request(line, &format!("{key}{field}"), body)).await;
            assert_eq!(answer.status, status, "{line} {field}");
            assert_eq!(answer.header("access-control-allow-origin"), None);
        }
    }
    for host in ["evil.example", "evil.example:8881", "localhost.evil.example", "portcullis"] {
        let asked = request("POST /api/v1/keys", key, body);
        let answer = send(&house, asked.replace("Host: localhost", &format!("Host: {host}"))).await;
        assert_eq!((answer.status, answer.code()), (421, "wrong_host".into()), "{host}");
    }
    let bearer = "Authorization: Bearer key-of-admin\r\n";
    for kind in [
        "",
        "Content-Type: text/plain\r\n",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "Content-Type: multipart/form-data; boundary=application/json\r\n",
        "Content-Type: application/json-patch+json\r\n",
        "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
    ] {
        let asked = request("POST /api/v1/keys", &format!("{bearer}{kind}"), body);
        let answer = send(&house, asked).await;
        assert_eq!(
            (answer.status, answer.code()),
            (415, "unsupported_media_type".into()),
            "{kind}"
        );
    }
    let preflight = "Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n";
    let answer = send(&house, request("OPTIONS /api/v1/keys", preflight, "")).await;
    assert_eq!(answer.status, 403);
    assert!(
        ask(&house, "GET /api/v1/keys", "").await.json()["keys"].as_array().unwrap().is_empty()
    );
    let own = "Sec-Fetch-Site: same-origin\r\nOrigin: http://localhost\r\n";
    let charset = "Content-Type: application/JSON; charset=utf-8\r\n";
    let asked = request("POST /api/v1/keys", &format!("{bearer}{charset}{own}"), body);
    assert_eq!(send(&house, asked).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_get_and_no_other_method_changes_anything() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let id = text(&made(&house, "bot").await, "id").to_owned();
    let before = audit(&house).await;
    for route in &ROUTES {
        let path = line(route, &id);
        let (_, path) = path.split_once(' ').unwrap();
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            let answer = ask(&house, &format!("{method} {path}"), "").await;
            let read = method == "GET" || method == "HEAD";
            let own = ROUTES.iter().any(|it| it.path == route.path && it.method == "GET") && read;
            assert_eq!(answer.status == 405, !own, "{method} {path}: {}", answer.status);
            if !own {
                let allow = answer.header("allow").unwrap();
                assert!(allow.contains(route.method.as_str()), "{method} {path}: {allow}");
            }
        }
    }
    assert_eq!(audit(&house).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_tells_browsers_to_be_careful() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let bad = request("GET /api/v1/keys", "Origin: null\r\n", "");
    let nobody = request("GET /api/v1/keys", "", "");
    let foreign = bad.replace("localhost", "evil.example");
    let json = "application/json";
    for (answer, status, kind) in [
        (ask(&house, "GET /api/v1/openapi.json", "").await, 200, json),
        (ask(&house, "HEAD /api/v1/openapi.json", "").await, 200, json),
        (ask(&house, "POST /api/v1/keys", r#"{"name":"bot"}"#).await, 201, json),
        (ask(&house, "POST /api/v1/keys", r#"{"name":""}"#).await, 422, json),
        (ask(&house, "GET /metrics", "").await, 200, portcullis::metrics::CONTENT_TYPE),
        (ask(&house, "GET /api/v1/usage", "").await, 200, json),
        (ask(&house, "GET /api/v1/usage?format=csv", "").await, 200, "text/csv; charset=utf-8"),
        (ask(&house, "GET /api/v1/usage/rows", "").await, 200, json),
        (ask(&house, "GET /api/v1/keys/nothing", "").await, 404, json),
        (ask(&house, "DELETE /api/v1/keys", "").await, 405, json),
        (ask(&house, "POST /api/v1/keys", "{").await, 400, json),
        (ask(&house, "GET /nowhere", "").await, 404, json),
        (ask(&house, "GET /%zz", "").await, 400, json),
        (send(&house, bad).await, 403, json),
        (send(&house, nobody).await, 401, json),
        (send(&house, foreign).await, 421, json),
    ] {
        assert_eq!(answer.status, status, "{}", answer.head);
        is_careful(&answer, kind);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_refused_as_carefully() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| {
        config.admin = Some("127.0.0.1:0".parse().unwrap());
        config.timeouts.header = Duration::from_secs(2);
    })
    .await;
    for (head, status) in [
        ("no head at all\r\n\r\n".to_owned(), 400),
        ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned(), 400),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(9000)), 414),
        (format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(70_000)), 431),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505),
        ("GET / HTTP/1.1\r\nHost: loc".to_owned(), 408),
    ] {
        let answer = send(&house, head).await;
        assert_eq!(answer.status, status, "{}", answer.head);
        is_careful(&answer, "application/json");
    }
    // Elsewhere these would say what is not so.
    let answer = house.ask("no head at all\r\n\r\n").await;
    assert_eq!((answer.status, answer.header("content-security-policy")), (400, None));
}

fn is_careful(answer: &Answer, kind: &str) {
    let policy = answer.header("content-security-policy").unwrap();
    for part in [
        "default-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"));
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
        ("content-type", kind),
    ] {
        assert_eq!(answer.headers(name), [value], "{} {name}", answer.head);
    }
    assert!(answer.header("x-request-id").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_lives_its_life_by_the_api_and_each_step_counts_at_once_and_is_in_the_trail() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let before = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    let key = made(&house, "bot").await;
    let (id, secret) = (text(&key, "id").to_owned(), text(&key, "secret").to_owned());
    assert_eq!((text(&key, "role"), text(&key, "state")), ("user", "active"));
    let post = async |action: &str, body: &str| {
        ask(&house, &format!("POST /api/v1/keys/{id}/{action}"), body).await
    };
    assert_eq!(at_the_gate(&house, &secret).await, 200);
    assert_eq!(text(&post("disable", "").await.json(), "state"), "disabled");
    assert_eq!(at_the_gate(&house, &secret).await, 401);
    assert_eq!(text(&post("enable", "{}").await.json(), "state"), "active");
    assert_eq!(at_the_gate(&house, &secret).await, 200);

    let change = json!({"role": "viewer", "note": "on leave", "models": ["gemma3*"]}).to_string();
    let changed = ask(&house, &format!("PATCH /api/v1/keys/{id}"), &change).await.json();
    assert_eq!((&changed["role"], &changed["models"]), (&"viewer".into(), &json!(["gemma3*"])));
    assert_eq!(at_the_gate(&house, &secret).await, 403);
    let back = r#"{"role":"user","models":null}"#;
    let changed = ask(&house, &format!("PATCH /api/v1/keys/{id}"), back).await.json();
    assert_eq!((&changed["models"], text(&changed, "note")), (&Value::Null, "on leave"));

    let next = post("rotate", r#"{"overlap":"1h"}"#).await;
    assert_eq!(next.status, 201, "{}", next.text());
    let next_secret = text(&next.json(), "secret").to_owned();
    assert_eq!(at_the_gate(&house, &secret).await, 200, "both count for a while");
    assert_eq!(at_the_gate(&house, &next_secret).await, 200);
    assert_eq!(post("rotate", "").await.code(), "conflict");
    let revoked = post("revoke", r#"{"now":true}"#).await.json();
    assert_eq!((text(&revoked, "state"), &revoked["ended"]), ("revoked", &0.into()));
    assert_eq!(at_the_gate(&house, &secret).await, 401);
    assert_eq!(at_the_gate(&house, &next_secret).await, 200, "the one that came after");
    assert_eq!(post("enable", "").await.code(), "conflict");
    let shown = ask(&house, &format!("GET /api/v1/keys/{id}"), "").await;
    assert_eq!(text(&shown.json(), "state"), "revoked");

    let trail = audit(&house).await;
    let actions: Vec<_> = trail.iter().rev().map(|it| text(it, "action").to_owned()).collect();
    let expected =
        ["create", "disable", "enable", "change", "change", "create", "rotate", "revoke"];
    assert_eq!(actions, expected);
    let mut last = before;
    for entry in trail.iter().rev() {
        // In UTC, and in the order in which it was done.
        let at = text(entry, "at");
        let moment: Timestamp = at.parse().unwrap();
        assert!(at.ends_with('Z') && last <= moment && moment <= Timestamp::now(), "{last} {at}");
        last = moment;
        assert_eq!((text(entry, "who"), text(entry, "client")), ("admin", "127.0.0.1"));
        assert!(entry["after"].is_object(), "{entry}");
        assert_eq!(entry["before"].is_null(), entry["action"] == "create", "{entry}");
    }
    let all = [shown.text(), json!(trail).to_string()].concat();
    assert!(!all.contains(&secret) && !all.contains("pc_"), "a key is shown once");
    for line in house.lines().await {
        assert!(!line.to_string().contains("pc_"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_sent_but_the_listed_fields_of_each_object() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let key = made(&house, "bot").await;
    let id = text(&key, "id").to_owned();
    let description = description();
    let schemas = &description["components"]["schemas"];
    let mut fields: BTreeSet<String> = BTreeSet::new();
    for schema in schemas.as_object().unwrap().values() {
        let properties = schema["properties"].as_object();
        fields.extend(properties.into_iter().flat_map(|it| it.keys().cloned()));
    }
    assert!(fields.contains("created_by") && fields.contains("fingerprint") && fields.len() > 40);
    fields.extend(["digest", "generation", "seq", "__proto__", "Name", "rôle"].map(str::to_owned));
    let before = ask(&house, &format!("GET /api/v1/keys/{id}"), "").await.json();
    let routes = ROUTES.iter().filter_map(|route| Some((route, route.body()?)));
    let mut refused = 0;
    for (route, schema) in routes {
        let listed = schemas[schema]["properties"].as_object().unwrap();
        let required: Vec<_> = schemas[schema]["required"].as_array().unwrap().clone();
        for field in fields.iter().filter(|field| !listed.contains_key(*field)) {
            let mut body = json!({field.as_str(): "admin"});
            for name in &required {
                let name = name.as_str().unwrap();
                body[name] = if name == "keys" { json!([]) } else { json!("x") };
            }
            let answer = ask(&house, &line(route, &id), &body.to_string()).await;
            let told = (answer.status, answer.code());
            assert_eq!(told, (422, "invalid".into()), "{route:?} {field}: {}", answer.text());
            assert!(answer.text().contains(field.as_str()), "by name: {}", answer.text());
            refused += 1;
        }
    }
    assert!(refused > 300, "{refused}");
    assert_eq!(ask(&house, &format!("GET /api/v1/keys/{id}"), "").await.json(), before);
    assert_eq!(
        ask(&house, "GET /api/v1/keys", "").await.json()["keys"].as_array().unwrap().len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_and_named() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    for (body, says) in [
        (r#"{"name":"a","name":"b"}"#, "duplicate field"),
        (r#"{"owner":"b"}"#, "name"),
        (r#"{"name":null}"#, "name"),
        (r#"{"name":""}"#, "name"),
        (r#"{"name":"a/b"}"#, "/"),
        (r#"{"name":["a"]}"#, "string"),
        (r#"["a"]"#, "object"),
        (r#""a""#, "object"),
        ("null", "object"),
        (r#"{"name":"a","role":"root"}"#, "viewer, user, operator and admin"),
        (r#"{"name":"a","role":7}"#, "string"),
        (r#"{"name":"a","models":"some"}"#, "models"),
        (r#"{"name":"a","models":["what?"]}"#, "what?"),
        (r#"{"name":"a","cloud":"yes"}"#, "boolean"),
        (r#"{"name":"a","expires":"soon"}"#, "2027-01-31T00:00:00Z"),
        (r#"{"name":"a","networks":["10.0.0.0/40"]}"#, "10.0.0.0/8"),
        (r#"{"name":"a","networks":[]}"#, "networks"),
        (r#"{"name":"a","note":"two\nlines"}"#, "note"),
    ] {
        let answer = ask(&house, "POST /api/v1/keys", body).await;
        assert_eq!((answer.status, answer.code()), (422, "invalid".into()), "{body}");
        assert!(answer.text().contains(says), "{body}: {}", answer.text());
    }
    for body in ["{", "nonsense", "{\"name\":\"a\"} x", "{\"name\":\"\u{0}\"}", "{\"name\"", ""] {
        let answer = ask(&house, "POST /api/v1/keys", body).await;
        assert_eq!((answer.status, answer.code()), (400, "bad_body".into()), "{body:?}");
    }
    let deep = format!("{{\"name\":{}1{}}}", "[".repeat(50_000), "]".repeat(50_000));
    assert!(matches!(ask(&house, "POST /api/v1/keys", &deep).await.status, 400 | 422));
    let large = format!("{{\"name\":\"{}\"}}", "a".repeat(3 << 20));
    assert_eq!(ask(&house, "POST /api/v1/keys", &large).await.code(), "body_too_large");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_wrongly_is_refused_and_named() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let id = text(&made(&house, "bot").await, "id").to_owned();
    let answer = ask(&house, "GET /api/v1/keys", r#"{"name":"a"}"#).await;
    assert_eq!(answer.code(), "bad_body", "nothing is to be sent with a GET");
    for query in [
        "limit=0",
        "limit=1000",
        "limit=x",
        "after=x",
        "state=gone",
        "x=1",
        "limit=1&limit=1",
        "identity=%zz",
    ] {
        let answer = ask(&house, &format!("GET /api/v1/keys?{query}"), "").await;
        assert_eq!((answer.status, answer.code()), (422, "invalid".into()), "{query}");
    }
    for overlap in ["soon", "1", "-1h", "500d"] {
        let body = json!({"overlap": overlap}).to_string();
        let answer = ask(&house, &format!("POST /api/v1/keys/{id}/rotate"), &body).await;
        assert_eq!(answer.code(), "invalid", "{overlap}");
    }
    for missing in ["k00000000000", "bot", "%2e%2e", "x"] {
        let answer = ask(&house, &format!("GET /api/v1/keys/{missing}"), "").await;
        assert!(matches!(answer.code().as_str(), "not_found" | "bad_path"), "{missing}");
    }
    for path in ["POST /api/v1/keys/k00000000000/disable", "GET /api/v1/decisions/0000000000000000"]
    {
        let answer = ask(&house, path, "").await;
        assert_eq!((answer.status, answer.code()), (404, "not_found".into()), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages_without_a_gap() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let mut expected = Vec::new();
    for number in 0..7 {
        expected.push(text(&made(&house, &format!("bot{number}")).await, "id").to_owned());
    }
    let pages = async |list: &str, field: &str, each: &str| {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let answer =
                ask(&house, &format!("GET /api/v1/{list}?limit=3{after}"), "").await.json();
            let page = answer[field].as_array().unwrap();
            assert!(page.len() <= 3);
            seen.extend(page.iter().map(|it| it[each].to_string()));
            if answer["next"].is_null() {
                return seen;
            }
            after = format!("&after={}", answer["next"].to_string().trim_matches('"'));
        }
    };
    let quoted: Vec<_> = expected.iter().map(|id| format!("{id:?}")).collect();
    assert_eq!(pages("keys", "keys", "id").await, quoted);
    assert_eq!(pages("audit", "entries", "number").await, ["7", "6", "5", "4", "3", "2", "1"]);
    let decisions = pages("decisions", "decisions", "id").await;
    let distinct: BTreeSet<_> = decisions.iter().collect();
    assert_eq!(distinct.len(), decisions.len(), "none twice");
    assert!(decisions.len() >= 7, "{decisions:?}");
    let one = ask(&house, "GET /api/v1/keys?identity=bot3&state=active", "").await.json();
    assert_eq!(one["keys"][0]["id"], expected[3].as_str());
    assert_eq!(one["keys"].as_array().unwrap().len(), 1);
    let about = format!("GET /api/v1/audit?subject=key%20{}", expected[2]);
    assert_eq!(ask(&house, &about, "").await.json()["entries"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_taken_over_by_their_digests() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let digest = sha256_of("an-old-key");
    let body = json!({"keys": [{"sha256": digest, "name": "old"}]}).to_string();
    let answer = ask(&house, "POST /api/v1/keys/import", &body).await;
    assert_eq!(answer.json(), json!({"added": 1, "known": 0}), "{}", answer.text());
    assert_eq!(
        ask(&house, "POST /api/v1/keys/import", &body).await.json(),
        json!({"added": 0, "known": 1})
    );
    assert_eq!(at_the_gate(&house, "an-old-key").await, 200);
    let trail = audit(&house).await;
    assert_eq!(trail.len(), 1, "what was known already is no change: {trail:?}");
    let entry = &trail[0];
    let by = (text(entry, "action"), text(entry, "who"), text(entry, "client"));
    assert_eq!(by, ("import", "admin", "127.0.0.1"));
    assert_eq!((text(&entry["after"], "name"), &entry["before"]), ("old", &Value::Null));
    let subject = text(entry, "subject").strip_prefix("key ").unwrap().to_owned();
    let shown = ask(&house, &format!("GET /api/v1/keys/{subject}"), "").await.json();
    assert_eq!(text(&shown, "name"), "old");
    for bad in ["", "xyz", &digest[1..], &format!("{digest}0"), &"é".repeat(32)] {
        let body = json!({"keys": [{"sha256": bad, "name": "old"}]}).to_string();
        assert_eq!(ask(&house, "POST /api/v1/keys/import", &body).await.code(), "invalid", "{bad}");
    }
}

fn sha256_of(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_logins_are_in_the_trail_and_a_flood_of_them_is_one_line() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    for number in 0..50 {
        let wrong = format!("Authorization: Bearer guess-{number}\r\n");
        let answer = send(&house, request("GET /api/v1/keys", &wrong, "")).await;
        assert_eq!(answer.status, 401);
    }
    let trail = audit(&house).await;
    assert_eq!(trail.len(), 1, "{trail:?}");
    assert_eq!(
        (text(&trail[0], "action"), text(&trail[0], "client")),
        ("login failed", "127.0.0.1")
    );
    assert!(!json!(trail).to_string().contains("guess"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_login_is_told_with_the_user_it_meant_and_never_with_what_may_be_a_secret() {
    let backend = Backend::ok().await;
    for (login, name) in [
        ("anna:wr0ng", json!("anna")),
        ("wr0ng:anna", Value::Null),
        ("nobody:wr0ng", Value::Null),
        ("anna", Value::Null),
    ] {
        let house = house(&backend).await;
        let encoded = base64::engine::general_purpose::STANDARD.encode(login);
        let basic = format!("Authorization: Basic {encoded}\r\n");
        let answer = send(&house, request("GET /api/v1/keys", &basic, "")).await;
        assert_eq!((answer.status, answer.code()), (401, "bad_credentials".into()), "{login}");
        let trail = audit(&house).await;
        assert_eq!(trail.len(), 1, "{login}: {trail:?}");
        assert_eq!((text(&trail[0], "who"), &trail[0]["after"]["name"]), ("nobody", &name));
        assert!(!json!(trail).to_string().contains("wr0ng"), "{trail:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_is_told_stage_by_stage_with_what_would_have_allowed_it() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let head = "POST /api/pull HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer key-of-user\r\nContent-Length: 2\r\n\r\n{}";
    let refused = house.ask(head).await;
    assert_eq!(refused.status, 403);
    let id = refused.header("x-request-id").unwrap().to_owned();
    let asked = format!("GET /api/v1/decisions/{id}");
    let mut decision = Answer::default();
    // It is there when the answer has gone.
    for _ in 0..1000 {
        decision = ask(&house, &asked, "").await;
        if decision.status == 200 {
            break;
        }
    }
    let decision = decision.json();
    assert_eq!((text(&decision, "name"), text(&decision, "code")), ("user", "forbidden"));
    assert_eq!(text(&decision, "says"), text(&refused.json(), "error"));
    let remedy = text(&decision, "would_allow");
    assert!(remedy.contains("operator = [\"user\"]"), "{remedy}");
    let stages = decision["stages"].as_array().unwrap();
    let results: Vec<_> = stages.iter().map(|it| text(it, "result")).collect();
    let expected =
        ["passed", "passed", "passed", "refused", "not reached", "not reached", "not reached"];
    assert_eq!(results, expected);
    assert!(!decision.to_string().contains("key-of-user"));

    let fine = house
        .ask("GET /api/tags HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer key-of-user\r\n\r\n")
        .await;
    let id = fine.header("x-request-id").unwrap();
    let decision = ask(&house, &format!("GET /api/v1/decisions/{id}"), "").await.json();
    assert_eq!((text(&decision, "outcome"), &decision["would_allow"]), ("done", &Value::Null));
    let all = decision["stages"].as_array().unwrap().iter().all(|it| it["result"] == "passed");
    assert!(all, "{decision}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_knocked_is_let_in_once_by_its_code() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let laptop = Machine::new(7);
    let code = code_in(&house.ask(laptop.asks("/api/tags", 0)).await.text()).unwrap();
    let allow = async |code: &str, body: &str| {
        ask(&house, &format!("POST /api/v1/knocks/{code}/allow"), body).await
    };
    let named = r#"{"name":"laptop"}"#;
    assert_eq!(
        allow(&code, r#"{"name":"a/b"}"#).await.code(),
        "invalid",
        "and the code stays good"
    );
    assert_eq!(allow("2222-2222", named).await.code(), "not_found");
    let key = allow(&code.to_lowercase(), named).await;
    assert_eq!((key.status, text(&key.json(), "form")), (201, "signing"), "{}", key.text());
    let me = house.ask(laptop.asks("/_portcullis/me", 1)).await;
    assert_eq!(text(&me.json(), "name"), "laptop");
    assert_eq!(allow(&code, named).await.code(), "not_found", "good once");
    assert_eq!(text(&audit(&house).await[0], "action"), "allow");
}

#[tokio::test(flavor = "multi_thread")]
async fn revoke_now_ends_what_runs_by_the_key_and_nothing_else() {
    let ndjson = "application/x-ndjson";
    let backend = Backend::scripted(move |seen| match seen.line().contains("/api/chat") {
        true => vec![
            Step::Send(stream_head(ndjson).into()),
            Step::Send(chunk("{\"n\":1}\n").into()),
            Step::AwaitClose,
        ],
        false => vec![Step::AwaitClose],
    })
    .await;
    let house = house(&backend).await;
    let key = made(&house, "bot").await;
    let other = made(&house, "other").await;
    let start = async |key: &Value, path: &str| {
        let mut caller = house.connect().await;
        let secret = text(key, "secret");
        caller
            .send(format!(
                "POST {path} HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {secret}\r\nContent-Length: 13\r\n\r\n{{\"model\":\"x\"}}"
            ))
            .await;
        caller
    };
    let mut streaming = start(&key, "/api/chat").await;
    assert!(streaming.sees_content("{\"n\":1}").await);
    let mut waiting = start(&key, "/api/generate").await;
    let mut untouched = start(&other, "/api/chat").await;
    assert!(untouched.sees_content("{\"n\":1}").await);
    backend.wait_for_request(3).await;

    let asked = format!("POST /api/v1/keys/{}/revoke", text(&key, "id"));
    let revoked = ask(&house, &asked, r#"{"now":true}"#).await;
    assert_eq!(revoked.json()["ended"], 2, "{}", revoked.text());
    let rest = String::from_utf8(streaming.rest().await).unwrap();
    assert!(rest.contains("bad_credentials"), "{rest}");
    let told = waiting.answer().await;
    assert_eq!((told.status, told.code()), (401, "bad_credentials".into()));
    backend.wait_for_closed(2).await;
    until("one request in flight", || (house.gateway.in_flight() == 1).then_some(())).await;
    let again = start(&key, "/api/chat").await.answer().await;
    assert_eq!(again.status, 401);
    drop(untouched);
    let lines = house.lines().await;
    let outcomes: Vec<_> = lines.iter().map(|line| line["outcome"].as_str().unwrap()).collect();
    assert!(outcomes.contains(&"stopped"), "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_data_folder_there_are_no_keys_but_decisions() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| {
        config.admin = Some("127.0.0.1:0".parse().unwrap());
        config.roles = Roles::new(Role::Admin, Vec::new());
    })
    .await;
    let bearer = format!("Authorization: Bearer {}\r\n", crate::house::KEY);
    for (path, status) in [("keys", 404), ("audit", 404), ("decisions", 200), ("openapi.json", 200)]
    {
        let answer = send(&house, request(&format!("GET /api/v1/{path}"), &bearer, "")).await;
        assert_eq!(answer.status, status, "{path}");
        assert!(status == 200 || answer.code() == "no_store");
    }
    assert_eq!(house.gateway.let_commands_in().unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_vanished_is_503_and_the_gate_serves_on() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    made(&house, "bot").await;
    std::fs::remove_file(house.file("data").join("portcullis.db")).unwrap();
    for line in ["GET /api/v1/keys", "GET /api/v1/audit"] {
        let answer = ask(&house, line, "").await;
        assert_eq!((answer.status, answer.code()), (503, "store_failed".into()), "{line}");
        assert!(!answer.text().contains("portcullis.db"), "{}", answer.text());
    }
    assert_eq!(ask(&house, "POST /api/v1/keys", r#"{"name":"x"}"#).await.code(), "store_failed");
    assert_eq!(at_the_gate(&house, "key-of-user").await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_the_commands_is_good_here_and_nowhere_else() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let file = house.gateway.let_commands_in().unwrap().unwrap();
    let key = std::fs::read_to_string(file).unwrap();
    let bearer =
        format!("Authorization: Bearer {}\r\nContent-Type: application/json\r\n", key.trim());
    let made = send(&house, request("POST /api/v1/keys", &bearer, r#"{"name":"bot"}"#)).await;
    assert_eq!(made.status, 201, "{}", made.text());
    assert_eq!(text(&made.json(), "created_by"), "cli");
    assert_eq!(at_the_gate(&house, key.trim()).await, 401);
    let twice = request("GET /api/v1/keys", &format!("{bearer}Authorization: Bearer x\r\n"), "");
    assert_eq!(send(&house, twice).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_is_served_and_holds_together() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let served = ask(&house, "GET /api/v1/openapi.json", "").await.json();
    assert_eq!(served, description());
    assert_eq!(served["openapi"], "3.1.0");
    let whole = served.to_string();
    let mut references = whole.split("#/components/schemas/").skip(1);
    let all = references.all(|rest| {
        let name = rest.split('"').next().unwrap();
        served["components"]["schemas"].get(name).is_some_and(Value::is_object)
    });
    assert!(all, "a schema is named that is not there");
    for route in &ROUTES {
        let method = route.method.as_str().to_ascii_lowercase();
        assert_eq!(served["paths"][route.path][method]["operationId"], route.operation);
    }
}
