//! What the gate tells of itself: who may ask, and that what is told is true.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use portcullis::admin::ROUTES;
use portcullis::api::ENDPOINTS;
use portcullis::config::{Config, Pattern, Role, Roles};
use portcullis::metrics::FAMILIES;
use tempfile::TempDir;
use tokio::sync::Notify;

use crate::house::{Answer, Backend, Caller, House, PATIENCE, Step, chunk, stream_head};

async fn house(backend: &Backend) -> House {
    house_with(backend, |_, _| {}).await
}

async fn house_with(backend: &Backend, change: impl FnOnce(&mut Config, &TempDir)) -> House {
    House::with(backend, |config, folder| {
        change(config, folder);
        config.admin = Some("127.0.0.1:0".parse().unwrap());
        config.failed_attempts_per_minute = 0;
        let keys = "key-of-prometheus # prometheus\nkey-of-anna # anna\n";
        std::fs::write(folder.path().join("api_keys.txt"), keys).unwrap();
        let roles = vec![(Pattern::new("prometheus"), Role::Viewer)];
        config.roles = Roles::new(Role::User, roles);
    })
    .await
}

async fn at_the_desk(house: &House, head: String) -> Answer {
    let method = head.split(' ').next().unwrap().to_owned();
    let mut caller = Caller::connect(house.admin.unwrap()).await;
    caller.send(head).await;
    caller.answer_to(&method).await
}

