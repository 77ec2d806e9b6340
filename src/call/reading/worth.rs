//! What a request may come to, as far as its body tells.

use std::fmt::Write as _;

use super::{BYTES_A_TOKEN, Reading};
use crate::api::{Asked, Field, RUNNER_OPTIONS};

/// A report of options, and one value in it.
const LONGEST_OPTIONS: usize = 200;
const LONGEST_OPTION: usize = 20;

impl Reading {
    /// How long the body is without its images: about what the model has to read. 0 for a form.
    #[must_use]
    pub fn prompt_bytes(&self) -> u64 {
        let Some(found) = self.found().filter(|found| !found.object.is_empty()) else { return 0 };
        (found.body.len() as u64).saturating_sub(found.images.bytes)
    }

    /// Whether a model has something to read; without that Ollama loads or unloads it, and no more
    /// [server/routes.go GenerateHandler, ChatHandler].
    #[must_use]
    pub fn has_prompt(&self, asked: &Asked) -> bool {
        let mut fields = [Field::Prompt, Field::Messages].into_iter();
        let Some(field) = fields.find(|it| asked.takes(*it)) else { return true };
        let written = self.field(field).map_or("", |it| self.written(it.value));
        match written.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            Some(items) => !items.trim_ascii().is_empty(),
            None => !matches!(written, "" | "null" | "\"\""),
        }
    }

    /// About so many tokens are the prompt.
    #[must_use]
    pub fn prompt_estimate(&self) -> u64 {
        self.prompt_bytes() / BYTES_A_TOKEN
    }

    /// The most tokens that the answer may have, over all answers, if the caller set a bound.
    #[must_use]
    pub fn asked_maximum(&self) -> Option<u64> {
        // Zero and less stand for no bound; a fraction is cut off, as Ollama does.
        let bound = |member| self.number(member).filter(|it| *it >= 1.0).map(|it| it as u64);
        let fields =
            [Field::MaxTokens, Field::MaxCompletionTokens, Field::MaxOutputTokens, Field::NPredict];
        let most = fields.into_iter().filter_map(|field| bound(self.field(field)?)).max();
        let most = most.or_else(|| bound(self.option("num_predict")?))?;
        let answers = [Field::N, Field::NCmpl].into_iter();
        let answers = answers.filter_map(|field| bound(self.field(field)?)).max().unwrap_or(1);
        Some(most.saturating_mul(answers))
    }

    /// What was asked of the runner that may load the model anew: `num_ctx=8192 num_gpu=0`.
    #[must_use]
    pub fn runner_options(&self) -> Option<Box<str>> {
        let shift = self.field(Field::Shift).map(|it| ("shift", it));
        if self.options().is_empty() && shift.is_none() {
            return None;
        }
        let options = RUNNER_OPTIONS.into_iter();
        let options = options.filter_map(|name| Some((name, self.option(name)?))).chain(shift);
        let mut text = String::new();
        for (name, option) in options {
            let value = self.written(option.value);
            let is_plain = self.number(option).is_some() || self.flag(option).is_some();
            let fits = text.len() + name.len() + value.len() + 2 <= LONGEST_OPTIONS;
            if is_plain && value.len() <= LONGEST_OPTION && fits {
                let blank = if text.is_empty() { "" } else { " " };
                // Writing into a String cannot fail.
                let _ = write!(text, "{blank}{name}={value}");
            }
        }
        Some(text.into_boxed_str()).filter(|text| !text.is_empty())
    }
}
