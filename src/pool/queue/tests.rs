//! The queue by itself: who is next, and that no slot is lost.

use std::sync::Arc;
use std::task::Waker;

use proptest::prelude::*;

use super::*;

mod simulation;

const SECOND: Micros = 1_000_000;

pub(super) fn setup(parallel: usize) -> Setup {
    Setup { weight: 1000, parallel: Some(parallel), models_at_once: Some(1) }
}

fn bounds() -> Bounds {
    Bounds { of_one: 1000, in_all: 10_000, bytes_of_one: 1 << 20, models_of_one: 16 }
}

fn course(id: [u8; 16], who: &str) -> Arc<Course> {
    Arc::new(Course::new(id, who.into(), "chat"))
}

fn ask(who: &str, model: &str) -> Ask {
    Ask {
        course: course([b'0'; 16], who),
        weight: 1000,
        class: Class::Interactive,
        model: model.into(),
        places: 1,
        bytes: 10,
        prompt: 10,
        streams: true,
        preferred: 0,
    }
}

/// A queue with one backend, and what its callers know.
struct Bed {
    queue: Queue,
    now: Micros,
}

impl Bed {
    fn with(setup: &Setup) -> Self {
        let mut queue = Queue::new(bounds());
        queue.add(setup);
        Self { queue, now: 0 }
    }

    fn runs(&mut self, ask: Ask) -> Slot {
        let joined = self.queue.join(ask, self.now);
        let Joined::Runs(slot) = joined else { panic!("{joined:?}") };
        slot
    }

    fn waits(&mut self, ask: Ask) -> usize {
        let joined = self.queue.join(ask, self.now);
        let Joined::Waits(id) = joined else { panic!("{joined:?}") };
        id
    }

    fn turn(&mut self, id: usize) -> Turn {
        self.queue.poll(id, Waker::noop())
    }

