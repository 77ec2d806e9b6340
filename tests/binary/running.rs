//! Who runs and who waits, asked of a gate that serves, and ended.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Output, Stdio};
use std::time::Instant;

use crate::{Gate, House, KEY, PATIENCE, after, text};

/// A backend that takes requests and says nothing.
fn silent() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut socket = socket;
                let mut bytes = [0; 4096];
                while socket.read(&mut bytes).is_ok_and(|read| read > 0) {}
            });
        }
    });
    format!("http://{address}")
}

struct Running {
    house: House,
    gate: Gate,
    admin: String,
}

impl Running {
    fn start() -> Self {
        let house = House::new();
        std::fs::write(house.path("keys"), format!("{KEY} # anna\n")).unwrap();
        let config =
            format!("[[backend]]\nname = \"gpu-1\"\nurl = \"{}\"\nparallel = 1\n", silent());
        std::fs::write(house.path("portcullis.toml"), config).unwrap();
        let mut gate = Gate::start(house.command(&[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--api-keys",
            "keys",
            "--data-dir",
            "data",
        ]));
        gate.address = after(&gate.says("listening"), "address=");
        let admin = after(&gate.says("the admin API listens"), "address=");
        gate.says("of one model it gets 1 at once (set by parallel)");
        Self { house, gate, admin }
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        let place = ["--data-dir", "data", "--admin", &self.admin];
        self.house.run(&[arguments, &place].concat())
    }

    /// A caller who asks and does not wait for an answer.
    fn chat(&self) -> TcpStream {
        let mut caller = TcpStream::connect(&self.gate.address).unwrap();
        let body = "{\"model\":\"m\",\"messages\":[]}";
        let length = body.len();
        let head = format!("POST /api/chat HTTP/1.1\r\nHost: gate\r\nx-api-key: {KEY}\r\n");
        write!(caller, "{head}Content-Length: {length}\r\n\r\n{body}").unwrap();
        caller
    }

    /// What the table says, once it says this.
    fn shows(&self, what: &str) -> String {
        let began = Instant::now();
        loop {
            let out = self.ask(&["running"]);
            assert_eq!(out.status.code(), Some(0), "{}", text(&out));
            if text(&out).contains(what) {
                return text(&out);
            }
            assert!(began.elapsed() < PATIENCE, "{what} in {}", text(&out));
        }
    }
}

#[test]
fn what_runs_is_shown_and_ended_by_id_or_by_name_and_a_backend_taken_out() {
    let running = Running::start();
    let idle = running.shows("nobody waits");
    assert!(idle.starts_with("gpu-1  http://127.0.0.1:"), "{idle}");
    let none = running.ask(&["stop", "anna"]);
    assert!(none.status.code() == Some(1) && text(&none).contains("nothing runs or waits by that"));

    let callers = [running.chat(), running.chat(), running.chat()];
    let told = running.shows("2 requests wait");
    assert!(told.contains("m:latest: in memory, 1 running (1 at once, as set)"), "{told}");
    let json = text(&running.ask(&["running", "--format", "json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let id = json["requests"][0]["id"].as_str().unwrap().to_owned();
    assert!(told.contains(&id), "{told}");

    let one = running.ask(&["stop", &id]);
    assert_eq!((one.status.code(), text(&one)), (Some(0), format!("the request {id} is ended\n")));
    running.shows("1 request waits");
    let rest = running.ask(&["stop", "anna"]);
    assert_eq!(
        (rest.status.code(), text(&rest).as_str()),
        (Some(0), "2 requests of anna are ended\n")
    );
    for mut caller in callers {
        let mut answer = [0; 12];
        caller.set_read_timeout(Some(PATIENCE)).unwrap();
        caller.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 503");
    }

    let drained = text(&running.ask(&["backend", "drain", "gpu-1"]));
    assert!(drained.starts_with("gpu-1 gets no new requests, and nothing runs there"), "{drained}");
    let list = text(&running.ask(&["backend", "list"]));
    assert!(list.contains("drained"), "{list}");
    assert_eq!(text(&running.ask(&["backend", "undrain", "gpu-1"])), "gpu-1 gets new requests\n");
    for (name, says) in [("gpu-2", "there are gpu-1"), ("gpu 2/", "no backend has such a name")] {
        let nowhere = running.ask(&["backend", "drain", name]);
        assert_eq!(nowhere.status.code(), Some(1), "{name}");
        assert!(text(&nowhere).contains(says), "{}", text(&nowhere));
    }
}

#[test]
fn a_watch_goes_on_without_a_terminal_and_ends_with_whoever_looks() {
    let running = Running::start();
    let place = ["running", "--watch", "--data-dir", "data", "--admin", &running.admin];
    let mut watch = running.house.command(&place).stdout(Stdio::piped()).spawn().unwrap();
    let mut seen = Vec::new();
    let mut stdout = watch.stdout.take().unwrap();
    while String::from_utf8_lossy(&seen).matches("nobody waits").count() < 2 {
        let mut piece = [0; 1024];
        let read = stdout.read(&mut piece).unwrap();
        assert!(read > 0, "it ended: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&piece[..read]);
    }
    assert!(!seen.contains(&b'\x1b'), "no terminal, no codes for one");
    drop(stdout);
    assert!(watch.wait().unwrap().success());
}
