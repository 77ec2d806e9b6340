//! Names of models as Ollama compares them, patterns of them, and who may use which.
//!
//! Source: ollama types/model/name.go, internal/modelref/modelref.go, server/routes.go
//! getExistingName, v0.20.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use super::roles::Pattern;

const HOST: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";
const TAG: &str = "latest";
/// Longest host, and longest of any other part, in bytes.
const MAX_HOST: usize = 350;
const MAX_PART: usize = 80;
/// More than the longest name that there can be, with its scheme, its digest and its blanks.
const MAX_TEXT: usize = 1024;

/// A model, however its name was spelt: two names are equal if Ollama would take the same model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelName {
    /// `host/namespace/model`, in lower case.
    stem: String,
    namespace_at: usize,
    model_at: usize,
    tag: String,
    source: Source,
}

/// Where a name says that its model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Unsaid,
    /// `:local` behind the name. Some endpoints take it for the tag.
    Local,
    /// `:cloud` or `-cloud` behind the name.
    Cloud,
}

/// Why a text is no model's name, or no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadModelName(&'static str);

impl ModelName {
    /// # Errors
    /// For what Ollama would not take for a name either.
    pub fn parse(text: &str) -> Result<Self, BadModelName> {
        let text = text.trim();
        if text.is_empty() {
            return Err(BadModelName("the name of the model is empty"));
        }
        if text.len() > MAX_TEXT {
            return Err(BadModelName("the name of the model is too long"));
        }
        let (text, digest) = match text.split_once('@') {
            None => (text, None),
            Some((name, digest)) => (name, Some(digest)),
        };
        // A suffix behind the digest counts too.
        let behind = digest.map_or(Source::Unsaid, |digest| split_source(digest).1);
        if !digest.is_none_or(is_digest) {
            return Err(BadModelName("the digest of the model cannot be read"));
        }
        let (base, source) = split_source(text);
        if source != Source::Unsaid && split_source(base).1 != Source::Unsaid {
            return Err(BadModelName("the model is said to be local or cloud twice"));
        }
        let source = if behind == Source::Cloud { behind } else { source };
        Self::of_parts(base, source)
    }

    /// Host, namespace, model and tag, with what is left out filled in.
    fn of_parts(text: &str, source: Source) -> Result<Self, BadModelName> {
        let (path, tag) = match text.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (text, TAG),
        };
        let mut parts = path.rsplitn(3, '/');
        let model = parts.next().unwrap_or_default();
        let namespace = parts.next();
        let host = parts.next().map(|host| host.split_once("://").map_or(host, |(_, host)| host));
        let is_name = host.is_none_or(|host| is_part(host, b"-.:", MAX_HOST))
            && namespace.is_none_or(|namespace| is_part(namespace, b"-", MAX_PART))
            && is_part(model, b"-.", MAX_PART)
            && is_part(tag, b"-.", MAX_PART);
        if !is_name {
            return Err(BadModelName("the name of the model cannot be read"));
        }
        let (host, namespace) = (host.unwrap_or(HOST), namespace.unwrap_or(NAMESPACE));
        let mut stem = [host, "/", namespace, "/", model].concat();
        stem.make_ascii_lowercase();
        Ok(Self {
            stem,
            namespace_at: host.len() + 1,
            model_at: host.len() + namespace.len() + 2,
            tag: tag.to_ascii_lowercase(),
            source,
        })
    }

    /// Whether it says that it runs on ollama.com, with the account of the server's owner. A model
    /// that is listed under a plain name may do so too: only the server knows.
    #[must_use]
    pub fn is_cloud(&self) -> bool {
        self.source == Source::Cloud
    }

    /// The same model, whatever its name says of where it runs.
    #[must_use]
    pub fn without_source(&self) -> Cow<'_, Self> {
        match self.source {
            Source::Unsaid => Cow::Borrowed(self),
            Source::Local | Source::Cloud => {
                Cow::Owned(Self { source: Source::Unsaid, ..self.clone() })
            }
        }
    }

    /// As [`ToString`] has it, in one piece: each request's row has it.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.shown().concat()
    }

    fn shown(&self) -> [&str; 4] {
        let start = self.starts().last().unwrap_or_default();
        let stem = self.stem.get(start..).unwrap_or_default();
        match self.source {
            Source::Unsaid | Source::Local => [stem, ":", &self.tag, ""],
            Source::Cloud if self.tag == TAG => [stem, ":", "cloud", ""],
            Source::Cloud => [stem, ":", &self.tag, "-cloud"],
        }
    }

    fn has_usual_host(&self) -> bool {
        self.stem.get(..self.namespace_at) == Some("registry.ollama.ai/")
    }

    fn has_usual_namespace(&self) -> bool {
        self.stem.get(self.namespace_at..self.model_at) == Some("library/")
    }

    /// Where in the stem a usual form may begin, the shortest form last.
    fn starts(&self) -> impl Iterator<Item = usize> {
        let namespace = self.has_usual_host().then_some(self.namespace_at);
        let model = (self.has_usual_host() && self.has_usual_namespace()).then_some(self.model_at);
        [Some(0), namespace, model].into_iter().flatten()
    }

    /// What may stand behind the model in a usual form.
    fn endings(&self) -> Vec<String> {
        let tag = &self.tag;
        let (mut endings, shortest) = match self.source {
            Source::Unsaid | Source::Local => (vec![format!(":{tag}")], ""),
            Source::Cloud => (vec![format!(":{tag}-cloud"), format!(":{tag}:cloud")], ":cloud"),
        };
        if self.tag == TAG {
            endings.push(shortest.to_owned());
        }
        endings
    }
}

