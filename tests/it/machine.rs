//! A machine whose stock `ollama` signs what it asks for.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A stock `ollama` with a key of its own.
pub(crate) struct Machine(Ed25519KeyPair);

impl Machine {
    pub(crate) fn new(seed: u8) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap())
    }

    /// A GET that this machine has signed, `shift` seconds from now.
    pub(crate) fn asks(&self, path: &str, shift: i64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let ts = i64::try_from(now).unwrap() + shift;
        let before = b"\0\0\0\x0bssh-ed25519\0\0\0\x20";
        let key = STANDARD.encode([before, self.0.public_key().as_ref()].concat());
        let signature = STANDARD.encode(self.0.sign(format!("GET,{path}?ts={ts}").as_bytes()));
        format!(
            "GET {path}?ts={ts} HTTP/1.1\r\nHost: gate\r\nAuthorization: {key}:{signature}\r\n\r\n"
        )
    }
}

/// What a refusal tells such a machine.
pub(crate) fn code_in(text: &str) -> Option<String> {
    let rest = text.split("the code ").nth(1)?;
    Some(rest.chars().take(9).collect())
}
