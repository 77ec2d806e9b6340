//! What callers ask and the backend answers, byte for byte, and the clock that both read.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Instant;

use crate::peer::MODEL;

/// Nanoseconds since the program began: one clock for the callers and the backend, so that the
/// delay of a token is exact.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The answer to `GET /api/version`.
pub(crate) const VERSION: &str = "{\"version\":\"0.20.0\"}";

/// What a blob's upload goes to.
pub(crate) const BLOB: &str =
    "/api/blobs/sha256:5f3c9a0d5f3c9a0d5f3c9a0d5f3c9a0d5f3c9a0d5f3c9a0d5f3c9a0d5f3c9a0d";

/// What every chat asks.
pub(crate) const QUESTION: &str = "Why is the sky blue?";

/// What every chat that is not streamed is told.
pub(crate) const REPLY: &str = "Because air scatters blue light more than red light.";

/// The body of a chat that is answered at once, as Ollama has it.
pub(crate) fn chat() -> String {
    format!(
        "{{\"model\":\"{MODEL}\",\"messages\":[{{\"role\":\"user\",\"content\":\"{QUESTION}\"}}],\
         \"stream\":false}}"
    )
}

/// The answer to [`chat`].
pub(crate) fn chat_answer() -> String {
    format!(
        "{{\"model\":\"{MODEL}\",\"created_at\":\"{CREATED}\",\"message\":{{\"role\":\"assistant\",\
         \"content\":\"{REPLY}\"}},\"done_reason\":\"stop\",\"done\":true,\
         \"total_duration\":412000000,\"load_duration\":21000000,\"prompt_eval_count\":12,\
         \"prompt_eval_duration\":31000000,\"eval_count\":11,\"eval_duration\":360000000}}"
    )
}

/// The same chat as OpenAI has it.
pub(crate) fn openai_chat() -> String {
    format!(
        "{{\"model\":\"{MODEL}\",\"messages\":[{{\"role\":\"user\",\"content\":\"{QUESTION}\"}}]}}"
    )
}

/// The answer to [`openai_chat`].
pub(crate) fn openai_answer() -> String {
    format!(
        "{{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1767225600,\
         \"model\":\"{MODEL}\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[{{\"index\":0,\
         \"message\":{{\"role\":\"assistant\",\"content\":\"{REPLY}\"}},\"finish_reason\":\"stop\"}}],\
         \"usage\":{{\"prompt_tokens\":12,\"completion_tokens\":11,\"total_tokens\":23}}}}"
    )
}

/// A streamed chat: how many tokens, and how far apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chat {
    pub(crate) tokens: u64,
    /// In microseconds; also from the request to the first token.
    pub(crate) pace: u64,
}

impl Chat {
    pub(crate) fn body(self) -> String {
        format!(
            "{{\"model\":\"{MODEL}\",\"messages\":[{{\"role\":\"user\",\"content\":\"{QUESTION}\"}}],\
             \"stream\":true,\"options\":{{\"num_predict\":{},\"pace\":{}}}}}",
            self.tokens, self.pace
        )
    }

    /// The chat that a body asks for, when it is one of ours to the last byte.
    pub(crate) fn asked(body: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(body).ok()?;
        let (_, options) = text.split_once("\"num_predict\":")?;
        let (tokens, after) = options.split_once(",\"pace\":")?;
        let pace = after.strip_suffix("}}")?;
        let chat = Self { tokens: tokens.parse().ok()?, pace: pace.parse().ok()? };
        (chat.tokens > 0 && chat.body() == text).then_some(chat)
    }

    /// Appends the line of one token, counted from 1; the times are the clock's.
    pub(crate) fn line(self, number: u64, times: Times, to: &mut Vec<u8>) {
        to.extend_from_slice(LINE.as_bytes());
        let Times { sent, got } = times;
        // a Vec takes everything
        drop(write!(to, " t{number:06} {sent:015} {got:015}"));
        if number == self.tokens {
            drop(writeln!(to, "{LAST}{number}}}"));
        } else {
            to.extend_from_slice(MORE.as_bytes());
        }
    }

    /// The times in a line; none when it is not exactly the line of that number.
    pub(crate) fn times(self, line: &[u8], number: u64) -> Option<Times> {
        let (content, end) = line.strip_prefix(LINE.as_bytes())?.split_at_checked(40)?;
        let (found, times) = content.strip_prefix(b" t")?.split_at_checked(6)?;
        let (sent, got) = times.strip_prefix(b" ")?.split_at_checked(15)?;
        let right_end = if number == self.tokens {
            digits(end.strip_prefix(LAST.as_bytes())?.strip_suffix(b"}\n")?)? == number
        } else {
            end == MORE.as_bytes()
        };
        let times = Times { sent: digits(sent)?, got: digits(got.strip_prefix(b" ")?)? };
        (right_end && digits(found)? == number).then_some(times)
    }
}

