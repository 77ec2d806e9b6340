//! One stored password hash: what kind it is, what it costs and whether a password fits it.

mod costs;

use std::fmt;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::auth::crypt_des;
use crate::auth::crypt_md5::{all_digits, md5_crypt, push_digits};

/// No longer password is looked at: sha-crypt's work grows with the square of the length.
const LONGEST_PASSWORD: usize = 256;
/// bcrypt ignores what lies behind.
const LONGEST_BCRYPT: usize = 72;

/// A hash that can be checked at a bearable cost. Small, because a file may hold 200,000.
pub struct StoredHash {
    kind: Kind,
    /// Of one check, roughly.
    micros: u32,
    text: Box<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Des,
    Sha1,
    SaltedSha1,
    Md5,
    Apr1,
    Sha256,
    Sha512,
    Bcrypt,
    /// `$2x$`: made by a version that got other characters than ASCII wrong.
    BcryptAscii,
    Argon2,
    Yescrypt,
}

/// Why a stored text is no hash to check against; never shows any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("no hash; set one with `portcullis user add`")]
    Empty,
    #[error("locked by a ! or * in the place of the hash")]
    Locked,
    #[error("looks like a password in plain text; use `portcullis user add`")]
    LooksPlain,
    #[error("a kind of hash that is not known here; set a new one with `portcullis user add`")]
    UnknownKind,
    #[error("not a whole {0} hash; copy it again or set a new one with `portcullis user add`")]
    Malformed(&'static str),
    #[error("bcrypt cost {0} would stall the machine; 16 is the most")]
    BcryptCost(u32),
    #[error("{0} rounds would stall the machine; 1000000 are the most")]
    Rounds(u64),
    #[error("argon2 with {kib} KiB and {passes} passes would stall the machine; {most}")]
    Argon2Cost { kib: u32, passes: u32, most: &'static str },
    #[error("yescrypt with {mib} MiB would stall the machine; 256 MiB are the most")]
    YescryptCost { mib: u64 },
    #[error(
        "yescrypt in a form that `crypt` does not write; set a new one with `portcullis user add`"
    )]
    YescryptForm,
}

/// Why no hash can be made of a password.
#[derive(Debug, thiserror::Error)]
pub enum Unhashable {
    #[error("the password is empty")]
    Empty,
    #[error("the password holds a NUL byte, which no client can send reliably")]
    Nul,
    #[error("the password has {0} bytes, and bcrypt looks at 72 only")]
    TooLong(usize),
    #[error("the cost has to be from 4 to 16")]
    Cost,
    #[error("could not make the hash")]
    Failed(#[source] bcrypt::BcryptError),
}

impl StoredHash {
    /// # Errors
    /// For what is no hash, and for one so costly that checking it would stall the machine.
    pub fn parse(text: &str) -> Result<Self, Unusable> {
        // Blanks may belong to a password; every hash ends before them.
        let text = if text.starts_with(PLAIN) { text } else { text.trim_ascii_end() };
        let (kind, micros) = classify(text)?;
        Ok(Self { kind, micros, text: text.into() })
    }

    /// Whether this is the password: the slow part, as long as [`Self::cost`] says.
    #[must_use]
    pub fn verify(&self, password: &[u8]) -> bool {
        if password.len() > LONGEST_PASSWORD || memchr::memchr(0, password).is_some() {
            return false;
        }
        self.fits(password).unwrap_or(false)
    }

    /// Whether it is guessed in no time when the file leaks.
    #[must_use]
    pub fn weak(&self) -> bool {
        match self.kind {
            Kind::Plain | Kind::Des | Kind::Sha1 | Kind::Md5 | Kind::Apr1 => true,
            Kind::SaltedSha1
            | Kind::Sha256
            | Kind::Sha512
            | Kind::Bcrypt
            | Kind::BcryptAscii
            | Kind::Argon2
            | Kind::Yescrypt => false,
        }
    }

