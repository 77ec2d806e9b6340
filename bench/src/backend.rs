//! A stand-in for the model server: one thread, small answers, and tokens at the pace that is asked.
//!
//! What arrives is checked to the last byte; anything else is answered with 400 and a sentence,
//! which fails the caller's run.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::script::{self, Chat, Clock, Times};

/// Starts the backend on a thread of its own, which ends with the program.
///
/// # Errors
/// No socket is to be had.
pub(crate) fn start(clock: Clock) -> io::Result<SocketAddr> {
    let mut listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into())?;
    let address = listener.local_addr()?;
    let poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let backend = Backend {
        clock,
        poll,
        listener,
        places: Vec::new(),
        free: Vec::new(),
        due: BinaryHeap::new(),
        callers_left: false,
        buffer: vec![0; script::PIECE],
        answers: Answers::new(),
    };
    thread::Builder::new().name("backend".into()).spawn(move || backend.run())?;
    Ok(address)
}

const LISTENER: Token = Token(usize::MAX);

/// How long it may sleep when a token is due in less than what the poll can wait: a millisecond.
const NAP: Duration = Duration::from_micros(50);

struct Backend {
    clock: Clock,
    poll: Poll,
    listener: TcpListener,
    places: Vec<Place>,
    free: Vec<usize>,
    /// When the next token of each stream is due: time, place, and whose turn that place was.
    due: BinaryHeap<Reverse<(u64, usize, u64)>>,
    /// Somebody waits to be accepted: nothing tells of them again once there were too many open files.
    callers_left: bool,
    buffer: Vec<u8>,
    answers: Answers,
}

/// Where a connection is kept; the turn tells it from those that were there before.
#[derive(Default)]
struct Place {
    turn: u64,
    connection: Option<Connection>,
}

impl Backend {
    fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            let (wait, nap) = self.wait();
            match self.poll.poll(&mut events, wait) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // the callers fail then, and say so
                Err(_) => return,
            }
            if events.is_empty()
                && let Some(nap) = nap
            {
                thread::park_timeout(nap);
            }
            for event in &events {
                if event.token() == LISTENER {
                    self.callers_left = true;
                } else {
                    self.serve(event.token().0, event.is_read_closed());
                }
            }
            if self.callers_left {
                self.accept();
            }
            self.send_due();
        }
    }

    /// What the poll may wait for, and how long to sleep after one that did not wait.
    fn wait(&self) -> (Option<Duration>, Option<Duration>) {
        let Some(Reverse((due, ..))) = self.due.peek() else { return (None, None) };
        let left = Duration::from_nanos(due.saturating_sub(self.clock.now()));
        // the poll waits for whole milliseconds, rounded up
        match left.checked_sub(Duration::from_millis(1)) {
            Some(more) if !more.is_zero() => {
                let millis = u64::try_from(more.as_millis()).unwrap_or(1);
                (Some(Duration::from_millis(millis.max(1))), None)
            }
            _ if left.is_zero() => (Some(Duration::ZERO), None),
            _ => (Some(Duration::ZERO), Some(left.min(NAP))),
        }
    }

    fn accept(&mut self) {
        loop {
            let mut socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) => {
                    self.callers_left = error.kind() != io::ErrorKind::WouldBlock;
                    return;
                }
            };
            let at = self.free.pop().unwrap_or_else(|| {
                self.places.push(Place::default());
                self.places.len() - 1
            });
            let both = Interest::READABLE | Interest::WRITABLE;
            let ready = socket.set_nodelay(true).is_ok()
                && self.poll.registry().register(&mut socket, Token(at), both).is_ok();
            match self.places.get_mut(at) {
                Some(place) if ready => place.connection = Some(Connection::new(socket)),
                Some(_) | None => self.free.push(at),
            }
        }
    }

    fn serve(&mut self, at: usize, closed: bool) {
        let Some(place) = self.places.get_mut(at) else { return };
        let Some(connection) = place.connection.as_mut() else { return };
        let served = connection.flush().and_then(|()| {
            let mut buffer = std::mem::take(&mut self.buffer);
            let served = connection.read(&mut buffer, closed, &self.answers, self.clock);
            self.buffer = buffer;
            served
        });
        match served {
            Ok(Some(due)) => self.due.push(Reverse((due, at, place.turn))),
            Ok(None) if !connection.is_over() => {}
            Ok(None) | Err(_) => self.leave(at),
        }
    }

    fn send_due(&mut self) {
        while let Some(Reverse((due, at, turn))) = self.due.peek().copied() {
            if due > self.clock.now() {
                return;
            }
            self.due.pop();
            let Some(place) = self.places.get_mut(at).filter(|place| place.turn == turn) else {
                continue;
            };
            let Some(connection) = place.connection.as_mut() else { continue };
            match connection.send_token(due, self.clock) {
                Ok(Some(next)) => self.due.push(Reverse((next, at, turn))),
                Ok(None) if !connection.is_over() => {}
                Ok(None) | Err(_) => self.leave(at),
            }
        }
    }

    fn leave(&mut self, at: usize) {
        if let Some(place) = self.places.get_mut(at)
            && place.connection.take().is_some()
        {
            place.turn += 1;
            self.free.push(at);
        }
    }
}

