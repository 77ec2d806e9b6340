//! A row as the journal has it: its length and its checksum, then its fields one after the other.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::super::usage::{NUMBER_BITS, UsageEntry, place_at};
use super::super::{Usage, UsageRow};

/// Texts are cut here: what callers write in place of a model's name has no end.
const LONGEST_TEXT: usize = 256;
/// No record is longer.
const MOST: usize = 4096;
/// Length and checksum.
const HEAD: usize = 8;
/// More is a backend's lie, and sums must not run over.
const MOST_TOKENS: u64 = 1 << 32;
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// The first byte: how the rest is to be read.
const VERSION: u8 = 2;
/// Ended before the time for the prompt.
const WITHOUT_PREFILL: u8 = 1;

/// Adds a row to what is to be written.
pub(in super::super) fn write(row: &UsageRow, to: &mut Vec<u8>) {
    let begins = to.len();
    to.extend_from_slice(&[0; HEAD]);
    fields(row, &mut Pen(to));
    let Some((head, body)) = to.get_mut(begins..).and_then(|it| it.split_at_mut_checked(HEAD))
    else {
        return;
    };
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    for (to, byte) in head
        .iter_mut()
        .zip(length.to_le_bytes().into_iter().chain(crc32fast::hash(body).to_le_bytes()))
    {
        *to = byte;
    }
}

/// How many bytes the first record takes by its own word; `None` where no record is so long.
pub(in super::super) fn length(bytes: &[u8]) -> Option<usize> {
    let length = usize::try_from(u32::from_le_bytes(*bytes.first_chunk()?)).ok()?;
    (1..=MOST).contains(&length).then_some(HEAD + length)
}

/// Whether it may be the beginning of a record that was not written to its end.
pub(in super::super) fn is_cut(bytes: &[u8]) -> bool {
    bytes.len() < 4 || length(bytes).is_some_and(|length| length > bytes.len())
}

/// The first record, and how many bytes it takes; `None` where there is no whole one.
pub(in super::super) fn read(bytes: &[u8]) -> Option<(UsageEntry, usize)> {
    let length = length(bytes)?;
    let (head, body) = bytes.get(..length)?.split_at_checked(HEAD)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*head.last_chunk()?) {
        return None;
    }
    Some((entry(&mut Eye(body))?, length))
}

fn fields(row: &UsageRow, pen: &mut Pen<'_>) {
    let usage = &row.usage;
    pen.0.push(VERSION);
    pen.0.push(u8::from(row.is_inference) | u8::from(usage.estimated) << 1);
    pen.0.extend_from_slice(&place(row.time, &row.id).to_le_bytes());
    pen.0.extend_from_slice(&row.id);
    pen.number(row.status.into());
    match row.client {
        None => pen.bytes(&[]),
        Some(IpAddr::V4(client)) => pen.bytes(&client.octets()),
        Some(IpAddr::V6(client)) => pen.bytes(&client.octets()),
    }
    for text in [&*row.name, row.operation, &*row.backend, row.outcome] {
        pen.bytes(shortened(text).as_bytes());
    }
    for text in [row.key.as_deref(), row.model.as_deref(), row.runner_options.as_deref()] {
        pen.text(text);
    }
    for tokens in [usage.prompt, usage.completion] {
        pen.number(tokens.min(MOST_TOKENS));
    }
    for tokens in [usage.cached, usage.reasoning] {
        pen.option(tokens.map(|tokens| tokens.min(MOST_TOKENS)));
    }
    pen.number(row.bytes_in);
    pen.number(row.bytes_out);
    for time in [row.queue, row.total, row.backend_time] {
        pen.number(micros(time));
    }
    let told = [usage.load, usage.generation, row.first_byte, row.first_token];
    for time in told.into_iter().chain([usage.prefill, usage.total]) {
        pen.option(time.map(micros));
    }
}

