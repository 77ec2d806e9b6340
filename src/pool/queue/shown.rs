//! The queue as people see it, and what they may change: who runs, who waits, and for how long.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::limit::Course;

use super::{Ask, Backend, Class, Micros, Parallel, Places, Queue, Turn, places};

/// Of those who wait, by when they came.
pub(super) type Positions = HashMap<u64, usize>;

/// Of so many, positions are told as they are.
pub(super) const FEW: usize = 100;
/// Of more, as they were so long ago at most.
const STALE: Micros = 250_000;

/// A request in the queue or at a backend.
#[derive(Debug, Clone)]
pub struct Seen {
    pub course: Arc<Course>,
    pub model: Arc<str>,
    pub class: Class,
    pub spot: Spot,
    /// Since it came to wait, or since it began.
    pub for_micros: Micros,
}

impl Seen {
    /// In the queue; 0 for what runs.
    #[must_use]
    pub fn position(&self) -> usize {
        match self.spot {
            Spot::Waits { position, .. } => position,
            Spot::Runs { .. } => 0,
        }
    }
}

/// As people are told it: never 0 of what takes any time.
#[must_use]
pub fn whole_seconds(micros: Micros) -> u64 {
    micros.div_ceil(1_000_000)
}

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spot {
    /// For any of these; so many are served before it, itself among them, which is expected to take so
    /// long.
    Waits { among: Places, position: usize, expected: Micros },
    /// At this backend; it waited so long before, and its first byte came so long ago.
    Runs { place: usize, waited: Micros, first_byte: Option<Micros> },
}

/// A model at a backend: it runs, is waited for, or is in memory.
#[derive(Debug, Clone)]
pub struct SeenModel {
    pub name: Arc<str>,
    pub in_memory: bool,
    pub running: usize,
    /// So many run at once, and whether that is learned.
    pub at_once: usize,
    pub is_learned: bool,
}

/// Whose requests a backend takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intake {
    All,
    /// It failed: of those alone that no other could serve.
    LastResort,
    Nothing,
}

/// A backend's settings, as far as the queue goes.
#[derive(Debug, Clone)]
pub struct Setup {
    pub weight: u32,
    /// `None` is learned.
    pub parallel: Option<usize>,
    pub models_at_once: Option<usize>,
}

impl Queue {
    /// A further backend; its place is its number. That of one that went is used again.
    /// `None` where there are [`MOST_BACKENDS`](super::MOST_BACKENDS).
    pub fn add(&mut self, setup: &Setup) -> Option<usize> {
        let went = self.backends.iter().position(|it| it.is_gone && it.busy == 0);
        let place = went.unwrap_or(self.backends.len());
        if place >= super::MOST_BACKENDS {
            return None;
        }
        let added = Backend {
            is_gone: false,
            intake: Intake::All,
            weight: setup.weight,
            parallel: setup.parallel.map_or_else(Parallel::default, Parallel::Fixed),
            models_at_once: setup.models_at_once,
            seen_at_once: 1,
            resident: Vec::new(),
            rooms: BTreeMap::new(),
            busy: 0,
            clock: 0,
            owed: 0,
            held_since: None,
        };
        match self.backends.get_mut(place) {
            Some(backend) => *backend = added,
            None => self.backends.push(added),
        }
        Some(place)
    }

    /// A backend is not used any more; what runs there ends by itself.
    pub fn remove(&mut self, place: usize, now: Micros) {
        self.set_intake(place, Intake::Nothing, now);
        if let Some(backend) = self.backends.get_mut(place) {
            backend.is_gone = true;
        }
    }

    /// The model by the name by which it is known here.
    pub fn model(&self, name: &str) -> Arc<str> {
        let mut known = self.backends.iter().filter_map(|backend| backend.rooms.get(name));
        known.next().map_or_else(|| name.into(), |room| Arc::clone(&room.model))
    }

