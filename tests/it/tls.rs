//! https on both sides: handshakes good and bad, certificates that change, and the door beside it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use portcullis::config::{ClientAuth, Config, PairFiles, Pattern, Role, Roles};
use portcullis::gateway::State;
use portcullis::record::Chain;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::events::events;
use crate::house::{
    Answer, Backend, Caller, House, KEY, PATIENCE, Step, chunk, get, ok_json, post, stream_head,
    until,
};
use crate::http2;

const NO_LOGIN: &str = "GET /api/tags HTTP/1.1\r\nHost: gate\r\n\r\n";
const DAY: Duration = Duration::from_secs(24 * 3600);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Whose word counts in a test.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn pem(&self) -> String {
        self.0.as_ref().pem()
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.as_ref().der().clone()).unwrap();
        roots
    }

    /// Certificate and key, as PEM, good from `from` to `to`.
    fn issue(&self, names: &[&str], common: &str, from: SystemTime, to: SystemTime) -> Issued {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common);
        (params.not_before, params.not_after) = (from.into(), to.into());
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        Issued { cert: cert.pem(), key: key.serialize_pem() }
    }

    fn good(&self, names: &[&str], common: &str) -> Issued {
        let now = SystemTime::now();
        self.issue(names, common, now - DAY, now + 90 * DAY)
    }
}

#[derive(Clone)]
struct Issued {
    cert: String,
    key: String,
}

impl Issued {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.cert.as_bytes()).map(Result::unwrap).collect()
    }

    fn secret(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }

    /// By rename, as certbot and editors do, with a key that is the owner's alone.
    fn save(&self, folder: &Path, name: &str) -> PairFiles {
        use std::os::unix::fs::PermissionsExt;
        let at = |end: &str| folder.join(format!("{name}.{end}"));
        let files = PairFiles { cert: at("pem"), key: at("key") };
        for (path, text) in [(&files.cert, &self.cert), (&files.key, &self.key)] {
            let beside = at("new");
            std::fs::write(&beside, text).unwrap();
            std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600)).unwrap();
            std::fs::rename(&beside, path).unwrap();
        }
        files
    }

    fn acceptor(&self) -> TlsAcceptor {
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain(), self.secret())
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A gate with a pair for `localhost`, and whoever vouches for it.
struct Keep {
    house: House,
    authority: Authority,
    pair: Issued,
}

impl Keep {
    async fn new(backend: &Backend) -> Self {
        Self::with(backend, |_, _, _| {}).await
    }

    async fn with(
        backend: &Backend,
        change: impl FnOnce(&mut Config, &TempDir, &Authority),
    ) -> Self {
        let authority = Authority::new();
        let pair = authority.good(&["localhost"], "gate");
        let house = House::with(backend, |config, folder| {
            let files = pair.save(folder.path(), "gate");
            (config.tls_cert, config.tls_key) = (Some(files.cert), Some(files.key));
            change(config, folder, &authority);
        })
        .await;
        Self { house, authority, pair }
    }

    fn client(&self) -> Client {
        Client::trusting(self.authority.roots())
    }

    async fn caller(&self) -> Caller<TlsStream<TcpStream>> {
        self.client().connect(self.house.address).await.unwrap()
    }

    async fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut caller = self.caller().await;
        caller.send(request).await;
        caller.answer().await
    }
}

/// How a caller shakes hands.
struct Client {
    config: ClientConfig,
    host: ServerName<'static>,
}

impl Client {
    fn trusting(roots: RootCertStore) -> Self {
        Self::speaking(roots, rustls::DEFAULT_VERSIONS, None)
    }

