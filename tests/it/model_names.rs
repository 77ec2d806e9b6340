//! What the gate takes a model's name for is what Ollama takes it for.
//!
//! Asked of Ollama's own packages: `tests/names`. `PORTCULLIS_GIN_CASES` sets how many names are tried.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use portcullis::config::ModelName;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, FailurePersistence, TestRunner};
use serde::Deserialize;

use crate::gin::cases;

/// More than any host and its parts together; the gate reads no longer one.
const LONGEST: usize = 1024;

#[test]
fn what_the_gate_takes_a_name_for_is_what_ollama_takes_it_for() {
    let Some(ollama) = Ollama::start() else { return };
    let ollama = RefCell::new(ollama);
    let counts = RefCell::new((0_u32, 0_u32, 0_u32));
    let cases = cases();
    let config = Config {
        cases,
        failure_persistence: None::<Box<dyn FailurePersistence>>,
        ..Config::default()
    };
    let tried = TestRunner::new(config).run(&name(), |name| {
        let theirs = ollama.borrow_mut().tell(&name);
        let ours = ModelName::parse(&name).ok();
        let mut counts = counts.borrow_mut();
        counts.0 += u32::from(!theirs.r#ref.is_empty());
        counts.1 += u32::from(theirs.cloud);
        counts.2 += u32::from(theirs.r#ref.is_empty() && theirs.raw.is_empty());
        theirs.agrees(&name, ours.as_ref()).map_err(|why| {
            TestCaseError::fail(format!("{why}: {name:?} is {ours:?} here, {theirs:?} there"))
        })
    });
    if let Err(error) = tried {
        panic!("{error}");
    }
    let (good, cloud, bad) = *counts.borrow();
    // About a twentieth are in the cloud.
    let enough = cases / 50;
    assert!(
        good > enough && cloud > enough && bad > enough,
        "{good} good, {cloud} cloud, {bad} bad"
    );
}

#[derive(Debug, Deserialize)]
struct Theirs {
    r#ref: String,
    cloud: bool,
    raw: String,
    empty_host: bool,
}

impl Theirs {
    fn agrees(&self, name: &str, ours: Option<&ModelName>) -> Result<(), &'static str> {
        let Some(ours) = ours else {
            // Safe, and nobody writes so: a host that is there and empty, for which the usual one
            // stands there; a scheme with the mark of a digest; a blank before a tag in the cloud.
            let has_odd_scheme = name.split_once("://").is_some_and(|it| it.0.contains('@'));
            let has_blank =
                name.rsplit_once(':').is_some_and(|it| it.1.starts_with(char::is_whitespace));
            let is_odd = self.empty_host || has_odd_scheme || has_blank;
            let is_odd = is_odd || name.trim().len() > LONGEST;
            // So is what most handlers there refuse, such as `x:local:cloud`, and some take.
            return if self.r#ref.is_empty() || is_odd {
                Ok(())
            } else {
                Err("only the gate refuses it")
            };
        };
        if !self.r#ref.is_empty() {
            if ours.is_cloud() != self.cloud {
                return Err("whether it runs in the cloud");
            }
            if ours.to_string() != with_source(&self.r#ref, self.cloud) {
                return Err("another model");
            }
        }
        // Where a handler does not look for the source, what says it is the tag. It is the same rule
        // that decides: cloud is asked for by itself, and `:local` is matched as a tag too.
        let is_source = ours.is_cloud() || self.raw.ends_with(":local");
        if !self.raw.is_empty() && !is_source && ours.to_string() != self.raw {
            return Err("another model for who does not look for the source");
        }
        Ok(())
    }
}

/// As the gate shows it.
fn with_source(shown: &str, cloud: bool) -> String {
    match (cloud, shown.strip_suffix(":latest")) {
        (false, _) => shown.to_owned(),
        (true, Some(model)) => format!("{model}:cloud"),
        (true, None) => format!("{shown}-cloud"),
    }
}

