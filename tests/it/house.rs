//! A whole gate on a port of the system's, a scripted backend behind it, and a caller that speaks
//! bytes.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use portcullis::config::{AtOnce, Config, ListenAddr, LogFormat, Rule};
use portcullis::gateway::Gateway;
use portcullis::record::Log;
use portcullis::server::Server;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Everything waits for at most this long, and for the thing itself.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// For what is promised within 100 ms; a busy machine gets five times as much.
pub const SOON: Duration = Duration::from_millis(500);
/// In every house's key file, named `anna`.
pub const KEY: &str = "a-key-for-the-tests";
/// `anna`'s password in every house's users' file, by a cheap bcrypt hash.
pub const PASSWORD: &str = "open sesame";
const ANNA: &str = "anna:$2y$04$FRGiMtVb3qtDTX7I0fnjxutgwrMyuRhd0FZeO506Scl21JCiMK/Pe\n";

/// A gate that is served in this process.
pub struct House {
    pub address: SocketAddr,
    /// All of them, in the order of the configuration.
    pub addresses: Vec<SocketAddr>,
    pub gateway: Arc<Gateway>,
    pub folder: TempDir,
    pub log: Lines,
    server: Option<Server>,
    /// Of plain HTTP beside TLS.
    pub redirect: Option<SocketAddr>,
    /// Of the admin API.
    pub admin: Option<SocketAddr>,
}

impl House {
    /// A gate with a key file and a users' file in front of `backend`.
    pub async fn new(backend: &Backend) -> Self {
        Self::with(backend, |_, _| {}).await
    }

    /// The same, with changes to its configuration.
    pub async fn with(backend: &Backend, change: impl FnOnce(&mut Config, &TempDir)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::builtin();
        config.listen = vec!["127.0.0.1:0".parse().unwrap()];
        config.log_format = LogFormat::Json;
        config.admin = None;
        config.backends[0].url = format!("http://{}", backend.address).parse().unwrap();
        // Who waits for whom is a matter of its own.
        config.backends[0].parallel = NonZeroU32::new(1000).map(AtOnce::AtMost);
        let (users, keys) = (folder.path().join("htpasswd"), folder.path().join("api_keys.txt"));
        std::fs::write(&users, ANNA).unwrap();
        std::fs::write(&keys, format!("{KEY} # anna\n")).unwrap();
        (config.htpasswd, config.api_keys) = (Some(users), Some(keys));
        // So that lists are passed on as they are.
        config.rules = vec![Rule { cloud: true, ..Rule::default() }];
        change(&mut config, &folder);
        Self::serve(config, folder).await
    }

    #[expect(clippy::unused_async, reason = "sockets can be opened only where a runtime is")]
    async fn serve(config: Config, folder: TempDir) -> Self {
        let log = Lines::default();
        let written = Log::start(log.clone(), config.log_format).unwrap();
        let listeners = Server::bind(&config.listen).unwrap();
        let gateway = Arc::new(Gateway::new(config, written).unwrap());
        let redirect = gateway.state().config().redirect_listen.clone();
        let redirect = redirect.map(|it| Server::bind(&[it]).unwrap().remove(0));
        let mut server = Server::start(listeners, &gateway);
        let addresses = server.addresses().to_vec();
        let beside = redirect.as_ref().and_then(|it| match it.address() {
            ListenAddr::Tcp(address) => Some(*address),
            ListenAddr::Unix(_) => None,
        });
        if let Some(redirect) = redirect {
            server.redirect(redirect);
        }
        let desk = gateway.state().config().admin.clone();
        let desk = desk.map(|it| Server::bind(&[it]).unwrap().remove(0));
        let admin = desk.as_ref().and_then(|it| it.address().tcp());
        if let Some(desk) = desk {
            server.administer(desk);
        }
        let server = Some(server);
        let address = addresses[0];
        Self { address, addresses, gateway, folder, log, server, redirect: beside, admin }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub async fn connect(&self) -> Caller {
        Caller::connect(self.address).await
    }

    /// One request on a connection of its own; what comes back until the gate closes.
    pub async fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut caller = self.connect().await;
        caller.send(request).await;
        caller.answer().await
    }

    /// A GET with the key.
    pub async fn get(&self, path: &str) -> Answer {
        self.ask(get(path)).await
    }

    /// Ends the gate as SIGTERM does.
    pub async fn shutdown(mut self, delay: Duration, limit: Duration) {
        let server = self.server.take().unwrap();
        server.shutdown(delay, limit, std::future::pending()).await;
    }

