//! The real executable under load: reloads, restarts, drains, and too few files.
#![expect(clippy::disallowed_methods, reason = "these threads move no bytes of others")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Gate, House, KEY, PATIENCE, PROGRAM, after, skip};

/// Requests of a run under load; `PORTCULLIS_LOAD=100000` for the promise of the whole.
pub(crate) fn load() -> usize {
    std::env::var("PORTCULLIS_LOAD").ok().and_then(|it| it.parse().ok()).unwrap_or(20_000)
}

const CALLERS: usize = 8;

// ---- a model server of threads -----------------------------------------------------------------

/// Answers every request, and `POST` with a stream that runs until it is told to end.
pub(crate) struct Model {
    pub(crate) address: SocketAddr,
    pub(crate) ends: Arc<AtomicBool>,
    streaming: Arc<AtomicUsize>,
}

impl Model {
    pub(crate) fn start() -> Self {
        Self::behind(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn behind(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let (ends, streaming) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (told, running) = (Arc::clone(&ends), Arc::clone(&streaming));
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (told, running) = (Arc::clone(&told), Arc::clone(&running));
                thread::spawn(move || Self::serve(&socket, &told, &running));
            }
        });
        Self { address, ends, streaming }
    }

    fn serve(mut socket: &TcpStream, ends: &AtomicBool, streaming: &AtomicUsize) -> Option<()> {
        socket.set_nodelay(true).ok()?;
        let mut reader = BufReader::new(socket.try_clone().ok()?);
        loop {
            let head = head(&mut reader)?;
            let mut body = vec![0; length(&head)];
            reader.read_exact(&mut body).ok()?;
            if head.starts_with("POST") {
                let stream = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\
                              Transfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n";
                socket.write_all(stream.as_bytes()).ok()?;
                streaming.fetch_add(1, Ordering::SeqCst);
                while !ends.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(20));
                    socket.write_all(b"3\r\n{}\n\r\n").ok()?;
                }
                socket.write_all(b"0\r\n\r\n").ok()?;
            } else {
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
                socket.write_all(answer.as_bytes()).ok()?;
            }
        }
    }
}

fn head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn length(head: &str) -> usize {
    field(head, "content-length").map_or(0, |it| it.parse().unwrap())
}

// ---- callers -----------------------------------------------------------------------------------

/// Asks without a pause on kept connections until `done` says so, or too much was lost; tells what.
fn callers(
    address: SocketAddr,
    asked: &AtomicUsize,
    done: impl Fn(usize) -> bool + Sync,
) -> Vec<String> {
    callers_with(address, asked, done, |_| KEY.to_owned())
}

/// The same with a key for each request, by its number.
pub(crate) fn callers_with(
    address: SocketAddr,
    asked: &AtomicUsize,
    done: impl Fn(usize) -> bool + Sync,
    key: impl Fn(usize) -> String + Sync,
) -> Vec<String> {
    callers_over(|| connect(address), asked, done, key)
}

/// The same over whatever carries bytes.
pub(crate) fn callers_over<S: Read + Write>(
    connect: impl Fn() -> std::io::Result<S> + Sync,
    asked: &AtomicUsize,
    done: impl Fn(usize) -> bool + Sync,
    key: impl Fn(usize) -> String + Sync,
) -> Vec<String> {
    let caller = || {
        let (mut lost, mut kept) = (Vec::new(), None);
        while lost.len() < 3 && !done(asked.load(Ordering::SeqCst)) {
            let number = asked.fetch_add(1, Ordering::SeqCst);
            match request_over(&key(number), &connect, &mut kept) {
                Ok(200) => {}
                Ok(status) => lost.push(format!("status {status}")),
                Err(error) => lost.push(error.to_string()),
            }
        }
        lost
    };
    thread::scope(|scope| {
        let all: Vec<_> = (0..CALLERS).map(|_| scope.spawn(caller)).collect();
        all.into_iter().flat_map(|it| it.join().unwrap()).collect()
    })
}

