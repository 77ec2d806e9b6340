//! An `Authorization` value: it opens the door only if it holds the key or the password.
#![no_main]

use std::net::IpAddr;
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::{HeaderMap, HeaderValue, header};
use libfuzzer_sys::fuzz_target;
use portcullis::auth::{Auth, Files, Memory, Presented, reads_authorization};
use portcullis::client_addr::{PeerAddr, TrustedProxies};
use portcullis::config::Config;
use tokio::runtime::{Builder, Runtime};

const KEY: &[u8] = b"sesame";
const LOGIN: &[u8] = b"anna:open";

struct Door {
    auth: Auth,
    memory: Memory,
    runtime: Runtime,
}

fn door() -> Door {
    let folder = std::env::temp_dir().join(format!("portcullis-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (users, keys) = (folder.join("htpasswd"), folder.join("api_keys.txt"));
    std::fs::write(&users, "anna:{PLAIN}open\n").unwrap();
    std::fs::write(&keys, "sesame # bert\n").unwrap();
    let mut config = Config::builtin();
    config.failed_attempts_per_minute = 0;
    (config.htpasswd, config.api_keys) = (Some(users), Some(keys));
    let auth = Auth::new(&config, Files::open(&config, None));
    let runtime = Builder::new_current_thread().build().unwrap();
    Door { auth, memory: Memory::new(1).unwrap(), runtime }
}

fuzz_target!(|value: &[u8]| {
    static DOOR: OnceLock<Door> = OnceLock::new();
    let Door { auth, memory, runtime } = DOOR.get_or_init(door);
    let Ok(header) = HeaderValue::from_bytes(value) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, header);
    let peer = PeerAddr::new(IpAddr::from([192, 0, 2, 1]));
    let client = TrustedProxies::default().client_addr(peer, &headers);
    let presented =
        Presented { headers: &headers, path_key: None, method: "GET", path: "/", ts: None, certificate: None };
    let admitted = runtime.block_on(auth.authenticate(memory, client, presented, std::time::Instant::now()));
    let last = value.trim_ascii().rsplit(|byte| *byte == b' ' || *byte == b'\t').next().unwrap();
    let login = STANDARD.decode(last).or_else(|_| STANDARD_NO_PAD.decode(last)).ok();
    let is_login = login.as_deref() == Some(LOGIN);
    let is = |word: &[u8]| value.get(..word.len()).is_some_and(|it| it.eq_ignore_ascii_case(word));
    match admitted.as_ref().map(|who| who.name().as_str()) {
        Ok("anna") => assert!(is(b"basic ") && is_login),
        Ok("bert") => assert!(is(b"bearer ") && last == KEY),
        Ok(name) => panic!("nobody is called {name}"),
        Err(_) => {
            // The form that every client sends is never refused.
            assert!(value != b"Bearer sesame");
            assert!(!(value.starts_with(b"Basic ") && value.len() == 6 + last.len() && is_login));
        }
    }
    assert!(admitted.is_err() || reads_authorization(value));
});
