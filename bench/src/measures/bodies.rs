//! The row about reading bodies: how fast what a chat says is found in it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use bytes::Bytes;
use http::Method;
use portcullis::api::Asked;
use portcullis::call::reading::Reading;

use super::{Bench, Goal, Limit, Line, Outcome};
use crate::peer::MODEL;

/// What 1 GB/s comes to.
const SLOWEST: f64 = 1000.0;
const PLAIN: &str = "counting the quotation marks";

pub(super) fn bodies(bench: &Bench) -> anyhow::Result<Outcome> {
    let asked = Asked::find(&Method::POST, "/api/chat", &[]).map_err(|error| anyhow!("{error}"))?;
    let bodies = [
        ("a chat of 100 KiB", Bytes::from(chat(64, 1550, 0))),
        ("20 MB with 4 images", Bytes::from(chat(2, 10_000, 5_000_000))),
    ];
    let mut outcome = Outcome {
        row: "bodies",
        title: "What a chat says, found in its body".into(),
        how:
            "In this process, by the code of the gate's path in the `release` profile: the model, \
              the options and whatever else rules ask for, in a chat of 64 messages with line ends \
              and quotation marks, and in one with images in base64. The best of many readings in \
              a round. For comparison, a pass over the larger one that counts a byte."
                .into(),
        against: Some(PLAIN.into()),
        ..Outcome::default()
    }
    .metrics(&[("µs per MB", 1), ("GB/s", 2)]);
    let [(small, _), (large, _)] = &bodies;
    outcome.goals = vec![goal("≥ 1 GB/s, 100 KiB", small), goal("≥ 1 GB/s, 20 MB", large)];
    let names = bodies.iter().map(|(name, _)| *name).chain([PLAIN]);
    outcome.lines = names.map(|name| Line { name: name.to_owned(), rounds: Vec::new() }).collect();
    for _ in 0..bench.rounds(5, 3) {
        let window = bench.millis(300, 100);
        let mut found = Vec::new();
        for (_, body) in &bodies {
            found.push(figures(body, fastest(window, || read(body, &asked))?));
        }
        let [_, (_, largest)] = &bodies;
        let counted = fastest(window, || {
            count(largest);
            Ok(())
        })?;
        found.push(figures(largest, counted));
        for (line, figures) in outcome.lines.iter_mut().zip(found) {
            line.rounds.push(figures);
        }
    }
    Ok(outcome)
}

fn goal(what: &'static str, line: &str) -> Goal {
    Goal { what, line: line.to_owned(), metric: 0, limit: Limit::AtMost(SLOWEST) }
}

fn read(body: &Bytes, asked: &Asked) -> anyhow::Result<()> {
    let reading = Reading::of_json(black_box(body), asked).map_err(|error| anyhow!("{error}"))?;
    anyhow::ensure!(reading.model().as_deref() == Some(MODEL), "another model");
    Ok(())
}

fn count(body: &Bytes) {
    black_box(black_box(body).iter().filter(|byte| **byte == b'"').count());
}

fn fastest(window: Duration, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let (began, mut best) = (Instant::now(), f64::INFINITY);
    while began.elapsed() < window {
        let once = Instant::now();
        work()?;
        best = best.min(once.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn figures(body: &Bytes, seconds: f64) -> Vec<f64> {
    let megabytes = body.len() as f64 / 1e6;
    vec![seconds * 1e6 / megabytes, megabytes / 1e3 / seconds]
}

/// A chat of so many messages, each with so much text and two images of that many letters.
fn chat(messages: usize, text: usize, image: usize) -> String {
    const LINE: &str = "He said: \\\"Café, s'il vous plaît\\\" — and the gate let him through.\\n";
    let content = LINE.repeat(text / LINE.len());
    let image = "iVBORw0KGgoAAAANSUhEUgAA".repeat(image / 24);
    let images = if image.is_empty() { String::new() } else { format!("\"{image}\",\"{image}\"") };
    let message = format!("{{\"role\":\"user\",\"content\":\"{content}\",\"images\":[{images}]}}");
    let messages = vec![message; messages].join(",");
    format!(
        "{{\"model\":\"{MODEL}\",\"stream\":true,\"messages\":[{messages}],\
         \"options\":{{\"num_ctx\":8192,\"temperature\":0.2}},\"keep_alive\":\"5m\"}}"
    )
}