/// Answers that never change, made once.
struct Answers {
    version: Vec<u8>,
    chat: Vec<u8>,
    openai: Vec<u8>,
    chat_asked: String,
}

impl Answers {
    fn new() -> Self {
        Self {
            version: answer("200 OK", script::VERSION),
            chat: answer("200 OK", &script::chat_answer()),
            openai: answer("200 OK", &script::openai_answer()),
            chat_asked: script::chat(),
        }
    }

    /// What is said to a request whose answer is known at once; none for a streamed chat.
    fn to(&self, head: &RequestHead, body: &[u8]) -> Result<Reply<'_>, String> {
        match head.line.as_slice() {
            b"GET /api/version" if body.is_empty() => Ok(Reply::Known(&self.version)),
            b"POST /api/chat" if body == self.chat_asked.as_bytes() => Ok(Reply::Known(&self.chat)),
            b"POST /api/chat" => match Chat::asked(body) {
                Some(chat) => Ok(Reply::Stream(chat)),
                None => Err(format!("not the chat: {}", String::from_utf8_lossy(body))),
            },
            b"POST /v1/chat/completions" => {
                let text = String::from_utf8_lossy(body);
                let ours =
                    [crate::peer::MODEL, script::QUESTION].iter().all(|it| text.contains(it));
                if ours { Ok(Reply::Known(&self.openai)) } else { Err(format!("not it: {text}")) }
            }
            other => Err(format!("not asked for: {}", String::from_utf8_lossy(other))),
        }
    }
}

enum Reply<'a> {
    Known(&'a [u8]),
    Stream(Chat),
}

