//! Many streams at once: what one costs, that it costs no more with time, and that it is given back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portcullis::server::{connections_with, make_room};
use portcullis::tls::BackendTls;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::load::resident;
use crate::{Gate, House, KEY, PATIENCE, skip, tell};

/// KiB that come and go with whatever else happens.
const ROOM: usize = 2 * 1024;

/// Streams, tokens of each, and the time between two.
struct Crowd {
    streams: usize,
    tokens: usize,
    beat: Duration,
}

impl Crowd {
    /// `PORTCULLIS_SLOW=1` for the promise of the whole, which takes five to ten minutes.
    fn new() -> Self {
        let beat = Duration::from_millis(100);
        match std::env::var_os("PORTCULLIS_SLOW") {
            None => Self { streams: 500, tokens: 30, beat },
            Some(_) => Self { streams: 4_000, tokens: 120, beat: 10 * beat },
        }
    }

    /// Five times what it takes.
    fn patience(&self) -> Duration {
        PATIENCE + 5 * self.beat * u32::try_from(self.tokens).unwrap()
    }
}

#[derive(Default)]
struct Counts {
    /// Connections to the model server.
    open: AtomicUsize,
    /// Streams that came to their callers.
    begun: AtomicUsize,
    tokens: AtomicUsize,
    cut: AtomicUsize,
}

impl Counts {
    async fn wait(&self, what: &str, patience: Duration, done: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !done(self) {
            assert!(started.elapsed() < patience, "waited in vain for {what}");
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.cut.load(Ordering::SeqCst), 0, "streams were cut");
    }
}

