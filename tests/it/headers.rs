//! What goes along in either direction, and what does not.

use base64::Engine;
use portcullis::config::{Cors, Origins};

use crate::house::{Backend, Caller, House, KEY, PASSWORD, get};

fn with_headers(method: &str, headers: &str) -> String {
    format!(
        "{method} /api/tags HTTP/1.1\r\nHost: gate:8880\r\nAuthorization: Bearer {KEY}\r\n{headers}\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_identifies_frames_or_steers_reaches_the_backend() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let dropped = [
        "Cookie: canary=1",
        "Proxy-Authorization: Basic canary",
        "X-Api-Key: canary",
        "Api-Key: canary",
        "Origin: http://canary",
        "Referer: http://canary/",
        "X-Forwarded-For: 6.6.6.6",
        "X-Forwarded-Host: canary",
        "X-Forwarded-Proto: canary",
        "X-Forwarded-Uri: canary",
        "Forwarded: for=canary",
        "X-Real-IP: 6.6.6.6",
        "True-Client-IP: 6.6.6.6",
        "X-Client-IP: 6.6.6.6",
        "X-Original-URL: /canary",
        "X_Forwarded_For: 6.6.6.6",
        "X_User: canary",
        "X-HTTP-Method-Override: DELETE",
        "X-Method-Override: DELETE",
        "X-OpenWebUI-User-Id: canary",
        "X-Portcullis-Name: canary",
        "Keep-Alive: timeout=canary",
        "TE: canary",
        "Trailer: canary",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        "X-Request-Id: canary",
        "Sec-Fetch-Site: none",
        "Connection: x-named, upgrade",
        "X-Named: canary",
        "Access-Control-Request-Headers: canary",
    ];
    let kept = [
        "Accept: application/json",
        "User-Agent: test/1 (x; y)",
        "X-Stainless-Lang: python",
        "Traceparent: 00-1-2-3",
        "Tracestate: a=1",
        "Content-Type: text/plain",
    ];
    let headers: String = dropped.iter().chain(&kept).map(|line| format!("{line}\r\n")).collect();
    assert_eq!(house.ask(with_headers("GET", &headers)).await.status, 200);
    let seen = backend.wait_for_request(1).await;
    for word in ["canary", "6.6.6.6", "DELETE", KEY, "h2c", "AAMAAABk"] {
        assert!(!seen.head.contains(word), "{word} in {}", seen.head);
    }
    for line in kept {
        let (name, value) = line.split_once(": ").unwrap();
        assert_eq!(seen.header(name).as_deref(), Some(value), "{}", seen.head);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backend_hears_from_the_gate_where_a_request_comes_from() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let answer = house.ask(with_headers("GET", "")).await;
    let seen = backend.wait_for_request(1).await;
    let header = |name: &str| seen.header(name).unwrap_or_else(|| panic!("{name}: {}", seen.head));
    assert_eq!(header("host"), backend.address.to_string(), "its own, or Ollama answers 403");
    assert_eq!(header("x-forwarded-host"), "gate:8880");
    assert_eq!(header("x-forwarded-proto"), "http");
    assert_eq!(header("x-forwarded-for"), "127.0.0.1");
    assert_eq!(header("x-real-ip"), "127.0.0.1");
    let id = answer.header("x-request-id").unwrap();
    assert_eq!(house.log.wait_for(1).await[0]["id"], id);
    // Some take none that is no UUID.
    assert_eq!(header("x-request-id"), format!("0000000000000000{id}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_may_say_whom_it_asks_for() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| {
        config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let forwarded = "X-Forwarded-For: 6.6.6.6, 198.51.100.7\r\n";
    assert_eq!(house.ask(with_headers("GET", forwarded)).await.status, 200);
    let seen = backend.wait_for_request(1).await;
    assert_eq!(seen.header("x-real-ip").as_deref(), Some("198.51.100.7"));
    assert!(seen.head.contains("x-forwarded-for: 127.0.0.1"), "{}", seen.head);
    assert_eq!(house.log.wait_for(1).await[0]["client"], "198.51.100.7");
    // So is the name that RFC 7239 has for it, which itself goes no further.
    let forwarded = "Forwarded: for=6.6.6.6, for=\"198.51.100.8:80\";proto=https\r\n";
    assert_eq!(house.ask(with_headers("GET", forwarded)).await.status, 200);
    let seen = backend.wait_for_request(2).await;
    assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("198.51.100.8"), "{}", seen.head);
    assert_eq!(seen.header("x-real-ip").as_deref(), Some("198.51.100.8"));
    assert!(!seen.head.to_lowercase().contains("\nforwarded:"), "{}", seen.head);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backend_gets_its_own_key_and_the_callers_host_when_it_is_to() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, folder| {
        let key = folder.path().join("backend.key");
        std::fs::write(&key, "the-backends-own\n").unwrap();
        config.backends[0].key_file = Some(key);
        config.backends[0].preserve_host = true;
    })
    .await;
    assert_eq!(house.ask(with_headers("GET", "")).await.status, 200);
    let seen = backend.wait_for_request(1).await;
    assert_eq!(seen.header("authorization").as_deref(), Some("Bearer the-backends-own"));
    assert_eq!(seen.header("host").as_deref(), Some("gate:8880"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_the_backends_hop_stays_there() {
    let response = "HTTP/1.1 200 OK\r\nServer: gin\r\nX-Powered-By: canary\r\nConnection: x-named\r\n\
        X-Named: canary\r\nKeep-Alive: canary\r\nProxy-Authenticate: canary\r\n\
        Access-Control-Allow-Origin: canary\r\nAccess-Control-Allow-Credentials: true\r\n\
        X-Own: kept\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}";
    let backend = Backend::saying(response).await;
    let house = House::new(&backend).await;
    let answer = house.get("/api/tags").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "{}"));
    assert!(!answer.head.contains("canary") && !answer.head.contains("gin"), "{}", answer.head);
    assert_eq!(answer.headers("server"), ["portcullis"]);
    assert_eq!(answer.header("x-own"), Some("kept"));
    assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(answer.header("access-control-allow-credentials"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_and_errors_of_the_backend_are_relayed() {
    for (status, headers) in [(307, "Location: /api/tags\r\n"), (404, ""), (500, ""), (400, "")] {
        let backend = Backend::saying(format!(
            "HTTP/1.1 {status} X\r\n{headers}Content-Length: 3\r\n\r\nabc"
        ))
        .await;
        let house = House::new(&backend).await;
        let answer = house.get("/api/tags").await;
        assert_eq!((answer.status, answer.text().as_str()), (status, "abc"));
        assert_eq!(answer.header("location").is_some(), status == 307);
        assert_eq!(backend.seen().len(), 1, "never followed, never repeated");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_a_body_stay_framed() {
    let backend = Backend::scripted(|seen| {
        let response = match seen.line().split(' ').next().unwrap() {
            "HEAD" => "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
            "DELETE" => "HTTP/1.1 204 No Content\r\n\r\n",
            "POST" => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            _ => "HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
        };
        vec![crate::house::Step::Send(response.into())]
    })
    .await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    for (method, path, status) in [
        ("HEAD", "/api/tags", 200),
        ("GET", "/api/tags", 304),
        ("DELETE", "/api/delete", 204),
        ("POST", "/api/copy", 200),
        ("HEAD", "/api/version", 200),
    ] {
        caller.send(get(path).replacen("GET", method, 1)).await;
        let answer = caller.answer_to(method).await;
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{method}");
        if method == "HEAD" {
            assert_eq!(answer.header("content-length"), Some("1234"));
        }
    }
    let log = house.log.wait_for(5).await;
    assert!(log.iter().all(|line| line["outcome"] == "done"), "{log:?}");
    assert_eq!(backend.connections().0, 1, "the connection stays good");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_http_1_0_is_served_and_the_connection_ends() {
    let backend = Backend::saying(format!(
        "{}{}0\r\n\r\n",
        crate::house::stream_head("application/x-ndjson"),
        crate::house::chunk("{\"done\":true}\n")
    ))
    .await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    caller.send(format!("GET /api/tags HTTP/1.0\r\nAuthorization: Bearer {KEY}\r\n\r\n")).await;
    let answer = caller.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "{\"done\":true}\n"));
    assert_eq!(answer.header("transfer-encoding"), None);
    assert!(caller.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_is_said_only_to_who_may_send() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let head = |key: &str, expect: &str| {
        format!(
            "POST /api/chat HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\n\
             Expect: {expect}\r\nContent-Length: 2\r\n\r\n"
        )
    };
    let mut caller = house.connect().await;
    caller.send(head("wrong", "100-continue")).await;
    let all = String::from_utf8(caller.rest().await).unwrap();
    assert!(all.starts_with("HTTP/1.1 401") && !all.contains("100 Continue"), "{all}");

    let answer = house.ask(head(KEY, "200-ok")).await;
    assert_eq!((answer.status, answer.code().as_str()), (417, "bad_expectation"));

    let mut caller = house.connect().await;
    caller.send(head(KEY, "100-Continue")).await;
    assert!(caller.sees("HTTP/1.1 100 Continue\r\n\r\n").await);
    assert!(backend.seen().is_empty(), "the backend is not asked before the body is here");
    caller.send("{}").await;
    assert_eq!(caller.answer().await.status, 200);
    assert_eq!(backend.wait_for_request(1).await.header("expect"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_is_its_own_backend_says_so() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    house.get("/api/tags").await;
    let via = backend.wait_for_request(1).await.header("via").unwrap();
    let answer = house.ask(with_headers("GET", &format!("Via: {via}\r\n"))).await;
    assert_eq!((answer.status, answer.code().as_str()), (508, "loop_detected"));
    let over_others =
        house.ask(with_headers("GET", &format!("Via: 1.1 a, {via}, 1.1 b\r\n"))).await;
    assert_eq!(over_others.status, 508);
    let other = house.ask(with_headers("GET", "Via: 1.1 portcullis-0123456789abcdef\r\n")).await;
    assert_eq!(other.status, 200, "another gate in front is no loop");
    let seen = backend.wait_for_request(2).await;
    for hop in ["via: 1.1 portcullis-0123456789abcdef", &format!("via: {via}")] {
        assert!(seen.head.contains(hop), "{}", seen.head);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_is_answered_without_a_login_and_without_the_backend() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let answer = house
        .ask(
            "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: g\r\nOrigin: http://page.example\r\n\
             Access-Control-Request-Method: POST\r\n\
             Access-Control-Request-Headers: authorization, x-stainless-os, b\u{e4}d\r\n\r\n",
        )
        .await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.headers("access-control-allow-origin"), ["*"]);
    assert!(answer.header("access-control-allow-methods").unwrap().contains("DELETE"));
    let allowed = answer.header("access-control-allow-headers").unwrap();
    for name in ["authorization", "x-api-key", "anthropic-version"] {
        assert!(allowed.contains(name), "{allowed}");
    }
    assert_eq!(answer.header("access-control-allow-credentials"), None);
    assert_eq!(house.ask("OPTIONS /api/tags HTTP/1.1\r\nHost: g\r\n\r\n").await.status, 401);
    assert!(backend.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_site_that_is_not_listed_gets_no_leave() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| {
        config.cors = Cors { origins: Origins::Listed(vec!["https://chat.example".to_owned()]) };
    })
    .await;
    let from = |origin: &str| with_headers("GET", &format!("Origin: {origin}\r\n"));
    let listed = house.ask(from("https://chat.example")).await;
    assert_eq!(listed.headers("access-control-allow-origin"), ["https://chat.example"]);
    assert_eq!(listed.header("vary"), Some("Origin"));
    let other = house.ask(from("https://evil.example")).await;
    assert_eq!(other.header("access-control-allow-origin"), None);
    // A refusal must be readable by the page that it is for.
    let refused = house
        .ask("GET /api/tags HTTP/1.1\r\nHost: g\r\nOrigin: https://chat.example\r\n\r\n")
        .await;
    assert_eq!(refused.headers("access-control-allow-origin"), ["https://chat.example"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_a_browser_sends_for_another_sites_page_changes_nothing() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| {
        config.cors = Cors { origins: Origins::Listed(vec!["https://chat.example".to_owned()]) };
    })
    .await;
    let login = base64::engine::general_purpose::STANDARD.encode(format!("anna:{PASSWORD}"));
    let ask = async |method: &str, path: &str, headers: &str| {
        let mut caller = Caller::connect(house.address).await;
        caller
            .send(format!(
                "{method} {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Basic {login}\r\n{headers}\r\n"
            ))
            .await;
        caller.answer().await
    };
    let cross = "Sec-Fetch-Site: cross-site\r\n";
    let refused = ask("POST", "/api/generate", cross).await;
    assert_eq!((refused.status, refused.code().as_str()), (403, "forbidden"));
    assert_eq!(ask("DELETE", "/api/delete", cross).await.status, 403);
    assert_eq!(ask("GET", "/api/tags", cross).await.status, 200, "reading is guarded by CORS");
    assert_eq!(ask("POST", "/api/generate", "Sec-Fetch-Site: same-origin\r\n").await.status, 200);
    let listed = format!("{cross}Origin: https://chat.example\r\n");
    assert_eq!(ask("POST", "/api/generate", &listed).await.status, 200);
    // A gate without TLS is not told by the browser, but for the page's origin; another port is another site.
    for (page, status) in [
        ("Origin: http://evil.example\r\n", 403),
        ("Origin: null\r\n", 403),
        ("Origin: http://g:3000\r\n", 403),
        ("Sec-Fetch-Site: same-site\r\nOrigin: https://other.chat.example\r\n", 403),
        ("Origin: https://chat.example\r\nOrigin: http://evil.example\r\n", 403),
        ("Origin: http://g\r\n", 200),
        ("Origin: https://chat.example\r\n", 200),
        // A proxy with TLS before the gate may have changed the `Host`.
        ("Sec-Fetch-Site: same-origin\r\nOrigin: https://outside.example\r\n", 200),
        ("Sec-Fetch-Site: none\r\n", 200),
    ] {
        assert_eq!(ask("POST", "/api/generate", page).await.status, status, "{page}");
    }
    let key = with_headers("POST", cross).replace("/api/tags", "/api/generate");
    assert_eq!(house.ask(key).await.status, 200, "a key is never sent by a browser of itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_may_stand_once_stand_once() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    for twice in [
        "Content-Type: a\r\nContent-Type: b\r\n",
        "X-Api-Key: a\r\nX-Api-Key: b\r\n",
        "Authorization: Bearer x\r\n",
    ] {
        // Beside the good key of `with_headers`, two keys of another name are never looked at.
        let request = match twice.starts_with("X-Api-Key") {
            true => format!("GET /api/tags HTTP/1.1\r\nHost: g\r\n{twice}\r\n"),
            false => with_headers("GET", twice),
        };
        let answer = house.ask(request).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "bad_request"), "{twice}");
    }
    assert!(backend.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_and_what_a_policy_did_is_the_gates_word_alone() {
    let backend = Backend::saying(
        "HTTP/1.1 200 OK\r\nx-ratelimit-remaining-requests: 9999\r\nX-Portcullis-Policy: lie\r\n\
         X-Other: stays\r\nContent-Length: 2\r\n\r\n{}",
    )
    .await;
    let house = House::new(&backend).await;
    let answer = house.get("/api/tags").await;
    for gone in ["x-ratelimit-remaining-requests", "x-portcullis-policy"] {
        assert_eq!(answer.header(gone), None, "{gone}");
    }
    assert_eq!(answer.header("x-other"), Some("stays"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backends_length_beside_a_coding_is_dropped() {
    let backend = Backend::saying(
        "HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    )
    .await;
    let house = House::new(&backend).await;
    let answer = house.get("/api/tags").await;
    assert_eq!((answer.status, answer.text().as_str(), answer.whole), (200, "{}", true));
    assert_eq!(answer.header("content-length"), None);
}
