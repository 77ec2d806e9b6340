//! JSON as it passes: the few members that say what an answer came to, however it is cut in pieces.
//!
//! Nothing is kept of it but a key, a number or a short word at a time. What matters are members
//! at their one place: a text that looks like them stays a text.

use super::frame::Frame;

/// A key, a number or a word; no longer one means anything here.
const LONGEST_WORD: usize = 32;
/// Values within values that are looked into.
const MOST_OPEN: usize = 8;

/// A value that is looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Top,
    /// `response`, of the events of `/v1/responses`.
    Response,
    /// `message`, of `/api/chat` and of the events of `/v1/messages`.
    Message,
    Usage,
    PromptDetails,
    CompletionDetails,
    /// llama.cpp's own account of its time.
    Timings,
    Choices,
    Choice,
    /// What a choice or an event adds, or the whole message of a choice.
    Delta,
    ToolCalls,
    /// `output`, of `/v1/responses`.
    Items,
    Item,
    Parts,
    Part,
}

/// A number that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    // `usage`
    Prompt,
    Completion,
    Cached,
    Reasoning,
    /// Anthropic counts these beside the prompt, not within it.
    CacheRead,
    CacheWritten,
    // Ollama's own
    EvalPrompt,
    Eval,
    Load,
    Prefill,
    Generation,
    Total,
    // llama.cpp's `timings`
    TimedPrompt,
    TimedCached,
    TimedCompletion,
    TimedPrefill,
    TimedGeneration,
}

/// What a member says, by its place and its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    Nothing,
    Done,
    Error,
    Kind,
    /// Another in each frame, and of no interest.
    Stamp,
    Count(Number),
    /// What the model wrote.
    Text,
    /// All of what the model wrote, once more or at last.
    WholeText,
    Inner(Place),
    /// What the model wrote, or where that stands.
    TextOrInner(Place),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Where a value begins, or what stands between values.
    Between,
    Key,
    Text,
    /// A number, `true`, `false` or `null`.
    Bare,
    /// The top-level value is over.
    Closed,
}

/// A place in a JSON text that comes in pieces.
#[derive(Debug)]
pub(super) struct Scanner {
    mode: Mode,
    /// Within a string, behind a backslash at the end of a piece.
    escaped: bool,
    /// The next string is a key.
    awaits_key: bool,
    open: [Place; MOST_OPEN],
    depth: usize,
    /// Values within the innermost open one that are passed over.
    skipped: u32,
    says: Says,
    word: [u8; LONGEST_WORD],
    /// One more than fits, where it does not.
    length: usize,
    /// Bytes of the string that is being read.
    text: u64,
    /// Bytes of the frame before this piece.
    passed: usize,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            mode: Mode::Between,
            escaped: false,
            awaits_key: false,
            open: [Place::Top; MOST_OPEN],
            depth: 0,
            skipped: 0,
            says: Says::Inner(Place::Top),
            word: [0; LONGEST_WORD],
            length: 0,
            text: 0,
            passed: 0,
        }
    }
}

impl Scanner {
    /// Begins a new text.
    pub(super) fn reset(&mut self) {
        self.mode = Mode::Between;
        self.escaped = false;
        self.awaits_key = false;
        self.depth = 0;
        self.skipped = 0;
        self.says = Says::Inner(Place::Top);
        self.passed = 0;
    }

    /// Bytes of the text so far.
    pub(super) fn passed(&self) -> usize {
        self.passed
    }

    /// The top-level value has begun and is not over.
    pub(super) fn is_within(&self) -> bool {
        self.passed > 0 && !self.is_closed()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.mode == Mode::Closed
    }

    /// Reads on, to the end of the piece or of the top-level value; says how far it came.
    pub(super) fn read(&mut self, piece: &[u8], frame: &mut Frame) -> usize {
        let mut at = 0;
        while let Some(rest) = piece.get(at..).filter(|rest| !rest.is_empty()) {
            let here = self.passed + at;
            at += match self.mode {
                Mode::Closed => break,
                Mode::Between if self.skipped > 0 => self.skip(rest),
                Mode::Between => self.between(rest, here, frame),
                Mode::Key | Mode::Text => self.string(rest, here, frame),
                Mode::Bare => self.bare(rest, here, frame),
            };
        }
        self.passed += at;
        at
    }

    /// Within values that are passed over, only strings and brackets count.
    fn skip(&mut self, rest: &[u8]) -> usize {
        const STRIDE: usize = 32;
        let is_plain = |b: &u8| (*b != b'"') & (*b | 0x20 != b'{') & (*b | 0x20 != b'}');
        let strides = rest.chunks_exact(STRIDE);
        // A whole stride is looked at, because that is what the processor does many bytes at once.
        let plain = strides.take_while(|it| it.iter().fold(true, |all, b| all & is_plain(b)));
        let at = plain.count() * STRIDE;
        let tail = rest.get(at..).unwrap_or_default();
        let Some(found) = tail.iter().position(|b| !is_plain(b)) else { return rest.len() };
        match tail.get(found) {
            Some(b'"') => self.begin_string(Mode::Text, Says::Nothing),
            Some(b'{' | b'[') => self.skipped = self.skipped.saturating_add(1),
            _ => {
                self.skipped -= 1;
                if self.skipped == 0 {
                    self.value_over();
                }
            }
        }
        at + found + 1
    }

