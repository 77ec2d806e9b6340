//! Callers of all kinds before one to eight backends, with time as an input.
//!
//! `PORTCULLIS_SIMULATE=1000000 cargo test --release --lib simulation -- --nocapture` prints the table of
//! docs/fair-queue.md.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::fmt::Write as _;

use super::*;

/// The same numbers in the same order, always.
#[derive(Debug, Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) ^ (self.0 >> 13 & 0xffff)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.roll() % most.max(1)
    }
}

/// A caller who has so many requests open at all times, or whose requests come as they come.
#[derive(Debug, Clone, Copy)]
struct Caller {
    open: usize,
    /// Between two requests on the average, whatever becomes of them; 0 of who has so many open.
    every: Micros,
    weight: u32,
    class: Class,
    /// The longest of its requests; they are of all lengths from a tenth of it.
    longest: Micros,
    models: u64,
    /// Between an answer and the next request.
    pause: Micros,
}

#[derive(Debug, Clone)]
struct World {
    name: &'static str,
    backends: usize,
    slots: usize,
    load: Micros,
    callers: Vec<Caller>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Came { caller: usize },
    Ended { request: usize },
    Tick,
}

#[derive(Debug, Clone)]
struct Request {
    caller: usize,
    model: u64,
    work: Micros,
    came: Micros,
    at: Option<(usize, Slot)>,
}

/// Who decides: ours, or who came first.
#[derive(Debug)]
enum Order {
    Fair(Box<Queue>),
    First { waiting: VecDeque<usize>, busy: Vec<Vec<u64>> },
}

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    requests: usize,
    swaps: usize,
    waits: Vec<Vec<Micros>>,
    /// Backend time of each caller, at each backend.
    had: Vec<Vec<Micros>>,
    /// Of all pairs that waited throughout: how far apart at a backend the one was that came closest
    /// to what may be, beside that.
    apart: f64,
    may_be: f64,
    /// Came while as many waited as may.
    refused: usize,
    ended: Micros,
}

/// Requests of one caller that may wait.
const OF_ONE: usize = 200;

struct Run<'a> {
    world: &'a World,
    order: Order,
    now: Micros,
    dice: Dice,
    events: BinaryHeap<Reverse<(Micros, usize, Event)>>,
    number: usize,
    requests: Slab<Request>,
    waiting: BTreeMap<usize, usize>,
    loaded: Vec<Option<u64>>,
    queued: Vec<usize>,
    pairs: HashMap<(usize, usize, usize), (f64, f64)>,
    running: Vec<(usize, Micros)>,
    out: Outcome,
}

impl<'a> Run<'a> {
    fn new(world: &'a World, is_fair: bool) -> Self {
        let order = match is_fair {
            true => {
                let mut queue = Queue::new(Bounds {
                    of_one: OF_ONE,
                    in_all: 10_000,
                    bytes_of_one: 1 << 20,
                    models_of_one: 16,
                });
                for _ in 0..world.backends {
                    queue.add(&setup(world.slots));
                }
                Order::Fair(Box::new(queue))
            }
            false => {
                Order::First { waiting: VecDeque::new(), busy: vec![Vec::new(); world.backends] }
            }
        };
        let callers = world.callers.len();
        let mut run = Self {
            world,
            order,
            now: 0,
            dice: Dice(7),
            events: BinaryHeap::new(),
            number: 0,
            requests: Slab::new(),
            waiting: BTreeMap::new(),
            loaded: vec![None; world.backends],
            queued: vec![0; callers],
            pairs: HashMap::new(),
            running: Vec::new(),
            out: Outcome {
                waits: vec![Vec::new(); callers],
                had: vec![vec![0; world.backends]; callers],
                may_be: 1.0,
                ..Outcome::default()
            },
        };
        for (caller, it) in world.callers.iter().enumerate() {
            for _ in 0..it.open.max(1) {
                let at = run.dice.below(1000);
                run.at(at, Event::Came { caller });
            }
        }
        run.at(SECOND, Event::Tick);
        run
    }

    fn at(&mut self, when: Micros, event: Event) {
        self.number += 1;
        self.events.push(Reverse((when, self.number, event)));
    }

