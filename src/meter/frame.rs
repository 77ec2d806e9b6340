//! What one frame of an answer says: a line, an event's data, or a whole body.

use super::scan::{Number, Place, Says};

/// Another count is nonsense; sums of what is taken cannot overflow.
const MOST: u64 = 1 << 52;
const MOST_TOKENS: u64 = u32::MAX as u64;
/// Places in a frame that are filled anew in each of its kind.
pub(super) const MOST_HOLES: usize = 3;

/// A number that an answer may tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count(u64);

impl Count {
    pub(super) const ABSENT: Self = Self(u64::MAX);
    /// Negative, a text, no whole number, or larger than anything can be.
    const BAD: Self = Self(u64::MAX - 1);

    pub(super) fn told(self) -> Option<u64> {
        Some(self.0).filter(|count| *count <= MOST)
    }

    pub(super) fn is_absent(self) -> bool {
        self == Self::ABSENT
    }

    fn of(number: Number, word: &[u8]) -> Self {
        let (count, most) = match number {
            Number::Load | Number::Prefill | Number::Generation | Number::Total => {
                (whole(word), MOST)
            }
            Number::TimedPrefill | Number::TimedGeneration => (nanoseconds(word), MOST),
            Number::Prompt
            | Number::Completion
            | Number::Cached
            | Number::Reasoning
            | Number::CacheRead
            | Number::CacheWritten
            | Number::EvalPrompt
            | Number::Eval
            | Number::TimedPrompt
            | Number::TimedCached
            | Number::TimedCompletion => (whole(word), MOST_TOKENS),
        };
        count.filter(|count| *count <= most).map_or(Self::BAD, Self)
    }
}

/// Of digits alone.
fn whole(word: &[u8]) -> Option<u64> {
    let add = |number: u64, digit: &u8| {
        let value = digit.checked_sub(b'0').filter(|value| *value < 10)?;
        number.checked_mul(10)?.checked_add(value.into())
    };
    word.iter().try_fold(0, add).filter(|_| !word.is_empty())
}

/// Of milliseconds with a fraction.
fn nanoseconds(word: &[u8]) -> Option<u64> {
    let milliseconds: f64 = std::str::from_utf8(word).ok()?.parse().ok()?;
    let duration = std::time::Duration::try_from_secs_f64(milliseconds / 1000.0).ok()?;
    u64::try_from(duration.as_nanos()).ok()
}

/// The numbers of a frame, or of all frames so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers([Count; Number::COUNT]);

impl Default for Numbers {
    fn default() -> Self {
        Self([Count::ABSENT; Number::COUNT])
    }
}

impl Numbers {
    pub(super) fn get(&self, number: Number) -> Count {
        self.0.get(number as usize).copied().unwrap_or(Count::ABSENT)
    }

    fn set(&mut self, number: Number, count: Count) {
        if let Some(slot) = self.0.get_mut(number as usize) {
            *slot = count;
        }
    }

    /// Takes these over; with `keeps`, those that are absent stay as they were.
    pub(super) fn take(&mut self, from: &Self, numbers: &[Number], keeps: bool) {
        for number in numbers {
            let count = from.get(*number);
            if !(keeps && count.is_absent()) {
                self.set(*number, count);
            }
        }
    }
}

/// What an event calls itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kind {
    #[default]
    Other,
    /// The first of a message: what its usage says is a guess.
    Start,
    /// The last of a message or response.
    End,
}

/// The list of choices of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choices {
    Absent,
    /// It has begun, and nothing in it.
    Begun,
    Empty,
    Any,
}

/// A place in a frame that is filled anew in each of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hole {
    pub(super) begin: usize,
    pub(super) end: usize,
    pub(super) filling: Filling,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filling {
    /// What the model wrote.
    Text,
    /// A string that nobody counts.
    Stamp,
    Digits,
}

impl Hole {
    pub(super) const NONE: Self = Self { begin: 0, end: 0, filling: Filling::Digits };
}

/// What a frame has said so far.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) numbers: Numbers,
    pub(super) has_usage: bool,
    pub(super) has_timings: bool,
    pub(super) is_done: bool,
    pub(super) is_error: bool,
    pub(super) kind: Kind,
    pub(super) choices: Choices,
    /// Whether it is a usage and no choices, as soon as that is known; what comes later, in a
    /// damaged frame, changes it no more.
    pub(super) is_usage_alone: Option<bool>,
    /// How many texts of the model, empty ones aside; a call of a tool is one.
    pub(super) texts: u32,
    pub(super) text_bytes: u64,
    holes: [Hole; MOST_HOLES],
    /// One more than fit, where they do not.
    hole_count: usize,
}

impl Default for Frame {
    fn default() -> Self {
        Self {
            numbers: Numbers::default(),
            has_usage: false,
            has_timings: false,
            is_done: false,
            is_error: false,
            kind: Kind::Other,
            choices: Choices::Absent,
            is_usage_alone: None,
            texts: 0,
            text_bytes: 0,
            holes: [Hole::NONE; MOST_HOLES],
            hole_count: 0,
        }
    }
}

