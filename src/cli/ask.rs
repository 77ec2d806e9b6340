//! Asking a running server one thing: `portcullis health`, and whether a backend answers.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::config::{self, Given, ListenAddr};
use crate::tls;

const PATIENCE: Duration = Duration::from_secs(2);
const MOST_READ: u64 = 1024 * 1024;
const HEALTH: &str = "/_portcullis/health";

pub(super) fn health(given: &Given) -> anyhow::Result<()> {
    let config = config::load_without_credentials(given).context("cannot ask")?.config;
    let listen = config.listen.first().context("no address to listen on")?;
    let speaks_tls = !config.tls_pairs().is_empty();
    let asked = match listen {
        ListenAddr::Tcp(address) if speaks_tls => {
            get_by_tls(&on_this_machine(*address).to_string(), HEALTH)
        }
        ListenAddr::Tcp(address) => get(&on_this_machine(*address).to_string(), HEALTH),
        ListenAddr::Unix(socket) => get_over_unix(socket, HEALTH),
    };
    let (status, _) = asked.with_context(|| format!("no gate answers at {listen}"))?;
    if status != 200 {
        bail!("the gate at {listen} answered {status}");
    }
    super::say(&format!("the gate at {listen} is alive"));
    Ok(())
}

/// Nobody is authenticated by this: it asks whether somebody answers on this machine. A gate that
/// wants a certificate first has answered.
fn get_by_tls(address: &str, path: &str) -> anyhow::Result<(u16, String)> {
    let host: SocketAddr = address.parse()?;
    let mut socket = tls::ask_unverified(connect(address)?, &host.ip().to_string())?;
    match talk(&mut socket, address, path) {
        Err(error) if tls::wants_a_certificate(&error) => Ok((200, String::new())),
        answer => answer.context("that is no answer over TLS"),
    }
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
    Ok(talk(&mut connect(authority)?, authority, path)?)
}

fn connect(authority: &str) -> anyhow::Result<TcpStream> {
    let address = authority.to_socket_addrs()?.next().context("the name has no address")?;
    let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn get_over_unix(socket: &Path, path: &str) -> anyhow::Result<(u16, String)> {
    let mut socket = UnixStream::connect(socket)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    talk(&mut socket, "localhost", path).context("that is no answer")
}

fn talk(
    socket: &mut (impl Read + Write),
    authority: &str,
    path: &str,
) -> io::Result<(u16, String)> {
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    socket.take(MOST_READ).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    let status = status.and_then(|digits| digits.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("that is not HTTP"))?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    Ok((status, body.unwrap_or_default()))
}
