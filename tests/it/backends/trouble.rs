//! What becomes of requests while a backend fails, is full, goes away, or is no backend at all.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portcullis::config::{AtOnce, ModelName, Pattern, Rule, Weight};
use tokio::sync::Notify;

use super::{alias, before, chat, chats, from, heard, lists, names, scripted, server};
use crate::house::{
    Answer, Backend, Caller, House, Step, chunk, ok_json, post, stream_head, until,
};

const CALLERS: [&str; 3] = ["anna", "bert", "carl"];

fn key_of(name: &str) -> String {
    format!("a-key-of-{name}-for-the-tests")
}

fn keys() -> String {
    CALLERS.map(|name| format!("{} # {name}\n", key_of(name))).concat()
}

/// A conversation of its own for each `text`.
fn chat_of(name: &str, text: impl std::fmt::Display) -> String {
    let body = format!(r#"{{"model":"a","messages":[{{"role":"user","content":"{text}"}}]}}"#);
    format!(
        "POST /api/chat HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        key_of(name),
        body.len()
    )
}

fn one_at_a_time() -> Option<AtOnce> {
    NonZeroU32::new(1).map(AtOnce::AtMost)
}

fn is_up(house: &House, name: &str) -> bool {
    house.gateway.state().pool().backend(name).unwrap().is_up()
}

fn queued(house: &House) -> usize {
    house.gateway.state().pool().line().with(|queue, _| queue.queued())
}

async fn in_line(house: &House, count: usize) {
    until("the line", || (queued(house) == count).then_some(())).await;
}

async fn asks(house: &House, request: impl AsRef<[u8]>) -> Caller {
    let mut caller = house.connect().await;
    caller.send(request).await;
    caller
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backend_answers_puts_it_out_unless_one_caller_alone_may_have_provoked_it() {
    for (status, callers, puts_out) in [
        (500, &CALLERS[..1], false),
        (500, &CALLERS[..2], true),
        (501, &CALLERS[..], false),
        (502, &CALLERS[..1], true),
        (503, &CALLERS[..1], true),
        (504, &CALLERS[..1], true),
        (508, &CALLERS[..1], true),
    ] {
        let disk = names(&["a"]);
        let head = format!("HTTP/1.1 {status} Oh\r\nContent-Length: 0\r\n\r\n");
        let bad = scripted(&disk, &disk, move |_| vec![Step::Send(head.clone().into())]).await;
        let good = server("good", &disk, &disk).await;
        let house = before(&[("bad", &bad), ("good", &good)], |_, folder| {
            std::fs::write(folder.path().join("api_keys.txt"), keys()).unwrap();
        })
        .await;
        heard(&house).await;
        // Nothing good is to come between.
        house.gateway.state().pool().backend("good").unwrap().drain(true);
        for number in 0..4 {
            let told = house.ask(chat_of(callers[number % callers.len()], number)).await;
            assert_eq!(told.status, status);
        }
        assert_eq!(!is_up(&house, "bad"), puts_out, "{status} to {callers:?}");
        assert_eq!(chats(&good), 0, "nothing is sent twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_nobody_there_waits_its_turn_at_another_that_is_busy() {
    let disk = names(&["a"]);
    let go_on = Arc::new(Notify::new());
    let wait = Arc::clone(&go_on);
    let first = server("first", &disk, &disk).await;
    let second = scripted(&disk, &names(&[]), move |_| {
        vec![Step::Wait(Arc::clone(&wait)), Step::Send(ok_json(r#"{"from":"second"}"#).into())]
    })
    .await;
    let house = before(&[("x", &first), ("y", &second)], |config, _| {
        for backend in &mut config.backends {
            backend.parallel = one_at_a_time();
        }
    })
    .await;
    heard(&house).await;
    let state = house.gateway.state();
    let first_has_it = || {
        let model = ModelName::parse("a").unwrap();
        state.pool().backend("x").unwrap().is_loaded(&model)
    };
    until("who has it in memory", || first_has_it().then_some(())).await;
    state.pool().backend("x").unwrap().drain(true);
    let mut runs = asks(&house, chat("a")).await;
    second.wait_for_request(1).await;
    let (_, _gone_first) = first.end().await;
    state.pool().backend("x").unwrap().drain(false);
    let mut waits = Vec::new();
    for count in 1..=3 {
        waits.push(asks(&house, chat("a")).await);
        in_line(&house, count).await;
    }
    // Nobody is counted as being where nobody is.
    assert_eq!(state.pool().backend("x").unwrap().busy(), 0);
    go_on.notify_one();
    assert_eq!(from(&runs.answer().await), "second");
    for caller in &mut waits {
        go_on.notify_one();
        assert_eq!(from(&caller.answer().await), "second");
    }
    assert_eq!(chats(&second), 4);
    let lines = house.log.wait_for(4).await;
    let waited = |line: &&serde_json::Value| line["queue_ms"].as_f64() > Some(0.0);
    assert_eq!(lines.iter().filter(waited).count(), 3, "{lines:?}");
    assert!(lines.iter().all(|line| line["backend"] == "y"), "{lines:?}");
    let mut positions: Vec<_> = lines.iter().map(|line| line["position"].as_u64()).collect();
    positions.sort_unstable();
    assert_eq!(positions, [None, Some(1), Some(2), Some(3)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_at_another_backend_ends_with_queue_timeout() {
    let disk = names(&["a"]);
    let first = server("first", &disk, &disk).await;
    let second = scripted(&disk, &disk, |_| vec![Step::AwaitClose]).await;
    let house = before(&[("x", &first), ("y", &second)], |config, _| {
        config.queue_timeout = Duration::from_millis(100);
        config.backends[1].parallel = one_at_a_time();
    })
    .await;
    heard(&house).await;
    let state = house.gateway.state();
    state.pool().backend("x").unwrap().drain(true);
    let _runs = asks(&house, chat("a")).await;
    second.wait_for_request(1).await;
    let (_, _gone_first) = first.end().await;
    state.pool().backend("x").unwrap().drain(false);
    // The first may go to whom nobody knows to be gone; all wait in the end.
    for _ in 0..3 {
        let told = house.ask(chat("a")).await;
        assert_eq!((told.status, told.code().as_str()), (503, "queue_timeout"));
    }
    assert_eq!((queued(&house), chats(&second)), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_backends_two_are_gone_and_nothing_is_sent_more_than_once_again() {
    let disk = names(&["a"]);
    let (first, second) = (server("x", &disk, &disk).await, server("y", &disk, &disk).await);
    let third = server("z", &disk, &disk).await;
    let house = before(&[("x", &first), ("y", &second), ("z", &third)], |_, folder| {
        std::fs::write(folder.path().join("api_keys.txt"), keys()).unwrap();
    })
    .await;
    heard(&house).await;
    let (_, _gone_first) = first.end().await;
    let (_, _gone_second) = second.end().await;
    let mut callers = Vec::new();
    for number in 0..30 {
        callers.push(asks(&house, chat_of(CALLERS[number % 3], number)).await);
    }
    let mut served = 0;
    for mut caller in callers {
        let told = caller.answer().await;
        match told.status {
            200 => served += 1,
            // It met both of those that are gone.
            _ => assert_eq!((told.status, told.code().as_str()), (503, "no_backend")),
        }
    }
    assert_eq!(chats(&third), served);
    assert!(served > 0, "nobody was served");
    assert_eq!(from(&house.ask(chat_of("anna", 31)).await), "z", "by now it is known");
}

/// Two backends, of which the first alone has the model and was put out, and what it does from then on.
async fn out_and_alone(script: fn() -> Vec<Step>, bell: Arc<Notify>) -> (House, [Backend; 2]) {
    let breaks = Arc::new(AtomicBool::new(true));
    let ill = Arc::clone(&breaks);
    let first =
        scripted(&names(&["a"]), &names(&["a"]), move |_| match ill.load(Ordering::Relaxed) {
            true => vec![Step::Reset],
            false => [vec![Step::Wait(Arc::clone(&bell))], script()].concat(),
        })
        .await;
    let second = server("second", &names(&["b"]), &names(&["b"])).await;
    let house = before(&[("x", &first), ("y", &second)], |config, _| {
        config.backends[0].parallel = one_at_a_time();
    })
    .await;
    heard(&house).await;
    while is_up(&house, "x") {
        assert_eq!(house.ask(chat("a")).await.status, 502);
    }
    breaks.store(false, Ordering::Relaxed);
    (house, [first, second])
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_go_nowhere_else_waits_in_line_before_a_backend_that_is_out() {
    let bell = Arc::new(Notify::new());
    let answers = || vec![Step::Send(ok_json(r#"{"from":"first"}"#).into())];
    let (house, [first, second]) = out_and_alone(answers, Arc::clone(&bell)).await;
    let asked = chats(&first);
    let mut callers = vec![asks(&house, chat("a")).await];
    first.wait_for_request(asked + 1).await;
    for count in 1..=4 {
        callers.push(asks(&house, chat("a")).await);
        in_line(&house, count).await;
    }
    assert_eq!(chats(&first), asked + 1, "one at a time");
    for _ in 0..5 {
        bell.notify_one();
        let answered = callers.remove(0).answer().await;
        assert_eq!(from(&answered), "first");
    }
    assert!(is_up(&house, "x"));
    assert_eq!(chats(&second), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_backend_that_is_out_is_told_as_soon_as_it_fails_again() {
    let bell = Arc::new(Notify::new());
    let (house, [first, _second]) = out_and_alone(|| vec![Step::Reset], Arc::clone(&bell)).await;
    let asked = chats(&first);
    let mut tries = asks(&house, chat("a")).await;
    first.wait_for_request(asked + 1).await;
    let mut callers = Vec::new();
    for count in 1..=4 {
        callers.push(asks(&house, chat("a")).await);
        in_line(&house, count).await;
    }
    bell.notify_one();
    assert_eq!(tries.answer().await.status, 502);
    for caller in &mut callers {
        let told = caller.answer().await;
        assert_eq!((told.status, told.code().as_str()), (503, "no_backend"));
        assert!(told.header("retry-after").is_some(), "{}", told.head);
    }
    assert_eq!(chats(&first), asked + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_are_gone_callers_are_told_at_once_and_when_to_come_again() {
    let disk = names(&["a"]);
    let (first, second) = (server("x", &disk, &disk).await, server("y", &disk, &disk).await);
    let house = before(&[("x", &first), ("y", &second)], |_, _| {}).await;
    heard(&house).await;
    let (_, _gone_first) = first.end().await;
    let (_, _gone_second) = second.end().await;
    for _ in 0..5 {
        let began = Instant::now();
        let told = house.ask(chat("a")).await;
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!((told.status, told.code().as_str()), (503, "no_backend"));
        assert!(told.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    }
    let ready = house.ask("GET /_portcullis/ready HTTP/1.1\r\nHost: g\r\n\r\n").await;
    assert_eq!(ready.json()["backends_up"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_goes_or_fails_is_found_without_a_request() {
    let disk = names(&["a"]);
    let status = Arc::new(AtomicU16::new(200));
    let says = Arc::clone(&status);
    let (gone, well) = (server("x", &disk, &disk).await, server("z", &disk, &disk).await);
    let failing = Backend::scripted(move |seen| {
        let status = says.load(Ordering::Relaxed);
        let body = r#"{"models":[],"version":"1"}"#;
        let ok = ok_json(body).replace("200 OK", &format!("{status} So"));
        lists(seen, &names(&["a"]), &names(&[]))
            .filter(|_| status == 200)
            .unwrap_or_else(|| vec![Step::Send(ok.into())])
    })
    .await;
    let house = before(&[("x", &gone), ("y", &failing), ("z", &well)], |_, _| {}).await;
    heard(&house).await;
    status.store(500, Ordering::Relaxed);
    let (_, place) = gone.end().await;
    until("both to be out", || (!is_up(&house, "x") && !is_up(&house, "y")).then_some(())).await;
    assert!(is_up(&house, "z"));
    status.store(200, Ordering::Relaxed);
    let back = Backend::scripted_at(place.listen(64).unwrap(), |seen| {
        lists(seen, &names(&["a"]), &names(&[])).unwrap_or_default()
    });
    until("both to be back", || (is_up(&house, "x") && is_up(&house, "y")).then_some(())).await;
    let asked = [&failing, &well, &back].map(chats);
    assert_eq!(asked, [0; 3], "no request was needed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_is_its_own_backend_is_asked_for_nothing_that_another_has() {
    let disk = names(&["a"]);
    let good = server("good", &disk, &disk).await;
    let house = before(&[("good", &good)], |_, _| {}).await;
    let mut config = house.gateway.state().config().clone();
    let mut own = config.backends[0].clone();
    own.name = "own".to_owned();
    own.url = format!("http://{}", house.address).parse().unwrap();
    // With a key of its own it would be told every list.
    let key = house.file("own-key");
    std::fs::write(&key, crate::house::KEY).unwrap();
    own.key_file = Some(key);
    config.backends.insert(0, own);
    house.gateway.reload(config).unwrap();
    until("it is found out", || (!is_up(&house, "own")).then_some(())).await;
    let model = ModelName::parse("a").unwrap();
    let state = house.gateway.state();
    let has = |name: &str| state.pool().backend(name).unwrap().has(&model);
    until("the other's list", || has("good").filter(|it| *it)).await;
    assert_eq!(has("own"), None, "it told a list that is another's");
    for number in 0..20 {
        let body =
            format!(r#"{{"model":"a","messages":[{{"role":"user","content":"{number}"}}]}}"#);
        assert_eq!(from(&house.ask(post("/api/chat", &body)).await), "good");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_models_the_first_is_taken_that_is_at_a_backend_which_takes_requests() {
    let (first, second) = (
        server("first", &names(&["big"]), &names(&[])).await,
        server("second", &names(&["small"]), &names(&[])).await,
    );
    let house = before(&[("x", &first), ("y", &second)], |config, _| {
        config.aliases = vec![alias("best", &["big", "small"])];
    })
    .await;
    heard(&house).await;
    // One line after the other.
    let ask = async |number| {
        let answer = house.ask(chat("best")).await;
        house.log.wait_for(number).await;
        answer
    };
    assert_eq!(from(&ask(1).await), "first");
    let state = house.gateway.state();
    state.pool().backend("x").unwrap().drain(true);
    assert_eq!(from(&ask(2).await), "second");
    state.pool().backend("x").unwrap().drain(false);
    assert_eq!(from(&ask(3).await), "first");
    let (_, _gone_first) = first.end().await;
    until("it is known to be gone", || (!is_up(&house, "x")).then_some(())).await;
    assert_eq!(from(&ask(4).await), "second");
    let (_, _gone_second) = second.end().await;
    until("this one too", || (!is_up(&house, "y")).then_some(())).await;
    let told = ask(5).await;
    assert_eq!((told.status, told.code().as_str()), (503, "no_backend"));
    let models = |line: &serde_json::Value| line["model"].as_str().unwrap().to_owned();
    let told: Vec<_> = house.log.wait_for(5).await.iter().map(models).collect();
    assert_eq!(told, ["big", "small", "big", "small", "big"], "else the first that any has");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_a_reload_removes_ends_what_runs_and_its_waiters_go_elsewhere() {
    let disk = names(&["a"]);
    let go_on = Arc::new(Notify::new());
    let wait = Arc::clone(&go_on);
    let first = scripted(&disk, &disk, move |_| {
        let begin = stream_head("application/x-ndjson") + &chunk("{\"n\":1}\n");
        let end = chunk("{\"done\":true}\n") + "0\r\n\r\n";
        vec![Step::Send(begin.into()), Step::Wait(Arc::clone(&wait)), Step::Send(end.into())]
    })
    .await;
    let second = server("second", &names(&["b"]), &names(&[])).await;
    let third = server("third", &disk, &names(&[])).await;
    let house = before(&[("x", &first), ("y", &second)], |config, _| {
        config.backends[0].parallel = one_at_a_time();
    })
    .await;
    heard(&house).await;
    let mut runs = asks(&house, chat("a")).await;
    assert!(runs.sees("{\"n\":1}").await);
    let mut waits = Vec::new();
    for count in 1..=2 {
        waits.push(asks(&house, chat("a")).await);
        in_line(&house, count).await;
    }
    let mut config = house.gateway.state().config().clone();
    let mut new = config.backends[1].clone();
    new.name = "z".to_owned();
    new.url = format!("http://{}", third.address).parse().unwrap();
    config.backends.remove(0);
    config.backends.push(new);
    house.gateway.reload(config).unwrap();
    assert_eq!(from(&house.ask(chat("a")).await), "third", "who comes now");
    // Who came before has the configuration that it came with, and what is left of it.
    go_on.notify_one();
    assert!(runs.answer().await.whole, "what ran was not cut");
    for caller in &mut waits {
        go_on.notify_one();
        let told: Answer = caller.answer().await;
        assert!(told.status == 200 && told.whole, "{} {}", told.status, told.text());
    }
    assert_eq!((queued(&house), chats(&first)), (0, 3));
    let line = Arc::clone(house.gateway.state().pool().line());
    until("nothing of it is left", || {
        line.with(|queue, now| queue.seen(now).is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_gives_its_callers_their_part_of_a_backends_time() {
    let disk = names(&["a"]);
    let order = Arc::new(Mutex::new(Vec::<&str>::new()));
    let (bell, seen) = (Arc::new(Notify::new()), Arc::clone(&order));
    let rings = Arc::clone(&bell);
    let backend = Backend::scripted(move |it| {
        let body = String::from_utf8_lossy(&it.body).into_owned();
        let who = CALLERS.iter().find(|name| body.contains(**name));
        seen.lock().unwrap().extend(who);
        let answer = ok_json(r#"{"from":"it"}"#);
        lists(it, &disk, &disk)
            .unwrap_or_else(|| vec![Step::Wait(Arc::clone(&rings)), Step::Send(answer.into())])
    })
    .await;
    let house = before(&[("x", &backend)], |config, folder| {
        std::fs::write(folder.path().join("api_keys.txt"), keys()).unwrap();
        config.backends[0].parallel = one_at_a_time();
        let names = Some(vec![Pattern::new("bert")]);
        let weight = Weight::of_thousandths(4000).unwrap();
        config.rules.insert(0, Rule { names, weight, cloud: true, ..Rule::default() });
    })
    .await;
    let mut callers = vec![asks(&house, chat_of("carl", "carl")).await];
    until("the first", || (order.lock().unwrap().len() == 1).then_some(())).await;
    for count in 1..=32 {
        let name = if count % 2 == 0 { "anna" } else { "bert" };
        callers.push(asks(&house, chat_of(name, name)).await);
        in_line(&house, count).await;
    }
    // Each takes as long, about, so that the parts of time are parts of turns.
    for served in 1..=20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        bell.notify_one();
        until("the next", || (order.lock().unwrap().len() > served).then_some(())).await;
    }
    let order = order.lock().unwrap().clone();
    let turns = |name| order.iter().filter(|it| **it == name).count();
    // Four to one; an even share would be ten.
    assert!(turns("bert") >= 12 && turns("anna") >= 1, "{order:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_whose_list_is_another_each_time_is_asked_no_more_than_others() {
    let count = Arc::new(AtomicUsize::new(0));
    let changes = Backend::scripted(move |seen| {
        let path = seen.line().split(' ').nth(1).unwrap().to_owned();
        let number = count.fetch_add(1, Ordering::Relaxed);
        let model = |name: String| format!(r#"{{"name":"{name}","model":"{name}"}}"#);
        let mut models = vec![model("a".to_owned()), model(format!("only-{number}"))];
        models.extend(number.is_multiple_of(2).then(|| model("sometimes".to_owned())));
        let body = match path.as_str() {
            "/api/tags" | "/api/ps" => format!(r#"{{"models":[{}]}}"#, models.join(",")),
            "/api/version" => r#"{"version":"1"}"#.to_owned(),
            _ => r#"{"from":"changes"}"#.to_owned(),
        };
        vec![Step::Send(ok_json(&body).into())]
    })
    .await;
    let steady = server("steady", &names(&["b"]), &names(&[])).await;
    let house = before(&[("x", &changes), ("y", &steady)], |_, _| {}).await;
    heard(&house).await;
    for _ in 0..100 {
        // What it has each time is had from it, and of the rest it says itself what there is.
        assert_eq!(from(&house.ask(chat("a")).await), "changes");
        let told = house.ask(chat("sometimes")).await;
        assert!(matches!(told.status, 200 | 404), "{}", told.status);
        assert_eq!(from(&house.ask(chat("b")).await), "steady");
    }
    let asked = changes.asked_by_the_gate();
    let asked = asked.iter().filter(|it| it.line().contains("/api/tags")).count();
    assert!(asked < 20, "{asked} lists were asked for");
}
