//! The signatures of the stock `ollama` command line: who may sign, and whether this is one.

mod replays;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest, Sha256};

use crate::auth::Name;
use crate::auth::api_keys::short_name;
use crate::auth::lines::{Line, Notes, entries, fault_of_name};
use crate::live_file::Parsed;

pub use replays::Replays;

/// How far a client's clock may be off, in seconds.
pub const WINDOW: i64 = 300;

/// An `Authorization` value as the stock command line sends it, taken apart and not yet checked.
pub struct Signed {
    key: [u8; 32],
    signature: [u8; 64],
}

impl Signed {
    /// Reads `<key>:<signature>`, both base64; the key as in an SSH public-key line (Ollama's
    /// `auth/auth.go`).
    #[must_use]
    pub fn parse(authorization: &[u8]) -> Option<Self> {
        let colon = memchr::memchr(b':', authorization)?;
        let (key, signature) = authorization.split_at_checked(colon)?;
        let signature = signature.get(1..)?;
        // Lengths first, so that a long value costs nothing.
        if key.len() != CODED_KEY || signature.len() != CODED_SIGNATURE {
            return None;
        }
        let key = key_of(&STANDARD.decode(key).ok()?)?;
        let signature = STANDARD.decode(signature).ok()?.try_into().ok()?;
        Some(Self { key, signature })
    }
}

impl Signed {
    /// Whether the key made this signature for this, in this time; remembers nothing, so that a
    /// stranger can fill no memory.
    ///
    /// # Errors
    /// Says which of its parts is wrong.
    pub fn proof(&self, asked: &Asked<'_>, now: i64) -> Result<Proof, SignatureFault> {
        let ts = seconds(asked.ts).ok_or(SignatureFault::BadTime)?;
        if ts.abs_diff(now) > WINDOW.unsigned_abs() {
            return Err(SignatureFault::BadTime);
        }
        let Asked { method, path, ts: written } = asked;
        let text = format!("{method},{path}?ts={written}");
        UnparsedPublicKey::new(&ED25519, &self.key)
            .verify(text.as_bytes(), &self.signature)
            .map_err(|_| SignatureFault::BadSignature)?;
        let what = Sha256::new().chain_update(self.key).chain_update(text).finalize().into();
        Ok(Proof { key: self.key, what, good_until: ts.saturating_add(WINDOW) })
    }

    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.key)
    }
}

/// A signature that is right, whoever made it.
#[derive(Debug)]
pub struct Proof {
    key: [u8; 32],
    what: [u8; 32],
    good_until: i64,
}

impl Proof {
    /// Remembers it, so that it lets nobody in twice.
    ///
    /// # Errors
    /// [`SignatureFault::Replayed`].
    pub fn admit(self, client: IpAddr, now: i64, replays: &Replays) -> Result<(), SignatureFault> {
        let Self { key, what, good_until } = self;
        let sight = replays::Sight { key, what, client, good_until };
        replays.admit(&sight, now).then_some(()).ok_or(SignatureFault::Replayed)
    }
}

/// The key of a machine, which is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    #[must_use]
    pub fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// As `ssh-keygen -l` has it, and as the store finds it.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::new().chain_update(BEFORE_KEY).chain_update(self.0).finalize().into()
    }

    /// `SHA256:` and base64, as `ssh-keygen -l` prints it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        format!("SHA256:{}", STANDARD_NO_PAD.encode(self.digest()))
    }
}

impl fmt::Debug for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").finish_non_exhaustive()
    }
}

/// What a signature is said to be for. The body is not covered by it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub method: &'a str,
    /// The API path, without a prefix of the gate's address.
    pub path: &'a str,
    /// The query's `ts`, seconds since 1970.
    pub ts: &'a str,
}

/// Who signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    pub name: Name,
    pub endpoints: Endpoints,
}

/// What a key is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoints {
    All,
    /// Exact API paths, any method.
    Only(Arc<[Box<str>]>),
}

impl Endpoints {
    #[must_use]
    pub fn allow(&self, path: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(paths) => paths.iter().any(|allowed| **allowed == *path),
        }
    }
}

/// Why a signature lets nobody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureFault {
    UnknownKey,
    BadSignature,
    /// More than [`WINDOW`] off, or no time at all.
    BadTime,
    /// Seen before, and not as a client repeats itself; or too many to remember.
    Replayed,
}

/// Who may sign requests.
pub struct AuthorizedKeys {
    signers: HashMap<[u8; 32], Signer>,
}

