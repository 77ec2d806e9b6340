//! Several backends: who gets a request, and what becomes of it where one of them fails.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use portcullis::config::{Alias, AtOnce, BackendKind, Config, ModelName, Models, NamedModel, Rule};
use tempfile::TempDir;
use tokio::sync::Notify;

use crate::house::{Answer, Backend, House, KEY, Seen, Step, get, ok_json, post, until};

mod faults; // under load
mod trouble; // one at a time

/// What a stand-in has, which may change.
type Names = Arc<Mutex<Vec<String>>>;

fn names(list: &[&str]) -> Names {
    Arc::new(Mutex::new(list.iter().map(|it| (*it).to_owned()).collect()))
}

fn list_of(names: &Names) -> String {
    let entry = |name: &String| format!(r#"{{"name":"{name}","model":"{name}","id":"{name}"}}"#);
    let entries: Vec<_> = names.lock().unwrap().iter().map(entry).collect();
    let entries = entries.join(",");
    format!(r#"{{"models":[{entries}],"data":[{entries}]}}"#)
}

/// What any model server answers, but for what needs a model.
fn lists(seen: &Seen, disk: &Names, memory: &Names) -> Option<Vec<Step>> {
    let body = match seen.line().split(' ').nth(1).unwrap() {
        "/api/tags" | "/v1/models" => list_of(disk),
        "/api/ps" => list_of(memory),
        "/api/version" => r#"{"version":"0.33.0"}"#.to_owned(),
        _ => return None,
    };
    Some(vec![Step::Send(ok_json(&body).into())])
}

/// A model server that says its name to whatever is asked of a model.
async fn server(name: &'static str, disk: &Names, memory: &Names) -> Backend {
    scripted(disk, memory, move |_| {
        vec![Step::Send(ok_json(&format!(r#"{{"from":"{name}"}}"#)).into())]
    })
    .await
}

async fn scripted(
    disk: &Names,
    memory: &Names,
    script: impl Fn(&Seen) -> Vec<Step> + Send + Sync + 'static,
) -> Backend {
    let (disk, memory) = (Arc::clone(disk), Arc::clone(memory));
    Backend::scripted(move |seen| lists(seen, &disk, &memory).unwrap_or_else(|| script(seen))).await
}

/// A gate before these, under these names.
async fn before(
    backends: &[(&str, &Backend)],
    change: impl FnOnce(&mut Config, &TempDir),
) -> House {
    House::with(backends[0].1, |config, folder| {
        let one = config.backends.remove(0);
        for (name, backend) in backends {
            let mut one = one.clone();
            one.name = (*name).to_owned();
            one.url = format!("http://{}", backend.address).parse().unwrap();
            config.backends.push(one);
        }
        change(config, folder);
    })
    .await
}

/// Waits until each of them was heard.
async fn heard(house: &House) {
    let any = ModelName::parse("any").unwrap();
    let state = house.gateway.state();
    let all = || state.pool().backends().iter().all(|it| it.has(&any).is_some());
    until("every backend's list", || all().then_some(())).await;
}

/// Waits until this one has nothing to do: an answer is there a little before its end is noticed.
async fn idle(house: &House, name: &str) {
    let state = house.gateway.state();
    let backend = state.pool().backend(name).unwrap();
    until("an idle backend", || (backend.busy() == 0).then_some(())).await;
}

fn chat(model: &str) -> String {
    post("/api/chat", &format!(r#"{{"model":"{model}","messages":[]}}"#))
}

/// Who answered.
fn from(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{} {}", answer.head, answer.text());
    answer.json()["from"].as_str().unwrap_or_default().to_owned()
}

/// Requests for a model that a stand-in had.
fn chats(backend: &Backend) -> usize {
    backend.seen().len()
}

fn alias(name: &str, models: &[&str]) -> Alias {
    let named =
        |text: &str| NamedModel { text: text.to_owned(), name: ModelName::parse(text).unwrap() };
    let models = models.iter().map(|it| named(it)).collect();
    Alias { place: String::new(), name: Some(named(name)), models }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_goes_to_whoever_has_its_model() {
    let (a, b) = (names(&["qwen3:latest", "both"]), names(&["gemma3:12b", "both"]));
    let (first, second) =
        (server("first", &a, &names(&[])).await, server("second", &b, &names(&["both"])).await);
    let house = before(&[("x", &first), ("y", &second)], |_, _| {}).await;
    heard(&house).await;
    for (model, who) in [("qwen3", "first"), ("GEMMA3:12B", "second"), ("qwen3:latest", "first")] {
        assert_eq!(from(&house.ask(chat(model)).await), who);
    }
    let lines = house.log.wait_for(3).await;
    let mut who: Vec<_> = lines.iter().map(|line| line["backend"].as_str().unwrap()).collect();
    // A line is written when its connection is done, which may be in another order.
    who.sort_unstable();
    assert_eq!(who, ["x", "x", "y"]);
    // By who has it in memory, as soon as that is heard.
    let asked = || second.asked_by_the_gate().iter().any(|it| it.line().contains("/api/ps"));
    until("a look at what is in memory", || asked().then_some(())).await;
    until("the one who has it in memory", || {
        let pool = house.gateway.state();
        let model = ModelName::parse("both").unwrap();
        pool.pool().backend("y").unwrap().is_loaded(&model).then_some(())
    })
    .await;
    for _ in 0..8 {
        assert_eq!(from(&house.ask(chat("both")).await), "second");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_one_backend_while_another_takes_any_number() {
    let disk = names(&["m:latest"]);
    let first = scripted(&disk, &disk, |_| vec![Step::AwaitClose]).await;
    let second = scripted(&disk, &disk, |_| vec![Step::AwaitClose]).await;
    let house = before(&[("x", &first), ("y", &second)], |config, _| {
        config.backends[0].parallel = NonZeroU32::new(1).map(AtOnce::AtMost);
        config.backends[1].kind = BackendKind::OpenAi;
        config.backends[1].parallel = Some(AtOnce::Unbounded);
    })
    .await;
    heard(&house).await;
    let mut callers = Vec::new();
    for number in 1..=6 {
        let mut caller = house.connect().await;
        caller.send(post("/v1/chat/completions", r#"{"model":"m","messages":[]}"#)).await;
        callers.push(caller);
        let reached = || (chats(&first) + chats(&second) == number).then_some(());
        until("a backend for each", reached).await;
    }
    assert!(chats(&first) <= 1, "{}", chats(&first));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_nobody_has_is_unknown_until_somebody_has_it() {
    let (disk, memory) = (names(&["a"]), names(&[]));
    let (first, second) =
        (server("first", &disk, &memory).await, server("second", &names(&["b"]), &memory).await);
    let house = before(&[("x", &first), ("y", &second)], |_, _| {}).await;
    heard(&house).await;
    let told = house.ask(chat("new")).await;
    assert_eq!((told.status, told.text().as_str()), (404, r#"{"error":"model 'new' not found"}"#));
    let told = house.ask(post("/v1/chat/completions", r#"{"model":"new","messages":[]}"#)).await;
    assert_eq!(told.status, 404);
    assert!(told.json()["error"]["message"].as_str().unwrap().contains("'new' not found"));
    let line = &house.log.wait_for(2).await[0];
    assert_eq!((&line["code"], line["backend"].as_str()), (&"unknown_model".into(), None));
    assert_eq!(chats(&first) + chats(&second), 0);
    // It is found without waiting for the next look that is due.
    disk.lock().unwrap().push("new".to_owned());
    loop {
        let told = house.ask(chat("new")).await;
        if told.status == 200 {
            assert_eq!(from(&told), "first");
            break;
        }
        // Nobody asks again for each request.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let asked = first.asked_by_the_gate();
    let lists = asked.iter().filter(|it| it.line().contains("/api/tags")).count();
    assert!(lists < 10, "{lists} lists were asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_backend_nothing_is_asked_that_a_caller_does_not_ask() {
    let backend = server("only", &names(&[]), &names(&[])).await;
    let house = before(&[("x", &backend)], |config, _| {
        config.aliases = vec![alias("gpt-4o", &["gemma3:12b"])];
    })
    .await;
    for model in ["nobody-has-it", "gpt-4o"] {
        assert_eq!(from(&house.ask(chat(model)).await), "only");
    }
    house.gateway.tend().await;
    assert!(backend.asked_by_the_gate().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_not_there_costs_nobody_a_request() {
    let (disk, memory) = (names(&["a"]), names(&["a"]));
    let (first, second) =
        (server("first", &disk, &memory).await, server("second", &disk, &memory).await);
    let house = before(&[("x", &first), ("y", &second)], |_, _| {}).await;
    heard(&house).await;
    assert_eq!(house.ask(chat("a")).await.status, 200);
    let (before, address) = (chats(&second), first.address);
    drop(first);
    until("its end", || std::net::TcpStream::connect(address).is_err().then_some(())).await;
    for number in 0..20 {
        // Each is a conversation of its own, so that some of them would go there.
        let body =
            format!(r#"{{"model":"a","messages":[{{"role":"user","content":"{number}"}}]}}"#);
        assert_eq!(from(&house.ask(post("/api/chat", &body)).await), "second");
    }
    assert_eq!(chats(&second) - before, 20, "each was sent once");
    let ready = house.ask("GET /_portcullis/ready HTTP/1.1\r\nHost: g\r\n\r\n").await;
    assert_eq!(ready.json()["backends_up"], 1);
    let lines = house.log.wait_for(22).await;
    // The line tells who answered in the end.
    let by_y = lines.iter().filter(|line| line["backend"] == "y").count();
    assert!(by_y >= 20, "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backend_has_begun_is_never_sent_again_and_after_some_it_is_out() {
    let (disk, memory) = (names(&["a"]), names(&["a"]));
    for (broken, status) in [
        (vec![Step::Reset], 502),
        (vec![Step::Close], 502),
        (vec![Step::Send(b"garbage\r\n\r\n".to_vec())], 502),
        (vec![Step::Send(b"HTTP/1.1 503 Oops\r\nContent-Length: 0\r\n\r\n".to_vec())], 503),
    ] {
        let script = broken.clone();
        let bad = scripted(&disk, &memory, move |_| script.clone()).await;
        let good = server("good", &disk, &memory).await;
        let house = before(&[("bad", &bad), ("good", &good)], |_, _| {}).await;
        heard(&house).await;
        let (mut failed, mut served) = (0, 0);
        for number in 0..40 {
            // Each is a conversation of its own.
            let body =
                format!(r#"{{"model":"a","messages":[{{"role":"user","content":"{number}"}}]}}"#);
            match house.ask(post("/api/chat", &body)).await.status {
                200 => served += 1,
                other => {
                    assert_eq!(other, status);
                    failed += 1;
                }
            }
        }
        assert_eq!((chats(&bad), chats(&good)), (failed, served), "nothing was sent twice");
        // It is let through now and then, to see.
        assert!((1..20).contains(&failed), "{failed} of 40 failed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_hangs_in_generation_is_found_by_its_first_bytes() {
    let (disk, memory) = (names(&["a"]), names(&["a"]));
    let hanging = scripted(&disk, &memory, |_| vec![Step::AwaitClose]).await;
    let good = server("good", &disk, &memory).await;
    let house = before(&[("hanging", &hanging), ("good", &good)], |config, _| {
        config.timeouts.first_byte = Duration::from_millis(200);
    })
    .await;
    heard(&house).await;
    let mut late = 0;
    for number in 0..30 {
        let body =
            format!(r#"{{"model":"a","messages":[{{"role":"user","content":"{number}"}}]}}"#);
        let answer = house.ask(post("/api/chat", &body)).await;
        late += usize::from(answer.status == 504);
    }
    assert_eq!((chats(&hanging), chats(&good)), (late, 30 - late));
    assert!((2..10).contains(&late), "{late} of 30 were late");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_backend_gets_what_it_can_do() {
    let (disk, memory) = (names(&["a"]), names(&["a"]));
    let go_on = Arc::new(Notify::new());
    let wait = Arc::clone(&go_on);
    let slow = scripted(&disk, &memory, move |_| {
        vec![Step::Wait(Arc::clone(&wait)), Step::Send(ok_json(r#"{"from":"slow"}"#).into())]
    })
    .await;
    let quick = server("quick", &disk, &memory).await;
    let house = before(&[("slow", &slow), ("quick", &quick)], |_, _| {}).await;
    heard(&house).await;
    let quick_is_drained = |drained| {
        house.gateway.state().pool().backend("quick").unwrap().drain(drained);
    };
    quick_is_drained(true);
    let mut caller = house.connect().await;
    caller.send(chat("a")).await;
    slow.wait_for_request(1).await;
    quick_is_drained(false);
    for _ in 0..10 {
        assert_eq!(from(&house.ask(chat("a")).await), "quick");
        idle(&house, "quick").await;
    }
    go_on.notify_one();
    assert_eq!(from(&caller.answer().await), "slow");
    assert_eq!((chats(&slow), chats(&quick)), (1, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_manages_models_never_comes_to_be_on_another_machine() {
    let memory = names(&[]);
    let (first, second) =
        (server("first", &memory, &memory).await, server("second", &memory, &memory).await);
    let house = before(&[("x", &first), ("y", &second)], |_, _| {}).await;
    let upload = post(&format!("/api/blobs/sha256:{}", "a".repeat(64)), &"x".repeat(100_000));
    assert_eq!(from(&house.ask(&upload).await), "first");
    drop(first);
    for request in [upload, post("/api/pull", r#"{"model":"a"}"#)] {
        let told = house.ask(request).await;
        assert_eq!((told.status, told.code().as_str()), (503, "no_backend"));
    }
    assert_eq!(chats(&second), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_recovers_gets_requests_again() {
    let (disk, memory) = (names(&["a"]), names(&["a"]));
    let is_ill = Arc::new(AtomicBool::new(true));
    let ill = Arc::clone(&is_ill);
    let bad = scripted(&disk, &memory, move |_| match ill.load(Ordering::Relaxed) {
        true => vec![Step::Reset],
        false => vec![Step::Send(ok_json(r#"{"from":"bad"}"#).into())],
    })
    .await;
    let good = server("good", &disk, &memory).await;
    let house = before(&[("bad", &bad), ("good", &good)], |_, _| {}).await;
    heard(&house).await;
    let out = || !house.gateway.state().pool().backend("bad").unwrap().is_up();
    let mut number = 0;
    let mut ask = async || {
        number += 1;
        let body =
            format!(r#"{{"model":"a","messages":[{{"role":"user","content":"{number}"}}]}}"#);
        house.ask(post("/api/chat", &body)).await
    };
    while !out() {
        ask().await;
    }
    is_ill.store(false, Ordering::Relaxed);
    let before = chats(&bad);
    while chats(&bad) == before {
        assert_eq!(ask().await.status, 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!out());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_maintenance_a_backend_gets_nothing_new_and_what_runs_ends_also_over_a_reload() {
    let (disk, memory) = (names(&["a"]), names(&["a"]));
    let go_on = Arc::new(Notify::new());
    let wait = Arc::clone(&go_on);
    let first = scripted(&disk, &memory, move |_| {
        vec![Step::Wait(Arc::clone(&wait)), Step::Send(ok_json(r#"{"from":"first"}"#).into())]
    })
    .await;
    let second = server("second", &disk, &names(&[])).await;
    let house = before(&[("x", &first), ("y", &second)], |_, _| {}).await;
    heard(&house).await;
    let drain = |name: &str, drained| {
        house.gateway.state().pool().backend(name).unwrap().drain(drained);
    };
    drain("y", true);
    let mut caller = house.connect().await;
    caller.send(chat("a")).await;
    first.wait_for_request(1).await;
    drain("x", true);
    let told = house.ask(chat("a")).await;
    assert_eq!((told.status, told.code().as_str()), (503, "no_backend"));
    drain("y", false);
    house.gateway.reload(house.gateway.state().config().clone()).unwrap();
    for _ in 0..5 {
        assert_eq!(from(&house.ask(chat("a")).await), "second");
    }
    go_on.notify_one();
    assert_eq!(from(&caller.answer().await), "first");
    assert_eq!(chats(&first), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_backend_that_goes_is_served_by_one_that_has_the_model_by_then() {
    let (busy, other) = (names(&["a"]), names(&["b"]));
    let first = scripted(&busy, &busy, |_| vec![Step::AwaitClose]).await;
    let second = server("second", &other, &names(&[])).await;
    let house = before(&[("x", &first), ("y", &second)], |config, _| {
        for backend in &mut config.backends {
            backend.parallel = NonZeroU32::new(1).map(AtOnce::AtMost);
        }
    })
    .await;
    heard(&house).await;
    let state = house.gateway.state();
    let pool = state.pool();
    let drain = |name: &str, drained| pool.backend(name).unwrap().drain(drained);
    let mut callers = Vec::new();
    for queued in 0..=2 {
        let mut caller = house.connect().await;
        caller.send(chat("a")).await;
        callers.push(caller);
        first.wait_for_request(1).await;
        let waits = || pool.line().with(|queue, _| queue.queued()) == queued;
        until("its place in the queue", || waits().then_some(())).await;
    }
    let (_running, mut waiting) = (callers.remove(0), callers);
    other.lock().unwrap().push("a".to_owned());
    let model = ModelName::parse("a").unwrap();
    let has = |name: &str| pool.backend(name).unwrap().has(&model) == Some(true);
    while !has("y") {
        // What nobody has makes the gate look again.
        assert_eq!(house.ask(chat("nowhere")).await.status, 404);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drain("x", true);
    for caller in &mut waiting {
        assert_eq!(from(&caller.answer().await), "second");
    }
    let of_them = |line: &serde_json::Value| line["backend"] == "y";
    let lines = || house.log.all().into_iter().filter(of_them).collect::<Vec<_>>();
    let lines = until("their lines", || Some(lines()).filter(|lines| lines.len() == 2)).await;
    assert!(lines.iter().all(|line| line["queue_ms"].as_f64() > Some(0.0)), "{lines:?}");
    // Where nobody is left they are told so.
    drain("x", false);
    let mut last = house.connect().await;
    drain("y", true);
    last.send(chat("a")).await;
    until("its place in the queue", || {
        pool.line().with(|queue, _| queue.queued() == 1).then_some(())
    })
    .await;
    drain("x", true);
    let told = last.answer().await;
    assert_eq!((told.status, told.code().as_str()), (503, "no_backend"));
    assert_eq!((chats(&first), chats(&second)), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_adds_and_removes_backends_leaves_the_others_alone() {
    let (disk, memory) = (names(&["a"]), names(&[]));
    let kept = server("kept", &disk, &memory).await;
    let (old, new) =
        (server("old", &names(&[]), &memory).await, server("new", &names(&["b"]), &memory).await);
    let house = before(&[("old", &old), ("kept", &kept)], |_, _| {}).await;
    heard(&house).await;
    assert_eq!(from(&house.ask(chat("a")).await), "kept");
    let serial = |name: &str| house.gateway.state().pool().backend(name).map(|it| it.serial());
    let (kept_before, connections) = (serial("kept"), kept.connections().0);
    let mut config = house.gateway.state().config().clone();
    config.backends[0].name = "new".to_owned();
    config.backends[0].url = format!("http://{}", new.address).parse().unwrap();
    config.backends[1].weight = portcullis::config::Weight::of_thousandths(500).unwrap();
    house.gateway.reload(config).unwrap();
    assert_eq!((serial("kept"), serial("old")), (kept_before, None));
    assert_eq!(from(&house.ask(chat("b")).await), "new");
    let asked = kept.asked_by_the_gate().len();
    assert_eq!(from(&house.ask(chat("a")).await), "kept");
    // The caller's connection was kept; what the gate asks has its own.
    let more = kept.connections().0 - connections;
    assert!(more <= kept.asked_by_the_gate().len().max(asked), "{more} more connections");
    assert_eq!(kept.seen()[0].connection, kept.seen()[1].connection);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_lies_under_v1_goes_to_the_kind_openai() {
    let memory = names(&[]);
    let cpp = server("cpp", &names(&["tiny"]), &memory).await;
    let ollama = server("ollama", &names(&["gemma3"]), &memory).await;
    let kinds = |config: &mut Config, _: &TempDir| config.backends[0].kind = BackendKind::OpenAi;
    let house = before(&[("cpp", &cpp), ("ollama", &ollama)], kinds).await;
    heard(&house).await;
    let body = r#"{"model":"tiny","messages":[],"stream":true}"#;
    assert_eq!(from(&house.ask(post("/v1/chat/completions", body)).await), "cpp");
    // It is sent as it came: such a server would answer otherwise.
    assert_eq!(cpp.seen()[0].body, body.as_bytes());
    let told = house.ask(chat("tiny")).await;
    assert_eq!((told.status, told.text().as_str()), (404, r#"{"error":"model 'tiny' not found"}"#));
    assert_eq!(house.get("/api/version").await.status, 200);
    assert!(cpp.asked_by_the_gate().iter().all(|it| it.line().contains(" /v1/models ")));
    // Alone, it is no Ollama either.
    let house = before(&[("cpp", &cpp)], kinds).await;
    assert_eq!(house.ask(chat("tiny")).await.status, 404);
    let told = house.get("/api/tags").await;
    assert_eq!((told.status, told.code().as_str()), (404, "unknown_endpoint"));
    assert_eq!(from(&house.ask(post("/v1/chat/completions", body)).await), "cpp");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_stays_where_it_began() {
    let (disk, memory) = (names(&["a"]), names(&["a"]));
    let (first, second) =
        (server("first", &disk, &memory).await, server("second", &disk, &memory).await);
    let house = before(&[("x", &first), ("y", &second)], |_, _| {}).await;
    heard(&house).await;
    let mut met = std::collections::BTreeSet::new();
    for number in 0..12 {
        let begins = format!(r#"{{"role":"user","content":"question {number}"}}"#);
        let mut who = std::collections::BTreeSet::new();
        for rest in ["", r#",{"role":"assistant","content":"so"},{"role":"user","content":"on"}"#] {
            let body = format!(r#"{{"model":"a","messages":[{begins}{rest}]}}"#);
            who.insert(from(&house.ask(post("/api/chat", &body)).await));
            idle(&house, "x").await;
            idle(&house, "y").await;
        }
        assert_eq!(who.len(), 1, "a conversation was moved");
        met.extend(who);
    }
    assert_eq!(met.len(), 2, "one of them got all conversations");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_runs_elsewhere_is_known_from_the_lists_and_not_asked_for_each_time() {
    let memory = names(&[]);
    let first = server("first", &names(&["a"]), &memory).await;
    let second = Backend::scripted(|seen| {
        let stub = r#"{"models":[{"model":"b","remote_host":"https://ollama.com"}]}"#;
        let is_list = seen.line().contains("/api/tags");
        vec![Step::Send(ok_json(if is_list { stub } else { "{}" }).into())]
    })
    .await;
    let house = before(&[("x", &first), ("y", &second)], |config, _| {
        config.rules = vec![Rule::default()];
    })
    .await;
    heard(&house).await;
    for _ in 0..20 {
        assert_eq!(from(&house.ask(chat("a")).await), "first");
    }
    let told = house.ask(chat("b")).await;
    assert_eq!((told.status, told.code().as_str()), (403, "model_forbidden"));
    for backend in [&first, &second] {
        let asked = backend.asked_by_the_gate();
        let lists = asked.iter().filter(|it| it.line().contains("/api/tags")).count();
        assert!(lists < 10, "{lists} lists were asked for");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_is_replaced_where_it_stands_and_nothing_else_changes() {
    let backend = server("only", &names(&[]), &names(&[])).await;
    let house = before(&[("x", &backend)], |config, _| {
        config.aliases = vec![alias("gpt-4o", &["gemma3:12b"]), alias("whisper-1", &["hf.co/w/x"])];
    })
    .await;
    let form = |model: &str| {
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--b\r\n\
             Content-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nx\r\n--b--\r\n"
        )
    };
    let multipart = |body: &str| {
        post("/v1/audio/transcriptions", body).replace(
            "Content-Length",
            "Content-Type: multipart/form-data; boundary=b\r\nContent-Length",
        )
    };
    let same = |body: &str| body.replace("GPT-4o:latest", "gemma3:12b");
    let json =
        r#"{ "stream":false,"model" : "GPT-4o:latest" ,"messages":[{"content":"GPT-4o"}],"n":1e0}"#;
    let both = r#"{"name":"gpt-4o","model":"gpt-4o"}"#;
    let mut models = Vec::new();
    for (request, path, body) in [
        (post("/v1/chat/completions", json), "/v1/chat/completions", same(json)),
        (post("/api/show", both), "/api/show", both.replace("gpt-4o", "gemma3:12b")),
        (multipart(&form("whisper-1")), "/v1/audio/transcriptions", form("hf.co/w/x")),
        (get("/v1/models/gpt-4o"), "/v1/models/gemma3:12b", String::new()),
        // What is copied or deleted is what is written.
        (
            post("/api/push", r#"{"model":"gpt-4o"}"#),
            "/api/push",
            r#"{"model":"gpt-4o"}"#.to_owned(),
        ),
    ] {
        let count = backend.seen().len();
        assert_eq!(from(&house.ask(request).await), "only");
        let seen = backend.seen()[count].clone();
        assert_eq!(seen.line().split(' ').nth(1), Some(path));
        assert_eq!(String::from_utf8_lossy(&seen.body), body, "{path}");
        let lines = house.log.wait_for(models.len() + 1).await;
        models.push(lines[models.len()]["model"].as_str().unwrap().to_owned());
    }
    assert_eq!(models, ["gemma3:12b", "gemma3:12b", "hf.co/w/x", "gemma3:12b", "gpt-4o"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_speak_of_the_models_that_aliases_stand_for() {
    let backend = server("only", &names(&[]), &names(&[])).await;
    let house = before(&[("x", &backend)], |config, _| {
        config.aliases = vec![alias("gpt-4o", &["gemma3:12b"]), alias("gemma3", &["llama3"])];
        let models = Models::Only(vec!["gemma3*".parse().unwrap()]);
        config.rules = vec![Rule { models, cloud: true, ..Rule::default() }];
    })
    .await;
    assert_eq!(from(&house.ask(chat("gpt-4o")).await), "only");
    let told = house.ask(chat("gemma3")).await;
    assert_eq!((told.status, told.code().as_str()), (403, "model_forbidden"));
    assert!(told.text().contains("gemma3 (which is llama3 here)"), "{}", told.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_hidden_is_not_told_by_its_alias_either() {
    let backend = server("only", &names(&[]), &names(&[])).await;
    let house = before(&[("x", &backend)], |config, _| {
        config.hide_models = true;
        config.aliases = vec![alias("gpt-4o", &["gemma3:12b"])];
        let models = Models::Only(vec!["small".parse().unwrap()]);
        config.rules = vec![Rule { models, cloud: true, ..Rule::default() }];
    })
    .await;
    for (path, body) in [
        ("/v1/chat/completions", r#"{"model":"gpt-4o","messages":[]}"#),
        ("/api/chat", r#"{"model":"gpt-4o"}"#),
        ("/api/show", r#"{"model":"gpt-4o"}"#),
    ] {
        let told = house.ask(post(path, body)).await;
        assert_eq!(told.status, 404, "{path}");
        assert!(
            told.text().contains("gpt-4o") && !told.text().contains("gemma"),
            "{}",
            told.text()
        );
    }
    let told = house.get("/v1/models/gpt-4o").await;
    assert!(told.status == 404 && !told.text().contains("gemma"), "{}", told.text());
    let why = house.log.wait_for(4).await;
    assert!(why.iter().all(|line| line["model"] == "gemma3:12b"), "{why:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_models_the_first_that_somebody_has_is_taken() {
    let (disk, memory) = (names(&["gemma3:4b", "qwen3"]), names(&[]));
    let backend = server("only", &disk, &memory).await;
    let house = before(&[("x", &backend)], |config, _| {
        config.aliases = vec![alias("best", &["gemma3:12b", "gemma3:4b", "qwen3"])];
        config.aliases.push(alias("gemma3:12b", &["gemma3:12b", "qwen3"]));
    })
    .await;
    let asked = async |model: &str| {
        let count = backend.seen().len();
        assert_eq!(from(&house.ask(chat(model)).await), "only");
        let body: serde_json::Value = serde_json::from_slice(&backend.seen()[count].body).unwrap();
        body["model"].as_str().unwrap().to_owned()
    };
    assert_eq!(asked("gemma3:12b").await, "qwen3");
    assert_eq!(asked("best").await, "qwen3");
    disk.lock().unwrap().push("gemma3:12b".to_owned());
    until("the new list", || {
        let state = house.gateway.state();
        let backend = state.pool().backend("x").unwrap();
        (backend.has(&ModelName::parse("gemma3:12b").unwrap()) == Some(true)).then_some(())
    })
    .await;
    assert_eq!(asked("gemma3:12b").await, "gemma3:12b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_without_a_list_is_asked_as_if_it_had_everything() {
    let memory = names(&[]);
    for odd in [
        "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
            .to_owned(),
        "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
        ok_json("{\"models\":{}}"),
        ok_json("[[[[[["),
        "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_owned(),
    ] {
        let count = Arc::new(AtomicUsize::new(0));
        let strange = Backend::scripted(move |seen| {
            let is_chat = seen.line().contains("/api/chat");
            count.fetch_add(1, Ordering::Relaxed);
            let says = if is_chat { ok_json(r#"{"from":"strange"}"#) } else { odd.clone() };
            vec![Step::Send(says.into())]
        })
        .await;
        let plain = server("plain", &names(&["a"]), &memory).await;
        let house = before(&[("strange", &strange), ("plain", &plain)], |_, _| {}).await;
        let state = house.gateway.state();
        let plain = state.pool().backend("plain").unwrap();
        let model = ModelName::parse("a").unwrap();
        until("a list", || (plain.has(&model) == Some(true)).then_some(())).await;
        assert_eq!(from(&house.ask(chat("a")).await), "plain");
        assert_eq!(from(&house.ask(chat("b")).await), "strange");
        assert!(strange.seen().iter().all(|it| it.header("authorization").is_none()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_goes_to_where_clouds_keep_secrets() {
    let backend = Backend::ok().await;
    let house = before(&[("x", &backend)], |config, _| {
        config.backends[0].url = "http://169.254.169.254".parse().unwrap();
    })
    .await;
    let told = house.ask(chat("a")).await;
    assert_eq!((told.status, told.code().as_str()), (503, "no_backend"));
    assert!(!told.text().contains("169.254"), "{}", told.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_backend_gets_its_own_key_and_host() {
    let (disk, memory) = (names(&["a"]), names(&[]));
    let (first, second) =
        (server("first", &disk, &memory).await, server("second", &names(&["b"]), &memory).await);
    let house = before(&[("x", &first), ("y", &second)], |config, folder| {
        let key = folder.path().join("backend-key");
        std::fs::write(&key, "secret-of-x\n").unwrap();
        config.backends[0].key_file = Some(key);
    })
    .await;
    heard(&house).await;
    assert_eq!(from(&house.ask(chat("a")).await), "first");
    assert_eq!(from(&house.ask(chat("b")).await), "second");
    let (with, without) = (&first.seen()[0], &second.seen()[0]);
    assert_eq!(with.header("authorization").as_deref(), Some("Bearer secret-of-x"));
    assert_eq!(with.header("host"), Some(first.address.to_string()));
    assert_eq!(without.header("authorization"), None);
    assert_eq!(without.header("host"), Some(second.address.to_string()));
    assert!(!format!("{with:?}{without:?}").contains(KEY));
}
