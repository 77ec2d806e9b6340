//! Rows over TLS and HTTP/2: a handshake, a small request, and streams that are open.

use std::time::Duration;

use super::requests::{CALLERS, METRICS, Trial};
use super::streams::{CHUNK_METRICS, hold, streaming};
use super::{Bench, Limit, NGINX, Outcome};
use crate::cost;
use crate::load::Over;
use crate::peer::{Id, Peer};
use crate::script::Chat;
use crate::tls::Speaks;

/// What our figures are held against: the line, and the goals for the processor's time and memory.
const OTHERS: [(&str, [&str; 2]); 3] = [
    (NGINX, ["CPU ≤ 1.0 × nginx tuned", "memory ≤ 1.0 × nginx tuned"]),
    ("haproxy", ["CPU ≤ 1.0 × haproxy", "memory ≤ 1.0 × haproxy"]),
    ("caddy newest", ["CPU ≤ 1.0 × caddy newest", "memory ≤ 1.0 × caddy newest"]),
];

const STREAMS: usize = 4000;
/// A few requests at once on a connection, as programs of one person or host have them.
const STREAMS_EACH: usize = 8;
/// Slow enough that no proxy's core is full on a machine where a core has bad days: then tokens come late.
const CALM: Chat = Chat { tokens: 1000, pace: 400_000 };

pub(super) fn handshake(bench: &Bench) -> anyhow::Result<Outcome> {
    let outcome = Outcome {
        row: "handshake",
        title: "A new TLS connection for each request".into(),
        how: "TLS 1.3 with X25519, AES-128 and an ECDSA P-256 certificate, nothing resumed, then \
              one `GET /api/version` with `Connection: close`; 64 at a time."
            .into(),
        ..Outcome::default()
    };
    requests(bench, outcome, |bench, peer| {
        let over = Over::Tls(bench.identity.callers(Speaks::Http1)?);
        Ok(Trial { over, fresh: true, ..Trial::version(peer) })
    })
}

pub(super) fn tls_get(bench: &Bench) -> anyhow::Result<Outcome> {
    let outcome = Outcome {
        row: "tls-get",
        title: "A small request over TLS".into(),
        how: "`GET /api/version` over HTTP/1.1 on 64 kept TLS connections, each asking again as \
              soon as it is answered."
            .into(),
        ..Outcome::default()
    };
    requests(bench, outcome, |bench, peer| {
        let over = Over::Tls(bench.identity.callers(Speaks::Http1)?);
        Ok(Trial { over, ..Trial::version(peer) })
    })
}

pub(super) fn h2_get(bench: &Bench) -> anyhow::Result<Outcome> {
    let outcome = Outcome {
        row: "h2-get",
        title: "A small request over HTTP/2".into(),
        how: format!(
            "`GET /api/version` over HTTP/2 and TLS, {CALLERS} at a time: {STREAMS_EACH} streams on \
             each of {} connections.",
            CALLERS / STREAMS_EACH
        ),
        ..Outcome::default()
    };
    requests(bench, outcome, |bench, peer| {
        let over = Over::Http2(bench.identity.callers(Speaks::Http2)?, STREAMS_EACH);
        Ok(Trial { over, callers: CALLERS / STREAMS_EACH, ..Trial::version(peer) })
    })
}

fn requests(
    bench: &Bench,
    outcome: Outcome,
    trial: for<'a> fn(&Bench, &'a Peer) -> anyhow::Result<Trial<'a>>,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome { against: Some(NGINX.into()), ..outcome }.metrics(&METRICS);
    for (other, [cpu, _]) in OTHERS {
        outcome = outcome.goal(cpu, 0, Limit::TimesAtMost(1.0, other.into()));
    }
    let subjects = start(bench)?;
    outcome.rounds(bench.rounds(3, 2), &subjects, |peer, _| trial(bench, peer)?.run(bench))
}

pub(super) fn tls_chunk(bench: &Bench) -> anyhow::Result<Outcome> {
    let outcome = Outcome {
        row: "tls-chunk",
        title: "4,000 streams over TLS".into(),
        how: "As `chunk`, with 2.5 tokens a second, each stream on a TLS connection of its own."
            .into(),
        ..Outcome::default()
    };
    chunk(bench, outcome, &Over::Tls(bench.identity.callers(Speaks::Http1)?))
}

pub(super) fn h2_chunk(bench: &Bench) -> anyhow::Result<Outcome> {
    let outcome = Outcome {
        row: "h2-chunk",
        title: "4,000 streams over HTTP/2".into(),
        how: format!(
            "As `chunk`, with 2.5 tokens a second, over HTTP/2 and TLS: {STREAMS_EACH} streams on \
             each of {} connections.",
            STREAMS / STREAMS_EACH
        ),
        ..Outcome::default()
    };
    chunk(bench, outcome, &Over::Http2(bench.identity.callers(Speaks::Http2)?, STREAMS_EACH))
}

fn chunk(bench: &Bench, outcome: Outcome, over: &Over) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome { against: Some(NGINX.into()), ..outcome }.metrics(&CHUNK_METRICS);
    for (other, [cpu, memory]) in OTHERS {
        let limit = || Limit::TimesAtMost(1.0, other.into());
        outcome = outcome.goal(cpu, 0, limit()).goal(memory, 1, limit());
    }
    let subjects = start(bench)?;
    let idle: Vec<u64> = subjects.iter().map(|peer| cost::memory(&peer.pids())).collect();
    outcome.rounds(bench.rounds(2, 1), &subjects, |peer, _| {
        let at = subjects.iter().position(|one| std::ptr::eq(one, peer));
        let idle = at.and_then(|at| idle.get(at)).copied().unwrap_or_default();
        let mut group = streaming(peer, STREAMS / over.streams(), CALM);
        // 4,000 handshakes take some of them nearly two seconds
        group.spread = Duration::from_secs(4);
        group.over = over.clone();
        hold(bench, peer, group, idle, [Duration::from_secs(6), Duration::from_millis(2500)])
    })
}

fn start(bench: &Bench) -> anyhow::Result<Vec<Peer>> {
    let mut ids = vec![Id::Portcullis, Id::NginxTuned];
    if !bench.short {
        ids.extend([Id::Haproxy, Id::CaddyNewest]);
    }
    let mut settings = bench.settings();
    settings.tls = Some(&bench.identity);
    bench.start_with(&ids, &settings)
}
