//! Who runs and who waits, ending that, and the backends, by way of the admin API.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::query::Query;
use super::{Desk, json_answer};
use crate::pool::Backend;
use crate::pool::queue::{Class, Micros, Places, Seen, SeenModel, Spot, whole_seconds};
use crate::record::RequestId;
use crate::reject::Reject;
use crate::store::Event;

/// Rates over a shorter time say nothing.
const SHORTEST: Micros = 200_000;

type Answer = Result<Response<Bytes>, Reject>;

/// Whose requests end.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Whose {
    name: String,
}

/// What runs, by backend and the longest first; then what waits, the next first.
pub(super) fn list(desk: Desk<'_>, query: &Query) -> Answer {
    let limit = query.limit()?;
    let mut all = desk.pool.line().with(|queue, now| queue.seen(now));
    all.sort_by_key(|it| match it.spot {
        Spot::Runs { place, .. } => (false, place, Micros::MAX - it.for_micros),
        Spot::Waits { position, .. } => (true, position, 0),
    });
    let waiting = all.iter().filter(|it| it.position() > 0).count();
    let running = all.len() - waiting;
    let now = Timestamp::now();
    let requests: Vec<_> = all.iter().take(limit).map(|it| request(desk, it, now)).collect();
    let json = json!({"running": running, "waiting": waiting, "requests": requests});
    Ok(json_answer(StatusCode::OK, &json))
}

fn request(desk: Desk<'_>, seen: &Seen, now: Timestamp) -> Value {
    let (since_came, waited) = match seen.spot {
        Spot::Waits { .. } => (seen.for_micros, seen.for_micros),
        Spot::Runs { waited, .. } => (seen.for_micros + waited, waited),
    };
    let came = now.as_millisecond() - i64::try_from(since_came / 1000).unwrap_or_default();
    let mut json = json!({
        "id": id_of(seen), "name": seen.course.who.as_str(),
        "model": Some(&*seen.model).filter(|model| *model != "-"),
        "operation": seen.course.operation,
        "class": match seen.class {
            Class::Interactive => "interactive",
            Class::Batch => "batch",
        },
        "since": Timestamp::from_millisecond(came).unwrap_or(now).to_string(),
        "waited_ms": waited / 1000,
    });
    let more = match seen.spot {
        Spot::Waits { among, position, expected } => json!({
            "state": "waiting", "position": position, "expected_s": whole_seconds(expected),
            "backends": names(desk, among),
        }),
        Spot::Runs { place, first_byte, .. } => {
            let tokens = seen.course.tokens();
            let rate = first_byte.filter(|it| *it >= SHORTEST && tokens > 0);
            let rate =
                rate.map(|it| tenths(tokens as f64 / Duration::from_micros(it).as_secs_f64()));
            json!({
                "state": "running", "runs_ms": seen.for_micros / 1000,
                "backends": names(desk, 1 << place), "first_byte": first_byte.is_some(),
                "tokens": tokens, "tokens_per_second": rate,
            })
        }
    };
    if let (Value::Object(json), Value::Object(more)) = (&mut json, more) {
        json.extend(more);
    }
    json
}

fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

fn id_of(seen: &Seen) -> String {
    String::from_utf8_lossy(&seen.course.id).into_owned()
}

/// One that left with a reload, and still runs something, has no name any more.
fn names(desk: Desk<'_>, places: Places) -> Vec<&str> {
    let backends = desk.pool.backends().iter();
    backends.filter(|it| it.is_one_of(places)).map(|it| &**it.name()).collect()
}

/// Ends one request, wherever it is.
pub(super) async fn stop_one(desk: Desk<'_>, id: &str) -> Answer {
    let none = || {
        let says = "no request of that id runs or waits; `portcullis running` lists them";
        Reject::NotFound(says.into())
    };
    let id = <[u8; 16]>::from(RequestId::parse(id).ok_or_else(none)?);
    let stopped = desk.pool.stop(|course| course.id == id);
    if stopped == 0 {
        return Err(none());
    }
    let id = String::from_utf8_lossy(&id).into_owned();
    note(desk, "stop request", id, json!({"stopped": stopped})).await;
    Ok(json_answer(StatusCode::OK, &json!({"stopped": stopped})))
}

/// Ends everything of one identity that runs or waits.
pub(super) async fn stop_all(desk: Desk<'_>, Whose { name }: Whose) -> Answer {
    let stopped = desk.pool.stop(|course| course.who.as_str() == name);
    if stopped > 0 {
        note(desk, "stop requests", name, json!({"stopped": stopped})).await;
    }
    Ok(json_answer(StatusCode::OK, &json!({"stopped": stopped})))
}

pub(super) fn backends(desk: Desk<'_>) -> Answer {
    let all: Vec<_> = desk.pool.backends().iter().map(|it| backend(desk, it)).collect();
    Ok(json_answer(StatusCode::OK, &json!({"backends": all})))
}

/// From now on it gets no new requests, or gets them again.
pub(super) async fn drain(desk: Desk<'_>, name: &str, drained: bool) -> Answer {
    let found = desk.pool.backend(name).ok_or_else(|| {
        let names: Vec<_> = desk.pool.backends().iter().map(|it| &**it.name()).collect();
        let says = format!("no backend has that name; there are {}", names.join(", "));
        Reject::NotFound(says.into())
    })?;
    if found.is_drained() != drained {
        found.drain(drained);
        let action = if drained { "drain backend" } else { "undrain backend" };
        note(desk, action, name.to_owned(), json!({"drained": drained})).await;
    }
    Ok(json_answer(StatusCode::OK, &backend(desk, found)))
}

fn backend(desk: Desk<'_>, backend: &Backend) -> Value {
    let load = desk.pool.load_of(backend);
    let number = |it: &usize| Some(*it).filter(|it| *it < usize::MAX);
    let model = |it: &SeenModel| {
        json!({
            "name": &*it.name, "in_memory": it.in_memory, "running": it.running,
            "parallel": number(&it.at_once), "parallel_is": if it.is_learned { "learned" } else { "set" },
        })
    };
    json!({
        "name": &**backend.name(), "url": backend.url().to_string(),
        "kind": backend.kind().as_str(), "up": backend.is_up(), "drained": backend.is_drained(),
        "busy": backend.busy(), "weight": f64::from(backend.weight().thousandths()) / 1000.0,
        "parallel": backend.parallel_told(), "models_at_once": load.models_at_once,
        "models": load.models.iter().map(model).collect::<Vec<_>>(), "tags": backend.tags(),
    })
}

/// What has been done stays done, whether the trail can be written or not.
async fn note(desk: Desk<'_>, action: &'static str, subject: String, after: Value) {
    let by = desk.by();
    tracing::info!(by = by.who, subject, "{action}");
    if desk.memory.managed().is_none() {
        return;
    }
    let event = Event { action, subject, before: None, after: Some(after) };
    if desk.with_store(move |store| store.note(event, &by)).await.is_err() {
        tracing::warn!("that is not in the audit trail, for the store cannot be written");
    }
}
