//! What a backend was heard to say last, so that not every request asks it again.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// A backend that gave no answer is left alone for so long.
const LEFT_ALONE: Duration = Duration::from_secs(1);

/// See the top of the file.
#[derive(Debug)]
pub(super) struct Known<T> {
    good_for: Duration,
    heard: RwLock<Heard<T>>,
    /// One asks, and who came before it began is served by its answer.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Heard<T> {
    /// When it was asked for, and until when that is good enough.
    times: Option<(Instant, Instant)>,
    answered: bool,
    /// There was an answer once.
    ever: bool,
    said: Arc<T>,
}

/// What is known, and whether the last question had an answer.
pub(super) type Said<T> = (Arc<T>, bool);

impl<T: Default> Known<T> {
    pub(super) fn for_about(good_for: Duration) -> Self {
        let heard = Heard { times: None, answered: false, ever: false, said: Arc::default() };
        Self { good_for, heard: RwLock::new(heard), asking: tokio::sync::Mutex::default() }
    }

    /// What was heard last, however long ago that is.
    pub(super) fn latest(&self) -> Option<Arc<T>> {
        let heard = self.heard.read().unwrap_or_else(PoisonError::into_inner);
        heard.ever.then(|| Arc::clone(&heard.said))
    }

    /// Whether it was not asked for so long.
    pub(super) fn is_due(&self, every: Duration, now: Instant) -> bool {
        let heard = self.heard.read().unwrap_or_else(PoisonError::into_inner);
        heard.times.is_none_or(|(asked, _)| now.saturating_duration_since(asked) >= every)
    }

    /// What was heard is not good for another request.
    pub(super) fn outdate(&self) {
        self.heard.write().unwrap_or_else(PoisonError::into_inner).times = None;
    }

    /// What was heard not long ago.
    pub(super) fn last(&self, now: Instant) -> Option<Said<T>> {
        self.heard(|(_, until)| now < until)
    }

    /// What is said to a question that was not put before `since`. Without an answer it is what was
    /// said before.
    pub(super) async fn newest(
        &self,
        since: Instant,
        ask: impl Future<Output = Option<T>>,
    ) -> Said<T> {
        let _one_at_a_time = self.asking.lock().await;
        if let Some(said) = self.heard(|(asked, _)| asked >= since) {
            return said;
        }
        let began = Instant::now();
        let answer = ask.await;
        let mut heard = self.heard.write().unwrap_or_else(PoisonError::into_inner);
        heard.answered = answer.is_some();
        let good_for = if heard.answered { self.good_for } else { LEFT_ALONE };
        heard.times = Some((began, Instant::now() + good_for));
        if let Some(said) = answer {
            (heard.ever, heard.said) = (true, Arc::new(said));
        }
        (Arc::clone(&heard.said), heard.answered)
    }

    fn heard(&self, is_good: impl Fn((Instant, Instant)) -> bool) -> Option<Said<T>> {
        let heard = self.heard.read().unwrap_or_else(PoisonError::into_inner);
        heard.times.is_some_and(is_good).then(|| (Arc::clone(&heard.said), heard.answered))
    }
}
