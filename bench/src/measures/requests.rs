//! Rows about small requests: what one costs, and how many there can be.

use std::time::Duration;

use super::{Bench, Limit, NGINX, Outcome, PORTCULLIS, head, micros, seconds};
use crate::cost::Cpu;
use crate::load::{Ask, Group, Load, Over, Pace, Tally, Want};
use crate::peer::{Id, Login, Peer};
use crate::script::{self, Head};

pub(super) const CALLERS: usize = 64;

/// The proxies that every row about requests can have, ours first.
const PROXIES: [Id; 7] = [
    Id::Portcullis,
    Id::NginxTuned,
    Id::NginxBearer,
    Id::NginxBasic,
    Id::Haproxy,
    Id::CaddyDistro,
    Id::CaddyNewest,
];

fn proxies(bench: &Bench) -> Vec<Id> {
    // the older Caddy is worth its time only in the full mode
    PROXIES.into_iter().filter(|id| !bench.short || *id != Id::CaddyDistro).collect()
}

pub(super) const METRICS: [(&str, usize); 5] = [
    ("CPU µs per request", 2),
    ("requests/s", 0),
    ("p50 ms", 2),
    ("p99 ms", 2),
    ("load's core busy %", 0),
];

pub(super) fn get(bench: &Bench) -> anyhow::Result<Outcome> {
    let outcome = Outcome {
        row: "get",
        title: "A small request".into(),
        how: "`GET /api/version` with a valid login on 64 kept connections, each asking again as \
              soon as it is answered."
            .into(),
        against: Some(NGINX.into()),
        ..Outcome::default()
    };
    outcome
        .metrics(&METRICS)
        .goal("≤ 1.0 × nginx tuned", 0, Limit::TimesAtMost(1.0, NGINX.into()))
        .rounds(bench.rounds(5, 3), &bench.start(&proxies(bench))?, |peer, _| {
            Trial::version(peer).run(bench)
        })
}

pub(super) fn post_chat(bench: &Bench) -> anyhow::Result<Outcome> {
    let mut ids = vec![Id::Portcullis, Id::NginxTuned];
    if !bench.short {
        ids.extend([Id::Haproxy, Id::CaddyDistro, Id::CaddyNewest, Id::Litellm]);
    }
    let outcome = Outcome {
        row: "post-chat",
        title: "A small chat".into(),
        how: "`POST /api/chat`, not streamed, on 64 kept connections; LiteLLM gets the same chat \
              as `POST /v1/chat/completions` on 8."
            .into(),
        against: Some(NGINX.into()),
        ..Outcome::default()
    };
    outcome
        .metrics(&METRICS)
        .goal("≤ 1.2 × nginx tuned", 0, Limit::TimesAtMost(1.2, NGINX.into()))
        .rounds(bench.rounds(5, 3), &bench.start(&ids)?, |peer, _| Trial::chat(peer).run(bench))
}

pub(super) fn keys_10k(bench: &Bench) -> anyhow::Result<Outcome> {
    let nginx: &[Id] = if bench.short { &[] } else { &[Id::NginxBearer] };
    keys(bench, "keys-10k", 10_000, nginx)
}

pub(super) fn keys_1m(bench: &Bench) -> anyhow::Result<Outcome> {
    keys(bench, "keys-1m", 1_000_000, &[])
}

fn keys(bench: &Bench, row: &'static str, many: usize, others: &[Id]) -> anyhow::Result<Outcome> {
    let mut subjects = Vec::new();
    for keys in [2, many] {
        let mut settings = bench.settings();
        settings.keys = keys;
        let mut started = bench.start_with(&[Id::Portcullis], &settings)?;
        started.append(&mut bench.start_with(others, &settings)?);
        for peer in &mut started {
            peer.name = format!("{}, {keys} keys", peer.name);
        }
        subjects.append(&mut started);
    }
    let two = format!("{PORTCULLIS}, 2 keys");
    let limit = Limit::TimesAtMost(1.05, two.clone());
    let mut outcome = Outcome {
        row,
        title: format!("{many} keys in the file"),
        how: "As the small request, with the last key of the file.".into(),
        against: Some(two),
        ..Outcome::default()
    }
    .metrics(&METRICS)
    .goal("≤ 1.05 × two keys", 0, limit);
    outcome.goals.iter_mut().for_each(|goal| goal.line = format!("{PORTCULLIS}, {many} keys"));
    outcome.rounds(bench.rounds(5, 3), &subjects, |peer, _| Trial::version(peer).run(bench))
}

