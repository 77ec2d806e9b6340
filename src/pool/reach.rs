//! The way to a backend's address. Names are looked up each time, because addresses change.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::{TcpStream, lookup_host};

use crate::config::is_link_local;

/// A connection to the first address of a host that takes one.
///
/// # Errors
/// What the system says, and where a host has no other address than one that is refused.
pub(super) async fn reach(host: &str, port: u16) -> io::Result<TcpStream> {
    // An address is no name to be looked up.
    if let Ok(ip) = host.parse::<IpAddr>() {
        return match is_link_local(ip) {
            true => Err(refused(host)),
            false => TcpStream::connect(SocketAddr::new(ip, port)).await,
        };
    }
    let found: Vec<_> = lookup_host((host, port)).await?.collect();
    let good: Vec<_> = found.iter().copied().filter(|it| !is_link_local(it.ip())).collect();
    if good.is_empty() && !found.is_empty() {
        return Err(refused(host));
    }
    TcpStream::connect(good.as_slice()).await
}

fn refused(host: &str) -> io::Error {
    let says = format!(
        "{host} is a link-local address, where clouds keep a machine's secrets; no request is sent there"
    );
    io::Error::new(io::ErrorKind::PermissionDenied, says)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_sent_to_a_refused_address() {
        let error = reach("169.254.169.254", 80).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("link-local"), "{error}");
    }
}
