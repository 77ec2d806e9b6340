//! From a request to its [`Lease`]: at once, or when its turn comes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::choice::{Wanted, tried};
use super::line::{Entered, Held, Line, Stranded, Waiting};
use super::queue::{Ask, Class as Urgency, Queue};
use super::{Backend, Lease, Pool, Watch, managed, refusal};
use crate::api::Class;
use crate::call::Call;
use crate::config::{AtOnce, BackendKind, Priority};
use crate::limit::Ticket;
use crate::reject::Reject;

/// What became of a request that asked for a place.
#[derive(Debug)]
pub enum Choice {
    Now(Lease),
    Later(Box<Wait>),
}

/// A request that waits for its turn; dropping it leaves the queue.
#[derive(Debug)]
pub struct Wait {
    waiting: Waiting,
    candidates: Vec<Arc<Backend>>,
    terms: Terms,
    patience: Duration,
}

/// What goes into a lease beside the backend.
#[derive(Debug, Clone, Copy)]
struct Terms {
    connect_timeout: Duration,
    is_watched: bool,
}

impl Pool {
    /// A place at the backend that suits the request best, or in the queue for one. `model`: as Ollama
    /// shows it, of a request that a model works on.
    ///
    /// # Errors
    /// 404 for a model that no backend has, 503 where there is no backend for it, or where as many wait
    /// as may.
    pub async fn choose(
        &self,
        admitted: &Ticket,
        call: &Call<'_>,
        model: Option<&str>,
    ) -> Result<Choice, Reject> {
        if managed::may_change_models(call) {
            return Box::pin(self.choose_manager(admitted, call)).await.map(Choice::Now);
        }
        if let [only] = self.backends.as_slice()
            && only.takes_anything()
        {
            return self.enter(std::slice::from_ref(only), (admitted, call), model);
        }
        Box::pin(self.choose_among(admitted, call, model, |_| true)).await
    }

    /// The same for a request that waited until no backend was left that had its model: another may
    /// have come by it meanwhile. Those that are out are not tried, as they are for a new request: all
    /// who waited would come at once.
    ///
    /// # Errors
    /// As [`Pool::choose`].
    pub async fn choose_again(
        &self,
        admitted: &Ticket,
        call: &Call<'_>,
        model: Option<&str>,
    ) -> Result<Choice, Reject> {
        self.choose_among(admitted, call, model, Backend::is_in).await
    }

    /// A place at another backend than that of `failed`, for a request that never began there; `None`
    /// where no other takes it.
    ///
    /// # Errors
    /// 503 where as many wait there as may.
    pub async fn instead(
        &self,
        failed: &Lease,
        admitted: &Ticket,
        call: &Call<'_>,
        model: Option<&str>,
    ) -> Result<Option<Choice>, Reject> {
        if self.backends.len() < 2 || managed::may_change_models(call) {
            return Ok(None);
        }
        let is_another = |it: &Backend| it.serial() != failed.backend.serial();
        match Box::pin(self.choose_among(admitted, call, model, is_another)).await {
            Ok(choice) => Ok(Some(choice)),
            Err(full @ Reject::QueueFull { .. }) => Err(full),
            Err(_) => Ok(None),
        }
    }

    async fn choose_among(
        &self,
        admitted: &Ticket,
        call: &Call<'_>,
        model: Option<&str>,
        may: impl Fn(&Backend) -> bool,
    ) -> Result<Choice, Reject> {
        let wanted = Wanted::of(admitted, call, &self.digests);
        let candidates = self.candidates(&wanted).await;
        let mut candidates =
            candidates.map_err(|nobody| refusal(nobody, admitted.permit(), call))?;
        candidates.retain(|it| may(it));
        self.enter(&candidates, (admitted, call), model)
    }

