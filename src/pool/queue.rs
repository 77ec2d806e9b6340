//! The fair queue: whose request a backend works on next. Time is an argument; nothing waits here.
//!
//! Each backend has a virtual clock. A flow, which is one identity, has a tag on it: the backend time
//! that it was given there, divided by its weight. The waiting flow with the lowest tag is next
//! (start-time fair queueing, Goyal, Vin and Cheng 1996), so that flows share *time*, whatever number of
//! requests each has open. What a request takes is not known before, so a flow is charged what is
//! expected at its start, more as the request outlasts that, and the truth at its end.
//!
//! Two things may pass a flow over: a request for the model in memory, for [`GROUPING`] at most, so that
//! two models do not evict each other by turns; and, of those who wait for a less urgent class, everybody,
//! but for a tenth of the time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use slab::Slab;

use crate::limit::Course;

mod charge;
mod flow;
mod parallel;
mod pick;
mod room;
mod shown;

pub use parallel::Parallel;
pub use shown::{Intake, Seen, SeenModel, Setup, Spot, whole_seconds};

use flow::{Flow, Lane};
use pick::Pick;
use room::Room;
use shown::{FEW, Positions};

/// So long the model in memory is served while a flow whose turn has come waits for another one; and so
/// far ahead of that flow, in weighted time, whoever is served instead may be.
pub const GROUPING: Duration = Duration::from_secs(20);
/// So long a request waits for a busy backend that has its model in memory before it makes another
/// backend load it.
pub const RELUCTANCE: Duration = Duration::from_secs(5);
/// Of backend time, what [`Class::Batch`] has while it waits: one part in so many.
pub const FLOOR: u64 = 10;
/// A set of backends is a word of bits.
pub const MOST_BACKENDS: usize = 64;

/// Microseconds since the queue began.
pub type Micros = u64;

/// Backends, by their places.
pub type Places = u64;

/// How urgent a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Class {
    #[default]
    Interactive,
    Batch,
}

/// A request that wants a slot.
#[derive(Debug, Clone)]
pub struct Ask {
    pub course: Arc<Course>,
    /// In thousandths.
    pub weight: u32,
    pub class: Class,
    pub model: Arc<str>,
    /// Where its model is; one at least.
    pub places: Places,
    /// Of its body, which is kept while it waits.
    pub bytes: u64,
    /// Tokens of its prompt, as far as known.
    pub prompt: u64,
    /// Its answer's first byte tells when the backend began with it.
    pub streams: bool,
    /// The place that suits it best, where several are free.
    pub preferred: usize,
}

/// How many may wait.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub of_one: usize,
    pub in_all: usize,
    /// Of the bodies of one identity's requests.
    pub bytes_of_one: u64,
    /// Models that one identity waits for.
    pub models_of_one: usize,
}

/// What a request was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub place: usize,
    pub run: usize,
}

/// How a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    Runs(Slot),
    /// Its place in the queue, to be given back by [`Queue::leave`] or [`Queue::poll`].
    Waits(usize),
    /// As many wait as may.
    Full,
}

/// What became of a request that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Waits,
    Runs(Slot),
    /// No backend is left that has its model.
    Stranded,
}

/// See the top of the file.
#[derive(Debug)]
pub struct Queue {
    bounds: Bounds,
    backends: Vec<Backend>,
    flows: Slab<Flow>,
    by_name: HashMap<Box<str>, usize>,
    lanes: Slab<Lane>,
    waiting: Slab<Waiting>,
    running: Slab<Running>,
    /// Of those who wait, who has no slot yet.
    queued: usize,
    arrivals: u64,
    /// When positions were last told where many wait, and which.
    told: Option<(Micros, Positions)>,
    /// Tasks whose turn has come, to be woken outside of any lock.
    due: Vec<Waker>,
}

/// A backend, as far as its slots go.
#[derive(Debug)]
struct Backend {
    intake: Intake,
    /// It is in no configuration any more.
    is_gone: bool,
    weight: u32,
    parallel: Parallel,
    /// Models side by side; `None` is learned.
    models_at_once: Option<usize>,
    seen_at_once: usize,
    /// What is in its memory, what was used last first.
    resident: Vec<Arc<str>>,
    rooms: BTreeMap<Arc<str>, Room>,
    busy: usize,
    /// The tag of whoever was served last.
    clock: u64,
    /// What the less urgent have coming.
    owed: i64,
    /// Since when a flow whose turn has come is passed over.
    held_since: Option<Micros>,
}

