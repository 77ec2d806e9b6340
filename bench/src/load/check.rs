//! Whether an answer's body is the one that was to come.

use anyhow::{Context, bail, ensure};

use super::Tally;
use crate::script::Chat;

/// What an answer must be.
#[derive(Debug, Clone)]
pub(crate) enum Want {
    /// This status and these bytes.
    Exact(u16, Vec<u8>),
    /// This status, and this text somewhere in the body.
    Containing(u16, String),
    /// This status, whatever the body.
    Status(u16),
    /// 200 and every line of a streamed chat.
    Stream(Chat),
}

/// How much of the body has been seen.
#[derive(Debug, Default)]
pub(crate) struct Check {
    /// When the request was sent.
    asked: u64,
    at: usize,
    tokens: u64,
    /// A line that has not come whole, or a body that is looked at in the end.
    kept: Vec<u8>,
}

/// Some bytes of a body, when they came, and the status of their answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece<'a> {
    pub(crate) status: u16,
    pub(crate) data: &'a [u8],
    pub(crate) now: u64,
}

/// The longest body that is kept to be looked at.
const KEPT: usize = 64 * 1024;

impl Check {
    pub(crate) fn begin(&mut self, asked: u64) {
        (self.asked, self.at, self.tokens) = (asked, 0, 0);
        self.kept.clear();
    }

    /// Tokens of the answer under way.
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Checks the next bytes of a body.
    ///
    /// # Errors
    /// They are wrong.
    pub(crate) fn take(
        &mut self,
        want: &Want,
        Piece { status, data, now }: Piece<'_>,
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        if want.status() != status {
            // said in the end, with what the body says
            return self.keep(data);
        }
        match want {
            Want::Exact(_, body) => {
                let wanted = body.get(self.at..self.at + data.len());
                ensure!(
                    wanted == Some(data),
                    "a wrong body near byte {}: {}",
                    self.at,
                    String::from_utf8_lossy(data)
                );
                self.at += data.len();
                Ok(())
            }
            Want::Containing(..) => self.keep(data),
            Want::Status(_) => Ok(()),
            Want::Stream(chat) => self.take_lines(*chat, data, now, tally),
        }
    }

    /// Checks that nothing is missing.
    ///
    /// # Errors
    /// Something is, or the status is wrong.
    pub(crate) fn end(&mut self, want: &Want, status: u16) -> anyhow::Result<()> {
        let said = String::from_utf8_lossy(&self.kept);
        ensure!(want.status() == status, "status {status}: {said}");
        match want {
            Want::Exact(_, body) => ensure!(self.at == body.len(), "a body too short"),
            Want::Containing(_, text) => ensure!(said.contains(text), "a wrong body: {said}"),
            Want::Status(_) => {}
            Want::Stream(chat) => {
                let (tokens, of) = (self.tokens, chat.tokens);
                ensure!(tokens == of && said.is_empty(), "a stream of {tokens} tokens, not {of}");
            }
        }
        Ok(())
    }

    fn keep(&mut self, data: &[u8]) -> anyhow::Result<()> {
        self.kept.extend_from_slice(data);
        ensure!(self.kept.len() <= KEPT, "a body too long");
        Ok(())
    }

    fn take_lines(
        &mut self,
        chat: Chat,
        mut data: &[u8],
        now: u64,
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = data.split_at(end + 1);
            data = rest;
            if self.kept.is_empty() {
                self.take_line(chat, line, now, tally)?;
            } else {
                let mut whole = std::mem::take(&mut self.kept);
                whole.extend_from_slice(line);
                self.take_line(chat, &whole, now, tally)?;
                whole.clear();
                self.kept = whole;
            }
        }
        self.keep(data)
    }

    fn take_line(
        &mut self,
        chat: Chat,
        line: &[u8],
        now: u64,
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        self.tokens += 1;
        let number = self.tokens;
        let wrong = || format!("token {number} is wrong: {}", String::from_utf8_lossy(line));
        let times = chat.times(line, number).with_context(wrong)?;
        if times.sent > now || times.got < self.asked {
            bail!("token {number} came before it was sent");
        }
        tally.tokens += 1;
        tally.token.add(now - times.sent);
        if number == 1 {
            tally.first.add(now - times.sent);
            tally.both_ways.add(now - times.sent + (times.got - self.asked));
        }
        if number == chat.tokens {
            tally.last.add(now - times.sent);
        }
        Ok(())
    }
}

impl Want {
    fn status(&self) -> u16 {
        match self {
            Self::Exact(status, _) | Self::Containing(status, _) | Self::Status(status) => *status,
            Self::Stream(_) => 200,
        }
    }
}