async fn scrape(house: &House) -> String {
    let answer = at_the_desk(house, head("GET", "10.1.2.3:8881", "")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

/// Scrapes again and again until this is told.
async fn scrape_until(house: &House, sample: &str, wanted: f64) -> String {
    let look = async {
        loop {
            let text = scrape(house).await;
            if value(&text, sample) == wanted {
                return text;
            }
        }
    };
    let told = tokio::time::timeout(PATIENCE, look).await;
    told.unwrap_or_else(|_| panic!("{sample} never came to be {wanted}"))
}

fn head(method: &str, host: &str, more: &str) -> String {
    format!(
        "{method} /metrics HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer key-of-prometheus\r\n\
         {more}Connection: close\r\n\r\n"
    )
}

/// 0 where it is not told.
fn value(text: &str, sample: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

fn ask(path: &str, key: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {key}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_look_may_scrape_under_any_name_of_this_machine() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    for host in ["127.0.0.1:8881", "portcullis:8881", "gate.monitoring.svc"] {
        let answer = at_the_desk(&house, head("GET", host, "")).await;
        assert_eq!(answer.status, 200, "{host}: {}", answer.text());
        let kind = answer.header("content-type").unwrap();
        assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
        assert!(answer.text().ends_with("# EOF\n"), "{}", answer.text());
    }
    let answer = at_the_desk(&house, head("HEAD", "portcullis", "")).await;
    assert_eq!(answer.status, 200);
    assert!(backend.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_may_scrape() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let get = "GET /metrics HTTP/1.1\r\nHost: portcullis\r\nConnection: close\r\n";
    for (fields, status, code) in [
        ("", 401, "no_credentials"),
        ("Authorization: Bearer wrong\r\n", 401, "bad_credentials"),
        ("Authorization: Bearer key-of-anna\r\n", 403, "forbidden"),
    ] {
        let answer = at_the_desk(&house, format!("{get}{fields}\r\n")).await;
        assert_eq!((answer.status, answer.code()), (status, code.into()), "{fields}");
        assert!(!answer.text().contains("portcullis_"), "{}", answer.text());
    }
    for foreign in ["Origin: http://evil.example\r\n", "Sec-Fetch-Site: cross-site\r\n"] {
        let answer = at_the_desk(&house, head("GET", "portcullis", foreign)).await;
        assert_eq!(answer.status, 403, "{foreign}");
    }
    // Another name is taken nowhere else.
    let keys = "GET /api/v1/openapi.json HTTP/1.1\r\nHost: portcullis\r\n\
                Authorization: Bearer key-of-prometheus\r\nConnection: close\r\n\r\n";
    let answer = at_the_desk(&house, keys.to_owned()).await;
    assert_eq!((answer.status, answer.code()), (421, "wrong_host".into()));
    let answer = at_the_desk(&house, head("POST", "127.0.0.1", "Content-Length: 0\r\n")).await;
    assert_eq!(answer.status, 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gates_own_port_has_no_metrics() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let get = |key: &str| {
        format!("GET /metrics HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {key}\r\n\r\n")
    };
    for key in ["key-of-anna", "key-of-prometheus"] {
        let answer = house.ask(get(key)).await;
        assert!(matches!(answer.status, 403 | 404), "{key}: {}", answer.status);
        assert!(!answer.text().contains("portcullis_"), "{}", answer.text());
    }
    assert!(backend.seen().is_empty(), "{:?}", backend.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_is_what_happened() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let body = r#"{"model":"gemma3"}"#;
    for _ in 0..3 {
        assert_eq!(house.ask(ask("/api/chat", "key-of-anna", body)).await.status, 200);
    }
    assert_eq!(house.ask(ask("/api/pull", "key-of-anna", body)).await.status, 403);
    assert_eq!(house.ask(ask("/api/chat", "key-of-nobody", body)).await.status, 401);
    let chats = "portcullis_requests_total{operation=\"chat\",outcome=\"done\",status=\"2xx\"}";
    // An answer is read whole a moment before its request has ended.
    let codes = ["forbidden", "bad_credentials"];
    for code in codes.map(|code| format!("portcullis_refusals_total{{code=\"{code}\"}}")) {
        scrape_until(&house, &code, 1.0).await;
    }
    let text = scrape_until(&house, chats, 3.0).await;
    for (sample, expected) in [
        (chats, 3.0),
        ("portcullis_requests_total{operation=\"pull\",outcome=\"refused\",status=\"4xx\"}", 1.0),
        ("portcullis_refusals_total{code=\"forbidden\"}", 1.0),
        ("portcullis_refusals_total{code=\"bad_credentials\"}", 1.0),
        ("portcullis_refusals_total{code=\"no_backend\"}", 0.0),
        ("portcullis_request_duration_seconds_count{class=\"inference\"}", 3.0),
        ("portcullis_first_byte_seconds_count{class=\"inference\"}", 3.0),
        ("portcullis_queue_seconds_count", 3.0),
        ("portcullis_received_bytes_total{class=\"inference\"}", 3.0 * body.len() as f64),
        ("portcullis_backend_up{backend=\"ollama\"}", 1.0),
        ("portcullis_file_good{file=\"api_keys\"}", 1.0),
        ("portcullis_file_entries{file=\"api_keys\"}", 2.0),
        ("portcullis_alarms", 0.0),
        ("portcullis_draining", 0.0),
    ] {
        assert_eq!(value(&text, sample), expected, "{sample}\n{text}");
    }
    assert!(value(&text, "process_resident_memory_bytes") > 1e6, "{text}");
    assert!(text.contains("model=\"gemma3"), "{text}");
    let secrets = ["key-of-", "prometheus", "anna"];
    assert!(!secrets.iter().any(|secret| text.contains(secret)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_is_told_and_so_is_a_file_that_broke() {
    let go = Arc::new(Notify::new());
    let steps = vec![
        Step::Send(stream_head("application/x-ndjson").into()),
        Step::Send(chunk("{}\n").into()),
        Step::Wait(Arc::clone(&go)),
        Step::Send("0\r\n\r\n".into()),
    ];
    let backend = Backend::scripted(move |_| steps.clone()).await;
    let house = house(&backend).await;
    let mut caller = house.connect().await;
    caller.send(ask("/api/chat", "key-of-anna", r#"{"model":"gemma3"}"#)).await;
    assert!(caller.sees("{}").await);
    let text = scrape(&house).await;
    assert_eq!(value(&text, "portcullis_in_flight_requests"), 1.0, "{text}");
    assert_eq!(value(&text, "portcullis_backend_busy_requests{backend=\"ollama\"}"), 1.0);
    std::fs::write(house.file("api_keys.txt"), "key-of-prometheus\0").unwrap();
    let text = scrape_until(&house, "portcullis_alarms", 1.0).await;
    assert_eq!(value(&text, "portcullis_file_good{file=\"api_keys\"}"), 0.0, "{text}");
    go.notify_one();
    scrape_until(&house, "portcullis_in_flight_requests", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_went_without_their_row_are_counted() {
    let backend = Backend::scripted(|_| {
        let end = "{\"model\":\"gemma3\",\"done\":true,\"eval_count\":2}\n";
        let head = stream_head("application/x-ndjson");
        [head, chunk(end), "0\r\n\r\n".to_owned()].map(|it| Step::Send(it.into())).into()
    })
    .await;
    let house =
        house_with(&backend, |config, folder| config.data_dir = Some(folder.path().join("data")))
            .await;
    let sample = "portcullis_ledger_late_answers_total";
    assert!(scrape(&house).await.contains(&format!("{sample} 0\n")));
    std::fs::rename(house.file("data"), house.file("elsewhere")).unwrap();
    // The first finds out, and the others do not wait.
    for _ in 0..3 {
        let answer = house.ask(ask("/api/chat", "key-of-anna", r#"{"model":"gemma3"}"#)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let text = scrape_until(&house, sample, 3.0).await;
    assert_eq!(value(&text, "portcullis_ledger_waiting_rows"), 3.0, "{text}");
    assert_eq!(value(&text, "portcullis_ledger_lost_rows_total"), 0.0, "{text}");
}

#[test]
fn no_operation_of_the_admin_api_is_called_like_one_of_the_models() {
    for route in &ROUTES {
        assert!(ENDPOINTS.iter().all(|row| row.operation != route.operation), "{route:?}");
    }
}

/// Every word of it that could be the name of a metric.
fn names_in(file: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let words = text.split(|it: char| it != '_' && !it.is_ascii_alphanumeric());
    let is_name = |word: &&str| {
        (word.starts_with("portcullis_") || word.starts_with("process_")) && !word.ends_with('_')
    };
    words.filter(is_name).map(str::to_owned).collect()
}

#[test]
fn the_board_and_the_alarms_ask_for_what_there_is() {
    let mut told = BTreeSet::new();
    for family in FAMILIES {
        let name = family.name();
        told.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")));
        told.insert(name);
    }
    for file in ["deploy/grafana.json", "deploy/prometheus-alerts.yml"] {
        let asked = names_in(file);
        assert!(asked.len() >= 8, "{file}: {asked:?}");
        let unknown: Vec<_> = asked.difference(&told).collect();
        assert!(unknown.is_empty(), "{file} asks for {unknown:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_several_backends_has_its_own_rows_and_is_looked_after_unasked() {
    let backend = Backend::ok().await;
    let house = house_with(&backend, |config, _| {
        let mut other = config.backends[0].clone();
        other.name = "gpu-2".to_owned();
        other.url = "http://127.0.0.1:1".parse().unwrap();
        config.backends.push(other);
    })
    .await;
    let text = scrape_until(&house, "portcullis_backend_up{backend=\"gpu-2\"}", 0.0).await;
    assert_eq!(value(&text, "portcullis_backend_up{backend=\"ollama\"}"), 1.0);
    assert_eq!(value(&text, "portcullis_backend_busy_requests{backend=\"gpu-2\"}"), 0.0);
}