fn answer(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json; charset=utf-8\r\n\
         Date: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

struct Connection {
    socket: TcpStream,
    /// A request that has not come whole yet.
    input: Vec<u8>,
    /// What the socket has not taken yet.
    output: Vec<u8>,
    blob: Option<Blob>,
    stream: Option<Stream>,
    /// The answer under way is the last one.
    last: bool,
}

/// An upload: how much came, how much there is.
struct Blob {
    at: u64,
    length: u64,
}

struct Stream {
    chat: Chat,
    got: u64,
    sent: u64,
    chunked: bool,
}

impl Connection {
    fn new(socket: TcpStream) -> Self {
        Self { socket, input: vec![], output: vec![], blob: None, stream: None, last: false }
    }

    fn is_over(&self) -> bool {
        self.last && self.blob.is_none() && self.stream.is_none() && self.output.is_empty()
    }

    /// Takes in what has come; gives the time of the first token when a streamed chat begins.
    fn read(
        &mut self,
        buffer: &mut [u8],
        closed: bool,
        answers: &Answers,
        clock: Clock,
    ) -> io::Result<Option<u64>> {
        let mut due = None;
        loop {
            let room = buffer.len();
            let length = match self.socket.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(due),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            due = self.take_in(bytes, answers, clock)?.or(due);
            // less than there was room for: the next bytes bring an event of their own
            if length < room && !closed {
                return Ok(due);
            }
        }
    }

    fn take_in(
        &mut self,
        bytes: &[u8],
        answers: &Answers,
        clock: Clock,
    ) -> io::Result<Option<u64>> {
        if self.blob.is_some() {
            self.take_blob(bytes)?;
            return Ok(None);
        }
        if self.input.is_empty() {
            let (used, due) = self.take_requests(bytes, answers, clock)?;
            self.input.extend_from_slice(bytes.get(used..).unwrap_or_default());
            return Ok(due);
        }
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let (used, due) = self.take_requests(&input, answers, clock)?;
        input.drain(..used);
        self.input = input;
        Ok(due)
    }

    /// Answers the whole requests at the front of `bytes`; gives how much they were.
    fn take_requests(
        &mut self,
        bytes: &[u8],
        answers: &Answers,
        clock: Clock,
    ) -> io::Result<(usize, Option<u64>)> {
        let mut used = 0;
        while let Some(head) = RequestHead::read(bytes.get(used..).unwrap_or_default()) {
            let after = bytes.get(used + head.size..).unwrap_or_default();
            if head.line.starts_with(b"POST /api/blobs/") {
                self.blob = Some(Blob { at: 0, length: head.length });
                self.last |= head.close;
                self.take_blob(after)?;
                return Ok((bytes.len(), None));
            }
            let Some(body) = usize::try_from(head.length).ok().and_then(|size| after.get(..size))
            else {
                break;
            };
            used += head.size + body.len();
            self.last |= head.close;
            match answers.to(&head, body) {
                Ok(Reply::Known(bytes)) => self.send(bytes)?,
                Ok(Reply::Stream(chat)) => {
                    let got = clock.now();
                    self.begin_stream(chat, got, !head.close)?;
                    return Ok((used, Some(got + 1000 * chat.pace)));
                }
                Err(why) => self.refuse(&why)?,
            }
        }
        Ok((used, None))
    }

    fn take_blob(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let Some(Blob { at, length }) = self.blob.as_mut() else { return Ok(()) };
        while !bytes.is_empty() && *at < *length {
            let wanted = script::pattern(*at, (*length - *at).min(bytes.len() as u64));
            let (piece, rest) = bytes.split_at(wanted.len().min(bytes.len()));
            if piece != wanted {
                let why = format!("the upload is wrong near byte {at}");
                return self.refuse(&why);
            }
            *at += piece.len() as u64;
            bytes = rest;
        }
        if !bytes.is_empty() {
            return self.refuse("more came than the upload");
        }
        if *at == *length {
            self.blob = None;
            self.send(&answer("201 Created", ""))?;
        }
        Ok(())
    }

    fn begin_stream(&mut self, chat: Chat, got: u64, chunked: bool) -> io::Result<()> {
        self.stream = Some(Stream { chat, got, sent: 0, chunked });
        let framing = if chunked { "Transfer-Encoding: chunked" } else { "Connection: close" };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\
             Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n{framing}\r\n\r\n"
        );
        self.send(head.as_bytes())
    }

    /// Sends the token that is due; gives when the next one is.
    fn send_token(&mut self, due: u64, clock: Clock) -> io::Result<Option<u64>> {
        let Some(stream) = self.stream.as_mut() else { return Ok(None) };
        stream.sent += 1;
        let Stream { chat, got, sent: number, chunked } = *stream;
        let mut line = Vec::with_capacity(256);
        chat.line(number, Times { sent: clock.now(), got }, &mut line);
        let last = number == chat.tokens;
        if last {
            self.stream = None;
        }
        if chunked {
            let mut chunk = Vec::with_capacity(256);
            write!(chunk, "{:x}\r\n", line.len())?;
            chunk.extend_from_slice(&line);
            chunk.extend_from_slice(if last { b"\r\n0\r\n\r\n" } else { b"\r\n" });
            self.send(&chunk)?;
        } else {
            self.send(&line)?;
        }
        Ok((!last).then_some(due + 1000 * chat.pace))
    }

    fn refuse(&mut self, why: &str) -> io::Result<()> {
        self.last = true;
        self.blob = None;
        self.send(&answer("400 Bad Request", why))
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.output.is_empty() {
            self.output.extend_from_slice(bytes);
            return Ok(());
        }
        let written = match self.socket.write(bytes) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        self.output.extend_from_slice(bytes.get(written..).unwrap_or_default());
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let output = std::mem::take(&mut self.output);
        self.send(&output)
    }
}

/// The head of a request that has come whole.
struct RequestHead {
    /// Method and path.
    line: Vec<u8>,
    size: usize,
    length: u64,
    close: bool,
}

impl RequestHead {
    /// None when it has not come whole. What it cannot understand becomes a request that nobody
    /// answers but with 400.
    fn read(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let mut lines = bytes.get(..end)?.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
        let first = lines.next()?;
        let (line, version) = first.split_at(first.len().saturating_sub(9));
        let old = version == b" HTTP/1.0";
        let mut head = Self { line: line.to_vec(), size: end + 4, length: 0, close: old };
        for field in lines {
            let mut parts = field.splitn(2, |byte| *byte == b':');
            let (name, value) = (parts.next()?, parts.next().unwrap_or_default().trim_ascii());
            if name.eq_ignore_ascii_case(b"content-length") {
                head.length = script::digits(value).unwrap_or(u64::MAX);
            } else if name.eq_ignore_ascii_case(b"connection") {
                head.close |= value.eq_ignore_ascii_case(b"close");
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                head.line = b"a request with an encoding".to_vec();
            }
        }
        Some(head)
    }
}
