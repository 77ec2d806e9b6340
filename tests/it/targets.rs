//! Endpoints, methods, spellings and roles: what reaches the backend is what the table allows.

use http::Method;
use portcullis::api::{Class, ENDPOINTS, Endpoint};
use portcullis::config::{Config, ExtraEndpoint, Role, Roles};
use tempfile::TempDir;

use crate::house::{Answer, Backend, House, KEY};

fn with_role(role: Role) -> impl FnOnce(&mut Config, &TempDir) {
    move |config, _| config.roles = Roles::new(role, Vec::new())
}

fn request(method: &Method, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {KEY}\r\n\r\n")
}

/// A path of the row, with something in place of its parameter.
fn path_of(row: &Endpoint) -> String {
    row.path.replace('*', "some-thing:1")
}

async fn ask(house: &House, method: &Method, path: &str) -> Answer {
    let mut caller = house.connect().await;
    caller.send(request(method, path)).await;
    caller.answer_to(method.as_str()).await
}

/// Who may use what, written down once more, by hand.
fn may(role: Role, class: Class) -> bool {
    match class {
        Class::Health | Class::Inference | Class::Models => role >= Role::User,
        Class::Manage | Class::Unknown => role >= Role::Operator,
        Class::Owner => role == Role::Admin,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_endpoint_is_open_to_the_roles_of_its_class_and_to_nobody_else() {
    for role in Role::ALL {
        let backend = Backend::ok().await;
        let house = House::with(&backend, with_role(role)).await;
        for row in &ENDPOINTS {
            for method in row.methods {
                let path = path_of(row);
                // The gate answers this one itself, to anybody.
                if path == "/" && method == Method::HEAD {
                    continue;
                }
                let before = backend.seen().len();
                let answer = ask(&house, method, &path).await;
                let allowed = may(role, row.class);
                let expected = if allowed { 200 } else { 403 };
                assert_eq!(answer.status, expected, "{role} {method} {path}");
                let seen = &backend.seen()[before..];
                assert_eq!(seen.len(), usize::from(allowed), "{role} {method} {path}");
                if let Some(seen) = seen.first() {
                    assert_eq!(seen.line(), format!("{method} {path} HTTP/1.1"));
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_the_named_list_is_open_without_a_login() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    for row in &ENDPOINTS {
        for method in row.methods {
            let request = format!("{method} {} HTTP/1.1\r\nHost: gate\r\n\r\n", path_of(row));
            let mut caller = house.connect().await;
            caller.send(request).await;
            let open = row.path == "/" && method == Method::HEAD;
            let status = caller.answer_to(method.as_str()).await.status;
            assert_eq!(status, if open { 200 } else { 401 }, "{method} {}", row.path);
        }
    }
    for (path, status) in [
        ("/_portcullis/health", 200),
        ("/_portcullis/ready", 200),
        ("/_portcullis/help", 200),
        ("/_portcullis/me", 401),
        ("/_portcullis/", 400),
        ("/_portcullis/metrics", 401),
        ("/_portcullis/healthy", 401),
        ("/metrics", 401),
        ("/admin", 401),
    ] {
        let answer = house.ask(format!("GET {path} HTTP/1.1\r\nHost: gate\r\n\r\n")).await;
        assert_eq!(answer.status, status, "{path}");
        let text = answer.text().to_lowercase();
        assert!(!text.contains("0.1.0") && !text.contains("11434"), "{path}: {text}");
    }
    assert!(backend.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_method_is_405_and_names_those_that_there_are() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, with_role(Role::Admin)).await;
    for row in &ENDPOINTS {
        let path = path_of(row);
        let all = [Method::GET, Method::POST, Method::DELETE, Method::PUT, Method::PATCH];
        for method in all.iter().filter(|method| !row.methods.contains(method)) {
            let answer = ask(&house, method, &path).await;
            assert_eq!((answer.status, answer.code().as_str()), (405, "method_not_allowed"));
            let allow: Vec<_> = row.methods.iter().map(Method::as_str).collect();
            assert_eq!(answer.header("allow"), Some(allow.join(", ").as_str()), "{path}");
        }
    }
    for method in ["CONNECT", "TRACE", "TRACK", "get", "PRI", "DELET"] {
        let request = request(&Method::from_bytes(method.as_bytes()).unwrap(), "/api/tags");
        let answer = house.ask(request).await;
        assert!(matches!(answer.status, 400 | 405 | 505), "{method}: {}", answer.status);
    }
    assert!(backend.seen().is_empty());
}

/// Spellings of `/api/delete` and `/api/tags` that some router behind some proxy takes for them.
const ODD: [&str; 36] = [
    "/api/%64elete",
    "/%61pi/delete",
    "/api%2fdelete",
    "/api%2Fdelete",
    "/api%5cdelete",
    "/api\\delete",
    "/api/./delete",
    "/api/../api/delete",
    "/api/%2e/delete",
    "/api/%2e%2e/api/delete",
    "/./api/delete",
    "/../api/delete",
    "//api/delete",
    "/api//delete",
    "/api/delete/",
    "/api/delete;x",
    "/api;x/delete",
    "/api/delete%00",
    "/api/delete%20",
    "/api/delete%zz",
    "/api/delete%2",
    "/api/delete%",
    "/api/%2564elete",
    "/api/delete%3Fx",
    "/api/delete%23x",
    "/api/tags%0d%0aX-A:1",
    "/api/delete.",
    "/API/delete",
    "/api/Delete",
    "/Api/delete",
    "/api/delete%09",
    "/api/t\u{e4}gs",
    "/api/tags%c3%a4",
    "/api/delete%2f",
    "/api/delete/..",
    "/k//api/delete",
];

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_spelling_reaches_no_handler_of_the_backend() {
    let backend = Backend::ok().await;
    for role in [Role::User, Role::Operator, Role::Admin] {
        let house = House::with(&backend, with_role(role)).await;
        for path in ODD {
            for method in ["GET", "DELETE"] {
                let before = backend.seen().len();
                let bytes = format!(
                    "{method} {path} HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {KEY}\r\n\r\n"
                );
                let status = house.ask(bytes).await.status;
                match backend.seen().get(before) {
                    None => assert!(matches!(status, 400 | 401 | 404), "{role} {path}: {status}"),
                    // Another case, or another last letter, is another path to Ollama's router.
                    Some(seen) => {
                        assert!(role >= Role::Operator, "{role} {path}");
                        let asked = seen.line().split(' ').nth(1).unwrap();
                        let other = ["/API/delete", "/api/Delete", "/Api/delete", "/api/delete."];
                        assert!(asked == path && other.contains(&path), "{}", seen.line());
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_endpoint_is_for_operators_and_for_whom_it_was_opened() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, with_role(Role::Operator)).await;
    assert_eq!(house.get("/api/new-thing").await.status, 200);
    let house = House::with(&backend, |config, folder| {
        with_role(Role::User)(config, folder);
        let path = "/api/new-thing".to_owned();
        config.extra_endpoints = vec![ExtraEndpoint { method: Method::GET, path }];
    })
    .await;
    let before = backend.seen().len();
    assert_eq!(house.get("/api/new-thing").await.status, 200);
    let answer = house.get("/api/other-thing").await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_endpoint"));
    assert_eq!(ask(&house, &Method::POST, "/api/new-thing").await.status, 404);
    assert_eq!(backend.seen().len(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_changes_no_decision_and_is_passed_on_without_the_signatures_time() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, with_role(Role::User)).await;
    let answer = ask(&house, &Method::DELETE, "/api/delete?x=/api/tags&_method=GET").await;
    assert_eq!(answer.status, 403);
    assert_eq!(house.get("/api/tags?a=%2Fapi%2Fdelete&ts=1&b=2").await.status, 200);
    let seen = backend.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].line(), "GET /api/tags?a=%2Fapi%2Fdelete&b=2 HTTP/1.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absolute_target_is_for_this_host_and_this_scheme_only() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let ask = async |target: &str| {
        let head = format!("GET {target} HTTP/1.1\r\nHost: gate:8880\r\n");
        house.ask(format!("{head}Authorization: Bearer {KEY}\r\n\r\n")).await.status
    };
    assert_eq!(ask("http://gate:8880/api/tags").await, 200);
    assert_eq!(ask("HTTP://GATE:8880/api/tags").await, 200);
    assert_eq!(ask("http://evil/api/tags").await, 421);
    assert_eq!(ask("http://gate:8880@evil/api/tags").await, 421);
    assert_eq!(ask("ftp://gate:8880/api/tags").await, 400);
    assert_eq!(ask("gate:8880").await, 400);
    let lines: Vec<_> = backend.seen().iter().map(|seen| seen.line().to_owned()).collect();
    assert_eq!(lines, ["GET /api/tags HTTP/1.1"; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_by_role_says_who_holds_what_and_what_it_takes() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, with_role(Role::User)).await;
    let answer = ask(&house, &Method::DELETE, "/api/delete").await;
    assert_eq!((answer.status, answer.code().as_str()), (403, "forbidden"));
    for word in ["delete", "anna", "user", "operator"] {
        assert!(answer.text().contains(word), "{word}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_and_headers_have_a_largest_size() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let path = format!("/api/{}", "a".repeat(9 * 1024));
    let answer = house.get(&path).await;
    assert_eq!((answer.status, answer.code().as_str()), (414, "target_too_long"));
    let headers = |headers: String| {
        format!("GET /api/tags HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {KEY}\r\n{headers}\r\n")
    };
    for many in [format!("X-A: {}\r\n", "a".repeat(33 * 1024)), "X-A: a\r\n".repeat(101)] {
        let answer = house.ask(headers(many)).await;
        assert_eq!((answer.status, answer.code().as_str()), (431, "headers_too_large"));
        assert_eq!(answer.header("connection"), Some("close"));
    }
    assert_eq!(house.ask(headers(format!("X-A: {}\r\n", "a".repeat(30_000)))).await.status, 200);
    assert_eq!(backend.seen().len(), 1);
}