impl Frame {
    /// Where it differs from the next, if it says nothing but one text.
    pub(super) fn holes(&self) -> Option<&[Hole]> {
        let says_more = self.has_usage
            || self.has_timings
            || self.is_done
            || self.is_error
            || self.kind != Kind::Other;
        let holes = self.holes.get(..self.hole_count)?;
        let texts = holes.iter().filter(|hole| hole.filling == Filling::Text).count();
        (!says_more && self.texts == 1 && texts == 1).then_some(holes)
    }

    pub(super) fn text(&mut self, begin: usize, end: usize) {
        if begin < end {
            self.texts = self.texts.saturating_add(1);
            self.text_bytes += (end - begin) as u64;
            self.hole(Hole { begin, end, filling: Filling::Text });
        }
    }

    pub(super) fn stamp(&mut self, begin: usize, end: usize, is_quoted: bool) {
        let filling = if is_quoted { Filling::Stamp } else { Filling::Digits };
        self.hole(Hole { begin, end, filling });
    }

    fn hole(&mut self, hole: Hole) {
        match self.holes.get_mut(self.hole_count) {
            Some(slot) => {
                *slot = hole;
                self.hole_count += 1;
            }
            None => self.hole_count = MOST_HOLES + 1,
        }
    }

    pub(super) fn is_of_kind(&mut self, kind: &[u8]) {
        self.kind = match kind {
            b"message_start" => Kind::Start,
            b"message_stop"
            | b"response.completed"
            | b"response.incomplete"
            | b"response.failed"
            | b"error" => Kind::End,
            _ => Kind::Other,
        };
    }

    /// A value begins in this place.
    pub(super) fn begins_value(&mut self, place: Option<Place>) {
        match place {
            Some(Place::Choices) => {
                self.choices = Choices::Any;
                self.is_usage_alone.get_or_insert(false);
            }
            Some(Place::ToolCalls) => self.texts = self.texts.saturating_add(1),
            Some(_) | None => {}
        }
    }

    /// Of two members with one name the last counts.
    pub(super) fn enters(&mut self, place: Place) {
        match place {
            Place::Usage => {
                self.has_usage = true;
                self.numbers.take(&Numbers::default(), &Number::USAGE, false);
                self.may_be_usage_alone();
            }
            Place::PromptDetails => self.numbers.set(Number::Cached, Count::ABSENT),
            Place::CompletionDetails => self.numbers.set(Number::Reasoning, Count::ABSENT),
            Place::Timings => {
                self.has_timings = true;
                self.numbers.take(&Numbers::default(), &Number::TIMINGS, false);
            }
            Place::Choices => self.choices = Choices::Begun,
            Place::Top
            | Place::Response
            | Place::Message
            | Place::Choice
            | Place::Delta
            | Place::ToolCalls
            | Place::Items
            | Place::Item
            | Place::Parts
            | Place::Part => {}
        }
    }

    pub(super) fn leaves(&mut self, place: Option<Place>) {
        if place == Some(Place::Choices) && self.choices == Choices::Begun {
            self.choices = Choices::Empty;
            self.may_be_usage_alone();
        }
    }

    fn may_be_usage_alone(&mut self) {
        if self.has_usage && self.choices == Choices::Empty {
            self.is_usage_alone.get_or_insert(true);
        }
    }

    /// A value that is not looked into. Of a string or another container only its first byte is told.
    pub(super) fn word(&mut self, says: Says, word: &[u8]) {
        match says {
            Says::Done => self.is_done = word == b"true",
            Says::Error => self.is_error = word != b"null",
            Says::Count(number) if word == b"null" => self.numbers.set(number, Count::ABSENT),
            Says::Count(number) => self.numbers.set(number, Count::of(number, word)),
            Says::Inner(Place::Usage) => self.has_usage = false,
            Says::Inner(Place::Timings) => self.has_timings = false,
            Says::Inner(Place::PromptDetails) => self.numbers.set(Number::Cached, Count::ABSENT),
            Says::Inner(Place::CompletionDetails) => {
                self.numbers.set(Number::Reasoning, Count::ABSENT);
            }
            Says::Inner(Place::Choices) => self.choices = Choices::Absent,
            Says::Nothing
            | Says::Kind
            | Says::Stamp
            | Says::Text
            | Says::WholeText
            | Says::Inner(_)
            | Says::TextOrInner(_) => {}
        }
    }
}

impl Number {
    const COUNT: usize = 17;

    pub(super) const USAGE: [Self; 6] = [
        Self::Prompt,
        Self::Completion,
        Self::Cached,
        Self::Reasoning,
        Self::CacheRead,
        Self::CacheWritten,
    ];

    pub(super) const OLLAMA: [Self; 6] =
        [Self::EvalPrompt, Self::Eval, Self::Load, Self::Prefill, Self::Generation, Self::Total];

    pub(super) const TIMINGS: [Self; 5] = [
        Self::TimedPrompt,
        Self::TimedCached,
        Self::TimedCompletion,
        Self::TimedPrefill,
        Self::TimedGeneration,
    ];
}
