//! A refusal of each kind.

use std::time::Duration;

use super::{Allowed, Denied, Lack, Limited, Measure, ModelDenied, Reject, Why};

/// One of each kind, for the reference and for the tests.
#[doc(hidden)]
#[must_use]
pub fn one_of_each() -> Vec<Reject> {
    let denied = Denied { operation: "pull", name: "anna".to_owned(), why: Why::Endpoint };
    let model = ModelDenied {
        operation: "chat",
        model: "gemma3:12b".to_owned(),
        stands_for: None,
        who: "anna".to_owned(),
        lack: Lack::Pattern,
        allowed: Allowed { by_rule: Some(vec!["llama3*".to_owned()]), by_key: None },
    };
    let limited = |measure| Box::new(Limited::example(measure));
    vec![
        Reject::BadRequest("why"),
        Reject::BadPath("why"),
        Reject::BadBody("why"),
        Reject::AmbiguousBody("why"),
        Reject::NoCredentials,
        Reject::BadCredentials("why", None),
        Reject::Forbidden(Box::new(denied)),
        Reject::ModelForbidden(Box::new(model.clone())),
        Reject::UnknownModel(Box::new(model)),
        Reject::TlsRequired,
        Reject::UnknownEndpoint,
        Reject::MethodNotAllowed { allow: "GET" },
        Reject::RequestTimeout,
        Reject::BodyTooLarge { limit: 1 },
        Reject::TargetTooLong,
        Reject::UnsupportedEncoding("why"),
        Reject::BadExpectation,
        Reject::UnsupportedMediaType,
        Reject::NotFound("what".into()),
        Reject::NoStore,
        Reject::Conflict("why".into()),
        Reject::Invalid("why".into()),
        Reject::StoreFailed("secret cause".into()),
        Reject::WrongHost,
        Reject::HeadersTooLarge,
        Reject::TooManyFailures { retry_after: Duration::from_millis(1001) },
        Reject::RateLimited(limited(Measure::RequestsPerMinute)),
        Reject::QuotaExhausted(limited(Measure::TokensPerDay)),
        Reject::TooManyConcurrent(limited(Measure::Concurrent)),
        Reject::Internal,
        Reject::BadVersion,
        Reject::LoopDetected,
        Reject::BackendFailed("secret cause".into()),
        Reject::NoBackend("secret cause".into()),
        Reject::Overloaded("secret cause"),
        Reject::QueueFull { wait: Duration::from_millis(1001) },
        Reject::QueueTimeout { wait: Duration::from_millis(1001) },
        Reject::Stopped,
        Reject::BackendTimeout,
    ]
}
