//! `portcullis doctor`'s look at a gate and at backends that behave well, oddly, or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use portcullis::config::Config;
use portcullis::doctor::{Finding, OwnAddress, Section, Subject, Verdict, examine};
use portcullis::gateway::State;
use portcullis::stand_in::StandIn;
use portcullis::tls::SelfSigned;

use crate::house::{Backend, House, PATIENCE, Seen, Step, chunk, ok_json, stream_head};

const VERSION: &str = "{\"version\":\"0.20.0\"}";
const TAGS: &str = "{\"models\":[{\"name\":\"tiny:latest\",\"size\":500000000}]}";

/// What is asked, and a little of how.
struct Look<'a> {
    backend: &'a Backend,
    model: Option<&'a str>,
    patience: Duration,
    change: fn(&mut Config),
}

impl<'a> Look<'a> {
    fn at(backend: &'a Backend) -> Self {
        Self { backend, model: None, patience: PATIENCE, change: |_| {} }
    }

    async fn taken(self) -> Findings {
        let house = House::with(self.backend, |config, _| (self.change)(config)).await;
        let state = house.gateway.state();
        let subject = Subject {
            state: &state,
            gate: Some(house.address),
            model: self.model,
            addresses: vec![],
            container_gateway: None,
            patience: self.patience,
        };
        Findings::of(&subject).await
    }
}

struct Findings(Vec<Section>);

impl Findings {
    async fn of(subject: &Subject<'_>) -> Self {
        let mut sections = Vec::new();
        examine(subject, |section| sections.push(section)).await;
        Self(sections)
    }

    fn get(&self, what: &str) -> &Finding {
        let all = self.0.iter().flat_map(|section| &section.findings);
        let mut found = all.filter(|finding| finding.what == what);
        found.next().unwrap_or_else(|| panic!("nothing of {what} in {self:?}"))
    }

    #[track_caller]
    fn expect(&self, what: &str, verdict: Verdict, says: &str) {
        let finding = self.get(what);
        let text = format!("{} {}", finding.found, finding.advice.as_deref().unwrap_or_default());
        assert!(finding.verdict == verdict && text.contains(says), "{finding:?}");
        assert!(verdict != Verdict::Fail || finding.advice.is_some(), "what to do? {finding:?}");
    }
}

impl std::fmt::Debug for Findings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}

fn status(status: &str) -> Vec<Step> {
    vec![Step::Send(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into())]
}

fn json(body: &str) -> Vec<Step> {
    vec![Step::Send(ok_json(body).into())]
}

fn path(seen: &Seen) -> &str {
    seen.line().split(' ').nth(1).unwrap()
}

fn loaded(expires: usize) -> Vec<Step> {
    json(&format!("{{\"models\":[{{\"name\":\"tiny:latest\",\"expires_at\":\"{expires}\"}}]}}"))
}

const TOKEN: &str = "{\"response\":\"1\",\"done\":false}\n";
const DONE: &str = "{\"done\":true,\"eval_count\":9,\"eval_duration\":1}\n";

/// Nine tokens, in as many chunks, or in one.
fn tokens(in_one: bool) -> Vec<Step> {
    let end = chunk(DONE) + "0\r\n\r\n";
    let tokens = match in_one {
        true => chunk(&TOKEN.repeat(9)),
        false => chunk(TOKEN).repeat(9),
    };
    vec![Step::Send((stream_head("application/x-ndjson") + &tokens + &end).into())]
}

/// Some tokens, and more that never come.
fn endless() -> Vec<Step> {
    let begin = stream_head("application/x-ndjson") + &chunk(TOKEN).repeat(4);
    vec![Step::Send(begin.into()), Step::AwaitClose]
}

/// An Ollama with one loaded model, whose `expires_at` is what `expires` makes of the number of times
/// that `/api/ps` has been asked. The first look is for models, two come before the second answer and two
/// while that runs.
async fn ollama(expires: fn(usize) -> usize, in_one: bool) -> Backend {
    let (looks, asked) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
    Backend::scripted(move |seen| match path(seen) {
        "/api/version" => json(VERSION),
        "/api/tags" => json(TAGS),
        "/api/ps" => loaded(expires(looks.fetch_add(1, Ordering::Relaxed))),
        "/api/generate" if asked.fetch_add(1, Ordering::Relaxed) == 0 => tokens(in_one),
        "/api/generate" => endless(),
        _ => status("404 Not Found"),
    })
    .await
}

