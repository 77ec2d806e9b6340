//! Tests of a backend's health; time is a number.

use proptest::prelude::*;

use super::*;

fn start() -> Instant {
    Instant::now()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// One request that ends so, a second after it began.
fn ask(health: &mut Health, finding: Finding, now: Instant) {
    health.begin(now);
    health.end(finding, now, now + seconds(1), 0);
}

fn is_out(health: &Health, now: Instant) -> bool {
    health.fitness(now) == Fitness::Out
}

#[test]
fn one_failure_is_the_requests_own_and_several_in_a_row_are_not() {
    let (mut health, now) = (Health::default(), start());
    for _ in 0..10 {
        ask(&mut health, Finding::Failure, now);
        ask(&mut health, Finding::Failure, now);
        ask(&mut health, Finding::Answer, now);
        assert!(health.is_in());
    }
    for _ in 0..FAILURES {
        ask(&mut health, Finding::Failure, now);
    }
    assert!(!health.is_in() && !health.is_up());
}

#[test]
fn what_one_caller_can_provoke_counts_only_of_several_callers_in_a_row() {
    let (mut health, now) = (Health::default(), start());
    for to in [1, 1, 1, 1, 1, 2, 2, 2] {
        ask(&mut health, Finding::Error { to }, now);
        assert!(health.is_in());
    }
    ask(&mut health, Finding::Answer, now);
    for to in [1, 2, 2, 1] {
        assert!(health.is_in());
        ask(&mut health, Finding::Error { to }, now);
    }
    assert!(is_out(&health, now));
    // One more, to whomever, is no sign that it is well, and an answer is.
    let later = now + seconds(3);
    health.find(Finding::ProbeAnswered, later, 0);
    ask(&mut health, Finding::Error { to: 1 }, later);
    assert!(is_out(&health, later));
    let later = later + seconds(3);
    health.find(Finding::ProbeAnswered, later, 0);
    ask(&mut health, Finding::Answer, later);
    assert!(health.is_in());
    // Of one that was out for another reason it is an answer.
    health.find(Finding::NoConnection, later, 0);
    let later = later + seconds(9);
    health.find(Finding::ProbeAnswered, later, 0);
    ask(&mut health, Finding::Error { to: 1 }, later);
    assert!(health.is_in());
}

#[test]
fn answers_that_break_off_put_it_out_though_each_of_them_began() {
    let (mut health, now) = (Health::default(), start());
    for _ in 0..10 {
        for _ in 1..FAILURES {
            ask(&mut health, Finding::Answer, now);
            health.find(Finding::BrokeOff, now, 0);
        }
        ask(&mut health, Finding::Answer, now);
        health.find(Finding::Whole, now, 0);
        assert!(health.is_in());
    }
    for _ in 0..FAILURES {
        ask(&mut health, Finding::Answer, now);
        health.find(Finding::BrokeOff, now, 0);
    }
    assert!(is_out(&health, now) && !health.is_up());
    // The one that shows how it is begins like all of them, and the next break counts at once.
    let later = now + seconds(3);
    health.find(Finding::ProbeAnswered, later, 0);
    ask(&mut health, Finding::Answer, later);
    assert!(health.is_in());
    health.find(Finding::BrokeOff, later, 0);
    assert!(is_out(&health, later));
}

#[test]
fn nothing_is_sent_again_where_no_connection_could_be_made() {
    let (mut health, now) = (Health::default(), start());
    ask(&mut health, Finding::NoConnection, now);
    assert!(is_out(&health, now) && is_out(&health, now + seconds(3600)));
    // Until it was asked, and answered.
    assert!(!health.wants_probe(now));
    let later = now + seconds(3);
    assert!(health.wants_probe(later));
    health.find(Finding::ProbeAnswered, later, 0);
    assert!(health.is_up() && !health.is_in());
    assert_eq!(health.fitness(later), Fitness::Fit { share: LEAST_SHARE });
}

#[test]
fn one_request_shows_how_it_is_and_the_others_wait_for_that() {
    let (mut health, now) = (Health::default(), start());
    ask(&mut health, Finding::NoConnection, now);
    let later = now + seconds(3);
    health.find(Finding::ProbeAnswered, later, 0);
    assert!(health.begin_trial(later));
    assert!(is_out(&health, later));
    assert!(!health.begin_trial(later), "one at a time");
    assert_eq!(health.waiting, 1);
    // It left: another one may.
    health.leave(true, later);
    assert!(health.begin(later) && is_out(&health, later));
    health.end(Finding::Answer, later, later, 0);
    assert_eq!(health.fitness(later), Fitness::Fit { share: LEAST_SHARE });
    assert_eq!(health.fitness(later + RETURN / 2), Fitness::Fit { share: 500 });
    assert_eq!(health.fitness(later + RETURN), Fitness::Fit { share: 1000 });
}

#[test]
fn who_answers_questions_and_hangs_in_generation_is_found_by_its_silence() {
    let (mut health, now) = (Health::default(), start());
    ask(&mut health, Finding::Silence, now);
    health.find(Finding::ProbeAnswered, now, 0);
    assert!(health.is_in());
    ask(&mut health, Finding::Silence, now);
    assert!(is_out(&health, now));
    // A question is no proof of more, so none is put.
    let later = now + seconds(5);
    assert!(!health.wants_probe(later));
    health.find(Finding::ProbeAnswered, later, 0);
    assert!(health.begin(later));
    health.end(Finding::Silence, later, later, 0);
    assert!(is_out(&health, later + seconds(1)));
    assert!(health.begin(later + seconds(5)));
    health.end(Finding::Answer, later, later + seconds(5), 0);
    assert!(health.is_in());
}

#[test]
fn others_go_first_while_it_seems_stuck() {
    let (mut health, now) = (Health::default(), start());
    health.begin(now);
    health.begin(now + seconds(50));
    assert_eq!(health.fitness(now + STALL), Fitness::Fit { share: 1000 });
    let late = now + STALL + seconds(1);
    assert_eq!(health.fitness(late), Fitness::Stuck);
    // A sign of life to one is one to all.
    health.end(Finding::Answer, now, late, 0);
    assert_eq!(health.fitness(late), Fitness::Fit { share: 1000 });
    // Now it is known that it may take long.
    assert_eq!(health.fitness(late + seconds(300)), Fitness::Fit { share: 1000 });
    assert_eq!(health.fitness(late + seconds(1000)), Fitness::Stuck);
    health.leave(false, late);
    assert_eq!(health.fitness(late + seconds(1000)), Fitness::Fit { share: 1000 });
}

#[test]
fn each_time_out_is_longer_up_to_a_bound_and_a_good_while_forgets_that() {
    let (mut health, mut now) = (Health::default(), start());
    let mut times = Vec::new();
    for _ in 0..9 {
        health.find(Finding::NoConnection, now, 0);
        let out =
            (0..).find(|tenths| health.wants_probe(now + Duration::from_millis(100 * tenths)));
        times.push(out.unwrap());
        now += LONGEST;
    }
    assert_eq!(times, [10, 20, 40, 80, 160, 320, 600, 600, 600]);
    // Chance makes it shorter, by a quarter at most.
    health.find(Finding::NoConnection, now, 1023);
    assert!(!health.wants_probe(now + seconds(44)) && health.wants_probe(now + seconds(46)));
    now += LONGEST;
    health.find(Finding::ProbeAnswered, now, 0);
    ask(&mut health, Finding::Answer, now);
    ask(&mut health, Finding::Answer, now + RETURN * 2);
    now += RETURN * 3;
    health.find(Finding::NoConnection, now, 0);
    assert!(health.wants_probe(now + SHORTEST));
}

#[derive(Debug, Clone)]
enum Step {
    Begin,
    End(Finding),
    Leave,
    Find(Finding),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<(Step, u32)>> {
    let request = prop::sample::select(vec![
        Finding::Answer,
        Finding::BrokeOff,
        Finding::NoConnection,
        Finding::Failure,
        Finding::Error { to: 1 },
        Finding::Error { to: 2 },
        Finding::Silence,
    ]);
    let probe = prop::sample::select(vec![
        Finding::ProbeAnswered,
        Finding::ProbeFailed,
        Finding::NoConnection,
        Finding::Whole,
        Finding::BrokeOff,
    ]);
    let step = prop_oneof![
        4 => Just(Step::Begin),
        4 => request.prop_map(Step::End),
        1 => Just(Step::Leave),
        2 => probe.prop_map(Step::Find),
        3 => (0..90_000_u64).prop_map(Step::Wait),
    ];
    prop::collection::vec((step, any::<u32>()), 0..120)
}

proptest! {
    #[test]
    fn whatever_happens_it_can_come_back(steps in steps()) {
        let (mut health, mut now) = (Health::default(), start());
        let mut under_way = Vec::new();
        for (step, chance) in steps {
            match step {
                Step::Begin => {
                    let is_trial = health.begin(now);
                    under_way.push((now, is_trial));
                }
                Step::End(finding) => if let Some((began, _)) = under_way.pop() {
                    health.end(finding, began, now, chance);
                },
                Step::Leave => if let Some((_, is_trial)) = under_way.pop() {
                    health.leave(is_trial, now);
                },
                Step::Find(finding) => health.find(finding, now, chance),
                Step::Wait(millis) => now += Duration::from_millis(millis),
            }
            prop_assert_eq!(health.waiting as usize, under_way.len());
            prop_assert_eq!(health.silent_since.is_none(), under_way.is_empty());
            if let Fitness::Fit { share } = health.fitness(now) {
                prop_assert!((LEAST_SHARE..=1000).contains(&share));
            }
        }
        // Everybody leaves, and it is well again.
        for (_, is_trial) in under_way {
            health.leave(is_trial, now);
        }
        now += LONGEST;
        prop_assert_eq!(health.waiting, 0);
        if health.wants_probe(now) {
            health.find(Finding::ProbeAnswered, now, 0);
        }
        prop_assert!(!is_out(&health, now), "{:?}", health);
        ask(&mut health, Finding::Answer, now);
        prop_assert!(health.is_in());
    }
}
