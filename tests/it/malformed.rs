//! What a guard must refuse, because somebody behind it could read it in another way.

mod cases;

use cases::{CASES, Expect};

use crate::house::{Backend, House, find};

fn case(name: &str) -> Vec<u8> {
    CASES.iter().find(|case| case.0 == name).unwrap().2()
}

/// The statuses of all final answers in what came back.
fn statuses(bytes: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(bytes);
    let heads = text.match_indices("HTTP/1.1 ").map(|(at, _)| &text[at + 9..at + 12]);
    heads.filter_map(|digits| digits.parse().ok()).filter(|status| *status >= 200).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_be_read_in_two_ways_is_refused_once_and_the_connection_ends() {
    for times in [1, 2] {
        let backend = Backend::ok().await;
        let house = House::new(&backend).await;
        let refused: Vec<_> = CASES.iter().filter(|case| case.1 == Expect::Refuse).collect();
        for (number, (name, _, bytes)) in refused.iter().enumerate() {
            let mut caller = house.connect().await;
            caller.send(bytes().repeat(times)).await;
            // Ends only when the gate closes.
            let statuses = statuses(&caller.rest().await);
            let [status] = statuses[..] else { panic!("{name} x{times}: {statuses:?}") };
            assert!((400..600).contains(&status), "{name} x{times}: {status}");
            let log = house.log.wait_for(number + 1).await;
            assert_eq!(log.len(), number + 1, "{name} x{times}: one line");
            assert_eq!(log[number]["status"], status, "{name} x{times}");
        }
        let seen = backend.seen();
        assert!(seen.is_empty(), "reached the backend: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_served_leaves_the_connection_in_a_sane_state() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    for (name, _, bytes) in CASES.iter().filter(|case| case.1 == Expect::Accept) {
        for times in [1, 2] {
            let mut caller = house.connect().await;
            caller.send(bytes().repeat(times)).await;
            let first = caller.answer().await;
            assert!(matches!(first.status, 200 | 400 | 401), "{name}: {}", first.status);
            if first.status == 200 && times == 2 {
                assert_eq!(caller.answer().await.status, 200, "{name}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn te_identity_is_refused() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    assert_eq!(house.ask(case("te_identity")).await.status, 400);
    assert!(backend.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_become_no_headers() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    assert_eq!(house.ask(case("trailer_te")).await.status, 200);
    let seen = backend.wait_for_request(1).await;
    assert_eq!(
        (seen.body.as_slice(), seen.header("content-length")),
        (&b"A"[..], Some("1".into()))
    );
    assert!(!seen.head.to_lowercase().contains("x-trail") && !seen.head.contains("Basic"));
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_cannot_remove_what_the_gate_adds_nor_keep_what_it_drops() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    assert_eq!(house.ask(case("conn_xff")).await.status, 200);
    let seen = backend.wait_for_request(1).await;
    assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert!(seen.header("x-keep").is_none() && seen.header("connection").is_none());
    assert_eq!(house.ask(case("conn_auth")).await.status, 400, "two Authorization headers");
    assert_eq!(backend.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_request_comes_from_is_the_gates_to_say() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    assert_eq!(house.ask(case("xff_spoof")).await.status, 200);
    let seen = backend.wait_for_request(1).await;
    assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(seen.header("x-real-ip").as_deref(), Some("127.0.0.1"));
    assert!(!seen.head.contains("6.6.6.6") && !seen.head.contains("7.7.7.7"), "{}", seen.head);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_is_ignored_and_tunnels_nothing() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    for (name, answers) in [("upgrade_bogus_pipe", 2), ("h2c_upgrade", 1), ("ws_badver", 2)] {
        let before = backend.seen().len();
        let mut caller = house.connect().await;
        caller.send(case(name)).await;
        for _ in 0..answers {
            assert_eq!(caller.answer().await.status, 200, "{name}");
        }
        // Each request came by itself, with its own login checked.
        let seen = &backend.seen()[before..];
        assert_eq!(seen.len(), answers, "{name}");
        for seen in seen {
            let head = seen.head.to_lowercase();
            assert!(!head.contains("upgrade") && !head.contains("http2-settings"), "{head}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_hidden_in_a_body_stays_a_body() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    for name in ["get_body_pipe", "expect_get"] {
        let before = backend.seen().len();
        let mut caller = house.connect().await;
        caller.send(case(name)).await;
        assert_eq!(caller.answer().await.status, 200, "{name}");
        let seen = &backend.seen()[before..];
        assert_eq!(seen.len(), 1, "{name}");
        assert!(find(&seen[0].body, b"/api/version").is_some(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_method_cannot_be_put_in_by_a_header() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    assert_eq!(house.ask(case("override")).await.status, 200);
    let seen = backend.wait_for_request(1).await;
    assert!(seen.line().starts_with("POST ") && !seen.head.to_lowercase().contains("override"));
}
