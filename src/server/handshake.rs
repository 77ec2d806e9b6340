//! A caller's way through the door: the handshake of TLS, and a line for whoever fails it.

use std::net::SocketAddr;

use super::connection;
use crate::gateway::{Door, Gateway};
use crate::reject::Reject;
use crate::socket::Socket;
use crate::tls::{Accepted, Protocol, Refused};

/// Shakes hands with a caller; `None` where that came to nothing.
pub(super) async fn open(
    handshake: impl Future<Output = Result<Accepted, Refused>>,
    peer: SocketAddr,
    gateway: &Gateway,
) -> Option<(Socket, Protocol, Door)> {
    let refused = match handshake.await {
        Ok(Accepted { socket, protocol, certificate }) => {
            return Some((socket, protocol, Door::Tls(certificate)));
        }
        Err(refused) => refused,
    };
    let client = peer.ip().to_canonical();
    match refused {
        Refused::Silent => {}
        Refused::PlainHttp(socket) => {
            let reject =
                Reject::BadRequest("this port speaks TLS; begin the address with https://");
            connection::refuse_at_the_door(socket.into(), &reject, peer, gateway).await;
        }
        Refused::Late => tracing::info!(%client, "a TLS handshake was not done in time"),
        Refused::Failed(error) => tracing::info!(%client, %error, "a TLS handshake failed"),
    }
    None
}