pub(super) fn basic(bench: &Bench) -> anyhow::Result<Outcome> {
    let mut settings = bench.settings();
    let mut subjects = bench.start_with(&[Id::Portcullis], &settings)?;
    settings.login = Login::Password;
    let mut with_password = bench.start_with(&[Id::Portcullis], &settings)?;
    subjects.iter_mut().for_each(|peer| peer.name = format!("{PORTCULLIS}, Bearer"));
    with_password.iter_mut().for_each(|peer| peer.name = format!("{PORTCULLIS}, Basic"));
    subjects.append(&mut with_password);
    let bearer = format!("{PORTCULLIS}, Bearer");
    let mut outcome = Outcome {
        row: "basic",
        title: "A password that was verified before".into(),
        how: "As the small request, with the same password each time.".into(),
        against: Some(bearer.clone()),
        ..Outcome::default()
    }
    .metrics(&METRICS)
    .goal("≤ 1.1 × Bearer", 0, Limit::TimesAtMost(1.1, bearer));
    outcome.goals.iter_mut().for_each(|goal| goal.line = format!("{PORTCULLIS}, Basic"));
    outcome.rounds(bench.rounds(5, 3), &subjects, |peer, _| Trial::version(peer).run(bench))
}

pub(super) fn close(bench: &Bench) -> anyhow::Result<Outcome> {
    let mut ids = vec![Id::Portcullis, Id::NginxTuned];
    if !bench.short {
        ids.extend([Id::NginxBearer, Id::Haproxy, Id::CaddyNewest]);
    }
    let outcome = Outcome {
        row: "close",
        title: "A new connection for each request".into(),
        how: "`GET /api/version` with `Connection: close`, 64 at a time.".into(),
        against: Some(NGINX.into()),
        ..Outcome::default()
    };
    outcome
        .metrics(&METRICS)
        .goal("≤ 1.0 × nginx tuned", 0, Limit::TimesAtMost(1.0, NGINX.into()))
        .rounds(bench.rounds(5, 3), &bench.start(&ids)?, |peer, _| {
            Trial { fresh: true, ..Trial::version(peer) }.run(bench)
        })
}

pub(super) fn direct(bench: &Bench) -> anyhow::Result<Outcome> {
    let outcome = Outcome {
        row: "direct",
        title: "Callers and backend alone".into(),
        how: "The small request without any proxy: what this program itself needs for a request \
              on its one core, callers and backend together."
            .into(),
        ..Outcome::default()
    };
    let mut metrics = METRICS;
    if let Some(first) = metrics.first_mut() {
        first.0 = "own CPU µs per request";
    }
    outcome.metrics(&metrics).rounds(bench.rounds(5, 3), &bench.start(&[Id::Direct])?, |peer, _| {
        let mut figures = Trial::version(peer).run(bench)?;
        if let [first, rate, .., busy] = figures.as_mut_slice() {
            *first = *busy / 100.0 * 1e6 / *rate;
        }
        Ok(figures)
    })
}

