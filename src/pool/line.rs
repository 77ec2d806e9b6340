//! The queue as tasks see it: one lock around it, and nobody woken inside.

use std::future::Future;
use std::pin::Pin;
use std::sync::PoisonError;
use std::task::{Context, Poll};
use std::time::Instant;

use super::queue::{Ask, Bounds, Joined, Micros, Queue, Slot, Turn};

#[cfg(loom)]
use loom::sync::{Arc, Mutex};
#[cfg(not(loom))]
use std::sync::{Arc, Mutex};

/// See the top of the file.
#[derive(Debug)]
pub struct Line {
    queue: Mutex<Queue>,
    began: Instant,
}

/// A slot; dropping it frees it, and gives it to whoever is next.
#[derive(Debug)]
pub struct Held {
    line: Arc<Line>,
    slot: Slot,
}

/// A place in the queue, until the turn comes; dropping it leaves the queue.
#[derive(Debug)]
pub struct Waiting {
    line: Arc<Line>,
    /// `None` once it was told what became of it.
    id: Option<usize>,
    position: usize,
}

/// How a request came into the line.
#[derive(Debug)]
pub enum Entered {
    Runs(Held),
    Waits(Waiting),
    Full,
}

/// No backend is left that has the model of a request that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stranded;

impl Line {
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { queue: Mutex::new(Queue::new(bounds)), began: Instant::now() }
    }

    /// `ask` is made under the lock, with the names that are known there.
    pub fn enter(this: &Arc<Self>, ask: impl FnOnce(&Queue) -> Ask) -> Entered {
        let (joined, position) = this.with(|queue, now| {
            let ask = ask(queue);
            (queue.join(ask, now), queue.queued())
        });
        match joined {
            Joined::Runs(slot) => Entered::Runs(Held { line: Arc::clone(this), slot }),
            Joined::Waits(id) => {
                Entered::Waits(Waiting { line: Arc::clone(this), id: Some(id), position })
            }
            Joined::Full => Entered::Full,
        }
    }

    /// A request that needs no slot, but is seen while it runs.
    pub fn pass(this: &Arc<Self>, place: usize, ask: impl FnOnce(&Queue) -> Ask) -> Held {
        let slot = this.with(|queue, now| {
            let ask = ask(queue);
            queue.pass(ask, place, now)
        });
        Held { line: Arc::clone(this), slot }
    }

    /// Does something with the queue; whose turn has come by it is woken afterwards.
    pub fn with<T>(&self, work: impl FnOnce(&mut Queue, Micros) -> T) -> T {
        let now = Micros::try_from(self.began.elapsed().as_micros()).unwrap_or(Micros::MAX);
        let (came, due) = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            (work(&mut queue, now), queue.take_due())
        };
        for task in due {
            task.wake();
        }
        came
    }
}

impl Held {
    /// At which backend the slot is.
    #[must_use]
    pub fn place(&self) -> usize {
        self.slot.place
    }

    /// The first byte of the answer came, from which the queue learns.
    pub fn first_byte(&self) {
        self.line.with(|queue, now| queue.first_byte(self.slot, now));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.line.with(|queue, now| queue.end(self.slot, now));
    }
}

impl Waiting {
    /// How many waited when it came, itself among them.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Leaves the queue; how long another one like it would wait now.
    pub fn give_up(mut self) -> Micros {
        let id = self.id.take();
        self.line.with(|queue, now| id.map_or(0, |id| queue.give_up(id, now)))
    }
}

impl Future for Waiting {
    type Output = Result<Held, Stranded>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let Some(id) = this.id else { return Poll::Ready(Err(Stranded)) };
        let turn = this.line.with(|queue, _| queue.poll(id, cx.waker()));
        if turn == Turn::Waits {
            return Poll::Pending;
        }
        this.id = None;
        Poll::Ready(match turn {
            Turn::Runs(slot) => Ok(Held { line: Arc::clone(&this.line), slot }),
            Turn::Stranded | Turn::Waits => Err(Stranded),
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.line.with(|queue, now| queue.leave(id, now));
        }
    }
}
