//! The backend: whether it can be reached, what it is, and whose Host it takes.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::generation;
use super::probe::{Probe, Reply, Silence, printable, since};
use super::{Finding, Seen, Subject};
use crate::config::{BackendKind, BackendUrl, ModelName};
use crate::pool::Backend;
use crate::record::Chain;

/// No server of anybody's goes by this name (RFC 2606).
const FOREIGN_HOST: &str = "doctor.example";

pub(super) async fn examine(subject: &Subject<'_>, backend: &Arc<Backend>) -> Seen {
    let has_key = backend.key().is_some();
    let probe = Probe::of_backend(backend, subject.patience);
    let mut seen = Seen::default();

    let started = Instant::now();
    let connected = probe.connect().await;
    let took = since(started);
    match connected {
        Ok(connection) => drop(connection),
        Err(silence) => {
            seen.findings.push(unreached(&silence, backend.url()));
            let rest = "not asked: version, Host check, streaming, cancelling";
            seen.findings.push(Finding::skip("the rest", rest));
            return seen;
        }
    }
    seen.findings.push(Finding::ok("connection", format!("made in {took}")));

    let parallel = format!("of one model, {}", backend.parallel_told());
    seen.findings.push(Finding::ok("at once", parallel));
    if backend.kind() == BackendKind::OpenAi {
        let list = probe.get("/v1/models").await;
        seen.date = list.as_ref().ok().and_then(|reply| reply.field("date"));
        seen.findings.push(judge_list(&list, has_key));
        return seen;
    }

    let version = probe.get("/api/version").await;
    seen.date = version.as_ref().ok().and_then(|reply| reply.field("date"));
    let is_ollama = version.as_ref().is_ok_and(|reply| version_of(reply).is_some());
    seen.findings.push(judge_version(&version, has_key));
    if !is_ollama {
        let rest =
            "not asked, for it does not answer as Ollama does: Host check, streaming, cancelling";
        seen.findings.push(Finding::skip("the rest", rest));
        return seen;
    }

    let foreign = probe.as_host(FOREIGN_HOST).get("/api/version").await;
    let foreign = foreign.map(|reply| reply.status());
    seen.findings.push(judge_host_check(&foreign, backend.preserves_host()));
    let first_byte = subject.config().timeouts.first_byte;
    seen.findings.extend(generation::examine(&probe, subject.model, first_byte).await);
    seen
}

fn unreached(silence: &Silence, url: &BackendUrl) -> Finding {
    let finding = Finding::fail("connection", Chain(silence).to_string());
    let Silence::NoConnection(error) = silence else { return finding };
    let is = |kind| error.kind() == kind;
    let (host, is_https) = match url {
        BackendUrl::Http { host, .. } => (host.as_str(), false),
        BackendUrl::Https { host, .. } => (host.as_str(), true),
        BackendUrl::Unix(_) => {
            return finding.advise("the model server must make that file, and we may write to it");
        }
    };
    finding.advise(if is_https && is(io::ErrorKind::InvalidData) {
        "its certificate is not to be trusted, or it speaks no TLS: name the authority's as `ca_file` \
         under [[backend]], or write http://"
    } else if is(io::ErrorKind::ConnectionRefused) {
        "nobody listens there. Start Ollama (`ollama serve`, `systemctl start ollama`), or correct \
         `upstream`. In a container 127.0.0.1 is the container itself: name Ollama's, as in \
         http://ollama:11434"
    } else if is(io::ErrorKind::TimedOut) {
        "nobody answers there: the machine is off, or a firewall drops what comes. Ask from here with \
         `curl`, and correct `upstream` or the firewall"
    } else if host.ends_with(".local") {
        "names in .local are found by mDNS, which a static build does not speak: write the address in \
         `upstream`"
    } else if host.parse::<std::net::IpAddr>().is_err() {
        "if the name cannot be found, correct it in `upstream`, or write the address"
    } else {
        "correct `upstream`, or the way there"
    })
}