impl AuthorizedKeys {
    /// Reads `ssh-ed25519 BASE64 [name [endpoint,endpoint…]]` lines.
    #[must_use]
    pub fn parse(text: &str) -> Parsed<Self> {
        let mut notes = Notes::default();
        let mut signers = HashMap::new();
        entries(text, &mut notes, |line, notes| {
            let read = read(line).and_then(|(key, signer)| match signers.entry(key) {
                Entry::Vacant(place) => {
                    place.insert(signer);
                    Ok(())
                }
                Entry::Occupied(_) => {
                    Err("this key has a line further up, and the first one counts")
                }
            });
            if let Err(fault) = read {
                notes.skip(line.number, fault);
            }
        });
        let entries = signers.len();
        Parsed { content: Self { signers }, entries, notes: notes.finish() }
    }

    /// Who signed this. `now`: seconds since 1970.
    ///
    /// # Errors
    /// Says which of its four parts is wrong; only a right signature is remembered.
    #[expect(
        clippy::too_many_arguments,
        reason = "the clock and the memory come from outside, so that tests hold both"
    )]
    pub fn check(
        &self,
        signed: &Signed,
        asked: &Asked<'_>,
        client: IpAddr,
        now: i64,
        replays: &Replays,
    ) -> Result<Signer, SignatureFault> {
        let signer = self.signers.get(&signed.key).ok_or(SignatureFault::UnknownKey)?;
        signed.proof(asked, now)?.admit(client, now, replays)?;
        Ok(signer.clone())
    }

    /// In no particular order; one name may have several keys.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.signers.values().map(|signer| signer.name.as_str())
    }
}

impl fmt::Debug for AuthorizedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorizedKeys").field("keys", &self.signers.len()).finish_non_exhaustive()
    }
}

const KEY_TYPE: &str = "ssh-ed25519";
/// RFC 4253, 6.6 and RFC 8709, 4: the type and the key, each behind its length.
const BEFORE_KEY: &[u8] = b"\0\0\0\x0bssh-ed25519\0\0\0\x20";
/// 51 bytes and 64 bytes in base64.
const CODED_KEY: usize = 68;
const CODED_SIGNATURE: usize = 88;

fn key_of(wire: &[u8]) -> Option<[u8; 32]> {
    wire.strip_prefix(BEFORE_KEY)?.try_into().ok()
}

/// Only what the client writes: digits.
fn seconds(ts: &str) -> Option<i64> {
    ts.bytes().all(|b| b.is_ascii_digit()).then(|| ts.parse().ok()).flatten()
}

fn read(line: Line<'_>) -> Result<([u8; 32], Signer), &'static str> {
    let mut fields = line.text.split_ascii_whitespace();
    let (kind, coded) = (fields.next().unwrap_or_default(), fields.next());
    let (name, endpoints) = (fields.next(), fields.next());
    if kind == "*" || coded == Some("*") || name == Some("*") {
        return Err(
            "a * here would let in everybody, which this gate does not do; name the key and \
                    its owner",
        );
    }
    if kind != KEY_TYPE {
        return Err(
            "not an ssh-ed25519 key, the only kind that the stock `ollama` signs with; make \
                    one with `ssh-keygen -t ed25519`",
        );
    }
    let coded = coded.ok_or("no key behind ssh-ed25519")?;
    let wire = STANDARD.decode(coded).map_err(|_| "the key is not whole base64; copy it again")?;
    let key = key_of(&wire).ok_or("the key is not a whole ssh-ed25519 key; copy it again")?;
    if fields.next().is_some() {
        return Err("more than four fields; a line is ssh-ed25519 KEY NAME ENDPOINT,ENDPOINT");
    }
    let name = match name {
        Some(name) => match fault_of_name(name) {
            Some(fault) => return Err(fault),
            None => name.into(),
        },
        None => short_name(&Sha256::digest(&wire).into()),
    };
    let endpoints = endpoints.map_or(Ok(Endpoints::All), read_endpoints)?;
    Ok((key, Signer { name, endpoints }))
}

fn read_endpoints(text: &str) -> Result<Endpoints, &'static str> {
    if text == "*" {
        return Ok(Endpoints::All);
    }
    let paths: Vec<Box<str>> = text.split(',').map(Box::from).collect();
    if !paths.iter().all(|path| path.starts_with('/')) {
        return Err("an endpoint is a path that begins with /; a name is one word");
    }
    if text.contains(['*', '?']) {
        return Err("an endpoint is an exact path, without * or ?");
    }
    Ok(Endpoints::Only(paths.into()))
}

#[cfg(test)]
mod tests;
