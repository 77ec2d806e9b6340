//! What is told to whoever waits for a model.

use super::{Reject, whole_seconds};

impl Reject {
    /// `None` for what has nothing to do with waiting.
    pub(super) fn says_of_waiting(&self) -> Option<String> {
        if let Self::QueueFull { wait } = self {
            let wait = whole_seconds(*wait);
            return Some(format!("too many requests wait for a model; try again in {wait} s"));
        }
        if let Self::QueueTimeout { wait } = self {
            let wait = whole_seconds(*wait);
            return Some(format!(
                "the model server was busy all the time; about {wait} s more are to be expected"
            ));
        }
        matches!(self, Self::Stopped).then(|| "whoever runs this gate ended the request".to_owned())
    }

    pub(super) fn remedy_of_waiting(&self) -> Option<&'static str> {
        if let Self::QueueFull { .. } = self {
            return Some("waiting until fewer wait; `portcullis running` shows who does");
        }
        if let Self::QueueTimeout { .. } = self {
            return Some(
                "a model server that is less busy, or a longer `queue_timeout`; `portcullis running` \
                 shows who waits and what runs",
            );
        }
        matches!(self, Self::Stopped).then_some("whoever ended it with `portcullis stop`")
    }
}
