//! Rows of one moment go to the journal together.
//!
//! To wake a thread costs more than a row does. So the writer is woken by the first of those who wait,
//! when others that are ready at that moment have posted theirs as well; and it wakes that one alone,
//! who then wakes the others.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::Shared;

/// Ready as soon as the row is in the journal, or cannot be now; whether it is.
#[derive(Debug, Default)]
pub struct Written {
    /// Of the first of a batch. Dropped before the rest: the others are woken by it.
    lead: Option<Lead>,
    /// None where nothing is waited for.
    batch: Option<Arc<Batch>>,
    /// Where its waker is.
    place: Option<usize>,
}

/// Those who wait for rows that go together.
#[derive(Debug, Default)]
pub(super) struct Batch(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// Whether the rows are in the journal, as soon as that is known.
    ended: Option<bool>,
    is_led: bool,
    lead: Option<Waker>,
    others: Vec<Waker>,
}

#[derive(Debug)]
struct Lead {
    shared: Arc<Shared>,
    batch: Arc<Batch>,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Gathers,
    WakesWriter,
    Waits,
}

impl Written {
    /// The next one of a batch.
    pub(super) fn of(batch: &Arc<Batch>) -> Self {
        Self { batch: Some(Arc::clone(batch)), ..Self::default() }
    }

    /// The first one of a batch. `gathers`: others have their turn before the writer is woken.
    pub(super) fn leading(batch: &Arc<Batch>, shared: &Arc<Shared>, gathers: bool) -> Self {
        batch.lock().is_led = true;
        let step = if gathers { Step::Gathers } else { Step::WakesWriter };
        let shared = Arc::clone(shared);
        Self { lead: Some(Lead { shared, batch: Arc::clone(batch), step }), ..Self::of(batch) }
    }
}

impl Future for Written {
    type Output = bool;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<bool> {
        let Self { lead, batch, place } = &mut *self;
        let Some(batch) = batch else { return Poll::Ready(false) };
        let ended = match lead {
            Some(_) => batch.ended_or_lead(context.waker()),
            None => batch.ended_or_wait(context.waker(), place),
        };
        match (ended, lead.as_mut()) {
            (Some(written), _) => {
                *lead = None;
                Poll::Ready(written)
            }
            (None, Some(lead)) => {
                lead.step(context);
                Poll::Pending
            }
            (None, None) => Poll::Pending,
        }
    }
}

impl Batch {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended_or_lead(&self, waker: &Waker) -> Option<bool> {
        let mut waiting = self.lock();
        if waiting.ended.is_none() {
            waiting.lead = Some(waker.clone());
        }
        waiting.ended
    }

    fn ended_or_wait(&self, waker: &Waker, place: &mut Option<usize>) -> Option<bool> {
        let mut waiting = self.lock();
        if waiting.ended.is_none() {
            match place.and_then(|place| waiting.others.get_mut(place)) {
                Some(before) => before.clone_from(waker),
                None => {
                    *place = Some(waiting.others.len());
                    waiting.others.push(waker.clone());
                }
            }
        }
        waiting.ended
    }

    /// Whether the rows are in the journal, or cannot be now.
    pub(super) fn end(&self, written: bool) {
        let mut waiting = self.lock();
        waiting.ended = Some(written);
        let (lead, is_led) = (waiting.lead.take(), waiting.is_led);
        drop(waiting);
        match lead {
            Some(lead) => lead.wake(),
            // about to look
            None if is_led => {}
            None => self.wake_others(),
        }
    }

    fn wake_others(&self) {
        let others = std::mem::take(&mut self.lock().others);
        others.into_iter().for_each(Waker::wake);
    }
}