    #[must_use]
    pub fn format(&self) -> &'static str {
        match self.kind {
            Kind::Plain => "plain text",
            Kind::Des => DES,
            Kind::Sha1 => SHA1,
            Kind::SaltedSha1 => SALTED_SHA1,
            Kind::Md5 => MD5,
            Kind::Apr1 => APR1,
            Kind::Sha256 => SHA256,
            Kind::Sha512 => SHA512,
            Kind::Bcrypt | Kind::BcryptAscii => BCRYPT,
            Kind::Argon2 => ARGON2,
            Kind::Yescrypt => YESCRYPT,
        }
    }

    /// Nanoseconds of one check, roughly: to put formats in an order and to know the slow ones.
    #[must_use]
    pub fn cost(&self) -> u64 {
        u64::from(self.micros) * 1000
    }

    /// As it stands in the file.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A `$2y$` hash for a line of the file. `cost` is the logarithm of the work, 4 to 16.
    ///
    /// # Errors
    /// For a password that other programs would read differently, a cost that [`Self::parse`] would
    /// not take, and where the system has no random numbers.
    pub fn new_bcrypt(password: &[u8], cost: u32) -> Result<String, Unhashable> {
        if password.is_empty() {
            return Err(Unhashable::Empty);
        }
        if memchr::memchr(0, password).is_some() {
            return Err(Unhashable::Nul);
        }
        if password.len() > LONGEST_BCRYPT {
            return Err(Unhashable::TooLong(password.len()));
        }
        if !(costs::LEAST_BCRYPT..=costs::MOST_BCRYPT).contains(&cost) {
            return Err(Unhashable::Cost);
        }
        let parts = bcrypt::hash_with_result(password, cost).map_err(Unhashable::Failed)?;
        Ok(parts.format_for_version(bcrypt::Version::TwoY))
    }

    /// Nothing where the stored text is not of its kind, which `parse` has seen to.
    fn fits(&self, password: &[u8]) -> Option<bool> {
        let text = &*self.text;
        Some(match self.kind {
            Kind::Plain => {
                // Digests, because a comparison of the texts would show the length.
                let stored = Sha256::digest(text.strip_prefix(PLAIN)?);
                same(&stored, &Sha256::digest(password))
            }
            Kind::Des => {
                let (salt, stored) = text.split_at_checked(2)?;
                let salt = crypt_des::salt(salt.as_bytes())?;
                same(stored.as_bytes(), &crypt_des::des_crypt(password, salt))
            }
            Kind::Sha1 | Kind::SaltedSha1 => {
                let stored = sha1_of(text)?;
                let (digest, salt) = stored.split_at_checked(SHA1_LENGTH)?;
                let made = Sha1::new().chain_update(password).chain_update(salt).finalize();
                same(digest, &made)
            }
            Kind::Md5 => fits_md5(text, "$1$", password)?,
            Kind::Apr1 => fits_md5(text, "$apr1$", password)?,
            Kind::Sha256 | Kind::Sha512 => fits_sha_crypt(text, password)?,
            Kind::Bcrypt => bcrypt::verify(password, text).ok()?,
            Kind::BcryptAscii => password.is_ascii() && bcrypt::verify(password, text).ok()?,
            Kind::Argon2 => fits_argon2(text, password)?,
            Kind::Yescrypt => {
                use yescrypt::PasswordVerifier as _;
                yescrypt::Yescrypt::default().verify_password(password, text).is_ok()
            }
        })
    }
}

impl fmt::Debug for StoredHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StoredHash").field(&self.format()).finish()
    }
}

const PLAIN: &str = "{PLAIN}";
const DES: &str = "DES crypt";
const SHA1: &str = "{SHA}";
const SALTED_SHA1: &str = "{SSHA}";
const MD5: &str = "md5-crypt";
const APR1: &str = "apr1";
const SHA256: &str = "sha256-crypt";
const SHA512: &str = "sha512-crypt";
const BCRYPT: &str = "bcrypt";
const ARGON2: &str = "argon2";
const YESCRYPT: &str = "yescrypt";
const SHA1_LENGTH: usize = 20;

