//! Flows and their lanes: one identity, and its requests of one kind in the order in which they came.

use std::sync::Arc;

use super::{Ask, Class, Order, Places, Queue, places};

/// One identity that waits, runs beside somebody who waits, or did a moment ago.
#[derive(Debug)]
pub(super) struct Flow {
    pub who: Box<str>,
    /// What it was given at each backend, in weighted time.
    tags: Vec<u64>,
    pub lanes: Vec<usize>,
    pub waiting: usize,
    /// Of the bodies of those who wait.
    pub bytes: u64,
    pub running: usize,
    /// Its longest request so far, in weighted time: what it may be behind by at most.
    pub longest: u64,
}

/// Requests of one flow for one model, one set of backends and one class.
#[derive(Debug)]
pub(super) struct Lane {
    pub flow: usize,
    pub model: Arc<str>,
    pub places: Places,
    pub class: Class,
    pub queue: Order,
    tags: Vec<u64>,
}

impl Flow {
    pub(super) fn tag(&self, place: usize) -> u64 {
        self.tags.get(place).copied().unwrap_or_default()
    }

    pub(super) fn set_tag(&mut self, place: usize, tag: u64) {
        set(&mut self.tags, place, tag);
    }
}

impl Lane {
    pub(super) fn tag(&self, place: usize) -> u64 {
        self.tags.get(place).copied().unwrap_or_default()
    }

    pub(super) fn is_for(&self, ask: &Ask) -> bool {
        self.class == ask.class && self.places == ask.places && self.model == ask.model
    }

    /// Its place among those who wait: the tag, then who came first.
    pub(super) fn key(&self, place: usize, id: usize) -> Option<(u64, u64, usize)> {
        self.queue.front().map(|(order, _)| (self.tag(place), *order, id))
    }
}

fn set(tags: &mut Vec<u64>, place: usize, tag: u64) {
    if tags.len() <= place {
        tags.resize(place + 1, 0);
    }
    if let Some(it) = tags.get_mut(place) {
        *it = tag;
    }
}

impl Queue {
    pub(super) fn flow(&mut self, who: &str) -> usize {
        if let Some(id) = self.by_name.get(who) {
            return *id;
        }
        let id = self.flows.insert(Flow {
            who: who.into(),
            tags: Vec::new(),
            lanes: Vec::new(),
            waiting: 0,
            bytes: 0,
            running: 0,
            longest: 0,
        });
        self.by_name.insert(who.into(), id);
        id
    }

    /// The lane of such requests; a new one begins where its backends stand now, or behind that by as
    /// much as the flow was given in advance.
    pub(super) fn lane(
        &mut self,
        flow: usize,
        model: &Arc<str>,
        among: Places,
        class: Class,
    ) -> usize {
        let known = self.flows.get(flow).and_then(|flow| {
            let is_it = |lane: &&usize| {
                self.lanes.get(**lane).is_some_and(|lane| {
                    lane.class == class && lane.places == among && lane.model == *model
                })
            };
            flow.lanes.iter().find(is_it).copied()
        });
        if let Some(lane) = known {
            return lane;
        }
        let mut tags = Vec::new();
        for place in places(among) {
            let (Some(backend), Some(known)) = (self.backends.get(place), self.flows.get(flow))
            else {
                continue;
            };
            let base = backend.base(model);
            let tag = match self.waits_at(known, place) {
                true => known.tag(place),
                false => known.tag(place).clamp(base, base.saturating_add(known.longest)),
            };
            set(&mut tags, place, tag);
            if let Some(flow) = self.flows.get_mut(flow) {
                flow.set_tag(place, tag);
            }
        }
        let model = Arc::clone(model);
        let lane = Lane { flow, model, places: among, class, queue: Order::new(), tags };
        let id = self.lanes.insert(lane);
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.lanes.push(id);
        }
        id
    }

    /// Who waits there already is not new.
    fn waits_at(&self, flow: &Flow, place: usize) -> bool {
        let here = |lane: &Lane| lane.places & (1 << place) != 0;
        flow.lanes.iter().filter_map(|lane| self.lanes.get(*lane)).any(here)
    }

    /// Puts a lane among those who wait, at each of its backends.
    pub(super) fn show(&mut self, id: usize) {
        let Some(lane) = self.lanes.get(id) else { return };
        for place in places(lane.places) {
            if let (Some(backend), Some(key)) = (self.backends.get_mut(place), lane.key(place, id))
            {
                backend.room(&lane.model).heads(lane.class).insert(key);
            }
        }
    }

    /// Takes it out again.
    pub(super) fn hide(&mut self, id: usize) {
        let Some(lane) = self.lanes.get(id) else { return };
        for place in places(lane.places) {
            if let (Some(backend), Some(key)) = (self.backends.get_mut(place), lane.key(place, id))
            {
                backend.room(&lane.model).heads(lane.class).remove(&key);
            }
        }
    }

    /// Moves a lane at one backend.
    pub(super) fn retag(&mut self, id: usize, place: usize, tag: u64) {
        let Some(lane) = self.lanes.get_mut(id) else { return };
        let before = lane.key(place, id);
        set(&mut lane.tags, place, tag);
        let after = lane.key(place, id);
        let (Some(backend), Some(before), Some(after)) =
            (self.backends.get_mut(place), before, after)
        else {
            return;
        };
        let heads = backend.room(&lane.model).heads(lane.class);
        // Not shown while its head is being taken.
        if heads.remove(&before) {
            heads.insert(after);
        }
    }

    /// A flow that has nothing is forgotten once its tags say no more than the clocks do.
    pub(super) fn forget_idle(&mut self, id: usize) {
        let Some(flow) = self.flows.get(id).filter(|it| it.waiting == 0 && it.running == 0) else {
            return;
        };
        let is_ahead = |(place, backend): (usize, &super::Backend)| flow.tag(place) > backend.clock;
        let remembers = self.queued > 0 && self.backends.iter().enumerate().any(is_ahead);
        if remembers {
            return;
        }
        let flow = self.flows.remove(id);
        self.by_name.remove(&flow.who);
    }

    /// Forgets flows that nobody looked at since their tags were overtaken.
    pub(super) fn forget_overtaken(&mut self) {
        let idle: Vec<usize> = self.flows.iter().map(|(id, _)| id).collect();
        for id in idle {
            self.forget_idle(id);
        }
    }
}
