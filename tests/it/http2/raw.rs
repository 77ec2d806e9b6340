//! A peer that writes and reads HTTP/2 frame by frame, and may break every rule of it.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::house::{KEY, PATIENCE};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// No table of fields that were sent before, so that a status can be read where it stands.
const NO_TABLE: [u8; 6] = [0, 1, 0, 0, 0, 0];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// How a stream ended, or the whole connection before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Answered(u16),
    Reset(u32),
    GoAway(u32),
    Closed,
}

impl End {
    pub fn is_the_connections(self) -> bool {
        matches!(self, Self::GoAway(_) | Self::Closed)
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A block of fields as they are, neither in a table nor compressed.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            push_length(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A length with a prefix of seven bits (RFC 7541, 5.1).
fn push_length(block: &mut Vec<u8>, length: usize) {
    if length < 127 {
        block.push(length as u8);
        return;
    }
    block.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
}

/// The fields of an ordinary request with the key.
pub fn request<'a>(method: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        (":method", method),
        (":scheme", "http"),
        (":authority", "gate"),
        (":path", path),
        ("authorization", AUTHORIZATION),
    ]
}

const AUTHORIZATION: &str = "Bearer a-key-for-the-tests";

/// A whole request in one frame.
pub fn asks(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(fields))
}

pub struct Peer {
    pub socket: TcpStream,
    unread: Vec<u8>,
    /// The last stream that the gate had seen when it ended the connection.
    pub last_seen: Option<u32>,
}

impl Peer {
    /// Begins as every client does.
    pub async fn connect(address: SocketAddr) -> Self {
        assert!(AUTHORIZATION.ends_with(KEY));
        let mut peer = Self::silent(address).await;
        peer.send([PREFACE, &frame(SETTINGS, 0, 0, &NO_TABLE)].concat()).await;
        peer
    }

    /// Has not said anything yet.
    pub async fn silent(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, unread: Vec::new(), last_seen: None }
    }

    /// False when the gate has closed.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        timeout(PATIENCE, self.socket.write_all(bytes.as_ref())).await.unwrap().is_ok()
    }

    /// Sends all of it while reading what comes; how the connection ended, if it did.
    pub async fn flood(&mut self, bytes: &[u8]) -> Option<End> {
        let (mut reads, mut writes) = self.socket.split();
        let came = &mut self.unread;
        let mut buffer = vec![0; 64 * 1024];
        let mut write = std::pin::pin!(writes.write_all(bytes));
        let sending = async {
            loop {
                tokio::select! {
                    written = &mut write => return written.is_ok(),
                    read = reads.read(&mut buffer) => match read {
                        Ok(read) if read > 0 => came.extend_from_slice(&buffer[..read]),
                        _ => return false,
                    },
                }
            }
        };
        match timeout(PATIENCE, sending).await.expect("the gate takes no more") {
            true => None,
            false => Some(self.end_of_connection().await),
        }
    }

    /// The next frame; `None` at the end of the connection. Settings and pings are acknowledged.
    pub async fn next(&mut self) -> Option<Frame> {
        let frame = loop {
            if let Some(frame) = self.take() {
                break frame;
            }
            let read = timeout(PATIENCE, self.socket.read_buf(&mut self.unread));
            match read.await.expect("the gate neither said anything nor closed") {
                Ok(read) if read > 0 => {}
                _ => return None,
            }
        };
        if matches!(frame.kind, SETTINGS | PING) && frame.flags & ACK == 0 {
            let payload = if frame.kind == PING { &frame.payload[..] } else { &[] };
            self.send(self::frame(frame.kind, ACK, 0, payload)).await;
        }
        Some(frame)
    }

    fn take(&mut self) -> Option<Frame> {
        let length = [0, *self.unread.first()?, *self.unread.get(1)?, *self.unread.get(2)?];
        let length = u32::from_be_bytes(length) as usize;
        if self.unread.len() < 9 + length {
            return None;
        }
        let bytes: Vec<u8> = self.unread.drain(..9 + length).collect();
        let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
        Some(Frame { kind: bytes[3], flags: bytes[4], stream, payload: bytes[9..].to_vec() })
    }

    /// Waits until a stream is answered or reset, or the connection ends. An answer that ends in a
    /// reset counts as reset.
    pub async fn end_of(&mut self, stream: u32) -> End {
        let mut answered = None;
        while let Some(frame) = self.next().await {
            match frame.kind {
                HEADERS if frame.stream == stream => {
                    let status = status(&frame.payload);
                    if frame.flags & END_STREAM != 0 {
                        return End::Answered(status);
                    }
                    answered = Some(status);
                }
                DATA if frame.stream == stream && frame.flags & END_STREAM != 0 => {
                    return End::Answered(answered.unwrap());
                }
                RST_STREAM if frame.stream == stream => return End::Reset(code(&frame.payload)),
                GOAWAY if code(&frame.payload[4..]) != 0 => {
                    self.last_seen = Some(code(&frame.payload));
                    return End::GoAway(code(&frame.payload[4..]));
                }
                _ => {}
            }
        }
        End::Closed
    }

    /// The end of the connection itself; what is said before is passed over.
    pub async fn end_of_connection(&mut self) -> End {
        self.end_of(0).await
    }

    /// The next head of an answer on a stream, and whether it is all of it.
    pub async fn answer_on(&mut self, stream: u32) -> (u16, bool) {
        loop {
            let frame = self.next().await.expect("the gate closed without an answer");
            if (frame.kind, frame.stream) == (HEADERS, stream) {
                return (status(&frame.payload), frame.flags & END_STREAM != 0);
            }
        }
    }

    /// What needs no login is answered.
    pub async fn is_alive(&mut self, stream: u32) -> bool {
        let fields = [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "gate"),
            (":path", "/_portcullis/health"),
        ];
        self.send(asks(stream, &fields)).await;
        self.end_of(stream).await == End::Answered(200)
    }

    /// One more request is answered as it should be.
    pub async fn is_served(&mut self, stream: u32) -> bool {
        self.send(asks(stream, &request("GET", "/api/tags"))).await;
        self.end_of(stream).await == End::Answered(200)
    }
}

