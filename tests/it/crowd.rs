//! More connections than there may be.

use portcullis::config::{Config, Role, Roles};

use crate::house::{Backend, Caller, House, Step, chunk, get, post, stream_head, until};

const HEALTH: &str = "GET /_portcullis/health HTTP/1.1\r\nHost: gate\r\n\r\n";

async fn house(backend: &Backend, change: impl FnOnce(&mut Config)) -> House {
    House::with(backend, |config, _| change(config)).await
}

/// A connection that has its place: it was served, and stays.
async fn placed(house: &House) -> Caller {
    let mut caller = house.connect().await;
    caller.send(get("/api/tags")).await;
    assert_eq!(caller.answer().await.status, 200);
    caller
}

/// Asks until there is a place again.
async fn served_again(house: &House) {
    for _ in 0..1000 {
        if house.get("/api/tags").await.status == 200 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("there is no place again");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_is_told_so_and_the_others_are_served_on() {
    let backend = Backend::ok().await;
    let house = house(&backend, |config| config.max_connections = 2).await;
    let (mut first, second) = (placed(&house).await, placed(&house).await);
    let mut third = house.connect().await;
    third.send(get("/api/tags")).await;
    let told = third.answer().await;
    assert_eq!((told.status, told.code().as_str()), (503, "overloaded"));
    assert_eq!((told.header("retry-after"), told.header("connection")), (Some("1"), Some("close")));
    assert_eq!(told.header("x-should-retry"), Some("true"));
    assert!(third.is_closed().await);
    first.send(get("/api/tags")).await;
    assert_eq!(first.answer().await.status, 200);
    let lines = house.log.wait_for(4).await;
    assert_eq!(lines[2]["outcome"], "refused:overloaded", "{}", lines[2]);
    drop(second);
    served_again(&house).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_crowd_the_health_check_is_answered_and_a_stream_runs_on() {
    let backend = Backend::scripted(|_| {
        let begun = stream_head("application/x-ndjson") + &chunk("first\n");
        vec![Step::Send(begun.into()), Step::AwaitClose]
    })
    .await;
    let house = house(&backend, |config| config.max_connections = 1).await;
    let mut streaming = house.connect().await;
    streaming.send(post("/api/chat", "{}")).await;
    assert!(streaming.sees_content("first\n").await);
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(house.connect().await);
    }
    assert_eq!(house.ask(HEALTH).await.status, 200);
    assert_eq!(house.get("/api/tags").await.code(), "overloaded");
    // Who came first has gone to make place, without a word.
    assert!(crowd.remove(0).is_closed().await);
    assert_eq!((house.gateway.in_flight(), backend.connections()), (1, (1, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_its_own_limit_and_a_trusted_proxy_none() {
    let backend = Backend::ok().await;
    let one = house(&backend, |config| config.max_connections_per_address = 1).await;
    let only = placed(&one).await;
    assert_eq!(one.get("/api/tags").await.code(), "overloaded");
    drop(only);
    served_again(&one).await;

    let proxied = house(&backend, |config| {
        config.max_connections_per_address = 1;
        config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let _many = [placed(&proxied).await, placed(&proxied).await, placed(&proxied).await];
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_crowd_who_looks_after_the_gate_can_ask_it() {
    let backend = Backend::ok().await;
    let house = house(&backend, |config| {
        config.max_connections = 1;
        config.admin = Some("127.0.0.1:0".parse().unwrap());
        config.roles = Roles::new(Role::Admin, Vec::new());
    })
    .await;
    let _only = placed(&house).await;
    assert_eq!(house.get("/api/tags").await.code(), "overloaded");
    let mut desk = Caller::connect(house.admin.unwrap()).await;
    desk.send(get("/api/v1/running").replace("Host: gate", "Host: 127.0.0.1")).await;
    assert_eq!(desk.answer().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_the_limit_and_forgets_nobody() {
    let backend = Backend::ok().await;
    let house = house(&backend, |config| config.max_connections = 1).await;
    let first = placed(&house).await;
    let mut config = house.gateway.state().config().clone();
    config.max_connections = 2;
    house.gateway.reload(config).unwrap();
    let second = placed(&house).await;
    assert_eq!(house.get("/api/tags").await.code(), "overloaded");
    drop((first, second));
    served_again(&house).await;
    until("nothing in flight", || (house.gateway.in_flight() == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_say_nothing_or_half_a_head_are_all_closed_and_the_others_are_served() {
    let backend = Backend::ok().await;
    let house = house(&backend, |config| {
        config.timeouts.header = std::time::Duration::from_millis(500);
    })
    .await;
    let mut silent = Vec::new();
    for number in 0..300 {
        let mut caller = house.connect().await;
        if number % 2 == 0 {
            caller.send("GET /api/tags HTTP/1.1\r\nHost: ga").await;
        }
        silent.push(caller);
    }
    assert_eq!(house.get("/api/tags").await.status, 200);
    for mut caller in silent {
        let told = caller.rest().await;
        assert!(told.is_empty() || told.starts_with(b"HTTP/1.1 408 "), "{told:?}");
    }
}
