//! A backend's slots: which model has how many, and who waits for them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::charge::Pace;
use super::{Backend, Class, Intake, Micros, Parallel};

/// Models beyond this are forgotten while nobody wants them.
const MOST_ROOMS: usize = 64;

/// Who waits: by tag, then by who came first; the last is the lane.
pub(super) type Heads = BTreeSet<(u64, u64, usize)>;

/// One model at one backend.
#[derive(Debug)]
pub(super) struct Room {
    pub model: Arc<str>,
    pub running: usize,
    pub parallel: Parallel,
    pub pace: Pace,
    /// The tag of whoever was served last here.
    pub clock: u64,
    /// Somebody waits for it.
    pub waits: bool,
    interactive: Heads,
    batch: Heads,
}

impl Room {
    fn new(model: &Arc<str>, parallel: &Parallel) -> Self {
        Self {
            model: Arc::clone(model),
            running: 0,
            parallel: parallel.clone(),
            pace: Pace::default(),
            clock: 0,
            waits: false,
            interactive: Heads::new(),
            batch: Heads::new(),
        }
    }

    /// To be changed by who knows that it is for ever in step with the lanes.
    pub(super) fn heads(&mut self, class: Class) -> &mut Heads {
        self.waits = true;
        match class {
            Class::Interactive => &mut self.interactive,
            Class::Batch => &mut self.batch,
        }
    }

    pub(super) fn first(&self, class: Class) -> Option<(u64, u64, usize)> {
        self.in_order(class).first().copied()
    }

    /// The first of those that are meant.
    pub(super) fn first_of(
        &self,
        class: Class,
        is_meant: impl Fn(usize) -> bool,
    ) -> Option<(u64, u64, usize)> {
        self.in_order(class).iter().find(|(.., lane)| is_meant(*lane)).copied()
    }

    fn in_order(&self, class: Class) -> &Heads {
        match class {
            Class::Interactive => &self.interactive,
            Class::Batch => &self.batch,
        }
    }

    pub(super) fn is_waited_for(&self) -> bool {
        !(self.interactive.is_empty() && self.batch.is_empty())
    }
}

impl Backend {
    pub(super) fn room(&mut self, model: &Arc<str>) -> &mut Room {
        let fresh = || Room::new(model, &self.parallel);
        self.rooms.entry(Arc::clone(model)).or_insert_with(fresh)
    }

    /// Who waits there may as well wait elsewhere.
    pub(super) fn is_open(&self) -> bool {
        self.intake == Intake::All
    }

    /// A request of this model can start, and passes nobody who waits.
    pub(super) fn has_room_at_once(&self, model: &str, now: Micros) -> bool {
        self.is_open()
            && !self.is_waited_for()
            && match self.rooms.get(model) {
                Some(room) if room.running > 0 => !room.parallel.is_full(room.running, now, false),
                Some(_) | None => self.fits_beside(),
            }
    }

    /// One more model can run beside those that do.
    pub(super) fn fits_beside(&self) -> bool {
        let models = self.rooms.values().filter(|room| room.running > 0).count();
        models < self.models_at_once()
    }

    pub(super) fn models_at_once(&self) -> usize {
        self.models_at_once.unwrap_or(self.seen_at_once).max(1)
    }

    /// The model is in memory, or finds a place there without another's having to go.
    pub(super) fn keeps(&self, model: &str) -> bool {
        self.resident.iter().take(self.models_at_once()).any(|it| **it == *model)
    }

    pub(super) fn is_waited_for(&self) -> bool {
        self.rooms.values().any(|room| room.waits && room.is_waited_for())
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.intake != Intake::Nothing && self.is_waited_for()
    }

    /// How busy it is, for comparison with others.
    pub(super) fn load(&self) -> u64 {
        self.busy as u64 * 1_000_000 / u64::from(self.weight.max(1))
    }

    /// The clock of a model that runs, whatever runs beside it.
    pub(super) fn beside(&self, model: &str) -> Option<u64> {
        self.rooms.get(model).filter(|room| room.running > 0).map(|room| room.clock)
    }

    /// Where a flow that comes now begins.
    pub(super) fn base(&self, model: &str) -> u64 {
        let running = self.rooms.values().filter(|room| room.running > 0);
        let furthest = || running.map(|room| room.clock).max();
        self.beside(model).or_else(furthest).unwrap_or(self.clock)
    }

    /// A flow with this tag is served.
    pub(super) fn serves(&mut self, model: &Arc<str>, tag: u64) {
        self.clock = tag;
        let room = self.room(model);
        room.clock = match room.running {
            0 => tag,
            _ => room.clock.max(tag),
        };
    }

    /// Takes a slot. Whether it is one more than the model is known to have.
    pub(super) fn occupy(&mut self, model: &Arc<str>, streams: bool) -> bool {
        self.busy += 1;
        let loads = !self.keeps(model);
        match self.resident.iter().position(|it| it == model) {
            Some(0) => {}
            Some(at) => {
                let model = self.resident.remove(at);
                self.resident.insert(0, model);
            }
            None => self.resident.insert(0, Arc::clone(model)),
        }
        self.resident.truncate(self.models_at_once().max(8));
        let room = self.room(model);
        if loads && room.running == 0 {
            room.parallel.begin_anew();
        }
        room.running += 1;
        room.parallel.started(room.running, streams)
    }

    /// One request less wants this model.
    pub(super) fn prune(&mut self, model: &str) {
        if let Some(room) = self.rooms.get_mut(model) {
            room.waits = room.is_waited_for();
        }
        if self.rooms.len() > MOST_ROOMS {
            self.rooms.retain(|_, room| room.running > 0 || room.is_waited_for());
        }
    }
}
