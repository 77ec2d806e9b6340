//! The admin API: keys, the audit trail, the last decisions, what was used, and what runs and waits, for
//! whoever looks after the gate.
//!
//! It has a listener of its own; the path up to the login is the gateway's. One table of routes
//! decides what there is, who may ask for it, and what its description says.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::auth::{Identity, Memory};
use crate::client_addr::ClientAddr;
use crate::config::Config;
use crate::limit::Limits;
use crate::metrics::{self, Gauges, Metrics};
use crate::pool::Pool;
use crate::record::{Decisions, RequestId};
use crate::reject::Reject;
use crate::store::{Actor, AuditQuery, Store, StoreError};

mod command_key;
mod doorway;
mod failures;
mod flow;
mod keys;
mod openapi;
mod query;
mod routes;
mod running;
mod usage;

pub use command_key::{read_command_key, write_command_key};
pub use doorway::{only_from_here, only_own_pages, with_safe_headers};
pub use failures::FailedLogins;
pub use flow::{Content, Flow};
pub use openapi::description;
pub use routes::{Found, Needs, ROUTES, Route};

use query::Query;
use routes::Action;

/// Longest body of a request: room for an import of ten thousand keys.
pub const MOST_BODY: u64 = 2 * 1024 * 1024;

/// What the answers are made from.
#[derive(Clone, Copy)]
pub struct Desk<'a> {
    pub config: &'a Config,
    pub memory: &'a Memory,
    pub limits: &'a Limits,
    pub pool: &'a Pool,
    pub decisions: &'a Decisions,
    pub metrics: &'a Arc<Metrics>,
    pub gauges: &'a (dyn Fn() -> Gauges + Sync),
    /// Who asks, and from where.
    pub who: &'a Identity,
    pub client: ClientAddr,
    pub now: Instant,
}

impl fmt::Debug for Desk<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("who", self.who).finish_non_exhaustive()
    }
}

impl Desk<'_> {
    /// Answers a request of somebody who may ask it.
    ///
    /// # Errors
    /// 404, 409, 422 for what cannot be, 503 where the store fails.
    pub async fn answer(
        self,
        found: &Found,
        query: Option<&str>,
        body: &Bytes,
    ) -> Result<Response<Content>, Reject> {
        let query = Query::read(query, found.route().query)?;
        let whole = match found.route().action {
            Action::SumUsage => return usage::sums(self, &query).await,
            Action::ListUsage => return usage::rows(self, &query).await,
            Action::ListReloads => usage::reloads(self, &query).await,
            Action::Describe => Ok(json_answer(StatusCode::OK, &description())),
            Action::ListKeys => keys::list(self, &query).await,
            Action::CreateKey => keys::create(self, read(body)?).await,
            Action::ImportKeys => keys::import(self, read(body)?).await,
            Action::ShowKey => keys::show(self, found.id()).await,
            Action::ChangeKey => keys::change(self, found.id(), read(body)?).await,
            Action::SetKeyState(state) => {
                read_or_default::<Nothing>(body)?;
                keys::set_state(self, found.id(), state).await
            }
            Action::RevokeKey => keys::revoke(self, found.id(), read_or_default(body)?).await,
            Action::RotateKey => keys::rotate(self, found.id(), read_or_default(body)?).await,
            Action::Allow => keys::allow(self, found.id(), read(body)?).await,
            Action::ListAudit => audit(self, &query).await,
            Action::ListDecisions => decisions(self, &query),
            Action::ShowDecision => decision(self, found.id()),
            Action::Metrics => self.metrics(),
            Action::ListRunning => running::list(self, &query),
            Action::StopRequest => {
                read_or_default::<Nothing>(body)?;
                running::stop_one(self, found.id()).await
            }
            Action::StopRequests => running::stop_all(self, read(body)?).await,
            Action::ListBackends => running::backends(self),
            Action::SetDrained(drained) => {
                read_or_default::<Nothing>(body)?;
                running::drain(self, found.id(), drained).await
            }
        };
        whole.map(|answer| answer.map(Content::Whole))
    }

    fn metrics(&self) -> Result<Response<Bytes>, Reject> {
        let text = self.metrics.encode((self.gauges)()).map_err(|_| Reject::Internal)?;
        let mut response = Response::new(Bytes::from(text));
        let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Ok(response)
    }

    fn by(&self) -> Actor {
        Actor { who: self.who.name().to_string(), client: Some(self.client.ip()) }
    }

    fn store(&self) -> Result<Arc<Store>, Reject> {
        let keys = self.memory.managed().ok_or(Reject::NoStore)?;
        Ok(Arc::clone(keys.store()))
    }

    /// Does what takes its time where that holds up nobody.
    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Reject> {
        let store = self.store()?;
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.map_err(|_| Reject::Internal)?.map_err(from_store)
    }
}

