//! Tests of the choice between backends; nobody listens there.

use std::time::Duration;

use http::{HeaderValue, Method};
use proptest::prelude::*;

use super::*;
use crate::config;
use crate::pool::BOUNDS;
use crate::pool::health::Finding;
use crate::pool::line::Line;

const VIA: HeaderValue = HeaderValue::from_static("1.1 gate");

/// A backend with these models on disk, if it told, and these in memory.
async fn backend(name: &str, has: Option<&[&str]>, loaded: &[&str]) -> Arc<Backend> {
    of_kind(name, BackendKind::Ollama, 1000, has, loaded).await
}

async fn of_kind(
    name: &str,
    kind: BackendKind,
    weight: u32,
    has: Option<&[&str]>,
    loaded: &[&str],
) -> Arc<Backend> {
    let mut written = config::Config::builtin().backends.remove(0);
    (written.name, written.kind) = (name.to_owned(), kind);
    written.weight = config::Weight::of_thousandths(weight).unwrap();
    let backend = Backend::new(&written, &[], (&Arc::new(Line::new(BOUNDS)), &VIA)).unwrap();
    let now = Instant::now();
    if let Some(has) = has {
        let has = has.iter().map(|it| (model(it), false)).collect();
        backend.live.listed.newest(now, async { Some(Some(has)) }).await;
    }
    let loaded = loaded.iter().map(|it| (model(it), None)).collect();
    backend.live.loaded.newest(now, async { Some(loaded) }).await;
    Arc::new(backend)
}

fn model(text: &str) -> ModelName {
    ModelName::parse(text).unwrap()
}

fn asked(path: &str) -> Asked {
    let method = if path == "/api/tags" { Method::GET } else { Method::POST };
    Asked::find(&method, path, &[]).unwrap()
}

/// The names of the candidates for a chat.
fn order(backends: &[Arc<Backend>], wants: &str) -> Result<Vec<String>, Nobody> {
    order_at("/api/chat", backends, wants)
}

fn order_at(path: &str, backends: &[Arc<Backend>], wants: &str) -> Result<Vec<String>, Nobody> {
    let (asked, model) = (asked(path), ModelName::parse(wants).ok());
    let wanted = Wanted { asked: &asked, model: model.as_ref(), conversation: 7 };
    let candidates = candidates(backends, &wanted, Instant::now())?;
    Ok(candidates.iter().map(|it| it.name().to_string()).collect())
}

#[tokio::test]
async fn who_has_the_model_goes_before_who_may_have_it_and_who_has_not_never() {
    let backends = [
        backend("without", Some(&["b"]), &[]).await,
        backend("silent", None, &[]).await,
        backend("with", Some(&["a"]), &[]).await,
    ];
    assert_eq!(order(&backends, "A:latest").unwrap(), ["with"]);
    assert_eq!(order(&backends, "c").unwrap(), ["silent"]);
    let others = [Arc::clone(&backends[0]), backend("neither", Some(&["d"]), &[]).await];
    assert_eq!(order(&others, "c"), Err(Nobody::HasIt));
    assert_eq!(order(&backends[..1], "c").unwrap(), ["without"], "its own answer is the answer");
    assert_eq!(order_at("/api/tags", &backends[..1], "").unwrap(), ["without"]);
}

#[tokio::test]
async fn memory_goes_before_idleness_and_idleness_before_affinity() {
    let backends = [
        backend("loaded", Some(&["a", "b"]), &["a"]).await,
        backend("idle", Some(&["a", "b"]), &[]).await,
    ];
    for _ in 0..5 {
        backends[0].begin();
    }
    assert_eq!(order(&backends, "a").unwrap(), ["loaded", "idle"]);
    assert_eq!(order(&backends, "b").unwrap(), ["idle", "loaded"]);
    for _ in 0..6 {
        backends[1].begin();
    }
    assert_eq!(order(&backends, "b").unwrap(), ["loaded", "idle"]);
}

#[tokio::test]
async fn load_is_in_relation_to_weight() {
    let has: Option<&[&str]> = Some(&["a"]);
    let backends = [
        of_kind("strong", BackendKind::Ollama, 4000, has, &[]).await,
        of_kind("weak", BackendKind::Ollama, 1000, has, &[]).await,
    ];
    for _ in 0..3 {
        backends[0].begin();
    }
    backends[1].begin();
    assert_eq!(order(&backends, "a").unwrap()[0], "strong");
    backends[0].begin();
    backends[0].begin();
    assert_eq!(order(&backends, "a").unwrap()[0], "weak");
}

#[tokio::test]
async fn only_what_is_under_v1_goes_to_the_kind_openai() {
    let has: Option<&[&str]> = Some(&["a"]);
    let backends = [of_kind("cpp", BackendKind::OpenAi, 1000, has, &[]).await];
    assert_eq!(order_at("/v1/chat/completions", &backends, "a").unwrap(), ["cpp"]);
    assert_eq!(order(&backends, "a"), Err(Nobody::Speaks));
    assert_eq!(order_at("/api/tags", &backends, ""), Err(Nobody::Speaks));
    let both = [backends[0].clone(), backend("ollama", Some(&["b"]), &[]).await];
    // Only the one that does not speak it has it.
    assert_eq!(order(&both, "a"), Err(Nobody::HasIt));
}

