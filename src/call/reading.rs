//! What a body says, found in one pass over its bytes: which model, whether it streams, the options.
//!
//! What is found stays in the body; a [`Span`] says where. Ollama takes the last of several equal
//! keys, in whatever case they are written; other servers take the first, or mind the case. So a
//! body that could be read in two ways is refused, and what is left means the same to everybody.

use std::borrow::Cow;

use bytes::Bytes;
use http::header;
use http::request::Parts;

use crate::api::{Asked, Field, ModelIn, OPTIONS, Shape};
use crate::reject::Reject;

mod form;
mod scan;
mod unknown;
mod worth;

pub use scan::Span;
pub(super) use unknown::may_be_object;

use scan::{Kind, Passed, Scanner};

/// Bytes of text to a token, where nobody counted.
pub const BYTES_A_TOKEN: u64 = 4;

/// Members of an object whose keys are compared; no request has half as many.
const MAX_MEMBERS: usize = 128;

const AMBIGUOUS_KEY: Reject =
    Reject::AmbiguousBody("a key stands twice in the body; the case of its letters does not count");
const OTHER_CASE: Reject =
    Reject::AmbiguousBody("a key of the body is known here, but is written in small letters");
const TWO_NAMES: Reject =
    Reject::AmbiguousBody("`model` and its old name `name` name two models; send one of them");
const MANY_MEMBERS: Reject =
    Reject::BadBody("an object in the body has more members than any request needs");
const TOO_LARGE: Reject = Reject::BodyTooLarge { limit: u32::MAX as u64 };

/// What was found in a body. Of a body that is not looked at, nothing.
#[derive(Debug, Clone, Default)]
pub struct Reading(Option<Box<Found>>);

#[derive(Debug, Clone, Default)]
struct Found {
    body: Bytes,
    /// The top-level object, braces included.
    object: Span,
    /// Each once; a request has few of them.
    fields: Vec<(Field, Member)>,
    /// The form field `model`, of a form.
    form_model: Option<Span>,
    options: Vec<Member>,
    include_usage: Option<Member>,
    images: Images,
    tools: bool,
    /// Nobody can say which model it names, or whether it names one.
    unclear: bool,
}

/// The images that come along.
#[derive(Debug, Clone, Copy, Default)]
struct Images {
    any: bool,
    /// In base64, or where else they are.
    bytes: u64,
}

/// A key and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Between the quotation marks.
    pub name: Span,
    pub value: Span,
    /// From the key's quotation mark to the end of the value.
    pub whole: Span,
}

impl Reading {
    /// Reads a body as its endpoint would. One that the endpoint does not need is not looked at.
    ///
    /// # Errors
    /// 400 for what is not JSON (or no form, where a form is asked for), for a wrong type of what is
    /// looked at, and for what could be read in two ways.
    pub fn of(body: &Bytes, asked: &Asked, parts: &Parts) -> Result<Self, Reject> {
        match asked.model_in() {
            ModelIn::Body | ModelIn::BothEnds => Self::of_json(body, asked),
            ModelIn::Form => {
                let content_type = parts.headers.get(header::CONTENT_TYPE);
                let content_type = content_type.map_or(&b""[..], |it| it.as_bytes());
                Self::of_form(body, content_type, parts.uri.query())
            }
            ModelIn::Perhaps => Ok(Self::of_unknown(body, asked, parts)),
            ModelIn::Nowhere | ModelIn::Path => Ok(Self::default()),
        }
    }

    /// Reads a JSON body. An empty one has nothing in it.
    ///
    /// # Errors
    /// As [`Reading::of`].
    pub fn of_json(body: &Bytes, asked: &Asked) -> Result<Self, Reject> {
        let read = Self::of_object(body, asked);
        match asked.model_in() {
            ModelIn::Perhaps => Ok(read.unwrap_or_else(|_| Self::unclear())),
            ModelIn::Nowhere
            | ModelIn::Body
            | ModelIn::BothEnds
            | ModelIn::Form
            | ModelIn::Path => read,
        }
    }

