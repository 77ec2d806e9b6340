//! Permit and now to a [`Ticket`]: how much at once. So far it counts what is in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::access::Permit;

/// What is in flight now; survives a reload.
#[derive(Debug, Default, Clone)]
pub struct Limits {
    in_flight: Arc<AtomicUsize>,
}

/// One admitted request; dropping it settles what was taken. Only [`Limits::admit`] makes one.
#[derive(Debug)]
pub struct Ticket {
    permit: Permit,
    in_flight: Arc<AtomicUsize>,
}

impl Limits {
    #[must_use]
    pub fn admit(&self, permit: Permit) -> Ticket {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Ticket { permit, in_flight: Arc::clone(&self.in_flight) }
    }

    /// Requests between admission and the end of their answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

impl Ticket {
    #[must_use]
    pub fn permit(&self) -> &Permit {
        &self.permit
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
