//! Sockets: accept, HTTP/1.1, drain.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::gateway::Gateway;

mod connection;
mod handshake;

/// How often files and idle connections are looked at without a request.
const TEND: Duration = Duration::from_secs(1);
/// A log that nobody reads does not hold up the end.
const FLUSH: Duration = Duration::from_secs(2);
/// Callers that the kernel keeps while we are busy; it may be set to keep fewer.
const MOST_QUEUED: u32 = 1024;
/// At the limit of open files accepting is tried again after this long.
const BREATHER: Duration = Duration::from_millis(100);

/// What callers of a listener come for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entrance {
    Main,
    /// To be told where it is.
    Redirect,
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
    addresses: Vec<SocketAddr>,
}

impl Server {
    /// Opens every address; port 0 is one that the system gives. To be called within a runtime.
    ///
    /// # Errors
    /// The address that could not be opened, and why.
    pub fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
        let mut listeners = Vec::new();
        for address in addresses {
            listeners.push(open(*address).map_err(|error| (*address, error))?);
        }
        Ok(listeners)
    }

    /// Serves on the listeners until [`Server::shutdown`].
    #[must_use]
    pub fn start(listeners: Vec<TcpListener>, gateway: &Arc<Gateway>) -> Self {
        let (stage, stages) = watch::channel(Stage::Serving);
        let mut tasks = JoinSet::new();
        let addresses = listeners.iter().filter_map(|it| it.local_addr().ok()).collect();
        for listener in listeners {
            tasks.spawn(accept(listener, Entrance::Main, Arc::clone(gateway), stages.clone()));
        }
        tasks.spawn(tend(Arc::clone(gateway), stages));
        Self { gateway: Arc::clone(gateway), stage, tasks, addresses }
    }

    /// Answers on this listener too, in plain HTTP, that the gate is to be asked by https.
    pub fn redirect(&mut self, listener: TcpListener) {
        let (gateway, stages) = (Arc::clone(&self.gateway), self.stage.subscribe());
        self.tasks.spawn(accept(listener, Entrance::Redirect, gateway, stages));
    }

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
        let _ = tokio::task::spawn_blocking(move || gateway.log().flush(FLUSH)).await;
    }
}

/// The runtime's own way would let only 128 callers wait.
fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // A restart finds connections of the gate before it that still linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(MOST_QUEUED)
}

async fn finished(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

async fn tend(gateway: Arc<Gateway>, mut stages: watch::Receiver<Stage>) {
    loop {
        let closing = tokio::select! {
            () = sleep(TEND) => false,
            _ = stages.wait_for(|stage| *stage == Stage::Closing) => true,
        };
        if closing {
            return;
        }
        gateway.tend().await;
    }
}

async fn accept(
    listener: TcpListener,
    entrance: Entrance,
    gateway: Arc<Gateway>,
    stages: watch::Receiver<Stage>,
) {
    let mut connections = JoinSet::new();
    let mut closing = stages.clone();
    let mut complained = None;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = closing.wait_for(|stage| *stage == Stage::Closing) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => welcome(accepted, entrance, &mut connections, &gateway, &stages),
            Err(error) => wait_for_better(&error, &mut complained).await,
        }
    }
    // Whoever stands in the queue already has asked in time.
    loop {
        match waiting(&listener) {
            Ok(accepted) => welcome(accepted, entrance, &mut connections, &gateway, &stages),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => break,
        }
    }
    drop(listener);
    finished(&mut connections).await;
}

fn welcome(
    (socket, peer): (TcpStream, SocketAddr),
    entrance: Entrance,
    connections: &mut JoinSet<()>,
    gateway: &Arc<Gateway>,
    stages: &watch::Receiver<Stage>,
) {
    connections.spawn(connection::serve(
        socket.into(),
        peer,
        entrance,
        Arc::clone(gateway),
        stages.clone(),
    ));
}

/// The next connection, if it is there now. Asks the kernel: the runtime may not have heard yet, and
/// says after a hundred or so that nobody is there, to let others run.
fn waiting(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (socket, peer) = SockRef::from(listener).accept()?;
    socket.set_nonblocking(true)?;
    let peer = peer.as_socket().ok_or(io::ErrorKind::ConnectionAborted)?;
    Ok((TcpStream::from_std(socket.into())?, peer))
}

/// A caller who left in the queue is nothing; no file descriptors is told once a second at most.
async fn wait_for_better(error: &io::Error, complained: &mut Option<Instant>) {
    if error.kind() == io::ErrorKind::ConnectionAborted {
        return;
    }
    let now = Instant::now();
    if complained.is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1)) {
        tracing::error!(%error, "cannot accept connections; raise the limit of open files");
        *complained = Some(now);
    }
    sleep(BREATHER).await;
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
        let listener = open("127.0.0.1:0".parse().unwrap()).unwrap();
        // More than the runtime lets one task do at a time.
        let callers: Vec<_> = (0..300)
            .map(|_| {
                let mut caller =
                    std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                caller.write_all(HEALTH).unwrap();
                caller
            })
            .collect();
        gateway.drain();
        let (_stage, stages) = watch::channel(Stage::Closing);
        accept(listener, Entrance::Main, gateway, stages).await;
        for mut caller in callers {
            let mut answer = String::new();
            caller.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
        }
    }
}