/// The kind, and the microseconds of a check.
fn classify(text: &str) -> Result<(Kind, u32), Unusable> {
    if text.starts_with('{') {
        return classify_braces(text);
    }
    if text.starts_with(['!', '*']) {
        return Err(Unusable::Locked);
    }
    let Some(id) = text.strip_prefix('$').and_then(|rest| rest.split('$').next()) else {
        return classify_bare(text);
    };
    match id {
        "2a" | "2b" | "2y" => Ok((Kind::Bcrypt, costs::bcrypt(text)?)),
        "2x" => Ok((Kind::BcryptAscii, costs::bcrypt(text)?)),
        "apr1" if is_md5(text, "$apr1$") => Ok((Kind::Apr1, costs::MD5_CRYPT)),
        "apr1" => Err(Unusable::Malformed(APR1)),
        "1" if is_md5(text, "$1$") => Ok((Kind::Md5, costs::MD5_CRYPT)),
        "1" => Err(Unusable::Malformed(MD5)),
        "5" => Ok((Kind::Sha256, costs::sha_crypt(&sha_crypt(text, SHA256)?)?)),
        "6" => Ok((Kind::Sha512, costs::sha_crypt(&sha_crypt(text, SHA512)?)?)),
        "argon2id" | "argon2i" | "argon2d" => Ok((Kind::Argon2, costs::argon2(text)?)),
        "y" => Ok((Kind::Yescrypt, costs::yescrypt(text)?)),
        _ => Err(Unusable::UnknownKind),
    }
}

fn classify_braces(text: &str) -> Result<(Kind, u32), Unusable> {
    let decoded = sha1_of(text).map(|bytes| bytes.len());
    if text.starts_with(SALTED_SHA1) {
        let whole = decoded.is_some_and(|length| length >= SHA1_LENGTH);
        return whole
            .then_some((Kind::SaltedSha1, costs::QUICK))
            .ok_or(Unusable::Malformed(SALTED_SHA1));
    }
    if text.starts_with(SHA1) {
        let whole = decoded == Some(SHA1_LENGTH);
        return whole.then_some((Kind::Sha1, costs::QUICK)).ok_or(Unusable::Malformed(SHA1));
    }
    match text.strip_prefix(PLAIN) {
        Some("") => Err(Unusable::Empty),
        Some(_) => Ok((Kind::Plain, costs::QUICK)),
        None => Err(Unusable::UnknownKind),
    }
}

/// DES crypt is 13 digits, of which the last ends in two zero bits: a plain password of 13 letters
/// is rarely that.
fn classify_bare(text: &str) -> Result<(Kind, u32), Unusable> {
    if text.is_empty() {
        return Err(Unusable::Empty);
    }
    let ends_right = text.bytes().last().is_some_and(|last| b"./26AEIMQUYcgkosw".contains(&last));
    if text.len() == 13 && all_digits(text) && ends_right {
        return Ok((Kind::Des, costs::DES_CRYPT));
    }
    Err(Unusable::LooksPlain)
}

fn same(stored: &[u8], made: &[u8]) -> bool {
    stored.ct_eq(made).into()
}

/// The bytes behind `{SHA}` or `{SSHA}`; padding is left out by some tools.
fn sha1_of(text: &str) -> Option<Vec<u8>> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    let coded = text.strip_prefix(SHA1).or_else(|| text.strip_prefix(SALTED_SHA1))?;
    LENIENT.decode(coded).ok()
}

fn md5_parts<'a>(text: &'a str, magic: &str) -> Option<(&'a str, &'a str)> {
    text.strip_prefix(magic)?.split_once('$')
}

fn is_md5(text: &str, magic: &str) -> bool {
    md5_parts(text, magic).is_some_and(|(_, stored)| stored.len() == 22 && all_digits(stored))
}

