//! What a request costs its flow: the backend's time, expected, then known.

use std::sync::Arc;

use super::{Class, FLOOR, Micros, Queue};

/// What a request takes of which nothing is known.
const UNKNOWN: Micros = 2_000_000;
/// Sizes of prompts that are told apart: below 64 tokens, 256, 1024, ...
const SIZES: usize = 8;

/// How long requests of one model take at one backend, by the size of their prompts.
#[derive(Debug, Clone, Default)]
pub(super) struct Pace {
    by_size: [Micros; SIZES],
    of_all: Micros,
}

impl Pace {
    pub(super) fn learn(&mut self, prompt: u64, took: Micros) {
        // Zero is "never seen".
        let took = took.max(1);
        if let Some(known) = self.by_size.get_mut(size(prompt)) {
            *known = blend(*known, took);
        }
        self.of_all = blend(self.of_all, took);
    }

    pub(super) fn expected(&self, prompt: u64) -> Micros {
        let known = [self.by_size.get(size(prompt)).copied().unwrap_or_default(), self.of_all];
        known.into_iter().find(|it| *it > 0).unwrap_or(UNKNOWN)
    }
}

fn size(prompt: u64) -> usize {
    let bits = (u64::BITS - prompt.leading_zeros()) as usize;
    (bits.saturating_sub(5) / 2).min(SIZES - 1)
}

fn blend(known: Micros, new: Micros) -> Micros {
    match known {
        0 => new,
        known => (known * 7 + new) / 8,
    }
}

/// Time of a backend as time of a flow; each request by the weight that it came with.
fn weighted(time: Micros, weight: u32) -> u64 {
    time.saturating_mul(1000) / u64::from(weight.max(1))
}

impl Queue {
    /// Charges a request for its time so far, or for what is expected if that is more; at its end for
    /// the truth.
    pub(super) fn charge(&mut self, run: usize, now: Micros, is_over: bool) {
        let Some(running) = self.running.get_mut(run) else { return };
        let (Some(flow), place) = (running.flow, running.place) else { return };
        let age = now.saturating_sub(running.counts_from);
        let expected = || {
            let backend = self.backends.get(place);
            let room = backend.and_then(|backend| backend.rooms.get(&running.ask.model));
            room.map_or(UNKNOWN, |room| room.pace.expected(running.ask.prompt))
        };
        let total = match (is_over, running.charged) {
            (true, _) => age,
            (false, 0) => age.max(expected()),
            (false, charged) => age.max(charged),
        };
        let before = std::mem::replace(&mut running.charged, total);
        if total == before {
            return;
        }
        let (class, weight) = (running.ask.class, running.ask.weight);
        let model = Arc::clone(&running.ask.model);
        self.settle_floor(place, class, before, total);
        self.shift((flow, weight), place, &model, (before, total));
    }

    /// Moves a flow and its lanes at one backend.
    fn shift(
        &mut self,
        (id, weight): (usize, u32),
        place: usize,
        model: &str,
        (was, is): (Micros, Micros),
    ) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let (less, more) = (weighted(was, weight), weighted(is, weight));
        let moved = |tag: u64| tag.saturating_sub(less).saturating_add(more);
        flow.longest = flow.longest.max(more);
        flow.set_tag(place, moved(flow.tag(place)));
        let longest = flow.longest;
        for lane in flow.lanes.clone() {
            let Some(known) = self.lanes.get(lane).filter(|it| it.places & (1 << place) != 0)
            else {
                continue;
            };
            let (before, mut tag) = (known.tag(place), moved(known.tag(place)));
            let beside = self.backends.get(place).and_then(|it| it.beside(&known.model));
            if let Some(base) = beside.filter(|_| *known.model != *model) {
                // What one model's slots gave in plenty is not held against it at another's.
                tag = match tag > before {
                    true => tag.min(base.saturating_add(longest).max(before)),
                    false => tag.max(base.min(before)),
                };
            }
            self.retag(lane, place, tag);
        }
    }

    /// While the less urgent wait, a part of what the others have comes to them.
    fn settle_floor(&mut self, place: usize, class: Class, before: Micros, total: Micros) {
        let Some(backend) = self.backends.get_mut(place) else { return };
        let signed = |time: Micros| i64::try_from(time).unwrap_or(i64::MAX);
        let more = signed(total).saturating_sub(signed(before));
        let waits = |class| backend.rooms.values().any(|room| room.first(class).is_some());
        match class {
            Class::Interactive if waits(Class::Batch) => {
                let share = i64::try_from(FLOOR - 1).unwrap_or(i64::MAX);
                backend.owed = backend.owed.saturating_add(more / share);
            }
            Class::Batch if waits(Class::Interactive) => {
                backend.owed = backend.owed.saturating_sub(more);
            }
            Class::Interactive | Class::Batch => {}
        }
    }

    /// What runs at a backend is charged up to now.
    pub(super) fn top_up(&mut self, place: usize, now: Micros) {
        let here: Vec<usize> =
            self.running.iter().filter(|(_, it)| it.place == place).map(|(id, _)| id).collect();
        for run in here {
            self.charge(run, now, false);
        }
    }

    /// Somebody begins to wait: from here on it counts what runs beside.
    pub(super) fn enrol_running(&mut self, among: super::Places, now: Micros) {
        let here: Vec<usize> = self
            .running
            .iter()
            .filter(|(_, it)| it.flow.is_none() && !it.is_slotless && among & (1 << it.place) != 0)
            .map(|(id, _)| id)
            .collect();
        for id in here {
            let Some(run) = self.running.get(id) else { continue };
            let (course, place) = (Arc::clone(&run.ask.course), run.place);
            let model = Arc::clone(&run.ask.model);
            let flow = self.flow(course.who.as_str());
            let base = self.backends.get(place).map_or(0, |it| it.base(&model));
            if let Some(flow) = self.flows.get_mut(flow) {
                flow.running += 1;
                flow.set_tag(place, flow.tag(place).max(base));
            }
            if let Some(run) = self.running.get_mut(id) {
                run.flow = Some(flow);
                run.counts_from = now;
            }
            self.charge(id, now, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_prompts_are_expected_to_take_what_long_prompts_took() {
        let mut pace = Pace::default();
        assert_eq!(pace.expected(10), UNKNOWN);
        for _ in 0..20 {
            pace.learn(10, 1_000);
            pace.learn(10_000, 9_000);
        }
        assert_eq!((pace.expected(12), pace.expected(9_000)), (1_000, 9_000));
        let between = pace.expected(700);
        assert!((1_000..9_000).contains(&between), "{between}");
    }
}
