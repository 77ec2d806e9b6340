//! What checking a hash costs, and which costs are too much for a machine that serves others.

use argon2::password_hash::phc::PasswordHash;

use super::{ARGON2, BCRYPT, ShaCrypt, Unusable, YESCRYPT};
use crate::auth::crypt_md5::{DIGITS, all_digits};

pub(super) const LEAST_BCRYPT: u32 = 4;
pub(super) const MOST_BCRYPT: u32 = 16;
pub(super) const MOST_ROUNDS: u64 = 1_000_000;
const MOST_ARGON2_KIB: u32 = 256 * 1024;
/// KiB × passes; about four seconds, as bcrypt with cost 16.
const MOST_ARGON2_WORK: u64 = 4 * 1024 * 1024;
const MOST_ARGON2_LANES: u32 = 64;
const MOST_YESCRYPT_MIB: u64 = 256;

// Microseconds; rounded up from measurements on one virtual core with SHA instructions.
pub(super) const QUICK: u32 = 1;
pub(super) const DES_CRYPT: u32 = 50;
pub(super) const MD5_CRYPT: u32 = 150;
const BCRYPT_STEP: u32 = 62;
const ROUNDS_A_MICRO: u64 = 2;
const YESCRYPT_MIB: u64 = 2_000;

pub(super) fn bcrypt(text: &str) -> Result<u32, Unusable> {
    let parts: bcrypt::HashParts = text.parse().map_err(|_| Unusable::Malformed(BCRYPT))?;
    match parts.get_cost() {
        cost if cost < LEAST_BCRYPT => Err(Unusable::Malformed(BCRYPT)),
        cost if cost > MOST_BCRYPT => Err(Unusable::BcryptCost(cost)),
        cost => Ok(BCRYPT_STEP << cost),
    }
}

pub(super) fn sha_crypt(parts: &ShaCrypt<'_>) -> Result<u32, Unusable> {
    match parts.rounds.unwrap_or(5000) {
        rounds if rounds > MOST_ROUNDS => Err(Unusable::Rounds(rounds)),
        rounds => Ok(micros(rounds.max(1000) / ROUNDS_A_MICRO)),
    }
}

pub(super) fn argon2(text: &str) -> Result<u32, Unusable> {
    let malformed = || Unusable::Malformed(ARGON2);
    let parts = PasswordHash::new(text).map_err(|_| malformed())?;
    let known = parts.version.is_none_or(|version| matches!(version, 0x10 | 0x13));
    let salted = parts.salt.is_some_and(|salt| salt.as_ref().len() >= argon2::MIN_SALT_LEN);
    if !known || !salted || parts.hash.is_none() {
        return Err(malformed());
    }
    let params = argon2::Params::try_from(&parts).map_err(|_| malformed())?;
    let (kib, passes) = (params.m_cost(), params.t_cost());
    let work = u64::from(kib) * u64::from(passes);
    let too_much = |most| Unusable::Argon2Cost { kib, passes, most };
    if kib > MOST_ARGON2_KIB {
        return Err(too_much("262144 KiB are the most"));
    }
    if work > MOST_ARGON2_WORK {
        return Err(too_much("KiB times passes may be 4194304"));
    }
    if params.p_cost() > MOST_ARGON2_LANES {
        return Err(malformed());
    }
    Ok(micros(work))
}

/// Only what `crypt_gensalt` writes: the standard flavour, N and r, nothing else.
pub(super) fn yescrypt(text: &str) -> Result<u32, Unusable> {
    let malformed = || Unusable::Malformed(YESCRYPT);
    let mut fields = text.strip_prefix("$y$").ok_or_else(malformed)?.split('$');
    let (Some(params), Some(salt), Some(stored), None) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(malformed());
    };
    let whole = stored.len() == 43 && (2..=86).contains(&salt.len()) && salt.len() % 4 != 1;
    if !whole || !all_digits(stored) || !all_digits(salt) {
        return Err(malformed());
    }
    let rest = params.strip_prefix('j').ok_or(Unusable::YescryptForm)?;
    let mut digits = rest.bytes();
    let log_n = number(&mut digits).ok_or_else(malformed)?;
    let block = number(&mut digits).ok_or_else(malformed)?;
    if digits.next().is_some() {
        return Err(Unusable::YescryptForm);
    }
    let bytes = 1_u64.checked_shl(log_n).map_or(u64::MAX, |n| n.saturating_mul(u64::from(block)));
    let mib = bytes.saturating_mul(128).div_ceil(1024 * 1024);
    if log_n > 40 || mib > MOST_YESCRYPT_MIB {
        return Err(Unusable::YescryptCost { mib });
    }
    params.parse::<yescrypt::Params>().map_err(|_| malformed())?;
    Ok(micros(mib * YESCRYPT_MIB))
}

/// A number of yescrypt's parameters, 1 at the least: the first digit tells how many follow.
fn number(digits: &mut impl Iterator<Item = u8>) -> Option<u32> {
    let mut digit = || {
        let digit = digits.next()?;
        u32::try_from(DIGITS.iter().position(|d| *d == digit)?).ok()
    };
    let first = digit()?;
    let (mut start, mut end, mut more, mut value) = (0, 47, 0, 1);
    while first > end {
        value += (end + 1 - start) << (6 * more);
        start = end + 1;
        end = start + 62_u32.checked_sub(end)? / 2;
        more += 1;
    }
    value += (first - start) << (6 * more);
    for place in (0..more).rev() {
        value += digit()? << (6 * place);
    }
    Some(value)
}

fn micros(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX).max(1)
}
