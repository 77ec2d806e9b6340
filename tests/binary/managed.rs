//! A gate with a store, and what changes it: its admin API, and `portcullis key` beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::{Gate, House, NOWHERE, after, ask, text};

pub(crate) struct Managed {
    pub(crate) gate: Gate,
    pub(crate) desk: Desk,
}

/// Where keys are changed; for any thread.
pub(crate) struct Desk {
    pub(crate) data: PathBuf,
    admin: String,
    /// What the gate wrote for the commands of this machine.
    admin_key: String,
    house: House,
}

impl Managed {
    pub(crate) fn start(data: Option<&Path>, upstream: Option<&str>) -> Self {
        Self::start_as(data, upstream, "")
    }

    /// With more in its configuration.
    pub(crate) fn start_as(data: Option<&Path>, upstream: Option<&str>, more: &str) -> Self {
        let house = House::new();
        // Keys that were taken away are tried often.
        let config = format!("failed_attempts_per_minute = 0\n{more}");
        fs::write(house.path("portcullis.toml"), config).unwrap();
        let data = data.map_or_else(|| house.path("data"), Path::to_owned);
        let mut command = house.command(&["serve", "--listen", "127.0.0.1:0"]);
        command.args(["--admin", "127.0.0.1:0", "--upstream", upstream.unwrap_or(NOWHERE)]);
        command.arg("--data-dir").arg(&data);
        let mut gate = Gate::start(command);
        gate.address = after(&gate.says("listening"), "address=");
        let admin = after(&gate.says("the admin API listens"), "address=");
        let admin_key = fs::read_to_string(data.join("cli.key")).unwrap().trim().to_owned();
        let desk = Desk { data, admin, admin_key, house };
        Self { gate, desk }
    }

    /// How a request with this key fares.
    pub(crate) fn me(&self, key: &str) -> u16 {
        self.gate.get("/_portcullis/me", Some(key)).0
    }

    pub(crate) fn alarms(&self) -> u64 {
        let (_, ready) = self.gate.get("/_portcullis/ready", None);
        let ready: Value = serde_json::from_str(ready.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        ready["alarms"].as_u64().unwrap()
    }
}

impl Desk {
    /// What the admin API answers, and with what.
    pub(crate) fn api(&self, line: &str, body: &str) -> (u16, String) {
        let (key, length) = (&self.admin_key, body.len());
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let request = format!(
            "{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n{kind}\
             Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let (status, answer) = ask(&self.admin, &request);
        (status, answer.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned())
    }

    /// Makes a key by the API; its id and its text.
    pub(crate) fn made(&self, name: &str) -> (String, String) {
        let (status, told) = self.api("POST /api/v1/keys", &format!("{{\"name\":\"{name}\"}}"));
        assert_eq!(status, 201, "{told}");
        let told: Value = serde_json::from_str(&told).unwrap();
        let of = |field: &str| told[field].as_str().unwrap().to_owned();
        (of("id"), of("secret"))
    }

    /// `portcullis` with the store's folder, and where the admin API is for what needs it.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let data = self.data.to_str().unwrap();
        let named = ["--admin", &self.admin];
        let asks = arguments.iter().any(|it| matches!(*it, "--now" | "allow"));
        let named = if asks { &named[..] } else { &[] };
        self.house.run(&[arguments, named, &["--data-dir", data]].concat())
    }

    /// The same, which has to be done; what it prints. Who is told to try again does.
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let mut out = self.run(arguments);
        for _ in 0..5 {
            if text(&out).contains("another process holds the store; try again") {
                out = self.run(arguments);
            }
        }
        assert!(out.status.success(), "{arguments:?}: {}", text(&out));
        String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
    }

    /// The names of all keys, in the order of their making.
    pub(crate) fn names(&self) -> Vec<String> {
        let keys: Value =
            serde_json::from_str(&self.done(&["key", "list", "--format", "json"])).unwrap();
        let keys = keys.as_array().unwrap_or_else(|| panic!("{keys}"));
        keys.iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect()
    }
}
