//! How much somebody may have, and how much at once: refusals, headers, and what is left.

use std::sync::Arc;
use std::time::Duration;

use portcullis::config::{Config, Given, Measure, Role, load};
use portcullis::store::{Actor, KeyDetails, Ledger, MOST_WAITING, Store, UsageRow};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::house::{
    Answer, Backend, Caller, House, KEY, PATIENCE, Step, chunk, get, ok_json, post, stream_head,
    until,
};
use crate::ledger::rows;
use crate::usage;

/// The parts of a configuration that are about limits.
pub fn with_limits(text: &str) -> impl FnOnce(&mut Config, &tempfile::TempDir) + use<> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.toml");
    std::fs::write(&file, format!("api_keys = 'k'\n{text}")).unwrap();
    let read = load(&Given { file: Some(file), ..Given::default() });
    let read = read.unwrap_or_else(|told| panic!("{told}")).config;
    move |config, _| {
        if !read.rules.is_empty() {
            config.rules = read.rules;
        }
        config.groups = read.groups;
        config.keys = read.keys;
        config.limits = read.limits;
    }
}

fn chat(model: &str) -> String {
    post("/api/chat", &format!("{{\"model\":\"{model}\"}}"))
}

fn number(answer: &Answer, header: &str) -> u64 {
    answer.header(header).unwrap_or_else(|| panic!("{header}: {}", answer.head)).parse().unwrap()
}

async fn me(house: &House) -> Value {
    house.get("/_portcullis/me").await.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_hundred_at_once_ten_pass_a_limit_of_ten() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, with_limits("[[rule]]\nrequests_per_minute = 10\n")).await;
    // Connected before, so that they ask within the 6 s after which there is room for one more.
    let mut callers = Vec::new();
    for _ in 0..200 {
        callers.push(house.connect().await);
    }
    let mut all = JoinSet::new();
    for mut caller in callers {
        all.spawn(async move {
            caller.send(chat("m")).await;
            caller.answer().await
        });
    }
    let answers = all.join_all().await;
    let passed: Vec<_> = answers.iter().filter(|it| it.status == 200).collect();
    assert_eq!(passed.len(), 10);
    assert_eq!(backend.seen().len(), 10);
    let mut left: Vec<_> =
        passed.iter().map(|it| number(it, "x-ratelimit-remaining-requests")).collect();
    left.sort_unstable();
    assert_eq!(left, (0..10).collect::<Vec<_>>());
    for refused in answers.iter().filter(|it| it.status != 200) {
        assert_eq!((refused.status, refused.code().as_str()), (429, "rate_limited"));
        assert!((1..=6).contains(&number(refused, "retry-after")));
        assert_eq!(refused.header("x-should-retry"), Some("true"));
        assert_eq!(number(refused, "x-ratelimit-limit-requests"), 10);
        assert_eq!(number(refused, "x-ratelimit-remaining-requests"), 0);
        assert_eq!(refused.header("x-ratelimit-limit-tokens"), None);
        let says = refused.json()["error"].as_str().unwrap().to_owned();
        assert!(says.starts_with("requests_per_minute is 10 for anna; try again in "), "{says}");
    }
}

/// A backend whose answers to `/api/chat` end when they are told to.
async fn open_ended() -> Backend {
    Backend::scripted(|seen| {
        if seen.line().starts_with("GET ") {
            return vec![Step::Send(ok_json("{\"models\":[]}").into_bytes())];
        }
        let line = "{\"message\":{\"content\":\"a\"},\"done\":false}\n";
        let begins = stream_head("application/x-ndjson") + &chunk(line);
        vec![Step::Send(begins.into_bytes()), Step::AwaitClose]
    })
    .await
}

async fn runs(house: &House, request: String) -> Caller {
    let mut caller = house.connect().await;
    caller.send(request).await;
    assert!(caller.sees("\"done\":false").await);
    caller
}

