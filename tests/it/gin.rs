//! What was decided on is what Ollama's router chooses from what is sent on.
//!
//! The router is gin, behind Go's own reading of a request line: `tests/gin` holds it, with Ollama's
//! routes. `PORTCULLIS_GIN_CASES` sets how many targets are tried; [`cases`] says how many otherwise.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock};

use http::{Method, Uri};
use portcullis::api::{Asked, ENDPOINTS, Target};
use portcullis::forward;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, FailurePersistence, TestRunner};

use crate::house::{Backend, House, KEY};

/// Enough for every build.
const CASES: u32 = 20_000;
/// With `PORTCULLIS_SLOW=1`: half an hour of a core for bodies, unless built with `--release`.
const ALL_CASES: u32 = 1_000_000;

/// Paths that are not in the table, some of them almost.
const STRANGERS: [&str; 14] = [
    "/api",
    "/api/",
    "/api/x",
    "/api/tag",
    "/api/tagss",
    "/api/blobs",
    "/api/user/keys",
    "/v1",
    "/v1/chat",
    "/v1/images/generations",
    "/v1/messages/count_tokens",
    "/_portcullis/me",
    "/debug/pprof/",
    "/favicon.ico",
];

/// What makes a path odd.
const ODD: [&str; 44] = [
    "/", "//", "/.", "/./", "/..", "/../", "..", ".", "%2f", "%2F", "%2e", "%2E%2E", "%5c", "\\",
    "%00", "\0", ";", ";a=b", "%3b", "%", "%4", "%zz", "%25", "%2", "%20", " ", "\t", "\n", "\r\n",
    "+", "*", "%2a", ":", "%3A", "@", "?", "%3f", "#", "%23", "é", "%c3%a9", "\u{212a}", "~",
    "%7e",
];

#[test]
fn what_was_decided_on_is_what_ollamas_router_chooses() {
    let Some(router) = Router::start() else { return };
    let router = Mutex::new(router);
    let known = Mutex::new((0_u32, 0_u32));
    let cases = cases();
    let config = Config {
        cases,
        failure_persistence: None::<Box<dyn FailurePersistence>>,
        ..Config::default()
    };
    let tried = TestRunner::new(config).run(&request(), |(method, raw)| {
        let Some(decided) = Decided::on(&method, &raw) else { return Ok(()) };
        let mut seen = known.lock().unwrap();
        seen.0 += 1;
        seen.1 += u32::from(decided.asked.endpoint().is_some());
        drop(seen);
        let (chosen, parameter) = router.lock().unwrap().route(&method, &decided.sent);
        prop_assert!(
            decided.agrees_with(&chosen, &parameter),
            "{method} {:?} is {} here, is sent as {}, and is {chosen} there, with {parameter:?}",
            String::from_utf8_lossy(&raw),
            decided.asked.operation(),
            decided.sent,
        );
        Ok(())
    });
    if let Err(error) = tried {
        panic!("{error}");
    }
    let (accepted, known) = *known.lock().unwrap();
    assert!(known > cases / 20, "{known} known of {accepted} accepted: the cases test too little");
    assert!(accepted - known > cases / 20, "{known} known of {accepted} accepted");
}

#[test]
fn the_table_has_every_route_of_ollama_and_no_other() {
    let Some(router) = Router::start() else { return };
    let listed = Command::new(&router.program).arg("routes").output().unwrap();
    let mut theirs = Vec::new();
    for route in String::from_utf8(listed.stdout).unwrap().lines() {
        let (method, path) = route.split_once('\t').unwrap();
        // Removed again in v0.32.6.
        if !path.starts_with("/v1/images/") {
            theirs.push(format!("{method} {}", starred(path)));
        }
    }
    let rows = ENDPOINTS.iter();
    let mut ours: Vec<_> =
        rows.flat_map(|row| row.methods.iter().map(|it| format!("{it} {}", row.path))).collect();
    theirs.sort();
    ours.sort();
    assert_eq!(ours, theirs);
}