/// Of each request's model several times: by what most differ in, in two pieces.
impl Hash for ModelName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.stem.as_bytes());
        state.write(self.tag.as_bytes());
    }
}

/// As Ollama shows it: without the usual host and namespace, always with a tag.
impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown().into_iter().try_for_each(|piece| f.write_str(piece))
    }
}

/// Cuts off what says where the model runs.
fn split_source(text: &str) -> (&str, Source) {
    let Some((base, suffix)) = text.rsplit_once(':') else { return (text, Source::Unsaid) };
    let suffix = suffix.trim();
    if suffix.eq_ignore_ascii_case("cloud") {
        return (base, Source::Cloud);
    }
    if suffix.eq_ignore_ascii_case("local") {
        return (base, Source::Local);
    }
    let at = suffix.len().wrapping_sub("-cloud".len());
    let is_cloud = suffix.get(at..).is_some_and(|end| end.eq_ignore_ascii_case("-cloud"));
    if is_cloud && !suffix.contains('/') {
        let blanks = text.len() - text.trim_end().len();
        let kept = text.len() - blanks - "-cloud".len();
        return (text.get(..kept).unwrap_or(text), Source::Cloud);
    }
    (text, Source::Unsaid)
}

fn is_part(part: &str, besides: &[u8], longest: usize) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    part.len() <= longest
        && part.bytes().next().is_some_and(is_plain)
        && part.bytes().all(|b| is_plain(b) || besides.contains(&b))
}

fn is_digest(digest: &str) -> bool {
    is_part(digest, b"-:", MAX_PART)
}

/// Names of models, with `*` for any run of characters.
///
/// It is compared with every usual form of a name, so that `gemma3*` and `library/gemma3:*` match
/// `registry.ollama.ai/library/gemma3:12b`. A pattern without a slash speaks of the usual registry's
/// library alone, so that `gemma3*` does not match `gemma3.example.com/anything/else`; `*` by itself
/// is every model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPattern(Pattern);

impl ModelPattern {
    #[must_use]
    pub fn matches(&self, name: &ModelName) -> bool {
        let matched = |tail: &str| {
            let form = format!("{}{tail}", name.stem);
            let mut starts =
                name.starts().filter(|start| self.has_slash() || *start == name.model_at);
            starts.any(|start| form.get(start..).is_some_and(|form| self.0.matches(form)))
        };
        if self.is_everything() {
            return true;
        }
        let mut endings = name.endings().into_iter();
        // Where `:local` is the tag, it is another model.
        endings.any(|ending| matched(&ending))
            && (name.source != Source::Local || name.tag != TAG || matched(":local"))
    }

