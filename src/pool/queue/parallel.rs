//! How many requests of a model a backend works on at once.
//!
//! Ollama does not tell: `OLLAMA_NUM_PARALLEL` is in its own environment, and less is taken where memory
//! is short [ollama server/sched.go]. So the number is learned from first bytes. While somebody waits,
//! now and then one request more than the estimate is let through; if its first byte comes while the
//! others still stream, there is a slot for it.

use super::Micros;

const SECOND: Micros = 1_000_000;
/// Between two tries, after one that succeeded, and at most.
const SHORTEST_PAUSE: Micros = 2 * SECOND;
const LONGEST_PAUSE: Micros = 300 * SECOND;
/// So often in a row a request has to be left without a slot before the estimate falls.
const DOUBTS: u8 = 3;
/// No model server has more slots in front of one machine's memory.
const MOST: usize = 256;

/// See the top of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parallel {
    Fixed(usize),
    Learned(Learned),
}

/// What is known so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    estimate: usize,
    probes: bool,
    next_probe: Micros,
    pause: Micros,
    doubts: u8,
    /// What a first byte takes where nothing is in its way.
    usual: Micros,
}

/// When the first byte of an answer came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    pub after: Micros,
    pub is_probe: bool,
    /// Another of its model ended before.
    pub is_outlived: bool,
}

impl Default for Parallel {
    fn default() -> Self {
        Self::Learned(Learned {
            estimate: 1,
            probes: false,
            next_probe: 0,
            pause: SHORTEST_PAUSE,
            doubts: 0,
            usual: 0,
        })
    }
}

impl Parallel {
    /// The number, as far as known.
    #[must_use]
    pub fn number(&self) -> usize {
        match self {
            Self::Fixed(number) => *number,
            Self::Learned(learned) => learned.estimate,
        }
    }

    #[must_use]
    pub fn is_learned(&self) -> bool {
        matches!(self, Self::Learned(_))
    }

    /// Whether no further request may start; `probes` is a streamed one that waits.
    pub(super) fn is_full(&self, running: usize, now: Micros, probes: bool) -> bool {
        match self {
            Self::Fixed(number) => running >= *number,
            Self::Learned(it) => {
                let may_probe = probes && !it.probes && now >= it.next_probe && it.estimate < MOST;
                running >= it.estimate + usize::from(may_probe)
            }
        }
    }

    /// One more runs now, `running` with it. Whether it is a try.
    pub(super) fn started(&mut self, running: usize, streams: bool) -> bool {
        match self {
            Self::Learned(it) if running > it.estimate && streams => {
                it.probes = true;
                true
            }
            Self::Learned(_) | Self::Fixed(_) => false,
        }
    }

    pub(super) fn first_byte(&mut self, heard: Heard, running: usize, now: Micros) {
        let Self::Learned(it) = self else { return };
        if !heard.is_outlived {
            it.usual = match it.usual {
                0 => heard.after,
                usual => (usual * 7 + heard.after) / 8,
            };
            it.doubts = 0;
        }
        if !heard.is_probe {
            return;
        }
        it.probes = false;
        // With fewer beside it than were known to fit, it shows nothing.
        if !heard.is_outlived && running > it.estimate {
            it.estimate += 1;
            it.pause = SHORTEST_PAUSE;
        }
        it.next_probe = now + it.pause;
    }

    /// Another of its model ended, and this one, begun `age` ago, has no first byte yet.
    pub(super) fn outlived(&mut self, is_probe: bool, age: Micros, now: Micros) {
        let Self::Learned(it) = self else { return };
        if is_probe {
            it.probes = false;
            it.pause = (it.pause * 2).min(LONGEST_PAUSE);
            it.next_probe = now + it.pause;
        } else if age > it.usual * 2 {
            it.doubts += 1;
            if it.doubts >= DOUBTS {
                it.doubts = 0;
                it.estimate = (it.estimate - 1).max(1);
                it.next_probe = now + it.pause;
            }
        }
    }

    /// A try ended without a word.
    pub(super) fn probe_ended(&mut self) {
        if let Self::Learned(it) = self {
            it.probes = false;
        }
    }

    /// The model is loaded anew: what was known of its slots was of the last time.
    pub(super) fn begin_anew(&mut self) {
        if self.is_learned() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probed(is_outlived: bool, running: usize) -> usize {
        let mut parallel = Parallel::default();
        assert!(!parallel.started(1, true) && parallel.started(2, true));
        parallel.first_byte(Heard { after: 1000, is_probe: true, is_outlived }, running, SECOND);
        parallel.number()
    }

    #[test]
    fn a_first_byte_beside_all_others_is_a_slot_more() {
        assert_eq!(probed(false, 2), 2);
    }

    #[test]
    fn a_first_byte_after_an_end_or_beside_too_few_shows_nothing() {
        assert_eq!(probed(true, 2), 1);
        assert_eq!(probed(false, 1), 1);
    }

    #[test]
    fn only_streamed_requests_are_tried_and_one_at_a_time() {
        let mut parallel = Parallel::default();
        assert!(!parallel.is_full(0, 0, false));
        assert!(parallel.is_full(1, 0, false) && !parallel.is_full(1, 0, true));
        parallel.started(2, true);
        assert!(parallel.is_full(1, 0, true) && parallel.is_full(2, 0, true));
    }

    #[test]
    fn after_a_try_that_failed_the_next_comes_later_and_later() {
        let (mut parallel, mut pauses, mut now) = (Parallel::default(), Vec::new(), 0);
        for _ in 0..10 {
            parallel.started(2, true);
            parallel.outlived(true, 0, now);
            let began = now;
            while parallel.is_full(1, now, true) {
                now += SECOND;
            }
            pauses.push(now - began);
        }
        assert!(pauses.is_sorted() && pauses.last() == Some(&LONGEST_PAUSE), "{pauses:?}");
    }

    #[test]
    fn the_number_falls_after_three_doubts_in_a_row_and_never_below_one() {
        let mut parallel = Parallel::default();
        parallel.started(2, true);
        parallel.first_byte(Heard { after: 1000, is_probe: true, is_outlived: false }, 2, 0);
        assert_eq!(parallel.number(), 2);
        for _ in 0..2 {
            parallel.outlived(false, 5000, 0);
        }
        parallel.first_byte(Heard { after: 1000, is_probe: false, is_outlived: false }, 2, 0);
        for _ in 0..2 {
            parallel.outlived(false, 5000, 0);
        }
        assert_eq!(parallel.number(), 2);
        for _ in 0..7 {
            parallel.outlived(false, 5000, 0);
        }
        assert_eq!(parallel.number(), 1);
    }

    #[test]
    fn a_request_that_has_only_just_begun_raises_no_doubt() {
        let mut parallel = Parallel::default();
        parallel.started(2, true);
        parallel.first_byte(Heard { after: 1000, is_probe: true, is_outlived: false }, 2, 0);
        for _ in 0..9 {
            parallel.outlived(false, 1500, 0);
        }
        assert_eq!(parallel.number(), 2);
    }
}
