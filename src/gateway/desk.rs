//! The path of a request for the admin API, as far as the gateway has to do with it.

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use http::Response;
use http::request::Parts;

use super::login::presented;
use super::{Gateway, Served, Visit, gauges};
use crate::admin::{self, Content, Desk, Found};
use crate::api::Target;
use crate::auth::Identity;
use crate::call;
use crate::client_addr::{ClientAddr, PeerAddr};
use crate::http1::Arrival;
use crate::incoming::Incoming;
use crate::record::{Chain, Record};
use crate::reject::Reject;
use crate::store::{Actor, Event, Secret, StoreError};

impl Visit<'_> {
    /// In a box, so that the path of everybody else takes no room for it.
    pub(super) async fn administer(
        &self,
        parts: &Parts,
        body: Incoming,
        arrived: &Arrival,
        record: &mut Record,
    ) -> Result<Served, Reject> {
        let answer = Box::pin(self.at_the_desk(parts, body, arrived, record)).await?;
        let (head, content) = answer.into_parts();
        Ok(match content {
            Content::Whole(data) => Served::Own(Response::from_parts(head, data)),
            Content::Flowing(flow) => Served::Flowing(Response::from_parts(head, flow)),
        })
    }

    async fn at_the_desk(
        &self,
        parts: &Parts,
        body: Incoming,
        arrived: &Arrival,
        record: &mut Record,
    ) -> Result<Response<Content>, Reject> {
        let Self { live, state, link, .. } = self;
        let client = state.proxies().client_addr(PeerAddr::new(link.peer.ip()), &parts.headers);
        record.opened(client, &parts.method, parts.uri.path());
        let target = call::strict(parts)?;
        let found = Found::new(&parts.method, &target.path);
        if found.as_ref().is_ok_and(|found| found.route().answers_any_host()) {
            admin::only_own_pages(&parts.headers)?;
        } else {
            admin::only_from_here(&parts.headers, state.config().public_url.as_deref())?;
        }
        if target.path_key.is_some() {
            return Err(Reject::UnknownEndpoint);
        }
        let found = found?;
        let who = self.admin(parts, &target, client, record).await?;
        record.met(&who);
        record.line.operation = Some(found.route().operation);
        found.admit(&who)?;
        let body = call::own_body(body, admin::MOST_BODY, state.bounds(), arrived).await?;
        if !body.is_empty() {
            if !found.route().takes_a_body() {
                return Err(Reject::BadBody("nothing is to be sent with this request"));
            }
            admin::only_json(&parts.headers)?;
        }
        let desk = Desk {
            config: state.config(),
            memory: &live.memory,
            limits: &live.limits,
            pool: state.pool(),
            decisions: live.log.decisions(),
            metrics: live.log.metrics(),
            gauges: &|| gauges::look(live, state),
            who: &who,
            client,
            now: record.started(),
        };
        desk.answer(&found, parts.uri.query(), &body).await
    }

    async fn admin(
        &self,
        parts: &Parts,
        target: &Target,
        client: ClientAddr,
        record: &Record,
    ) -> Result<Identity, Reject> {
        let Self { live, state, .. } = self;
        let presented = presented(parts, target, None);
        let now = record.started();
        let who = state.auth().authenticate_for_admin(&live.memory, client, presented, now).await;
        if let Err(reject @ (Reject::BadCredentials(..) | Reject::TooManyFailures { .. })) = &who
            && let Some(keys) = live.memory.managed()
            && let Some(note) = {
                let meant = state.auth().meant(&parts.headers);
                live.failed_logins.count(client, reject.row().code, meant, now)
            }
        {
            let store = std::sync::Arc::clone(keys.store());
            keep(vec![note], move |event, by| store.note(event, by)).await;
        }
        who
    }
}

impl Gateway {
    /// Writes a key for the commands of this machine, new with each process, which lets them in as
    /// the admin `cli`; `None` without a data folder.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn let_commands_in(&self) -> io::Result<Option<PathBuf>> {
        let Some(keys) = self.live.memory.managed() else { return Ok(None) };
        let secret = Secret::draw().map_err(io::Error::other)?;
        let file = admin::write_command_key(keys.store().folder(), &secret)?;
        self.live.memory.let_commands_in(&secret);
        Ok(Some(file))
    }

    pub(super) async fn keep_failed_logins(&self, now: Instant) {
        let Some(keys) = self.live.memory.managed() else { return };
        let due = self.live.failed_logins.due(now);
        if !due.is_empty() {
            let store = std::sync::Arc::clone(keys.store());
            keep(due, move |event, by| store.note(event, by)).await;
        }
    }
}

/// What cannot be written is told in the log; the caller is refused all the same.
async fn keep(
    notes: Vec<(Event, Actor)>,
    write: impl Fn(Event, &Actor) -> Result<(), StoreError> + Send + 'static,
) {
    let work = move || {
        for (event, by) in notes {
            if let Err(error) = write(event, &by) {
                tracing::warn!("a failed login is not in the audit trail: {}", Chain(&error));
            }
        }
    };
    // A panic in it has been told.
    let _ = tokio::task::spawn_blocking(work).await;
}