    /// Ends what runs a second later, and gives the first of these that runs then.
    fn after(
        &mut self,
        slot: Slot,
        waiting: &mut Vec<(&'static str, usize)>,
    ) -> (Slot, &'static str) {
        self.now += SECOND;
        self.queue.end(slot, self.now);
        let turns: Vec<_> = waiting.iter().map(|(_, id)| *id).collect();
        for (at, id) in turns.into_iter().enumerate() {
            if let Turn::Runs(slot) = self.turn(id) {
                return (slot, waiting.remove(at).0);
            }
        }
        panic!("nobody runs of {waiting:?}");
    }
}

#[test]
fn one_with_many_requests_has_no_more_turns_than_one_with_few() {
    let mut bed = Bed::with(&setup(1));
    let mut slot = bed.runs(ask("greedy", "m"));
    let mut waiting: Vec<_> = (0..6).map(|_| ("greedy", bed.waits(ask("greedy", "m")))).collect();
    waiting.extend((0..3).map(|_| ("modest", bed.waits(ask("modest", "m")))));
    let mut order = Vec::new();
    while !waiting.is_empty() {
        let (next, who) = bed.after(slot, &mut waiting);
        slot = next;
        order.push(who);
    }
    let few = ["modest", "greedy", "modest", "greedy", "modest", "greedy"];
    assert_eq!(order[..6], few, "{order:?}");
}

#[test]
fn a_weight_of_three_is_three_turns_to_one() {
    let mut bed = Bed::with(&setup(1));
    let mut slot = bed.runs(ask("light", "m"));
    let mut waiting: Vec<_> = (0..12).map(|_| ("light", bed.waits(ask("light", "m")))).collect();
    let heavy = Ask { weight: 3000, ..ask("heavy", "m") };
    waiting.extend((0..12).map(|_| ("heavy", bed.waits(heavy.clone()))));
    let mut of_heavy = 0;
    for _ in 0..12 {
        let (next, who) = bed.after(slot, &mut waiting);
        slot = next;
        of_heavy += usize::from(who == "heavy");
    }
    assert!((9..=10).contains(&of_heavy), "{of_heavy}");
}

#[test]
fn long_requests_have_fewer_turns_than_short_ones_and_as_much_time() {
    let mut bed = Bed::with(&setup(1));
    let mut time = [0, 0];
    let mut slot = bed.runs(ask("short", "m"));
    let mut who = "short";
    let mut waiting = Vec::new();
    for _ in 0..200 {
        while waiting.iter().filter(|(it, _)| *it == "short").count() < 2 {
            waiting.push(("short", bed.waits(ask("short", "m"))));
        }
        while waiting.iter().filter(|(it, _)| *it == "long").count() < 2 {
            waiting.push(("long", bed.waits(Ask { prompt: 9000, ..ask("long", "m") })));
        }
        let took = if who == "long" { 9 * SECOND } else { 0 };
        time[usize::from(who == "long")] += took + SECOND;
        bed.now += took;
        (slot, who) = bed.after(slot, &mut waiting);
    }
    let [short, long] = time;
    assert!(short.abs_diff(long) <= 20 * SECOND, "{time:?}");
}

#[test]
fn the_model_in_memory_goes_on_for_a_while_and_then_the_other_has_its_turn() {
    let mut bed = Bed::with(&setup(1));
    let mut slot = bed.runs(ask("a", "one"));
    let other = bed.waits(ask("b", "two"));
    let began = bed.now;
    loop {
        let next = bed.waits(ask("a", "one"));
        bed.now += SECOND;
        bed.queue.end(slot, bed.now);
        match (bed.turn(other), bed.turn(next)) {
            (Turn::Runs(_), Turn::Waits) => break,
            (Turn::Waits, Turn::Runs(run)) => slot = run,
            turns => panic!("{turns:?}"),
        }
    }
    let passed_over = Duration::from_micros(bed.now - began);
    assert!(
        (GROUPING..=GROUPING + Duration::from_secs(2)).contains(&passed_over),
        "{passed_over:?}"
    );
}

#[test]
fn the_less_urgent_have_a_tenth_of_the_time_and_all_that_nobody_else_wants() {
    let mut bed = Bed::with(&setup(1));
    let batch = Ask { class: Class::Batch, ..ask("b", "m") };
    let mut slot = bed.runs(ask("a", "m"));
    let mut waiting = Vec::new();
    let mut of_batch = 0;
    for _ in 0..200 {
        waiting.push(("a", bed.waits(ask("a", "m"))));
        waiting.push(("b", bed.waits(batch.clone())));
        let (next, who) = bed.after(slot, &mut waiting);
        slot = next;
        of_batch += usize::from(who == "b");
    }
    assert!((18..=22).contains(&of_batch), "{of_batch}");
    waiting.retain(|(who, id)| {
        let stays = *who == "b";
        if !stays {
            bed.queue.leave(*id, bed.now);
        }
        stays
    });
    for _ in 0..5 {
        let (next, who) = bed.after(slot, &mut waiting);
        slot = next;
        assert_eq!(who, "b");
    }
}

#[test]
fn who_leaves_the_queue_is_gone_and_who_leaves_at_the_moment_of_the_turn_frees_the_slot() {
    let mut bed = Bed::with(&setup(1));
    let slot = bed.runs(ask("a", "m"));
    let (leaves, late, stays) =
        (bed.waits(ask("b", "m")), bed.waits(ask("c", "m")), bed.waits(ask("d", "m")));
    bed.queue.leave(leaves, bed.now);
    assert_eq!(bed.queue.queued(), 2);
    bed.queue.end(slot, bed.now + 1);
    bed.queue.leave(late, bed.now + 2);
    assert!(matches!(bed.turn(stays), Turn::Runs(_)));
}

#[test]
fn ten_thousand_who_wait_take_no_more_than_a_kib_each() {
    const CROWD: u64 = 10_000;
    let mut bed = Bed::with(&setup(1));
    bed.runs(ask("first", "m"));
    let used = allocation_counter::measure(|| {
        for number in 0..CROWD {
            bed.waits(ask(&format!("caller {}", number % 50), ["m", "n"][number as usize % 2]));
        }
    });
    let each = u64::try_from(used.bytes_current).unwrap() / CROWD;
    assert!(each <= 1024, "{each} bytes each");
    assert_eq!(bed.queue.queued() as u64, CROWD);
}

#[test]
fn a_backend_with_the_model_in_memory_is_waited_for_and_not_for_ever() {
    let mut bed = Bed::with(&setup(1));
    bed.queue.add(&setup(1));
    let both = |who: &str, model: &str| Ask { places: 3, ..ask(who, model) };
    let first = bed.runs(both("a", "m"));
    let waits = bed.waits(both("b", "m"));
    // Another model goes where nothing is.
    let beside = bed.runs(both("c", "n"));
    assert_ne!(first.place, beside.place);
    bed.queue.end(beside, bed.now);
    assert_eq!(bed.turn(waits), Turn::Waits);
    bed.now += u64::try_from(RELUCTANCE.as_micros()).unwrap();
    bed.queue.tend(bed.now);
    assert!(matches!(bed.turn(waits), Turn::Runs(slot) if slot.place == beside.place));
}

#[test]
fn who_waits_for_a_backend_that_is_gone_is_told_unless_there_is_another() {
    let mut bed = Bed::with(&setup(1));
    bed.queue.add(&setup(1));
    bed.runs(ask("a", "m"));
    bed.runs(Ask { places: 2, ..ask("a", "m") });
    let (only, both) = (bed.waits(ask("b", "m")), bed.waits(Ask { places: 3, ..ask("c", "m") }));
    bed.queue.set_intake(0, Intake::Nothing, bed.now);
    assert_eq!((bed.turn(only), bed.turn(both)), (Turn::Stranded, Turn::Waits));
    bed.queue.set_intake(1, Intake::Nothing, bed.now);
    assert_eq!(bed.turn(both), Turn::Stranded);
    assert_eq!(bed.queue.queued(), 0);
}

#[test]
fn a_backend_that_failed_has_its_line_for_those_alone_who_have_no_other() {
    let mut bed = Bed::with(&setup(1));
    bed.queue.add(&setup(1));
    let both = |who: &str| Ask { places: 3, ..ask(who, "m") };
    let first = bed.runs(Ask { preferred: 0, ..both("a") });
    let other = bed.runs(Ask { places: 2, ..ask("a", "m") });
    let waits = bed.waits(both("b"));
    bed.queue.set_intake(0, Intake::LastResort, bed.now);
    bed.queue.end(first, bed.now);
    assert_eq!(bed.turn(waits), Turn::Waits, "it has another");
    // Of those who have none as many go there as ever, and the others wait for what becomes of them.
    let tries = bed.runs(ask("c", "m"));
    let (next, last) = (bed.waits(ask("d", "m")), bed.waits(ask("e", "n")));
    bed.queue.tend(bed.now);
    bed.queue.end(tries, bed.now);
    assert_eq!(bed.turn(last), Turn::Waits);
    let Turn::Runs(next) = bed.turn(next) else { panic!("it has no turn") };
    bed.queue.turn_away(0);
    assert_eq!((bed.turn(last), bed.turn(waits)), (Turn::Stranded, Turn::Waits));
    let late = bed.waits(ask("f", "m"));
    bed.queue.set_intake(0, Intake::All, bed.now);
    bed.queue.end(other, bed.now);
    bed.queue.end(next, bed.now);
    assert!(matches!((bed.turn(late), bed.turn(waits)), (Turn::Runs(_), Turn::Runs(_))));
}

#[test]
fn no_more_wait_than_may() {
    let mut queue =
        Queue::new(Bounds { of_one: 2, in_all: 3, bytes_of_one: 1 << 20, models_of_one: 16 });
    queue.add(&setup(1));
    let mut join = |who| queue.join(ask(who, "m"), 0);
    assert!(matches!(join("a"), Joined::Runs(_)));
    assert!(matches!((join("a"), join("a")), (Joined::Waits(_), Joined::Waits(_))));
    assert_eq!(join("a"), Joined::Full);
    assert!(matches!(join("b"), Joined::Waits(_)));
    assert_eq!(join("c"), Joined::Full);
}

#[test]
fn what_needs_no_slot_takes_none_and_is_seen() {
    let mut bed = Bed::with(&setup(1));
    let pull = bed.queue.pass(ask("a", "m"), 0, bed.now);
    assert_eq!(bed.queue.seen(bed.now).len(), 1);
    let slot = bed.runs(ask("b", "m"));
    let waits = bed.waits(ask("c", "m"));
    bed.queue.end(pull, bed.now + 1);
    assert_eq!(bed.turn(waits), Turn::Waits);
    bed.queue.end(slot, bed.now + 2);
    assert!(matches!(bed.turn(waits), Turn::Runs(_)));
}

#[test]
fn neither_models_nor_bodies_of_one_fill_the_queue() {
    let mut queue = Queue::new(Bounds { bytes_of_one: 50, models_of_one: 3, ..bounds() });
    queue.add(&setup(1));
    let mut join = |who: &str, model: &str, bytes| queue.join(Ask { bytes, ..ask(who, model) }, 0);
    assert!(matches!(join("a", "m", 1), Joined::Runs(_)));
    // One alone may be as large as it is.
    assert!(matches!(join("a", "m", 60), Joined::Waits(_)));
    assert_eq!(join("a", "m", 1), Joined::Full);
    for model in ["m", "n", "o"] {
        assert!(matches!(join("b", model, 10), Joined::Waits(_)));
    }
    assert_eq!(join("b", "p", 10), Joined::Full);
    assert!(matches!(join("b", "o", 10), Joined::Waits(_)));
    assert_eq!(join("b", "o", 11), Joined::Full);
}

#[test]
fn a_weight_that_changes_in_between_gives_nobody_credit() {
    let mut bed = Bed::with(&setup(1));
    let slot = bed.runs(ask("other", "m"));
    let heavy = bed.waits(Ask { weight: 1_000_000, ..ask("a", "m") });
    bed.now += SECOND;
    bed.queue.end(slot, bed.now);
    let Turn::Runs(slot) = bed.turn(heavy) else { panic!("it has no turn") };
    let _light = bed.waits(Ask { weight: 1, ..ask("a", "m") });
    let tag = |bed: &Bed| bed.queue.flows.iter().find(|(_, it)| &*it.who == "a").unwrap().1.tag(0);
    let before = tag(&bed);
    bed.now += 10 * SECOND;
    bed.queue.end(slot, bed.now);
    assert!(tag(&bed) >= before, "{before} {}", tag(&bed));
}

#[test]
fn what_ran_before_anybody_waited_is_not_held_against_anybody() {
    let mut bed = Bed::with(&setup(1));
    let slot = bed.runs(ask("a", "m"));
    bed.now += 280 * SECOND;
    let mut waiting: Vec<_> = (0..6).map(|_| ("b", bed.waits(ask("b", "m")))).collect();
    waiting.push(("a", bed.waits(ask("a", "m"))));
    let (mut slot, mut turns) = (slot, Vec::new());
    for _ in 0..3 {
        let (next, who) = bed.after(slot, &mut waiting);
        slot = next;
        turns.push(who);
    }
    assert_eq!(turns[0], "b");
    assert!(turns.contains(&"a"), "280 s of an empty machine are held against it");
}

#[test]
fn how_long_a_wait_will_be_is_told_by_what_requests_took() {
    for (took, at_least, at_most) in
        [(SECOND, 4 * SECOND, 6 * SECOND), (30 * SECOND, 120 * SECOND, 180 * SECOND)]
    {
        let mut bed = Bed::with(&setup(1));
        for _ in 0..8 {
            let slot = bed.runs(ask("a", "m"));
            bed.now += took;
            bed.queue.end(slot, bed.now);
        }
        assert_eq!(bed.queue.longest_expected(bed.now), 0);
        bed.runs(ask("a", "m"));
        for _ in 0..4 {
            bed.waits(ask("a", "m"));
        }
        // Of one more, and of the last that is there.
        let expected = bed.queue.expected_wait(&ask("b", "m"));
        assert!((at_least..=at_most).contains(&expected), "{expected} where each takes {took}");
        assert_eq!(bed.queue.longest_expected(bed.now), 4 * took);
    }
}

#[test]
fn positions_tell_the_order_in_which_requests_begin() {
    let mut bed = Bed::with(&setup(1));
    let slot = bed.runs(ask("a", "m"));
    for _ in 0..3 {
        bed.waits(ask("a", "m"));
    }
    let modest = bed.waits(Ask { course: course([b'f'; 16], "b"), ..ask("b", "m") });
    let seen = bed.queue.seen(bed.now);
    let spot = seen.iter().find(|it| it.course.id == [b'f'; 16]).unwrap().spot;
    assert!(matches!(spot, Spot::Waits { position: 1, .. }), "{spot:?}");
    bed.now += SECOND;
    bed.queue.end(slot, bed.now);
    assert!(matches!(bed.turn(modest), Turn::Runs(_)));
}

#[test]
fn a_look_shows_one_identity_the_longest_wait_and_every_request_once() {
    let mut bed = Bed::with(&setup(1));
    let slot = bed.runs(ask("a", "m"));
    bed.queue.first_byte(slot, bed.now);
    bed.now += SECOND;
    let first = bed.waits(ask("a", "m"));
    bed.now += SECOND;
    bed.waits(ask("b", "n"));
    bed.now += SECOND;
    let own = bed.queue.waits_of("b", bed.now);
    let [own] = own.as_slice() else { panic!("{own:?}") };
    assert_eq!((&*own.model, own.for_micros), ("n", SECOND));
    assert!(bed.queue.waits_of("c", bed.now).is_empty());
    assert_eq!(bed.queue.longest_wait(bed.now), 2 * SECOND);
    let told: Vec<_> = bed.queue.models(0);
    let told: Vec<_> = told.iter().map(|it| (&*it.name, it.in_memory, it.running)).collect();
    assert_eq!(told, [("m", true, 1), ("n", false, 0)]);
    let began = |queue: &Queue| {
        queue.seen(3 * SECOND).iter().find_map(|it| match it.spot {
            Spot::Runs { first_byte, .. } => first_byte,
            Spot::Waits { .. } => None,
        })
    };
    assert_eq!(began(&bed.queue), Some(3 * SECOND), "since its first byte");
    // Whose turn has come runs, also before its task knows.
    bed.queue.end(slot, bed.now);
    assert_eq!(bed.queue.courses(|course| course.who.as_str() == "a").len(), 1);
    assert_eq!(bed.queue.courses(|_| true).len(), 2);
    assert_eq!(bed.queue.longest_wait(bed.now), SECOND);
    assert!(matches!(bed.turn(first), Turn::Runs(_)));
}

#[test]
fn where_many_wait_positions_are_worked_out_a_few_times_a_second() {
    let mut bed = Bed::with(&setup(1));
    let slot = bed.runs(ask("first", "m"));
    let ids: Vec<_> = (0..300).map(|_| bed.waits(ask("a", "m"))).collect();
    let position = |bed: &mut Bed, at: usize| {
        let own = bed.queue.waits_of("a", bed.now);
        own.get(at).map(|it| match it.spot {
            Spot::Waits { position, .. } => position,
            Spot::Runs { .. } => 0,
        })
    };
    assert_eq!((position(&mut bed, 0), position(&mut bed, 299)), (Some(1), Some(300)));
    bed.queue.end(slot, bed.now);
    assert!(matches!(bed.turn(ids[0]), Turn::Runs(_)));
    assert_eq!((position(&mut bed, 0), position(&mut bed, 299)), (Some(2), None), "as it was");
    bed.waits(ask("a", "m"));
    assert_eq!(position(&mut bed, 299), Some(300), "the newest is the last");
    bed.now += SECOND / 4;
    assert_eq!((position(&mut bed, 0), position(&mut bed, 299)), (Some(1), Some(300)));
    // Of few, each time.
    for id in &ids[1..250] {
        bed.queue.leave(*id, bed.now);
    }
    assert_eq!(position(&mut bed, 0), Some(1));
    assert!(bed.queue.waits_of("nobody", bed.now).is_empty());
}

/// What a caller does to the queue.
#[derive(Debug, Clone)]
enum Step {
    Join { who: u8, model: u8, places: u64, batch: bool, streams: bool },
    Leave(usize),
    End(usize),
    FirstByte(usize),
    Takes(usize, Intake),
    Fails(usize),
    Loaded(usize, u8),
    Wait(u64),
}

fn intake() -> impl Strategy<Value = Intake> {
    prop::sample::select(vec![Intake::All, Intake::LastResort, Intake::Nothing])
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..5u8, 0..3u8, 1..8u64, any::<bool>(), any::<bool>()).prop_map(
            |(who, model, places, batch, streams)| Step::Join { who, model, places, batch, streams }
        ),
        1 => (0..20usize).prop_map(Step::Leave),
        3 => (0..20usize).prop_map(Step::End),
        2 => (0..20usize).prop_map(Step::FirstByte),
        1 => (0..3usize, intake()).prop_map(|(place, intake)| Step::Takes(place, intake)),
        1 => (0..3usize).prop_map(Step::Fails),
        1 => (0..3usize, 0..3u8).prop_map(|(place, model)| Step::Loaded(place, model)),
        2 => (0..30_000_000u64).prop_map(Step::Wait),
    ]
}