    fn of_object(body: &Bytes, asked: &Asked) -> Result<Self, Reject> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        if u32::try_from(body.len()).is_err() {
            return Err(TOO_LARGE);
        }
        let text = std::str::from_utf8(body);
        let text = text.map_err(|_| Reject::BadBody("the body is not UTF-8"))?;
        let mut scanner = Scanner::new(text);
        let mut found = Box::new(Found { body: body.clone(), ..Found::default() });
        found.top(&mut scanner, asked.fields())?;
        scanner.end()?;
        let reading = Self(Some(found));
        let (model, name) = (reading.string(Field::Model), reading.string(Field::Name));
        match model.zip(name) {
            Some((model, name)) if !model.is_empty() && !name.is_empty() && model != name => {
                Err(TWO_NAMES)
            }
            _ => Ok(reading),
        }
    }

    /// Reads a form. `query` may hold no model, because Go's reader prefers that one.
    ///
    /// # Errors
    /// As [`Reading::of`].
    pub fn of_form(body: &Bytes, content_type: &[u8], query: Option<&str>) -> Result<Self, Reject> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        if u32::try_from(body.len()).is_err() {
            return Err(TOO_LARGE);
        }
        form::no_model_in(query)?;
        let form_model = form::model(body, content_type)?;
        Ok(Self(Some(Box::new(Found { body: body.clone(), form_model, ..Found::default() }))))
    }

    /// The model that is asked for: `model`, or else the old `name`. `None` if there is none, or an
    /// empty one. How it is spelt is up to the caller: [`crate::config::ModelName`] compares.
    #[must_use]
    pub fn model(&self) -> Option<Cow<'_, str>> {
        // Most requests without a model have no body.
        self.found()?;
        if let Some(span) = self.found().and_then(|found| found.form_model) {
            return Some(Cow::Borrowed(self.written(span))).filter(|model| !model.is_empty());
        }
        let filled = |field| self.string(field).filter(|text| !text.is_empty());
        filled(Field::Model).or_else(|| filled(Field::Name))
    }

    /// Where an existing model is copied from, or a new one made from.
    #[must_use]
    pub fn source(&self) -> Option<Cow<'_, str>> {
        self.found()?;
        let filled = |field| self.string(field).filter(|text| !text.is_empty());
        filled(Field::Source).or_else(|| filled(Field::From))
    }

    /// Whether a model is made that runs elsewhere [ollama server/create.go, `remote_host`].
    #[must_use]
    pub fn makes_a_stub(&self) -> bool {
        self.string(Field::RemoteHost).is_some_and(|host| !host.is_empty())
    }

    /// Whether a model is made from layers that are named by their digests, which may be any model's.
    #[must_use]
    pub fn uses_layers(&self) -> bool {
        let is_any = |field| match self.field(field).map(|member| self.written(member.value)) {
            None | Some("null") => false,
            Some(written) => written.bytes().any(|byte| !b"{} \t\r\n".contains(&byte)),
        };
        [Field::Files, Field::Adapters, Field::DraftFiles].into_iter().any(is_any)
    }

    /// Where a model is copied to.
    #[must_use]
    pub fn destination(&self) -> Option<Cow<'_, str>> {
        self.string(Field::Destination).filter(|text| !text.is_empty())
    }

    /// `stream`, if it is there; without it, it depends on the endpoint.
    #[must_use]
    pub fn stream(&self) -> Option<bool> {
        self.flag(self.field(Field::Stream)?)
    }

    /// `stream_options.include_usage`.
    #[must_use]
    pub fn include_usage(&self) -> Option<bool> {
        self.flag(self.found()?.include_usage?)
    }

    /// Where `stream_options.include_usage` stands, whatever its value.
    pub(super) fn usage_wish(&self) -> Option<Member> {
        self.found()?.include_usage
    }

    /// A field of this endpoint, whatever its value; also where it is `null`.
    #[must_use]
    pub fn field(&self, field: Field) -> Option<Member> {
        let fields = &self.found()?.fields;
        fields.iter().find(|(it, _)| *it == field).map(|(_, member)| *member)
    }

    /// A field or option that is a number.
    #[must_use]
    pub fn number(&self, member: Member) -> Option<f64> {
        self.found()?.number(member)
    }

    /// A field or option that is a string.
    #[must_use]
    pub fn text(&self, member: Member) -> Option<Cow<'_, str>> {
        let written = self.written(member.value);
        let between = written.strip_prefix('"')?.strip_suffix('"')?;
        Some(scan::decode(between))
    }

    /// The direct members of `options`, in their order.
    #[must_use]
    pub fn options(&self) -> &[Member] {
        self.found().map_or(&[], |found| &found.options)
    }

    /// An option by its name, in whatever case it is written; there is one at most.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<Member> {
        let is_it = |option: &&Member| scan::is_folded(&self.name(**option), name);
        self.options().iter().find(is_it).copied()
    }

    /// The key of a member.
    #[must_use]
    pub fn name(&self, member: Member) -> Cow<'_, str> {
        scan::decode(self.written(member.name))
    }

    /// The top-level object, where members can be inserted; `None` if the body has none.
    #[must_use]
    pub fn object(&self) -> Option<Span> {
        Some(self.found()?.object).filter(|object| !object.is_empty())
    }

    /// Whether an image comes along, also within a message.
    #[must_use]
    pub fn has_images(&self) -> bool {
        self.found().is_some_and(|found| found.images.any)
    }

    /// Whether these very bytes were read.
    #[must_use]
    pub fn is_of(&self, body: &Bytes) -> bool {
        self.found().is_some_and(|found| {
            found.body.as_ptr() == body.as_ptr() && found.body.len() == body.len()
        })
    }

    #[must_use]
    pub fn has_tools(&self) -> bool {
        self.found().is_some_and(|found| found.tools)
    }

    /// Whether a tool of Ollama's own searches ollama.com under the account of the server's owner
    /// [ollama middleware/anthropic.go hasWebSearchTool].
    #[must_use]
    pub fn searches_the_web(&self) -> bool {
        let Some(tools) = self.field(Field::Tools).filter(|_| self.has_tools()) else {
            return false;
        };
        let tools: Vec<serde_json::Map<String, serde_json::Value>> =
            match serde_json::from_str(self.written(tools.value)) {
                Ok(tools) => tools,
                // What is no list of objects is no tool either.
                Err(_) => return false,
            };
        tools.iter().flatten().any(|(key, value)| {
            let kind = value.as_str().filter(|_| key.eq_ignore_ascii_case("type"));
            kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with("web_search"))
        })
    }

    /// What stands there, as it is written.
    #[must_use]
    pub fn written(&self, span: Span) -> &str {
        self.found().map_or("", |found| found.written(span))
    }

    fn found(&self) -> Option<&Found> {
        self.0.as_deref()
    }

    fn string(&self, field: Field) -> Option<Cow<'_, str>> {
        self.text(self.field(field)?)
    }

    fn flag(&self, member: Member) -> Option<bool> {
        match self.found()?.body.get(member.value.range())? {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        }
    }
}