    /// Ends the gate at once; every line that it left.
    pub async fn lines(self) -> Vec<serde_json::Value> {
        let log = self.log.clone();
        self.shutdown(Duration::ZERO, Duration::ZERO).await;
        log.all()
    }

    /// Takes the server out, to shut it down while the house is still asked.
    pub fn take_server(&mut self) -> Server {
        self.server.take().unwrap()
    }
}

/// A GET request with the key, as bytes.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {KEY}\r\n\r\n")
}

/// A POST request with the key, as bytes.
pub fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {KEY}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The lines of the request log.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// In the order in which requests came: of two on connections of their own the line of the first may be
    /// written last, though its answer was there before.
    pub fn all(&self) -> Vec<serde_json::Value> {
        let lines = self.text();
        let mut lines: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.sort_by_key(|line| line["id"].as_str().map(str::to_owned));
        lines
    }

    /// Waits until there are so many lines.
    pub async fn wait_for(&self, count: usize) -> Vec<serde_json::Value> {
        until("log lines", || (self.all().len() >= count).then(|| self.all())).await
    }
}

/// Asks again and again until there is an answer; panics when patience ends.
pub async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A caller on one connection.
pub struct Caller<S = TcpStream> {
    pub socket: S,
    unread: Vec<u8>,
}

/// One answer, read by its framing.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    /// The framing's own end was seen.
    pub whole: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).first().copied()
    }

    pub fn headers(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let named = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.trim()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.head, self.text()))
    }

    /// The stable code of a refusal, in whatever dialect.
    pub fn code(&self) -> String {
        let json = self.json();
        let code = json.get("code").or_else(|| json.pointer("/error/code"));
        code.and_then(|code| code.as_str()).unwrap_or_default().to_owned()
    }
}

impl Caller {
    pub async fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self::over(socket)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Caller<S> {
    pub fn over(socket: S) -> Self {
        Self { socket, unread: Vec::new() }
    }

    /// The gate may close in the middle of what is sent; that shows in the answer.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = timeout(PATIENCE, self.socket.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Reads one more piece; false at the end of the connection, however it ended.
    async fn read(&mut self) -> bool {
        let read = timeout(PATIENCE, self.socket.read_buf(&mut self.unread));
        let read = read.await.expect("the gate neither answered nor closed");
        read.is_ok_and(|bytes| bytes > 0)
    }

    /// Waits until what was received holds `text`, which is left unread; false if the end came first.
    pub async fn sees(&mut self, text: &str) -> bool {
        loop {
            if self.unread.windows(text.len()).any(|at| at == text.as_bytes()) {
                return true;
            }
            if !self.read().await {
                return false;
            }
        }
    }

    /// The same for the content of a chunked answer, however it was cut into chunks.
    pub async fn sees_content(&mut self, text: &str) -> bool {
        loop {
            if find(&content(&self.unread), text.as_bytes()).is_some() {
                return true;
            }
            if !self.read().await {
                return false;
            }
        }
    }

    /// Everything until the gate closes.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.read().await {}
        std::mem::take(&mut self.unread)
    }

    /// True when the connection ends and nothing more comes before.
    pub async fn is_closed(&mut self) -> bool {
        self.rest().await.is_empty()
    }

    /// The next final answer; `status` 0 if the gate closes without one.
    pub async fn answer(&mut self) -> Answer {
        self.answer_to("GET").await
    }

    pub async fn answer_to(&mut self, method: &str) -> Answer {
        loop {
            let answer = self.one_answer(method).await;
            if !(100..200).contains(&answer.status) {
                assert!(answer.headers("date").len() <= 1, "{}", answer.head);
                return answer;
            }
        }
    }

    async fn one_answer(&mut self, method: &str) -> Answer {
        let end = loop {
            if let Some(end) = find(&self.unread, b"\r\n\r\n") {
                break end;
            }
            if !self.read().await {
                return Answer::default();
            }
        };
        let head = String::from_utf8(self.unread.drain(..end + 4).collect()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head, ..Answer::default() };
        if method == "HEAD" || status < 200 || status == 204 || status == 304 {
            answer.whole = true;
        } else if answer.header("transfer-encoding").is_some() {
            self.read_chunks(&mut answer).await;
        } else if let Some(length) = answer.header("content-length") {
            let length = length.parse().unwrap();
            answer.whole = self.take(length, &mut answer.body).await;
        } else {
            answer.body = self.rest().await;
            answer.whole = true;
        }
        answer
    }

    async fn take(&mut self, length: usize, body: &mut Vec<u8>) -> bool {
        while self.unread.len() < length {
            if !self.read().await {
                body.append(&mut self.unread);
                return false;
            }
        }
        body.extend(self.unread.drain(..length));
        true
    }

