//! What the operator reads beside the lines: events without a secret, and values that break no line.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use base64::Engine;
use portcullis::config::LogFormat;
use portcullis::record::Outlet;

use crate::house::{Backend, House, KEY, Lines, PASSWORD, Step, get, ok_json, until};

/// Every event of this process from the first call on, at every level.
pub fn events() -> &'static Lines {
    static EVENTS: OnceLock<Lines> = OnceLock::new();
    EVENTS.get_or_init(|| {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        lines
    })
}

fn basic(login: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(login)
}

/// Requests with a secret in every place where a caller can put one.
fn leaky(secret: &str) -> Vec<String> {
    let (login, password) =
        (basic(&format!("anna:{secret}")), basic(&format!("{secret}:{PASSWORD}")));
    let known = format!("Authorization: Bearer {KEY}");
    let body = format!("{{\"model\":\"m\",\"prompt\":\"{secret}\"");
    let asks = |line: &str, head: &str, body: &str| {
        format!(
            "{line} HTTP/1.1\r\nHost: g\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let mut requests = vec![
        asks("GET /api/tags", &format!("Authorization: Basic {login}"), ""),
        asks("GET /api/tags", &format!("Authorization: Basic {password}"), ""),
        asks("GET /api/tags", &format!("Authorization: Basic {secret}"), ""),
        asks("GET /api/tags", &format!("Authorization: Bearer {secret}"), ""),
        asks("GET /api/tags", &format!("Authorization: {secret}:{secret}"), ""),
        asks("GET /api/tags", &format!("Authorization: Unknown {secret}"), ""),
        asks("GET /api/tags", &format!("X-Api-Key: {secret}"), ""),
        asks("GET /api/tags", &format!("Api-Key: {secret}"), ""),
        asks(&format!("GET /k/{secret}/api/tags"), "", "").replace("\r\n\r\n", "\r\n"),
        asks(&format!("GET /k/{secret}"), &known, ""),
        asks(&format!("GET /k/{secret}/"), &known, ""),
        asks(&format!("GET /k/{secret}/nowhere"), &known, ""),
        asks(&format!("DELETE /k/{secret}/api/chat"), &known, ""),
        asks(&format!("HEAD /k/{secret}/"), &known, ""),
        asks(&format!("GET /k/{secret}/%00"), &known, ""),
        asks(&format!("GET /k/{secret}/../api/tags"), &known, ""),
        asks(&format!("GET //k/{secret}/api/tags"), &known, ""),
        asks(&format!("GET /%6b/{secret}/api/tags"), &known, ""),
        asks(&format!("GET /k%2f{secret}/api/tags"), &known, ""),
        asks(&format!("GET /k/{KEY}/k/{secret}/api/tags"), &known, ""),
        asks(&format!("GET /api/tags?key={secret}"), &known, ""),
        asks(&format!("GET /api/tags?ts={secret}"), &known, ""),
        asks(&format!("GET /_portcullis/me?{secret}"), &known, ""),
        asks(&format!("GET http://anna:{secret}@g/api/tags"), &known, ""),
        asks(&format!("GET http://{secret}/api/tags"), &known, ""),
        asks("POST /api/chat", &known, &format!("{body}}}")),
        asks("POST /v1/chat/completions", &known, &body),
        asks("POST /api/chat", &format!("{known}\r\nTransfer-Encoding: {secret}"), ""),
        asks("POST /api/chat", &format!("{known}\r\nExpect: {secret}"), ""),
        asks("POST /api/me", &known, &body),
        asks("POST /api/nowhere", &known, &body),
        format!("GET /api/tags HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {secret}"),
        format!("{secret}\r\n\r\n"),
        format!("GET /api/tags HTTP/1.1\r\nHost: {secret}@g\r\n{known}\r\n\r\n"),
    ];
    for name in [
        "Cookie",
        "Proxy-Authorization",
        "User-Agent",
        "Referer",
        "Origin",
        "X-Forwarded-For",
        "X-Other",
    ] {
        requests.push(asks("GET /api/tags", &format!("{known}\r\n{name}: {secret}"), ""));
        requests.push(asks("GET /nowhere", &format!("{name}: {secret}"), ""));
    }
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_a_line_an_error_or_an_event() {
    let events = events();
    // Its digest's beginning names a key without a name; so no digest either.
    let secret = "c4narySecretc4nary";
    for path_keys in [false, true] {
        for broken in [false, true] {
            let backend = Backend::scripted(move |_| match broken {
                true => vec![Step::Close],
                false => vec![Step::Send(ok_json("{}").into())],
            })
            .await;
            let house = House::with(&backend, |config, folder| {
                let key = folder.path().join("backend.key");
                std::fs::write(&key, format!("{secret}\n")).unwrap();
                let keys = config.api_keys.clone().unwrap();
                std::fs::write(keys, format!("{KEY} # anna\nsha256:{secret}\nx{secret}\n"))
                    .unwrap();
                config.backends[0].key_file = Some(key);
                config.path_keys = path_keys;
                config.failed_attempts_per_minute = 0;
                config.timeouts.header = Duration::from_millis(100);
            })
            .await;
            let requests = leaky(secret);
            for request in &requests {
                let mut caller = house.connect().await;
                caller.send(request).await;
                let method = request.split(' ').next().unwrap();
                let answer = caller.answer_to(method).await;
                assert_ne!(answer.status, 0, "{request:?}");
                // The caller's own words may come back in none of the gate's.
                let answer = answer.head.clone() + &answer.text();
                assert!(!answer.contains(secret), "{request:?} -> {answer}");
            }
            let dump = format!("{:?} {:?}", house.gateway, house.gateway.state());
            assert!(!dump.contains(secret), "{dump}");
            let log = house.log.clone();
            log.wait_for(requests.len()).await;
            assert_eq!(house.lines().await.len(), requests.len());
            for line in log.text().lines() {
                assert!(!line.contains(secret) && !line.contains(KEY), "{line}");
            }
        }
    }
    let text = events.text();
    assert!(text.contains("skipped"), "nothing was caught: {text}");
    let leak = text.lines().find(|line| line.contains(secret) || line.contains(KEY));
    assert_eq!(leak, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_bytes_and_long_values_stay_one_line() {
    let backend = Backend::ok().await;
    // A name with control bytes is refused with its line; this one is not.
    let name = r#"n"a'm\e"#;
    for format in [LogFormat::Json, LogFormat::Text] {
        let house = House::with(&backend, |config, folder| {
            config.log_format = format;
            let keys = format!("{KEY} # anna\nodd-key # {name}\n");
            std::fs::write(folder.path().join("api_keys.txt"), keys).unwrap();
        })
        .await;
        let long = "p".repeat(7_000);
        let requests = [
            "GET /api/tags HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer odd-key\r\n\r\n".to_owned(),
            get(&format!("/{long}")),
            get("/a%0aline%0d%1b%5b31m%7f"),
            get("/a%C2%9Bb%22c%5Cd%20e"),
            get("/api/tags").replace("GET", &"M".repeat(300)),
        ];
        for request in &requests {
            let mut caller = house.connect().await;
            caller.send(request).await;
            let status = caller.answer().await.status;
            assert!(status == 200 || (status > 0 && !request.contains("odd-key")), "{status}");
        }
        until("all lines", || {
            (house.log.text().matches('\n').count() >= requests.len()).then_some(())
        })
        .await;
        let text = house.log.text();
        assert_eq!(text.lines().count(), requests.len(), "{text}");
        let controls = text.chars().filter(|c| c.is_control() && *c != '\n').collect::<Vec<_>>();
        assert!(controls.is_empty(), "{controls:?} in {text}");
        for line in text.lines() {
            let longest = line.split([' ', '"']).map(str::len).max().unwrap();
            assert!(longest <= 256 + 64, "{longest} bytes in one value: {line}");
        }
        if matches!(format, LogFormat::Json) {
            assert_eq!(house.log.all()[0]["name"], name);
        } else {
            assert!(text.contains(r#" n"a'm\u{5c}e key "#), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_all_seem_to_be_one_are_told_once_and_without_their_secrets() {
    const THERE: &str = "192.168.65.1";
    let events = events();
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, folder| {
        // The name of the proxy in between is not known, but what it says is: as in Docker Desktop.
        config.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
        let keys = format!("{KEY} # anna\nkey-of-bert # bert\nkey-of-cleo # cleo\n");
        std::fs::write(folder.path().join("api_keys.txt"), keys).unwrap();
    })
    .await;
    let told = || {
        events.text().matches(&format!("one address, so limits per address hit everybody at once; if it is a proxy or a container's network, name it in trusted_proxies client={THERE}")).count()
    };
    for round in 0..40 {
        for key in [KEY, "key-of-bert", "key-of-cleo"] {
            let answer = house
                .ask(format!(
                    "GET /api/tags HTTP/1.1\r\nHost: g\r\nX-Forwarded-For: {THERE}\r\n\
                     Authorization: Bearer {key}\r\nConnection: close\r\n\r\n"
                ))
                .await;
            assert_eq!(answer.status, 200);
        }
        assert_eq!(told(), usize::from(round >= 16), "after {} requests", 3 * (round + 1));
    }
    assert!(!events.text().contains("key-of-"));
}

/// A sink that takes nothing until it is opened.
#[derive(Clone, Default)]
struct Stuck {
    open: Arc<(Mutex<bool>, Condvar)>,
    lines: Lines,
}

impl Stuck {
    fn open(&self) {
        *self.open.0.lock().unwrap() = true;
        self.open.1.notify_all();
    }
}

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (open, opened) = &*self.open;
        drop(opened.wait_while(open.lock().unwrap(), |open| !*open).unwrap());
        self.lines.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stuck_log_dropped_is_counted_and_said() {
    const POSTED: usize = 50_000;
    let events = events();
    let stuck = Stuck::default();
    let outlet = Outlet::start("the stuck outlet of the tests", stuck.clone()).unwrap();
    for number in 0..POSTED {
        outlet.post(format!("{number:0>199}\n").as_bytes());
    }
    stuck.open();
    let said = |events: &Lines| {
        let text = events.text();
        let lines = text.lines().filter(|line| line.contains("the stuck outlet of the tests"));
        let lost = lines.filter_map(|line| {
            line.split("lost=").nth(1)?.split(' ').next()?.parse::<usize>().ok()
        });
        lost.sum::<usize>()
    };
    let written = || stuck.lines.text().lines().count();
    until("everything written or counted", || (written() + said(events) == POSTED).then_some(()))
        .await;
    assert!(said(events) > 0 && written() > 0);
    // In order, and the oldest are kept.
    let numbers: Vec<usize> = stuck.lines.text().lines().map(|it| it.parse().unwrap()).collect();
    assert!(numbers.is_sorted() && numbers[..1_000].iter().copied().eq(0..1_000));
}