/// Of a server that has only what lies under `/v1`.
fn judge_list(list: &Result<Reply, Silence>, has_key: bool) -> Finding {
    const WHAT: &str = "models";
    let reply = match list {
        Ok(reply) => reply,
        Err(silence) => {
            let found = format!("no answer to GET /v1/models: {}", Chain(silence));
            return Finding::fail(WHAT, found)
                .advise("what listens there does not speak HTTP, or is stuck: look at its log");
        }
    };
    let json = reply.json();
    let Some(models) = json.get("data").and_then(Value::as_array) else {
        let finding = Finding::fail(WHAT, format!("GET /v1/models is answered {}", reply.error()));
        return match reply.status() {
            401 | 403 if has_key => finding.advise("it does not take the key in `key_file`"),
            401 | 403 => finding.advise("it wants a key: name its file as `key_file`"),
            _ => finding.advise("that is no server of OpenAI's API: correct `url` or `kind`"),
        };
    };
    let ids = models.iter().filter_map(|it| it.get("id").and_then(Value::as_str));
    let (good, odd): (Vec<_>, Vec<_>) = ids.partition(|id| ModelName::parse(id).is_ok());
    match odd.first() {
        Some(odd) if good.is_empty() => {
            let found = format!("it calls its model {:?}", printable(odd));
            Finding::warn(WHAT, found).advise(
                "that is no name that a model can have, so nobody can ask for it: give it another, \
                 as with `llama-server --alias NAME`",
            )
        }
        _ => Finding::ok(WHAT, format!("{} can be asked for", good.len())),
    }
}

fn version_of(reply: &Reply) -> Option<String> {
    let json = (reply.status() == 200).then(|| reply.json())?;
    Some(printable(json.get("version")?.as_str()?))
}

fn judge_version(version: &Result<Reply, Silence>, has_key: bool) -> Finding {
    const WHAT: &str = "version";
    let reply = match version {
        Ok(reply) => reply,
        Err(silence) => {
            let found = format!("no answer to GET /api/version: {}", Chain(silence));
            return Finding::fail(WHAT, found).advise(
                "what listens there does not speak HTTP, or is stuck: look at its log, and at \
                 `upstream`",
            );
        }
    };
    if let Some(version) = version_of(reply) {
        let own = if version == "0.0.0" { " (a build that does not tell its own)" } else { "" };
        return Finding::ok(WHAT, format!("Ollama {version}{own}"));
    }
    let server = reply.field("server").map(|it| printable(&it)).unwrap_or_default();
    let found = format!("GET /api/version is answered {}", reply.error());
    if server == "portcullis" {
        return Finding::fail(WHAT, "a Portcullis answers there, not a model server")
            .advise("`upstream` leads to a gate, perhaps to this one: write the model server's");
    }
    match reply.status() {
        401 | 403 if has_key => Finding::fail(WHAT, found)
            .advise("it does not take the key in `key_file`: correct that"),
        401 => Finding::fail(WHAT, found).advise(
            "it wants a key: write it into a file, and name that as `key_file` under [[backend]]",
        ),
        403 => Finding::fail(WHAT, found).advise(
            "it refuses the Host that the gate sends, which is the name in `upstream`: write \
             localhost or an address there",
        ),
        _ => {
            let by = if server.is_empty() { server } else { format!(" by {server:?}") };
            Finding::warn(WHAT, found + &by).advise(
                "that is no Ollama. Requests pass, but if it was meant to be one, correct `upstream`",
            )
        }
    }
}

/// An Ollama that listens on loopback answers 403 to any Host but a few [server/routes.go
/// allowedHostsMiddleware].
fn judge_host_check(foreign: &Result<u16, Silence>, preserves: bool) -> Finding {
    const WHAT: &str = "Host check";
    match (foreign, preserves) {
        (Ok(403), false) => {
            Finding::ok(WHAT, "foreign names get 403, and the gate sends Ollama's own")
        }
        (Ok(403), true) => {
            Finding::fail(WHAT, "foreign names get 403, and `preserve_host` passes them on").advise(
                "every request under the gate's public name would be refused: take \
                 `preserve_host = true` out",
            )
        }
        (Ok(200), _) => {
            Finding::ok(WHAT, "any name is taken; Ollama looks only when it is on loopback")
        }
        (Ok(status), _) => Finding::warn(WHAT, format!("a foreign name gets {status}"))
            .advise("something before Ollama looks at names; the gate sends the one in `upstream`"),
        (Err(silence), _) => {
            Finding::warn(WHAT, format!("a foreign name gets no answer: {}", Chain(silence)))
        }
    }
}

/// A list in an answer's JSON.
pub(super) fn models(json: &Value) -> impl Iterator<Item = &Value> {
    json.get("models").and_then(Value::as_array).into_iter().flatten()
}
