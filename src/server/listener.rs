//! Where callers come in: opened by us, or handed over by a supervisor.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use socket2::{Domain, SockAddr, SockRef, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use crate::config::ListenAddr;
use crate::socket::Socket;

/// Callers that the kernel keeps while we are busy; it may be set to keep fewer.
pub(super) const MOST_QUEUED: u32 = 1024;
/// Who may ask is a matter of credentials, as on a port; the folder can say more.
const FOR_EVERYBODY: u32 = 0o666;
/// A caller on a Unix socket is a program of this machine.
const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// One place where callers come in.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    address: ListenAddr,
    owner: Owner,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Who opened it, and so has to close it.
#[derive(Debug)]
enum Owner {
    Us(#[expect(dead_code, reason = "goes when the listener does")] Option<SocketFile>),
    /// It stays open when we go, and whoever waits in its queue waits for the next of us.
    Supervisor,
}

impl Listener {
    /// To be called within a runtime, like all that makes one.
    pub(super) fn open(address: &ListenAddr) -> io::Result<Self> {
        match address {
            ListenAddr::Tcp(address) => Self::of_tcp(open_tcp(*address)?, Owner::Us(None)),
            ListenAddr::Unix(path) => {
                make_way(path)?;
                let listener = UnixListener::bind(path)?;
                let file = SocketFile::new(path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(FOR_EVERYBODY))?;
                Ok(Self {
                    kind: Kind::Unix(listener),
                    address: address.clone(),
                    owner: Owner::Us(Some(file)),
                })
            }
        }
    }

    fn of_tcp(listener: TcpListener, owner: Owner) -> io::Result<Self> {
        let address = ListenAddr::Tcp(listener.local_addr()?);
        Ok(Self { kind: Kind::Tcp(listener), address, owner })
    }

    #[must_use]
    pub fn address(&self) -> &ListenAddr {
        &self.address
    }

    pub(super) fn is_handed_over(&self) -> bool {
        matches!(self.owner, Owner::Supervisor)
    }

    /// Nobody finds a Unix socket any more; who has found it is still served.
    pub(super) fn hide(&mut self) {
        if let Owner::Us(_) = self.owner {
            self.owner = Owner::Us(None);
        }
    }

    pub(super) async fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        match &self.kind {
            Kind::Tcp(listener) => {
                listener.accept().await.map(|(socket, peer)| (socket.into(), peer))
            }
            Kind::Unix(listener) => listener.accept().await.map(|(it, _)| (it.into(), LOCAL)),
        }
    }

    /// The next connection, if it is there now. Asks the kernel: the runtime may not have heard yet,
    /// and says after a hundred or so that nobody is there, to let others run.
    pub(super) fn waiting(&self) -> io::Result<(Socket, SocketAddr)> {
        let (socket, peer) = match &self.kind {
            Kind::Tcp(listener) => SockRef::from(listener).accept()?,
            Kind::Unix(listener) => SockRef::from(listener).accept()?,
        };
        socket.set_nonblocking(true)?;
        match &self.kind {
            Kind::Tcp(_) => {
                let peer = peer.as_socket().ok_or(io::ErrorKind::ConnectionAborted)?;
                Ok((TcpStream::from_std(socket.into())?.into(), peer))
            }
            Kind::Unix(_) => Ok((UnixStream::from_std(socket.into())?.into(), LOCAL)),
        }
    }
}

/// The runtime's own way would let only 128 callers wait.
fn open_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // A restart finds connections of the gate before it that still linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(MOST_QUEUED)
}

/// Removes a socket at which nobody listens any more: a gate that was killed leaves it.
fn make_way(path: &Path) -> io::Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let caller = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full queue is no reason to wait.
    caller.set_nonblocking(true)?;
    match caller.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        Ok(()) | Err(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// A Unix socket's place in the file system; dropping it removes the file, if it is still ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), id: (found.dev(), found.ino()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == self.id) {
            // What is left is removed by the next of us.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Sockets that a supervisor opened for us (sd_listen_fds(3)).
pub struct HandedOver(ListenFd);

impl HandedOver {
    /// To be called before there are threads: it changes the environment.
    #[must_use]
    pub fn from_env() -> Self {
        Self(ListenFd::from_env())
    }

    /// # Errors
    /// Where one is no socket to accept connections from.
    pub fn listeners(mut self) -> io::Result<Vec<Listener>> {
        let mut listeners = Vec::new();
        for number in 0..self.0.len() {
            if let Ok(Some(tcp)) = self.0.take_tcp_listener(number) {
                tcp.set_nonblocking(true)?;
                listeners.push(Listener::of_tcp(TcpListener::from_std(tcp)?, Owner::Supervisor)?);
            } else if let Some(unix) = self.0.take_unix_listener(number)? {
                unix.set_nonblocking(true)?;
                let place = unix.local_addr()?.as_pathname().map(Path::to_owned);
                listeners.push(Listener {
                    kind: Kind::Unix(UnixListener::from_std(unix)?),
                    address: ListenAddr::Unix(place.unwrap_or_default()),
                    owner: Owner::Supervisor,
                });
            }
        }
        Ok(listeners)
    }
}

impl std::fmt::Debug for HandedOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandedOver").field("sockets", &self.0.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &Path) -> ListenAddr {
        ListenAddr::Unix(path.to_owned())
    }

    #[tokio::test]
    async fn a_socket_that_a_killed_gate_left_is_taken_over_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gate");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "nobody listens there, and the file is left");
        let first = Listener::open(&place(&path)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, FOR_EVERYBODY);
        let error = Listener::open(&place(&path)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(!path.exists(), "the end removes it");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        fs::write(&path, "mine").unwrap();
        let error = Listener::open(&place(&path)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[tokio::test]
    async fn another_gates_socket_is_not_removed_with_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gate");
        let mut first = Listener::open(&place(&path)).unwrap();
        fs::rename(&path, folder.path().join("moved")).unwrap();
        let _second = Listener::open(&place(&path)).unwrap();
        first.hide();
        assert!(path.exists());
    }
}
