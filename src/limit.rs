//! Permit and now to a [`Ticket`]: how much, how much at once, and whether it may go on. It also counts
//! what is in flight, and ends what runs by a key that was taken away.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::access::{Entry, Permit};
use crate::api::Class;
use crate::config::ModelName;
use crate::reject::{Left, Reject};
use crate::store::{KeyId, Usage};

mod account;
mod book;
mod bucket;
mod carried;
mod charges;
mod course;
mod leash;
mod period;
mod plan;
mod shown;

pub use charges::Charges;
pub use course::{Course, End};
pub use plan::{Plan, Subject};
pub use shown::{Bears, Shown};

use account::Moment;
use book::Book;
use leash::{Leash, Leashes};
use period::Almanac;
use plan::Bearing;

const REVOKED: Reject = Reject::BadCredentials("the key was revoked", None);

/// What is in flight now, and what was used; survives a reload.
#[derive(Debug, Default, Clone)]
pub struct Limits {
    in_flight: Arc<AtomicUsize>,
    leashes: Leashes,
    book: Arc<Book>,
}

/// What is asked for, as far as limits go.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    pub class: Class,
    /// As it is written in the request.
    pub model: Option<&'a str>,
    /// Of the prompt, with the most that the answer may have; until the true number is known.
    pub tokens_held: u64,
    pub now: Instant,
    pub wall: Timestamp,
    /// Whether nothing can be kept of what would be used.
    pub ledger_full: bool,
}

/// A request whose body may be sent; it counts as in flight.
#[derive(Debug)]
pub struct Entered {
    in_flight: Arc<AtomicUsize>,
    course: Arc<Course>,
    /// Of who came with a managed key.
    _leash: Option<Box<Leash>>,
}

/// One admitted request; dropping it settles what was taken. Only [`Limits::admit`] makes one.
#[derive(Debug)]
pub struct Ticket {
    permit: Permit,
    entered: Entered,
    /// Of who has limits; settled and given back when it goes.
    charges: Option<Box<Charges>>,
}

impl Limits {
    /// `id` names the request in the log.
    #[must_use]
    pub fn enter(&self, may_send: &Entry, id: [u8; 16], operation: &'static str) -> Entered {
        let who = may_send.reach().who();
        let course = Arc::new(Course::new(id, who.name().clone(), operation));
        let leash = who.managed_key().map(|key| Box::new(self.leashes.take(key, &course)));
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Entered { in_flight: Arc::clone(&self.in_flight), course, _leash: leash }
    }

    /// Takes what the request needs of every limit that bears on it, or nothing. Who has no limits is
    /// not asked.
    ///
    /// # Errors
    /// 429 where a limit is reached; 503 for who has limits while nothing can be kept.
    pub fn admit<'a>(
        &self,
        plan: &Plan,
        permit: Permit,
        entered: Entered,
        ask: impl FnOnce() -> Ask<'a>,
    ) -> Result<Ticket, Reject> {
        let charges = match plan.is_free(Subject::own_of(permit.reach())) {
            true => None,
            false => self.take(plan, &Subject::of(permit.reach()), &ask())?,
        };
        Ok(Ticket { permit, entered, charges })
    }

    /// The same for whom there is no permit, as when past requests are tried against a plan.
    ///
    /// # Errors
    /// As [`Limits::admit`].
    pub fn take(
        &self,
        plan: &Plan,
        who: &Subject<'_>,
        ask: &Ask<'_>,
    ) -> Result<Option<Box<Charges>>, Reject> {
        let model = model_of(ask);
        let bearing = bearing(plan, who, ask, model.as_ref());
        if bearing.is_empty() {
            return Ok(None);
        }
        if ask.ledger_full {
            return Err(Reject::Overloaded("the usage journal is full"));
        }
        let almanac = Almanac::of(ask.wall, plan.zone());
        let spends = ask.class == Class::Inference;
        let moment = Moment { now: ask.now, almanac, is_work: is_work(ask.class), spends };
        let charges = Charges::take(&self.book, bearing, ask.tokens_held, &moment)?;
        Ok(Some(Box::new(charges)))
    }

    /// Ends what runs by this key, which is for ever; how many requests that were.
    pub fn end(&self, key: KeyId) -> usize {
        self.leashes.end(key)
    }

    /// Requests between the login and the end of their answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

impl Ticket {
    #[must_use]
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// As it is seen by others.
    #[must_use]
    pub fn course(&self) -> &Arc<Course> {
        &self.entered.course
    }

    /// A backend has it. Without more it is charged from here on for the backend's time and for the
    /// `prompt`'s tokens.
    pub fn begin(&self, now: Instant, prompt: Option<u64>) {
        if let Some(charges) = &self.charges {
            charges.begin(now, prompt.unwrap_or_default());
        }
    }

    /// The backend did not answer: its time is charged, and no tokens.
    pub fn fail(&mut self, now: Instant) {
        if let Some(charges) = &mut self.charges {
            charges.fail(now);
        }
    }

    /// What was used in the place of what was held; once.
    pub fn settle(&mut self, usage: &Usage, backend_time: Duration, now: impl FnOnce() -> Instant) {
        if let Some(charges) = &mut self.charges {
            charges.settle(usage.tokens(), backend_time, now());
        }
    }

    /// For the answer's headers; `None` for who has no limits.
    #[must_use]
    pub fn left(&self) -> Option<&Left> {
        self.charges.as_deref().map(Charges::left)
    }

    /// Ready, with what the caller is told, once the request may not go on.
    pub fn poll_ended(&self, cx: &Context<'_>) -> Poll<Reject> {
        match self.entered.course.ended(cx) {
            Some(End::Revoked) => Poll::Ready(REVOKED),
            Some(End::Stopped) => Poll::Ready(Reject::Stopped),
            None => Poll::Pending,
        }
    }

    /// The work's own end, or that of the leave to do it.
    ///
    /// # Errors
    /// The work's, and 401 where the key was taken away.
    pub async fn unless_ended<T>(
        &self,
        mut work: Pin<&mut impl Future<Output = Result<T, Reject>>>,
    ) -> Result<T, Reject> {
        poll_fn(|cx| match self.poll_ended(cx) {
            Poll::Ready(ended) => Poll::Ready(Err(ended)),
            Poll::Pending => work.as_mut().poll(cx),
        })
        .await
    }
}

fn model_of(ask: &Ask<'_>) -> Option<ModelName> {
    ask.model.and_then(|model| ModelName::parse(model).ok())
}

/// The limits that have to be asked; none for what does not count.
fn bearing<'a>(
    plan: &'a Plan,
    who: &Subject<'a>,
    ask: &Ask<'_>,
    model: Option<&'a ModelName>,
) -> Vec<Bearing<'a>> {
    if !counts(ask.class) {
        return Vec::new();
    }
    let mut bearing = plan.bearing(who, model);
    bearing.retain(|it| !it.allowance.is_empty());
    bearing
}

/// Clients ask for health and lists all the time, and no model works for it.
fn counts(class: Class) -> bool {
    match class {
        Class::Health | Class::Models => false,
        Class::Inference | Class::Manage | Class::Owner | Class::Unknown => true,
    }
}

/// What an unknown endpoint makes the backend do nobody knows.
fn is_work(class: Class) -> bool {
    match class {
        Class::Inference | Class::Unknown => true,
        Class::Health | Class::Models | Class::Manage | Class::Owner => false,
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
