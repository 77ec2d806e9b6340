//! The decision: who is next at a backend.

use super::room::Room;
use super::{Class, GROUPING, Intake, Micros, Queue, RELUCTANCE, Waiting};

/// What is to be done with a backend's free slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pick {
    /// The first of this lane runs.
    Take(usize),
    /// Nobody runs until whose turn it is finds room.
    Hold,
    Nobody,
}

/// One model's first in line.
#[derive(Debug, Clone, Copy)]
struct Head {
    key: (u64, u64, usize),
    /// It finds room in memory without another model's having to go.
    stays: bool,
    /// It finds a slot now, and has no reason to wait for one elsewhere.
    fits: bool,
}

impl Head {
    /// Whether this one may run in that one's place: by no more than [`GROUPING`] ahead of it.
    fn may_pass(&self, fair: &Self) -> bool {
        self.key.0 - fair.key.0 <= GROUPING_MICROS
    }
}

const GROUPING_MICROS: Micros = GROUPING.as_secs() * 1_000_000;
const RELUCTANCE_MICROS: Micros = RELUCTANCE.as_secs() * 1_000_000;

impl Queue {
    pub(super) fn pick(&mut self, place: usize, now: Micros) -> Pick {
        let Some(backend) = self.backends.get(place) else { return Pick::Nobody };
        if !backend.is_open() {
            return self.pick_of_those_without_another(place, now);
        }
        let first = |class| backend.rooms.values().any(|room| room.first(class).is_some());
        if !first(Class::Batch) {
            if let Some(backend) = self.backends.get_mut(place) {
                backend.owed = 0;
            }
            return self.pick_of(Class::Interactive, place, now);
        }
        let order = match backend.owed > 0 && self.batch_is_due(place) {
            true => [Class::Batch, Class::Interactive],
            false => [Class::Interactive, Class::Batch],
        };
        match self.pick_of(order[0], place, now) {
            Pick::Nobody => self.pick_of(order[1], place, now),
            pick @ (Pick::Take(_) | Pick::Hold) => pick,
        }
    }

    /// At a backend that failed the first of those whom no other could serve, whatever their model.
    fn pick_of_those_without_another(&self, place: usize, now: Micros) -> Pick {
        let Some(backend) = self.backends.get(place) else { return Pick::Nobody };
        let open = self.that_take(|it| it == Intake::All);
        let is_meant =
            |lane: usize| self.lanes.get(lane).is_some_and(|lane| lane.places & open == 0);
        let has_room = backend.fits_beside();
        let fits = |room: &Room, lane| match self.head_of(lane) {
            Some(it) if room.running > 0 => {
                !room.parallel.is_full(room.running, now, it.ask.streams)
            }
            Some(_) => has_room,
            None => false,
        };
        let first = |class| {
            let firsts = backend.rooms.values().filter_map(|room| {
                room.first_of(class, is_meant).filter(|(.., lane)| fits(room, *lane))
            });
            firsts.min()
        };
        let first = first(Class::Interactive).or_else(|| first(Class::Batch));
        first.map_or(Pick::Nobody, |(.., lane)| Pick::Take(lane))
    }

    /// What is owed to the less urgent pays for the next of them.
    fn batch_is_due(&self, place: usize) -> bool {
        let Some(backend) = self.backends.get(place) else { return false };
        let heads =
            backend.rooms.values().filter_map(|room| Some((room, room.first(Class::Batch)?)));
        let next = heads.min_by_key(|(_, key)| *key);
        let cost = next.and_then(|(room, key)| {
            let waiting = self.head_of(key.2)?;
            Some(room.pace.expected(waiting.ask.prompt))
        });
        cost.is_some_and(|cost| i64::try_from(cost).is_ok_and(|cost| backend.owed >= cost))
    }

    fn pick_of(&mut self, class: Class, place: usize, now: Micros) -> Pick {
        let Some(backend) = self.backends.get(place) else { return Pick::Nobody };
        let has_room = backend.fits_beside();
        let head = |room| self.head(class, (place, has_room), room, now);
        let heads = || backend.rooms.values().filter_map(head);
        let Some(fair) = heads().min_by_key(|head| head.key) else { return Pick::Nobody };
        let is_held = |it: &Micros| now.saturating_sub(*it) < GROUPING_MICROS;
        let groups = backend.held_since.as_ref().is_none_or(is_held);
        let passing = || heads().filter(|it| it.fits && it.may_pass(&fair));
        let of_same_model = passing().filter(|it| it.stays).min_by_key(|it| it.key);
        let (pick, held) = match of_same_model {
            _ if fair.fits && fair.stays => return Pick::Take(fair.key.2),
            Some(other) if groups => (Some(other), backend.held_since.or(Some(now))),
            Some(_) | None if fair.fits => (Some(fair), None),
            Some(_) | None if self.waits_for_another(&fair, place, now) => {
                (passing().min_by_key(|it| it.key), backend.held_since)
            }
            // What runs is waited for, and nothing of its model follows.
            Some(_) | None => (None, backend.held_since),
        };
        if let Some(backend) = self.backends.get_mut(place) {
            backend.held_since = held;
        }
        pick.map_or(Pick::Hold, |head| Pick::Take(head.key.2))
    }

    /// `None` where nothing of this model can start, whatever the others do.
    fn head(
        &self,
        class: Class,
        (place, has_room): (usize, bool),
        room: &Room,
        now: Micros,
    ) -> Option<Head> {
        let key = room.first(class)?;
        let backend = self.backends.get(place)?;
        let waiting = self.head_of(key.2)?;
        let runs = room.running > 0;
        if runs && room.parallel.is_full(room.running, now, waiting.ask.streams) {
            return None;
        }
        let stays = runs || backend.keeps(&room.model);
        let fits = runs || has_room;
        let head = Head { key, stays, fits };
        let waits = !stays && self.waits_for_another(&head, place, now);
        Some(Head { fits: fits && !waits, ..head })
    }

    fn head_of(&self, lane: usize) -> Option<&Waiting> {
        let (_, first) = self.lanes.get(lane)?.queue.front()?;
        self.waiting.get(*first)
    }

    /// Another backend has its model in memory, and it has not waited for that long.
    fn waits_for_another(&self, head: &Head, place: usize, now: Micros) -> bool {
        let Some(waiting) = self.head_of(head.key.2) else { return false };
        now.saturating_sub(waiting.since) < RELUCTANCE_MICROS
            && self.is_held_elsewhere(&waiting.ask.model, waiting.ask.places, place)
    }
}