pub fn code(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().unwrap())
}

/// The status at the beginning of an answer's fields (RFC 7541, 6 and appendix B).
fn status(block: &[u8]) -> u16 {
    let block = match block {
        [0x20, rest @ ..] => rest,
        all => all,
    };
    match block {
        [indexed @ 0x88..=0x8e, ..] => {
            [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)]
        }
        [0x08 | 0x18 | 0x48, 3, digits @ ..] => {
            std::str::from_utf8(&digits[..3]).unwrap().parse().unwrap()
        }
        [0x08 | 0x18 | 0x48, length, digits @ ..] if length & 0x80 != 0 => {
            digits_of(&digits[..usize::from(length & 0x7f)])
        }
        _ => panic!("no status at the beginning of {block:02x?}"),
    }
}

/// Three digits in the code of Huffman's: 0 to 2 have five bits, the others six.
fn digits_of(bytes: &[u8]) -> u16 {
    let bits = bytes.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    let (mut left, mut number) = (bytes.len() * 8, 0);
    for _ in 0..3 {
        let five = bits >> (left - 5) & 0x1f;
        let digit = if five < 3 {
            left -= 5;
            five
        } else {
            left -= 6;
            (bits >> left & 0x3f) - 0x16
        };
        number = number * 10 + digit as u16;
    }
    number
}

#[test]
fn a_status_is_read_however_it_is_written() {
    assert_eq!(status(&[0x88]), 200);
    assert_eq!(status(&[0x20, 0x8d, 1, 2]), 404);
    assert_eq!(status(b"\x08\x03431"), 431);
    // 401: 011010 00000 00001
    assert_eq!(status(&[0x48, 0x82, 0b0110_1000, 0b0000_0001]), 401);
    // 421: 011010 00010 00001; 505: 011011 00000 011011
    assert_eq!(status(&[0x08, 0x82, 0b0110_1000, 0b0100_0001]), 421);
    assert_eq!(status(&[0x08, 0x83, 0b0110_1100, 0b0000_1101, 0b1111_1111]), 505);
}