impl Lead {
    fn step(&mut self, context: &mut Context<'_>) {
        self.step = match self.step {
            Step::Gathers => {
                // wakes this task when the others that are ready have had their turn
                let _ = pin!(tokio::task::yield_now()).poll(context);
                Step::WakesWriter
            }
            Step::WakesWriter => {
                self.shared.wake_writer();
                Step::Waits
            }
            Step::Waits => Step::Waits,
        };
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if self.step != Step::Waits {
            self.shared.wake_writer();
        }
        let mut waiting = self.batch.lock();
        waiting.is_led = false;
        waiting.lead = None;
        let is_over = waiting.ended.is_some();
        drop(waiting);
        if is_over {
            self.batch.wake_others();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::super::super::UsageRow;
    use super::*;

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Waits {
        written: Written,
        count: Arc<Count>,
    }

    impl Waits {
        fn for_it(written: Written) -> Self {
            Self { written, count: Arc::default() }
        }

        fn poll(&mut self) -> Poll<bool> {
            let waker = Waker::from(Arc::clone(&self.count));
            Pin::new(&mut self.written).poll(&mut Context::from_waker(&waker))
        }

        fn wakes(&self) -> usize {
            self.count.0.load(Ordering::Relaxed)
        }
    }

    /// Three rows of one batch, of which the writer, which is asleep, has not heard.
    fn three() -> (Arc<Shared>, Arc<Batch>, [Waits; 3]) {
        let shared = Arc::<Shared>::default();
        shared.lock().is_asleep = true;
        let waits =
            [0, 1, 2].map(|number| Waits::for_it(Shared::post(&shared, UsageRow::example(number))));
        let batch = shared.lock().batch.clone().unwrap();
        (shared, batch, waits)
    }

    fn is_asleep(shared: &Shared) -> bool {
        shared.lock().is_asleep
    }

    #[test]
    fn the_writer_wakes_the_first_alone_and_that_one_the_others() {
        let (shared, batch, mut waits) = three();
        assert!(is_asleep(&shared));
        waits.iter_mut().for_each(|it| assert_eq!(it.poll(), Poll::Pending));
        assert!(!is_asleep(&shared));
        batch.end(true);
        assert_eq!(waits.each_ref().map(Waits::wakes), [1, 0, 0]);
        assert_eq!(waits[0].poll(), Poll::Ready(true));
        assert_eq!(waits.each_ref().map(Waits::wakes), [1, 1, 1]);
        waits.iter_mut().skip(1).for_each(|it| assert_eq!(it.poll(), Poll::Ready(true)));
    }

    #[test]
    fn one_that_gathers_lets_others_post_before_the_writer_is_woken() {
        let shared = Arc::<Shared>::default();
        shared.lock().is_asleep = true;
        let mut first = Waits::for_it(Written::leading(&Arc::default(), &shared, true));
        assert_eq!(first.poll(), Poll::Pending);
        assert_eq!((is_asleep(&shared), first.wakes()), (true, 1));
        assert_eq!(first.poll(), Poll::Pending);
        assert_eq!((is_asleep(&shared), first.wakes()), (false, 1));
        // Where batches follow one another closely the first of each does.
        let gathers = |shared: &Arc<Shared>| {
            let mut first = Waits::for_it(Shared::post(shared, UsageRow::example(1)));
            shared.lock().batch = None;
            first.poll().is_pending() && first.wakes() == 1
        };
        assert!(!gathers(&shared));
        // so that it does not matter how long this test takes
        shared.lock().began = Some(std::time::Instant::now() + std::time::Duration::from_secs(60));
        assert!(gathers(&shared));
    }

    #[test]
    fn a_first_one_that_leaves_leaves_nobody_behind() {
        // Before it woke the writer, while it waits, and when it is over and has not looked.
        for polls_it in [false, true] {
            for is_over in [false, true] {
                let (shared, batch, [mut first, mut second, mut third]) = three();
                assert_eq!(second.poll(), Poll::Pending);
                if polls_it {
                    assert_eq!(first.poll(), Poll::Pending);
                }
                if is_over {
                    batch.end(true);
                }
                drop(first);
                assert!(!is_asleep(&shared));
                if !is_over {
                    assert_eq!((second.wakes(), third.poll()), (0, Poll::Pending));
                    batch.end(false);
                    assert_eq!(third.wakes(), 1);
                }
                assert_eq!((second.wakes(), second.poll()), (1, Poll::Ready(is_over)));
                assert_eq!(third.poll(), Poll::Ready(is_over));
            }
        }
    }

    #[test]
    fn who_is_polled_by_another_task_is_woken_there() {
        let (_shared, batch, [first, mut second, mut third]) = three();
        drop(first);
        for it in [&mut second, &mut third] {
            assert_eq!(it.poll(), Poll::Pending);
        }
        let before = std::mem::take(&mut second.count);
        assert_eq!(second.poll(), Poll::Pending);
        batch.end(true);
        assert_eq!([second.wakes(), third.wakes()], [1, 1]);
        assert_eq!(before.0.load(Ordering::Relaxed), 0);
    }
}