    pub(super) fn is_everything(&self) -> bool {
        self.0.as_str().bytes().all(|byte| byte == b'*')
    }

    pub(super) fn is_exact(&self) -> bool {
        self.0.is_exact()
    }

    /// How much of a name it says.
    pub(super) fn letters(&self) -> usize {
        self.0.as_str().bytes().filter(|b| *b != b'*').count()
    }

    /// Whether it matches all that the other matches, as far as can be seen from both.
    fn covers(&self, other: &Self) -> bool {
        // Without a slash it is compared with fewer forms of a name.
        let forms = self.has_slash() || !other.has_slash();
        self.is_everything() || (forms && self.0.covers(&other.0))
    }

    fn has_slash(&self) -> bool {
        self.0.as_str().contains('/')
    }
}

impl FromStr for ModelPattern {
    type Err = BadModelName;

    fn from_str(text: &str) -> Result<Self, BadModelName> {
        let text = text.trim().to_ascii_lowercase();
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.:/*".contains(&b);
        if text.is_empty() {
            return Err(BadModelName("a pattern is not empty"));
        }
        if text.len() > MAX_TEXT || !text.bytes().all(is_plain) {
            return Err(BadModelName(
                "a pattern has letters, digits, `*`, and `_-.:/` between them, as in `gemma3*` or \
                 `hf.co/bartowski/*`",
            ));
        }
        if text.contains("://") || text.contains("//") || text.starts_with('/') {
            return Err(BadModelName("a pattern begins with the host, the namespace or the model"));
        }
        Ok(Self(Pattern::new(&text)))
    }
}

impl fmt::Display for ModelPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which models a caller may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Models {
    #[default]
    All,
    /// An empty list is no model at all.
    Only(Vec<ModelPattern>),
}

impl Models {
    /// Those that are named, not those that match a `*`.
    #[must_use]
    pub fn named(&self) -> Vec<ModelName> {
        let Self::Only(patterns) = self else { return Vec::new() };
        let exact = patterns.iter().filter(|pattern| pattern.is_exact());
        exact.filter_map(|pattern| ModelName::parse(&pattern.to_string()).ok()).collect()
    }

    /// Whether the name is among them; whether cloud models may be used is another question.
    #[must_use]
    pub fn allow(&self, name: &ModelName) -> bool {
        match self {
            Self::All => true,
            Self::Only(patterns) => patterns.iter().any(|pattern| pattern.matches(name)),
        }
    }

    /// Whether all that the others allow is among them, as far as can be seen from the patterns.
    #[must_use]
    pub fn cover(&self, others: &Self) -> bool {
        match (self, others) {
            (Self::All, _) => true,
            (Self::Only(_), Self::All) => false,
            (Self::Only(wide), Self::Only(narrow)) => {
                narrow.iter().all(|one| wide.iter().any(|it| it.covers(one)))
            }
        }
    }

    /// The patterns as they are written; `None` is all models.
    #[must_use]
    pub fn shown(&self) -> Option<Vec<String>> {
        match self {
            Self::All => None,
            Self::Only(patterns) => Some(patterns.iter().map(ToString::to_string).collect()),
        }
    }
}

impl fmt::Display for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Only(patterns) => {
                for (at, pattern) in patterns.iter().enumerate() {
                    let comma = if at == 0 { "" } else { ", " };
                    write!(f, "{comma}{pattern}")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> ModelName {
        ModelName::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn only(patterns: &[&str]) -> Models {
        Models::Only(patterns.iter().map(|it| it.parse().unwrap()).collect())
    }

    #[test]
    fn one_model_has_one_name_however_it_is_spelt() {
        for text in [
            "gemma3",
            " gemma3\t",
            "\u{a0}gemma3\u{2003}",
            "Gemma3:Latest",
            "library/GEMMA3",
            "registry.ollama.ai/library/gemma3:latest",
            "https://Registry.Ollama.AI/library/gemma3",
            "gemma3@sha256:00ff",
            "gemma3:latest@sha256-00ff",
        ] {
            assert_eq!(name(text), name("gemma3"), "{text}");
            assert_eq!(name(text).to_string(), "gemma3:latest", "{text}");
            assert!(!name(text).is_cloud(), "{text}");
        }
        for (one, other) in [
            ("gemma3", "gemma3:12b"),
            ("gemma3", "x/gemma3"),
            ("x/gemma3", "hf.co/x/gemma3"),
            ("gemma3", "gemma3:cloud"),
            ("h:1/x/gemma3", "h:2/x/gemma3"),
        ] {
            assert_ne!(name(one), name(other));
        }
    }

    #[test]
    fn what_runs_on_ollama_com_says_so() {
        for (text, shown) in [
            ("qwen3:cloud", "qwen3:cloud"),
            ("qwen3: CLOUD ", "qwen3:cloud"),
            ("qwen3:latest-cloud", "qwen3:cloud"),
            ("gpt-oss:20b-cloud", "gpt-oss:20b-cloud"),
            ("gpt-oss:20b:cloud", "gpt-oss:20b-cloud"),
            ("gpt-oss:20b-Cloud", "gpt-oss:20b-cloud"),
            ("gpt-oss:20b:cloud@sha256:00", "gpt-oss:20b-cloud"),
            ("x/gpt-oss:cloud", "x/gpt-oss:cloud"),
        ] {
            assert!(name(text).is_cloud(), "{text}");
            assert_eq!(name(text).to_string(), shown, "{text}");
            assert_eq!(name(shown), name(text), "{text}");
        }
        assert!(name("m@sha256:x-cloud").is_cloud());
        for text in ["cloud", "m-cloud", "m:clouds", "m:local", "m:20b:local", "cloud:8b"] {
            assert!(!name(text).is_cloud(), "{text}");
        }
    }

    #[test]
    fn what_ollama_would_not_take_is_no_name() {
        let long = "x".repeat(10_000);
        for text in [
            "",
            " ",
            "\0",
            "a\0b",
            "a b",
            "a\nb",
            ":x",
            "x:",
            "/x",
            "x/",
            "a//b",
            "a/b/c/d",
            "-x",
            ".x",
            "x:-y",
            "a.b/c",
            "ä",
            "\u{17f}mall",
            "\u{212a}imi",
            "x:y:z",
            "@sha256:0",
            "x@",
            "x@a b",
            "m:cloud:cloud",
            "m:local:cloud",
            "m:cloud:local",
            "a:b/c:d",
            "\u{fffd}",
            "x:20b -cloud",
            "../x",
            "..",
            "a\\b",
            "a%2fb",
            &long,
            &format!("m:{}", "x".repeat(81)),
        ] {
            assert!(ModelName::parse(text).is_err(), "{text:?}");
        }
        assert!(
            ModelName::parse(&format!(
                "{}/{}/{}:{}",
                "h".repeat(350),
                "n".repeat(80),
                "m".repeat(80),
                "t".repeat(80)
            ))
            .is_ok()
        );
    }

    #[test]
    fn a_pattern_matches_every_form_of_a_name() {
        for (pattern, text) in [
            ("gemma3*", "registry.ollama.ai/library/gemma3:12b"),
            ("gemma3:*", "gemma3"),
            ("gemma3", "GEMMA3:latest"),
            ("Gemma3:LATEST", "gemma3"),
            ("library/gemma3", "gemma3"),
            ("registry.ollama.ai/*", "gemma3:12b"),
            ("registry.ollama.ai/library/gemma3:12b", "gemma3:12b"),
            ("hf.co/bartowski/*", "HF.co/bartowski/Qwen:Q4_K_M"),
            ("*", "hf.co/a/b:c"),
            ("**", "hf.co/a/b:c"),
            ("*:1b", "gemma3:1b"),
            ("gpt-oss:*", "gpt-oss:20b-cloud"),
            ("gpt-oss:20b:cloud", "gpt-oss:20b-cloud"),
            ("gpt-oss:20b-cloud", "gpt-oss:20b:cloud"),
            ("qwen3:cloud", "qwen3:cloud"),
            ("m:12b", "m:12b:local"),
            ("m*", "m:local"),
        ] {
            assert!(only(&[pattern]).allow(&name(text)), "{pattern} {text}");
        }
    }

    #[test]
    fn a_pattern_matches_nothing_else() {
        for (pattern, text) in [
            ("gemma3", "gemma3:12b"),
            ("gemma3*", "gemma3.example.com/x/evil"),
            ("gemma3*", "gemma3x/evil"),
            ("gemma3*", "my-gemma3"),
            ("bartowski/*", "hf.co/bartowski/x"),
            ("gpt-oss:20b", "gpt-oss:20b-cloud"),
            ("qwen3", "qwen3:cloud"),
            // Of copy and push, this is another model than `m:latest`.
            ("m", "m:local"),
            ("m:latest", "m:local"),
            ("m:local", "m:local"),
        ] {
            assert!(!only(&[pattern]).allow(&name(text)), "{pattern} {text}");
        }
        assert!(!only(&[]).allow(&name("m")));
        for pattern in ["", " ", "a b", "ä*", "http://h/*", "a//b", "/a", "m@sha256:0", "a\0"] {
            assert!(pattern.parse::<ModelPattern>().is_err(), "{pattern:?}");
        }
    }

    #[test]
    fn of_two_lists_the_narrower_is_known_where_the_patterns_show_it() {
        for (wide, narrow) in [
            (&["gemma3*", "x"][..], &["gemma3:1b"][..]),
            (&["*"], &["hf.co/a/*", "m"]),
            (&["hf.co/*"], &["hf.co/a/*"]),
            (&["a*c"], &["a*b*c"]),
            (&["m"], &[]),
            (&[], &[]),
        ] {
            assert!(only(wide).cover(&only(narrow)), "{wide:?} {narrow:?}");
            assert!(Models::All.cover(&only(narrow)) && !only(wide).cover(&Models::All));
        }
        for (wide, narrow) in [
            (&["gemma3:1b"][..], &["gemma3*"][..]),
            (&["small*", "big*"], &["big*", "huge*"]),
            // Of the usual library alone, as `a/b` is not.
            (&["a*"], &["a/b"]),
            (&["a*b*c"], &["a*c"]),
            (&[], &["m"]),
        ] {
            assert!(!only(wide).cover(&only(narrow)), "{wide:?} {narrow:?}");
        }
    }

    proptest! {
        #[test]
        fn what_a_narrower_pattern_allows_the_wider_does_too(
            wide in "[ab*/:]{1,5}", narrow in "[ab*/:]{1,5}", name in "([ab]/){0,2}[ab]{1,3}(:[ab]{1,2})?"
        ) {
            let (Ok(wide), Ok(narrow)) = (wide.parse::<ModelPattern>(), narrow.parse::<ModelPattern>())
            else { return Ok(()) };
            let name = ModelName::parse(&name).unwrap();
            prop_assert!(!wide.covers(&narrow) || !narrow.matches(&name) || wide.matches(&name));
        }

        #[test]
        fn what_is_shown_is_the_same_model(text in "([a-zA-Z0-9.:/_@ -]|:cloud|:local|-cloud|://){1,30}") {
            if let Ok(name) = ModelName::parse(&text) {
                let shown = ModelName::parse(&name.to_string()).unwrap();
                prop_assert_eq!(shown.to_string(), name.to_string());
                prop_assert_eq!(shown.is_cloud(), name.is_cloud());
                let pattern: ModelPattern = name.to_string().parse().unwrap();
                prop_assert!(pattern.matches(&shown));
            }
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = ModelName::parse(&text);
            let _ = text.parse::<ModelPattern>();
        }
    }
}