    fn speaking(
        roots: RootCertStore,
        versions: &[&'static rustls::SupportedProtocolVersion],
        own: Option<&Issued>,
    ) -> Self {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match own {
            None => config.with_no_client_auth(),
            Some(own) => config.with_client_auth_cert(own.chain(), own.secret()).unwrap(),
        };
        Self { config, host: "localhost".try_into().unwrap() }
    }

    async fn connect(&self, address: SocketAddr) -> std::io::Result<Caller<TlsStream<TcpStream>>> {
        self.over(TcpStream::connect(address).await.unwrap()).await
    }

    async fn over(&self, socket: TcpStream) -> std::io::Result<Caller<TlsStream<TcpStream>>> {
        let connector = TlsConnector::from(Arc::new(self.config.clone()));
        let shaken = tokio::time::timeout(PATIENCE, connector.connect(self.host.clone(), socket));
        Ok(Caller::over(shaken.await.expect("no handshake and no refusal")?))
    }

    /// The answer, or 0 where the connection came to nothing.
    async fn ask(&self, address: SocketAddr, request: impl AsRef<[u8]>) -> Answer {
        match self.connect(address).await {
            Ok(mut caller) => {
                caller.send(request).await;
                caller.answer().await
            }
            Err(_) => Answer::default(),
        }
    }
}

/// Who the gate says it is.
fn shown(caller: &Caller<TlsStream<TcpStream>>) -> CertificateDer<'static> {
    caller.socket.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_are_spoken_and_the_backend_hears_https() {
    let backend = Backend::ok().await;
    let keep = Keep::new(&backend).await;
    for (number, version) in [&rustls::version::TLS12, &rustls::version::TLS13].iter().enumerate() {
        let client = Client::speaking(keep.authority.roots(), &[version], None);
        let answer = client.ask(keep.house.address, get("/api/tags")).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "{\"ok\":true}"));
        let seen = backend.wait_for_request(number + 1).await;
        assert_eq!(seen.header("x-forwarded-proto").as_deref(), Some("https"));
    }
    let refusal = keep.ask(NO_LOGIN).await;
    assert_eq!(refusal.code(), "no_credentials");
    let signin = refusal.json()["signin_url"].clone();
    assert_eq!(signin, "https://gate/_portcullis/help");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_protocol_is_agreed_on_and_what_is_not_spoken_is_refused() {
    let backend = Backend::ok().await;
    let keep = Keep::new(&backend).await;
    let mut client = keep.client();
    client.config.alpn_protocols = vec![b"spdy/1".to_vec(), b"http/1.1".to_vec()];
    let caller = client.connect(keep.house.address).await.unwrap();
    assert_eq!(caller.socket.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    client.config.alpn_protocols = vec![b"spdy/1".to_vec()];
    assert!(client.connect(keep.house.address).await.is_err());
    // Who names none speaks HTTP/1.1.
    assert_eq!(keep.ask(get("/api/tags")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_is_spoken_with_whoever_names_it() {
    let backend = Backend::scripted(|seen| match seen.line().contains("chat") {
        true => {
            let begun = stream_head("application/x-ndjson") + &chunk("first\n");
            vec![Step::Send(begun.into()), Step::AwaitClose]
        }
        false => vec![Step::Send(ok_json("{\"ok\":true}").into())],
    })
    .await;
    let (keep, callers) = asking(&backend, ClientAuth::Optional).await;
    let bert = callers.good(&[], "bert");
    let roots = keep.authority.roots();
    let mut client = Client::speaking(roots, rustls::DEFAULT_VERSIONS, Some(&bert));
    // The gate's order counts.
    client.config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    let caller = client.connect(keep.house.address).await.unwrap();
    assert_eq!(caller.socket.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut caller = http2::Client::over(caller.socket).await;
    let me = http::Request::get("https://gate/_portcullis/me").body("").unwrap();
    let me = http2::whole(caller.asks(me).await).await;
    assert!(me.status == 200 && me.text.contains("\"bert\""), "{me:?}");
    let tags = http2::whole(caller.asks(http2::get("/api/tags").body("").unwrap()).await).await;
    assert_eq!((tags.status, tags.text.as_str()), (200, "{\"ok\":true}"));
    assert_eq!(backend.seen()[0].header("x-forwarded-proto").as_deref(), Some("https"));
    // A stream that is cancelled stops the backend, and so does a connection that goes.
    let answer = caller.asks(http2::post("/api/chat").body("{}").unwrap()).await;
    backend.wait_for_request(2).await;
    drop(answer);
    backend.wait_for_closed(1).await;
    let answer = caller.asks(http2::post("/api/chat").body("{}").unwrap()).await;
    drop(caller);
    backend.wait_for_closed(2).await;
    drop(answer);
    let lines = keep.house.log.wait_for(4).await;
    assert!(lines[2..].iter().all(|line| line["outcome"] == "client_gone"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_agreed_on_http_1_1_does_not_begin_with_http_2() {
    let backend = Backend::ok().await;
    for h2c in [false, true] {
        let keep = Keep::with(&backend, |config, _, _| config.h2c = h2c).await;
        assert_eq!(keep.ask("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.status, 505);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_taken_up_again() {
    let backend = Backend::ok().await;
    let keep = Keep::new(&backend).await;
    let client = keep.client();
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let mut caller = client.connect(keep.house.address).await.unwrap();
        caller.send(get("/api/tags")).await;
        assert_eq!(caller.answer().await.status, 200);
        kinds.push(caller.socket.get_ref().1.handshake_kind().unwrap());
    }
    assert_eq!(kinds, [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_comes_chunk_by_chunk_and_ends_so_that_the_end_is_known() {
    let go_on = Arc::new(Notify::new());
    let waits = Arc::clone(&go_on);
    let backend = Backend::scripted(move |_| {
        vec![
            Step::Send((stream_head("application/x-ndjson") + &chunk("first\n")).into()),
            Step::Wait(Arc::clone(&waits)),
            Step::Send((chunk("last\n") + "0\r\n\r\n").into()),
        ]
    })
    .await;
    let keep = Keep::new(&backend).await;
    let mut caller = keep.caller().await;
    let request = post("/api/chat", "{}").replacen("Host", "Connection: close\r\nHost", 1);
    caller.send(request).await;
    assert!(caller.sees_content("first\n").await);
    go_on.notify_one();
    let answer = caller.answer().await;
    assert_eq!((answer.whole, answer.text().as_str()), (true, "first\nlast\n"));
    // A cut would be an error here.
    assert_eq!(caller.socket.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn much_passes_unchanged_both_ways() {
    let body: String = (0..300_000u32).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    let answer = ok_json(&body);
    let backend = Backend::scripted(move |_| vec![Step::Send(answer.clone().into())]).await;
    let keep = Keep::new(&backend).await;
    let answer = keep.ask(post("/api/blobs/sha256:1", &body)).await;
    assert_eq!((answer.status, answer.text() == body), (200, true));
    let seen = backend.wait_for_request(1).await;
    assert!(seen.body == body.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_invited_and_a_bad_head_is_answered() {
    let backend = Backend::ok().await;
    let keep = Keep::new(&backend).await;
    let mut caller = keep.caller().await;
    let (head, body) = (post("/api/chat", "{\"model\":\"m\"}"), "{\"model\":\"m\"}");
    let head = head.strip_suffix(body).unwrap().replacen("Host", "Expect: 100-continue\r\nHost", 1);
    caller.send(head).await;
    assert!(caller.sees("100 Continue").await);
    caller.send(body).await;
    assert_eq!(caller.answer().await.status, 200);
    let refused = keep.ask("GET / HTTP/1.1\r\nHost: g\r\nHost: g\r\n\r\n").await;
    assert_eq!((refused.status, refused.whole), (400, true));
    let refused = keep.ask("nonsense\r\n\r\n").await;
    assert_eq!((refused.status, refused.whole), (400, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_leaves_stops_the_backend() {
    let backend = Backend::scripted(|seen| match seen.line().contains("chat") {
        true => {
            let begun = stream_head("application/x-ndjson") + &chunk("first\n");
            vec![Step::Send(begun.into()), Step::AwaitClose]
        }
        false => vec![Step::AwaitClose],
    })
    .await;
    let keep = Keep::new(&backend).await;
    let mut politely = keep.caller().await;
    politely.send(post("/api/chat", "{}")).await;
    assert!(politely.sees_content("first\n").await);
    politely.socket.shutdown().await.unwrap();
    backend.wait_for_closed(1).await;
    let mut at_once = keep.caller().await;
    at_once.send(post("/api/generate", "{}")).await;
    backend.wait_for_request(2).await;
    drop(at_once);
    backend.wait_for_closed(2).await;
    let lines = keep.house.log.wait_for(2).await;
    assert!(lines.iter().all(|line| line["outcome"] == "client_gone"), "{lines:?}");
}

/// A gate that gives up a caller who takes nothing for as long, and an answer without an end.
async fn flooding(stall: Duration) -> (Backend, Keep) {
    let backend = Backend::scripted(|_| {
        let piece = chunk(&"x".repeat(0x10000)).into_bytes();
        let head = stream_head("application/x-ndjson").into_bytes();
        vec![Step::Send(head), Step::Flood(piece, usize::MAX)]
    })
    .await;
    let keep = Keep::with(&backend, |config, _, _| config.timeouts.idle = stall).await;
    (backend, keep)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_takes_nothing_is_given_up() {
    let (backend, keep) = flooding(Duration::from_millis(300)).await;
    let mut caller = keep.caller().await;
    caller.send(post("/api/chat", "{}")).await;
    assert!(caller.sees("xxx").await);
    // The caller stays, and reads no more.
    backend.wait_for_closed(1).await;
    assert_eq!(keep.house.log.wait_for(1).await[0]["outcome"], "client_gone");
    assert!(!caller.answer().await.whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_takes_little_is_served_on() {
    let stall = Duration::from_millis(500);
    let (backend, keep) = flooding(stall).await;
    let socket = TcpSocket::new_v4().unwrap();
    // The window opens again after a few of the sips below.
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let socket = socket.connect(keep.house.address).await.unwrap();
    let mut caller = keep.client().over(socket).await.unwrap();
    caller.send(post("/api/chat", "{}")).await;
    let (started, mut sip) = (Instant::now(), vec![0; 8 * 1024]);
    while started.elapsed() < 5 * stall {
        tokio::time::sleep(stall / 20).await;
        let read = caller.socket.read(&mut sip).await;
        assert!(read.is_ok_and(|read| read > 0), "{:?}", started.elapsed());
    }
    assert_eq!(backend.connections(), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_shake_hands_is_not_waited_for() {
    let before = count_of(LATE);
    let backend = Backend::ok().await;
    let keep = Keep::with(&backend, |config, _, _| {
        config.timeouts.header = Duration::from_millis(300);
    })
    .await;
    let hello = hello_to("localhost");
    for sent in [&b""[..], &hello[..5], &hello[..hello.len() / 2]] {
        let mut caller = keep.house.connect().await;
        caller.send(sent).await;
        assert!(caller.is_closed().await, "after {} bytes", sent.len());
    }
    // However often bytes come, the time is over at some point.
    let mut drips = keep.house.connect().await;
    let mut dripped = 0;
    for byte in hello.iter().cycle().take(60) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if drips.socket.write_all(&[*byte]).await.is_err() {
            break;
        }
        dripped += 1;
    }
    assert!(dripped < 60, "each byte began the time anew");
    assert_eq!(keep.ask(get("/api/tags")).await.status, 200);
    until("a line for each", || (count_of(LATE) >= before + 4).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_proxy_announces_before_the_handshake_is_the_caller() {
    let backend = Backend::ok().await;
    let keep = Keep::with(&backend, |config, _, _| {
        config.proxy_protocol_from = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let announced = async |header: &str| {
        let mut socket = TcpStream::connect(keep.house.address).await.unwrap();
        socket.write_all(header.as_bytes()).await.unwrap();
        keep.client().over(socket).await
    };
    let mut caller = announced("PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n").await.unwrap();
    caller.send(get("/api/tags")).await;
    assert_eq!(caller.answer().await.status, 200);
    let lines = keep.house.log.wait_for(1).await;
    assert_eq!(lines[0]["client"], "192.0.2.7");
    assert!(announced("PROXY TCP4 nobody\r\n").await.is_err());
    keep.house.log.wait_for(2).await;
    assert_eq!(backend.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_does_not_wait_for_who_says_nothing_but_for_a_handshake_that_has_begun() {
    let backend = Backend::ok().await;
    let keep = Keep::with(&backend, |config, _, _| {
        config.timeouts.header = Duration::from_secs(600);
    })
    .await;
    let (silent, mut begun) = (keep.house.connect().await, keep.house.connect().await);
    let hello = hello_to("localhost");
    begun.send(&hello[..5]).await;
    // Both have been accepted when somebody behind them is served.
    assert_eq!(keep.ask(get("/api/tags")).await.status, 200);
    let mut house = keep.house;
    let gone = async {
        let mut silent = silent;
        assert!(silent.is_closed().await, "2 s were promised");
        begun.send(&hello[5..]).await;
        assert!(begun.sees("\u{16}\u{3}\u{3}").await, "the gate's hello");
        drop(begun);
    };
    let server = house.take_server();
    let shutdown =
        server.shutdown(Duration::ZERO, Duration::from_secs(600), std::future::pending());
    let both = async { tokio::join!(gone, shutdown) };
    tokio::time::timeout(PATIENCE, both).await.expect("the drain waits for nobody else");
}

const LATE: &str = "a TLS handshake was not done in time";
const FAILED: &str = "a TLS handshake failed";

fn count_of(event: &str) -> usize {
    events().text().matches(event).count()
}

/// The first flight of a caller.
fn hello_to(host: &str) -> Vec<u8> {
    let client = Client::trusting(Authority::new().roots());
    let host = ServerName::try_from(host.to_owned()).unwrap();
    let mut session = rustls::ClientConnection::new(Arc::new(client.config), host).unwrap();
    let mut hello = Vec::new();
    session.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_tls_is_refused_and_everybody_else_is_served() {
    let backend = Backend::ok().await;
    let keep = Keep::new(&backend).await;
    let before = count_of(FAILED);
    let plain = keep.house.ask(get("/api/tags")).await;
    assert_eq!((plain.status, plain.code().as_str(), plain.whole), (400, "bad_request", true));
    assert!(plain.text().contains("https://"), "{}", plain.text());
    for garbage in [&b"\x16\x03\x01\xff\xff\xff\xff"[..], &[0; 4096], &[0x80; 300], b"\x15\x03\x01"]
    {
        let mut caller = keep.house.connect().await;
        caller.send(garbage).await;
        let _ = caller.socket.shutdown().await;
        // An alert at most.
        assert!(caller.rest().await.len() < 16);
    }
    until("a line for each", || (count_of(FAILED) >= before + 4).then_some(())).await;
    let half = hello_to("localhost");
    let mut gone = keep.house.connect().await;
    gone.send(&half[..half.len() - 1]).await;
    drop(gone);
    until("a line for the half", || (count_of(FAILED) >= before + 5).then_some(())).await;
    assert_eq!(keep.ask(get("/api/tags")).await.status, 200);
    let lines = keep.house.log.wait_for(2).await;
    assert_eq!(lines.len(), 2, "one of plain HTTP and one of the request: {lines:?}");
    assert_eq!(lines[0]["outcome"], "refused:bad_request");
    assert_eq!(backend.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_on_the_plain_port_is_refused() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let client = Client::trusting(Authority::new().roots());
    assert!(client.connect(house.address).await.is_err());
    assert_eq!(house.get("/api/tags").await.status, 200);
    let lines = house.lines().await;
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert_eq!(lines[0]["outcome"], "refused:bad_request", "{}", lines[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_is_chosen_by_the_host_that_is_named() {
    let backend = Backend::ok().await;
    let mut second = None;
    let keep = Keep::with(&backend, |config, folder, authority| {
        let other = authority.good(&["Other.example", "*.wild.example"], "other");
        config.tls.pairs = vec![other.save(folder.path(), "other")];
        second = other.chain().pop();
    })
    .await;
    let second = second.unwrap();
    let shown_to = async |host: &'static str, sni: bool| {
        let mut client = keep.client();
        client.config.enable_sni = sni;
        client.host = host.try_into().unwrap();
        client.connect(keep.house.address).await.map(|caller| shown(&caller) == second)
    };
    assert!(!shown_to("localhost", true).await.unwrap());
    assert!(!shown_to("localhost", false).await.unwrap(), "who names no host gets the first");
    assert!(shown_to("other.example", true).await.unwrap());
    assert!(shown_to("a.wild.example", true).await.unwrap());
    // These get the first, and refuse it by themselves.
    for host in ["unknown.example", "a.b.wild.example", "wild.example", "127.0.0.1"] {
        let refused = shown_to(host, true).await.unwrap_err();
        assert!(refused.to_string().contains("certificate"), "{host}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_any_kind_in_the_handshake_is_survived() {
    let backend = Backend::ok().await;
    let keep = Keep::new(&backend).await;
    let hello = hello_to("localhost");
    let at = crate::house::find(&hello, b"localhost").unwrap();
    // Nine bytes in place of nine: no name, NUL, an address, high bytes.
    for host in [b".........", b"a\0b.local", b"127.0.0.1", b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\xf7"]
    {
        let mut odd = hello.clone();
        odd[at..at + 9].copy_from_slice(&host[..]);
        let mut caller = keep.house.connect().await;
        caller.send(&odd).await;
        let _ = caller.socket.shutdown().await;
        assert!(!caller.rest().await.is_empty(), "an alert, or the other half of the handshake");
    }
    // The longest that the field holds without a second byte of length.
    let mut caller = keep.house.connect().await;
    caller.send(with_host(&hello, at, &[b'a'; 255])).await;
    let _ = caller.socket.shutdown().await;
    assert!(!caller.rest().await.is_empty());
    assert_eq!(keep.ask(get("/api/tags")).await.status, 200);
}

/// The same hello with a longer host, all lengths around it made right.
fn with_host(hello: &[u8], at: usize, host: &[u8]) -> Vec<u8> {
    let mut longer = hello[..at].to_vec();
    longer.extend(host);
    longer.extend(&hello[at + 9..]);
    let more = host.len() - 9;
    let mut add = |place: usize| {
        let was = usize::from(longer[place]) << 8 | usize::from(longer[place + 1]);
        let now = was + more;
        (longer[place], longer[place + 1]) = ((now >> 8) as u8, now as u8);
    };
    // The record, the handshake message, the host, the list of hosts, their extension.
    [3, 7, at - 2, at - 5, at - 7].into_iter().for_each(&mut add);
    // All extensions: behind version, random, session, suites and compressions.
    let session = 43 + 1 + usize::from(hello[43]);
    let suites = usize::from(hello[session]) << 8 | usize::from(hello[session + 1]);
    let compressions = session + 2 + suites;
    add(compressions + 1 + usize::from(hello[compressions]));
    longer
}

/// Tells the gate that a second has passed, again and again, until it has looked.
struct Clock {
    house_now: Instant,
}

impl Clock {
    fn new() -> Self {
        Self { house_now: Instant::now() + Duration::from_secs(3600) }
    }

    fn seconds(&mut self, house: &House, count: u32) {
        let state = house.gateway.state();
        for _ in 0..count {
            self.house_now += Duration::from_secs(1);
            state.tls().unwrap().tend(self.house_now, SystemTime::now());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_that_changes_twenty_times_under_load_costs_no_handshake() {
    let backend = Backend::ok().await;
    let keep = Arc::new(Keep::new(&backend).await);
    let (over, done, seen) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let marks = Arc::new((over, done, seen));
    let mut callers = JoinSet::new();
    for _ in 0..4 {
        let (keep, marks) = (Arc::clone(&keep), Arc::clone(&marks));
        callers.spawn(async move {
            let mut last = None;
            while !marks.0.load(Ordering::Relaxed) {
                let mut caller = keep.caller().await;
                caller.send(get("/api/tags")).await;
                assert_eq!(caller.answer().await.status, 200);
                let now = shown(&caller);
                if last.replace(now.clone()).is_some_and(|last| last != now) {
                    marks.2.fetch_add(1, Ordering::Relaxed);
                }
                marks.1.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut clock = Clock::new();
    for _ in 0..20 {
        let before = marks.1.load(Ordering::Relaxed);
        let next = keep.authority.good(&["localhost"], "gate");
        let (folder, mark) = (keep.house.folder.path(), next.chain());
        // The certificate first, and the key only after the gate has looked.
        let key = std::fs::read_to_string(folder.join("gate.key")).unwrap();
        Issued { key, ..next.clone() }.save(folder, "gate");
        clock.seconds(&keep.house, 2);
        next.save(folder, "gate");
        clock.seconds(&keep.house, 3);
        assert_eq!(shown(&keep.caller().await), mark[0]);
        until("callers", || (marks.1.load(Ordering::Relaxed) > before + 8).then_some(())).await;
    }
    marks.0.store(true, Ordering::Relaxed);
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert!(marks.2.load(Ordering::Relaxed) >= 20, "the callers saw the certificates change");
    assert_eq!(keep.house.gateway.state().tls().unwrap().troubles(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_a_certificate_is_good_is_told_by_the_metrics_and_once_a_day_when_it_is_not_long()
{
    let events = events();
    let backend = Backend::ok().await;
    let keep = Keep::with(&backend, |config, folder, authority| {
        let now = SystemTime::now();
        let brief =
            authority.issue(&["brief.example"], "brief", now - DAY, now + 9 * DAY + DAY / 2);
        config.tls.pairs = vec![brief.save(folder.path(), "brief")];
        config.admin = Some("127.0.0.1:0".parse().unwrap());
        config.roles = Roles::new(Role::Viewer, Vec::new());
    })
    .await;
    let mut desk = Caller::connect(keep.house.admin.unwrap()).await;
    desk.send(get("/metrics")).await;
    let metrics = desk.answer().await.text();
    // What was made in this second has a day more.
    for (name, days) in [("gate.pem", [89, 90]), ("brief.pem", [9, 9])] {
        let line = metrics.lines().find(|line| {
            line.starts_with("portcullis_certificate_left_seconds{") && line.contains(name)
        });
        let line = line.unwrap_or_else(|| panic!("no {name} in {metrics}"));
        let (_, left) = line.split_once("} ").unwrap();
        assert!(days.map(|days| (days * 86_400).to_string()).contains(&left.to_owned()), "{line}");
    }
    let said = |file: &str| {
        let text = events.text();
        let of_file = text.lines().filter(|line| line.contains(file));
        of_file.filter(|line| line.contains("it expires soon, renew it")).count()
    };
    let brief = keep.house.file("brief.pem").display().to_string();
    let (now, today) = (Instant::now(), SystemTime::now());
    let tls = keep.house.gateway.state();
    let tls = tls.tls().unwrap();
    tls.announce(now, today);
    assert_eq!(said(&brief), 1);
    for (hours, times) in [(1, 1), (23, 1), (24, 2), (25, 2), (47, 2), (48, 3)] {
        tls.tend(now + Duration::from_secs(3600 * hours), today);
        assert_eq!(said(&brief), times, "after {hours} hours");
    }
    assert_eq!(said(&keep.house.file("gate.pem").display().to_string()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_that_breaks_is_an_alarm_and_the_one_before_it_serves_on() {
    let backend = Backend::ok().await;
    let keep = Keep::new(&backend).await;
    let folder = keep.house.folder.path().to_owned();
    let (first, now) = (shown(&keep.caller().await), SystemTime::now());
    let other = keep.authority.good(&["localhost"], "other");
    let expired = keep.authority.issue(&["localhost"], "old", now - 9 * DAY, now - DAY);
    let early = keep.authority.issue(&["localhost"], "new", now + DAY, now + 9 * DAY);
    let (cert, key) = (folder.join("gate.pem"), folder.join("gate.key"));
    type Break<'a> = Box<dyn Fn() + 'a>;
    let breaks: [(&str, Break<'_>); 7] = [
        ("is not that of", Box::new(|| std::fs::write(&key, &other.key).unwrap())),
        ("expired", Box::new(|| drop(expired.save(&folder, "gate")))),
        ("good only from", Box::new(|| drop(early.save(&folder, "gate")))),
        ("cannot be read", Box::new(|| std::fs::remove_file(&cert).unwrap())),
        ("has no certificate", Box::new(|| std::fs::write(&cert, &other.cert[..99]).unwrap())),
        (
            "has no private key",
            Box::new(|| {
                other.save(&folder, "gate");
                std::fs::write(&key, "").unwrap();
            }),
        ),
        (
            "others may write",
            Box::new(|| {
                use std::os::unix::fs::PermissionsExt;
                other.save(&folder, "gate");
                std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o666)).unwrap();
            }),
        ),
    ];
    let events = events();
    let mut clock = Clock::new();
    let ready = "GET /_portcullis/ready HTTP/1.1\r\nHost: g\r\n\r\n";
    let troubles = || keep.house.gateway.state().tls().unwrap().troubles();
    for (word, breaks) in breaks {
        breaks();
        clock.seconds(&keep.house, 2);
        assert_eq!(troubles(), [], "{word}: a save in several steps is no fault yet");
        clock.seconds(&keep.house, 4);
        let told = troubles();
        assert!(told.len() == 1 && told[0].to_string().contains(word), "{word}: {told:?}");
        let alarms = || events.text().matches(&format!("TLS: {}", told[0])).count();
        assert_eq!(alarms(), 1, "{word}");
        clock.seconds(&keep.house, 61);
        assert_eq!(alarms(), 2, "an alarm that goes on is said again");
        assert_eq!(keep.ask(ready).await.json()["alarms"], 1);
        assert_eq!(shown(&keep.caller().await), first, "{word}");
        keep.pair.save(&folder, "gate");
        clock.seconds(&keep.house, 3);
        assert_eq!(troubles(), [], "{word}");
        assert_eq!(shown(&keep.caller().await), first, "{word}");
    }
    let secret = other.key.lines().nth(1).unwrap();
    assert!(!events.text().contains(secret), "a key is in no alarm");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_other_pairs_or_nothing_of_it() {
    let backend = Backend::ok().await;
    let keep = Keep::new(&backend).await;
    let mut kept = keep.caller().await;
    kept.send(get("/api/tags")).await;
    assert_eq!(kept.answer().await.status, 200);
    let mut config = keep.house.gateway.state().config().clone();
    let other = keep.authority.good(&["localhost"], "other");
    let files = other.save(keep.house.folder.path(), "other");
    (config.tls_cert, config.tls_key) = (Some(files.cert), Some(files.key));
    keep.house.gateway.reload(config.clone()).unwrap();
    assert_eq!(shown(&keep.caller().await), other.chain()[0]);
    let broken = Config { tls_key: Some(keep.house.file("none")), ..config.clone() };
    assert!(keep.house.gateway.reload(broken).is_err());
    assert_eq!(shown(&keep.caller().await), other.chain()[0]);
    // Files that are the same are not read anew: what was good last goes on serving.
    std::fs::remove_file(keep.house.file("other.key")).unwrap();
    keep.house.gateway.reload(config.clone()).unwrap();
    assert_eq!(shown(&keep.caller().await), other.chain()[0]);
    (config.tls_cert, config.tls_key) = (None, None);
    keep.house.gateway.reload(config).unwrap();
    assert_eq!(keep.house.get("/api/tags").await.status, 200);
    // Who is connected stays so.
    kept.send(get("/api/tags")).await;
    assert_eq!(kept.answer().await.status, 200);
}

/// Why a gate with this configuration does not start.
fn start(change: impl FnOnce(&mut Config, &TempDir)) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::builtin();
    change(&mut config, &folder);
    State::new(config, None).err().map(|error| Chain(&error).to_string())
}

#[test]
fn a_gate_with_files_that_cannot_serve_does_not_start() {
    let authority = Authority::new();
    let (one, other) = (authority.good(&["a"], "a"), authority.good(&["b"], "b"));
    let with = |issued: &Issued, change: &dyn Fn(&mut Config, &Path)| {
        start(|config, folder| {
            let files = issued.save(folder.path(), "gate");
            (config.tls_cert, config.tls_key) = (Some(files.cert), Some(files.key));
            change(config, folder.path());
        })
    };
    let mixed = Issued { key: other.key, ..one.clone() };
    assert_eq!(with(&one, &|_, _| {}), None);
    let marked =
        Issued { cert: format!("\u{feff}{}", one.cert.replace('\n', "\r\n")), ..one.clone() };
    assert_eq!(with(&marked, &|_, _| {}), None);
    let folder = |config: &mut Config, folder: &Path| config.tls_cert = Some(folder.to_owned());
    assert!(with(&one, &folder).unwrap().contains("is a folder"));
    let told = with(&mixed, &|_, _| {}).unwrap();
    assert_eq!(told.matches("is not that of").count(), 1, "{told}");
    let nothing = Issued { cert: String::new(), ..one.clone() };
    assert!(with(&nothing, &|_, _| {}).unwrap().contains("has no certificate"));
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let encrypted = Issued { key: encrypted.to_owned(), ..one.clone() };
    assert!(with(&encrypted, &|_, _| {}).unwrap().contains("openssl pkey"));
    let missing = |config: &mut Config, folder: &Path| config.tls_key = Some(folder.join("none"));
    assert!(with(&one, &missing).unwrap().contains("cannot be read"));
    let second = |config: &mut Config, folder: &Path| {
        let (cert, key) = (folder.join("none.pem"), folder.join("none.key"));
        config.tls.pairs = vec![PairFiles { cert, key }];
    };
    assert!(with(&one, &second).unwrap().contains("none.pem"));
    let no_authority = |config: &mut Config, folder: &Path| {
        config.tls.client_auth = ClientAuth::Optional;
        config.tls.client_ca = Some(folder.join("ca.pem"));
    };
    assert!(with(&one, &no_authority).unwrap().contains("ca.pem cannot be read"));
    // Whether to go on with an old certificate is for callers to say.
    let now = SystemTime::now();
    let expired = authority.issue(&["a"], "a", now - 9 * DAY, now - DAY);
    assert_eq!(with(&expired, &|_, _| {}), None);
}

/// A gate that asks callers for certificates of an authority of their own.
async fn asking(backend: &Backend, client_auth: ClientAuth) -> (Keep, Authority) {
    let callers = Authority::new();
    let keep = Keep::with(backend, |config, folder, _| {
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, callers.pem()).unwrap();
        config.tls.client_ca = Some(ca);
        (config.tls.client_auth, config.tls.client_cert_login) = (client_auth, true);
        config.roles = Roles::new(Role::User, vec![(Pattern::new("bert"), Role::Viewer)]);
    })
    .await;
    (keep, callers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_required_is_required_to_be_good() {
    let backend = Backend::ok().await;
    let (keep, callers) = asking(&backend, ClientAuth::Required).await;
    let now = SystemTime::now();
    let stranger = Authority::new().good(&[], "anna");
    let expired = callers.issue(&[], "anna", now - 9 * DAY, now - DAY);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let status = async |own: Option<&Issued>| {
            let client = Client::speaking(keep.authority.roots(), &[version], own);
            client.ask(keep.house.address, get("/api/tags")).await.status
        };
        assert_eq!(status(None).await, 0, "none, with a key that is good");
        assert_eq!(status(Some(&stranger)).await, 0);
        assert_eq!(status(Some(&expired)).await, 0);
        assert_eq!(status(Some(&callers.good(&[], "anna"))).await, 200);
    }
    assert_eq!(backend.seen().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_in_a_certificate_logs_in_who_brings_nothing_else() {
    let backend = Backend::ok().await;
    let (keep, callers) = asking(&backend, ClientAuth::Optional).await;
    let me = "GET /_portcullis/me HTTP/1.1\r\nHost: gate\r\n\r\n";
    let ask = async |own: Option<&Issued>, request: String| {
        let client = Client::speaking(keep.authority.roots(), rustls::DEFAULT_VERSIONS, own);
        client.ask(keep.house.address, request).await
    };
    let bert = callers.good(&[], "bert");
    let known = ask(Some(&bert), me.to_owned()).await;
    assert_eq!((known.status, known.json()["name"].as_str()), (200, Some("bert")));
    assert_eq!(known.json()["role"], "viewer");
    let cora = callers.good(&[], "cora");
    assert_eq!(ask(Some(&cora), me.to_owned()).await.json()["role"], "user");
    // Who shows a certificate must show a good one.
    let now = SystemTime::now();
    for bad in [
        Authority::new().good(&[], "bert"),
        callers.issue(&[], "bert", now - 9 * DAY, now - DAY),
        callers.issue(&[], "bert", now + DAY, now + 9 * DAY),
    ] {
        assert_eq!(ask(Some(&bad), get("/api/tags")).await.status, 0);
    }
    // Another credential counts in its place, and a wrong one is not made good.
    let with = |key: &str| me.replacen("Host", &format!("Authorization: Bearer {key}\r\nHost"), 1);
    assert_eq!(ask(Some(&bert), with(KEY)).await.json()["name"], "anna");
    assert_eq!(ask(Some(&bert), with("wrong")).await.code(), "bad_credentials");
    assert_eq!(ask(None, me.to_owned()).await.code(), "no_credentials");
    for name in ["a/b", "", "a\u{7}b", &"x".repeat(256)] {
        let refused = ask(Some(&callers.good(&[], name)), me.to_owned()).await;
        assert_eq!(refused.code(), "bad_credentials", "{name:?}");
    }
    let lines = keep.house.log.wait_for(1).await;
    assert_eq!(
        (&lines[0]["name"], &lines[0]["credential"]),
        (&"bert".into(), &"certificate".into())
    );
    // As with a password, a browser sends it along with any page's request.
    let evil = post("/api/generate", "{}").replace(
        &format!("Authorization: Bearer {KEY}"),
        "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site",
    );
    assert_eq!(ask(Some(&bert), evil).await.code(), "forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_with_a_certificate_shakes_hands_anew_each_time() {
    let backend = Backend::ok().await;
    let (keep, callers) = asking(&backend, ClientAuth::Required).await;
    let own = callers.good(&[], "anna");
    let client = Client::speaking(keep.authority.roots(), rustls::DEFAULT_VERSIONS, Some(&own));
    for _ in 0..2 {
        let mut caller = client.connect(keep.house.address).await.unwrap();
        caller.send(get("/api/tags")).await;
        assert_eq!(caller.answer().await.status, 200);
        let kind = caller.socket.get_ref().1.handshake_kind();
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    }
    // An authority that is taken out counts no more.
    std::fs::write(keep.house.file("ca.pem"), Authority::new().pem()).unwrap();
    Clock::new().seconds(&keep.house, 3);
    assert_eq!(client.ask(keep.house.address, get("/api/tags")).await.status, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_taken_out_counts_no_more_on_kept_connections_either() {
    let me = "GET /_portcullis/me HTTP/1.1\r\nHost: gate\r\n\r\n";
    let backend = Backend::ok().await;
    for (client_auth, with_key) in [(ClientAuth::Optional, 200), (ClientAuth::Required, 401)] {
        let (keep, callers) = asking(&backend, client_auth).await;
        let own = callers.good(&[], "bert");
        let client = Client::speaking(keep.authority.roots(), rustls::DEFAULT_VERSIONS, Some(&own));
        let mut kept = client.connect(keep.house.address).await.unwrap();
        let mut with_a_key = client.connect(keep.house.address).await.unwrap();
        kept.send(me).await;
        assert_eq!(kept.answer().await.json()["name"], "bert");
        std::fs::write(keep.house.file("ca.pem"), Authority::new().pem()).unwrap();
        Clock::new().seconds(&keep.house, 3);
        kept.send(me).await;
        let refused = kept.answer().await;
        assert_eq!((refused.status, refused.header("connection")), (401, Some("close")));
        assert!(kept.is_closed().await, "the next connection shakes hands");
        with_a_key.send(get("/api/tags")).await;
        let answer = with_a_key.answer().await;
        assert_eq!((answer.status, answer.header("connection")), (with_key, Some("close")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_taken_out_ends_connections_over_http2_behind_what_runs() {
    let me = || http::Request::get("https://gate/_portcullis/me").body("").unwrap();
    let end = Arc::new(Notify::new());
    let ends = Arc::clone(&end);
    let backend = Backend::scripted(move |_| {
        let begun = stream_head("application/x-ndjson") + &chunk("first\n");
        let last = chunk("last\n") + "0\r\n\r\n";
        vec![Step::Send(begun.into()), Step::Wait(Arc::clone(&ends)), Step::Send(last.into())]
    })
    .await;
    let (keep, callers) = asking(&backend, ClientAuth::Required).await;
    let own = callers.good(&[], "bert");
    let mut client = Client::speaking(keep.authority.roots(), rustls::DEFAULT_VERSIONS, Some(&own));
    client.config.alpn_protocols = vec![b"h2".to_vec()];
    let caller = client.connect(keep.house.address).await.unwrap();
    let mut caller = http2::Client::over(caller.socket).await;
    let running = caller.asks(http2::post("/api/chat").body("{}").unwrap()).await;
    assert_eq!(http2::whole(caller.asks(me()).await).await.status, 200);
    std::fs::write(keep.house.file("ca.pem"), Authority::new().pem()).unwrap();
    Clock::new().seconds(&keep.house, 3);
    assert_eq!(http2::whole(caller.asks(me()).await).await.status, 401);
    end.notify_one();
    assert_eq!(http2::whole(running).await.text, "first\nlast\n");
    caller.is_ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_finds_no_place_is_told_so_also_where_both_would_speak_http2() {
    let backend = Backend::ok().await;
    let keep = Keep::with(&backend, |config, _, _| config.max_connections = 1).await;
    let mut client = keep.client();
    client.config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let placed = client.connect(keep.house.address).await.unwrap();
    assert_eq!(placed.socket.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    for (path, status) in [("/_portcullis/health", 200), ("/api/tags", 503)] {
        let mut surplus = client.connect(keep.house.address).await.unwrap();
        assert_eq!(surplus.socket.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        surplus.send(get(path)).await;
        assert_eq!(surplus.answer().await.status, status, "{path}");
    }
    drop(placed);
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_tls_browsers_are_sent_on_and_credentials_are_refused() {
    let backend = Backend::ok().await;
    let keep = Keep::with(&backend, |config, _, _| {
        config.redirect_listen = Some("127.0.0.1:0".parse().unwrap());
        config.public_url = Some("https://gate.example.com".to_owned());
    })
    .await;
    let ask = async |request: String| {
        let mut caller = Caller::connect(keep.house.redirect.unwrap()).await;
        let method = if request.starts_with("HEAD") { "HEAD" } else { "GET" };
        caller.send(request).await;
        caller.answer_to(method).await
    };
    for (method, path) in
        [("GET", "/"), ("HEAD", "/api/tags?a=b"), ("GET", "/_portcullis/help"), ("GET", "/kate")]
    {
        let answer = ask(format!("{method} {path} HTTP/1.1\r\nHost: evil\r\n\r\n")).await;
        let expected = format!("https://gate.example.com{path}");
        assert_eq!((answer.status, answer.header("location")), (308, Some(expected.as_str())));
    }
    let basic = get("/api/tags").replace("Bearer", "bAsIc");
    let header = |name: &str| NO_LOGIN.replacen("Host", &format!("{name}: x\r\nHost"), 1);
    let path_key = format!("/k/{KEY}/api/tags");
    for request in [
        get("/api/tags"),
        get("/"),
        basic,
        header("X-Api-Key"),
        header("api-key"),
        header("PROXY-AUTHORIZATION"),
        header("authorization").replace("Host: gate", "Host: gate\r\nOrigin: https://a"),
        NO_LOGIN.replace("/api/tags", &path_key),
        NO_LOGIN.replace("/api/tags", "/k/wrong/"),
        NO_LOGIN.replace("GET", "DELETE"),
        NO_LOGIN.replace("GET", "OPTIONS"),
        "POST /api/chat HTTP/1.1\r\nHost: gate\r\nContent-Length: 2\r\n\r\n{}".to_owned(),
    ] {
        let told = ask(request.clone()).await;
        assert!(told.status == 403 && told.code() == "tls_required", "{request}: {told:?}");
        assert_eq!(told.header("location"), None, "{request}");
    }
    // What could be read in two ways leads nowhere.
    let twice = "GET / HTTP/1.1\r\nHost: g\r\nHost: g\r\n\r\n".to_owned();
    for request in [twice, NO_LOGIN.replace("/api/tags", "/%6b/wrong/api/tags")] {
        let told = ask(request).await;
        assert_eq!((told.status, told.header("location")), (400, None));
    }
    assert!(backend.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_public_address_the_redirect_keeps_the_host_and_names_the_port_that_is_open() {
    let backend = Backend::ok().await;
    let keep = Keep::with(&backend, |config, _, _| {
        config.redirect_listen = Some("127.0.0.1:0".parse().unwrap());
    })
    .await;
    // As where a supervisor hands the socket over, it is not the one of the configuration.
    let port = keep.house.address.port();
    let mut caller = Caller::connect(keep.house.redirect.unwrap()).await;
    caller.send("GET /x HTTP/1.1\r\nHost: gate.lan:80\r\n\r\n").await;
    let expected = format!("https://gate.lan:{port}/x");
    assert_eq!(caller.answer().await.header("location"), Some(expected.as_str()));
    caller.send("GET /x HTTP/1.0\r\n\r\n").await;
    assert_eq!(caller.answer().await.status, 400);
}

/// A backend by https, and a gate before it that takes `believed`'s word.
async fn behind(
    named: &[&str],
    host: &str,
    believed: impl FnOnce(&Authority) -> String,
    script: impl Fn() -> Vec<Step> + Send + Sync + 'static,
) -> (Backend, House) {
    let authority = Authority::new();
    let acceptor = authority.good(named, "backend").acceptor();
    let backend = Backend::secure(acceptor, move |_| script()).await;
    let port = backend.address.port();
    let house = House::with(&backend, |config, folder| {
        let ca = folder.path().join("backend-ca.pem");
        std::fs::write(&ca, believed(&authority)).unwrap();
        config.backends[0].ca_file = Some(ca);
        config.backends[0].url = format!("https://{host}:{port}").parse().unwrap();
    })
    .await;
    (backend, house)
}

fn ok() -> Vec<Step> {
    vec![Step::Send(ok_json("{\"ok\":true}").into())]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_is_asked_by_https_over_a_connection_that_is_kept() {
    for host in ["localhost", "127.0.0.1"] {
        let (backend, house) = behind(&[host], host, Authority::pem, ok).await;
        let body = format!("{{\"p\":\"{}\"}}", "x".repeat(200_000));
        for number in 1..=3 {
            assert_eq!(house.ask(post("/api/chat", &body)).await.text(), "{\"ok\":true}");
            let seen = backend.wait_for_request(number).await;
            assert_eq!(seen.body.len(), body.len());
            let expected = format!("{host}:{}", backend.address.port());
            assert_eq!(seen.header("host"), Some(expected));
        }
        assert_eq!(backend.connections().0, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_not_who_it_should_be_is_told_nothing() {
    let another = |_: &Authority| Authority::new().pem();
    for (named, believed) in [
        ("gpu", Box::new(Authority::pem) as Box<dyn FnOnce(&Authority) -> String>),
        ("localhost", Box::new(another)),
    ] {
        let (backend, house) = behind(&[named], "localhost", believed, ok).await;
        let refused = house.get("/api/tags").await;
        assert_eq!((refused.status, refused.code().as_str()), (503, "no_backend"), "{named}");
        assert!(backend.seen().is_empty());
    }
    // One that speaks plain HTTP is not asked that way either.
    let plain = Backend::ok().await;
    let house = House::with(&plain, |config, folder| {
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, Authority::new().pem()).unwrap();
        config.backends[0].ca_file = Some(ca);
        config.backends[0].url = format!("https://{}", plain.address).parse().unwrap();
    })
    .await;
    assert_eq!(house.get("/api/tags").await.code(), "no_backend");
    assert!(plain.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_https_connection_that_the_backend_closed_is_not_used() {
    let closing = || vec![Step::Send(ok_json("{\"ok\":true}").into()), Step::Close];
    let (backend, house) = behind(&["localhost"], "localhost", Authority::pem, closing).await;
    for number in 1..=5 {
        assert_eq!(house.get("/api/tags").await.status, 200);
        backend.wait_for_closed(number).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_answers_on_a_unix_socket() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, folder| {
        config.backends[0].url =
            format!("unix:{}", folder.path().join("o.sock").display()).parse().unwrap();
    })
    .await;
    assert_eq!(house.get("/api/tags").await.code(), "no_backend");
    let listener = tokio::net::UnixListener::bind(house.file("o.sock")).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            socket.read_buf(&mut request).await.unwrap();
        }
        socket.write_all(ok_json("{\"ok\":true}").as_bytes()).await.unwrap();
        String::from_utf8(request).unwrap()
    });
    assert_eq!(house.get("/api/tags").await.text(), "{\"ok\":true}");
    let request = tasks.join_next().await.unwrap().unwrap();
    assert!(request.contains("host: localhost\r\n"), "{request}");
}
