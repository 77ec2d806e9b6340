//! The line in front of the backends, with every order in which its callers can meet.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release` in this folder.
#![cfg(loom)]
#![allow(dead_code, unused_imports, reason = "of the queue only the line is used here")]

/// Stands for the room of that name, which the line knows names from.
pub mod auth {
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Name(std::sync::Arc<str>);

    impl Name {
        pub fn as_str(&self) -> &str {
            &self.0
        }
    }

    impl From<&str> for Name {
        fn from(name: &str) -> Self {
            Self(name.into())
        }
    }
}

#[path = "../../../src/limit"]
pub mod limit {
    mod course;
    pub use course::Course;
}

#[path = "../../../src/pool"]
pub mod pool {
    pub mod line;
    pub mod queue;
}
