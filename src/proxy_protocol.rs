//! The PROXY protocol, versions 1 and 2: what a proxy of the transport layer says before anything
//! else about whom a connection comes from. The parser is `ppp`; what is ours is that never a byte is
//! read that belongs to what follows.

use std::io;
use std::net::SocketAddr;

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// With its end (proxy-protocol.txt, 2.1).
const LONGEST_LINE: usize = 107;
/// Shorter than any header of either version: `PROXY UNKNOWN` and the end of its line.
const SHORTEST: usize = 15;
/// Up to and with the length of the rest.
const FIXED: usize = 16;
/// The addresses, and more than any proxy adds to them.
const MOST_REST: usize = 4096;

/// What came where a header had to come.
#[derive(Debug, thiserror::Error)]
pub enum NoHeader {
    #[error("the connection begins with something else than a PROXY header")]
    Malformed,
    #[error("the connection ended within the PROXY header")]
    Half,
    #[error("the connection ended before anything came")]
    Nothing,
    #[error("the connection broke")]
    Broken(#[from] io::Error),
}

/// How far a header has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// So many bytes more belong to it at least.
    Wants(usize),
    /// All of it: whom it names, or nobody, where the proxy speaks for itself.
    Whole(Option<SocketAddr>),
}

/// Reads one header and nothing behind it.
///
/// # Errors
/// See [`NoHeader`].
pub async fn read(socket: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, NoHeader> {
    let mut header = Vec::with_capacity(LONGEST_LINE);
    loop {
        match look(&header)? {
            Seen::Whole(named) => return Ok(named),
            Seen::Wants(more) => {
                let room = u64::try_from(more).unwrap_or(u64::MAX);
                match (&mut *socket).take(room).read_buf(&mut header).await? {
                    0 if header.is_empty() => return Err(NoHeader::Nothing),
                    0 => return Err(NoHeader::Half),
                    _ => {}
                }
            }
        }
    }
}

/// Looks at the first bytes of a connection.
///
/// # Errors
/// [`NoHeader::Malformed`].
pub fn look(bytes: &[u8]) -> Result<Seen, NoHeader> {
    let begins = |prefix: &[u8]| bytes.iter().zip(prefix).all(|(a, b)| a == b);
    if begins(v2::PROTOCOL_PREFIX) {
        binary(bytes)
    } else if begins(b"PROXY ") {
        line(bytes)
    } else {
        Err(NoHeader::Malformed)
    }
}

fn line(bytes: &[u8]) -> Result<Seen, NoHeader> {
    if bytes.ends_with(b"\r\n") {
        let header = v1::Header::try_from(bytes).map_err(|_| NoHeader::Malformed)?;
        if header.header.len() != bytes.len() {
            return Err(NoHeader::Malformed);
        }
        return Ok(Seen::Whole(match header.addresses {
            v1::Addresses::Tcp4(it) => Some((it.source_address, it.source_port).into()),
            v1::Addresses::Tcp6(it) => Some((it.source_address, it.source_port).into()),
            v1::Addresses::Unknown => None,
        }));
    }
    match bytes.len() {
        LONGEST_LINE.. => Err(NoHeader::Malformed),
        SHORTEST.. if bytes.ends_with(b"\r") => Ok(Seen::Wants(1)),
        // At least the end of the line is still to come.
        SHORTEST.. => Ok(Seen::Wants(2)),
        come => Ok(Seen::Wants(SHORTEST - come)),
    }
}

fn binary(bytes: &[u8]) -> Result<Seen, NoHeader> {
    let Some(&[high, low]) = bytes.get(FIXED - 2..FIXED) else {
        let shortest = if bytes.len() < SHORTEST { SHORTEST } else { FIXED };
        return Ok(Seen::Wants(shortest - bytes.len()));
    };
    let rest = usize::from(u16::from_be_bytes([high, low]));
    if rest > MOST_REST || bytes.len() > FIXED + rest {
        return Err(NoHeader::Malformed);
    }
    if bytes.len() < FIXED + rest {
        return Ok(Seen::Wants(FIXED + rest - bytes.len()));
    }
    let header = v2::Header::try_from(bytes).map_err(|_| NoHeader::Malformed)?;
    Ok(Seen::Whole(match (header.command, header.protocol, header.addresses) {
        (v2::Command::Local, _, _) => None,
        (v2::Command::Proxy, v2::Protocol::Datagram, _) => return Err(NoHeader::Malformed),
        (v2::Command::Proxy, _, v2::Addresses::IPv4(it)) => {
            Some((it.source_address, it.source_port).into())
        }
        (v2::Command::Proxy, _, v2::Addresses::IPv6(it)) => {
            Some((it.source_address, it.source_port).into())
        }
        (v2::Command::Proxy, _, v2::Addresses::Unix(_) | v2::Addresses::Unspecified) => None,
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header of version 2: version and command, family and protocol, what follows.
    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [v2::PROTOCOL_PREFIX, &[command, family], &length, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 10, 0, 0, 1, 0xdc, 0x04, 1, 0xbb];

    fn v6() -> Vec<u8> {
        let (from, to) = ("2001:db8::1".parse(), "::1".parse());
        let (from, to): (std::net::Ipv6Addr, std::net::Ipv6Addr) = (from.unwrap(), to.unwrap());
        [&from.octets()[..], &to.octets(), &[0xdc, 0x04, 1, 0xbb]].concat()
    }

    fn headers() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let extra = [&V4[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        let mut all = vec![
            (binary(0x21, 0x11, &V4), Some("192.0.2.1:56324")),
            (binary(0x21, 0x11, &extra), Some("192.0.2.1:56324")),
            (binary(0x21, 0x21, &v6()), Some("[2001:db8::1]:56324")),
            (binary(0x20, 0x11, &V4), None),
            (binary(0x20, 0x00, &[]), None),
            (binary(0x21, 0x00, &[7; 9]), None),
            (binary(0x21, 0x31, &[b'/'; 216]), None),
        ];
        for (line, named) in [
            ("PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\n", Some("192.0.2.1:56324")),
            ("PROXY TCP6 2001:db8::1 ::1 56324 443\r\n", Some("[2001:db8::1]:56324")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff::1 ::1 1 2\r\n", None),
        ] {
            all.push((line.as_bytes().to_vec(), named));
        }
        all
    }

    #[tokio::test]
    async fn whom_a_header_names_is_known_and_what_follows_is_left() {
        for (header, named) in headers() {
            let sent = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            let mut socket = sent.as_slice();
            let read = read(&mut socket).await.unwrap();
            assert_eq!(read.map(|it| it.to_string()).as_deref(), named, "{header:?}");
            assert_eq!(socket, b"GET / HTTP/1.1\r\n");
        }
    }

    #[tokio::test]
    async fn a_header_may_come_byte_by_byte_and_half_a_one_is_none() {
        for (header, named) in headers() {
            for end in 0..header.len() {
                assert!(matches!(look(&header[..end]), Ok(Seen::Wants(_))), "{end} {header:?}");
                let half = read(&mut &header[..end]).await.unwrap_err();
                assert_eq!(matches!(half, NoHeader::Nothing), end == 0, "{half}");
            }
            let mut bytes = tokio_test_reader(&header);
            let read = read(&mut bytes).await.unwrap();
            assert_eq!(read.map(|it| it.to_string()).as_deref(), named);
        }
    }

    /// Gives one byte at a time.
    fn tokio_test_reader(bytes: &[u8]) -> impl AsyncRead + Unpin {
        let (ours, mut theirs) = tokio::io::duplex(1);
        let bytes = bytes.to_vec();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(tokio::io::AsyncWriteExt::write_all(&mut theirs, &bytes)).unwrap();
        });
        ours
    }

    #[test]
    fn what_is_no_header_is_refused_at_its_first_wrong_byte() {
        let too_long = format!("PROXY UNKNOWN {}", "x".repeat(LONGEST_LINE));
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"\x16\x03\x01",
            b"proxy TCP4 ",
            b"PROXY\tUNKNOWN\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\n\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 56324\r\n",
            b"PROXY TCP4 2001:db8::1 ::1 56324 443\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 65536 443\r\n",
            b"PROXY UDP4 192.0.2.1 10.0.0.1 1 443\r\n",
            b"PROXY TCP4 192.0.2.256 10.0.0.1 1 443\r\n",
            too_long.as_bytes(),
            &binary(0x11, 0x11, &V4),
            &binary(0x22, 0x11, &V4),
            &binary(0x21, 0x11, &V4[1..]),
            &binary(0x21, 0x12, &V4),
            &binary(0x21, 0x41, &V4),
            &binary(0x21, 0x11, &[0; MOST_REST + 1]),
            b"\r\n\r\n\0\r\nQUIP\n",
        ] {
            assert!(matches!(look(bytes), Err(NoHeader::Malformed)), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_read_too_much(
            version in 0..3usize, bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let begins: [&[u8]; 3] = [b"", b"PROXY TCP4 ", v2::PROTOCOL_PREFIX];
            let bytes = [begins[version], &bytes].concat();
            for end in 0..=bytes.len() {
                if let Ok(Seen::Wants(more)) = look(&bytes[..end]) {
                    prop_assert!(more > 0 && end + more <= FIXED + MOST_REST);
                }
            }
        }

        #[test]
        fn every_address_is_read_as_it_was_written(from: SocketAddr, to: SocketAddr) {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            prop_assume!(from.is_ipv4() == to.is_ipv4());
            let (a, b, p, q) = (from.ip(), to.ip(), from.port(), to.port());
            let line = format!("PROXY {family} {a} {b} {p} {q}\r\n");
            let Ok(Seen::Whole(Some(named))) = look(line.as_bytes()) else {
                panic!("{line}");
            };
            prop_assert_eq!((named.ip(), named.port()), (a, p));
        }
    }
}