fn from_store(error: StoreError) -> Reject {
    match error {
        StoreError::NoSuchKey(key) => Reject::NotFound(format!("no key is called {key}").into()),
        StoreError::Refused(why) => Reject::Conflict(why.into()),
        StoreError::Busy
        | StoreError::Full
        | StoreError::Folder { .. }
        | StoreError::Missing { .. }
        | StoreError::WritableByOthers { .. }
        | StoreError::Unreadable { .. }
        | StoreError::Newer { .. }
        | StoreError::NotOurs { .. }
        | StoreError::Corrupt { .. }
        | StoreError::Gone { .. }
        | StoreError::Replaced { .. }
        | StoreError::ReadOnly(_)
        | StoreError::Disk(_)
        | StoreError::OddKeys { .. }
        | StoreError::Failed(_) => Reject::StoreFailed(Box::new(error)),
    }
}

/// Fields by name. A list of their values, which `serde` would take too, is none.
#[derive(Debug, Default)]
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Named<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Named<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(Named(PhantomData))
    }
}

/// A body with no fields at all.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Unknown fields are refused by name, and so are those that come twice.
fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, Reject> {
    let read = serde_json::from_slice(body).map(|Object(fields)| fields);
    read.map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Reject::Invalid(error.to_string().into()),
        serde_json::error::Category::Syntax
        | serde_json::error::Category::Eof
        | serde_json::error::Category::Io => Reject::BadBody("the body is not JSON"),
    })
}

fn read_or_default<T: DeserializeOwned + Default>(body: &Bytes) -> Result<T, Reject> {
    if body.is_empty() { Ok(T::default()) } else { read(body) }
}

async fn audit(desk: Desk<'_>, query: &Query) -> Result<Response<Bytes>, Reject> {
    let limit = query.limit()?;
    let before = query.number("after")?;
    let subject = query.text("subject").map(str::to_owned);
    // One more tells whether there is a next page; the store gives no more than its own bound.
    let asked = AuditQuery { before, limit: limit + 1, subject };
    let mut entries = desk.with_store(move |store| store.audit(&asked)).await?;
    let more = entries.len() > limit;
    entries.truncate(limit);
    let next = entries.last().filter(|_| more).map(|entry| entry.number);
    let entries: Vec<_> = entries.iter().map(crate::store::AuditEntry::to_json).collect();
    Ok(json_answer(StatusCode::OK, &json!({"entries": entries, "next": next})))
}

fn decisions(desk: Desk<'_>, query: &Query) -> Result<Response<Bytes>, Reject> {
    let after = query.text("after").map(request_id).transpose()?;
    let (decisions, more) = desk.decisions.page(after, query.limit()?);
    let next = decisions.last().filter(|_| more).and_then(|last| last.get("id")).cloned();
    Ok(json_answer(StatusCode::OK, &json!({"decisions": decisions, "next": next})))
}

fn decision(desk: Desk<'_>, id: &str) -> Result<Response<Bytes>, Reject> {
    let found = RequestId::parse(id).and_then(|id| desk.decisions.find(id));
    let found = found.ok_or_else(|| {
        let says = "no request of that id has ended of late; the last 10,000 are remembered until \
                    the gate ends";
        Reject::NotFound(says.into())
    })?;
    Ok(json_answer(StatusCode::OK, &found))
}

fn request_id(text: &str) -> Result<RequestId, Reject> {
    RequestId::parse(text)
        .ok_or_else(|| Reject::Invalid("`after` has to be the id of a request".into()))
}

fn json_answer(status: StatusCode, value: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(value.to_string()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// # Errors
/// 415 for a body that is not said to be JSON: a page of another site may send a form without asking
/// first.
pub fn only_json(headers: &HeaderMap) -> Result<(), Reject> {
    let is_json = |kind: &HeaderValue| {
        let kind = kind.as_bytes().split(|b| *b == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"application/json")
    };
    let plain = !headers.contains_key(header::CONTENT_ENCODING);
    match headers.get(header::CONTENT_TYPE).is_some_and(is_json) && plain {
        true => Ok(()),
        false => Err(Reject::UnsupportedMediaType),
    }
}