    async fn read_chunks(&mut self, answer: &mut Answer) {
        loop {
            let end = loop {
                if let Some(end) = find(&self.unread, b"\r\n") {
                    break end;
                }
                if !self.read().await {
                    return;
                }
            };
            let line = String::from_utf8(self.unread.drain(..end + 2).collect()).unwrap();
            let length = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut chunk = Vec::new();
            let complete = self.take(length + 2, &mut chunk).await;
            if length == 0 {
                answer.whole = complete;
                return;
            }
            chunk.truncate(length);
            answer.body.append(&mut chunk);
            if !complete {
                return;
            }
        }
    }
}

pub fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|at| at == what)
}

/// What has come of a chunked answer that may not have ended yet.
fn content(answer: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    let mut rest = find(answer, b"\r\n\r\n").map_or(&[][..], |end| &answer[end + 4..]);
    while let Some(end) = find(rest, b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        let data = &rest[end + 2..];
        content.extend(&data[..size.min(data.len())]);
        rest = data.get(size + 2..).unwrap_or_default();
    }
    content
}

/// What a scripted backend does after a request has been read.
#[derive(Clone)]
pub enum Step {
    Send(Vec<u8>),
    /// The same piece again and again.
    Flood(Vec<u8>, usize),
    /// Until somebody notifies.
    Wait(Arc<Notify>),
    /// Until the gate closes the connection.
    AwaitClose,
    /// Ends the connection with a reset.
    Reset,
    Close,
}

/// One request as the backend saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub head: String,
    pub body: Vec<u8>,
    /// Counts the backend's connections from 0.
    pub connection: usize,
}

impl Seen {
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap()
    }

    pub fn header(&self, name: &str) -> Option<String> {
        let answer = Answer { head: self.head.clone(), ..Answer::default() };
        answer.header(name).map(str::to_owned)
    }
}

#[derive(Default)]
struct Records {
    seen: Vec<Seen>,
    own: Vec<Seen>,
    opened: usize,
    closed: usize,
    sent: u64,
}

/// A backend that does as it is told and remembers what it was asked.
pub struct Backend {
    pub address: SocketAddr,
    records: Arc<Mutex<Records>>,
    tasks: JoinSet<()>,
}

type Script = Arc<dyn Fn(&Seen) -> Vec<Step> + Send + Sync>;

impl Backend {
    /// Answers every request alike, with this response.
    pub async fn saying(response: impl Into<Vec<u8>>) -> Self {
        let response = response.into();
        Self::scripted(move |_| vec![Step::Send(response.clone())]).await
    }

    /// Answers `{"ok":true}`.
    pub async fn ok() -> Self {
        Self::saying(ok_json("{\"ok\":true}")).await
    }

    pub async fn scripted(script: impl Fn(&Seen) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::scripted_at(TcpListener::bind("127.0.0.1:0").await.unwrap(), script)
    }

    /// The same at a place that is there already.
    pub fn scripted_at(
        listener: TcpListener,
        script: impl Fn(&Seen) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let script: Script = Arc::new(script);
        Self::serving_at(listener, move |socket, number, records| {
            let script = Arc::clone(&script);
            async move { converse(socket, number, &script, &records).await }
        })
    }

    /// The same by https.
    pub async fn secure(
        acceptor: TlsAcceptor,
        script: impl Fn(&Seen) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let script: Script = Arc::new(script);
        Self::serving(move |socket, number, records| {
            let (script, acceptor) = (Arc::clone(&script), acceptor.clone());
            async move {
                if let Ok(socket) = acceptor.accept(socket).await {
                    converse(socket, number, &script, &records).await;
                }
            }
        })
        .await
    }