    /// Other settings for a backend; what was learned stays where it still counts.
    pub fn change(&mut self, place: usize, setup: &Setup, now: Micros) {
        let Some(backend) = self.backends.get_mut(place) else { return };
        backend.weight = setup.weight;
        backend.models_at_once = setup.models_at_once;
        let parallel = setup.parallel.map_or_else(Parallel::default, Parallel::Fixed);
        let is_other = match (&parallel, &backend.parallel) {
            (Parallel::Learned(_), Parallel::Learned(_)) => false,
            (new, old) => new != old,
        };
        if is_other {
            for room in backend.rooms.values_mut() {
                room.parallel = parallel.clone();
            }
            backend.parallel = parallel;
        }
        self.fill(1 << place, now);
    }

    /// Whose requests a backend takes from now on. Who waits for one that does not take all any more,
    /// and for no other, is told.
    pub fn set_intake(&mut self, place: usize, intake: Intake, now: Micros) {
        let Some(backend) = self.backends.get_mut(place) else { return };
        if backend.intake == intake {
            return;
        }
        backend.intake = intake;
        if intake == Intake::All {
            // It may have been started anew, with other settings.
            for room in backend.rooms.values_mut().filter(|room| room.running == 0) {
                room.parallel.begin_anew();
            }
            return self.fill(1 << place, now);
        }
        self.turn_away(place);
    }

    /// Tells those who wait for this backend and have no other that takes all: it failed once more.
    pub fn turn_away(&mut self, place: usize) {
        let open = self.that_take(|it| it == Intake::All);
        self.strand(|places| places & open == 0 && places & (1 << place) != 0);
    }

    /// What a backend has in memory, by its own word.
    pub fn set_loaded(&mut self, place: usize, models: &[Arc<str>], now: Micros) {
        let Some(backend) = self.backends.get_mut(place) else { return };
        backend.seen_at_once = backend.seen_at_once.max(models.len());
        // What it begins to load is not told yet.
        let running =
            |model: &Arc<str>| backend.rooms.get(model).is_some_and(|room| room.running > 0);
        let mut resident: Vec<_> = backend
            .resident
            .iter()
            .filter(|it| running(it) || models.contains(it))
            .cloned()
            .collect();
        let new: Vec<_> = models.iter().filter(|it| !resident.contains(it)).cloned().collect();
        resident.extend(new);
        backend.resident = resident;
        self.fill(1 << place, now);
    }

    pub(super) fn that_take(&self, is_meant: impl Fn(Intake) -> bool) -> Places {
        let meant = self.backends.iter().enumerate().filter(|(_, it)| is_meant(it.intake));
        meant.fold(0, |set, (place, _)| set | 1 << place)
    }

    /// Tells those who wait in vain, by their backends.
    pub(super) fn strand(&mut self, is_vain: impl Fn(Places) -> bool) {
        let lost = |it: &super::Waiting| it.turn == Turn::Waits && is_vain(it.ask.places);
        let ids: Vec<_> =
            self.waiting.iter().filter(|(_, it)| lost(it)).map(|(id, _)| id).collect();
        for id in ids {
            let Some(waiting) = self.waiting.get_mut(id) else { continue };
            waiting.turn = Turn::Stranded;
            self.due.extend(waiting.waker.take());
            let waiting = super::Waiting { ask: waiting.ask.clone(), waker: None, ..*waiting };
            self.unqueue(&waiting, id);
        }
    }

    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Who runs and who waits, with each who waits its position.
    #[must_use]
    pub fn seen(&self, now: Micros) -> Vec<Seen> {
        let runs = self.running.iter().map(|(_, it)| Seen {
            course: Arc::clone(&it.ask.course),
            model: Arc::clone(&it.ask.model),
            class: it.ask.class,
            spot: Spot::Runs {
                place: it.place,
                waited: it.waited,
                first_byte: it.first_byte.map(|at| now.saturating_sub(at)),
            },
            for_micros: now.saturating_sub(it.began),
        });
        runs.chain(self.waits(now)).collect()
    }

