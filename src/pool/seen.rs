//! Backends as people see them, and ending requests from outside.

use super::queue::{Places, SeenModel};
use super::{Backend, Pool};
use crate::config::AtOnce;
use crate::limit::{Course, End};

/// Models and bounds of a backend, as they are at the moment.
#[derive(Debug)]
pub struct Load {
    pub models: Vec<SeenModel>,
    /// Models side by side; `None` where there is no bound.
    pub models_at_once: Option<usize>,
}

impl Pool {
    /// Ends the requests that are meant, whether they wait or run; how many that were.
    pub fn stop(&self, is_meant: impl Fn(&Course) -> bool) -> usize {
        let courses = self.line.with(|queue, _| queue.courses(is_meant));
        for course in &courses {
            course.end(End::Stopped);
        }
        courses.len()
    }

    /// What a backend has in memory, works on, or is waited for with.
    #[must_use]
    pub fn load_of(&self, backend: &Backend) -> Load {
        let place = backend.place();
        self.line.with(|queue, _| Load {
            models: queue.models(place),
            models_at_once: queue
                .models_at_once(place)
                .map(|(number, _)| number)
                .filter(|number| *number < usize::MAX),
        })
    }
}

impl Backend {
    /// Whether its place in the queue is one of these.
    #[must_use]
    pub fn is_one_of(&self, places: Places) -> bool {
        places & (1 << self.place()) != 0
    }

    /// How many requests of one model it works on at once, and who says so.
    #[must_use]
    pub fn parallel_told(&self) -> String {
        match self.parallel() {
            AtOnce::Auto => {
                "as many at once as it is found to work on, from 1 up (parallel = \"auto\")"
                    .to_owned()
            }
            AtOnce::AtMost(most) => format!("{most} at once (set by parallel)"),
            AtOnce::Unbounded => {
                "any number at once, for nothing waits for it (kind = \"openai\" without parallel)"
                    .to_owned()
            }
        }
    }
}