#[derive(Debug)]
struct Waiting {
    ask: Ask,
    lane: usize,
    order: u64,
    since: Micros,
    turn: Turn,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Running {
    ask: Ask,
    place: usize,
    /// `None` while nobody had to wait.
    flow: Option<usize>,
    began: Micros,
    waited: Micros,
    /// What came before somebody waited costs nothing.
    counts_from: Micros,
    charged: Micros,
    first_byte: Option<Micros>,
    is_probe: bool,
    /// Another of its model ended before its first byte.
    is_outlived: bool,
    /// It takes no slot from anybody.
    is_slotless: bool,
}

impl Queue {
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            backends: Vec::new(),
            flows: Slab::new(),
            by_name: HashMap::new(),
            lanes: Slab::new(),
            waiting: Slab::new(),
            running: Slab::new(),
            queued: 0,
            arrivals: 0,
            told: None,
            due: Vec::new(),
        }
    }

    /// A slot, or a place in the queue.
    pub fn join(&mut self, ask: Ask, now: Micros) -> Joined {
        if let Some(place) = self.free_at_once(&ask, now) {
            return Joined::Runs(self.run(ask, place, None, (now, now)));
        }
        let flow = self.flow(ask.course.who.as_str());
        if self.queued >= self.bounds.in_all || !self.may_wait(flow, &ask) {
            self.forget_idle(flow);
            return Joined::Full;
        }
        let places = ask.places;
        let id = self.line_up(ask, flow, now);
        self.fill(places, now);
        match self.waiting.get(id).map(|it| it.turn) {
            Some(Turn::Runs(slot)) => {
                self.waiting.remove(id);
                Joined::Runs(slot)
            }
            _ => Joined::Waits(id),
        }
    }

    /// A request that needs no slot, but is seen and counted while it runs.
    pub fn pass(&mut self, ask: Ask, place: usize, now: Micros) -> Slot {
        if let Some(backend) = self.backends.get_mut(place) {
            backend.busy += 1;
        }
        let run = self.running.insert(Running {
            ask,
            place,
            flow: None,
            began: now,
            waited: 0,
            counts_from: now,
            charged: 0,
            first_byte: None,
            is_probe: false,
            is_outlived: false,
            is_slotless: true,
        });
        Slot { place, run }
    }

    /// What became of a request that waits; whose turn has come is not asked again. `waker` is woken
    /// at the turn.
    pub fn poll(&mut self, id: usize, waker: &Waker) -> Turn {
        let Some(waiting) = self.waiting.get_mut(id) else { return Turn::Stranded };
        match waiting.turn {
            Turn::Waits => {
                if !waiting.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                    waiting.waker = Some(waker.clone());
                }
                Turn::Waits
            }
            turn @ (Turn::Runs(_) | Turn::Stranded) => {
                self.waiting.remove(id);
                turn
            }
        }
    }

    /// Who waited goes away; a slot that was given meanwhile is free again.
    pub fn leave(&mut self, id: usize, now: Micros) {
        if !self.waiting.contains(id) {
            return;
        }
        let waiting = self.waiting.remove(id);
        match waiting.turn {
            Turn::Waits => {
                self.unqueue(&waiting, id);
                // It may have been who the others were held for.
                self.fill(waiting.ask.places, now);
            }
            Turn::Runs(slot) => self.end(slot, now),
            Turn::Stranded => {}
        }
    }

    /// The same, for who has waited too long: how long another one like it would wait now.
    pub fn give_up(&mut self, id: usize, now: Micros) -> Micros {
        let ask = self.waiting.get(id).map(|waiting| waiting.ask.clone());
        self.leave(id, now);
        ask.map_or(0, |ask| self.expected_wait(&ask))
    }

    /// The request is over, however it went.
    pub fn end(&mut self, slot: Slot, now: Micros) {
        if !self.running.contains(slot.run) {
            return;
        }
        self.charge(slot.run, now, true);
        let ended = self.running.remove(slot.run);
        self.vacate(&ended, now);
        if let Some(flow) = ended.flow {
            if let Some(flow) = self.flows.get_mut(flow) {
                flow.running -= 1;
            }
            self.forget_idle(flow);
        }
        self.fill(1 << slot.place, now);
    }

    /// The first byte of its answer came.
    pub fn first_byte(&mut self, slot: Slot, now: Micros) {
        let Some(run) = self.running.get_mut(slot.run).filter(|run| run.first_byte.is_none())
        else {
            return;
        };
        run.first_byte = Some(now);
        // Of an answer that comes whole the first byte is the last.
        if run.is_slotless || !run.ask.streams {
            return;
        }
        let heard = parallel::Heard {
            after: now.saturating_sub(run.began),
            is_probe: std::mem::take(&mut run.is_probe),
            is_outlived: run.is_outlived,
        };
        let (place, model) = (run.place, Arc::clone(&run.ask.model));
        let Some(backend) = self.backends.get_mut(place) else { return };
        let room = backend.room(&model);
        room.parallel.first_byte(heard, room.running, now);
        if room.waits {
            self.fill(1 << place, now);
        }
    }

    /// Those whose turn has come, to be woken.
    pub fn take_due(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.due)
    }

    /// What only time changes; to be called about once a second.
    pub fn tend(&mut self, now: Micros) {
        self.forget_overtaken();
        // Who came just as the last of its backends went.
        let taking = self.that_take(|it| it != Intake::Nothing);
        self.strand(|places| places & taking == 0);
        if self.queued > 0 {
            self.fill(Places::MAX, now);
        }
        self.told.take_if(|_| self.queued <= FEW);
    }

    /// Whether one more of this flow finds room. One alone may be as large as a body may.
    fn may_wait(&self, flow: usize, ask: &Ask) -> bool {
        let Some(flow) = self.flows.get(flow).filter(|flow| flow.waiting > 0) else { return true };
        let is_beside = |lane: &usize| self.lanes.get(*lane).is_some_and(|it| it.is_for(ask));
        flow.waiting < self.bounds.of_one
            && flow.bytes.saturating_add(ask.bytes) <= self.bounds.bytes_of_one
            && (flow.lanes.len() < self.bounds.models_of_one || flow.lanes.iter().any(is_beside))
    }

    /// Where the request can go at once, past nobody who waits.
    fn free_at_once(&self, ask: &Ask, now: Micros) -> Option<usize> {
        let only_one = ask.places.count_ones() == 1;
        let mut best: Option<((bool, bool, u64), usize)> = None;
        for place in places(ask.places) {
            let Some(backend) = self.backends.get(place) else { continue };
            if !backend.has_room_at_once(&ask.model, now) {
                continue;
            }
            if only_one {
                return Some(place);
            }
            let loads = !backend.keeps(&ask.model);
            if loads && self.is_held_elsewhere(&ask.model, ask.places, place) {
                continue;
            }
            let rank = (loads, place != ask.preferred, backend.load());
            if best.is_none_or(|(least, _)| rank < least) {
                best = Some((rank, place));
            }
        }
        best.map(|(_, place)| place)
    }

    /// Another of these backends has the model in memory.
    fn is_held_elsewhere(&self, model: &str, among: Places, than: usize) -> bool {
        places(among & !(1 << than))
            .filter_map(|place| self.backends.get(place))
            .any(|backend| backend.is_open() && backend.keeps(model))
    }

    fn run(
        &mut self,
        ask: Ask,
        place: usize,
        flow: Option<usize>,
        (since, now): (Micros, Micros),
    ) -> Slot {
        let Some(backend) = self.backends.get_mut(place) else {
            return Slot { place, run: usize::MAX };
        };
        let is_probe = backend.occupy(&ask.model, ask.streams);
        let run = self.running.insert(Running {
            ask,
            place,
            flow,
            began: now,
            waited: now.saturating_sub(since),
            counts_from: now,
            charged: 0,
            first_byte: None,
            is_probe,
            is_outlived: false,
            is_slotless: false,
        });
        Slot { place, run }
    }

    fn vacate(&mut self, ended: &Running, now: Micros) {
        let Some(backend) = self.backends.get_mut(ended.place) else { return };
        backend.busy -= 1;
        if ended.is_slotless {
            return;
        }
        let room = backend.room(&ended.ask.model);
        room.running -= 1;
        room.pace.learn(ended.ask.prompt, now.saturating_sub(ended.began));
        if ended.is_probe {
            room.parallel.probe_ended();
        }
        // Who was refused, or left before a word, had no slot to give.
        if room.running == 0 || ended.first_byte.is_none() {
            return backend.prune(&ended.ask.model);
        }
        for (_, run) in &mut self.running {
            let is_beside =
                run.place == ended.place && run.ask.model == ended.ask.model && !run.is_slotless;
            if is_beside && run.first_byte.is_none() && !run.is_outlived && run.ask.streams {
                run.is_outlived = true;
                room.parallel.outlived(run.is_probe, now.saturating_sub(run.began), now);
                run.is_probe = false;
            }
        }
    }

    fn line_up(&mut self, ask: Ask, flow: usize, now: Micros) -> usize {
        self.enrol_running(ask.places, now);
        self.arrivals += 1;
        let order = self.arrivals;
        let entry = self.waiting.vacant_entry();
        let id = entry.key();
        let lane = {
            let waiting = Waiting {
                ask,
                lane: usize::MAX,
                order,
                since: now,
                turn: Turn::Waits,
                waker: None,
            };
            &entry.insert(waiting).ask
        };
        let (model, places, class) = (Arc::clone(&lane.model), lane.places, lane.class);
        let bytes = lane.bytes;
        let lane = self.lane(flow, &model, places, class);
        if let Some(waiting) = self.waiting.get_mut(id) {
            waiting.lane = lane;
        }
        let mut is_first = false;
        if let Some(lane) = self.lanes.get_mut(lane) {
            is_first = lane.queue.is_empty();
            lane.queue.push_back((order, id));
        }
        if is_first {
            self.show(lane);
        }
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.waiting += 1;
            flow.bytes += bytes;
        }
        self.queued += 1;
        id
    }

    /// Takes a request out of its lane.
    fn unqueue(&mut self, waiting: &Waiting, id: usize) {
        let Some(lane) = self.lanes.get(waiting.lane) else { return };
        let Ok(at) = lane.queue.binary_search(&(waiting.order, id)) else { return };
        if at == 0 {
            self.hide(waiting.lane);
        }
        if let Some(lane) = self.lanes.get_mut(waiting.lane) {
            lane.queue.remove(at);
        }
        self.settle_lane(waiting.lane, at == 0, waiting.ask.bytes);
    }

    /// What is left of a lane that lost a request.
    fn settle_lane(&mut self, id: usize, lost_head: bool, bytes: u64) {
        self.queued -= 1;
        let Some(lane) = self.lanes.get(id) else { return };
        let flow = lane.flow;
        if lane.queue.is_empty() {
            let lane = self.lanes.remove(id);
            for place in places(lane.places) {
                if let Some(backend) = self.backends.get_mut(place) {
                    backend.prune(&lane.model);
                }
            }
            if let Some(flow) = self.flows.get_mut(flow) {
                flow.lanes.retain(|it| *it != id);
            }
        } else if lost_head {
            self.show(id);
        }
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.waiting -= 1;
            flow.bytes = flow.bytes.saturating_sub(bytes);
        }
        self.forget_idle(flow);
    }

    /// Gives away what is free at these backends.
    fn fill(&mut self, among: Places, now: Micros) {
        for place in places(among) {
            if place >= self.backends.len() {
                return;
            }
            // As many turns as there are slots, and none for ever.
            while let Some(lane) = self.next(place, now) {
                self.begin(lane, place, now);
            }
        }
    }

    fn next(&mut self, place: usize, now: Micros) -> Option<usize> {
        if !self.backends.get(place).is_some_and(Backend::is_wanted) {
            return None;
        }
        self.top_up(place, now);
        match self.pick(place, now) {
            Pick::Take(lane) => Some(lane),
            Pick::Hold | Pick::Nobody => None,
        }
    }

    /// The first of a lane has its turn.
    fn begin(&mut self, id: usize, place: usize, now: Micros) {
        self.hide(id);
        let Some(lane) = self.lanes.get_mut(id) else { return };
        let (flow, tag) = (lane.flow, lane.tag(place));
        let Some((_, first)) = lane.queue.pop_front() else { return };
        let Some((ask, since)) = self.waiting.get(first).map(|it| (it.ask.clone(), it.since))
        else {
            return;
        };
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.set_tag(place, tag);
            flow.running += 1;
        }
        if let Some(backend) = self.backends.get_mut(place) {
            backend.serves(&ask.model, tag);
        }
        let bytes = ask.bytes;
        let slot = self.run(ask, place, Some(flow), (since, now));
        self.settle_lane(id, true, bytes);
        self.charge(slot.run, now, false);
        if let Some(waiting) = self.waiting.get_mut(first) {
            waiting.turn = Turn::Runs(slot);
            self.due.extend(waiting.waker.take());
        }
    }
}

/// The places of a set, first to last.
fn places(mut set: Places) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = set.trailing_zeros() as usize;
        set &= set.wrapping_sub(1);
        (place < MOST_BACKENDS).then_some(place)
    })
}

/// A queue of requests of one kind, and in which order they came.
type Order = VecDeque<(u64, usize)>;

#[cfg(test)]
mod tests;