    /// Hands each connection, with its number from 0, to `serve`, which does as it likes.
    pub async fn raw<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream, usize) -> F + Send + Sync + 'static,
    ) -> Self {
        Self::serving(move |socket, number, _| serve(socket, number)).await
    }

    async fn serving<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream, usize, Arc<Mutex<Records>>) -> F + Send + Sync + 'static,
    ) -> Self {
        Self::serving_at(TcpListener::bind("127.0.0.1:0").await.unwrap(), serve)
    }

    fn serving_at<F: Future<Output = ()> + Send + 'static>(
        listener: TcpListener,
        serve: impl Fn(TcpStream, usize, Arc<Mutex<Records>>) -> F + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let records = Arc::new(Mutex::new(Records::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, serve, Arc::clone(&records)));
        Self { address, records, tasks }
    }

    /// Ends it as a process is ended: what it saw, and its place, kept from others, where connections
    /// are refused until somebody listens again.
    pub async fn end(mut self) -> (Vec<Seen>, TcpSocket) {
        self.tasks.shutdown().await;
        let place = until("its end", || {
            let place = TcpSocket::new_v4().unwrap();
            place.set_reuseaddr(true).unwrap();
            place.bind(self.address).ok().map(|()| place)
        });
        let place = place.await;
        assert!(TcpStream::connect(self.address).await.is_err());
        (self.seen(), place)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.records.lock().unwrap().seen.clone()
    }

    /// What the gate asked in its own name.
    pub fn asked_by_the_gate(&self) -> Vec<Seen> {
        self.records.lock().unwrap().own.clone()
    }

    /// Connections that were opened, and those that have ended.
    pub fn connections(&self) -> (usize, usize) {
        let records = self.records.lock().unwrap();
        (records.opened, records.closed)
    }

    /// Bytes that a script has sent so far.
    pub fn bytes_sent(&self) -> u64 {
        self.records.lock().unwrap().sent
    }

    pub async fn wait_for_request(&self, count: usize) -> Seen {
        until("a request at the backend", || self.seen().get(count - 1).cloned()).await
    }

    pub async fn wait_for_closed(&self, count: usize) {
        until("a closed connection", || (self.connections().1 >= count).then_some(())).await;
    }
}

/// A response with a JSON body.
pub fn ok_json(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The head of a streamed response.
pub fn stream_head(kind: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n")
}

/// One chunk of it.
pub fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    serve: impl Fn(TcpStream, usize, Arc<Mutex<Records>>) -> F,
    records: Arc<Mutex<Records>>,
) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let number = {
            let mut records = records.lock().unwrap();
            records.opened += 1;
            records.opened - 1
        };
        let (conversation, records) =
            (serve(socket, number, Arc::clone(&records)), records.clone());
        connections.spawn(async move {
            conversation.await;
            records.lock().unwrap().closed += 1;
        });
    }
}

async fn converse(
    mut socket: impl AsyncRead + AsyncWrite + Unpin + Reset,
    number: usize,
    script: &Script,
    records: &Mutex<Records>,
) {
    let mut unread = Vec::new();
    while let Some(seen) = read_request(&mut socket, &mut unread, number).await {
        {
            let mut records = records.lock().unwrap();
            let is_own = seen.header("user-agent").is_some_and(|agent| agent == "portcullis");
            let place = if is_own { &mut records.own } else { &mut records.seen };
            place.push(seen.clone());
        }
        for step in script(&seen) {
            match step {
                Step::Send(bytes) => {
                    if socket.write_all(&bytes).await.is_err() {
                        return;
                    }
                    records.lock().unwrap().sent += bytes.len() as u64;
                }
                Step::Flood(piece, times) => {
                    for _ in 0..times {
                        if socket.write_all(&piece).await.is_err() {
                            return;
                        }
                        records.lock().unwrap().sent += piece.len() as u64;
                    }
                }
                Step::Wait(notify) => notify.notified().await,
                Step::AwaitClose => {
                    let mut byte = [0];
                    let _ = socket.read(&mut byte).await;
                    return;
                }
                Step::Reset => return socket.reset(),
                Step::Close => return,
            }
        }
    }
}

/// What a close of this socket looks like from now on.
trait Reset {
    fn reset(&self);
}

impl Reset for TcpStream {
    fn reset(&self) {
        let _ = self.set_zero_linger();
    }
}

impl Reset for TlsStream<TcpStream> {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

async fn read_request(
    socket: &mut (impl AsyncRead + Unpin),
    unread: &mut Vec<u8>,
    connection: usize,
) -> Option<Seen> {
    let mut head_end = None;
    loop {
        head_end = head_end.or_else(|| find(unread, b"\r\n\r\n").map(|at| at + 4));
        if let Some(end) = head_end {
            let head = String::from_utf8_lossy(&unread[..end]).into_owned();
            let seen = Seen { head, body: Vec::new(), connection };
            let chunked = seen.header("transfer-encoding").is_some();
            let length = seen.header("content-length").map_or(0, |it| it.parse().unwrap());
            let all = match chunked {
                true => find(&unread[end..], b"0\r\n\r\n").map(|at| end + at + 5),
                false => (unread.len() >= end + length).then_some(end + length),
            };
            if let Some(all) = all {
                let body = unread[end..all].to_vec();
                unread.drain(..all);
                return Some(Seen { body, ..seen });
            }
        }
        match socket.read_buf(unread).await {
            Ok(bytes) if bytes > 0 => {}
            _ => return None,
        }
    }
}