    fn until(mut self, requests: usize) -> Outcome {
        while self.out.requests < requests {
            let Some(Reverse((when, _, event))) = self.events.pop() else { break };
            self.pass(when);
            match event {
                Event::Came { caller } => self.come(caller),
                Event::Ended { request } => self.end(request),
                Event::Tick => {
                    if let Order::Fair(queue) = &mut self.order {
                        queue.tend(self.now);
                    }
                    self.at(self.now + SECOND, Event::Tick);
                }
            }
            self.give();
            self.compare();
        }
        self.out.ended = self.now;
        self.out
    }

    /// Backend time goes to whoever runs.
    fn pass(&mut self, when: Micros) {
        for (request, since) in &mut self.running {
            let Request { caller, at, .. } = &self.requests[*request];
            let place = at.map(|(place, _)| place).unwrap();
            self.out.had[*caller][place] += when - *since;
            *since = when;
        }
        self.now = when;
    }

    fn come(&mut self, caller: usize) {
        let it = self.world.callers[caller];
        if it.every > 0 {
            let next = self.now + 1 + self.dice.below(2 * it.every);
            self.at(next, Event::Came { caller });
            // Who takes whoever came first turns nobody away for another's sake, but has as much room.
            if matches!(self.order, Order::First { .. })
                && self.queued.iter().sum::<usize>() >= OF_ONE * self.queued.len()
            {
                self.out.refused += 1;
                return;
            }
        }
        let tenth = it.longest / 10;
        let work = tenth + self.dice.below(it.longest - tenth);
        let model = self.dice.below(it.models);
        let request =
            self.requests.insert(Request { caller, model, work, came: self.now, at: None });
        self.queued[caller] += 1;
        match &mut self.order {
            Order::First { waiting, .. } => waiting.push_back(request),
            Order::Fair(queue) => {
                let ask = Ask {
                    course: course([0; 16], &format!("u{caller}")),
                    weight: it.weight,
                    class: it.class,
                    model: format!("m{model}").into(),
                    places: (1 << self.world.backends) - 1,
                    // A guess at the length, as a prompt is.
                    bytes: 10,
                    prompt: work / 50_000,
                    streams: true,
                    preferred: 0,
                };
                match queue.join(ask, self.now) {
                    Joined::Runs(slot) => self.start(request, slot.place, slot),
                    Joined::Waits(id) => drop(self.waiting.insert(id, request)),
                    Joined::Full => {
                        assert!(it.every > 0, "full");
                        self.requests.remove(request);
                        self.queued[caller] -= 1;
                        self.out.refused += 1;
                    }
                }
            }
        }
    }

    fn end(&mut self, request: usize) {
        let Request { caller, at, .. } = self.requests.remove(request);
        self.running.retain(|(it, _)| *it != request);
        let (place, slot) = at.unwrap();
        match &mut self.order {
            Order::Fair(queue) => queue.end(slot, self.now),
            Order::First { busy, .. } => drop(busy[place].pop()),
        }
        self.out.requests += 1;
        let Caller { pause, every, .. } = self.world.callers[caller];
        if every == 0 {
            self.at(self.now + pause, Event::Came { caller });
        }
    }

    /// Starts whoever has a turn now.
    fn give(&mut self) {
        match &mut self.order {
            Order::Fair(queue) => {
                let ids: Vec<usize> = self.waiting.keys().copied().collect();
                let mut turns = Vec::new();
                for id in ids {
                    if let Turn::Runs(slot) = queue.poll(id, Waker::noop()) {
                        turns.push((id, slot));
                    }
                }
                for (id, slot) in turns {
                    let request = self.waiting.remove(&id).unwrap();
                    self.start(request, slot.place, slot);
                }
            }
            Order::First { .. } => self.give_to_first(),
        }
    }

    /// What people have without a queue of ours: the least busy backend, and its own queue.
    fn give_to_first(&mut self) {
        loop {
            let Order::First { waiting, busy } = &mut self.order else { return };
            let Some(first) = waiting.front().copied() else { return };
            let model = self.requests[first].model;
            let fits = |place: &usize| {
                let running = &busy[*place];
                running.len() < self.world.slots && running.iter().all(|it| *it == model)
            };
            let Some(place) = (0..busy.len()).filter(fits).min_by_key(|it| busy[*it].len()) else {
                return;
            };
            waiting.pop_front();
            busy[place].push(model);
            self.start(first, place, Slot { place, run: 0 });
        }
    }

