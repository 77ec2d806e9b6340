//! Counts tokens from an answer as it passes, in every dialect, keeping none of it.

use std::time::Duration;

use super::events::{Events, What};
use super::frame::{Choices, Frame, Kind, Numbers};
use super::scan::{Number, Scanner};
use super::template::Template;
use crate::call::reading::BYTES_A_TOKEN;
use crate::store::Usage;

const BYTE_ORDER_MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// In which form an answer says what it came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    framing: Framing,
    dialect: Dialect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// An object a line.
    Lines,
    Events,
    /// One object, on however many lines.
    Whole,
    /// Words, and nothing about them.
    Plain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Ollama,
    OpenAi,
    Responses,
    Messages,
    /// A prompt and no completion.
    Embeddings,
}

impl Counts {
    /// How the answer to this operation counts, by its status and its `Content-Type`; `None` where
    /// there is nothing to count.
    #[must_use]
    pub fn of(operation: &str, status: u16, content_type: &[u8]) -> Option<Self> {
        let dialect = match operation {
            "generate" | "chat" => Dialect::Ollama,
            "chat_completions" | "completions" | "transcriptions" => Dialect::OpenAi,
            "responses" => Dialect::Responses,
            "messages" => Dialect::Messages,
            "embed" | "embeddings" | "v1_embeddings" => Dialect::Embeddings,
            _ => return None,
        };
        if !(200..300).contains(&status) {
            return None;
        }
        let media_type = content_type.split(|b| *b == b';').next().unwrap_or_default();
        let is = |it: &str| media_type.trim_ascii().eq_ignore_ascii_case(it.as_bytes());
        let framing = if is("application/x-ndjson") {
            Framing::Lines
        } else if is("text/event-stream") {
            Framing::Events
        } else if is("application/json") {
            Framing::Whole
        } else {
            // Subtitles, HTML of something between, or nothing said: a model worked for it all the same.
            Framing::Plain
        };
        Some(Self { framing, dialect })
    }

    /// The same of an answer that cannot be read: only its length says something.
    #[must_use]
    pub fn by_length(self) -> Self {
        Self { framing: Framing::Plain, ..self }
    }
}

/// Reads one answer.
#[derive(Debug)]
pub struct Reader {
    counts: Counts,
    /// Of the prompt, where the answer does not tell.
    prompt_estimate: u64,
    /// Bytes of a byte order mark that have come; all three, where none can come any more.
    mark: usize,
    events: Events,
    /// The next byte begins a line, or an event.
    at_start: bool,
    /// A line or event has been learnt, and the next byte may begin one that is like it.
    expects_usual: bool,
    scanner: Scanner,
    /// What the frame under way has said.
    frame: Frame,
    template: Template,
    /// What all frames have told.
    numbers: Numbers,
    /// Frames with a text of the model.
    chunks: u64,
    text_bytes: u64,
    has_ended: bool,
    is_settled: bool,
}

impl Reader {
    /// `prompt_estimate`: tokens of the prompt, where the answer does not tell.
    #[must_use]
    pub fn new(counts: Counts, prompt_estimate: u64) -> Self {
        Self {
            counts,
            prompt_estimate,
            mark: 0,
            events: Events::default(),
            at_start: true,
            expects_usual: false,
            scanner: Scanner::default(),
            frame: Frame::default(),
            template: Template::default(),
            numbers: Numbers::default(),
            chunks: 0,
            text_bytes: 0,
            has_ended: false,
            is_settled: false,
        }
    }

