//! Sockets: accept, HTTP/1.1 and HTTP/2, drain.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use crate::client_addr::PeerAddr;
use crate::config::ListenAddr;
use crate::gateway::{Gateway, Terms};
use crate::socket::Socket;

mod connection;
mod handshake;
mod http2;
mod introduction;
mod listener;
mod places;

pub use listener::{HandedOver, Listener};
pub use places::{connections_with, files_for, make_room};

use connection::{Newcomer, Standing};
use places::Places;

/// How often files and idle connections are looked at without a request.
const TEND: Duration = Duration::from_secs(1);
/// A log that nobody reads does not hold up the end.
const FLUSH: Duration = Duration::from_secs(2);
/// Connections without a place that are read as far as their first request, to be told so. One that
/// comes makes the oldest of them go, so that silent ones do not keep the health check out.
const MOST_SURPLUS: usize = 16;
/// Connections of the admin API at once.
const MOST_ADMINS: usize = 64;
/// At the limit of open files accepting is tried again after this long.
const BREATHER: Duration = Duration::from_millis(100);

/// What callers of a listener come for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entrance {
    Main,
    /// To be told where it is.
    Redirect,
    /// To look after the gate.
    Admin,
}

/// How far a shutdown has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    /// Not ready any more, but everything that comes is served.
    Draining,
    /// The listeners are closed.
    Closing,
}

/// A gateway that serves; dropping it cuts every connection.
#[derive(Debug)]
pub struct Server {
    gateway: Arc<Gateway>,
    stage: watch::Sender<Stage>,
    tasks: JoinSet<()>,
    places: Arc<Places>,
    addresses: Vec<SocketAddr>,
}

impl Server {
    /// Opens every address; port 0 is one that the system gives. To be called within a runtime.
    ///
    /// # Errors
    /// The address that could not be opened, and why.
    pub fn bind(addresses: &[ListenAddr]) -> Result<Vec<Listener>, (ListenAddr, io::Error)> {
        let open = |it: &ListenAddr| Listener::open(it).map_err(|error| (it.clone(), error));
        addresses.iter().map(open).collect()
    }

    /// Serves on the listeners until [`Server::shutdown`].
    #[must_use]
    pub fn start(listeners: Vec<Listener>, gateway: &Arc<Gateway>) -> Self {
        let (stage, stages) = watch::channel(Stage::Serving);
        let mut tasks = JoinSet::new();
        let tcp = |it: &Listener| match it.address() {
            ListenAddr::Tcp(address) => Some(*address),
            ListenAddr::Unix(_) => None,
        };
        let addresses: Vec<_> = listeners.iter().filter_map(tcp).collect();
        if let Some(first) = addresses.first() {
            gateway.listens_at(first.port());
        }
        let places = Arc::new(Places::new());
        for listener in listeners {
            let acceptor = Acceptor::new(Entrance::Main, gateway, stages.clone(), &places);
            tasks.spawn(acceptor.accept(listener));
        }
        tasks.spawn(tend(Arc::clone(gateway), Arc::clone(&places), stages));
        Self { gateway: Arc::clone(gateway), stage, tasks, places, addresses }
    }

    /// Answers on this listener too, in plain HTTP, that the gate is to be asked by https.
    pub fn redirect(&mut self, listener: Listener) {
        let stages = self.stage.subscribe();
        let acceptor = Acceptor::new(Entrance::Redirect, &self.gateway, stages, &self.places);
        self.tasks.spawn(acceptor.accept(listener));
    }

    /// Serves the admin API on this listener. It has places of its own, so that a gate that has no
    /// place left can be looked after.
    pub fn administer(&mut self, listener: Listener) {
        let stages = self.stage.subscribe();
        let places = Arc::new(Places::new());
        let acceptor = Acceptor::new(Entrance::Admin, &self.gateway, stages, &places);
        self.tasks.spawn(acceptor.accept(listener));
    }

    /// Of the network, but for that of a redirect and the admin API; Unix sockets have none.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Not ready at once; listeners closed after `delay`; what still runs after `timeout` is cut.
    /// When `hurry` completes, the rest happens at once, in order.
    pub async fn shutdown(
        mut self,
        delay: Duration,
        timeout: Duration,
        hurry: impl Future<Output = ()>,
    ) {
        let mut hurry = std::pin::pin!(hurry);
        self.gateway.drain();
        self.stage.send_replace(Stage::Draining);
        // not before it is so: a request that comes after this line is the last of its connection
        tracing::info!(in_flight = self.gateway.in_flight(), "stopping");
        let hurried = tokio::select! {
            () = sleep(delay) => false,
            () = &mut hurry => true,
        };
        self.stage.send_replace(Stage::Closing);
        let all_done = !hurried
            && tokio::select! {
                () = finished(&mut self.tasks) => true,
                () = sleep(timeout) => false,
                () = hurry => false,
            };
        if !all_done {
            let cut = self.gateway.in_flight();
            tracing::warn!(requests = cut, "requests are cut that did not end in time");
            self.gateway.log().cut();
            self.tasks.shutdown().await;
            // Each connection holds a receiver: with the last one the last line is posted.
            let _ = tokio::time::timeout(FLUSH, self.stage.closed()).await;
        }
        let gateway = Arc::clone(&self.gateway);
        // Flushing may wait for a slow reader of the log; nothing else is left to be held up.
        let _ = tokio::task::spawn_blocking(move || gateway.flush(FLUSH)).await;
    }
}

