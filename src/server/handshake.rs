//! A caller's way through the door: the handshake of TLS, and a line for whoever fails it.

use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio::sync::watch;

use super::{Stage, connection};
use crate::gateway::{Door, Gateway};
use crate::reject::Reject;
use crate::socket::Socket;
use crate::tls::{Accepted, Offer, Protocol, Refused, Tls};

/// Shakes hands with a caller; `None` where that came to nothing. A drain waits for no caller who
/// says nothing.
pub(super) async fn open(
    tls: &Tls,
    socket: TcpStream,
    peer: SocketAddr,
    offer: Offer,
    gateway: &Gateway,
    stages: watch::Receiver<Stage>,
) -> Option<(Socket, Protocol, Door)> {
    let limit = gateway.state().config().timeouts.header;
    let enough = connection::idle_in_a_drain(stages);
    let refused = match tls.accept(socket, offer, limit, enough).await {
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