/// The cases above ask the parts; here the whole gate is asked, with the same odd targets.
#[tokio::test(flavor = "multi_thread")]
async fn the_gate_sends_what_was_decided_on() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let mut runner = TestRunner::default();
    let mut sent = 0;
    for _ in 0..400 {
        let (method, raw) = request().new_tree(&mut runner).unwrap().current();
        // What is no line, or stands alone, is no question of targets.
        if raw.is_empty() || raw.iter().any(|byte| b" \r\n".contains(byte)) {
            continue;
        }
        let mut request = format!("{method} ").into_bytes();
        request.extend_from_slice(&raw);
        request.extend_from_slice(
            format!(
                " HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n"
            )
            .as_bytes(),
        );
        let mut caller = house.connect().await;
        caller.send(&request).await;
        caller.answer_to(method.as_str()).await;
        let lines: Vec<_> = backend.seen().iter().map(|it| it.line().to_owned()).collect();
        if lines.len() > sent {
            let decided = Decided::on(&method, &raw).expect("the parts refuse what the gate sends");
            assert_eq!(lines[sent..], [format!("{method} {} HTTP/1.1", decided.sent)]);
            sent = lines.len();
        }
    }
    assert!(sent > 20, "only {sent} requests came through");
}

/// What the gate makes of a request line that it does not refuse.
struct Decided {
    asked: Asked,
    sent: String,
}

impl Decided {
    fn on(method: &Method, raw: &[u8]) -> Option<Self> {
        // As a URI, then as the path reads it.
        let uri = Uri::try_from(raw).ok()?;
        let target = Target::read(uri.path()).ok()?;
        let asked = Asked::find(method, &target.path, &[]).ok()?;
        assert_eq!(asked.path(), &target.path, "the path itself does not change");
        let sent = forward::target(asked.path(), uri.query()).ok()?.to_string();
        Some(Self { asked, sent })
    }

    fn agrees_with(&self, chosen: &str, parameter: &str) -> bool {
        match self.asked.endpoint() {
            Some(endpoint) => {
                let stem = endpoint.path.strip_suffix('*');
                let own = stem.map_or(Some(""), |stem| self.asked.path().strip_prefix(stem));
                starred(chosen) == endpoint.path && own == Some(parameter)
            }
            None => {
                ENDPOINTS.iter().all(|row| row.path != starred(chosen)) && chosen != "badrequest"
            }
        }
    }
}

/// `/api/blobs/:digest` as our table writes it.
fn starred(pattern: &str) -> String {
    pattern.split_once(':').map_or_else(|| pattern.to_owned(), |(path, _)| format!("{path}*"))
}