fn fits_md5(text: &str, magic: &str, password: &[u8]) -> Option<bool> {
    let (salt, stored) = md5_parts(text, magic)?;
    Some(same(stored.as_bytes(), &md5_crypt(magic, password, salt.as_bytes())))
}

/// `$5$` and `$6$`, taken apart.
struct ShaCrypt<'a> {
    long: bool,
    /// As written; `None` means 5000.
    rounds: Option<u64>,
    salt: &'a str,
    stored: &'a str,
}

fn sha_crypt<'a>(text: &'a str, name: &'static str) -> Result<ShaCrypt<'a>, Unusable> {
    let malformed = || Unusable::Malformed(name);
    let long = text.starts_with("$6$");
    let rest = text.get(3..).ok_or_else(malformed)?;
    let (rounds, rest) = match rest.strip_prefix("rounds=").and_then(|rest| rest.split_once('$')) {
        Some((rounds, rest)) => {
            let all = !rounds.is_empty() && rounds.bytes().all(|b| b.is_ascii_digit());
            // So many digits that they do not fit are too many rounds all the same.
            let rounds = all.then(|| rounds.parse().unwrap_or(u64::MAX)).ok_or_else(malformed)?;
            (Some(rounds), rest)
        }
        None => (None, rest),
    };
    let (salt, stored) = rest.split_once('$').ok_or_else(malformed)?;
    let length = if long { 86 } else { 43 };
    if stored.len() != length || !all_digits(stored) {
        return Err(malformed());
    }
    Ok(ShaCrypt { long, rounds, salt, stored })
}

fn fits_sha_crypt(text: &str, password: &[u8]) -> Option<bool> {
    let parts = sha_crypt(text, SHA512).ok()?;
    // As glibc does: too few rounds are a thousand.
    let rounds = parts.rounds.map_or(5000, |rounds| rounds.clamp(1000, costs::MOST_ROUNDS));
    let params = sha_crypt::Params::new(u32::try_from(rounds).ok()?).ok()?;
    let salt = parts.salt.as_bytes();
    let made = if parts.long {
        sha_crypt_digits(&sha_crypt::sha512_crypt(password, salt, params), 22, 63)
    } else {
        sha_crypt_digits(&sha_crypt::sha256_crypt(password, salt, params), 21, 30)
    };
    Some(same(parts.stored.as_bytes(), &made))
}

/// The digits of a sha-crypt digest: groups of three bytes a third of `grouped` apart, each group
/// `step` bytes behind the one before, and then what is left.
fn sha_crypt_digits(digest: &[u8], step: usize, grouped: usize) -> Vec<u8> {
    let byte = |at: usize| u32::from(digest.get(at).copied().unwrap_or_default());
    let third = grouped / 3;
    let mut out = Vec::with_capacity(86);
    for group in 0..third {
        let at = |place: usize| byte((group * step + place * third) % grouped);
        push_digits(&mut out, at(0) << 16 | at(1) << 8 | at(2), 4);
    }
    if digest.len() == 64 {
        push_digits(&mut out, byte(63), 2);
    } else {
        push_digits(&mut out, byte(31) << 8 | byte(30), 3);
    }
    out
}

/// Taken apart by hand, because a text without a version means the first one, and the crate takes
/// it for the second.
fn fits_argon2(text: &str, password: &[u8]) -> Option<bool> {
    let parts = PasswordHash::new(text).ok()?;
    let algorithm = argon2::Algorithm::try_from(parts.algorithm.as_str()).ok()?;
    let version = argon2::Version::try_from(parts.version.unwrap_or(0x10)).ok()?;
    let params = argon2::Params::try_from(&parts).ok()?;
    let (salt, stored) = (parts.salt?, parts.hash?);
    let mut made = vec![0; stored.as_bytes().len()];
    let argon2 = Argon2::new(algorithm, version, params);
    argon2.hash_password_into(password, salt.as_ref(), &mut made).ok()?;
    Some(same(stored.as_bytes(), &made))
}

#[cfg(test)]
mod tests;
