//! Callers of all kinds before one to eight backends, with time as an input.
//!
//! `PORTCULLIS_SIMULATE=1000000 cargo test --release --lib simulation -- --nocapture` prints the table of
//! docs/fair-queue.md.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
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

/// A caller who has so many requests open at all times.
#[derive(Debug, Clone, Copy)]
struct Caller {
    open: usize,
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
    /// The worst that two who waited throughout were apart at a backend, beside what may be.
    apart: f64,
    may_be: f64,
    ended: Micros,
}

struct Run<'a> {
    world: &'a World,
    order: Order,
    now: Micros,
    dice: Dice,
    events: BinaryHeap<Reverse<(Micros, usize, Event)>>,
    number: usize,
    requests: Slab<Request>,
    waiting: HashMap<usize, usize>,
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
                    of_one: 1000,
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
            waiting: HashMap::new(),
            loaded: vec![None; world.backends],
            queued: vec![0; callers],
            pairs: HashMap::new(),
            running: Vec::new(),
            out: Outcome {
                waits: vec![Vec::new(); callers],
                had: vec![vec![0; world.backends]; callers],
                ..Outcome::default()
            },
        };
        for (caller, it) in world.callers.iter().enumerate() {
            for _ in 0..it.open {
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
        self.out.may_be = self.may_be();
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
                    Joined::Full => panic!("full"),
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
        let pause = self.world.callers[caller].pause;
        self.at(self.now + pause, Event::Came { caller });
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
                    self.out.apart = self.out.apart.max(seen.1 - seen.0);
                }
            }
        }
    }

    /// One's own longest, another's for each slot, and the bound of the grouping of models.
    fn may_be(&self) -> f64 {
        let slots = self.world.slots as f64;
        let swaps = if self.world.callers.iter().any(|it| it.models > 1) { 1.0 } else { 0.0 };
        let weighted =
            |it: &Caller| (it.longest + self.world.load) as f64 * 1000.0 / f64::from(it.weight);
        let longest = self.world.callers.iter().map(weighted).fold(0.0, f64::max);
        let lightest = self.world.callers.iter().map(|it| it.weight).min().unwrap_or(1000);
        let grouping = GROUPING.as_micros() as f64 * 1000.0 / f64::from(lightest);
        longest * (1.0 + slots) + swaps * grouping
    }
}

fn caller(open: usize, longest: Micros) -> Caller {
    let class = Class::Interactive;
    Caller { open, weight: 1000, class, longest, models: 1, pause: 10_000 }
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
        let mut fair = Run::new(&world, true).until(each / 7);
        let mut first = Run::new(&world, false).until(each / 7);
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
    }
}

#[test]
fn over_an_hour_everybody_who_always_waits_has_the_weighted_share_within_a_twentieth() {
    let uneven = worlds().swap_remove(2);
    let run = Run::new(&uneven, true);
    let out = run.until(10_000);
    assert!(out.ended > 3600 * SECOND, "{}", out.ended);
    let weights: f64 = uneven.callers.iter().map(|it| f64::from(it.weight)).sum();
    let all: f64 = out.had.iter().flatten().map(|it| *it as f64).sum();
    for (caller, had) in uneven.callers.iter().zip(&out.had) {
        let share = had.iter().sum::<Micros>() as f64 / all / (f64::from(caller.weight) / weights);
        assert!((0.95..=1.05).contains(&share), "{caller:?}: {share}");
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