fn entry(eye: &mut Eye<'_>) -> Option<UsageEntry> {
    let version = eye.byte()?;
    if ![VERSION, WITHOUT_PREFILL].contains(&version) {
        return None;
    }
    let flags = eye.byte()?;
    let place = u64::from_le_bytes(*eye.chunk()?);
    let id = String::from_utf8_lossy(eye.chunk::<16>()?).into_owned();
    let status = u16::try_from(eye.number()?).ok()?;
    let client = address(eye.bytes()?);
    let [name, operation, backend, outcome] =
        [eye.string()?, eye.string()?, eye.string()?, eye.string()?];
    let [key, model, runner_options] = [eye.text()?, eye.text()?, eye.text()?];
    let (prompt, completion) = (eye.number()?, eye.number()?);
    let (cached, reasoning) = (eye.option()?, eye.option()?);
    let (bytes_in, bytes_out) = (eye.number()?, eye.number()?);
    let (queue, total, backend_time) = (eye.time()?, eye.time()?, eye.time()?);
    let (load, generation) = (eye.some_time()?, eye.some_time()?);
    let (first_byte, first_token) = (eye.some_time()?, eye.some_time()?);
    let (prefill, total_told) = match version {
        WITHOUT_PREFILL => (None, None),
        _ => (eye.some_time()?, eye.some_time()?),
    };
    let usage = Usage {
        prompt,
        completion,
        cached,
        reasoning,
        estimated: flags & 2 != 0,
        load,
        prefill,
        generation,
        total: total_told,
    };
    Some(UsageEntry {
        place,
        id,
        time: Timestamp::from_millisecond((place >> NUMBER_BITS).cast_signed()).ok()?,
        client,
        name,
        key,
        model,
        operation,
        is_inference: flags & 1 != 0,
        backend,
        status,
        outcome,
        usage,
        runner_options,
        bytes_in,
        bytes_out,
        queue,
        first_byte,
        first_token,
        total,
        backend_time,
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// The millisecond, then what tells requests of one process apart.
fn place(time: SystemTime, id: &[u8; 16]) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let millisecond = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    let digit = |b: &u8| u64::from(b & 0xf) + if *b > b'9' { 9 } else { 0 };
    let number = id.iter().skip(8).fold(0, |number: u64, b| number << 4 | digit(b));
    place_at(millisecond).cast_unsigned() | number & ((1 << NUMBER_BITS) - 1)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.min(LONGEST).as_micros()).unwrap_or(u64::MAX)
}

fn shortened(text: &str) -> &str {
    text.get(..text.floor_char_boundary(LONGEST_TEXT)).unwrap_or_default()
}

struct Pen<'a>(&'a mut Vec<u8>);

impl Pen<'_> {
    /// Seven bits a byte, the lowest first; the eighth says that more follow.
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
    }

    fn option(&mut self, number: Option<u64>) {
        self.number(number.map_or(0, |number| number.saturating_add(1)));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: Option<&str>) {
        let text = text.map(shortened);
        self.option(text.map(|text| text.len() as u64));
        self.0.extend_from_slice(text.unwrap_or_default().as_bytes());
    }
}

struct Eye<'a>(&'a [u8]);

impl<'a> Eye<'a> {
    fn chunk<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(chunk)
    }

    fn byte(&mut self) -> Option<u8> {
        self.chunk().map(|[byte]| *byte)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    /// Outside, whether it could be read; inside, whether there is one.
    fn option(&mut self) -> Option<Option<u64>> {
        self.number().map(|number| number.checked_sub(1))
    }

    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length)
    }

    fn string(&mut self) -> Option<String> {
        self.bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    fn text(&mut self) -> Option<Option<String>> {
        match self.option()? {
            None => Some(None),
            Some(length) => {
                self.take(length).map(|it| Some(String::from_utf8_lossy(it).into_owned()))
            }
        }
    }

    fn time(&mut self) -> Option<Duration> {
        self.number().map(Duration::from_micros)
    }

    fn some_time(&mut self) -> Option<Option<Duration>> {
        self.option().map(|time| time.map(Duration::from_micros))
    }
}