    fn between(&mut self, rest: &[u8], here: usize, frame: &mut Frame) -> usize {
        match rest.first() {
            Some(b'"') if self.awaits_key => self.begin_string(Mode::Key, Says::Nothing),
            Some(b'"') => {
                frame.begins_value(self.place());
                self.begin_string(Mode::Text, self.says);
            }
            Some(b'{') => self.enter(false, frame),
            Some(b'[') => self.enter(true, frame),
            Some(b'}' | b']') => self.leave(frame),
            Some(b',') => {
                self.awaits_key = self.place().is_some_and(|place| !place.is_list());
                self.says = self.place().map_or(Says::Nothing, Place::element);
            }
            Some(b':') => self.awaits_key = false,
            None | Some(b' ' | b'\t' | b'\r' | b'\n') => {}
            Some(_) => {
                frame.begins_value(self.place());
                self.mode = Mode::Bare;
                self.length = 0;
                return self.bare(rest, here, frame);
            }
        }
        1
    }

    fn begin_string(&mut self, mode: Mode, says: Says) {
        self.mode = mode;
        self.says = says;
        self.length = 0;
        self.text = 0;
    }

    fn string(&mut self, rest: &[u8], here: usize, frame: &mut Frame) -> usize {
        if self.escaped {
            self.escaped = false;
            self.take(rest.get(..1).unwrap_or_default());
            return 1;
        }
        let end = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
        self.take(rest.get(..end).unwrap_or_default());
        match rest.get(end) {
            Some(b'"') => self.string_over(here + end, frame),
            Some(_) => {
                self.take(b"\\");
                self.escaped = true;
            }
            None => return end,
        }
        end + 1
    }

    /// Keeps what is short.
    fn take(&mut self, bytes: &[u8]) {
        self.text += bytes.len() as u64;
        if self.mode == Mode::Text && self.says != Says::Kind {
            return;
        }
        match self.word.get_mut(self.length..self.length + bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.length += bytes.len();
            }
            None => self.length = LONGEST_WORD + 1,
        }
    }

    fn word(&self) -> &[u8] {
        self.word.get(..self.length).unwrap_or_default()
    }

    fn string_over(&mut self, end: usize, frame: &mut Frame) {
        if self.mode == Mode::Key {
            self.mode = Mode::Between;
            self.awaits_key = false;
            self.says = self.place().map_or(Says::Nothing, |place| place.says(self.word()));
            return;
        }
        let begin = usize::try_from(self.text).map_or(0, |text| end.saturating_sub(text));
        match self.says {
            Says::Text | Says::TextOrInner(_) => frame.text(begin, end),
            Says::Stamp => frame.stamp(begin, end, true),
            Says::Kind => frame.is_of_kind(self.word()),
            Says::WholeText => frame.text_bytes += self.text,
            says @ (Says::Nothing | Says::Done | Says::Error | Says::Count(_) | Says::Inner(_)) => {
                frame.word(says, b"\"")
            }
        }
        self.mode = Mode::Between;
        self.value_over();
    }

    fn bare(&mut self, rest: &[u8], here: usize, frame: &mut Frame) -> usize {
        let is_over = |b: &u8| matches!(b, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t');
        let end = rest.iter().position(is_over);
        let word = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        self.take(word);
        if end.is_some() {
            let end = here + word.len();
            if self.says == Says::Stamp && self.length <= LONGEST_WORD {
                frame.stamp(end - self.length, end, false);
            }
            frame.word(self.says, self.word());
            self.mode = Mode::Between;
            self.value_over();
        }
        word.len()
    }

    fn enter(&mut self, is_list: bool, frame: &mut Frame) {
        frame.begins_value(self.place());
        let place = self.says.inner().filter(|place| place.is_list() == is_list);
        let slot = self.open.get_mut(self.depth);
        let Some((place, slot)) = place.zip(slot) else {
            frame.word(self.says, b"{");
            self.skipped = 1;
            return;
        };
        *slot = place;
        self.depth += 1;
        self.awaits_key = !is_list;
        self.says = place.element();
        frame.enters(place);
    }

    fn leave(&mut self, frame: &mut Frame) {
        frame.leaves(self.place());
        self.depth = self.depth.saturating_sub(1);
        self.value_over();
    }

    fn value_over(&mut self) {
        self.says = Says::Nothing;
        if self.depth == 0 && self.skipped == 0 {
            self.mode = Mode::Closed;
        }
    }

    fn place(&self) -> Option<Place> {
        self.open.get(self.depth.checked_sub(1)?).copied()
    }
}