/// Does it all, and says what each caller was told; never more run than may.
fn walk(steps: &[Step]) -> Queue {
    let mut queue =
        Queue::new(Bounds { of_one: 6, in_all: 20, bytes_of_one: 1 << 20, models_of_one: 16 });
    for parallel in [Some(1), None, Some(2)] {
        queue.add(&Setup { weight: 1000, parallel, models_at_once: Some(1) });
    }
    let (mut now, mut running, mut waiting) = (0, Vec::new(), Vec::new());
    for step in steps {
        match step.clone() {
            Step::Join { who, model, places, batch, streams } => {
                let class = if batch { Class::Batch } else { Class::Interactive };
                let (who, model) = (format!("u{who}"), format!("m{model}"));
                let ask = Ask { places, class, streams, ..ask(&who, &model) };
                match queue.join(ask, now) {
                    Joined::Runs(slot) => running.push(slot),
                    Joined::Waits(id) => waiting.push(id),
                    Joined::Full => {}
                }
            }
            Step::Leave(at) if at < waiting.len() => queue.leave(waiting.remove(at), now),
            Step::End(at) if at < running.len() => queue.end(running.remove(at), now),
            Step::FirstByte(at) if at < running.len() => queue.first_byte(running[at], now),
            Step::Leave(_) | Step::End(_) | Step::FirstByte(_) => {}
            Step::Takes(place, intake) => queue.set_intake(place, intake, now),
            Step::Fails(place) => queue.turn_away(place),
            Step::Loaded(place, model) => {
                queue.set_loaded(place, &[Arc::from(format!("m{model}"))], now);
            }
            Step::Wait(micros) => {
                now += micros;
                queue.tend(now);
            }
        }
        waiting.retain(|id| match queue.poll(*id, Waker::noop()) {
            Turn::Waits => true,
            Turn::Runs(slot) => {
                running.push(slot);
                false
            }
            Turn::Stranded => false,
        });
        assert_eq!(queue.queued(), waiting.len());
        assert_eq!(queue.backends.iter().map(|it| it.busy).sum::<usize>(), running.len());
        for (backend, most) in queue.backends.iter().zip([1, 256, 2]) {
            assert!(backend.rooms.values().all(|room| room.running <= most));
            assert!(backend.rooms.values().filter(|room| room.running > 0).count() <= 1);
        }
    }
    for id in waiting {
        queue.leave(id, now);
    }
    for slot in running {
        queue.end(slot, now);
    }
    queue.tend(now);
    queue
}

proptest! {
    #[test]
    fn no_slot_is_lost_and_nothing_is_left_whatever_happens(
        steps in proptest::collection::vec(step(), 1..200)
    ) {
        let queue = walk(&steps);
        prop_assert!(queue.flows.is_empty() && queue.by_name.is_empty());
        prop_assert!(queue.lanes.is_empty() && queue.waiting.is_empty());
        prop_assert!(queue.running.is_empty());
        for backend in &queue.backends {
            prop_assert!(backend.busy == 0 && !backend.is_waited_for());
        }
    }
}
