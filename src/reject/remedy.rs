//! What would have allowed a request, for whoever runs the gate.

use super::{Denied, Lack, Limited, ModelDenied, Reject, Why};

const TOO_MANY_FAILURES: &str =
    "waiting, or a credential that was right before; `failed_attempts_per_minute` is the bound";

impl Reject {
    /// What would have to be otherwise, and who could make it so; `None` where nothing would. Not for
    /// the caller.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        let says = match self {
            Self::Forbidden(denied) => return Some(of_denied(denied)),
            Self::ModelForbidden(denied) | Self::UnknownModel(denied) => {
                return Some(of_model(denied));
            }
            Self::BodyTooLarge { limit } => {
                return Some(format!("`max_body` of more than the {limit} bytes that it is"));
            }
            Self::NoCredentials => "a credential with the request",
            Self::BadCredentials(..) => {
                "a credential that is known and counts; a line of the log says why a managed key did \
                 not (`portcullis key show` and `portcullis user verify` tell more)"
            }
            Self::TooManyFailures { .. } => TOO_MANY_FAILURES,
            Self::RateLimited(it) | Self::QuotaExhausted(it) | Self::TooManyConcurrent(it) => {
                return Some(of_limited(it));
            }
            Self::TlsRequired => "the same request by https, with a new password or key",
            Self::UnknownEndpoint => {
                "another path; what is not in the table of endpoints is for operators, and for users \
                 where `extra_endpoints` names it"
            }
            Self::MethodNotAllowed { .. } => "another method",
            Self::WrongHost => "a Host that is this gate's",
            Self::RequestTimeout => {
                "a request that arrives in time; `timeouts.header` and `timeouts.body_grace` are the \
                 bounds"
            }
            Self::LoopDetected => "an `upstream` that does not lead back to this gate",
            Self::BackendFailed(_) | Self::NoBackend(_) => {
                "a model server that answers; `portcullis doctor` looks for what is wrong with it"
            }
            Self::BackendTimeout => {
                "a model server that answers sooner; `timeouts.first_byte` and `timeouts.idle` are \
                 the bounds"
            }
            Self::Overloaded(_) => "fewer requests at once, or a gate with more memory and files",
            Self::StoreFailed(_) => "a data folder that can be used; the log says what is wrong",
            Self::NoStore => "a `data_dir`, which keeps managed keys and the audit trail",
            Self::BadRequest(_)
            | Self::BadPath(_)
            | Self::BadBody(_)
            | Self::AmbiguousBody(_)
            | Self::UnsupportedEncoding(_)
            | Self::TargetTooLong
            | Self::BadExpectation
            | Self::HeadersTooLarge
            | Self::BadVersion
            | Self::UnsupportedMediaType
            | Self::NotFound(_)
            | Self::Conflict(_)
            | Self::Invalid(_) => "another request: this one is refused whoever sends it",
            Self::Internal | Self::QueueFull { .. } | Self::QueueTimeout { .. } | Self::Stopped => {
                return self.remedy_of_waiting().map(str::to_owned);
            }
        };
        Some(says.to_owned())
    }
}

fn of_limited(Limited { measure, number, .. }: &Limited) -> String {
    format!("waiting, or more than {} = {number}", measure.as_str())
}

fn of_denied(Denied { operation, name, why }: &Denied) -> String {
    match why {
        Why::Role { needed, .. } => format!(
            "the role {needed} for {name}: `{needed} = [\"{name}\"]` under [roles], or the role of \
             the managed key"
        ),
        Why::Endpoint => format!(
            "{operation} among the endpoints behind the key of {name} in `authorized_keys`, or none \
             there"
        ),
        Why::Rule => format!("{operation} among the `endpoints` of the rule for {name}"),
        Why::Elsewhere => format!("that backend in `manage` of the rule for {name}"),
        Why::Content(what) => {
            format!("a `policy` for {name} that does not say `{what} = \"refuse\"`")
        }
        Why::WebSearch => the_word_for_the_cloud(name),
        Why::OtherSite => {
            "the same request from no page, or from one of this listener's own".to_owned()
        }
        Why::CrossSite => {
            "a page of the gate's own site, or one whose origin is listed by name in `cors.origins`"
                .to_owned()
        }
    }
}

fn of_model(ModelDenied { model, stands_for, who, lack, .. }: &ModelDenied) -> String {
    let model = stands_for.as_ref().unwrap_or(model);
    match lack {
        Lack::Cloud => the_word_for_the_cloud(who),
        Lack::AllModels => {
            format!("`models = \"all\"` in the rule for {who}, and in the key if it names any")
        }
        Lack::Backend => {
            format!("`ollama pull {model}` at a backend, or an [[alias]] of that name")
        }
        Lack::Pattern => format!(
            "{model} among the `models` of the rule for {who}, and of the key if it names any"
        ),
    }
}

fn the_word_for_the_cloud(who: &str) -> String {
    format!("`cloud = true` in the rule for {who}, and in the key if it says otherwise")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Role;
    use crate::reject::{Allowed, one_of_each};

    fn of_why(why: Why) -> String {
        of_denied(&Denied { operation: "pull", name: "anna".to_owned(), why })
    }

    #[test]
    fn what_would_have_allowed_it_is_what_was_missing() {
        let whys = [
            Why::OtherSite,
            Why::Rule,
            Why::Elsewhere,
            Why::Content("tools"),
            Why::WebSearch,
            Why::Role { held: Role::User, needed: Role::Operator },
            Why::Endpoint,
            Why::CrossSite,
        ];
        for why in whys {
            let part = match why {
                Why::OtherSite => "from no page",
                Why::Rule => "pull among the `endpoints` of the rule for anna",
                Why::Elsewhere => "`manage` of the rule for anna",
                Why::Content(_) => "does not say `tools = \"refuse\"`",
                Why::WebSearch => "`cloud = true` in the rule for anna",
                Why::Role { .. } => "`operator = [\"anna\"]` under [roles]",
                Why::Endpoint => "behind the key of anna in `authorized_keys`",
                Why::CrossSite => "`cors.origins`",
            };
            assert!(of_why(why).contains(part), "{why:?}: {}", of_why(why));
        }
        for lack in [Lack::Pattern, Lack::Cloud, Lack::AllModels, Lack::Backend] {
            let part = match lack {
                Lack::Pattern => "big among the `models` of the rule for anna, and of the key",
                Lack::Cloud => "`cloud = true` in the rule for anna",
                Lack::AllModels => "`models = \"all\"` in the rule for anna",
                Lack::Backend => "`ollama pull big`",
            };
            let (model, who) = ("alias".to_owned(), "anna".to_owned());
            let (stands_for, allowed) = (Some("big".to_owned()), Allowed::default());
            let denied = ModelDenied { operation: "chat", model, stands_for, who, lack, allowed };
            assert!(of_model(&denied).contains(part), "{lack:?}: {}", of_model(&denied));
        }
    }

    #[test]
    fn whoever_runs_the_gate_is_told_what_would_have_allowed_it() {
        for reject in one_of_each() {
            let code = reject.row().code;
            let remedy = reject.remedy();
            assert_eq!(remedy.is_none(), code == "internal", "{code}");
            let secret = remedy.is_some_and(|remedy| remedy.contains("secret cause"));
            assert!(!secret, "{code}");
        }
    }
}