/// On the kept connection if there is one, as a client has to: once.
fn one_request(
    address: SocketAddr,
    kept: &mut Option<BufReader<TcpStream>>,
) -> std::io::Result<u16> {
    request_with(KEY, address, kept)
}

pub(crate) fn request_with(
    key: &str,
    address: SocketAddr,
    kept: &mut Option<BufReader<TcpStream>>,
) -> std::io::Result<u16> {
    request_over(key, || connect(address), kept)
}

/// The same over whatever carries bytes.
pub(crate) fn request_over<S: Read + Write>(
    key: &str,
    connect: impl FnOnce() -> std::io::Result<S>,
    kept: &mut Option<BufReader<S>>,
) -> std::io::Result<u16> {
    let mut socket = match kept.take() {
        Some(socket) => socket,
        None => BufReader::new(connect()?),
    };
    let request =
        format!("GET /api/tags HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {key}\r\n\r\n");
    socket.get_mut().write_all(request.as_bytes())?;
    let gone = std::io::ErrorKind::UnexpectedEof;
    let head = head(&mut socket).ok_or(gone)?;
    let mut body = vec![0; length(&head)];
    socket.read_exact(&mut body)?;
    if field(&head, "connection") != Some("close") {
        *kept = Some(socket);
    }
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(gone.into())
}

pub(crate) fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// A stream that has begun.
fn stream(address: SocketAddr) -> BufReader<TcpStream> {
    stream_with(KEY, address)
}

pub(crate) fn stream_with(key: &str, address: SocketAddr) -> BufReader<TcpStream> {
    let mut socket = connect(address).unwrap();
    let request = format!(
        "POST /api/chat HTTP/1.1\r\nHost: gate\r\nX-Api-Key: {key}\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    socket.write_all(request.as_bytes()).unwrap();
    let mut socket = BufReader::new(socket);
    let head = head(&mut socket).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    socket
}

pub(crate) fn ends_whole(mut stream: BufReader<TcpStream>) -> bool {
    let mut rest = String::new();
    loop {
        let read = stream.read_line(&mut rest);
        if rest.ends_with("0\r\n") && stream.read_line(&mut rest).is_ok_and(|read| read == 2) {
            return true;
        }
        if !read.is_ok_and(|read| read > 0) {
            return false;
        }
    }
}

fn house() -> House {
    let house = House::new();
    std::fs::write(house.path("keys"), format!("{KEY} # anna\n")).unwrap();
    house
}

pub(crate) fn wait_for(what: &str, mut look: impl FnMut() -> bool) {
    let started = Instant::now();
    while !look() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

// ---- the promises ------------------------------------------------------------------------------

#[test]
fn reloads_under_load_lose_nothing_and_keep_no_memory() {
    let (house, model) = (house(), Model::start());
    let many: String = (0..20_000).map(|n| format!("another-key-{n} # other{n}\n")).collect();
    std::fs::write(house.path("keys"), format!("{KEY} # anna\n{many}")).unwrap();
    let upstream = format!("http://{}", model.address);
    let mut gate = house.serve(&["--api-keys", "keys", "--upstream", &upstream]);
    let address = gate.address.parse().unwrap();
    let (asked, reloads) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let enough = |asked| asked >= load() && reloads.load(Ordering::SeqCst) >= 100;
    let lost = thread::scope(|scope| {
        let lost = scope.spawn(|| callers(address, &asked, enough));
        let mut early = 0;
        while !lost.is_finished() && !enough(asked.load(Ordering::SeqCst)) {
            gate.signal("HUP");
            gate.says("configuration reloaded");
            if reloads.fetch_add(1, Ordering::SeqCst) == 20 {
                early = resident(gate.child.id());
            }
        }
        let late = resident(gate.child.id());
        assert!(late < early + 16 * 1024, "{early} KiB became {late} KiB");
        lost.join().unwrap()
    });
    assert!(lost.is_empty(), "{} of {asked:?}: {:?}", lost.len(), lost.first());
    gate.signal("TERM");
    assert_eq!(gate.wait(), Some(0));
}

/// Memory of a process, in KiB.
pub(crate) fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// A gate that gets a listening socket as systemd hands it over: as file 3, with its own process
/// number in the environment, which only a shell that becomes the gate can know.
fn activated(house: &House, listener: &TcpListener, upstream: &str) -> Gate {
    let become_it = "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", become_it, "sh", &PROGRAM, "serve", "--api-keys", "keys"]);
    // What is handed over stands over what is asked for.
    shell.args(["--listen", "127.0.0.1:1", "--upstream", upstream]);
    shell.env_clear().current_dir(house.folder.path());
    let mut gate = Gate::start_with(
        shell,
        Stdio::from(std::os::fd::OwnedFd::from(listener.try_clone().unwrap())),
    );
    gate.address = after(&gate.says("listening"), "address=");
    assert_eq!(gate.address, listener.local_addr().unwrap().to_string());
    gate
}

