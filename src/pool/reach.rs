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
    let found = lookup_host((host, port)).await?.collect();
    TcpStream::connect(allowed(host, found)?.as_slice()).await
}

/// What a name leads to, without what is refused.
fn allowed(host: &str, mut found: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
    let is_known = !found.is_empty();
    found.retain(|it| !is_link_local(it.ip()));
    match is_known && found.is_empty() {
        true => Err(refused(host)),
        false => Ok(found),
    }
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

    #[test]
    fn of_what_a_name_leads_to_nothing_that_is_refused_is_tried() {
        let addresses = |texts: &[&str]| texts.iter().map(|it| it.parse().unwrap()).collect();
        let bad = ["169.254.169.254:80", "[fe80::1]:80", "[::ffff:169.254.169.254]:80"];
        let mixed = ["169.254.169.254:80", "192.0.2.7:80", "[fe80::1]:80", "[2001:db8::1]:80"];
        let good: Vec<SocketAddr> = addresses(&["192.0.2.7:80", "[2001:db8::1]:80"]);
        assert_eq!(allowed("gpu", addresses(&mixed)).unwrap(), good);
        let error = allowed("gpu", addresses(&bad)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().starts_with("gpu is a link-local address"), "{error}");
    }
}
