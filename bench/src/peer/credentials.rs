//! Keys, a user and passwords: what the measured proxies have in their files, and what callers send.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

use super::Hash;

/// The name of the key file in a peer's folder.
pub(crate) const KEYS: &str = "api_keys.txt";
/// The name of the password file in a peer's folder.
pub(crate) const USERS: &str = "users.htpasswd";
/// The name of the file of signing keys in a peer's folder.
pub(crate) const SIGNERS: &str = "authorized_keys";
/// LiteLLM's only key.
pub(crate) const MASTER_KEY: &str = "sk-bench-master-key";

/// How many keys a key file has, unless a row wants more.
pub(crate) const IN_FILE: usize = 2;

const USER: &str = "bench";
const PASSWORD: &str = "correct-horse";

/// Writes a key file of that many lines and a password file with the one user.
///
/// # Errors
/// The folder cannot be written.
pub(crate) fn write(dir: &Path, keys: usize, hash: Hash) -> anyhow::Result<()> {
    let path = dir.join(KEYS);
    write_keys(&path, 1..=keys).with_context(|| format!("cannot write {}", path.display()))?;
    let path = dir.join(USERS);
    let stored = match hash {
        Hash::Apr1 => APR1,
        Hash::Bcrypt10 => BCRYPT10,
    };
    let write_user = || writeln!(private(&path)?, "{USER}:{stored}");
    write_user().with_context(|| format!("cannot write {}", path.display()))?;
    let path = dir.join(SIGNERS);
    let line = format!("ssh-ed25519 {} {USER}", wire_key(&signer()?));
    let write_signer = || writeln!(private(&path)?, "{line}");
    write_signer().with_context(|| format!("cannot write {}", path.display()))
}

/// Writes these of all keys, one a line.
///
/// # Errors
/// The file is there, or cannot be written.
pub(crate) fn write_keys(path: &Path, numbers: RangeInclusive<usize>) -> io::Result<()> {
    let mut file = BufWriter::new(private(path)?);
    for number in numbers {
        writeln!(file, "{}", key(number))?;
    }
    file.flush()
}

/// As such files should be; the gate warns of others.
fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// The header's value for the last key of a file of that many lines.
pub(crate) fn bearer(keys: usize) -> String {
    format!("Bearer {}", key(keys))
}

/// The header's value for the user with the right password.
pub(crate) fn basic() -> String {
    basic_of(PASSWORD)
}

/// The header's value for a GET of that target, signed as the stock `ollama` does it (Ollama's
/// `auth/auth.go`).
///
/// # Errors
/// The key is not taken.
pub(crate) fn signature(target: &str) -> anyhow::Result<String> {
    let signer = signer()?;
    let signed = signer.sign(format!("GET,{target}").as_bytes());
    Ok(format!("{}:{}", wire_key(&signer), base64(signed.as_ref())))
}

fn signer() -> anyhow::Result<Ed25519KeyPair> {
    Ed25519KeyPair::from_seed_unchecked(&[7; 32]).context("no signing key")
}

/// The public key as SSH has it on the wire (RFC 8709, 4).
fn wire_key(signer: &Ed25519KeyPair) -> String {
    let mut wire = Vec::new();
    for part in [b"ssh-ed25519".as_slice(), signer.public_key().as_ref()] {
        wire.extend((part.len() as u32).to_be_bytes());
        wire.extend(part);
    }
    base64(&wire)
}

/// The header's value for the user with a wrong password; another one for each number.
pub(crate) fn wrong_basic(number: u64) -> String {
    basic_of(&format!("wrong-{number}"))
}

fn basic_of(password: &str) -> String {
    format!("Basic {}", base64(format!("{USER}:{password}").as_bytes()))
}

fn key(number: usize) -> String {
    // spread over the whole range, as keys that a machine made are
    let mixed = (number as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    format!("sk-{mixed:032x}")
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = (0..3).fold(0u32, |group, i| {
            group << 8 | u32::from(chunk.get(i).copied().unwrap_or_default())
        });
        for i in 0..4usize {
            let index = (group >> (18 - 6 * i)) & 63;
            let letter = ALPHABET.get(index as usize).copied().unwrap_or_default();
            text.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

const APR1: &str = "$apr1$1ezOTUKe$Q8hck8Us3TUIt8j/5mjqq0";
const BCRYPT10: &str = "$2y$10$bEmIzdJo9RIAlSOGm5g2LuH46OemjhSpIVl9WhbCPRbI7Pe1VA/qG";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        // RFC 4648 section 10
        let vectors =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (plain, coded) in vectors {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn the_key_that_is_sent_is_the_last_line_of_the_file() {
        let dir = std::env::temp_dir().join(format!("bench-keys-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        write(&dir, 3, Hash::Apr1).unwrap();
        let text = std::fs::read_to_string(dir.join(KEYS)).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert_eq!(format!("Bearer {}", text.lines().last().unwrap()), bearer(3));
    }
}
