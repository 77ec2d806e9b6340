//! Valid requests with a few bytes or lines changed: the gate never passes on what a strict second
//! reader refuses, or frames in another way. `PORTCULLIS_MUTATIONS` sets how many are tried.

use std::time::Duration;

use portcullis::api::Target;

use crate::house::{Backend, House, KEY, find};

const WORKERS: u64 = 24;

/// xorshift64: the same bytes in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % bound
    }
}

fn valid(random: &mut Random) -> Vec<u8> {
    let head = format!("Host: gate\r\nAuthorization: Bearer {KEY}\r\n");
    let one = |random: &mut Random| match random.below(4) {
        0 => format!("GET /api/tags?a=b HTTP/1.1\r\n{head}Accept: */*\r\n\r\n"),
        1 => format!("POST /api/chat HTTP/1.1\r\n{head}Content-Length: 11\r\n\r\nhello world"),
        2 => format!(
            "POST /api/generate HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n\
             5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nX-Trailer: 1\r\n\r\n"
        ),
        _ => format!("DELETE /api/delete HTTP/1.1\r\n{head}Content-Length: 2\r\n\r\n{{}}"),
    };
    let first = one(random);
    match random.below(2) {
        0 => first.into(),
        _ => (first + &one(random)).into(),
    }
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    const NASTY: &[u8] = b"\r\n\0 \t:,;#%/\\+-x019Az\x80\xff\x0b\"";
    const LINES: [&str; 8] = [
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 0\r\n",
        "Content-Length: 11, 11\r\n",
        "Host: other\r\n",
        " folded: line\r\n",
        "Connection: close, Content-Length\r\n",
    ];
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => drop(bytes.remove(at)),
            1 => bytes.insert(at, NASTY[random.below(NASTY.len())]),
            2 => bytes[at] = NASTY[random.below(NASTY.len())],
            3 | 4 => {
                let start = find(&bytes[at..], b"\n").map_or(0, |end| at + end + 1);
                let line = LINES[random.below(LINES.len())];
                bytes.splice(start..start, line.bytes());
            }
            _ => {
                let from = find(&bytes[at..], b"\n").map_or(0, |end| at + end + 1);
                let to = find(&bytes[from..], b"\n").map_or(bytes.len(), |end| from + end + 1);
                let line = bytes[from..to].to_vec();
                bytes.splice(from..from, line);
            }
        }
    }
}

/// The request line as it should be passed on, and the body.
type Read = (String, Vec<u8>);

/// What the second reader makes of the bytes: requests, up to the first that is malformed or not
/// complete.
fn strict(mut bytes: &[u8]) -> Vec<Read> {
    let mut requests = Vec::new();
    while let Some((request, rest)) = strict_one(bytes) {
        requests.push(request);
        bytes = rest;
    }
    requests
}

fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = find(bytes, b"\n")?;
    Some((bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]), &bytes[end + 1..]))
}

fn strict_one(mut bytes: &[u8]) -> Option<(Read, &[u8])> {
    let request_line = loop {
        let (first, rest) = line(bytes)?;
        bytes = rest;
        if !first.is_empty() {
            break std::str::from_utf8(first).ok()?;
        }
    };
    let [method, target, "HTTP/1.1" | "HTTP/1.0"] = request_line.split(' ').collect::<Vec<_>>()[..]
    else {
        return None;
    };
    let target = target.strip_prefix("http://gate").unwrap_or(target);
    if target.contains('#') || !target.bytes().all(|b| b.is_ascii_graphic()) {
        return None;
    }
    let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
    let path = Target::read(path).ok()?.path;
    let (Fields { lengths, codings, hosts }, rest) = fields(bytes)?;
    bytes = rest;
    let pairs: Vec<_> = query.into_iter().flat_map(|query| query.split('&')).collect();
    let kept: Vec<_> = pairs
        .into_iter()
        .filter(|it| !it.is_empty() && *it != "ts" && !it.starts_with("ts="))
        .collect();
    let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
    let asked = format!("{method} {path}{query} HTTP/1.1");
    if hosts > 1 || lengths.len() > 1 {
        return None;
    }
    let (body, rest) = match (codings.as_slice(), lengths.first()) {
        ([], None) => (Vec::new(), bytes),
        ([], Some(length)) => {
            let digits = std::str::from_utf8(length).ok()?;
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            let length: usize = digits.parse().ok().filter(|_| plain)?;
            (bytes.get(..length)?.to_vec(), &bytes[length..])
        }
        ([coding], None) if coding == b"chunked" => chunks(bytes)?,
        _ => return None,
    };
    Some(((asked, body), rest))
}