#[test]
fn several_sockets_are_handed_over_also_those_of_a_file() {
    let (house, model) = (house(), Model::start());
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = std::os::unix::net::UnixListener::bind(house.path("gate.sock")).unwrap();
    let (a, b) = (port.as_raw_fd(), file.as_raw_fd());
    for listener in [socket2::SockRef::from(&port), socket2::SockRef::from(&file)] {
        listener.set_cloexec(false).unwrap();
    }
    // Through numbers that neither has.
    let become_it = format!(
        "exec 8<&{a} 9<&{b}; exec 3<&8 4<&9 8<&- 9<&-; LISTEN_FDS=2 LISTEN_PID=$$ exec \"$@\""
    );
    // Of two digits other shells know nothing.
    let mut shell = Command::new("bash");
    shell.args(["-c", &become_it, "bash", &PROGRAM, "serve", "--api-keys", "keys"]);
    shell.args(["--upstream", &format!("http://{}", model.address)]);
    shell.env_clear().current_dir(house.folder.path());
    let mut gate = Gate::start(shell);
    let told = gate.says(&format!("address={}", port.local_addr().unwrap()));
    let told = if told.contains("unix:") { told } else { gate.says("address=unix:") };
    assert!(told.contains("gate.sock"), "{told}");
    let mut kept = None;
    assert_eq!(one_request(port.local_addr().unwrap(), &mut kept).unwrap(), 200);
    let connect = || std::os::unix::net::UnixStream::connect(house.path("gate.sock"));
    assert_eq!(request_over(KEY, connect, &mut None).unwrap(), 200);
    gate.signal("TERM");
    assert_eq!(gate.wait(), Some(0));
    assert!(house.path("gate.sock").exists(), "it is the supervisor's");
}

#[test]
fn restarts_under_load_lose_nothing_when_a_supervisor_holds_the_socket() {
    let (house, model) = (house(), Model::start());
    let upstream = format!("http://{}", model.address);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut gate = activated(&house, &listener, &upstream);
    let (asked, restarts) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let enough = |asked| asked >= load() && restarts.load(Ordering::SeqCst) >= 5;
    let lost = thread::scope(|scope| {
        let lost = scope.spawn(|| callers(address, &asked, enough));
        while !lost.is_finished() && !enough(asked.load(Ordering::SeqCst)) {
            let before = asked.load(Ordering::SeqCst);
            // Under load each time, not between two starts.
            let more = |asked| asked > before + 100 || enough(asked);
            wait_for("requests", || lost.is_finished() || more(asked.load(Ordering::SeqCst)));
            gate.signal("TERM");
            assert_eq!(gate.wait(), Some(0));
            gate = activated(&house, &listener, &upstream);
            restarts.fetch_add(1, Ordering::SeqCst);
        }
        lost.join().unwrap()
    });
    assert!(lost.is_empty(), "{} of {asked:?}: {:?}", lost.len(), lost.first());
}