    /// Those who wait of one identity. Where many wait, positions are a quarter of a second old at most:
    /// whoever asks for them again and again would keep the queue from its work.
    pub fn waits_of(&mut self, who: &str, now: Micros) -> Vec<Seen> {
        let Some(flow) = self.by_name.get(who).copied() else { return Vec::new() };
        self.tell_positions(now);
        let lanes = self.flows.get(flow).into_iter().flat_map(|flow| &flow.lanes);
        let lanes = lanes.filter_map(|lane| self.lanes.get(*lane));
        let own = lanes.flat_map(|lane| &lane.queue).filter_map(|(_, id)| self.waiting.get(*id));
        let told = self.told.as_ref().map(|(_, positions)| positions);
        own.map(|it| self.wait(it, told.and_then(|all| all.get(&it.order)), now)).collect()
    }

    fn tell_positions(&mut self, now: Micros) {
        if self.queued <= FEW || self.told.as_ref().is_none_or(|(at, _)| now >= at + STALE) {
            self.told = Some((now, self.positions()));
        }
    }

    fn waits(&self, now: Micros) -> Vec<Seen> {
        let positions = self.positions();
        let waits = self.waiting.iter().map(|(_, it)| it).filter(|it| it.turn == Turn::Waits);
        waits.map(|it| self.wait(it, positions.get(&it.order), now)).collect()
    }

    /// Who has come since positions were told is behind all others.
    fn wait(&self, it: &super::Waiting, position: Option<&usize>, now: Micros) -> Seen {
        let position = position.copied().unwrap_or(self.queued);
        let expected = self.expected(&it.ask, position);
        Seen {
            course: Arc::clone(&it.ask.course),
            model: Arc::clone(&it.ask.model),
            class: it.ask.class,
            spot: Spot::Waits { among: it.ask.places, position, expected },
            for_micros: now.saturating_sub(it.since),
        }
    }

    /// The requests that are meant, whether they run or wait.
    #[must_use]
    pub fn courses(&self, is_meant: impl Fn(&Course) -> bool) -> Vec<Arc<Course>> {
        let runs = self.running.iter().map(|(_, it)| &it.ask.course);
        let waits = self.waiting.iter().filter(|(_, it)| !matches!(it.turn, Turn::Runs(_)));
        let all = runs.chain(waits.map(|(_, it)| &it.ask.course));
        all.filter(|course| is_meant(course)).cloned().collect()
    }

    /// How long whoever waits longest has waited; 0 if nobody does.
    #[must_use]
    pub fn longest_wait(&self, now: Micros) -> Micros {
        let waits = self.waiting.iter().filter(|(_, it)| it.turn == Turn::Waits);
        waits.map(|(_, it)| now.saturating_sub(it.since)).max().unwrap_or_default()
    }

    /// How long until whoever is last has its turn, about; 0 if nobody waits. Positions are as in
    /// [`Self::waits_of`].
    #[must_use]
    pub fn longest_expected(&mut self, now: Micros) -> Micros {
        self.tell_positions(now);
        let told = self.told.as_ref().map(|(_, positions)| positions);
        let waits = self.waiting.iter().filter(|(_, it)| it.turn == Turn::Waits);
        let expected = waits.map(|(_, it)| {
            let position = told.and_then(|all| all.get(&it.order)).copied();
            self.expected(&it.ask, position.unwrap_or(self.queued))
        });
        expected.max().unwrap_or_default()
    }