/// Ollama's packages in a process of its own.
struct Ollama {
    process: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Ollama {
    /// Nothing where there is no Go, or no way to Ollama's source.
    fn start() -> Option<Self> {
        let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("names");
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/names");
        let mut go = Command::new("go");
        let built = go.args(["build", "-o"]).arg(&program).arg(".").current_dir(source).output();
        let why = match built {
            Ok(built) if built.status.success() => None,
            Ok(built) => Some(String::from_utf8_lossy(&built.stderr).into_owned()),
            Err(_) => Some("no Go".to_owned()),
        };
        if let Some(why) = why {
            // Written past the test's captured output, so that it is seen.
            let _ = writeln!(std::io::stdout(), "\nskip: Ollama was asked for no name: {why}");
            return None;
        }
        let mut process =
            Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let asks = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Some(Self { process, asks, answers })
    }

    fn tell(&mut self, name: &str) -> Theirs {
        self.asks.write_all(format!("{}\n", serde_json::json!(name)).as_bytes()).unwrap();
        let mut told = String::new();
        self.answers.read_line(&mut told).unwrap();
        serde_json::from_str(&told).unwrap_or_else(|_| panic!("it ended at {name:?}"))
    }
}

impl Drop for Ollama {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const BEFORE: [&str; 16] = [
    "registry.ollama.ai/library/",
    "Registry.Ollama.AI/Library/",
    "https://registry.ollama.ai/library/",
    "http://h:8080/x/",
    "library/",
    "hf.co/x/",
    "hf.co/",
    "h:1/x/",
    "h/a/b/c/",
    "://x/y/",
    "https:///x/",
    "a://b://c/d/",
    "/",
    "//",
    "x.y/",
    "_/",
];
const MODELS: [&str; 12] =
    ["gemma3", "GEMMA3", "a", "a.b-c_d", "-a", ".a", "_", "qwen3:4b", "", "a:b", "cloud", "local"];
const TAGS: [&str; 14] = [
    ":latest",
    ":LATEST",
    ":4b",
    ":20b-q4_K_M",
    ":",
    "::",
    ":-x",
    ":.",
    ":_",
    ":a.b",
    ":x/y",
    ":cl",
    ":latest-x",
    ":a:b",
];
const SOURCES: [&str; 16] = [
    ":cloud",
    ":Cloud",
    ":CLOUD",
    "-cloud",
    "-Cloud",
    ":4b-cloud",
    ":local",
    ":LOCAL",
    ":latest-cloud",
    ": cloud ",
    ":-cloud",
    ":local-cloud",
    ":cloud-cloud",
    "-cloud:cloud",
    ":cloud:local",
    "/x-cloud",
];
const DIGESTS: [&str; 6] =
    ["@sha256:00ff", "@sha256-00", "@", "@x@y", "@sha256:00:cloud", ":4b@sha256:00-cloud"];
const ODD: [&str; 20] = [
    " ", "\t", "\u{a0}", "\u{2003}", "\u{85}", "\0", "\n", "/", ":", "@", "-", ".", "%2f", "\\",
    "*", "K", "\u{212a}", "\u{17f}", "é", "//",
];

/// Parts that are known, put together, and bent in up to two places.
fn name() -> impl Strategy<Value = String> {
    let or_none =
        |parts: &'static [&'static str], of: u32| prop_oneof![of => select(parts), 10 => Just("")];
    let parts = (
        or_none(&BEFORE, 10),
        prop_oneof![8 => select(&MODELS[..2]), 4 => select(&MODELS[..])],
        or_none(&TAGS, 8),
        or_none(&SOURCES, 8),
        or_none(&DIGESTS, 1),
    );
    let known = parts.prop_map(|(before, model, tag, source, digest)| {
        format!("{before}{model}{tag}{source}{digest}")
    });
    let long = (select(&MODELS[..2]), 70..360_usize, select(&TAGS[..4]), select(&BEFORE[..8]));
    let long = long.prop_map(|(model, length, tag, before)| {
        let half = length / 2;
        format!("{}{before}{}{tag}", "h".repeat(half), model.repeat(half))
    });
    let bends = proptest::collection::vec((any::<prop::sample::Index>(), select(&ODD[..])), 1..3);
    let bent = (known.clone(), bends).prop_map(|(mut name, bends)| {
        for (at, odd) in bends {
            let mut at = at.index(name.len() + 1);
            while !name.is_char_boundary(at) {
                at -= 1;
            }
            name.insert_str(at, odd);
        }
        name
    });
    let anything = "[-a-cA-C_.:/@ ]{0,12}((:|-)(cloud|local|CLOUD))?";
    prop_oneof![6 => known, 4 => bent, 1 => long, 3 => anything]
}