#[tokio::test]
async fn what_is_asked_of_no_model_goes_to_one_and_the_same() {
    let backends = [backend("first", Some(&[]), &[]).await, backend("second", None, &[]).await];
    assert_eq!(order_at("/api/tags", &backends, "").unwrap()[0], "first");
    let manage = ["/api/pull", "/api/create", "/api/blobs/sha256:00"];
    for path in manage {
        assert_eq!(order_at(path, &backends, "a").unwrap(), ["first"], "{path}");
    }
    backends[0].find(Finding::NoConnection);
    assert_eq!(order_at("/api/tags", &backends, "").unwrap(), ["second"]);
    // A model must not come to be on another machine than it was meant for.
    for path in manage {
        assert_eq!(order_at(path, &backends, "a").unwrap(), ["first"], "{path}");
    }
    backends[0].drain(true);
    assert_eq!(order_at("/api/pull", &backends, "a"), Err(Nobody::IsThere));
}

#[tokio::test]
async fn whoever_is_out_is_asked_only_where_nobody_else_can_be() {
    let has: Option<&[&str]> = Some(&["a"]);
    let backends = [backend("x", has, &[]).await, backend("y", has, &[]).await];
    backends[0].find(Finding::NoConnection);
    assert_eq!(order(&backends, "a").unwrap(), ["y"]);
    backends[1].find(Finding::NoConnection);
    assert_eq!(order(&backends, "a").unwrap().len(), 2);
    // But not in maintenance.
    backends[0].drain(true);
    assert_eq!(order(&backends, "a").unwrap(), ["y"]);
    backends[1].drain(true);
    assert_eq!(order(&backends, "a"), Err(Nobody::IsThere));
    backends[0].drain(false);
    assert_eq!(order(&backends, "a").unwrap(), ["x"]);
}

#[tokio::test]
async fn of_those_that_come_at_once_one_shows_how_a_backend_is_and_the_others_go_on() {
    let has: Option<&[&str]> = Some(&["a"]);
    let backends = [backend("x", has, &[]).await, backend("y", has, &[]).await];
    let long_ago = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
    let goes_to = |(rest, watch): (&[Arc<Backend>], Option<Watch>)| {
        (rest.iter().map(|it| it.name().to_string()).collect::<Vec<_>>(), watch)
    };
    backends[0].live.health().find(Finding::NoConnection, long_ago, 0);
    backends[0].find(Finding::ProbeAnswered);
    // Both were put in this order before either of them went.
    let (first, watch) = goes_to(tried(&backends));
    assert_eq!((first, watch.is_some()), (vec!["x".to_owned(), "y".to_owned()], true));
    let (second, none) = goes_to(tried(&backends));
    assert_eq!((second, none.is_none()), (vec!["y".to_owned()], true));
    // Where nobody is well there is nobody to go to instead.
    backends[1].find(Finding::NoConnection);
    let (both, none) = goes_to(tried(&backends));
    assert_eq!((both.len(), none.is_none()), (2, true));
    // It left without an answer: another shows it.
    backends[0].unwatch(&watch.unwrap(), None);
    backends[1].find(Finding::Answer);
    assert!(tried(&backends).1.is_some());
}

#[tokio::test]
async fn a_cloud_model_may_be_had_by_any_ollama_and_by_no_other_kind() {
    let has: Option<&[&str]> = Some(&["a"]);
    let backends = [
        backend("ollama", has, &[]).await,
        of_kind("cpp", BackendKind::OpenAi, 1000, has, &[]).await,
    ];
    assert_eq!(order_at("/v1/messages", &backends, "big:cloud").unwrap(), ["ollama"]);
}

/// The backend that each of many conversations stays with.
fn placed(backends: &[(&str, u64)], count: u64) -> Vec<usize> {
    let best = |conversation| {
        let score = |at: &usize| affinity(conversation, backends[*at].0, backends[*at].1);
        (0..backends.len()).min_by_key(score).unwrap()
    };
    (0..count).map(|it| best(mixed(it))).collect()
}

#[test]
fn conversations_are_spread_by_weight() {
    let placed = placed(&[("a", 1_000_000), ("b", 3_000_000)], 10_000);
    let on_b = placed.iter().filter(|at| **at == 1).count();
    assert!((7_200..7_800).contains(&on_b), "{on_b} of 10000 instead of about 7500");
}

proptest! {
    #[test]
    fn a_backend_that_goes_takes_only_its_own_conversations(count in 2..8_usize, gone in 0..8_usize) {
        let names: Vec<_> = (0..count).map(|at| format!("gpu-{at}")).collect();
        let all: Vec<_> = names.iter().map(|it| (it.as_str(), 1_000_000)).collect();
        let gone = gone % count;
        let mut rest = all.clone();
        rest.remove(gone);
        let (before, after) = (placed(&all, 300), placed(&rest, 300));
        for (before, after) in before.iter().zip(after) {
            if *before != gone {
                prop_assert_eq!(all[*before].0, rest[after].0);
            }
        }
    }
}
