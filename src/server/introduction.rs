//! A connection from a proxy of the transport layer, which first has to say whom it comes from.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::timeout;

use super::Stage;
use super::connection::{self, Newcomer, Standing};
use crate::client_addr::PeerAddr;
use crate::gateway::Gateway;
use crate::proxy_protocol::{self, NoHeader};
use crate::reject::Reject;

/// Serves the connection for whom it is announced; without a header it is closed.
pub(super) async fn serve(
    mut newcomer: Newcomer,
    gateway: Arc<Gateway>,
    stages: watch::Receiver<Stage>,
) {
    let patience = gateway.state().config().timeouts.header;
    let named = tokio::select! {
        named = timeout(patience, proxy_protocol::read(&mut newcomer.socket)) => named,
        () = connection::idle_in_a_drain(stages.clone()) => return,
    };
    let reject = match named {
        Ok(Ok(caller)) => {
            if let Some(caller) = caller {
                newcomer.standing = counted(newcomer.standing, caller, &gateway);
                newcomer.peer = caller;
            }
            return Box::pin(connection::serve(newcomer, gateway, stages)).await;
        }
        // Somebody looked whether the port is open.
        Ok(Err(NoHeader::Nothing | NoHeader::Broken(_))) => return,
        Ok(Err(NoHeader::Malformed | NoHeader::Half)) => {
            Reject::BadRequest("the connection does not begin with a PROXY header")
        }
        Err(_) => Reject::RequestTimeout,
    };
    // Nothing is answered: who speaks another protocol would not understand it.
    gateway.record_of(newcomer.peer).refuse(&reject, 0);
}

/// The caller has its own limit, now that it is known.
fn counted(standing: Standing, caller: SocketAddr, gateway: &Gateway) -> Standing {
    let caller = PeerAddr::new(caller.ip());
    match (standing, gateway.terms_for(caller).from_it) {
        (Standing::Placed(mut place), Some(most)) => match place.count_for(caller, most) {
            true => Standing::Placed(place),
            false => Standing::Surplus(Some(place)),
        },
        (standing, _) => standing,
    }
}