#[tokio::test(flavor = "multi_thread")]
async fn one_too_many_at_once_waits_until_another_has_left() {
    let backend = open_ended().await;
    let house = House::with(&backend, with_limits("[[rule]]\nconcurrent = 2\n")).await;
    let first = runs(&house, chat("m")).await;
    let _second = runs(&house, chat("m")).await;
    let refused = house.ask(chat("m")).await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "too_many_concurrent"));
    assert_eq!(refused.header("x-should-retry"), Some("true"));
    assert!(number(&refused, "retry-after") >= 1);
    assert_eq!(
        refused.json()["error"],
        "concurrent is 2 for anna; try again when something that runs has ended"
    );
    let told = me(&house).await;
    assert_eq!(told["limits"], json!({"concurrent": 2}));
    assert_eq!(told["used"], json!({"concurrent": 2}));
    assert_eq!(told["left"], json!({"concurrent": 0}));
    assert!(told.get("usage").is_none(), "nothing is kept: {told}");
    // Lists are no work.
    assert_eq!(house.get("/api/tags").await.status, 200);
    drop(first);
    backend.wait_for_closed(1).await;
    until("room for one", || (house.gateway.in_flight() < 2).then_some(())).await;
    let _third = runs(&house, chat("m")).await;
    assert_eq!(house.ask(chat("m")).await.status, 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_one_after_the_other_over_several_connections_is_one_at_a_time() {
    let head = stream_head("application/x-ndjson");
    let whole =
        head + &chunk("{\"done\":true,\"prompt_eval_count\":3,\"eval_count\":4}\n") + "0\r\n\r\n";
    let backend = Backend::scripted(move |_| vec![Step::Send(whole.clone().into())]).await;
    let house = House::with(&backend, with_limits("[[rule]]\nconcurrent = 1\n")).await;
    let mut callers = [house.connect().await, house.connect().await, house.connect().await];
    for _ in 0..300 {
        for caller in &mut callers {
            caller.send(chat("m")).await;
            assert_eq!(caller.answer().await.status, 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_a_role_counts_after_a_reload_what_that_role_used_alone() {
    let backend = of_seven_tokens().await;
    let text = "[[limit]]\nroles = ['operator']\nper = 'all'\ntokens_per_day = 100\n";
    let change = |config: &mut Config, own: &tempfile::TempDir| {
        with_limits(text)(config, own);
        config.data_dir = Some(own.path().join("data"));
    };
    let house = House::with(&backend, change).await;
    let store = house.gateway.managed().unwrap().store();
    let made = |name: &str, role| {
        let details = KeyDetails { name: name.to_owned(), role: Some(role), ..Default::default() };
        let by = Actor { who: "cli:tester".to_owned(), client: None };
        store.create_key(details, &by).unwrap().1
    };
    let keys = [made("boss", Role::Operator), made("guest", Role::User)];
    let boss = keys[0].as_str();
    for key in &keys {
        let asked = chat("m").replace(KEY, key.as_str());
        assert_eq!(house.ask(asked).await.status, 200);
    }
    let used = async || {
        let told = house.ask(get("/_portcullis/me").replace(KEY, boss)).await.json();
        told["used"]["tokens_per_day"].clone()
    };
    assert_eq!(used().await, 7);
    house.gateway.flush(Duration::from_secs(5));
    house.gateway.reload(house.gateway.state().config().clone()).unwrap();
    assert_eq!(used().await, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_limits_the_tightest_is_told_and_nothing_is_taken_of_the_others() {
    let backend = Backend::ok().await;
    let text = "[[rule]]\nrequests_per_minute = 5\n\
                [[limit]]\nmodels = ['big*']\nper = 'model'\nrequests_per_minute = 2\n\
                [groups]\nstudents = ['a*']\n\
                [[limit]]\nper = 'group'\nrequests_per_minute = 4\n";
    let house = House::with(&backend, with_limits(text)).await;
    for (model, status, left) in [("big:1b", 200, 1), ("BIG:1b", 200, 0), ("big:1b", 429, 0)] {
        let answer = house.ask(chat(model)).await;
        assert_eq!(answer.status, status, "{model}");
        assert_eq!(number(&answer, "x-ratelimit-remaining-requests"), left, "{model}");
        if status == 429 {
            assert_eq!(number(&answer, "x-ratelimit-limit-requests"), 2);
            let says = answer.json()["error"].to_string();
            assert!(says.contains("for all who use big:1b with big*; try again in"), "{says}");
        }
    }
    // The third took nothing of the group.
    for (model, status, left) in [("small", 200, 1), ("big:2b", 200, 0), ("small", 429, 0)] {
        let answer = house.ask(chat(model)).await;
        assert_eq!(answer.status, status, "{model}");
        assert_eq!(number(&answer, "x-ratelimit-remaining-requests"), left, "{model}");
    }
    let told = me(&house).await;
    let of_models = json!([{"models": "big*", "per": "model", "requests_per_minute": 2}]);
    assert_eq!(told["limits"], json!({"requests_per_minute": 4, "models": of_models}));
    assert_eq!(told["used"]["requests_per_minute"], 4);
    let of_models = json!([{"models": "big*", "per": "model"}]);
    assert_eq!(told["left"], json!({"requests_per_minute": 0, "models": of_models}));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_model_that_a_limit_names_is_told() {
    let text = "[[limit]]\nper = 'model'\nmodels = ['big:1b', 'library/small', 'other*']\n\
                requests_per_minute = 3\n";
    let backend = Backend::ok().await;
    let house = House::with(&backend, with_limits(text)).await;
    for model in ["big:1b", "small:latest", "small", "other"] {
        assert_eq!(house.ask(chat(model)).await.status, 200, "{model}");
    }
    let told = me(&house).await;
    let of = |what: &str| told[what]["models"][0]["requests_per_minute"].as_u64();
    assert_eq!([of("limits"), of("used"), of("left")], [Some(3), Some(2), Some(1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_limits_is_told_of_none_and_a_reload_forgets_nothing() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let answer = house.ask(chat("m")).await;
    assert!(!answer.head.to_ascii_lowercase().contains("x-ratelimit"), "{}", answer.head);
    assert_eq!(me(&house).await["limits"], json!({}));
    let reload = |number: u32| {
        let mut config = house.gateway.state().config().clone();
        let text = format!("[[rule]]\nrequests_per_minute = {number}\n");
        with_limits(&text)(&mut config, &tempfile::tempdir().unwrap());
        house.gateway.reload(config).unwrap();
    };
    reload(1);
    assert_eq!(house.ask(chat("m")).await.status, 200);
    assert_eq!(house.ask(chat("m")).await.status, 429);
    reload(1);
    assert_eq!(house.ask(chat("m")).await.status, 429, "what was used is still used");
    reload(3);
    assert_eq!(house.ask(chat("m")).await.status, 200, "another number counts at once");
    assert_eq!(me(&house).await["used"], json!({"requests_per_minute": 2}));
    assert_eq!(me(&house).await["left"], json!({"requests_per_minute": 1}));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_goes_on_when_its_limits_are_lowered_below_it() {
    let next = Arc::new(Notify::new());
    let ends = Arc::clone(&next);
    let backend = Backend::scripted(move |seen| {
        if seen.line().starts_with("GET ") {
            return vec![Step::Send(ok_json("{\"models\":[]}").into_bytes())];
        }
        let line = "{\"message\":{\"content\":\"a\"},\"done\":false}\n";
        let last = "{\"done\":true,\"prompt_eval_count\":30,\"eval_count\":50}\n";
        let begins = stream_head("application/x-ndjson") + &chunk(line);
        let rest = chunk(line) + &chunk(last) + "0\r\n\r\n";
        vec![Step::Send(begins.into()), Step::Wait(Arc::clone(&ends)), Step::Send(rest.into())]
    })
    .await;
    let house = House::with(&backend, with_limits("[[rule]]\ntokens_per_day = 1000\n")).await;
    let mut running = runs(&house, chat("m")).await;
    let mut config = house.gateway.state().config().clone();
    let lower = "[[rule]]\ntokens_per_day = 10\nconcurrent = 1\nrequests_per_minute = 1\n";
    with_limits(lower)(&mut config, &tempfile::tempdir().unwrap());
    house.gateway.reload(config).unwrap();
    // It counts for who comes next.
    assert_eq!(house.ask(chat("m")).await.code(), "too_many_concurrent");
    next.notify_one();
    let answer = running.answer().await;
    assert!(answer.whole && answer.text().contains("\"done\":true"), "{}", answer.text());
    assert_eq!(house.ask(chat("m")).await.code(), "quota_exhausted");
    let told = me(&house).await;
    assert_eq!(
        (&told["used"]["tokens_per_day"], &told["left"]["tokens_per_day"]),
        (&80.into(), &0.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_is_told_what_they_used_also_who_has_no_limit() {
    let backend = of_seven_tokens().await;
    let house = House::with(&backend, |config, own| {
        config.data_dir = Some(own.path().join("data"));
        let keys = format!("{KEY} # anna\nkey-of-bert # bert\n");
        std::fs::write(config.api_keys.as_ref().unwrap(), keys).unwrap();
        // What is told of a month begins with it.
        let store = Arc::new(Store::open(&own.path().join("data")).unwrap());
        let settings = usage::settings();
        let ledger = Ledger::start(&store, settings).unwrap();
        let year = Duration::from_secs(365 * 24 * 3600);
        let old = usage::row(1, "anna", "chat");
        drop(ledger.post(UsageRow { time: old.time - year, ..old }));
        assert!(ledger.flush(PATIENCE));
    })
    .await;
    for _ in 0..3 {
        assert_eq!(house.ask(chat("m")).await.status, 200);
    }
    let told = me(&house).await;
    assert_eq!((&told["limits"], &told["left"]), (&json!({}), &json!({})));
    for period in ["today", "month"] {
        let sums = &told["usage"][period];
        let tokens = (&sums["prompt_tokens"], &sums["completion_tokens"]);
        assert_eq!((&sums["requests"], tokens), (&3.into(), (&9.into(), &12.into())), "{told}");
        assert!(sums["estimated"] == 0 && sums["backend_seconds"].is_number(), "{told}");
    }
    let other = house.ask(get("/_portcullis/me").replace(KEY, "key-of-bert")).await.json();
    assert_eq!(other["usage"]["month"]["requests"], 0, "{other}");
    // However many ask, each is told, or told nothing.
    let mut all = JoinSet::new();
    for _ in 0..50 {
        let mut caller = house.connect().await;
        all.spawn(async move {
            caller.send(get("/_portcullis/me")).await;
            caller.answer().await.json()["usage"].clone()
        });
    }
    let all = all.join_all().await;
    let is_right = |it: &Value| it.is_null() || it["today"]["requests"] == 3;
    assert!(all.iter().all(is_right) && all.iter().any(Value::is_object), "{all:?}");
    // A ledger that has not everything tells nothing.
    let (data, aside) = (house.file("data"), house.file("aside"));
    std::fs::rename(&data, &aside).unwrap();
    assert_eq!(house.ask(chat("m")).await.status, 200);
    let ledger = house.gateway.ledger().unwrap();
    until("trouble", || ledger.trouble()).await;
    let told = me(&house).await;
    assert!(told["usage"].is_null() && told.get("usage").is_some(), "{told}");
    std::fs::rename(&aside, &data).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_running_answer_may_still_cost_is_held() {
    let backend = open_ended().await;
    let house = House::with(&backend, with_limits("[[rule]]\ntokens_per_day = 50\n")).await;
    let asked = |most: u32| {
        post("/api/chat", &format!("{{\"model\":\"m\",\"options\":{{\"num_predict\":{most}}}}}"))
    };
    let first = runs(&house, asked(20)).await;
    let second = runs(&house, asked(1000)).await;
    let refused = house.ask(asked(1)).await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "rate_limited"));
    assert_eq!(number(&refused, "x-ratelimit-limit-tokens"), 50);
    assert_eq!(number(&refused, "x-ratelimit-remaining-tokens"), 0);
    let says = refused.json()["error"].to_string();
    assert!(says.contains("tokens_per_day is 50 for anna; try again when something"), "{says}");
    drop((first, second));
    until("both have left", || (house.gateway.in_flight() == 0).then_some(())).await;
    runs(&house, asked(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_makes_of_a_request_is_held_and_kept() {
    let backend = open_ended().await;
    for (policy, options) in [
        ("num_predict = { force = 5 }, num_ctx = { max = 4096 }", "num_ctx=4096"),
        ("num_predict = 'drop', num_ctx = { force = 2048 }", "num_ctx=2048"),
        ("num_predict = { max = 5 }, num_ctx = 'drop'", ""),
    ] {
        let text = format!("[[rule]]\ntokens_per_day = 50\npolicy = {{ {policy} }}\n");
        let change = |config: &mut Config, own: &tempfile::TempDir| {
            with_limits(&text)(config, own);
            config.data_dir = Some(own.path().join("data"));
        };
        let house = House::with(&backend, change).await;
        let asked = r#"{"model":"m","options":{"num_predict":1000,"num_ctx":65536}}"#;
        // The second is let in: nothing is held for what the first will not be.
        drop((
            runs(&house, post("/api/chat", asked)).await,
            runs(&house, post("/api/chat", asked)).await,
        ));
        let rows = until("two rows", || Some(rows(&house)).filter(|rows| rows.len() == 2)).await;
        let told: Vec<_> = rows.iter().map(|row| row.runner_options.clone()).collect();
        let expected = Some(options.to_owned()).filter(|it| !it.is_empty());
        assert_eq!(told, [expected.clone(), expected], "{policy}");
    }
}

/// Answers every chat with seven tokens.
async fn of_seven_tokens() -> Backend {
    let body = "{\"done\":true,\"prompt_eval_count\":3,\"eval_count\":4}";
    Backend::scripted(move |_| vec![Step::Send(ok_json(body).into_bytes())]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_day_may_cost_is_known_after_a_restart_and_after_a_reload() {
    let backend = of_seven_tokens().await;
    let data = tempfile::tempdir().unwrap();
    let limited = |number: u64| {
        let folder = data.path().to_owned();
        let limits = with_limits(&format!("[[rule]]\ntokens_per_day = {number}\n"));
        move |config: &mut Config, own: &tempfile::TempDir| {
            limits(config, own);
            config.data_dir = Some(folder);
        }
    };
    let house = House::with(&backend, limited(12)).await;
    for _ in 0..2 {
        assert_eq!(house.ask(chat("m")).await.status, 200);
    }
    let refused = house.ask(chat("m")).await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "quota_exhausted"));
    assert_eq!(me(&house).await["used"]["tokens_per_day"], 14);
    house.shutdown(Duration::ZERO, Duration::ZERO).await;

    let again = House::with(&backend, limited(12)).await;
    assert_eq!(me(&again).await["used"]["tokens_per_day"], 14);
    assert_eq!(again.ask(chat("m")).await.code(), "quota_exhausted");
    let mut config = again.gateway.state().config().clone();
    limited(20)(&mut config, &again.folder);
    again.gateway.reload(config).unwrap();
    assert_eq!(again.ask(chat("m")).await.status, 200);
    assert_eq!(me(&again).await["used"]["tokens_per_day"], 21);
    assert_eq!(again.ask(chat("m")).await.code(), "quota_exhausted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_gets_a_limit_while_the_gate_runs_has_used_what_it_used() {
    let backend = of_seven_tokens().await;
    let change = |config: &mut Config, own: &tempfile::TempDir| {
        config.data_dir = Some(own.path().join("data"));
    };
    let house = House::with(&backend, change).await;
    let by = Actor { who: "cli:tester".to_owned(), client: None };
    let store = Store::open_existing(&house.file("data")).unwrap();
    let details = KeyDetails { name: "bot".to_owned(), ..KeyDetails::default() };
    let (key, secret) = store.create_key(details, &by).unwrap();
    let ask = || house.ask(chat("m").replace(KEY, secret.as_str()));
    for _ in 0..2 {
        assert_eq!(ask().await.status, 200);
    }
    let limited = |number| {
        store
            .change_key(key.id, &by, move |it| {
                it.limits.set(Measure::TokensPerDay, number).unwrap();
            })
            .unwrap()
    };
    limited(14);
    let refused = ask().await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "quota_exhausted"));
    limited(15);
    assert_eq!(ask().await.status, 200);
    assert_eq!(ask().await.code(), "quota_exhausted");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nothing_can_be_kept_only_who_has_a_limit_waits() {
    let backend = of_seven_tokens().await;
    let limits = with_limits("[[rule]]\nnames = ['anna']\ntokens_per_day = 1000000\n");
    let house = House::with(&backend, |config, own| {
        limits(config, own);
        config.data_dir = Some(own.path().join("data"));
        let keys = format!("{KEY} # anna\nkey-of-bert # bert\n");
        std::fs::write(config.api_keys.as_ref().unwrap(), keys).unwrap();
    })
    .await;
    let (data, aside) = (house.file("data"), house.file("aside"));
    std::fs::rename(&data, &aside).unwrap();
    let ledger = house.gateway.ledger().unwrap();
    for number in 0..MOST_WAITING as u64 {
        drop(ledger.post(usage::row(number, "carl", "chat")));
    }
    assert!(ledger.is_full());
    let ready = || house.ask("GET /_portcullis/ready HTTP/1.1\r\nHost: g\r\n\r\n");
    until("trouble", || ledger.trouble()).await;
    assert!(ready().await.json()["alarms"].as_u64().unwrap() >= 1, "whoever looks is told");
    let bert = || house.ask(chat("m").replace(KEY, "key-of-bert"));
    let refused = house.ask(chat("m")).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "overloaded"));
    assert_eq!(refused.header("x-should-retry"), Some("true"));
    assert_eq!(bert().await.status, 200);
    std::fs::rename(&aside, &data).unwrap();
    until("room", || (!ledger.is_full()).then_some(())).await;
    assert_eq!(house.ask(chat("m")).await.status, 200);
    assert_eq!(ledger.lost(), 0);
    until("no trouble", || ledger.trouble().is_none().then_some(())).await;
    house.gateway.tend().await;
    assert_eq!(ready().await.json()["alarms"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leaves_is_charged_what_was_made_and_for_the_prompt() {
    let line = "{\"message\":{\"content\":\"a\"},\"done\":false}\n";
    let backend = Backend::scripted(move |seen| match seen.line().contains("/api/chat") {
        true => vec![
            Step::Send(stream_head("application/x-ndjson").into_bytes()),
            Step::Send(chunk(line).repeat(3).into_bytes()),
            Step::AwaitClose,
        ],
        false => vec![Step::AwaitClose],
    })
    .await;
    let limits = with_limits("[[rule]]\ntokens_per_day = 1000\n");
    let house = House::with(&backend, limits).await;
    let mut caller = runs(&house, chat("m")).await;
    assert!(caller.sees_content(&line.repeat(3)).await);
    drop(caller);
    until("nobody", || (house.gateway.in_flight() == 0).then_some(())).await;
    // 13 bytes of a body, and three tokens.
    assert_eq!(me(&house).await["used"]["tokens_per_day"], 3 + 13 / 4);
    let seen = backend.seen().len();
    let mut caller = house.connect().await;
    caller.send(post("/api/generate", "{\"model\":\"m\"}")).await;
    backend.wait_for_request(seen + 1).await;
    drop(caller);
    until("nobody", || (house.gateway.in_flight() == 0).then_some(())).await;
    assert_eq!(me(&house).await["used"]["tokens_per_day"], 3 + 2 * (13 / 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_fails_costs_no_tokens() {
    let backend = Backend::scripted(|_| vec![Step::Reset]).await;
    let house = House::with(&backend, with_limits("[[rule]]\ntokens_per_day = 1000\n")).await;
    assert_eq!(house.ask(chat("m")).await.status, 502);
    assert_eq!(me(&house).await["used"]["tokens_per_day"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_while_no_backend_can_be_reached_is_charged_nothing() {
    let backend = Backend::ok().await;
    let limits = with_limits("[[rule]]\ntokens_per_day = 1000\ngpu_seconds_per_day = 10\n");
    let house = House::with(&backend, |config, folder| {
        limits(config, folder);
        // An address that answers to nobody; the wait for it is the gate's own.
        config.backends[0].url = "http://192.0.2.1:9".parse().unwrap();
        config.timeouts.connect = Duration::from_millis(1200);
    })
    .await;
    assert_eq!(house.ask(chat("m")).await.status, 503);
    let used = me(&house).await["used"].clone();
    assert_eq!((&used["tokens_per_day"], &used["gpu_seconds_per_day"]), (&0.into(), &0.into()));
}