pub(super) fn throughput(bench: &Bench) -> anyhow::Result<Outcome> {
    let ids = [Id::Portcullis, Id::NginxTuned, Id::Haproxy, Id::CaddyNewest, Id::Direct];
    let outcome = Outcome {
        row: "throughput",
        title: "Requests a second with p99 ≤ 5 ms on one core".into(),
        how:
            "The small request on 4, 16, 32, 64, 128 and 256 connections; the best of those whose \
              p99 is at most 5 ms."
                .into(),
        against: Some(NGINX.into()),
        ..Outcome::default()
    };
    outcome
        .metrics(&[("requests/s", 0), ("at connections", 0), ("p99 ms", 2)])
        .goal("≥ 1.0 × nginx tuned", 0, Limit::TimesAtLeast(1.0, NGINX.into()))
        .rounds(bench.rounds(3, 1), &bench.start(&ids)?, |peer, _| {
            let mut best = vec![0.0; 3];
            for callers in [4, 16, 32, 64, 128, 256] {
                let trial = Trial { callers, ..Trial::version(peer) };
                let seen = trial.window(bench, bench.millis(800, 600))?;
                let (rate, p99) = (seen.rate(), seen.tally.latency.millis(0.99));
                if p99 <= 5.0 && best.first().is_some_and(|most| rate > *most) {
                    best = vec![rate, callers as f64, p99];
                }
            }
            Ok(best)
        })
}

/// One proxy under closed-loop callers for a while.
pub(super) struct Trial<'a> {
    pub(super) peer: &'a Peer,
    /// Where it is not the small request.
    pub(super) ask: Option<Ask>,
    pub(super) want: Want,
    pub(super) callers: usize,
    pub(super) over: Over,
    pub(super) fresh: bool,
}

/// What was seen of it.
struct Seen {
    tally: Tally,
    time: Duration,
    cpu: Duration,
    own: Duration,
}

impl<'a> Trial<'a> {
    pub(super) fn version(peer: &'a Peer) -> Self {
        let want = Want::Exact(200, script::VERSION.as_bytes().to_vec());
        Self { peer, ask: None, want, callers: CALLERS, over: Over::Plain, fresh: false }
    }

    fn chat(peer: &'a Peer) -> Self {
        let head = |line| Head { line, ..head(peer) };
        let trial = Self::version(peer);
        if peer.exact {
            let ask = Some(Ask::Same(head("POST /api/chat").json(&script::chat())));
            let want = Want::Exact(200, script::chat_answer().into_bytes());
            Self { ask, want, ..trial }
        } else {
            let ask =
                Some(Ask::Same(head("POST /v1/chat/completions").json(&script::openai_chat())));
            let want = Want::Containing(200, script::REPLY.to_owned());
            Self { ask, want, callers: 8, ..trial }
        }
    }

    pub(super) fn run(self, bench: &Bench) -> anyhow::Result<Vec<f64>> {
        let seen = self.window(bench, bench.millis(2000, 1000))?;
        let latency = &seen.tally.latency;
        Ok(vec![
            micros(seen.cpu) / seen.tally.answers.max(1) as f64,
            seen.rate(),
            latency.millis(0.5),
            latency.millis(0.99),
            100.0 * seconds(seen.own) / seconds(seen.time),
        ])
    }

    fn window(self, bench: &Bench, window: Duration) -> anyhow::Result<Seen> {
        let peer = self.peer;
        let small = || Ask::Same(Head { close: self.fresh, ..head(peer) }.alone());
        let spread = match self.callers {
            ..=1000 => Duration::ZERO,
            // more at once than a socket's queue holds: the kernel would turn some away
            callers => Duration::from_micros(100) * u32::try_from(callers)?,
        };
        let group = Group {
            name: "a request".into(),
            address: peer.addr,
            callers: self.callers,
            over: self.over,
            ask: self.ask.unwrap_or_else(small),
            want: self.want,
            pace: Pace::Closed,
            fresh: self.fresh,
            spread,
        };
        let mut load = Load::start(bench.clock, vec![group])?;
        load.run_for(spread + bench.millis(300, 200))?;
        load.take();
        let (began, cpu, own) = (bench.clock.now(), Cpu::of(&peer.pids()), Cpu::of_us());
        load.run_for(window)?;
        let seen = Seen {
            time: Duration::from_nanos(bench.clock.now() - began),
            cpu: Cpu::of(&peer.pids()).since(&cpu),
            own: Cpu::of_us().since(&own),
            tally: load.take().pop().unwrap_or_default(),
        };
        load.finish()?;
        anyhow::ensure!(seen.tally.answers > 0, "not one answer");
        Ok(seen)
    }
}

impl Seen {
    fn rate(&self) -> f64 {
        self.tally.answers as f64 / seconds(self.time)
    }
}