/// When the backend sent a token, and when it had got the request of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) sent: u64,
    pub(crate) got: u64,
}

const CREATED: &str = "2026-01-01T00:00:00.000000Z";

static LINE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{{\"model\":\"{MODEL}\",\"created_at\":\"{CREATED}\",\"message\":{{\"role\":\"assistant\",\
         \"content\":\""
    )
});
const MORE: &str = "\"},\"done\":false}\n";
const LAST: &str =
    "\"},\"done\":true,\"done_reason\":\"stop\",\"prompt_eval_count\":12,\"eval_count\":";

/// A number of nothing but ASCII digits.
pub(crate) fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// A request's first line and header fields.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) line: &'a str,
    pub(crate) host: SocketAddr,
    /// The value of the header; empty for none.
    pub(crate) authorization: &'a str,
    pub(crate) close: bool,
}

impl Head<'_> {
    /// A request without a body.
    pub(crate) fn alone(self) -> Vec<u8> {
        self.with(None)
    }

    /// A request with this JSON.
    pub(crate) fn json(self, body: &str) -> Vec<u8> {
        let mut request = self.with(Some(("application/json", body.len() as u64)));
        request.extend_from_slice(body.as_bytes());
        request
    }

    /// The head of a request whose body of that length is sent by other means.
    pub(crate) fn upload(self, length: u64) -> Vec<u8> {
        self.with(Some(("application/octet-stream", length)))
    }

    fn with(self, body: Option<(&str, u64)>) -> Vec<u8> {
        let mut fields = vec![
            format!("{} HTTP/1.1", self.line),
            format!("Host: {}", self.host),
            "User-Agent: bench".to_owned(),
            "Accept: */*".to_owned(),
        ];
        if !self.authorization.is_empty() {
            fields.push(format!("Authorization: {}", self.authorization));
        }
        if let Some((kind, length)) = body {
            fields.push(format!("Content-Type: {kind}\r\nContent-Length: {length}"));
        }
        if self.close {
            fields.push("Connection: close".to_owned());
        }
        (fields.join("\r\n") + "\r\n\r\n").into_bytes()
    }
}

/// A piece of an upload: at most that many bytes of an endless pattern, from that position.
pub(crate) fn pattern(at: u64, most: u64) -> &'static [u8] {
    let from = (at % PERIOD as u64) as usize;
    let length = usize::try_from(most).unwrap_or(PIECE).min(PIECE);
    PATTERN.get(from..from + length).unwrap_or_default()
}

/// The longest piece that [`pattern`] gives.
pub(crate) const PIECE: usize = 256 * 1024;

/// A prime, so that a block that is lost, repeated or out of order shows.
const PERIOD: usize = 65_521;

static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    let once: Vec<u8> = (0..PERIOD).map(|_| next()).collect();
    once.iter().copied().cycle().take(PERIOD + PIECE).collect()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_back_and_any_other_byte_in_it_is_seen() {
        let chat = Chat { tokens: 2, pace: 50 };
        for number in [1, 2] {
            let times = Times { sent: 123_456, got: 78 };
            let mut line = Vec::new();
            chat.line(number, times, &mut line);
            assert_eq!(chat.times(&line, number), Some(times));
            assert_eq!(chat.times(&line, 3 - number), None);
            for at in 0..line.len() {
                let mut wrong = line.clone();
                wrong[at] ^= 0x80;
                assert_eq!(chat.times(&wrong, number), None, "at {at}");
            }
        }
    }

    #[test]
    fn a_streamed_chat_is_understood_only_as_it_was_written() {
        let chat = Chat { tokens: 30, pace: 50_000 };
        assert_eq!(Chat::asked(chat.body().as_bytes()), Some(chat));
        assert_eq!(Chat::asked(chat.body().replace("sky", "sea").as_bytes()), None);
    }

    #[test]
    fn the_pattern_goes_on_where_a_piece_ended() {
        let first = pattern(0, 1000);
        assert_eq!(pattern(400, 600), &first[400..]);
        assert_eq!(pattern(PERIOD as u64 + 7, 10), pattern(7, 10));
        assert_ne!(pattern(0, 100), pattern(4096, 100));
    }
}