    fn start(&mut self, request: usize, place: usize, slot: Slot) {
        let it = &mut self.requests[request];
        it.at = Some((place, slot));
        self.queued[it.caller] -= 1;
        self.out.waits[it.caller].push(self.now - it.came);
        let mut took = it.work;
        if self.loaded[place] != Some(it.model) {
            self.loaded[place] = Some(it.model);
            self.out.swaps += 1;
            took += self.world.load;
        }
        self.running.push((request, self.now));
        self.at(self.now + took, Event::Ended { request });
    }

    /// For each pair that waits, how far apart their weighted times moved since both wait.
    fn compare(&mut self) {
        let waits: Vec<usize> = (0..self.queued.len()).filter(|it| self.queued[*it] > 0).collect();
        self.pairs.retain(|(a, b, _), _| self.queued[*a] > 0 && self.queued[*b] > 0);
        let callers = &self.world.callers;
        for (at, a) in waits.iter().enumerate() {
            for b in waits[at + 1..].iter().filter(|b| callers[*a].class == callers[**b].class) {
                for place in 0..self.world.backends {
                    let weighted = |caller: usize| {
                        let had = self.out.had[caller][place] as f64;
                        had * 1000.0 / f64::from(callers[caller].weight)
                    };
                    let apart = weighted(*a) - weighted(*b);
                    let seen = self.pairs.entry((*a, *b, place)).or_insert((apart, apart));
                    *seen = (seen.0.min(apart), seen.1.max(apart));
                    let (apart, may_be) = (seen.1 - seen.0, self.may_be(*a, *b));
                    if apart / may_be > self.out.apart / self.out.may_be {
                        (self.out.apart, self.out.may_be) = (apart, may_be);
                    }
                }
            }
        }
    }

    /// For these two: the longest of one of them, the other's longest for each slot, and the bound of
    /// the grouping of models.
    fn may_be(&self, a: usize, b: usize) -> f64 {
        let slots = self.world.slots as f64;
        let swaps = if self.world.callers.iter().any(|it| it.models > 1) { 1.0 } else { 0.0 };
        let weighted = |caller: usize| {
            let it = &self.world.callers[caller];
            (it.longest + self.world.load) as f64 * 1000.0 / f64::from(it.weight)
        };
        let (a, b) = (weighted(a), weighted(b));
        let grouping = GROUPING.as_micros() as f64;
        a.max(b) * slots + a.min(b) + swaps * grouping
    }
}

fn caller(open: usize, longest: Micros) -> Caller {
    let class = Class::Interactive;
    Caller { open, every: 0, weight: 1000, class, longest, models: 1, pause: 10_000 }
}

fn worlds() -> Vec<World> {
    let nine_and_one = |longest| {
        let mut callers = vec![caller(64, longest)];
        callers.extend((0..9).map(|_| caller(2, longest)));
        callers
    };
    let with_models = |callers: Vec<Caller>, models| {
        callers.into_iter().map(|it| Caller { models, ..it }).collect::<Vec<_>>()
    };
    let uneven = vec![
        caller(64, 20 * SECOND),
        caller(8, 2 * SECOND),
        Caller { weight: 2000, ..caller(8, 5 * SECOND) },
        Caller { weight: 500, ..caller(16, SECOND) },
    ];
    // Requests of 2.2 s on the average, as of ten who ask at one pace: so many times what two slots do.
    let comes = |load: f64| {
        let every = (2_200_000.0 * 10.0 / 2.0 / load) as Micros;
        let steady = Caller { every, ..caller(0, 4 * SECOND) };
        // One of them asks for as much as four others.
        let eager = Caller { every: every / 4, ..steady };
        [vec![eager], vec![steady; 6]].concat()
    };
    let mut urgent_and_not = nine_and_one(4 * SECOND);
    for (number, it) in urgent_and_not.iter_mut().enumerate() {
        it.class = if number % 2 == 0 { Class::Batch } else { Class::Interactive };
    }
    let world =
        |name, backends, slots, load, callers| World { name, backends, slots, load, callers };
    vec![
        world("one slot, one greedy and nine modest", 1, 1, 0, nine_and_one(4 * SECOND)),
        world("one slot, weights 1, 1, 2, 1/2, lengths 20:2:5:1", 1, 1, 0, uneven.clone()),
        world("four slots, the same", 1, 4, 0, uneven.clone()),
        world(
            "two models, one in memory",
            1,
            1,
            5 * SECOND,
            with_models(nine_and_one(4 * SECOND), 2),
        ),
        world(
            "three models, two backends",
            2,
            1,
            5 * SECOND,
            with_models(nine_and_one(4 * SECOND), 3),
        ),
        world("four backends of two slots", 4, 2, 5 * SECOND, with_models(uneven, 2)),
        world("eight backends", 8, 1, 5 * SECOND, with_models(nine_and_one(4 * SECOND), 3)),
        world("two slots, half of what they can do", 1, 2, 0, comes(0.5)),
        world("two slots, nine tenths of it", 1, 2, 0, comes(0.9)),
        world("two slots, three times as much", 1, 2, 0, comes(3.0)),
        world("one slot, half of the callers in no hurry", 1, 1, 0, urgent_and_not),
    ]
}

