//! Stands for the rooms that those which meet know names from.

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

pub mod store {
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct KeyId(pub u64);
}

pub mod config {
    use std::fmt;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Measure {
        RequestsPerMinute,
        TokensPerMinute,
        TokensPerDay,
        TokensPerMonth,
        GpuSecondsPerDay,
        GpuSecondsPerMonth,
        Concurrent,
    }

    #[derive(Debug, Clone, Default)]
    pub struct Allowance(pub Vec<(Measure, u64)>);

    impl Allowance {
        pub fn get(&self, measure: Measure) -> Option<u64> {
            self.iter().find(|(it, _)| *it == measure).map(|(_, number)| number)
        }

        pub fn iter(&self) -> impl Iterator<Item = (Measure, u64)> + '_ {
            self.0.iter().copied()
        }
    }

    #[derive(Debug)]
    pub enum Models {
        All,
        Only(Vec<String>),
    }

    impl fmt::Display for Models {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("models")
        }
    }
}

pub mod reject {
    use std::time::Duration;

    use super::config::Measure;

    #[derive(Debug)]
    pub enum Reject {
        TooManyConcurrent(Box<Limited>),
        QuotaExhausted(Box<Limited>),
        RateLimited(Box<Limited>),
    }

    #[derive(Debug)]
    pub struct Limited {
        pub measure: Measure,
        pub number: u64,
        pub whose: String,
        pub models: Option<String>,
        pub again: Again,
        pub left: Left,
    }

    #[derive(Debug)]
    pub enum Again {
        After(Duration),
        At(String, Duration),
        Ended,
    }

    #[derive(Debug, Clone, Copy, Default)]
    pub struct Left {
        pub requests: Option<Quota>,
        pub tokens: Option<Quota>,
    }

    impl Left {
        pub fn and(self, _: Self) -> Self {
            self
        }
    }

    #[derive(Debug, Clone, Copy)]
    pub struct Quota {
        pub limit: u64,
        pub remaining: u64,
        pub reset: Duration,
    }
}

#[derive(Debug)]
pub struct Bearing<'a> {
    pub scope: Scope<'a>,
    pub allowance: &'a config::Allowance,
    pub models: &'a config::Models,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope<'a>(pub &'a str);

impl Scope<'_> {
    pub fn whose(&self) -> String {
        self.0.to_owned()
    }
}
