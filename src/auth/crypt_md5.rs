//! The MD5 crypt of FreeBSD (`$1$`) and its Apache variant (`$apr1$`), for which no crate exists.

use md5::{Digest, Md5};

/// The digits of every `crypt` format but bcrypt.
pub(crate) const DIGITS: &[u8; 64] =
    b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Only so much of a salt counts.
const SALT: usize = 8;
const ROUNDS: u32 = 1000;
/// Which bytes of the digest make which four digits, the highest first.
const GROUPS: [[usize; 3]; 5] = [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]];
/// What the last two digits are made of.
const LAST: usize = 11;

/// The 22 characters that stand behind the salt. `magic` is `$1$` or `$apr1$`.
#[must_use]
pub(crate) fn md5_crypt(magic: &str, password: &[u8], salt: &[u8]) -> Vec<u8> {
    let salt = salt.get(..SALT).unwrap_or(salt);
    let mut digest = begin(magic.as_bytes(), password, salt);
    for round in 0..ROUNDS {
        digest = stir(round, &digest, password, salt);
    }
    let byte = |at: usize| u32::from(digest.get(at).copied().unwrap_or_default());
    let mut out = Vec::with_capacity(22);
    for [high, middle, low] in GROUPS {
        push_digits(&mut out, byte(high) << 16 | byte(middle) << 8 | byte(low), 4);
    }
    push_digits(&mut out, byte(LAST), 2);
    out
}

/// The lowest six bits come first.
pub(crate) fn push_digits(out: &mut Vec<u8>, mut value: u32, count: usize) {
    for _ in 0..count {
        let low = usize::try_from(value & 0x3f).unwrap_or_default();
        out.extend(DIGITS.get(low));
        value >>= 6;
    }
}

/// Whether it is written in the digits of `crypt`.
#[must_use]
pub(crate) fn all_digits(text: &str) -> bool {
    text.bytes().all(|b| DIGITS.contains(&b))
}

fn begin(magic: &[u8], password: &[u8], salt: &[u8]) -> [u8; 16] {
    let inner: [u8; 16] = Md5::new()
        .chain_update(password)
        .chain_update(salt)
        .chain_update(password)
        .finalize()
        .into();
    let mut hash = Md5::new().chain_update(password).chain_update(magic).chain_update(salt);
    let mut left = password.len();
    while left > 0 {
        let some = left.min(inner.len());
        hash.update(inner.get(..some).unwrap_or_default());
        left -= some;
    }
    // A slip of the first version that every later one has to repeat: a zero byte or the first byte
    // of the password for each bit of its length.
    let mut bits = password.len();
    while bits > 0 {
        let odd = bits & 1 == 1;
        hash.update(if odd { &[0] } else { password.get(..1).unwrap_or_default() });
        bits >>= 1;
    }
    hash.finalize().into()
}

fn stir(round: u32, before: &[u8; 16], password: &[u8], salt: &[u8]) -> [u8; 16] {
    let odd = round % 2 == 1;
    let mut hash = Md5::new();
    hash.update(if odd { password } else { before });
    if !round.is_multiple_of(3) {
        hash.update(salt);
    }
    if !round.is_multiple_of(7) {
        hash.update(password);
    }
    hash.update(if odd { before.as_slice() } else { password });
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `openssl passwd` and by Perl's `crypt`.
    #[test]
    fn it_agrees_with_openssl() {
        let long = "a longer password of more than sixteen and even sixty-four bytes in all, yes";
        for (magic, salt, password, expected) in [
            ("$apr1$", "saLt/.9z", "secret", "KmsC/NXAsjuiphuL5t/pU1"),
            ("$apr1$", "saLt/.9z", "", ".iLJ/q9422MyTFjnDr4Mo1"),
            ("$apr1$", "saLt/.9z", "pässwört", "d2aq9vjgdN2BHysNPvvxE."),
            ("$apr1$", "saLt/.9z", long, "C2soHVyP6mTty.erhtcgq0"),
            ("$apr1$", "a", "secret", "PtM1vJaZieHDFk40mKMu6/"),
            ("$1$", "saLt/.9z", "secret", "HYBaNRfaqIEYJ.BrhAb9X0"),
            ("$1$", "saLt/.9z", "", "4klU98Pg7S/MN5EMi4ycM0"),
            ("$1$", "saLt/.9z", "pässwört", "1FaMNSQBQ424JIIPgvHkO/"),
            ("$1$", "saLt/.9z", long, "Fjkp6mr0byLFVc3lcoQh.1"),
            ("$1$", "", "secret", "ysVNzQc4CTMkp5daOdZ.3/"),
        ] {
            let made = md5_crypt(magic, password.as_bytes(), salt.as_bytes());
            assert_eq!(String::from_utf8(made).unwrap(), expected, "{magic}{salt} {password}");
        }
    }
}
