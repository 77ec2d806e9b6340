//! Who gets in, who does not, and what they are told.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use portcullis::config::{Config, WeakHashes};
use tempfile::TempDir;

use crate::house::{Answer, Backend, Caller, House, KEY, PASSWORD, get};

fn basic(login: &[u8]) -> String {
    format!("Basic {}", STANDARD.encode(login))
}

fn authorized(value: &str) -> String {
    format!("GET /api/tags HTTP/1.1\r\nHost: g\r\nAuthorization: {value}\r\n\r\n")
}

async fn login(house: &House, name: &str, password: &str) -> Answer {
    house.ask(authorized(&basic(format!("{name}:{password}").as_bytes()))).await
}

/// Counts and costs stand aside where they are not what is tested.
fn unbraked(config: &mut Config, _: &TempDir) {
    config.failed_attempts_per_minute = 0;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_does_not_identify_is_401_and_nothing_of_it_goes_on() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, unbraked).await;
    let long = "x".repeat(20_000);
    let values = [
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic YW5uYQ==",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Digest x",
        "Negotiate x",
        KEY,
        &format!("Basic {KEY}"),
        &format!("Bearer{KEY}"),
        &basic(b":open sesame"),
        &basic(b"anna:"),
        &basic(b"nobody:open sesame"),
        &basic(b"anna:open sesame "),
        &basic(b"anna:open sesame\0"),
        &basic(b"Anna:open sesame"),
        &basic(b"anna:\xff\xfe"),
        &basic(b"\xff\xfe:open sesame"),
        &basic(format!("anna:{}", "x".repeat(257)).as_bytes()),
        &format!("Bearer {long}"),
        &format!("Bearer {KEY}x"),
        &format!("Bearer {}", &KEY[1..]),
        "AAAA:BBBB",
        ":",
        "AAAAC3NzaC1lZDI1NTE5AAAAIA==:AAAA",
    ];
    for value in values {
        let answer = house.ask(authorized(value)).await;
        assert_eq!((answer.status, answer.code().as_str()), (401, "bad_credentials"), "{value}");
        assert!(!answer.text().contains("sesame"));
    }
    for path in [format!("/api/tags?key={KEY}"), format!("/api/tags?api_key={KEY}")] {
        let query = format!("GET {path} HTTP/1.1\r\nHost: g\r\nCookie: key={KEY}\r\n\r\n");
        let answer = house.ask(query).await;
        assert_eq!((answer.status, answer.code().as_str()), (401, "no_credentials"));
    }
    assert!(backend.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_byte_of_a_body_is_read_before_the_login() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    // The body never comes, and the answer does not wait for it.
    caller.send("POST /api/chat HTTP/1.1\r\nHost: g\r\nContent-Length: 1000000\r\n\r\n").await;
    let answer = caller.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (401, Some("close")));
    assert!(caller.is_closed().await);
    assert_eq!(house.log.wait_for(1).await[0]["bytes_in"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_speaks_the_dialect_of_its_path() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let ask =
        async |path: &str| house.ask(format!("POST {path} HTTP/1.1\r\nHost: g:1\r\n\r\n")).await;
    let native = ask("/api/chat").await;
    assert_eq!(native.header("content-type"), Some("application/json"));
    let json = native.json();
    assert!(json["error"].is_string() && json["code"] == "no_credentials");
    assert_eq!(json["signin_url"], "http://g:1/_portcullis/help");
    assert!(json["status"].as_str().unwrap().contains("http://g:1/_portcullis/help"));
    let openai = ask("/v1/chat/completions").await.json();
    assert_eq!(openai["error"]["code"], "no_credentials");
    assert_eq!(openai["error"]["type"], "authentication_error");
    let anthropic = ask("/v1/messages").await;
    let json = anthropic.json();
    assert_eq!(
        (&json["type"], &json["error"]["type"]),
        (&"error".into(), &"authentication_error".into())
    );
    assert_eq!(json["request_id"], anthropic.header("x-request-id").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_help_page_is_where_people_are_sent() {
    let backend = Backend::ok().await;
    let ask = "POST /api/me HTTP/1.1\r\nHost: g\r\n\r\n";
    let house = House::with(&backend, |config, _| {
        config.public_url = Some("https://gate.example/".to_owned());
        config.contact = Some("Anna <room 4>".to_owned());
    })
    .await;
    assert_eq!(house.ask(ask).await.json()["signin_url"], "https://gate.example/_portcullis/help");
    let page = house.ask("GET /_portcullis/help HTTP/1.1\r\nHost: g\r\n\r\n").await;
    let text = page.text();
    assert!(text.contains("ollama.com cannot help") && text.contains("ssh-keygen -t ed25519"));
    assert!(text.contains("Anna &lt;room 4&gt;") && text.contains("https://gate.example/api/tags"));
    assert!(!text.contains(&backend.address.port().to_string()) && !text.contains("{{"));
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    let house = House::with(&backend, |config, _| {
        config.help_url = Some("https://wiki.example/gate".to_owned());
    })
    .await;
    assert_eq!(house.ask(ask).await.json()["signin_url"], "https://wiki.example/gate");
    let page = house.ask("GET /_portcullis/help HTTP/1.1\r\nHost: g&b:1\r\n\r\n").await.text();
    assert!(page.contains("http://g&amp;b:1/api/tags") && !page.contains("g&b"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browsers_dialog_opens_only_where_somebody_could_use_it() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let challenges = async |headers: &str| {
        let answer = house.ask(format!("GET / HTTP/1.1\r\nHost: g\r\n{headers}\r\n")).await;
        let values = answer.headers("www-authenticate");
        let schemes = values.iter().map(|value| value.split(' ').next().unwrap().to_owned());
        schemes.collect::<Vec<_>>().join(",")
    };
    assert_eq!(challenges("").await, "Basic,Bearer");
    assert_eq!(challenges("Authorization: Basic eDp5\r\n").await, "Basic,Bearer");
    assert_eq!(challenges("Authorization: Bearer x\r\n").await, "Bearer");
    assert_eq!(challenges("X-Api-Key: x\r\n").await, "Bearer");
    assert_eq!(challenges("Sec-Fetch-Mode: cors\r\n").await, "Bearer");
    assert_eq!(challenges("Sec-Fetch-Mode: navigate\r\n").await, "Basic,Bearer");
    let answer = house.ask("GET / HTTP/1.1\r\nHost: g\r\n\r\n").await;
    assert!(answer.headers("www-authenticate")[0].contains("charset=\"UTF-8\""));
    let house = House::with(&backend, |config, _| config.htpasswd = None).await;
    let answer = house.ask("GET / HTTP/1.1\r\nHost: g\r\n\r\n").await;
    assert_eq!(answer.headers("www-authenticate").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_credential_that_verifies_wins() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, folder| {
        std::fs::write(folder.path().join("api_keys.txt"), format!("{KEY} # key\n")).unwrap();
        config.path_keys = true;
    })
    .await;
    let right = basic(format!("anna:{PASSWORD}").as_bytes());
    let both =
        format!("GET /k/{KEY}/api/tags HTTP/1.1\r\nHost: g\r\nAuthorization: {right}\r\n\r\n");
    assert_eq!(house.ask(both).await.status, 200);
    house.log.wait_for(1).await;
    let key_after_all = authorized(&basic(b"anna:wrong"))
        .replace("Host: g", &format!("Host: g\r\nX-Api-Key: {KEY}"));
    assert_eq!(house.ask(key_after_all).await.status, 200);
    let names: Vec<_> =
        house.log.wait_for(2).await.iter().map(|line| line["name"].clone()).collect();
    assert_eq!(names, ["anna", "key"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_the_path_opens_only_where_that_is_allowed() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    for path in [format!("/k/{KEY}/api/tags"), format!("/k/{KEY}"), format!("/k/{KEY}/")] {
        let answer = house.ask(format!("GET {path} HTTP/1.1\r\nHost: g\r\n\r\n")).await;
        assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_endpoint"), "{path}");
        let with_login = house.get(&path).await;
        assert_eq!(with_login.status, 404, "a key must not reach the backend: {path}");
    }
    let house = House::with(&backend, |config, _| config.path_keys = true).await;
    let head = |key: &str| format!("HEAD /k/{key}/ HTTP/1.1\r\nHost: g\r\n\r\n");
    for key in [KEY, "wrong"] {
        let mut caller = house.connect().await;
        caller.send(head(key)).await;
        assert_eq!(caller.answer_to("HEAD").await.status, 200, "whatever the key");
    }
    assert!(backend.seen().is_empty());
    let wrong = house.ask("GET /k/wrong/api/tags HTTP/1.1\r\nHost: g\r\n\r\n").await;
    assert_eq!(wrong.status, 401);
    let escaped = KEY.replace('-', "%2D");
    let answer = house.ask(format!("GET /k/{escaped}/api/tags HTTP/1.1\r\nHost: g\r\n\r\n")).await;
    assert_eq!(answer.status, 200);
    assert!(!house.log.text().contains("wrong") && !house.log.text().contains(KEY));
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_is_slowed_and_nobody_else_is_locked_out() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| config.failed_attempts_per_minute = 3).await;
    assert_eq!(login(&house, "anna", PASSWORD).await.status, 200);
    for _ in 0..3 {
        assert_eq!(login(&house, "anna", "guess").await.status, 401);
    }
    let braked = login(&house, "anna", "guess").await;
    assert_eq!((braked.status, braked.code().as_str()), (429, "too_many_failures"));
    let wait: u64 = braked.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait));
    assert_eq!(braked.header("x-should-retry"), Some("false"));
    assert_eq!(login(&house, "anna", PASSWORD).await.status, 200, "remembered");
    assert_eq!(login(&house, "bert", "guess").await.status, 401, "another name");
    assert_eq!(house.get("/api/tags").await.status, 200, "a key");
    // One failed request is one failure, whatever it brought.
    for _ in 0..3 {
        assert_eq!(house.ask(authorized("Bearer wrong")).await.status, 401);
    }
    assert_eq!(house.ask(authorized("Bearer wrong")).await.status, 429);
    assert_eq!(house.get("/api/tags").await.status, 200, "right keys still pass");
    assert_eq!(
        house.ask("GET /api/tags HTTP/1.1\r\nHost: g\r\n\r\n").await.status,
        401,
        "no attempt"
    );
}

/// Names of the address in headers, each time another one: only a trusted proxy's word counts.
fn said_to_come_from(number: usize, login: &str) -> String {
    let names: String = [
        ("X-Forwarded-For", ""),
        ("X-Real-IP", ""),
        ("Forwarded", "for="),
        ("True-Client-IP", ""),
        ("X-Client-IP", ""),
        ("CF-Connecting-IP", ""),
    ]
    .map(|(name, before)| format!("{name}: {before}192.0.2.{number}\r\n"))
    .concat();
    login.replacen("\r\n\r\n", &format!("\r\n{names}\r\n"), 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_names_another_address_each_time_is_slowed_all_the_same() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| config.failed_attempts_per_minute = 3).await;
    let attempt = |number| said_to_come_from(number, &authorized(&basic(b"anna:guess")));
    for number in 0..3 {
        assert_eq!(house.ask(attempt(number)).await.status, 401);
    }
    assert_eq!(house.ask(attempt(3)).await.code(), "too_many_failures");
    // Nor does it have more connections for it.
    let few = House::with(&backend, |config, _| config.max_connections_per_address = 2).await;
    let mut held = Vec::new();
    for number in 0..3 {
        let mut caller = few.connect().await;
        caller.send(said_to_come_from(number, &get("/api/tags"))).await;
        held.push((caller.answer().await.status, caller));
    }
    assert_eq!(held.iter().map(|(status, _)| *status).collect::<Vec<_>>(), [200, 200, 503]);
    for (house, count) in [(house, 4), (few, 3)] {
        let lines = house.log.wait_for(count).await;
        assert!(lines.iter().all(|line| line["client"] == "127.0.0.1"), "{lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_attempts_at_once_are_a_thousand_attempts() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| config.failed_attempts_per_minute = 5).await;
    let mut callers = Vec::new();
    for _ in 0..60 {
        let mut caller = house.connect().await;
        caller.send(authorized(&basic(b"anna:guess"))).await;
        callers.push(caller);
    }
    let mut checked = 0;
    for mut caller in callers {
        checked += usize::from(caller.answer().await.status == 401);
    }
    assert_eq!(checked, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verified_password_is_forgotten_when_its_line_changes() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, unbraked).await;
    assert_eq!(login(&house, "anna", PASSWORD).await.status, 200);
    assert_eq!(login(&house, "anna", "wrong").await.status, 401);
    assert_eq!(login(&house, "anna", PASSWORD).await.status, 200);
    // `{SHA}` of "other", as `htpasswd -s` writes it.
    std::fs::write(house.file("htpasswd"), "anna:{SHA}0JQeaNqPOBUf+Gph/Fn3xc+fyqI=\n").unwrap();
    assert_eq!(login(&house, "anna", PASSWORD).await.status, 401);
    assert_eq!(login(&house, "anna", "other").await.status, 200);
    std::fs::write(house.file("htpasswd"), "bert:{SHA}0JQeaNqPOBUf+Gph/Fn3xc+fyqI=\n").unwrap();
    assert_eq!(login(&house, "anna", "other").await.status, 401);
    assert_eq!(login(&house, "bert", "other").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn weak_hashes_open_unless_they_are_refused() {
    let backend = Backend::ok().await;
    for (weak, status) in [(WeakHashes::Warn, 200), (WeakHashes::Refuse, 401)] {
        let house = House::with(&backend, |config, folder| {
            let users = "plain:{PLAIN}other\nsha:{SHA}0JQeaNqPOBUf+Gph/Fn3xc+fyqI=\n";
            std::fs::write(folder.path().join("htpasswd"), users).unwrap();
            config.weak_hashes = weak;
        })
        .await;
        for name in ["plain", "sha"] {
            assert_eq!(login(&house, name, "other").await.status, status, "{weak:?} {name}");
        }
    }
}

/// bcrypt at cost 10 of "open sesame".
const SLOW: &str = "slow:$2y$10$lGUXsNZkrBe96CgIKGm2EOLcZnPNpnuWPgGpOEkQkKqSvIfN.gKN2\n";

#[tokio::test(flavor = "multi_thread")]
async fn slow_hashes_stand_in_a_bounded_queue_and_keys_pass_them_by() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, folder| {
        std::fs::write(folder.path().join("htpasswd"), SLOW).unwrap();
        unbraked(config, folder);
    })
    .await;
    let mut callers = Vec::new();
    for number in 0..200 {
        let mut caller = Caller::connect(house.address).await;
        caller.send(authorized(&basic(format!("slow:{number}").as_bytes()))).await;
        callers.push(caller);
    }
    // 200 checks take seconds; a key is answered while they wait.
    assert_eq!(house.ask(get("/api/tags")).await.status, 200);
    let mut shed = 0;
    for mut caller in callers {
        let answer = caller.answer().await;
        assert!(matches!(answer.status, 401 | 503), "{}", answer.status);
        if answer.status == 503 {
            assert_eq!(
                (answer.code().as_str(), answer.header("retry-after")),
                ("overloaded", Some("1"))
            );
            shed += 1;
        }
    }
    assert!(shed > 0, "a queue without an end");
    assert_eq!(login(&house, "slow", PASSWORD).await.status, 200, "and it recovers");
}

/// The same work is done for a name that is not there. Time tells, so the bound is wide: without
/// that work an unknown name is answered a thousand times faster.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_name_costs_what_a_known_one_costs() {
    let backend = Backend::ok().await;
    let cheap = "cheap:{SHA}0JQeaNqPOBUf+Gph/Fn3xc+fyqI=\n";
    let house = House::with(&backend, |config, folder| {
        std::fs::write(folder.path().join("htpasswd"), format!("{SLOW}{cheap}")).unwrap();
        unbraked(config, folder);
    })
    .await;
    let mut took = [Duration::MAX; 3];
    for round in 0..5 {
        for (place, name) in ["slow", "nobody", "cheap"].into_iter().enumerate() {
            let started = Instant::now();
            assert_eq!(login(&house, name, &format!("wrong{round}")).await.status, 401);
            took[place] = took[place].min(started.elapsed());
        }
    }
    let [known, unknown, cheap] = took;
    assert!(
        unknown * 5 > known,
        "an unknown name is answered in {unknown:?}, a known one in {known:?}"
    );
    assert!(cheap * 5 > known, "a cheap hash is answered in {cheap:?}, the costliest in {known:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_is_told_who_they_are() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let me = house.get("/_portcullis/me").await;
    let expected = serde_json::json!({
        "name": "anna", "role": "operator", "models": "all", "limits": {}, "used": {}, "left": {},
        "waiting": [],
    });
    assert_eq!(me.json(), expected);
    assert_eq!(house.get("/_portcullis/me/").await.status, 400);
    assert_eq!(house.get("/_portcullis/other").await.status, 404);
    assert!(backend.seen().is_empty());
}
