//! Every order in which those who wait, end, leave and stop can meet.
#![cfg(loom)]

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, Wake, Waker};

use loom::sync::Arc;
use loom::thread;

use portcullis_loom::limit::Course;
use portcullis_loom::pool::line::{Entered, Held, Line, Waiting};
use portcullis_loom::pool::queue::{Ask, Bounds, Class, Intake, Setup};

fn line() -> Arc<Line> {
    let line = Arc::new(Line::new(Bounds { of_one: 10, in_all: 10, bytes_of_one: 1 << 20, models_of_one: 16 }));
    line.with(|queue, _| {
        queue.add(&Setup { weight: 1000, parallel: Some(1), models_at_once: Some(1) })
    });
    line
}

fn ask(who: &str) -> Ask {
    Ask {
        course: std::sync::Arc::new(Course::new([b'0'; 16], who.into(), "chat")),
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

fn runs(line: &Arc<Line>, who: &str) -> Held {
    match Line::enter(line, |_| ask(who)) {
        Entered::Runs(held) => held,
        other => panic!("{other:?}"),
    }
}

fn waits(line: &Arc<Line>, who: &str) -> Waiting {
    match Line::enter(line, |_| ask(who)) {
        Entered::Waits(waiting) => waiting,
        other => panic!("{other:?}"),
    }
}

/// The one slot is free, and nobody is left.
fn is_as_new(line: &Arc<Line>) {
    drop(runs(line, "last"));
    line.with(|queue, now| assert!(queue.queued() == 0 && queue.seen(now).is_empty()));
}

/// Wakes a thread that waits for its turn.
struct Bell(thread::Thread);

impl Wake for Bell {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.unpark();
    }
}

/// The turn of who waits for as long as it takes; one that is lost is a deadlock, which loom tells.
fn turn(mut waiting: Waiting) -> Held {
    let bell = Waker::from(std::sync::Arc::new(Bell(thread::current())));
    loop {
        match Pin::new(&mut waiting).poll(&mut Context::from_waker(&bell)) {
            Poll::Ready(held) => return held.unwrap(),
            Poll::Pending => thread::park(),
        }
    }
}

fn poll(waiting: &mut Waiting) -> Poll<Result<Held, portcullis_loom::pool::line::Stranded>> {
    Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn who_leaves_while_the_turn_comes_loses_no_slot() {
    loom::model(|| {
        let line = line();
        let (held, mut leaves) = (runs(&line, "a"), waits(&line, "b"));
        let ends = thread::spawn(move || drop(held));
        let goes = thread::spawn(move || {
            let _ = poll(&mut leaves);
        });
        ends.join().unwrap();
        goes.join().unwrap();
        is_as_new(&line);
    });
}

#[test]
fn who_is_told_that_no_backend_is_left_while_the_turn_comes_loses_no_slot() {
    loom::model(|| {
        let line = line();
        let (held, mut waiting) = (runs(&line, "a"), waits(&line, "b"));
        let shuts = {
            let line = Arc::clone(&line);
            thread::spawn(move || line.with(|queue, now| queue.set_intake(0, Intake::Nothing, now)))
        };
        let ends = thread::spawn(move || drop(held));
        let told = poll(&mut waiting);
        shuts.join().unwrap();
        ends.join().unwrap();
        let told = if told.is_pending() { poll(&mut waiting) } else { told };
        assert!(told.is_ready(), "it neither runs nor knows that it will not");
        drop((told, waiting));
        line.with(|queue, now| queue.set_intake(0, Intake::All, now));
        is_as_new(&line);
    });
}

#[test]
fn of_two_who_wait_each_has_its_turn() {
    loom::model(|| {
        let line = line();
        let held = runs(&line, "a");
        let others: Vec<_> = ["b", "c"]
            .map(|who| {
                let waiting = waits(&line, who);
                thread::spawn(move || drop(turn(waiting)))
            })
            .into();
        drop(held);
        for other in others {
            other.join().unwrap();
        }
        is_as_new(&line);
    });
}
