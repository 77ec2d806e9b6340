//! The life of a managed key under load: each change counts for the very next request, whoever made it,
//! and nobody else notices.

use std::fs;
use std::io::BufReader;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;

use crate::load::{Model, callers_with, ends_whole, load, request_with, stream_with, wait_for};
use crate::managed::{Desk, Managed};

const MANY: usize = 2_000;

/// Who changes keys.
#[derive(Debug, Clone, Copy)]
enum By {
    /// `portcullis key` in a process of its own.
    Command,
    Api,
}

impl By {
    /// The id and the text of a new key.
    fn create(self, desk: &Desk, name: &str) -> (String, String) {
        match self {
            Self::Command => id_and_key(&desk.done(&["key", "create", name, "--format", "json"])),
            Self::Api => desk.made(name),
        }
    }

    fn rotate(self, desk: &Desk, id: &str, overlap: &str) -> (String, String) {
        match self {
            Self::Command => {
                let line = ["key", "rotate", id, "--overlap", overlap, "--format", "json"];
                id_and_key(&desk.done(&line))
            }
            Self::Api => {
                let body = format!("{{\"overlap\":\"{overlap}\"}}");
                let (status, told) = desk.api(&format!("POST /api/v1/keys/{id}/rotate"), &body);
                assert_eq!(status, 201, "{told}");
                id_and_key(&told)
            }
        }
    }

    /// `disable`, `enable` or `revoke`.
    fn set(self, desk: &Desk, id: &str, action: &str) {
        match self {
            Self::Command => drop(desk.done(&["key", action, id])),
            Self::Api => {
                let (status, told) = desk.api(&format!("POST /api/v1/keys/{id}/{action}"), "");
                assert_eq!(status, 200, "{told}");
            }
        }
    }

    /// And what runs by it ends.
    fn revoke_now(self, desk: &Desk, id: &str) {
        match self {
            Self::Command => drop(desk.done(&["key", "revoke", id, "--now"])),
            Self::Api => {
                let line = format!("POST /api/v1/keys/{id}/revoke");
                let (status, told) = desk.api(&line, "{\"now\":true}");
                assert_eq!(status, 200, "{told}");
            }
        }
    }
}

fn id_and_key(json: &str) -> (String, String) {
    let json: Value = serde_json::from_str(json).unwrap();
    let key = json.get("key").or_else(|| json.get("secret")).unwrap();
    (json["id"].as_str().unwrap().to_owned(), key.as_str().unwrap().to_owned())
}

/// Somebody who asks on one connection as long as that is kept.
struct Caller {
    address: SocketAddr,
    kept: Option<BufReader<TcpStream>>,
}

impl Caller {
    /// Who is told to come again comes again: the disk was slow to say what is new.
    fn asks(&mut self, key: &str) -> u16 {
        let mut status = 503;
        wait_for("an answer", || {
            status = request_with(key, self.address, &mut self.kept).unwrap();
            status != 503
        });
        status
    }
}

/// One key's life from its making to its end.
fn live_through(desk: &Desk, by: By, name: &str, caller: &mut Caller) {
    let address = caller.address;
    let mut expect = |key: &str, status: u16, after: &str| {
        assert_eq!(caller.asks(key), status, "{name}, {by:?}: {after}");
    };
    let (id, first) = by.create(desk, name);
    expect(&first, 200, "create");
    by.set(desk, &id, "disable");
    expect(&first, 401, "disable");
    by.set(desk, &id, "enable");
    expect(&first, 200, "enable");
    let (id, second) = by.rotate(desk, &id, "1h");
    expect(&first, 200, "rotate with an overlap");
    expect(&second, 200, "rotate");
    let (id, third) = by.rotate(desk, &id, "0s");
    expect(&second, 401, "rotate without an overlap");
    expect(&third, 200, "rotate");
    let stream = stream_with(&third, address);
    by.revoke_now(desk, &id);
    expect(&third, 401, "revoke --now");
    assert!(!ends_whole(stream), "{name}, {by:?}: the stream of a revoked key ran on");
    expect(&first, 200, "what was revoked is another");
    let (id, last) = by.create(desk, &format!("{name}-again"));
    expect(&last, 200, "create");
    let stream = stream_with(&last, address);
    by.set(desk, &id, "revoke");
    expect(&last, 401, "revoke");
    // Without `--now` what runs may end by itself; here its caller leaves.
    drop(stream);
}

/// Nobody goes on when one has ended, whatever the reason.
struct Tells<'a>(&'a AtomicBool);

impl Drop for Tells<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn each_change_of_a_key_counts_for_the_next_request_under_load_and_nothing_else_is_lost() {
    let model = Model::start();
    let upstream = format!("http://{}", model.address);
    let mut gate = Managed::start(None, Some(&upstream));
    let many: String = (0..MANY).map(|n| format!("one-of-many-{n} # name{n}\n")).collect();
    let roster = gate.desk.data.join("roster.txt");
    fs::write(&roster, many).unwrap();
    gate.desk.done(&["key", "import", roster.to_str().unwrap()]);
    let address: SocketAddr = gate.gate.address.parse().unwrap();
    let bystander = stream_with("one-of-many-0", address);

    let (asked, lives) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let enough = |asked| asked >= load() && lives.load(Ordering::SeqCst) >= 6;
    let key = |number: usize| format!("one-of-many-{}", number % MANY);
    let over = AtomicBool::new(false);
    let lost = thread::scope(|scope| {
        let lost = scope.spawn(|| {
            let _over = Tells(&over);
            let is_over = |asked| enough(asked) || over.load(Ordering::SeqCst);
            callers_with(address, &asked, is_over, key)
        });
        let (desk, lives, over) = (&gate.desk, &lives, &over);
        for by in [By::Command, By::Api] {
            scope.spawn(move || {
                let _over = Tells(over);
                let mut caller = Caller { address, kept: None };
                for round in 0.. {
                    if over.load(Ordering::SeqCst) {
                        break;
                    }
                    live_through(desk, by, &format!("{by:?}{round}"), &mut caller);
                    lives.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        lost.join().unwrap()
    });
    assert!(lost.is_empty(), "{} of {asked:?}: {:?}", lost.len(), lost.first());
    model.ends.store(true, Ordering::SeqCst);
    assert!(ends_whole(bystander), "somebody else's stream was harmed");
    gate.gate.signal("TERM");
    assert_eq!(gate.gate.wait(), Some(0));
    gate.desk.done(&["store", "check"]);
}
