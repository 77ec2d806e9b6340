//! Every order in which requests can meet at limits.
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;

use portcullis_loom::config::{Allowance, Measure};
use portcullis_loom::limit::{Key, Room};

fn one_at_once() -> Allowance {
    Allowance(vec![(Measure::Concurrent, 1)])
}

#[test]
fn of_two_who_meet_at_the_last_place_one_has_it() {
    loom::model(|| {
        let room = Arc::new(Room::new());
        let other = {
            let room = Arc::clone(&room);
            thread::spawn(move || room.take(&["a"], &one_at_once(), 0))
        };
        let (mine, theirs) = (room.take(&["a"], &one_at_once(), 0), other.join().unwrap());
        assert_eq!(u8::from(mine.is_ok()) + u8::from(theirs.is_ok()), 1);
        drop((mine, theirs));
        assert_eq!(room.used("a", Measure::Concurrent), 0);
    });
}

/// Both limits bear on both, and each names them in another order.
#[test]
fn of_two_limits_both_are_taken_or_neither_and_nobody_waits_for_ever() {
    loom::model(|| {
        let room = Arc::new(Room::new());
        let other = {
            let room = Arc::clone(&room);
            thread::spawn(move || room.take(&["b", "a"], &one_at_once(), 0))
        };
        let (mine, theirs) = (room.take(&["a", "b"], &one_at_once(), 0), other.join().unwrap());
        assert_eq!(u8::from(mine.is_ok()) + u8::from(theirs.is_ok()), 1);
        for whose in ["a", "b"] {
            assert_eq!(room.used(whose, Measure::Concurrent), 1);
        }
        drop((mine, theirs));
        assert!(room.take(&["a", "b"], &one_at_once(), 0).is_ok());
    });
}

#[test]
fn what_is_settled_while_others_take_and_leave_is_counted_once() {
    loom::model(|| {
        let room = Arc::new(Room::new());
        let day = || Allowance(vec![(Measure::TokensPerDay, 1000)]);
        let other = {
            let room = Arc::clone(&room);
            thread::spawn(move || {
                let mut charges = room.take(&["a"], &day(), 50).unwrap();
                room.settle(&mut charges, 7);
            })
        };
        let mut charges = room.take(&["a"], &day(), 50).unwrap();
        room.settle(&mut charges, 3);
        drop(charges);
        other.join().unwrap();
        assert_eq!(room.used("a", Measure::TokensPerDay), 10);
        assert_eq!(room.used("a", Measure::Concurrent), 0);
    });
}

#[test]
fn what_is_known_from_before_is_not_lost_when_the_first_request_comes_meanwhile() {
    loom::model(|| {
        let room = Arc::new(Room::new());
        let recalls = {
            let room = Arc::clone(&room);
            thread::spawn(move || room.recall("a", 100))
        };
        let day = Allowance(vec![(Measure::TokensPerDay, 1000)]);
        let mut charges = room.take(&["a"], &day, 50).unwrap();
        room.settle(&mut charges, 7);
        recalls.join().unwrap();
        // Its own row may or may not be in what was read from before.
        assert!([100, 107].contains(&room.used("a", Measure::TokensPerDay)));
    });
}

#[test]
fn who_was_let_in_just_before_the_key_was_taken_away_ends_too() {
    loom::model(|| {
        let key = Key::default();
        let takes_away = {
            let key = key.clone();
            thread::spawn(move || key.take_away())
        };
        let led = key.lead();
        takes_away.join().unwrap();
        assert!(led.has_to_end());
    });
}