    /// The first token of a stream has been seen. An answer in one piece never begins.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.chunks > 0 && matches!(self.counts.framing, Framing::Lines | Framing::Events)
    }

    /// Tokens so far, or about as many.
    #[must_use]
    pub fn so_far(&self) -> u64 {
        self.produced()
    }

    /// The answer is over, as its dialect says so: what comes now is not counted.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.has_ended
    }

    /// The next bytes of the answer. True if they are a token more and nothing else, as most are.
    #[inline]
    pub fn see(&mut self, piece: &[u8]) -> bool {
        if self.expects_usual && self.template.is(piece) {
            self.chunks += 1;
            return true;
        }
        self.read(piece);
        self.expects_usual = self.at_start
            && self.events.is_at_start()
            && !self.has_ended
            && self.mark == BYTE_ORDER_MARK.len()
            && self.template.is_some();
        false
    }

    fn read(&mut self, piece: &[u8]) {
        let piece = self.behind_mark(piece);
        // Where the event under way begins, if it does so in this piece.
        let mut begin = self.at_start.then_some(0);
        // Mostly that is all of it.
        let mut at = match begin {
            Some(_) if !self.has_ended => self.usual(piece),
            Some(_) | None => 0,
        };
        begin = begin.map(|_| at);
        while let Some(rest) = piece.get(at..).filter(|it| !it.is_empty() && !self.has_ended) {
            at += match self.counts.framing {
                Framing::Lines => self.line(rest),
                Framing::Events => {
                    let event = begin.and_then(|begin| piece.get(begin..));
                    let used = self.event(rest, event.unwrap_or_default());
                    if self.at_start {
                        begin = Some(at + used);
                    }
                    used
                }
                Framing::Whole => self.whole(rest),
                Framing::Plain => {
                    self.text_bytes += rest.len() as u64;
                    rest.len()
                }
            };
        }
    }

    /// What the answer came to, whole or cut short.
    #[must_use]
    pub fn finish(&self) -> Usage {
        let is_ollama = self.counts.dialect == Dialect::Ollama;
        let told = |number| self.numbers.get(number).told();
        let is_absent = |number| self.numbers.get(number).is_absent();
        let is_settled =
            self.is_settled || (self.has_ended && self.counts.dialect == Dialect::OpenAi);
        // Ollama leaves out what is zero: it loaded the model, or unloaded it.
        let is_nothing = is_ollama && is_settled && self.chunks == 0 && is_absent(Number::Eval);
        let mut estimated = !is_settled;
        let mut guess = |count: u64| {
            estimated = true;
            count
        };
        let prompt = match self.told_prompt() {
            Some(prompt) if is_settled || prompt > 0 => prompt,
            None if is_nothing && is_absent(Number::EvalPrompt) => 0,
            Some(_) | None => guess(self.prompt_estimate),
        };
        let completion = match self.told_completion() {
            _ if self.counts.dialect == Dialect::Embeddings => 0,
            Some(completion) if is_settled && (completion > 0 || !self.has_begun()) => completion,
            None if is_nothing => 0,
            told => guess(told.unwrap_or(0).max(self.produced())),
        };
        let cached = told(Number::Cached)
            .or_else(|| told(Number::CacheRead))
            .or_else(|| told(Number::TimedCached));
        let time = |number| told(number).map(Duration::from_nanos);
        Usage {
            prompt,
            completion,
            cached: cached.map(|cached| cached.min(prompt)),
            reasoning: told(Number::Reasoning),
            estimated,
            load: time(Number::Load),
            prefill: time(Number::Prefill).or_else(|| time(Number::TimedPrefill)),
            generation: time(Number::Generation).or_else(|| time(Number::TimedGeneration)),
            total: time(Number::Total),
        }
    }

    fn told_prompt(&self) -> Option<u64> {
        let told = |number| self.numbers.get(number).told();
        let more = |number| told(number).unwrap_or(0);
        // Beside the prompt in Anthropic's dialect alone; LiteLLM has them in OpenAI's too, and within it.
        let is_beside = self.counts.dialect == Dialect::Messages;
        let beside = |number| if is_beside { more(number) } else { 0 };
        told(Number::Prompt)
            .map(|it| it + beside(Number::CacheRead) + beside(Number::CacheWritten))
            .or_else(|| told(Number::EvalPrompt))
            .or_else(|| told(Number::TimedPrompt).map(|it| it + more(Number::TimedCached)))
    }

    fn told_completion(&self) -> Option<u64> {
        [Number::Completion, Number::Eval, Number::TimedCompletion]
            .into_iter()
            .find_map(|number| self.numbers.get(number).told())
    }

    /// What was seen of the completion.
    fn produced(&self) -> u64 {
        match self.counts.framing {
            Framing::Lines | Framing::Events => self.chunks,
            Framing::Whole | Framing::Plain => self.text_bytes.div_ceil(BYTES_A_TOKEN),
        }
    }

    fn behind_mark<'a>(&mut self, mut piece: &'a [u8]) -> &'a [u8] {
        while let Some(expected) = BYTE_ORDER_MARK.get(self.mark) {
            match piece.split_first() {
                Some((byte, rest)) if byte == expected => {
                    self.mark += 1;
                    piece = rest;
                }
                Some(_) => self.mark = BYTE_ORDER_MARK.len(),
                None => break,
            }
        }
        piece
    }

    fn line(&mut self, rest: &[u8]) -> usize {
        let at_start = std::mem::replace(&mut self.at_start, true);
        if at_start && let Some(used) = self.like_the_last(rest) {
            return used;
        }
        let end = memchr::memchr(b'\n', rest);
        let line = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        if at_start {
            self.begin_frame();
        }
        self.json(line);
        self.at_start = end.is_some();
        if at_start && self.at_start && self.scanner.passed() == line.len() {
            self.template.learn(line, 0, &self.frame, b"\n");
        }
        line.len() + usize::from(self.at_start)
    }

    /// `event`: from the beginning of the event under way, where that is in this piece too.
    fn event(&mut self, rest: &[u8], event: &[u8]) -> usize {
        if self.at_start
            && self.events.is_at_start()
            && let Some(used) = self.like_the_last(rest)
        {
            return used;
        }
        let within = self.scanner.is_within();
        // What stands behind a value in its line begins no other, wherever the line is cut.
        let goes_on = within || self.events.is_in_data();
        let (used, what) = self.events.next(rest, within);
        self.at_start = what == What::EventOver;
        match what {
            What::Other => {}
            What::EventOver => self.begin_frame(),
            What::Done => self.has_ended = true,
            What::Data(data) => {
                if !goes_on {
                    self.begin_frame();
                }
                self.json(data);
                let is_whole = !goes_on && used < rest.len();
                if is_whole
                    && self.scanner.passed() == data.len()
                    && let Some(before) = event.len().checked_sub(rest.len())
                {
                    let line = event.get(..before + used).unwrap_or_default();
                    let shift = line.len().saturating_sub(data.len());
                    self.template.learn(line, shift, &self.frame, b"\n\n");
                }
            }
        }
        used
    }

    /// A token more, as most pieces are; or nothing.
    fn usual(&mut self, piece: &[u8]) -> usize {
        let used = self.like_the_last(piece).unwrap_or(0);
        let is_event = used > 0 && self.counts.framing == Framing::Events;
        used + usize::from(is_event && piece.get(used) == Some(&b'\n'))
    }

    /// A line or event that says nothing but another text; with its line break.
    fn like_the_last(&mut self, rest: &[u8]) -> Option<usize> {
        let length = self.template.matches(rest)?;
        let end = match rest.get(length..)? {
            [b'\n', ..] => 1,
            [b'\r', b'\n', ..] => 2,
            _ => return None,
        };
        self.chunks += 1;
        Some(length + end)
    }

    fn whole(&mut self, rest: &[u8]) -> usize {
        if self.scanner.is_closed() {
            self.begin_frame();
        }
        self.json(rest)
    }

    fn begin_frame(&mut self) {
        self.scanner.reset();
        self.frame = Frame::default();
    }

    fn json(&mut self, bytes: &[u8]) -> usize {
        if self.scanner.is_closed() {
            return bytes.len();
        }
        let used = self.scanner.read(bytes, &mut self.frame);
        if self.scanner.is_closed() {
            self.take_frame();
        }
        used
    }

    fn take_frame(&mut self) {
        let frame = &self.frame;
        self.chunks += u64::from(frame.texts > 0);
        self.text_bytes += frame.text_bytes;
        if frame.has_usage {
            // Ollama's first guess of a message stands until the true counts come, one by one.
            let keeps = self.counts.dialect == Dialect::Messages;
            self.numbers.take(&frame.numbers, &Number::USAGE, keeps);
        }
        if frame.has_timings {
            self.numbers.take(&frame.numbers, &Number::TIMINGS, false);
        }
        let is_whole = self.counts.framing == Framing::Whole;
        match self.counts.dialect {
            Dialect::Ollama => {
                if frame.is_done {
                    self.numbers.take(&frame.numbers, &Number::OLLAMA, false);
                    self.is_settled = true;
                }
                self.has_ended |= frame.is_done || frame.is_error;
            }
            Dialect::OpenAi => {
                // The one extra event of a stream, or the whole answer.
                self.is_settled |= frame.has_usage && (is_whole || frame.choices == Choices::Empty);
                self.has_ended |= is_whole;
            }
            Dialect::Responses => {
                self.is_settled |= frame.has_usage && (is_whole || frame.kind == Kind::End);
                self.has_ended |= is_whole || frame.kind == Kind::End;
            }
            Dialect::Messages => {
                self.is_settled |= frame.has_usage && frame.kind != Kind::Start;
                self.has_ended |= is_whole || frame.kind == Kind::End;
            }
            Dialect::Embeddings => {
                self.numbers.take(&frame.numbers, &Number::OLLAMA, false);
                self.is_settled = true;
                self.has_ended |= is_whole;
            }
        }
    }
}

#[cfg(test)]
mod tests;