/// Ollama's router in a process of its own.
struct Router {
    program: PathBuf,
    process: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Router {
    /// Nothing where there is no Go.
    fn start() -> Option<Self> {
        let program = program()?;
        let mut process = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the router does not start");
        let asks = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Some(Self { program, process, asks, answers })
    }

    /// The pattern, and what stands in the place of its parameter.
    fn route(&mut self, method: &Method, target: &str) -> (String, String) {
        self.asks.write_all(format!("{method}\t{target}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        let told = answer.strip_suffix('\n').and_then(|line| line.split_once('\t'));
        let (route, parameter) =
            told.unwrap_or_else(|| panic!("the router ended at {method} {target}"));
        (route.to_owned(), serde_json::from_str(parameter).unwrap())
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How many cases a comparison with another program tries.
pub fn cases() -> u32 {
    let slow = std::env::var_os("PORTCULLIS_SLOW").is_some();
    let usual = if slow { ALL_CASES } else { CASES };
    std::env::var("PORTCULLIS_GIN_CASES").map_or(usual, |it| it.parse().unwrap())
}

/// What `tests/gin` is built to; nothing where there is no Go.
pub fn program() -> Option<PathBuf> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(build).clone()
}

fn build() -> Option<PathBuf> {
    let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("gin");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/gin"))
        .output();
    let Ok(built) = built else {
        // Written past the test's captured output, so that it is seen.
        let _ = writeln!(std::io::stdout(), "\nskip: no Go, so Ollama's router was not asked");
        return None;
    };
    assert!(built.status.success(), "tests/gin: {}", String::from_utf8_lossy(&built.stderr));
    Some(program)
}

fn method() -> impl Strategy<Value = Method> {
    let often = select(vec!["GET", "POST"]);
    let seldom = select(vec![
        "HEAD", "DELETE", "PUT", "PATCH", "OPTIONS", "CONNECT", "TRACE", "TRACK", "get", "Post",
        "PROPFIND", "M-SEARCH", "X",
    ]);
    prop_oneof![3 => often, 2 => seldom].prop_map(|name| name.parse().unwrap())
}

/// A method and a request target.
fn request() -> impl Strategy<Value = (Method, Vec<u8>)> {
    let anything = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..60),
        "/[!-~]{0,40}".prop_map(String::into_bytes),
        "(/(api|v1|k|a|%61|\\.|\\.\\.)){1,6}".prop_map(String::into_bytes),
    ];
    prop_oneof![1 => (method(), anything), 4 => bent()]
}

/// A path that is known, or almost, with an origin or a key before it, a query behind it, and bent
/// in up to three places.
fn bent() -> impl Strategy<Value = (Method, Vec<u8>)> {
    let stranger = (method(), select(&STRANGERS[..]).prop_map(str::to_owned));
    let asked = prop_oneof![4 => known(), 1 => stranger];
    let before = prop_oneof![
        8 => Just(String::new()),
        1 => "/k/[a-zA-Z0-9%.;~-]{0,8}",
        1 => Just("http://gate".to_owned()),
        1 => "//[a-z]{1,3}",
    ];
    let queries =
        ["?", "?a=b", "?ts=1", "?a=b&ts=1&c", "?a;b", "?%zz", "?/../..", "?a#b", "??", "?a=%00"];
    let query = prop_oneof![
        8 => Just(String::new()),
        1 => select(queries.to_vec()).prop_map(str::to_owned),
        1 => "\\?[!-~]{0,12}",
    ];
    let slash = prop_oneof![9 => Just(""), 1 => Just("/")];
    let bends = prop_oneof![
        2 => Just(Vec::new()),
        3 => proptest::collection::vec((any::<prop::sample::Index>(), bend()), 1..4),
    ];
    (before, asked, slash, query, bends).prop_map(
        |(before, (method, path), slash, query, bends)| {
            let mut target = format!("{before}{path}{slash}{query}").into_bytes();
            for (at, bend) in bends {
                let at = at.index(target.len());
                bend.apply(&mut target, at);
            }
            (method, target)
        },
    )
}

/// A row of the table, mostly with a method of its own.
fn known() -> impl Strategy<Value = (Method, String)> {
    let names = [
        "gemma3",
        "sha256:00ff",
        "a:b@c",
        "x",
        "%40",
        "a%3Ab",
        "*",
        ":digest",
        "...",
        "a/b",
        "a/",
        "",
        "../x",
        "a%2fb",
        "%2e%2e",
    ];
    let plain: Vec<_> = ENDPOINTS.iter().collect();
    let with_name: Vec<_> = ENDPOINTS.iter().filter(|row| row.path.ends_with('*')).collect();
    let row = prop_oneof![2 => select(plain), 1 => select(with_name)];
    let method = prop_oneof![3 => Just(None), 1 => method().prop_map(Some)];
    let parts = (row, select(names.to_vec()), method, any::<prop::sample::Index>());
    parts.prop_map(|(row, name, method, at)| {
        let path = row.path.strip_suffix('*').map(|row| format!("{row}{name}"));
        let method = method.unwrap_or_else(|| at.get(row.methods).clone());
        (method, path.unwrap_or_else(|| row.path.to_owned()))
    })
}

#[derive(Debug, Clone)]
enum Bend {
    Insert(&'static str),
    Encode,
    FlipCase,
    Remove,
    Double,
    Replace(u8),
}

fn bend() -> impl Strategy<Value = Bend> {
    prop_oneof![
        4 => select(&ODD[..]).prop_map(Bend::Insert),
        3 => Just(Bend::Encode),
        1 => Just(Bend::FlipCase),
        1 => Just(Bend::Remove),
        1 => Just(Bend::Double),
        1 => any::<u8>().prop_map(Bend::Replace),
    ]
}

impl Bend {
    fn apply(&self, target: &mut Vec<u8>, at: usize) {
        let byte = target[at];
        let new = match self {
            Self::Insert(odd) => [odd.as_bytes(), &[byte]].concat(),
            Self::Encode => format!("%{byte:02x}").into_bytes(),
            Self::FlipCase => vec![byte ^ 0x20],
            Self::Remove => Vec::new(),
            Self::Double => vec![byte, byte],
            Self::Replace(other) => vec![*other],
        };
        target.splice(at..=at, new);
        if target.is_empty() {
            target.push(b'/');
        }
    }
}
