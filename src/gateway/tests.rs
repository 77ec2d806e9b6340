//! What no request can provoke from outside.

use super::*;
use crate::limit::Course;
use crate::pool::line::{Entered, Line};
use crate::pool::queue::{Ask, Bounds, Class, Queue, Setup};

#[tokio::test]
async fn a_panic_is_one_requests_500() {
    let calm = held_off(pin!(async { Ok(1) })).await;
    assert!(matches!(calm, Ok(1)));
    let panicking = pin!(async {
        tokio::task::yield_now().await;
        panic!("not for the caller")
    });
    let held: Result<(), _> = held_off(panicking).await;
    assert_eq!(held.map_err(|reject| reject.row().code), Err("internal"));
}

fn one_slot() -> Arc<Line> {
    let bounds = Bounds { of_one: 10, in_all: 10, bytes_of_one: 1 << 20, models_of_one: 16 };
    let line = Arc::new(Line::new(bounds));
    let setup = Setup { weight: 1000, parallel: Some(1), models_at_once: Some(1) };
    line.with(|queue, _| queue.add(&setup));
    line
}

fn wants_it(_: &Queue) -> Ask {
    Ask {
        course: Arc::new(Course::new([b'0'; 16], "anna".into(), "chat")),
        weight: 1000,
        class: Class::Interactive,
        model: "m".into(),
        places: 1,
        bytes: 1,
        prompt: 1,
        streams: true,
        preferred: 0,
    }
}

#[tokio::test]
async fn a_panic_frees_the_slot_and_gives_it_to_whoever_waits() {
    let line = one_slot();
    let holder = Arc::clone(&line);
    let panicking = pin!(async move {
        let _held = Line::enter(&holder, wants_it);
        tokio::task::yield_now().await;
        panic!("while it holds a slot")
    });
    let panics = held_off(panicking);
    let waits = async {
        let Entered::Waits(waiting) = Line::enter(&line, wants_it) else { panic!("it is free") };
        waiting.await.unwrap()
    };
    let (held, _turn): (Result<(), _>, _) = tokio::join!(panics, waits);
    assert_eq!(held.map_err(|reject| reject.row().code), Err("internal"));
}

#[test]
fn a_panic_under_the_lock_of_the_line_does_not_close_it_for_others() {
    let line = one_slot();
    let broken = std::panic::catch_unwind(AssertUnwindSafe(|| {
        line.with(|_, _| panic!("while it has the queue"));
    }));
    assert!(broken.is_err());
    for _ in 0..2 {
        assert!(matches!(Line::enter(&line, wants_it), Entered::Runs(_)));
    }
}