#[test]
fn who_comes_while_the_old_gate_drains_is_served_by_the_next() {
    let (house, model) = (house(), Model::start());
    let upstream = format!("http://{}", model.address);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut old = activated(&house, &listener, &upstream);
    let running = stream(address);
    old.signal("TERM");
    old.says("stopping");
    // The old gate takes nobody any more, and the supervisor's socket keeps whoever comes.
    let late = thread::spawn(move || one_request(address, &mut None));
    model.ends.store(true, Ordering::SeqCst);
    assert!(ends_whole(running), "the stream on the old gate was cut");
    assert_eq!(old.wait(), Some(0));
    let _new = activated(&house, &listener, &upstream);
    assert_eq!(late.join().unwrap().unwrap(), 200);
}

#[test]
fn a_supervisor_hears_when_the_gate_is_ready_reloads_and_stops() {
    let house = house();
    let news = std::os::unix::net::UnixDatagram::bind(house.path("news")).unwrap();
    news.set_read_timeout(Some(PATIENCE)).unwrap();
    let hears = || {
        let mut told = [0; 200];
        let bytes = news.recv(&mut told).unwrap();
        String::from_utf8_lossy(&told[..bytes]).into_owned()
    };
    let mut command = house.command(&["serve", "--listen", "127.0.0.1:0", "--api-keys", "keys"]);
    command.env("NOTIFY_SOCKET", house.path("news"));
    let mut gate = Gate::start(command);
    assert_eq!(hears(), "READY=1\n");
    gate.address = after(&gate.says("listening"), "address=");
    assert_eq!(gate.get("/_portcullis/health", None).0, 200);
    gate.signal("HUP");
    let reloading = hears();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(hears(), "READY=1\n");
    gate.signal("TERM");
    assert_eq!(hears(), "STOPPING=1\n");
    assert_eq!(gate.wait(), Some(0));
}

#[test]
fn a_gate_on_a_unix_socket_is_alive_there_and_leaves_no_file() {
    let house = house();
    let listen = ["--listen", "unix:gate.sock"];
    let serve = [&["serve", "--api-keys", "keys"][..], &listen].concat();
    let mut gate = house.serve_as(&serve);
    assert_eq!(gate.address, "unix:gate.sock");
    let alive = house.run(&[&["health"][..], &listen].concat());
    assert_eq!(alive.status.code(), Some(0));
    // A second one does not take it away.
    assert_eq!(house.run(&serve).status.code(), Some(1));
    gate.signal("KILL");
    assert_eq!(gate.wait(), None);
    assert!(house.path("gate.sock").exists());
    let mut gate = house.serve_as(&serve);
    gate.signal("TERM");
    assert_eq!(gate.wait(), Some(0));
    assert!(!house.path("gate.sock").exists());
}

#[test]
fn a_gate_that_starts_before_its_backend_says_so_and_serves_when_that_comes() {
    let house = house();
    // Nobody listens there yet, and nobody else can.
    let place = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    place.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let upstream = format!("http://{}", place.local_addr().unwrap().as_socket().unwrap());
    let gate = house.serve(&["--api-keys", "keys", "--upstream", &upstream]);
    let (status, answer) = gate.get("/api/tags", Some(KEY));
    assert!(status == 503 && answer.contains("no_backend"), "{answer}");
    assert!(answer.to_lowercase().contains("\r\nretry-after: "), "{answer}");
    assert_eq!(gate.get("/_portcullis/health", None).0, 200);
    let (status, ready) = gate.get("/_portcullis/ready", None);
    assert!(status == 200 && ready.contains("\"backends_up\":0"), "{ready}");
    place.listen(16).unwrap();
    let _model = Model::behind(place.into());
    assert_eq!(gate.get("/api/tags", Some(KEY)).0, 200);
}