impl Found {
    fn written(&self, span: Span) -> &str {
        let bytes = self.body.get(span.range()).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    fn number(&self, member: Member) -> Option<f64> {
        let written = self.written(member.value);
        let is_number = written.starts_with(|first: char| first == '-' || first.is_ascii_digit());
        is_number.then(|| written.parse().ok()).flatten()
    }

    fn top(&mut self, scanner: &mut Scanner<'_>, fields: &[Field]) -> Result<(), Reject> {
        if scanner.peek() != Some(b'{') {
            return Err(Reject::BadBody("the body is not a JSON object"));
        }
        let start = scanner.at();
        let mut keys = Keys::default();
        scanner.object(|scanner, key| {
            let name = scan::decode(scanner.written(key));
            keys.add(&name)?;
            let Some(field) = fields.iter().find(|it| scan::is_folded(&name, it.key())) else {
                return scanner.pass().map(drop);
            };
            if name != field.key() {
                return Err(OTHER_CASE);
            }
            self.value_of(scanner, *field, key)
        })?;
        self.object = Span::new(start, scanner.at());
        Ok(())
    }

    fn value_of(
        &mut self,
        scanner: &mut Scanner<'_>,
        field: Field,
        key: Span,
    ) -> Result<(), Reject> {
        let first = scanner.peek();
        let start = scanner.at();
        let kind = match (field, first) {
            (Field::Options, Some(b'{')) => self.options_of(scanner)?,
            (Field::StreamOptions, Some(b'{')) => self.stream_options_of(scanner)?,
            (Field::Messages | Field::Input | Field::Prompt, Some(b'[')) => {
                Kind::List(scanner.list(|scanner| conversation(scanner, &mut self.images))?)
            }
            _ => scanner.pass()?.kind,
        };
        let passed = Passed { kind, span: Span::new(start, scanner.at()) };
        let member = Member::new(key, passed);
        self.fits(field, kind, member)?;
        match (field, kind) {
            (Field::Images, Kind::List(true)) => self.images.are_in(member.value),
            (Field::Tools | Field::Functions, Kind::List(true)) => self.tools = true,
            _ => {}
        }
        self.fields.push((field, member));
        Ok(())
    }

    fn fits(&self, field: Field, kind: Kind, member: Member) -> Result<(), Reject> {
        let fits = match (field.shape(), kind) {
            (_, Kind::Null)
            | (Shape::Text, Kind::Text)
            | (Shape::Flag, Kind::Flag)
            | (Shape::Duration, Kind::Text)
            | (Shape::Object, Kind::Object(_))
            | (Shape::List, Kind::List(_))
            | (Shape::Conversation, Kind::List(_) | Kind::Text) => true,
            (Shape::Number | Shape::Duration, Kind::Number) => self.is_finite(member),
            _ => false,
        };
        if fits { Ok(()) } else { Err(Reject::BadBody(misfit(field))) }
    }

    fn is_finite(&self, member: Member) -> bool {
        self.number(member).is_none_or(f64::is_finite)
    }

    fn options_of(&mut self, scanner: &mut Scanner<'_>) -> Result<Kind, Reject> {
        let mut keys = Keys::default();
        let any = scanner.object(|scanner, key| {
            let name = scan::decode(scanner.written(key));
            keys.add(&name)?;
            if !OPTIONS.contains(&&*name) && OPTIONS.iter().any(|it| scan::is_folded(&name, it)) {
                return Err(OTHER_CASE);
            }
            let option = Member::new(key, scanner.pass()?);
            if !self.is_finite(option) {
                return Err(Reject::BadBody("a number in `options` is too large"));
            }
            self.options.push(option);
            Ok(())
        })?;
        Ok(Kind::Object(any))
    }

    fn stream_options_of(&mut self, scanner: &mut Scanner<'_>) -> Result<Kind, Reject> {
        let mut keys = Keys::default();
        let any = scanner.object(|scanner, key| {
            let name = scan::decode(scanner.written(key));
            keys.add(&name)?;
            let is_it = scan::is_folded(&name, "include_usage");
            if is_it && name != "include_usage" {
                return Err(OTHER_CASE);
            }
            let passed = scanner.pass()?;
            if is_it {
                if !matches!(passed.kind, Kind::Flag | Kind::Null) {
                    return Err(Reject::BadBody("`stream_options.include_usage` is true or false"));
                }
                self.include_usage = Some(Member::new(key, passed));
            }
            Ok(())
        })?;
        Ok(Kind::Object(any))
    }
}

impl Member {
    fn new(name: Span, passed: Passed) -> Self {
        let whole = Span::new(name.range().start.saturating_sub(1), passed.span.range().end);
        Self { name, value: passed.span, whole }
    }
}

impl Images {
    fn are_in(&mut self, value: Span) {
        self.any = true;
        self.bytes += value.range().len() as u64;
    }
}

/// Looks for images where the endpoints would: in a message or an item, and in the parts that it
/// has for a content; llama.cpp's prompts may have some too [llama.cpp tools/server, `multimodal_data`].
fn conversation(scanner: &mut Scanner<'_>, images: &mut Images) -> Result<(), Reject> {
    match scanner.peek() {
        Some(b'[') => scanner.list(|scanner| conversation(scanner, images)).map(drop),
        Some(b'{') => {
            // Of an image of Anthropic's, which says only beside it that it is one.
            let (mut is_one, mut source) = (false, Span::default());
            scanner.object(|scanner, key| {
                let name = scan::decode(scanner.written(key));
                let is = |it| scan::is_folded(&name, it);
                if is("content") || is("output") {
                    return conversation(scanner, images);
                }
                let Passed { kind, span } = scanner.pass()?;
                match kind {
                    Kind::List(true) | Kind::Object(true)
                        if is("images") || is("image_url") || is("multimodal_data") =>
                    {
                        images.are_in(span);
                    }
                    Kind::Object(true) if is("source") => source = span,
                    Kind::Text if is("image_url") => images.are_in(span),
                    Kind::Text if is("type") => is_one |= is_image(scanner.written(span)),
                    Kind::Null
                    | Kind::Flag
                    | Kind::Number
                    | Kind::Text
                    | Kind::List(_)
                    | Kind::Object(_) => {}
                }
                Ok(())
            })?;
            if is_one {
                images.are_in(source);
            }
            Ok(())
        }
        _ => scanner.pass().map(drop),
    }
}

/// The types of the parts that hold an image, of the three dialects.
fn is_image(quoted: &str) -> bool {
    let kind = scan::decode(quoted.trim_matches('"'));
    matches!(&*kind, "image" | "image_url" | "input_image")
}

fn misfit(field: Field) -> &'static str {
    match field {
        Field::Model => "`model` must be a string",
        Field::Name => "`name` must be a string",
        Field::From => "`from` must be a string",
        Field::RemoteHost => "`remote_host` must be a string",
        Field::Files => "`files` must be an object",
        Field::Adapters => "`adapters` must be an object",
        Field::DraftFiles => "`draft_files` must be an object",
        Field::Source => "`source` must be a string",
        Field::Destination => "`destination` must be a string",
        Field::Stream => "`stream` must be true or false",
        Field::StreamOptions => "`stream_options` must be an object",
        Field::KeepAlive => "`keep_alive` must be a number of seconds, or a string such as \"5m\"",
        Field::Options => "`options` must be an object",
        Field::Shift => "`shift` must be true or false",
        Field::MaxTokens => "`max_tokens` must be a number",
        Field::MaxCompletionTokens => "`max_completion_tokens` must be a number",
        Field::MaxOutputTokens => "`max_output_tokens` must be a number",
        Field::N => "`n` must be a number",
        Field::Images => "`images` must be a list",
        Field::Tools => "`tools` must be a list",
        Field::Functions => "`functions` must be a list",
        Field::NPredict => "`n_predict` must be a number",
        Field::NCmpl => "`n_cmpl` must be a number",
        Field::Messages => "`messages` must be a list",
        Field::Prompt => "`prompt` must be a string or a list",
        Field::Input => "`input` must be a string or a list",
        Field::ServiceTier => "`service_tier` must be a string",
    }
}

/// The keys of one object, to find one that stands there twice.
struct Keys {
    hashes: [u64; MAX_MEMBERS],
    count: usize,
}

impl Default for Keys {
    fn default() -> Self {
        Self { hashes: [0; MAX_MEMBERS], count: 0 }
    }
}

impl Keys {
    /// By their hashes alone: who sends two different keys with one hash has chosen them so.
    fn add(&mut self, name: &str) -> Result<(), Reject> {
        let hash = scan::fold_hash(name);
        if self.hashes.iter().take(self.count).any(|known| *known == hash) {
            return Err(AMBIGUOUS_KEY);
        }
        *self.hashes.get_mut(self.count).ok_or(MANY_MEMBERS)? = hash;
        self.count += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
