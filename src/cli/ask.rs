//! Asking a running server one thing: `portcullis health`, and whether a backend answers.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::config::{self, Given, ListenAddr};

const PATIENCE: Duration = Duration::from_secs(2);
const MOST_READ: u64 = 1024 * 1024;

pub(super) fn health(given: &Given) -> anyhow::Result<()> {
    let config = config::load_without_credentials(given).context("cannot ask")?.config;
    let listen = config.listen.first().context("no address to listen on")?;
    let path = "/_portcullis/health";
    let answer = match listen {
        ListenAddr::Tcp(address) => get(&on_this_machine(*address).to_string(), path),
        ListenAddr::Unix(socket) => get_over_unix(socket, path),
    };
    let (status, _) = answer.with_context(|| format!("no gate answers at {listen}"))?;
    if status != 200 {
        bail!("the gate at {listen} answered {status}");
    }
    super::say(&format!("the gate at {listen} is alive"));
    Ok(())
}

/// Whatever address the gate listens on, it can be asked on this machine's own.
pub(super) fn on_this_machine(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(ip, listen.port())
}

/// Status and body of a GET, in a few seconds or not at all.
pub(super) fn get(authority: &str, path: &str) -> anyhow::Result<(u16, String)> {
    let address = authority.to_socket_addrs()?.next().context("the name has no address")?;
    let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    exchange(socket, authority, path)
}

fn get_over_unix(socket: &Path, path: &str) -> anyhow::Result<(u16, String)> {
    let socket = UnixStream::connect(socket)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    exchange(socket, "localhost", path)
}

fn exchange(
    mut socket: impl Read + Write,
    authority: &str,
    path: &str,
) -> anyhow::Result<(u16, String)> {
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    socket.take(MOST_READ).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    let status = status.and_then(|digits| digits.parse().ok()).context("that is not HTTP")?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    Ok((status, body.unwrap_or_default()))
}
