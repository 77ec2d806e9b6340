//! How requests end, for the log, the ledger and the metrics.

use std::fmt;

pub(super) const OUTCOMES: [&str; 7] =
    ["done", "client_gone", "backend_failed", "backend_timeout", "drained", "stopped", "refused"];

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    ClientGone,
    BackendFailed,
    BackendTimeout,
    /// Cut at the end of a shutdown's patience.
    Drained,
    /// Ended by whoever looks after the gate.
    Stopped,
    Refused(&'static str),
}

impl Outcome {
    /// Without the code of a refusal.
    #[must_use]
    pub fn kind(self) -> &'static str {
        OUTCOMES.get(self.place()).copied().unwrap_or_default()
    }

    /// Its place in [`OUTCOMES`].
    pub(super) fn place(self) -> usize {
        match self {
            Self::Done => 0,
            Self::ClientGone => 1,
            Self::BackendFailed => 2,
            Self::BackendTimeout => 3,
            Self::Drained => 4,
            Self::Stopped => 5,
            Self::Refused(_) => 6,
        }
    }

    /// That of a refusal, or of a backend's failure.
    #[must_use]
    pub fn code(self) -> Option<&'static str> {
        match self {
            Self::Refused(code) => Some(code),
            Self::BackendFailed => Some("backend_failed"),
            Self::BackendTimeout => Some("backend_timeout"),
            Self::Done | Self::ClientGone | Self::Drained | Self::Stopped => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match self {
            Self::Refused(code) => write!(f, ":{code}"),
            Self::Done
            | Self::ClientGone
            | Self::BackendFailed
            | Self::BackendTimeout
            | Self::Drained
            | Self::Stopped => Ok(()),
        }
    }
}
