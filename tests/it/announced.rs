//! Connections that a proxy of the transport layer announces.

use std::time::Duration;

use portcullis::config::Config;

use crate::events::events;
use crate::house::{Backend, Caller, House, get};

const V1: &str = "PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n";

/// A gate for which this machine is such a proxy.
async fn house(backend: &Backend, change: impl FnOnce(&mut Config)) -> House {
    House::with(backend, |config, _| {
        config.proxy_protocol_from = vec!["127.0.0.0/8".parse().unwrap()];
        change(config);
    })
    .await
}

/// Version 2: 192.0.2.7 with the command PROXY, or LOCAL.
fn v2(command: u8) -> Vec<u8> {
    let begins = b"\r\n\r\n\0\r\nQUIT\n";
    let addresses = [192, 0, 2, 7, 10, 0, 0, 1, 0xdc, 0x04, 1, 0xbb];
    [&begins[..], &[command, 0x11, 0, 12], &addresses].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_listed_proxy_announces_is_the_caller() {
    let backend = Backend::ok().await;
    let house = house(&backend, |_| {}).await;
    for (number, (header, client)) in [
        (V1.as_bytes().to_vec(), "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n".to_vec(), "2001:db8::1"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (v2(0x21), "192.0.2.7"),
        (v2(0x20), "127.0.0.1"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut caller = house.connect().await;
        caller.send([&header, get("/api/tags").as_bytes()].concat()).await;
        assert_eq!(caller.answer().await.status, 200, "{header:?}");
        // The header stands before the connection, not before each request.
        caller.send(get("/api/tags")).await;
        assert_eq!(caller.answer().await.status, 200, "{header:?}");
        let lines = house.log.wait_for(2 * number + 2).await;
        assert_eq!(lines[2 * number + 1]["client"], client);
        let seen = backend.wait_for_request(2 * number + 2).await;
        assert_eq!(seen.header("x-forwarded-for").as_deref(), Some(client));
        assert_eq!(seen.header("x-real-ip").as_deref(), Some(client));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_that_may_have_ended_tls_is_not_told_of_as_plain_http() {
    let events = events();
    let backend = Backend::ok().await;
    let house = house(&backend, |_| {}).await;
    let from_afar = V1.replace("192.0.2.7", "203.0.114.77");
    assert_eq!(house.ask(from_afar + &get("/api/tags")).await.status, 200);
    assert_eq!(house.log.wait_for(1).await[0]["client"], "203.0.114.77");
    let text = events.text();
    let told =
        text.lines().find(|line| line.contains("over plain HTTP") && line.contains(".114.77"));
    assert_eq!(told, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_comes_in_pieces_is_one() {
    let backend = Backend::ok().await;
    let house = house(&backend, |_| {}).await;
    let mut caller = house.connect().await;
    caller.socket.set_nodelay(true).unwrap();
    for byte in [V1.as_bytes(), get("/api/tags").as_bytes()].concat() {
        caller.send([byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(caller.answer().await.status, 200);
    assert_eq!(house.log.wait_for(1).await[0]["client"], "192.0.2.7");
}

async fn closed(mut caller: Caller, bytes: &[u8]) {
    caller.send(bytes).await;
    assert!(caller.is_closed().await, "{bytes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_header_is_closed_with_a_line_and_nothing_at_all_without() {
    let backend = Backend::ok().await;
    let house = house(&backend, |config| {
        config.timeouts.header = Duration::from_millis(300);
    })
    .await;
    closed(house.connect().await, get("/api/tags").as_bytes()).await;
    closed(house.connect().await, b"PROXY TCP4 192.0.2.7 10.0.0.1 56324\r\n").await;
    closed(house.connect().await, b"PROXY TCP4 192.0.2.7 ").await;
    house.log.wait_for(3).await;
    drop(house.connect().await);
    let lines = house.lines().await;
    let outcomes: Vec<_> = lines.iter().map(|line| line["outcome"].as_str().unwrap()).collect();
    let (bad, late) = ("refused:bad_request", "refused:request_timeout");
    assert_eq!(outcomes, [bad, bad, late]);
    assert!(lines.iter().all(|line| line["client"] == "127.0.0.1"), "{lines:?}");
    assert!(backend.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_header_is_garbage() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| {
        config.proxy_protocol_from = vec!["192.0.2.0/24".parse().unwrap()];
    })
    .await;
    for header in [V1.as_bytes().to_vec(), v2(0x21)] {
        let request = [&header, get("/api/tags").as_bytes()].concat();
        assert_eq!(house.ask(request).await.status, 400, "{header:?}");
    }
    assert_eq!(house.get("/api/tags").await.status, 200);
    assert_eq!(backend.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_per_address_is_the_announced_callers() {
    let backend = Backend::ok().await;
    let house = house(&backend, |config| config.max_connections_per_address = 1).await;
    let from = |address: &str| V1.replace("192.0.2.7", address) + &get("/api/tags");
    let (mut first, mut second) = (house.connect().await, house.connect().await);
    for (caller, address) in [(&mut first, "192.0.2.7"), (&mut second, "192.0.2.8")] {
        caller.send(from(address)).await;
        assert_eq!(caller.answer().await.status, 200);
    }
    let told = house.ask(from("192.0.2.7")).await;
    assert_eq!((told.status, told.code().as_str()), (503, "overloaded"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_does_not_wait_for_a_header() {
    let backend = Backend::ok().await;
    let house = house(&backend, |config| config.timeouts.header = Duration::from_secs(600)).await;
    let mut served = house.connect().await;
    served.send(V1.to_owned() + &get("/api/tags")).await;
    assert_eq!(served.answer().await.status, 200);
    let (silent, mut half) = (house.connect().await, house.connect().await);
    half.send("PROXY TCP4 ").await;
    let shutdown = house.shutdown(Duration::ZERO, Duration::from_secs(600));
    tokio::time::timeout(Duration::from_secs(10), shutdown).await.expect("2 s were promised");
    drop((silent, half));
}
