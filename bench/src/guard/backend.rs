//! A model server that sends a streamed chunk only when told to, so that no two arrive as one.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::peer::MODEL;

/// The answer to `GET /api/version`.
pub(crate) const VERSION: &str = "{\"version\":\"0.20.0\"}";

/// A model server on threads of its own, which end with the program.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    /// Each sending lets it send one more chunk.
    pub(crate) next: Sender<()>,
}

impl Backend {
    pub(crate) fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (next, steps) = channel();
        let steps = Arc::new(Mutex::new(steps));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let steps = Arc::clone(&steps);
                // a connection that breaks is noticed by the other side
                thread::spawn(move || drop(serve(stream, &steps)));
            }
        });
        Ok(Self { address, next })
    }
}

/// The line that a stream's chunk of that number is, counted from 1.
pub(crate) fn line(number: usize, of: usize) -> String {
    let head = format!("{{\"model\":\"{MODEL}\",\"created_at\":\"2026-01-01T00:00:00.000000Z\"");
    if number == of {
        let counts = format!("\"prompt_eval_count\":12,\"eval_count\":{of}");
        return format!(
            "{head},\"message\":{{\"role\":\"assistant\",\"content\":\"\"}},\"done\":true,{counts}}}\n"
        );
    }
    format!(
        "{head},\"message\":{{\"role\":\"assistant\",\"content\":\" w{number:07}\"}},\"done\":false}}\n"
    )
}

/// A chat whose answer has that many chunks, and a type that nobody can count tokens of if it is `opaque`.
pub(crate) fn chat(chunks: usize, opaque: bool) -> String {
    let says = if opaque { OPAQUE } else { "Hello" };
    format!(
        "{{\"model\":\"{MODEL}\",\"messages\":[{{\"role\":\"user\",\"content\":\"{says}\"}}],\
         \"stream\":true,\"options\":{{{ASKED}{chunks:07}}}}}"
    )
}

const ASKED: &str = "\"num_predict\":1";
const OPAQUE: &str = "Hello, opaque one";

fn serve(stream: TcpStream, steps: &Mutex<Receiver<()>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some((first, body)) = request(&mut reader)? {
        if first.starts_with("POST /api/chat ") {
            let kind = match body.contains(OPAQUE) {
                true => "application/octet-stream",
                false => "application/x-ndjson",
            };
            stream_answer(&mut writer, kind, chunks_asked(&body)?, steps)?;
        } else {
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{VERSION}",
                VERSION.len()
            );
            writer.write_all(answer.as_bytes())?;
        }
    }
    Ok(())
}

fn stream_answer(
    writer: &mut TcpStream,
    kind: &str,
    chunks: usize,
    steps: &Mutex<Receiver<()>>,
) -> io::Result<()> {
    write!(
        writer,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )?;
    let steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
    for number in 1..=chunks {
        steps.recv_timeout(Duration::from_secs(60)).map_err(io::Error::other)?;
        let line = line(number, chunks);
        let end = if number == chunks { "0\r\n\r\n" } else { "" };
        writer.write_all(format!("{:x}\r\n{line}\r\n{end}", line.len()).as_bytes())?;
    }
    Ok(())
}

/// The first line and the body of the next request; none at the connection's end.
fn request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<(String, String)>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut length = 0;
    loop {
        let mut field = String::new();
        reader.read_line(&mut field)?;
        let Some((name, value)) = field.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some((first, String::from_utf8_lossy(&body).into_owned())))
}

fn chunks_asked(body: &str) -> io::Result<usize> {
    let (_, after) = body.split_once(ASKED).ok_or_else(|| io::Error::other("not our chat"))?;
    after.trim_end_matches('}').parse().map_err(io::Error::other)
}
