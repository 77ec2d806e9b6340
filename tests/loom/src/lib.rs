//! What several threads meet at, with every order in which they can: the line in front of the backends,
//! the counts of limits, the leashes of keys.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release` in this folder.
#![cfg(loom)]
#![allow(dead_code, unused_imports, reason = "of each room only what meets is used here")]

mod around;

pub use around::{auth, config, reject, store};

#[path = "../../../src/limit"]
pub mod limit {
    mod account;
    mod book;
    mod bucket;
    mod charges;
    mod course;
    mod leash;
    mod period;
    mod plan {
        pub(super) use crate::around::{Bearing, Scope};
    }
    #[path = "../../tests/loom/src/room.rs"]
    mod room;

    pub use charges::Charges;
    pub use course::Course;
    pub use room::{Key, Room};
}

#[path = "../../../src/pool"]
pub mod pool {
    pub mod line;
    pub mod queue;
}