/// Changes as soon as its caller may have left.
fn let_go(looks: usize) -> usize {
    usize::from(looks > 4)
}

/// The end of the first answer is told late: until then each look says another time.
fn late(looks: usize) -> usize {
    match looks {
        0..5 => looks,
        5..9 => 5,
        _ => 9,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_is_told_late_is_not_taken_for_somebody_elses() {
    let backend = ollama(late, false).await;
    let findings = Look::at(&backend).taken().await;
    findings.expect("cancelling", Verdict::Ok, "let go");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_is_well_with_a_gate_before_an_ollama() {
    let backend = ollama(let_go, false).await;
    let findings = Look::at(&backend).taken().await;
    for what in [
        "connection",
        "version",
        "Host check",
        "streaming",
        "cancelling",
        "health",
        "ready",
        "login",
    ] {
        assert_eq!(findings.get(what).verdict, Verdict::Ok, "{:?}", findings.get(what));
    }
    findings.expect("version", Verdict::Ok, "Ollama 0.20.0");
    findings.expect("streaming", Verdict::Ok, "tiny:latest: 9 tokens one by one");
    findings.expect("clock", Verdict::Ok, "the gate");
    findings.expect("bypass", Verdict::Ok, "nobody gets through");
    let asked: Vec<_> = backend.seen().iter().map(|seen| seen.line().to_owned()).collect();
    assert!(asked.iter().all(|line| !line.contains("pull") && !line.contains("delete")));
    let options: Vec<_> = backend
        .seen()
        .iter()
        .filter(|it| path(it) == "/api/generate")
        .map(|it| {
            let body: serde_json::Value = serde_json::from_slice(&it.body).unwrap();
            assert!(body.get("keep_alive").is_none(), "how long it stays is its owner's: {body}");
            body["options"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(options, [["num_predict"], ["num_predict"]], "others would load it anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_it_does_not_show_whether_a_model_stops_that_is_said() {
    let stand_in = StandIn::start(Duration::from_millis(5)).await.unwrap();
    let findings = Findings::of(&subject(&before(stand_in.address()), None)).await;
    findings.expect("streaming", Verdict::Ok, "12 tokens one by one");
    findings.expect("cancelling", Verdict::Skip, "/api/ps shows no `expires_at`");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_in_a_lump_and_a_model_that_goes_on_are_told() {
    let backend = ollama(|_| 7, true).await;
    let findings = Look { patience: Duration::from_secs(1), ..Look::at(&backend) }.taken().await;
    findings.expect("streaming", Verdict::Warn, "9 tokens came in 1 pieces");
    findings.expect("streaming", Verdict::Warn, "proxy_buffering off");
    findings.expect("cancelling", Verdict::Warn, "still in use");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_others_use_cannot_be_seen_to_stop() {
    let backend = ollama(|looks| looks, false).await;
    let findings = Look::at(&backend).taken().await;
    findings.expect("cancelling", Verdict::Skip, "others are using the model");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_model_is_loaded_without_being_named() {
    let backend = Backend::scripted(|seen| match path(seen) {
        "/api/version" => json(VERSION),
        "/api/tags" => json(TAGS),
        "/api/ps" => json("{\"models\":[]}"),
        "/api/generate" => tokens(false),
        _ => status("404 Not Found"),
    })
    .await;
    let findings = Look::at(&backend).taken().await;
    findings.expect(
        "streaming",
        Verdict::Skip,
        "`--model tiny:latest` asks the smallest, of 500 MB",
    );
    findings.expect("cancelling", Verdict::Skip, "want of a model");
    assert!(backend.seen().iter().all(|seen| path(seen) != "/api/generate"));

    let findings = Look { model: Some("tiny"), ..Look::at(&backend) }.taken().await;
    findings.expect("streaming", Verdict::Ok, "tiny: 9 tokens one by one");
    findings.expect("cancelling", Verdict::Skip, "cannot be seen here");
    let findings = Look { model: Some("other"), ..Look::at(&backend) }.taken().await;
    findings.expect("streaming", Verdict::Fail, "there is no model \"other\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_not_for_text_is_passed_over() {
    let backend = Backend::scripted(|seen| match path(seen) {
        "/api/version" => json(VERSION),
        "/api/ps" => json("{\"models\":[{\"name\":\"embed\"},{\"name\":\"tiny\"}]}"),
        "/api/generate" if seen.body.windows(7).any(|it| it == b"\"embed\"") => {
            let body = "{\"error\":\"\\\"embed\\\" does not support generate\"}";
            let length = body.len();
            let head = format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {length}\r\n\r\n");
            vec![Step::Send((head + body).into())]
        }
        "/api/generate" => tokens(false),
        _ => status("404 Not Found"),
    })
    .await;
    Look::at(&backend).taken().await.expect("streaming", Verdict::Ok, "tiny: 9 tokens");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_work_fails_with_its_own_words() {
    let backend = Backend::scripted(|seen| match path(seen) {
        "/api/version" => json(VERSION),
        "/api/ps" => loaded(1),
        "/api/generate" => {
            let body = "{\"error\":\"llama runner process has terminated\"}";
            let length = body.len();
            let head =
                format!("HTTP/1.1 500 Internal Server Error\r\nContent-Length: {length}\r\n\r\n");
            vec![Step::Send((head + body).into())]
        }
        _ => status("404 Not Found"),
    })
    .await;
    let findings = Look::at(&backend).taken().await;
    findings.expect("streaming", Verdict::Fail, "runner process has terminated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_without_an_end_holds_up_nobody() {
    for (piece, verdict, says) in [
        (TOKEN.to_owned(), Verdict::Ok, "64 tokens one by one"),
        ("x".repeat(8192), Verdict::Fail, "a line without an end"),
        ("no JSON\n".to_owned(), Verdict::Fail, "a line that is no JSON"),
    ] {
        let looks = AtomicUsize::new(0);
        let backend = Backend::scripted(move |seen| match path(seen) {
            "/api/version" => json(VERSION),
            "/api/ps" => loaded(looks.fetch_add(1, Ordering::Relaxed)),
            "/api/generate" => {
                let head = stream_head("application/x-ndjson");
                vec![Step::Send(head.into()), Step::Flood(chunk(&piece).into(), 1_000_000)]
            }
            _ => status("404 Not Found"),
        })
        .await;
        Look::at(&backend).taken().await.expect("streaming", verdict, says);
    }
    let endless = Backend::scripted(|_| {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        vec![Step::Send(head.into()), Step::Flood(chunk(&"x".repeat(65_536)).into(), 1_000_000)]
    })
    .await;
    let findings = Look::at(&endless).taken().await;
    findings.expect("version", Verdict::Fail, "the answer is larger than it can be");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backend_says_of_itself_cannot_steer_a_terminal() {
    let steering = "\\u001b]0;owned\\u0007\\r\\n  ok    login";
    let version = format!("{{\"version\":\"{steering}\",\"error\":\"{steering}\"}}");
    for head in ["200 OK", "404 Not Found\r\nServer: \u{9b}31m"] {
        let answer =
            format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{version}", version.len());
        let backend = Backend::saying(answer).await;
        let findings = Look::at(&backend).taken().await;
        let found = &findings.get("version").found;
        assert!(found.contains("login") && !found.contains(char::is_control), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_check_matters_only_where_hosts_are_passed_on() {
    let backend = Backend::scripted(|seen| match (path(seen), seen.header("host").as_deref()) {
        (_, Some("doctor.example")) => status("403 Forbidden"),
        ("/api/version", _) => json(VERSION),
        ("/api/ps", _) => json("{\"models\":[]}"),
        _ => json(TAGS),
    })
    .await;
    let findings = Look::at(&backend).taken().await;
    findings.expect("Host check", Verdict::Ok, "the gate sends Ollama's own");
    let preserving =
        Look { change: |config| config.backends[0].preserve_host = true, ..Look::at(&backend) };
    preserving.taken().await.expect("Host check", Verdict::Fail, "preserve_host = true");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_ollama_is_told_by_what_it_answers() {
    for (answer, verdict, says) in [
        ("401 Unauthorized", Verdict::Fail, "key_file"),
        ("403 Forbidden", Verdict::Fail, "it refuses the Host"),
        ("404 Not Found", Verdict::Warn, "that is no Ollama"),
        ("200 OK", Verdict::Warn, "that is no Ollama"),
    ] {
        let backend = Backend::scripted(move |_| status(answer)).await;
        let findings = Look::at(&backend).taken().await;
        findings.expect("version", verdict, says);
        findings.expect("the rest", Verdict::Skip, "streaming");
    }
    for garbage in ["SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"] {
        let backend =
            Backend::scripted(move |_| vec![Step::Send(garbage.into()), Step::Close]).await;
        let findings = Look::at(&backend).taken().await;
        findings.expect("version", Verdict::Fail, "no answer to GET /api/version");
    }
    let silent = Backend::scripted(|_| vec![Step::AwaitClose]).await;
    let findings = Look { patience: Duration::from_secs(1), ..Look::at(&silent) }.taken().await;
    findings.expect("version", Verdict::Fail, "nothing came within 1.0 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_as_its_own_backend_is_told() {
    let backend = Backend::ok().await;
    let (house, other) = (House::new(&backend).await, House::new(&backend).await);
    let state = before(other.address);
    let findings = Findings::of(&subject(&state, Some(house.address))).await;
    findings.expect("version", Verdict::Fail, "a Portcullis answers there");
}

fn subject(state: &State, gate: Option<std::net::SocketAddr>) -> Subject<'_> {
    Subject {
        state,
        gate,
        model: None,
        addresses: vec![],
        container_gateway: None,
        patience: PATIENCE,
    }
}

/// A gate's state with this for its backend.
fn before(backend: std::net::SocketAddr) -> State {
    let mut config = Config::builtin();
    config.backends[0].url = format!("http://{backend}").parse().unwrap();
    State::new(config, None).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_speaks_tls_is_asked_over_tls_and_has_no_login_in_the_clear() {
    let backend = ollama(let_go, false).await;
    let house = House::with(&backend, |config, folder| {
        let pair = SelfSigned::new(&["localhost".to_owned()], SystemTime::now()).unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("cert.pem"), pair.cert).unwrap();
        std::fs::write(at("key.pem"), pair.key).unwrap();
        (config.tls_cert, config.tls_key) = (Some(at("cert.pem")), Some(at("key.pem")));
    })
    .await;
    let state = house.gateway.state();
    let findings = Findings::of(&subject(&state, Some(house.address))).await;
    findings.expect("health", Verdict::Ok, "it is alive");
    findings.expect("login", Verdict::Ok, "gets 401");
    findings.expect("plain HTTP", Verdict::Ok, "speaks TLS");
    assert!(findings.0.iter().any(|it| it.title == format!("gate  https://{}", house.address)));
}

/// A port on which nobody listens, and nobody will while this is held.
fn nowhere() -> (tokio::net::TcpSocket, std::net::SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[tokio::test]
async fn nobody_at_home_is_told_with_what_to_start() {
    let (_socket, nowhere) = nowhere();
    let state = before(nowhere);
    let findings = Findings::of(&subject(&state, Some(nowhere))).await;
    findings.expect("connection", Verdict::Fail, "ollama serve");
    findings.expect("the rest", Verdict::Skip, "cancelling");
    findings.expect("health", Verdict::Skip, "portcullis serve");
    let findings = Findings::of(&subject(&state, None)).await;
    findings.expect("health", Verdict::Skip, "no address that is known");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_program_at_the_gates_address_is_told() {
    let (_socket, nowhere) = nowhere();
    let state = before(nowhere);
    for (other, says) in [
        (Backend::saying(ok_json("{}")).await, "another program listens there, and answers 200"),
        (Backend::scripted(|_| vec![Step::Close]).await, "no gate, or a gate that is stuck"),
    ] {
        let findings = Findings::of(&subject(&state, Some(other.address))).await;
        findings.expect("health", Verdict::Fail, says);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_with_an_alarm_a_lost_backend_or_no_login_is_told() {
    let gate = |ready: &'static str, tags: &'static str| {
        Backend::scripted(move |seen| match path(seen) {
            "/_portcullis/health" => json("{\"status\":\"ok\"}"),
            "/_portcullis/ready" if ready.is_empty() => status("503 Service Unavailable"),
            "/_portcullis/ready" => json(ready),
            _ => status(tags),
        })
    };
    let (_socket, nowhere) = nowhere();
    let state = before(nowhere);
    for (ready, tags, what, verdict, says) in [
        (
            "{\"alarms\":2,\"backends_up\":1}",
            "401 Unauthorized",
            "ready",
            Verdict::Warn,
            "an alarm: 2",
        ),
        (
            "{\"alarms\":0,\"backends_up\":0}",
            "401 Unauthorized",
            "ready",
            Verdict::Warn,
            "its backend",
        ),
        ("", "401 Unauthorized", "ready", Verdict::Warn, "about to stop"),
        ("{\"alarms\":0,\"backends_up\":1}", "200 OK", "login", Verdict::Fail, "gets 200 instead"),
    ] {
        let gate = gate(ready, tags).await;
        let findings = Findings::of(&subject(&state, Some(gate.address))).await;
        findings.expect(what, verdict, says);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reaches_the_backend_past_the_gate_is_told_and_the_key_stays_here() {
    let backend = ollama(let_go, false).await;
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key");
    std::fs::write(&key_file, "of-the-backend\n").unwrap();
    let mut config = Config::builtin();
    config.backends[0].url = format!("http://{}", backend.address).parse().unwrap();
    config.backends[0].key_file = Some(key_file);
    let state = State::new(config, None).unwrap();
    let own =
        |ip: &str| OwnAddress { card: "eth7".to_owned(), ip: ip.parse().unwrap(), prefix: 24 };
    let subject = Subject {
        // As if the backend's one address were one of a network.
        addresses: vec![own("127.0.0.1")],
        ..subject(&state, None)
    };
    let findings = Findings::of(&subject).await;
    findings.expect(
        "bypass",
        Verdict::Warn,
        "anyone on 127.0.0.0/24 (eth7) reaches the model server directly",
    );
    findings.expect("bypass", Verdict::Warn, "OLLAMA_HOST=127.0.0.1");
    // Whoever asks for a login there is a guard, and this gate is one.
    for (status_line, verdict) in [
        ("401 Unauthorized", Verdict::Ok),
        ("403 Forbidden", Verdict::Ok),
        ("404 Not Found", Verdict::Warn),
    ] {
        let other = Backend::scripted(move |_| status(status_line)).await;
        let state = before(other.address);
        let subject = Subject { addresses: vec![own("127.0.0.1")], ..self::subject(&state, None) };
        let findings = Findings::of(&subject).await;
        findings.expect("bypass", verdict, "port");
    }
    let seen = backend.seen();
    let (last, others) = seen.split_last().unwrap();
    assert_eq!(last.header("authorization"), None, "{}", last.head);
    assert!(
        others
            .iter()
            .all(|it| it.header("authorization").as_deref() == Some("Bearer of-the-backend"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_has_only_v1_is_asked_for_its_models() {
    for (answer, verdict, says) in [
        (ok_json(r#"{"data":[{"id":"tiny"}]}"#), Verdict::Ok, "1 can be asked for"),
        (ok_json(r#"{"data":[{"id":"/models/x.gguf"}]}"#), Verdict::Warn, "--alias"),
        (ok_json("{}"), Verdict::Fail, "`kind`"),
        ("HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n".to_owned(), Verdict::Fail, "`key_file`"),
    ] {
        let backend = Backend::saying(answer).await;
        let look = Look {
            change: |config| config.backends[0].kind = portcullis::config::BackendKind::OpenAi,
            ..Look::at(&backend)
        };
        look.taken().await.expect("models", verdict, says);
        assert!(backend.seen().iter().all(|it| it.line() == "GET /v1/models HTTP/1.1"));
    }
}