    /// What a backend works on or has in memory.
    #[must_use]
    pub fn models(&self, place: usize) -> Vec<SeenModel> {
        let Some(backend) = self.backends.get(place) else { return Vec::new() };
        let of_room = |room: &super::room::Room| SeenModel {
            name: Arc::clone(&room.model),
            in_memory: room.running > 0 || backend.keeps(&room.model),
            running: room.running,
            at_once: room.parallel.number(),
            is_learned: room.parallel.is_learned(),
        };
        let here = |room: &&super::room::Room| {
            room.running > 0 || room.is_waited_for() || backend.keeps(&room.model)
        };
        let mut models: Vec<_> = backend.rooms.values().filter(here).map(of_room).collect();
        let kept = backend.resident.iter().take(backend.models_at_once());
        for name in kept.filter(|name| !backend.rooms.contains_key(*name)) {
            models.push(SeenModel {
                name: Arc::clone(name),
                in_memory: true,
                running: 0,
                at_once: backend.parallel.number(),
                is_learned: backend.parallel.is_learned(),
            });
        }
        models
    }

    /// Models that a backend has side by side, and whether that is learned.
    #[must_use]
    pub fn models_at_once(&self, place: usize) -> Option<(usize, bool)> {
        let backend = self.backends.get(place)?;
        Some((backend.models_at_once(), backend.models_at_once.is_none()))
    }

    /// When one more request like this would begin, about.
    #[must_use]
    pub fn expected_wait(&self, ask: &Ask) -> Micros {
        let ahead = self.lengths(ask.places, ask.class).map(|(_, length)| length).sum::<usize>();
        self.expected(ask, ahead + 1)
    }

    /// The number that a backend works on at once of a model, and whether it is learned.
    #[must_use]
    pub fn parallel(&self, place: usize, model: &str) -> Option<(usize, bool)> {
        let backend = self.backends.get(place)?;
        let room = backend.rooms.get(model);
        let parallel = room.map_or(&backend.parallel, |room| &room.parallel);
        Some((parallel.number(), parallel.is_learned()))
    }

    /// Everybody's position, by when they came: each flow has its turn once, then once more. Exact where
    /// all requests take as long and weigh the same.
    fn positions(&self) -> Positions {
        let mut turns: Vec<(Class, usize, u64, u64)> = Vec::with_capacity(self.queued);
        for (_, flow) in &self.flows {
            let mut own: Vec<_> = flow
                .lanes
                .iter()
                .filter_map(|lane| self.lanes.get(*lane))
                .flat_map(|lane| lane.queue.iter().map(move |(order, _)| (lane, *order)))
                .collect();
            own.sort_by_key(|(lane, order)| (lane.class, *order));
            turns.extend(own.iter().enumerate().map(|(turn, (lane, order))| {
                let tag = places(lane.places).map(|place| lane.tag(place)).min();
                (lane.class, turn, tag.unwrap_or_default(), *order)
            }));
        }
        turns.sort_unstable();
        turns.iter().enumerate().map(|(position, (.., order))| (*order, position + 1)).collect()
    }

    fn lengths(&self, among: Places, class: Class) -> impl Iterator<Item = (usize, usize)> {
        let meets = move |places: Places| places & among != 0;
        self.lanes
            .iter()
            .filter(move |(_, lane)| meets(lane.places) && lane.class <= class)
            .map(|(id, lane)| (id, lane.queue.len()))
    }

    /// How long until so many had their turn at the backends of a request.
    fn expected(&self, ask: &Ask, position: usize) -> Micros {
        let (mut slots, mut each) = (0_usize, 0);
        let open = ask.places & self.that_take(|it| it == Intake::All);
        for place in places(if open == 0 { ask.places } else { open }) {
            let Some(backend) = self.backends.get(place) else { continue };
            let room = backend.rooms.get(&ask.model);
            let parallel = room.map_or(&backend.parallel, |room| &room.parallel);
            slots = parallel.number().saturating_add(slots);
            let pace = room.map_or_else(super::charge::Pace::default, |room| room.pace.clone());
            each = each.max(pace.expected(ask.prompt));
        }
        each.saturating_mul(position as u64) / slots.max(1) as u64
    }
}