fn at(waits: &mut [Micros], part: f64) -> f64 {
    waits.sort_unstable();
    let place = ((waits.len() as f64 - 1.0) * part) as usize;
    waits.get(place).map_or(0.0, |it| *it as f64 / SECOND as f64)
}

#[test]
fn who_waits_throughout_has_a_share_of_the_time_whatever_the_others_have_open() {
    let each = std::env::var("PORTCULLIS_SIMULATE").map_or(20_000, |it| it.parse().unwrap());
    let mut table = String::new();
    for world in worlds() {
        let mut fair = Run::new(&world, true).until(each / 11);
        let mut first = Run::new(&world, false).until(each / 11);
        let modest = world.callers.len() - 1;
        let _ = writeln!(
            table,
            "| {} | {:.1} / {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {} |",
            world.name,
            fair.apart / SECOND as f64,
            fair.may_be / SECOND as f64,
            at(&mut fair.waits[modest], 0.5),
            at(&mut first.waits[modest], 0.5),
            at(&mut fair.waits[modest], 0.99),
            at(&mut first.waits[modest], 0.99),
            fair.swaps,
            first.swaps,
        );
        println!("{table}");
        assert!(fair.apart <= fair.may_be, "{}: {} > {}", world.name, fair.apart, fair.may_be);
        assert!(fair.swaps <= first.swaps, "{}", world.name);
        assert_eq!(fair.refused > 0, world.name.contains("three times"), "{}", world.name);
    }
}

#[test]
fn over_an_hour_everybody_who_always_waits_has_the_weighted_share_within_a_twentieth() {
    // Those in which everybody has one request more than there are slots.
    let always_wait = |it: &&World| {
        let slots = it.backends * it.slots;
        it.callers.iter().all(|caller| caller.open > slots && caller.every == 0)
    };
    let worlds = worlds();
    let always: Vec<_> = worlds.iter().filter(always_wait).collect();
    assert!(always.len() >= 5, "{always:?}");
    for world in always {
        let out = Run::new(world, true).until(10_000);
        assert!(out.ended > 3600 * SECOND, "{}: {}", world.name, out.ended);
        for class in [Class::Interactive, Class::Batch] {
            has_its_share(world, class, &out);
        }
    }
}

/// Each of a class of what the class had; and the less urgent, where there are others, a tenth.
fn has_its_share(world: &World, class: Class, out: &Outcome) {
    let of_class = || world.callers.iter().zip(&out.had).filter(|(it, _)| it.class == class);
    let time = |had: &Vec<Micros>| had.iter().sum::<Micros>() as f64;
    let weights: f64 = of_class().map(|(it, _)| f64::from(it.weight)).sum();
    let all: f64 = of_class().map(|(_, had)| time(had)).sum();
    for (caller, had) in of_class() {
        let share = time(had) / all / (f64::from(caller.weight) / weights);
        assert!((0.95..=1.05).contains(&share), "{}: {caller:?}: {share}", world.name);
    }
    let total: f64 = out.had.iter().map(time).sum();
    if class == Class::Batch && all > 0.0 {
        let floor = all / total * FLOOR as f64;
        assert!((0.95..=1.05).contains(&floor), "{}: {floor} of a tenth", world.name);
    }
}

#[test]
fn beside_one_with_many_a_modest_caller_waits_for_one_running_request() {
    let longest = 4 * SECOND;
    let modest = Caller { pause: 3 * SECOND, ..caller(1, longest) };
    let world = World {
        name: "",
        backends: 1,
        slots: 1,
        load: 0,
        callers: vec![caller(64, longest), modest],
    };
    let mut out = Run::new(&world, true).until(5_000);
    let worst = out.waits[1].iter().max().copied().unwrap();
    assert!(worst <= longest, "{worst}");
    assert!(at(&mut out.waits[1], 0.5) > 0.0, "it never waited");
}