    /// `candidates`: the best one first.
    fn enter(
        &self,
        candidates: &[Arc<Backend>],
        (admitted, call): (&Ticket, &Call<'_>),
        model: Option<&str>,
    ) -> Result<Choice, Reject> {
        let (candidates, trial) = tried(candidates);
        let best = candidates.first().ok_or_else(none_takes_it)?;
        let terms = self.terms();
        if trial.is_some() {
            let held = self.pass(best, admitted, call);
            return Ok(Choice::Now(terms.watched_lease(best, held, trial)));
        }
        let has_turns = best.is_bounded() && best.works_for(admitted);
        // Its one model works on what names none; Ollama refuses that at once.
        let works_unnamed =
            best.kind() == BackendKind::OpenAi && call.asked.class() == Class::Inference;
        let model = model.or(works_unnamed.then_some(UNNAMED));
        let Some(model) = model.filter(|_| has_turns) else {
            return Ok(Choice::Now(self.beside(best, admitted, call)));
        };
        let mut queued: Vec<_> = candidates.iter().filter(|it| it.is_in()).collect();
        if queued.is_empty() {
            queued.extend(candidates);
        }
        queued.retain(|it| it.is_bounded());
        let asks = |queue: &Queue| ask(queue, (admitted, call), model, &queued);
        let free = candidates.iter().find(|it| !it.is_bounded());
        match (Line::enter(&self.line, asks), free) {
            (Entered::Runs(held), _) => terms.lease_of(held, candidates).map(Choice::Now),
            // Whoever takes any number keeps nobody waiting.
            (Entered::Full | Entered::Waits(_), Some(free)) => {
                Ok(Choice::Now(self.beside(free, admitted, call)))
            }
            (Entered::Full, None) => {
                let wait = self.line.with(|queue, _| queue.expected_wait(&asks(queue)));
                Err(Reject::QueueFull { wait: Duration::from_micros(wait) })
            }
            (Entered::Waits(waiting), None) => Ok(Choice::Later(Box::new(Wait {
                waiting,
                candidates: candidates.to_vec(),
                terms,
                patience: self.queue_timeout,
            }))),
        }
    }

    fn terms(&self) -> Terms {
        Terms { connect_timeout: self.connect_timeout, is_watched: self.backends.len() > 1 }
    }

    /// A place that is nobody's turn.
    pub(super) fn beside(
        &self,
        backend: &Arc<Backend>,
        admitted: &Ticket,
        call: &Call<'_>,
    ) -> Lease {
        self.terms().lease(backend, self.pass(backend, admitted, call))
    }

    /// What takes no slot is seen all the same while a backend works for it.
    fn pass(&self, backend: &Arc<Backend>, admitted: &Ticket, call: &Call<'_>) -> Option<Held> {
        match call.asked.class() {
            Class::Health | Class::Models | Class::Owner => None,
            Class::Inference | Class::Manage | Class::Unknown => {
                let model = call.model();
                let model = model.as_deref().unwrap_or(UNNAMED);
                let ask = |queue: &Queue| ask(queue, (admitted, call), model, &[backend]);
                Some(Line::pass(&self.line, backend.place(), ask))
            }
        }
    }
}

/// In the place of a model's name, which this cannot be.
const UNNAMED: &str = "-";

impl Backend {
    /// Whether requests wait for their turn there.
    fn is_bounded(&self) -> bool {
        self.parallel() != AtOnce::Unbounded
    }

    /// Whether a slot of its own is taken: not for what it sends on, nor for what it does not have.
    fn works_for(&self, admitted: &Ticket) -> bool {
        let model = admitted.permit().model();
        model.is_none_or(|model| !self.sends_on(model) && !self.lacks(model, Instant::now()))
    }
}

impl Wait {
    /// How many waited when it came, itself among them.
    #[must_use]
    pub fn position(&self) -> usize {
        self.waiting.position()
    }

    /// A place at a backend, when the turn comes; `None` when no backend is left that has the model.
    /// `waited`: how long it did before, which counts too.
    ///
    /// # Errors
    /// 503 after `queue_timeout`.
    pub async fn turn(self, waited: Duration) -> Result<Option<Lease>, Reject> {
        let Self { mut waiting, candidates, terms, patience } = self;
        match tokio::time::timeout(patience.saturating_sub(waited), &mut waiting).await {
            Ok(Ok(held)) => terms.lease_of(held, &candidates).map(Some),
            Ok(Err(Stranded)) => Ok(None),
            Err(_late) => {
                Err(Reject::QueueTimeout { wait: Duration::from_micros(waiting.give_up()) })
            }
        }
    }
}

impl Terms {
    fn lease_of(self, held: Held, candidates: &[Arc<Backend>]) -> Result<Lease, Reject> {
        let backend = candidates.iter().find(|it| it.place() == held.place());
        Ok(self.lease(backend.ok_or_else(none_takes_it)?, Some(held)))
    }

    fn lease(self, backend: &Arc<Backend>, held: Option<Held>) -> Lease {
        self.watched_lease(backend, held, self.is_watched.then(|| backend.watch()))
    }

    fn watched_lease(
        self,
        backend: &Arc<Backend>,
        held: Option<Held>,
        watch: Option<Watch>,
    ) -> Lease {
        backend.begin();
        Lease {
            backend: Arc::clone(backend),
            connect_timeout: self.connect_timeout,
            held,
            is_counted: true,
            watch,
            is_watched: self.is_watched,
            change: None,
        }
    }
}

fn none_takes_it() -> Reject {
    Reject::NoBackend("none takes it".into())
}

fn ask(
    queue: &Queue,
    (admitted, call): (&Ticket, &Call<'_>),
    model: &str,
    candidates: &[&Arc<Backend>],
) -> Ask {
    let rule = admitted.permit().reach().rule();
    let is_batch = rule.priority == Priority::Batch || call.is_flexible();
    Ask {
        course: Arc::clone(admitted.course()),
        weight: rule.weight.thousandths(),
        class: if is_batch { Urgency::Batch } else { Urgency::Interactive },
        model: queue.model(model),
        places: candidates.iter().fold(0, |set, it| set | 1 << it.place()),
        preferred: candidates.first().map_or(0, |it| it.place()),
        bytes: call.body.length().unwrap_or_default(),
        prompt: call.reading.prompt_estimate(),
        streams: call.streams() && call.takes_a_slot(),
    }
}

/// What the queue may be told of a backend.
pub(super) fn bound(at_once: AtOnce) -> Option<usize> {
    match at_once {
        AtOnce::Auto => None,
        AtOnce::AtMost(most) => usize::try_from(most.get()).ok(),
        AtOnce::Unbounded => Some(usize::MAX),
    }
}
