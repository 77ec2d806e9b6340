//! Callers who are known, and may not do what they ask for: what they are told.

use std::borrow::Cow;
use std::fmt;

use crate::config::Role;

/// Who was denied what, and what it would have taken.
#[derive(Debug, Clone)]
pub struct Denied {
    pub operation: &'static str,
    pub name: String,
    pub why: Why,
}

/// A model that a caller may not use.
#[derive(Debug, Clone)]
pub struct ModelDenied {
    pub operation: &'static str,
    /// As it was written.
    pub model: String,
    /// Where that is an alias.
    pub stands_for: Option<String>,
    pub who: String,
    pub lack: Lack,
    pub allowed: Allowed,
}

/// Patterns of what may be used, of each that has a say; `None` is every model that is not in the cloud.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    pub by_rule: Option<Vec<String>>,
    pub by_key: Option<Vec<String>>,
}

impl Allowed {
    fn is_nothing(&self) -> bool {
        [&self.by_rule, &self.by_key].into_iter().flatten().any(Vec::is_empty)
    }

    /// To stand behind "allowed are", with so many of each list at most.
    #[must_use]
    pub fn told(&self, most: usize) -> String {
        let told = |patterns: &[String]| {
            let shown = patterns.get(..most).unwrap_or(patterns).join(", ");
            if patterns.len() > most { shown + ", …" } else { shown }
        };
        match (self.by_rule.as_deref(), self.by_key.as_deref()) {
            (None, None) => "all".to_owned(),
            (Some(only), None) | (None, Some(only)) => told(only),
            (Some(rule), Some(key)) => {
                let (rule, key) = (told(rule), told(key));
                format!("those of {rule} (the rule's) that are among {key} (the key's) as well")
            }
        }
    }
}

/// What it would have taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// A pattern that is about the model.
    Pattern,
    /// The word for models in the cloud.
    Cloud,
    /// All models: a file of one, named by its digest, may be any model's.
    AllModels,
    /// Nothing: no backend has the model.
    Backend,
}

/// Patterns of a list that a refusal names, at most.
const MOST_SHOWN: usize = 12;

impl fmt::Display for ModelDenied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, stands_for, who, lack, allowed, .. } = self;
        let model = &stands_for.as_ref().map_or_else(
            || Cow::Borrowed(model),
            |it| Cow::Owned(format!("{model} (which is {it} here)")),
        );
        match lack {
            Lack::Pattern => {}
            Lack::Backend => return write!(f, "no backend has {model}"),
            Lack::Cloud => {
                return write!(
                    f,
                    "{model} runs on ollama.com under the account of this server's owner, which {who} may not use; \
                 a rule with `cloud = true` would allow it"
                );
            }
            Lack::AllModels => {
                return write!(
                    f,
                    "{who} may use some models only, and the files that {model} is made of may be another's; \
                 `from` a model that may be used makes one as well"
                );
            }
        }
        if allowed.is_nothing() {
            return write!(f, "{who} may not use {model}, nor any other model here");
        }
        write!(f, "{who} may not use {model}; allowed are {}", allowed.told(MOST_SHOWN))
    }
}

impl ModelDenied {
    /// In the words of an Ollama that has no such model [ollama server/routes.go GenerateHandler,
    /// ChatHandler, ShowHandler, CopyHandler, handleScheduleError].
    pub(super) fn missing(&self) -> String {
        let model = &self.model;
        match self.operation {
            "copy" => format!("model {model:?} not found"),
            "embed" | "embeddings" | "v1_embeddings" => {
                format!("model {model:?} not found, try pulling it first")
            }
            _ => format!("model '{model}' not found"),
        }
    }
}

/// What stood in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A page of another site asked the admin API.
    OtherSite,
    /// The rule opens other endpoints only.
    Rule,
    /// The rule has such calls go to other backends.
    Elsewhere,
    /// The rule refuses images, or tools.
    Content(&'static str),
    /// It runs on ollama.com, as models in the cloud do.
    WebSearch,
    /// The role held is not the role needed.
    Role { held: Role, needed: Role },
    /// The key is restricted to other endpoints.
    Endpoint,
    /// A password or a certificate that a browser sent along for another site's page.
    CrossSite,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, name, why } = self;
        match why {
            Why::Role { held, needed } => write!(
                f,
                "{operation} needs the role {needed}; {name} has the role {held}. \
                 Ask whoever runs this gate"
            ),
            Why::OtherSite => f.write_str("pages of other sites may not ask the admin API"),
            Why::Rule => write!(
                f,
                "the rule for {name} does not open {operation}. Ask whoever runs this gate"
            ),
            Why::Elsewhere => write!(
                f,
                "the rule for {name} has {operation} go to other backends. Ask whoever runs this gate"
            ),
            Why::Content(what) => write!(f, "{name} may not send {what} with {operation}"),
            Why::WebSearch => write!(
                f,
                "{name} may not send a web search, which runs on the account of this server's owner, with \
                 {operation}; a rule with `cloud = true` would allow it"
            ),
            Why::Endpoint => write!(f, "the key of {name} is not allowed to {operation}"),
            Why::CrossSite => write!(
                f,
                "{operation} with a password or a certificate from another site's page is refused; \
                 list that site in cors.origins, or use a key"
            ),
        }
    }
}