#[derive(Default)]
struct Fields<'a> {
    lengths: Vec<&'a [u8]>,
    codings: Vec<Vec<u8>>,
    hosts: usize,
}

fn fields(mut bytes: &[u8]) -> Option<(Fields<'_>, &[u8])> {
    let mut fields = Fields::default();
    loop {
        let (field, rest) = line(bytes)?;
        bytes = rest;
        if field.is_empty() {
            return Some((fields, bytes));
        }
        let colon = find(field, b":")?;
        let (name, value) = (&field[..colon], field[colon + 1..].trim_ascii());
        let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
        if name.is_empty()
            || !name.iter().all(token)
            || value.iter().any(|b| *b < 32 && *b != b'\t')
        {
            return None;
        }
        match name.to_ascii_lowercase().as_slice() {
            b"content-length" => fields.lengths.push(value),
            b"transfer-encoding" => fields.codings.push(value.to_ascii_lowercase()),
            b"host" => fields.hosts += 1,
            _ => {}
        }
    }
}

fn chunks(mut bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let (size, rest) = line(bytes)?;
        let digits = size.split(|b| *b == b';').next().unwrap().trim_ascii();
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).ok()?;
        bytes = rest;
        if size == 0 {
            loop {
                let (trailer, rest) = line(bytes)?;
                bytes = rest;
                if trailer.is_empty() {
                    return Some((body, bytes));
                }
            }
        }
        body.extend_from_slice(bytes.get(..size)?);
        bytes = bytes[size..].strip_prefix(b"\r\n")?;
    }
}

async fn work(seed: u64, count: usize) -> (usize, usize) {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| {
        config.timeouts.header = Duration::from_millis(150);
        config.timeouts.keep_alive = Duration::from_millis(150);
        config.timeouts.body_grace = Duration::from_millis(150);
        config.failed_attempts_per_minute = 0;
    })
    .await;
    let mut random = Random(seed);
    let (mut read, mut passed) = (0, 0);
    for _ in 0..count {
        let mut bytes = valid(&mut random);
        mutate(&mut bytes, &mut random);
        let before = backend.seen().len();
        let mut caller = house.connect().await;
        caller.send(&bytes).await;
        // The gate ends it: at what is malformed, or when nothing more comes.
        caller.rest().await;
        let seen = &backend.seen()[before..];
        let expected = strict(&bytes);
        let mut rest = expected.iter();
        for seen in seen {
            let found = rest.any(|(asked, body)| asked == seen.line() && *body == seen.body);
            let sent = String::from_utf8_lossy(&bytes);
            assert!(found, "sent {sent:?}\npassed on {seen:?}\na strict reader reads {expected:?}");
        }
        (read, passed) = (read + expected.len(), passed + seen.len());
    }
    (read, passed)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_passed_on_that_a_strict_reader_refuses_or_frames_differently() {
    let count = std::env::var("PORTCULLIS_MUTATIONS").map_or(720, |count| count.parse().unwrap());
    let mut workers = tokio::task::JoinSet::new();
    for seed in 1..=WORKERS {
        workers.spawn(work(
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            count / usize::try_from(WORKERS).unwrap(),
        ));
    }
    let (mut read, mut passed) = (0, 0);
    for (some, of_them) in workers.join_all().await {
        (read, passed) = (read + some, passed + of_them);
    }
    // Most of what is still valid is served, or this test would show nothing.
    assert!(passed > read / 3 && passed > count / 10, "{passed} of {read} were passed on");
}
