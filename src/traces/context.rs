//! `traceparent`, as the W3C's Trace Context has it.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName};

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

const SAMPLED: u8 = 1;

/// Which trace a request belongs to, and which span of it it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    trace: [u8; 16],
    span: [u8; 8],
    parent: Option<[u8; 8]>,
    flags: u8,
}

impl Context {
    /// The caller's; what is not as it has to be counts as none (Trace Context, 3.2.2 and 3.2.3).
    #[must_use]
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all(TRACEPARENT).iter();
        let (Some(only), None) = (all.next(), all.next()) else { return None };
        let text = only.to_str().ok()?;
        let mut parts = text.splitn(5, '-');
        let [version] = bytes(parts.next()?)?;
        let (trace, span) = (bytes(parts.next()?)?, bytes(parts.next()?)?);
        let [flags] = bytes(parts.next()?)?;
        // Only a later version may have more behind it.
        let is_known = version == 0 && parts.next().is_none() || (1..0xff).contains(&version);
        let is_some = trace != [0; 16] && span != [0; 8];
        (is_known && is_some).then_some(Self { trace, span, parent: None, flags })
    }

    /// The first span of a trace of our own.
    ///
    /// # Errors
    /// Where the system has no random numbers to give.
    pub(super) fn draw() -> Result<Self, getrandom::Error> {
        let mut trace = [0; 16];
        getrandom::fill(&mut trace)?;
        Ok(Self { trace, span: new_span()?, parent: None, flags: SAMPLED })
    }

    /// The next span of this trace.
    ///
    /// # Errors
    /// Where the system has no random numbers to give.
    pub(super) fn child(self) -> Result<Self, getrandom::Error> {
        Ok(Self { span: new_span()?, parent: Some(self.span), ..self })
    }

    /// Whether it begins here. What came along with another one says nothing of it (Trace Context, 3.3.1.5).
    #[must_use]
    pub fn begins(self) -> bool {
        self.parent.is_none()
    }

    /// Whoever began it wants to see it.
    #[must_use]
    pub fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// For whoever comes next.
    #[must_use]
    pub fn header(self) -> String {
        // Flags that we do not know are not passed on (Trace Context, 3.2.2.5).
        let flags = self.flags & SAMPLED;
        format!("00-{}-{}-{flags:02x}", self.trace_id(), self.span_id())
    }

    pub(super) fn trace_id(self) -> String {
        hex(&self.trace)
    }

    pub(super) fn span_id(self) -> String {
        hex(&self.span)
    }

    pub(super) fn parent_id(self) -> Option<String> {
        self.parent.map(|parent| hex(&parent))
    }
}

fn new_span() -> Result<[u8; 8], getrandom::Error> {
    let mut span = [0; 8];
    getrandom::fill(&mut span)?;
    Ok(span)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// So many bytes as lower-case hex digits.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != 2 * N || !text.bytes().all(is_hex) {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn read(values: &[&str]) -> Option<Context> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, HeaderValue::from_str(value).unwrap());
        }
        Context::read(&headers)
    }

    #[test]
    fn a_callers_trace_goes_on_with_a_span_of_ours() {
        let theirs = read(&[&format!("00-{TRACE}-00f067aa0ba902b7-01")]).unwrap();
        assert!(theirs.is_sampled());
        let ours = theirs.child().unwrap();
        assert_eq!(ours.parent_id().as_deref(), Some("00f067aa0ba902b7"));
        assert_eq!(ours.header(), format!("00-{TRACE}-{}-01", ours.span_id()));
        assert_ne!(ours.span_id(), "00f067aa0ba902b7");
        let again = read(&[&ours.header()]).unwrap();
        assert_eq!((again.trace_id(), again.span_id()), (TRACE.to_owned(), ours.span_id()));
    }

    #[test]
    fn a_later_version_may_say_more_and_unknown_flags_are_not_passed_on() {
        let later = read(&[&format!("cc-{TRACE}-00f067aa0ba902b7-ff-what-the-future-holds")]);
        assert!(later.unwrap().header().ends_with("-01"));
        let unsampled = read(&[&format!("00-{TRACE}-00f067aa0ba902b7-02")]).unwrap();
        assert!(!unsampled.is_sampled() && unsampled.header().ends_with("-00"));
    }

    #[test]
    fn what_is_malformed_counts_as_none() {
        let good = format!("00-{TRACE}-00f067aa0ba902b7-01");
        for bad in [
            "",
            "00",
            "00-1-2-3",
            &format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            &format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            &format!("00-{TRACE}-0000000000000000-01"),
            &good.to_uppercase(),
            &format!("{good}-more"),
            &format!("{good} "),
            &format!("00-{TRACE}-00f067aa0ba902b-01"),
            &format!("00-{TRACE}-+0f067aa0ba902b7-01"),
            &format!("00-{TRACE}--00f067aa0ba902b7-01"),
            &format!("0-{TRACE}-00f067aa0ba902b7-01"),
        ] {
            assert_eq!(read(&[bad]), None, "{bad}");
        }
        assert_eq!(read(&[&good, &good]), None, "two could be read in two ways");
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn no_two_traces_of_ours_are_the_same() {
        let (one, other) = (Context::draw().unwrap(), Context::draw().unwrap());
        assert!(one.trace_id() != other.trace_id() && one.span_id() != other.span_id());
        assert_eq!(one.parent_id(), None);
    }
}