impl Says {
    fn inner(self) -> Option<Place> {
        match self {
            Self::Inner(place) | Self::TextOrInner(place) => Some(place),
            Self::Nothing
            | Self::Done
            | Self::Error
            | Self::Kind
            | Self::Stamp
            | Self::Count(_)
            | Self::Text
            | Self::WholeText => None,
        }
    }
}

impl Place {
    fn is_list(self) -> bool {
        matches!(self, Self::Choices | Self::ToolCalls | Self::Items | Self::Parts)
    }

    /// What an element of a list says.
    fn element(self) -> Says {
        match self {
            Self::Choices => Says::Inner(Self::Choice),
            Self::Items => Says::Inner(Self::Item),
            Self::Parts => Says::Inner(Self::Part),
            Self::ToolCalls
            | Self::Top
            | Self::Response
            | Self::Message
            | Self::Usage
            | Self::PromptDetails
            | Self::CompletionDetails
            | Self::Timings
            | Self::Choice
            | Self::Delta
            | Self::Item
            | Self::Part => Says::Nothing,
        }
    }

    /// What a member says.
    fn says(self, key: &[u8]) -> Says {
        use Number::{
            CacheRead, CacheWritten, Cached, Completion, Prompt, Reasoning, TimedCached,
            TimedCompletion, TimedGeneration, TimedPrefill, TimedPrompt,
        };
        match (self, key) {
            (Self::Top, _) => Self::top_says(key),
            (Self::Response | Self::Message, b"usage") => Says::Inner(Self::Usage),
            (Self::Usage, b"prompt_tokens" | b"input_tokens") => Says::Count(Prompt),
            (Self::Usage, b"completion_tokens" | b"output_tokens") => Says::Count(Completion),
            (Self::Usage, b"cache_read_input_tokens") => Says::Count(CacheRead),
            (Self::Usage, b"cache_creation_input_tokens") => Says::Count(CacheWritten),
            (Self::Usage, b"prompt_tokens_details" | b"input_tokens_details") => {
                Says::Inner(Self::PromptDetails)
            }
            (Self::Usage, b"completion_tokens_details" | b"output_tokens_details") => {
                Says::Inner(Self::CompletionDetails)
            }
            (Self::PromptDetails, b"cached_tokens") => Says::Count(Cached),
            (Self::CompletionDetails, b"reasoning_tokens") => Says::Count(Reasoning),
            (Self::Timings, b"prompt_n") => Says::Count(TimedPrompt),
            (Self::Timings, b"cache_n") => Says::Count(TimedCached),
            (Self::Timings, b"predicted_n") => Says::Count(TimedCompletion),
            (Self::Timings, b"prompt_ms") => Says::Count(TimedPrefill),
            (Self::Timings, b"predicted_ms") => Says::Count(TimedGeneration),
            (Self::Choice, b"delta" | b"message") => Says::Inner(Self::Delta),
            (Self::Choice | Self::Part | Self::Delta, b"text") => Says::Text,
            (Self::Message | Self::Delta | Self::Item, b"content") => {
                Says::TextOrInner(Self::Parts)
            }
            (Self::Message | Self::Delta | Self::Part, b"thinking") => Says::Text,
            (Self::Delta, b"reasoning" | b"reasoning_content" | b"refusal" | b"partial_json") => {
                Says::Text
            }
            (Self::Message | Self::Delta, b"tool_calls") => Says::Inner(Self::ToolCalls),
            _ => Says::Nothing,
        }
    }

    fn top_says(key: &[u8]) -> Says {
        use Number::{Eval, EvalPrompt, Generation, Load, Prefill, Total};
        match key {
            b"done" => Says::Done,
            b"error" => Says::Error,
            b"type" => Says::Kind,
            b"created_at" | b"created" | b"sequence_number" => Says::Stamp,
            b"prompt_eval_count" => Says::Count(EvalPrompt),
            b"eval_count" => Says::Count(Eval),
            b"load_duration" => Says::Count(Load),
            b"prompt_eval_duration" => Says::Count(Prefill),
            b"eval_duration" => Says::Count(Generation),
            b"total_duration" => Says::Count(Total),
            b"usage" => Says::Inner(Self::Usage),
            b"timings" => Says::Inner(Self::Timings),
            b"choices" => Says::Inner(Self::Choices),
            b"response" => Says::TextOrInner(Self::Response),
            b"message" => Says::Inner(Self::Message),
            b"delta" => Says::TextOrInner(Self::Delta),
            b"content" => Says::TextOrInner(Self::Parts),
            b"output" => Says::Inner(Self::Items),
            b"thinking" => Says::Text,
            b"text" => Says::WholeText,
            _ => Says::Nothing,
        }
    }
}
