//! The text of a managed key: `pc_`, 43 characters of chance and six of checksum, all base62.
//!
//! Secret scanners find it by `pc_[0-9A-Za-z]{49}` and need no list: the last six characters are the
//! CRC-32 (IEEE 802.3) of all before them, as GitHub's tokens have it.

use std::fmt;

use sha2::{Digest as _, Sha256};

const PREFIX: &str = "pc_";
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// 32 bytes in base62.
const RANDOM: usize = 43;
const CHECKSUM: usize = 6;

/// A key's own text, which is shown once and never kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// # Errors
    /// Where the system has no random numbers to give.
    pub fn draw() -> Result<Self, getrandom::Error> {
        let mut random = [0; 32];
        getrandom::fill(&mut random)?;
        let mut text = PREFIX.to_owned();
        push_base62(random, RANDOM, &mut text);
        let checksum = crc32(text.as_bytes());
        push_base62(checksum.to_be_bytes(), CHECKSUM, &mut text);
        Ok(Self(text))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.0).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

/// Begins as a managed key does and is none: a part is missing, or a letter is another.
#[must_use]
pub fn is_miscopied(presented: &[u8]) -> bool {
    presented.starts_with(PREFIX.as_bytes()) && !is_whole(presented)
}

fn is_whole(text: &[u8]) -> bool {
    let Some((before, checksum)) = text.split_last_chunk::<CHECKSUM>() else { return false };
    let mut expected = String::new();
    push_base62(crc32(before).to_be_bytes(), CHECKSUM, &mut expected);
    before.len() == PREFIX.len() + RANDOM && expected.as_bytes() == checksum
}

/// A number as so many base62 digits, the highest first.
pub(super) fn push_base62<const N: usize>(mut number: [u8; N], digits: usize, text: &mut String) {
    let mut reversed = Vec::with_capacity(digits);
    for _ in 0..digits {
        let mut rest = 0;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            *byte = u8::try_from(value / 62).unwrap_or(u8::MAX);
            rest = value % 62;
        }
        let digit = usize::try_from(rest).ok().and_then(|rest| DIGITS.get(rest));
        reversed.push(digit.copied().unwrap_or(b'0'));
    }
    text.extend(reversed.iter().rev().map(|digit| char::from(*digit)));
}

/// Bit by bit: it is asked for a few dozen bytes, when a key is made or was refused.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_usual_crc() {
        // The check value of CRC-32/ISO-HDLC in the catalogue of parametrised CRC algorithms.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn every_key_is_another_and_has_the_form_that_scanners_look_for() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            let key = Secret::draw().unwrap();
            let rest = key.as_str().strip_prefix("pc_").unwrap();
            assert_eq!(rest.len(), 49);
            assert!(rest.bytes().all(|b| b.is_ascii_alphanumeric()), "{rest}");
            assert!(!is_miscopied(key.as_str().as_bytes()));
            assert!(seen.insert(key.as_str().to_owned()));
        }
    }

    #[test]
    fn a_letter_changed_left_out_or_added_shows() {
        let key = Secret::draw().unwrap();
        let text = key.as_str().as_bytes();
        for at in 3..text.len() {
            let mut wrong = text.to_vec();
            wrong[at] = if wrong[at] == b'x' { b'y' } else { b'x' };
            assert!(is_miscopied(&wrong), "changed at {at}");
            wrong.remove(at);
            assert!(is_miscopied(&wrong), "left out at {at}");
        }
        assert!(is_miscopied(&[text, b"x"].concat()));
        assert!(is_miscopied(b"pc_"));
        assert!(!is_miscopied(b"sk-something-else"));
    }

    #[test]
    fn it_does_not_show_itself() {
        let key = Secret::draw().unwrap();
        assert!(!format!("{key:?}").contains(&key.as_str()[3..]));
    }

    #[test]
    fn numbers_have_their_usual_digits() {
        let mut text = String::new();
        push_base62(61u32.to_be_bytes(), 2, &mut text);
        push_base62(62u32.to_be_bytes(), 2, &mut text);
        push_base62(u32::MAX.to_be_bytes(), 6, &mut text);
        assert_eq!(text, "0z104gfFC3");
    }
}
