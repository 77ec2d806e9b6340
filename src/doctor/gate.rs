//! The gate, if it runs: whether it lives, is ready, and asks for a login.

use std::net::SocketAddr;

use serde_json::Value;

use super::probe::{Probe, Reply, Silence};
use super::{Finding, Seen, Subject};
use crate::record::Chain;

pub(super) async fn examine(subject: &Subject<'_>) -> Seen {
    let mut seen = Seen::default();
    let Some(gate) = subject.gate else {
        let found = "it has no address that is known before it starts; of a socket's file ask `portcullis health`";
        seen.findings.push(Finding::skip("health", found));
        return seen;
    };
    let probe = match subject.state.tls() {
        None => Probe::at(gate, subject.patience),
        Some(_) => match Probe::over_tls_at(gate, subject.patience) {
            Ok(probe) => probe,
            Err(error) => {
                seen.findings.push(Finding::skip("health", Chain(&error).to_string()));
                return seen;
            }
        },
    };
    let health = probe.get("/_portcullis/health").await;
    seen.date = health.as_ref().ok().and_then(|reply| reply.field("date"));
    let lives = health.as_ref().is_ok_and(is_alive);
    seen.findings.push(judge_health(&health, gate));
    if lives {
        seen.findings.push(judge_ready(&probe.get("/_portcullis/ready").await));
        let open = probe.get("/api/tags").await;
        seen.findings.push(judge_login(&open.map(|reply| reply.status())));
    }
    seen
}

fn is_alive(reply: &Reply) -> bool {
    let status = reply.json().get("status").and_then(Value::as_str).map(str::to_owned);
    reply.status() == 200 && status.as_deref() == Some("ok")
}

fn judge_health(health: &Result<Reply, Silence>, gate: SocketAddr) -> Finding {
    const WHAT: &str = "health";
    match health {
        Ok(reply) if is_alive(reply) => Finding::ok(WHAT, "it is alive"),
        Ok(reply) => {
            let found = format!("another program listens there, and answers {}", reply.status());
            let port = gate.port();
            Finding::fail(WHAT, found).advise(format!(
                "the gate cannot start while port {port} is taken: end that program (`ss -ltnp` \
                 names it), or choose another `listen`"
            ))
        }
        Err(Silence::WantsCertificate) => {
            Finding::ok(WHAT, "it is alive, and wants a certificate before anything else")
        }
        Err(Silence::NoConnection(error)) if error.kind() != std::io::ErrorKind::TimedOut => {
            Finding::skip(WHAT, "no gate runs here")
                .advise("start it with `portcullis serve` and ask again: more can be seen then")
        }
        Err(silence) => Finding::fail(WHAT, format!("no answer: {}", Chain(silence))).advise(
            "something listens there that is no gate, or a gate that is stuck: look at its log",
        ),
    }
}

fn judge_ready(ready: &Result<Reply, Silence>) -> Finding {
    const WHAT: &str = "ready";
    let reply = match ready {
        Ok(reply) => reply,
        Err(silence) => return Finding::fail(WHAT, format!("no answer: {}", Chain(silence))),
    };
    let json = reply.json();
    let number = |name: &str| json.get(name).and_then(Value::as_u64).unwrap_or(0);
    if reply.status() == 503 {
        return Finding::warn(WHAT, "it is about to stop, and takes no new work");
    }
    if reply.status() != 200 {
        return Finding::fail(WHAT, format!("answered {}", reply.status()));
    }
    match (number("alarms"), number("backends_up")) {
        (0, 0) => {
            Finding::warn(WHAT, "it takes requests, but could not reach its backend last time")
                .advise("if `connection` is ok above, the next request mends that")
        }
        (0, _) => Finding::ok(WHAT, "it takes requests"),
        (alarms, _) => {
            Finding::warn(WHAT, format!("it takes requests; files with an alarm: {alarms}"))
                .advise("its log names the file and the line; so does `configuration` above")
        }
    }
}

fn judge_login(open: &Result<u16, Silence>) -> Finding {
    const WHAT: &str = "login";
    match open {
        Ok(401) => Finding::ok(WHAT, "a request without one gets 401"),
        Ok(status) => {
            Finding::fail(WHAT, format!("a request without one gets {status} instead of 401"))
                .advise("that is not how a gate answers: find out what listens there (`ss -ltnp`)")
        }
        Err(silence) => Finding::fail(WHAT, format!("no answer: {}", Chain(silence))),
    }
}