/// A model server that answers every request with tokens until the gate leaves.
async fn model(listener: TcpListener, counts: Arc<Counts>, beat: Duration) {
    let mut streams = JoinSet::new();
    while let Ok((mut socket, _)) = listener.accept().await {
        let counts = Arc::clone(&counts);
        streams.spawn(async move {
            counts.open.fetch_add(1, Ordering::SeqCst);
            let _ = answer(&mut socket, beat).await;
            counts.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn answer(socket: &mut TcpStream, beat: Duration) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"{}") {
        if socket.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    socket.write_all(head.as_bytes()).await?;
    loop {
        socket.write_all(b"d\r\n{\"token\":\"a\"}\r\n").await?;
        let mut byte = [0];
        tokio::select! {
            () = sleep(beat) => {}
            // The gate says nothing more, so this is its end.
            _ = socket.read(&mut byte) => return Ok(()),
        }
    }
}

/// One caller, who reads until it is dropped.
async fn caller(address: SocketAddr, tls: Option<BackendTls>, counts: Arc<Counts>) {
    let socket = TcpStream::connect(address).await.unwrap();
    let came = match tls {
        None => read(socket, &counts).await,
        Some(tls) => read(tls.connect(socket).await.unwrap(), &counts).await,
    };
    counts.cut.fetch_add(1, Ordering::SeqCst);
    panic!("a stream was cut: {came:?}");
}

async fn read(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    counts: &Counts,
) -> std::io::Result<()> {
    let request = format!(
        "POST /api/chat HTTP/1.1\r\nHost: gate\r\nX-Api-Key: {KEY}\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    socket.write_all(request.as_bytes()).await?;
    socket.flush().await?;
    let (mut bytes, mut first) = ([0; 1024], true);
    loop {
        let count = socket.read(&mut bytes).await?;
        if count == 0 {
            return Ok(());
        }
        let tokens = bytes[..count].iter().filter(|byte| **byte == b'{').count();
        counts.tokens.fetch_add(tokens, Ordering::SeqCst);
        if first && tokens > 0 {
            first = false;
            counts.begun.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Memory of the gate in KiB, at three times of a round.
#[derive(Debug)]
struct Round {
    early: usize,
    late: usize,
    after: usize,
}

async fn round(
    gate: &Gate,
    tls: Option<&BackendTls>,
    counts: &Arc<Counts>,
    crowd: &Crowd,
) -> Round {
    let address = gate.address.parse().unwrap();
    counts.begun.store(0, Ordering::SeqCst);
    let mut callers = JoinSet::new();
    for number in 0..crowd.streams {
        callers.spawn(caller(address, tls.cloned(), Arc::clone(counts)));
        // The queue of the listening socket is not what is tested.
        let all = |counts: &Counts| counts.begun.load(Ordering::SeqCst) + 100 > number;
        counts.wait("streams", PATIENCE, all).await;
    }
    let all = |counts: &Counts| counts.begun.load(Ordering::SeqCst) == crowd.streams;
    counts.wait("the last streams", PATIENCE, all).await;
    let tokens = |each: usize| {
        counts.tokens.store(0, Ordering::SeqCst);
        let enough = each * crowd.streams;
        let came = move |counts: &Counts| counts.tokens.load(Ordering::SeqCst) >= enough;
        counts.wait("tokens", crowd.patience(), came)
    };
    tokens(crowd.tokens / 6).await;
    let early = resident(gate.child.id());
    tokens(crowd.tokens).await;
    let late = resident(gate.child.id());
    drop(callers);
    let gone = |counts: &Counts| counts.open.load(Ordering::SeqCst) == 0;
    counts.wait("the model's end", PATIENCE, gone).await;
    Round { early, late, after: resident(gate.child.id()) }
}

/// Two rounds of streams; `most` is what one may cost, in KiB.
fn endure(with_tls: bool, most: usize) {
    let crowd = Crowd::new();
    // Here both ends of every stream but the gate's are ours.
    let _ = make_room(crowd.streams);
    let needed = 2 * u64::try_from(crowd.streams).unwrap();
    let limit = files();
    if connections_with(limit) < needed {
        return skip(&format!("{limit} open files are too few for {} streams", crowd.streams));
    }
    let house = House::new();
    std::fs::write(house.path("keys"), format!("{KEY} # anna\n")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = format!("http://{}", listener.local_addr().unwrap());
        let counts = Arc::new(Counts::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(model(listener, Arc::clone(&counts), crowd.beat));
        let mut arguments = vec!["--api-keys", "keys", "--upstream", &upstream];
        if with_tls {
            let made = house.run(&["init", "pair", "--self-signed", "localhost"]);
            assert_eq!(made.status.code(), Some(0));
            arguments.extend(["--tls-cert", "pair/cert.pem", "--tls-key", "pair/key.pem"]);
        }
        let gate = house.serve(&arguments);
        let tls = with_tls.then(|| BackendTls::unverified("localhost").unwrap());
        let one = Crowd { streams: 1, tokens: 6, beat: crowd.beat };
        let before = round(&gate, tls.as_ref(), &counts, &one).await.after;
        let first = round(&gate, tls.as_ref(), &counts, &crowd).await;
        let second = round(&gate, tls.as_ref(), &counts, &crowd).await;
        let told = format!("KiB, of {} streams: {before}, {first:?}, {second:?}", crowd.streams);
        tell(&told);
        let each = first.late.saturating_sub(before) / crowd.streams;
        assert!(each <= most, "{each} KiB for a stream; {told}");
        for Round { early, late, .. } in [&first, &second] {
            assert!(*late <= early + early / 50 + ROOM, "it grows with time; {told}");
        }
        assert!(second.late <= first.late + first.late / 50 + ROOM, "something is left; {told}");
        assert!(second.after <= second.late + ROOM, "it grows at the end; {told}");
        given_back(&gate, before + (second.late.saturating_sub(before)) * 3 / 10 + ROOM).await;
    });
}

/// Waits until the system has back what nobody uses.
async fn given_back(gate: &Gate, most: usize) {
    let began = Instant::now();
    while resident(gate.child.id()) > most {
        let kept = resident(gate.child.id());
        assert!(began.elapsed() < Duration::from_secs(100), "it keeps {kept} KiB of {most}");
        sleep(Duration::from_millis(500)).await;
    }
}

/// The limit of open files of this process.
fn files() -> u64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[test]
fn many_streams_cost_little_no_more_with_time_and_nothing_when_they_are_gone() {
    endure(false, 40);
}

#[test]
fn so_do_many_streams_over_tls() {
    endure(true, 64);
}