#[test]
fn a_hundred_streams_finish_in_a_drain_and_a_second_signal_does_not_wait_for_them() {
    for again in [false, true] {
        let (house, model) = (house(), Model::start());
        let upstream = format!("http://{}", model.address);
        let mut gate = house.serve(&["--api-keys", "keys", "--upstream", &upstream]);
        let address: SocketAddr = gate.address.parse().unwrap();
        let streams: Vec<_> = (0..100).map(|_| stream(address)).collect();
        let mut kept = None;
        assert_eq!(one_request(address, &mut kept).unwrap(), 200);
        gate.signal("TERM");
        gate.says("stopping");
        // The next request on a kept connection is served, and is its last.
        assert_eq!(one_request(address, &mut kept).unwrap(), 200);
        assert!(kept.is_none());
        if again {
            gate.signal("TERM");
        } else {
            model.ends.store(true, Ordering::SeqCst);
        }
        let started = Instant::now();
        let whole = streams.into_iter().filter_map(|it| ends_whole(it).then_some(())).count();
        assert_eq!(gate.wait(), Some(0));
        assert_eq!(whole, if again { 0 } else { 100 });
        assert!(!again || started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        let (log, outcome) = (gate.rest_of_stdout(), if again { " drained " } else { " done " });
        let chats = log.lines().filter(|line| line.contains(" /api/chat ")).collect::<Vec<_>>();
        assert_eq!(chats.len(), 100);
        assert!(chats.iter().all(|line| line.contains(outcome)), "{}", chats[0]);
        assert_eq!(model.streaming.load(Ordering::SeqCst), 100);
    }
}

#[test]
fn with_too_few_files_the_gate_is_calm_serves_its_streams_and_recovers() {
    let (house, model) = (house(), Model::start());
    let upstream = format!("http://{}", model.address);
    let mut command = Command::new("prlimit");
    command.args(["--nofile=64", &PROGRAM, "serve", "--listen", "127.0.0.1:0"]);
    command.args(["--api-keys", "keys", "--upstream", &upstream]);
    command.current_dir(house.folder.path());
    if Command::new("prlimit").arg("--version").stdout(Stdio::null()).status().is_err() {
        return skip("no prlimit, so a gate with too few files was not tried");
    }
    let mut gate = Gate::start(command);
    let told = gate.says("the limit of open files has room for");
    assert!(told.contains("max_connections"), "{told}");
    gate.address = after(&gate.says("listening"), "address=");
    let address: SocketAddr = gate.address.parse().unwrap();
    let streams: Vec<_> = (0..5).map(|_| stream(address)).collect();
    let held: Vec<_> = (0..150).map(|_| TcpStream::connect(address).unwrap()).collect();
    gate.says("all connections are taken");
    let (before, _) = (cpu(gate.child.id()), gate.stderr.try_iter().count());
    for _ in 0..4 {
        thread::sleep(Duration::from_secs(1));
        assert_eq!(gate.get("/_portcullis/health", None).0, 200);
    }
    let (spent, said) = (cpu(gate.child.id()) - before, gate.stderr.try_iter().count());
    assert!(spent <= Duration::from_millis(400), "{spent:?} in 4 s");
    // One a second, and one that the first second begins with.
    assert!(said <= 5, "{said} lines in 4 s");
    drop(held);
    let released = Instant::now();
    wait_for("a place", || one_request(address, &mut None).is_ok_and(|status| status == 200));
    assert!(released.elapsed() < Duration::from_millis(7500), "{:?}", released.elapsed());
    model.ends.store(true, Ordering::SeqCst);
    assert!(streams.into_iter().all(ends_whole), "a running stream was harmed");
}

/// What a process has had of the processor.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|it| it.parse::<u64>().unwrap()).sum();
    // A hundred ticks a second, everywhere.
    Duration::from_millis(ticks * 10)
}
