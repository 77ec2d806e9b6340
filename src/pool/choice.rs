//! Which backends may have a request, the best one first; nothing is asked or changed here.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use super::health::Fitness;
use super::{Backend, Watch};
use crate::api::{Asked, Class};
use crate::call::Call;
use crate::config::{BackendKind, ModelName};
use crate::limit::Ticket;

/// What decides to which backend a request goes.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub asked: &'a Asked,
    pub model: Option<&'a ModelName>,
    /// The same for each request of a conversation.
    pub conversation: u64,
}

impl<'a> Wanted<'a> {
    /// Of what the conversation says only a number is kept, by a key that nobody knows.
    pub(super) fn of(admitted: &'a Ticket, call: &'a Call<'_>, key: &RandomState) -> Self {
        let mut hasher = key.build_hasher();
        let permit = admitted.permit();
        permit.who().name().as_str().hash(&mut hasher);
        permit.model().hash(&mut hasher);
        call.reading.beginning().hash(&mut hasher);
        Self { asked: &call.asked, model: permit.model(), conversation: hasher.finish() }
    }

    /// Whether a backend of this kind has the endpoint at all.
    fn is_for(&self, kind: BackendKind) -> bool {
        match kind {
            BackendKind::Ollama => true,
            BackendKind::OpenAi => self.asked.path().starts_with("/v1/"),
        }
    }

    /// Whether it belongs to one backend, whatever becomes of that: a blob and what is made of it, a
    /// model that is pulled and then copied.
    fn belongs_home(&self) -> bool {
        match self.asked.class() {
            Class::Manage | Class::Owner | Class::Unknown => true,
            Class::Health | Class::Inference | Class::Models => false,
        }
    }

    /// The model that a backend has to have already.
    fn needed(&self) -> Option<&'a ModelName> {
        match self.asked.class() {
            Class::Inference | Class::Models => self.model,
            Class::Health | Class::Manage | Class::Owner | Class::Unknown => None,
        }
    }
}

/// Why there is no backend for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nobody {
    /// None speaks what is asked for.
    Speaks,
    /// Each told what it has, and none has the model.
    HasIt,
    /// Those that could are in maintenance.
    IsThere,
}

/// How a backend stands to a request.
#[derive(Debug, Clone, Copy)]
struct Standing {
    has: Option<bool>,
    rank: Rank,
}

/// The least goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    is_stuck: bool,
    /// Of requests that any could answer.
    is_not_home: bool,
    is_not_loaded: bool,
    /// Requests there, in relation to its share.
    load: u64,
    /// In relation to its share as well, and another order for each conversation.
    affinity: u64,
}

/// Those that may have it, the best first: who has the model, or else those of which it is not known;
/// of them those that are well, or else all.
pub(super) fn candidates(
    backends: &[Arc<Backend>],
    wanted: &Wanted<'_>,
    now: Instant,
) -> Result<Vec<Arc<Backend>>, Nobody> {
    let is_alone = backends.len() == 1;
    let speaks = || backends.iter().filter(|backend| wanted.is_for(backend.kind()));
    let home = speaks().find(|it| it.manages()).or_else(|| speaks().next());
    let is_home = |it: &Arc<Backend>| home.is_some_and(|home| home.serial() == it.serial());
    let standing = |it: &Arc<Backend>| standing(it, is_home(it), wanted, now);
    let may = |it: &&Arc<Backend>| !wanted.belongs_home() || is_home(it);
    let all: Vec<_> = speaks().filter(may).map(|it| (it, standing(it))).collect();
    if all.is_empty() {
        return Err(Nobody::Speaks);
    }
    // One that is alone says so itself.
    if !is_alone && all.iter().all(|(_, (it, _))| it.has == Some(false)) {
        return Err(Nobody::HasIt);
    }
    let here: Vec<_> = all.into_iter().filter(|(backend, _)| !backend.is_drained()).collect();
    for (has, is_out) in [(Some(true), false), (None, false), (Some(true), true), (None, true)] {
        let is_in = |it: &Standing| is_alone || it.has == has;
        let group = here.iter().filter(|(_, (it, out))| is_in(it) && *out == is_out);
        let mut group: Vec<_> = group.map(|(backend, (it, _))| (*backend, it.rank)).collect();
        if !group.is_empty() {
            group.sort_by_key(|(_, rank)| *rank);
            if group.first().is_some_and(|(_, best)| !best.is_stuck) {
                group.retain(|(_, rank)| !rank.is_stuck);
            }
            return Ok(group.into_iter().map(|(backend, _)| Arc::clone(backend)).collect());
        }
    }
    Err(Nobody::IsThere)
}

/// From the one on that gets the request, and the watch over it where that one is out while others are
/// well, and is to show by this request how it is. One at a time does: whoever comes a moment later goes
/// to the next.
pub(super) fn tried(mut candidates: &[Arc<Backend>]) -> (&[Arc<Backend>], Option<Watch>) {
    while let [best, others @ ..] = candidates
        && others.iter().any(|it| it.is_in())
        && !best.is_in()
    {
        match best.try_out() {
            Some(watch) => return (candidates, Some(watch)),
            None => candidates = others,
        }
    }
    (candidates, None)
}

/// And whether it is out.
fn standing(
    backend: &Backend,
    is_home: bool,
    wanted: &Wanted<'_>,
    now: Instant,
) -> (Standing, bool) {
    let (is_stuck, is_out, share) = match backend.fitness(now) {
        Fitness::Fit { share } => (false, false, share),
        Fitness::Stuck => (true, false, 1000),
        Fitness::Out => (false, true, 1000),
    };
    let share = (u64::from(backend.weight().thousandths()) * share).max(1);
    let busy = u64::try_from(backend.busy()).unwrap_or(u64::MAX);
    let rank = Rank {
        is_stuck,
        is_not_home: wanted.asked.class() != Class::Inference
            && wanted.needed().is_none()
            && !is_home,
        is_not_loaded: wanted.needed().is_some_and(|model| !backend.is_loaded(model)),
        load: busy.saturating_mul(1 << 32) / share,
        affinity: affinity(wanted.conversation, backend.name(), share),
    };
    let has = wanted.needed().map_or(Some(true), |model| backend.has(model));
    (Standing { has, rank }, is_out)
}

/// Weighted rendezvous: a backend that goes takes only its own conversations along, and each gets as
/// many as its share is of all.
fn affinity(conversation: u64, name: &str, share: u64) -> u64 {
    let mut hash = conversation;
    for byte in name.bytes() {
        hash = mixed(hash ^ u64::from(byte));
    }
    // Above 0 and below 1, in 52 bits, which a fraction holds exactly.
    let fraction = ((hash >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
    // A fraction that is too large becomes the largest number.
    (-fraction.ln() / share as f64 * (1_u64 << 62) as f64) as u64
}

/// Each bit of the outcome depends on each of `x` (splitmix64).
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests;