async fn finished(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

async fn tend(gateway: Arc<Gateway>, places: Arc<Places>, mut stages: watch::Receiver<Stage>) {
    loop {
        let closing = tokio::select! {
            () = sleep(TEND) => false,
            _ = stages.wait_for(|stage| *stage == Stage::Closing) => true,
        };
        if closing {
            return;
        }
        places.look();
        gateway.tend().await;
    }
}

/// One listener, and everybody who came in by it.
struct Acceptor {
    entrance: Entrance,
    gateway: Arc<Gateway>,
    stages: watch::Receiver<Stage>,
    places: Arc<Places>,
    connections: JoinSet<()>,
    surplus: VecDeque<AbortHandle>,
}

impl Acceptor {
    fn new(
        entrance: Entrance,
        gateway: &Arc<Gateway>,
        stages: watch::Receiver<Stage>,
        places: &Arc<Places>,
    ) -> Self {
        Self {
            entrance,
            gateway: Arc::clone(gateway),
            stages,
            places: Arc::clone(places),
            connections: JoinSet::new(),
            surplus: VecDeque::new(),
        }
    }

    async fn accept(mut self, mut listener: Listener) {
        let mut closing = self.stages.clone();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = closing.wait_for(|stage| *stage == Stage::Closing) => break,
                Some(_) = self.connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(accepted) => self.welcome(accepted),
                Err(error) => self.wait_for_better(&error).await,
            }
        }
        listener.hide();
        // Whoever stands in the queue already has asked in time; in a supervisor's, the next of us is.
        let mut queued = if listener.is_handed_over() { 0 } else { listener::MOST_QUEUED };
        while queued > 0 {
            // Those who go on coming are not in the queue of that moment.
            queued -= 1;
            match listener.waiting() {
                Ok(accepted) => self.welcome(accepted),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => break,
            }
        }
        drop(listener);
        finished(&mut self.connections).await;
    }

    fn welcome(&mut self, (socket, peer): (Socket, SocketAddr)) {
        let terms = self.terms_for(PeerAddr::new(peer.ip()));
        let standing = self.standing(PeerAddr::new(peer.ip()), terms);
        let is_surplus = matches!(standing, Standing::Surplus(_));
        let (gateway, stages) = (Arc::clone(&self.gateway), self.stages.clone());
        let (entrance, is_announced) = (self.entrance, terms.is_announced);
        let newcomer = Newcomer { socket, peer, standing, entrance, is_announced };
        let task = if terms.is_announced {
            self.connections.spawn(introduction::serve(newcomer, gateway, stages))
        } else {
            self.connections.spawn(connection::serve(newcomer, gateway, stages))
        };
        if is_surplus {
            self.surplus.push_back(task);
            if self.surplus.len() > MOST_SURPLUS
                && let Some(oldest) = self.surplus.pop_front()
            {
                oldest.abort();
            }
        }
    }

    fn terms_for(&self, peer: PeerAddr) -> Terms {
        match self.entrance {
            Entrance::Main | Entrance::Redirect => self.gateway.terms_for(peer),
            Entrance::Admin => Terms { most: MOST_ADMINS, from_it: None, is_announced: false },
        }
    }

    fn standing(&self, peer: PeerAddr, terms: Terms) -> Standing {
        let place = self.places.take(terms.most);
        let counted = place.and_then(|mut place| match terms.from_it {
            // Whom it is for is still to be said.
            Some(_) if terms.is_announced => Some(place),
            Some(most) => place.count_for(peer, most).then_some(place),
            None => Some(place),
        });
        if let Some(place) = counted {
            return Standing::Placed(place);
        }
        if self.gateway.log().overload().is_due(Instant::now()) {
            let client = peer.ip();
            tracing::warn!(%client, "all connections are taken; callers are told 503");
        }
        Standing::Surplus(None)
    }

    /// A caller who left in the queue is nothing; no file descriptors is told, and waited for.
    async fn wait_for_better(&self, error: &io::Error) {
        if error.kind() == io::ErrorKind::ConnectionAborted {
            return;
        }
        if self.gateway.log().overload().is_due(Instant::now()) {
            tracing::error!(%error, "cannot accept connections; raise the limit of open files");
        }
        sleep(BREATHER).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::config::{Config, LogFormat};
    use crate::record::Log;

    const HEALTH: &[u8] = b"GET /_portcullis/health HTTP/1.1\r\nHost: g\r\n\r\n";

    #[tokio::test]
    async fn whoever_stands_in_the_queue_when_the_door_closes_is_served() {
        let log = Log::start(io::sink(), LogFormat::Json).unwrap();
        let gateway = Arc::new(Gateway::new(Config::builtin(), log).unwrap());
        let listener = Listener::open(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let ListenAddr::Tcp(address) = *listener.address() else { panic!("a port was asked for") };
        // More than the runtime lets one task do at a time.
        let callers: Vec<_> = (0..300)
            .map(|_| {
                let mut caller = std::net::TcpStream::connect(address).unwrap();
                caller.write_all(HEALTH).unwrap();
                caller
            })
            .collect();
        gateway.drain();
        let (_stage, stages) = watch::channel(Stage::Closing);
        let places = Arc::new(Places::new());
        Acceptor::new(Entrance::Main, &gateway, stages, &places).accept(listener).await;
        for mut caller in callers {
            let mut answer = String::new();
            caller.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
        }
    }
}
