//! The traditional DES `crypt(3)` with its salt, for which no crate exists (the salt changes the
//! cipher itself).

use crate::auth::crypt_md5::DIGITS;

/// Tables number bits from 1, the highest first (FIPS 46-3).
type Table<const N: usize> = [u8; N];

/// Both characters of a salt, or nothing where one is no digit of `crypt`.
#[must_use]
pub(crate) fn salt(text: &[u8]) -> Option<u32> {
    let mut salt = 0;
    for (at, digit) in text.get(..2)?.iter().enumerate() {
        salt |= u32::try_from(DIGITS.iter().position(|d| d == digit)?).ok()? << (6 * at);
    }
    Some(salt)
}

/// The eleven characters that stand behind the salt. Only the low seven bits of the first eight
/// bytes of the password count.
#[must_use]
pub(crate) fn des_crypt(password: &[u8], salt: u32) -> Vec<u8> {
    let keys = round_keys(key_of(password));
    let swap = swapped_bits(salt);
    let mut halves = (0, 0);
    // The permutations at both ends of DES cancel out between the 25 runs.
    for _ in 0..25 {
        for key in keys {
            halves = (halves.1, halves.0 ^ scramble(halves.1, key, swap));
        }
        halves = (halves.1, halves.0);
    }
    let block = u64::from(halves.0) << 32 | u64::from(halves.1);
    let block = u128::from(permute(block, 64, &FINAL)) << 2;
    (0..11)
        .rev()
        .filter_map(|group| DIGITS.get(usize::try_from(block >> (6 * group) & 0x3f).ok()?).copied())
        .collect()
}

fn key_of(password: &[u8]) -> u64 {
    let bytes = password.iter().copied().chain(std::iter::repeat(0));
    bytes.take(8).fold(0, |key, byte| key << 8 | u64::from(byte << 1))
}

/// The bits of the salt name the bits of the expansion that change places with those 24 further.
fn swapped_bits(salt: u32) -> u64 {
    (0..12).filter(|bit| salt >> bit & 1 == 1).fold(0, |mask, bit| mask | 1 << (23 - bit))
}

fn round_keys(key: u64) -> [u64; 16] {
    const HALF: u64 = (1 << 28) - 1;
    let chosen = permute(key, 64, &CHOICE_1);
    let (mut high, mut low) = (chosen >> 28, chosen & HALF);
    SHIFTS.map(|by| {
        high = (high << by | high >> (28 - by)) & HALF;
        low = (low << by | low >> (28 - by)) & HALF;
        permute(high << 28 | low, 56, &CHOICE_2)
    })
}

fn scramble(half: u32, key: u64, swap: u64) -> u32 {
    let wide = permute(u64::from(half), 32, &EXPANSION);
    let differ = (wide >> 24 ^ wide) & swap;
    let mixed = wide ^ differ ^ differ << 24 ^ key;
    let chosen = BOXES.iter().enumerate().fold(0_u64, |chosen, (at, table)| {
        let six = mixed >> (42 - 6 * at) & 0x3f;
        let row = six >> 4 & 2 | six & 1;
        let place = usize::try_from(row << 4 | six >> 1 & 0xf).unwrap_or_default();
        chosen << 4 | u64::from(table.get(place).copied().unwrap_or_default())
    });
    u32::try_from(permute(chosen, 32, &AFTER_BOXES)).unwrap_or_default()
}

fn permute<const N: usize>(input: u64, width: u8, table: &Table<N>) -> u64 {
    table.iter().fold(0, |out, from| out << 1 | input >> (width - from) & 1)
}

const SHIFTS: [u32; 16] = [1, 1, 2, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 1];

#[rustfmt::skip]
const CHOICE_1: Table<56> = [
    57, 49, 41, 33, 25, 17,  9,  1, 58, 50, 42, 34, 26, 18, 10,  2, 59, 51, 43, 35, 27, 19, 11,  3, 60, 52, 44, 36,
    63, 55, 47, 39, 31, 23, 15,  7, 62, 54, 46, 38, 30, 22, 14,  6, 61, 53, 45, 37, 29, 21, 13,  5, 28, 20, 12,  4,
];

#[rustfmt::skip]
const CHOICE_2: Table<48> = [
    14, 17, 11, 24,  1,  5,  3, 28, 15,  6, 21, 10, 23, 19, 12,  4, 26,  8, 16,  7, 27, 20, 13,  2,
    41, 52, 31, 37, 47, 55, 30, 40, 51, 45, 33, 48, 44, 49, 39, 56, 34, 53, 46, 42, 50, 36, 29, 32,
];

#[rustfmt::skip]
const EXPANSION: Table<48> = [
    32,  1,  2,  3,  4,  5,  4,  5,  6,  7,  8,  9,  8,  9, 10, 11, 12, 13, 12, 13, 14, 15, 16, 17,
    16, 17, 18, 19, 20, 21, 20, 21, 22, 23, 24, 25, 24, 25, 26, 27, 28, 29, 28, 29, 30, 31, 32,  1,
];

#[rustfmt::skip]
const AFTER_BOXES: Table<32> = [
    16,  7, 20, 21, 29, 12, 28, 17,  1, 15, 23, 26,  5, 18, 31, 10,
     2,  8, 24, 14, 32, 27,  3,  9, 19, 13, 30,  6, 22, 11,  4, 25,
];

#[rustfmt::skip]
const FINAL: Table<64> = [
    40,  8, 48, 16, 56, 24, 64, 32, 39,  7, 47, 15, 55, 23, 63, 31, 38,  6, 46, 14, 54, 22, 62, 30, 37,  5, 45, 13, 53, 21, 61, 29,
    36,  4, 44, 12, 52, 20, 60, 28, 35,  3, 43, 11, 51, 19, 59, 27, 34,  2, 42, 10, 50, 18, 58, 26, 33,  1, 41,  9, 49, 17, 57, 25,
];

#[rustfmt::skip]
const BOXES: [Table<64>; 8] = [
    [14,  4, 13,  1,  2, 15, 11,  8,  3, 10,  6, 12,  5,  9,  0,  7,  0, 15,  7,  4, 14,  2, 13,  1, 10,  6, 12, 11,  9,  5,  3,  8,
      4,  1, 14,  8, 13,  6,  2, 11, 15, 12,  9,  7,  3, 10,  5,  0, 15, 12,  8,  2,  4,  9,  1,  7,  5, 11,  3, 14, 10,  0,  6, 13],
    [15,  1,  8, 14,  6, 11,  3,  4,  9,  7,  2, 13, 12,  0,  5, 10,  3, 13,  4,  7, 15,  2,  8, 14, 12,  0,  1, 10,  6,  9, 11,  5,
      0, 14,  7, 11, 10,  4, 13,  1,  5,  8, 12,  6,  9,  3,  2, 15, 13,  8, 10,  1,  3, 15,  4,  2, 11,  6,  7, 12,  0,  5, 14,  9],
    [10,  0,  9, 14,  6,  3, 15,  5,  1, 13, 12,  7, 11,  4,  2,  8, 13,  7,  0,  9,  3,  4,  6, 10,  2,  8,  5, 14, 12, 11, 15,  1,
     13,  6,  4,  9,  8, 15,  3,  0, 11,  1,  2, 12,  5, 10, 14,  7,  1, 10, 13,  0,  6,  9,  8,  7,  4, 15, 14,  3, 11,  5,  2, 12],
    [ 7, 13, 14,  3,  0,  6,  9, 10,  1,  2,  8,  5, 11, 12,  4, 15, 13,  8, 11,  5,  6, 15,  0,  3,  4,  7,  2, 12,  1, 10, 14,  9,
     10,  6,  9,  0, 12, 11,  7, 13, 15,  1,  3, 14,  5,  2,  8,  4,  3, 15,  0,  6, 10,  1, 13,  8,  9,  4,  5, 11, 12,  7,  2, 14],
    [ 2, 12,  4,  1,  7, 10, 11,  6,  8,  5,  3, 15, 13,  0, 14,  9, 14, 11,  2, 12,  4,  7, 13,  1,  5,  0, 15, 10,  3,  9,  8,  6,
      4,  2,  1, 11, 10, 13,  7,  8, 15,  9, 12,  5,  6,  3,  0, 14, 11,  8, 12,  7,  1, 14,  2, 13,  6, 15,  0,  9, 10,  4,  5,  3],
    [12,  1, 10, 15,  9,  2,  6,  8,  0, 13,  3,  4, 14,  7,  5, 11, 10, 15,  4,  2,  7, 12,  9,  5,  6,  1, 13, 14,  0, 11,  3,  8,
      9, 14, 15,  5,  2,  8, 12,  3,  7,  0,  4, 10,  1, 13, 11,  6,  4,  3,  2, 12,  9,  5, 15, 10, 11, 14,  1,  7,  6,  0,  8, 13],
    [ 4, 11,  2, 14, 15,  0,  8, 13,  3, 12,  9,  7,  5, 10,  6,  1, 13,  0, 11,  7,  4,  9,  1, 10, 14,  3,  5, 12,  2, 15,  8,  6,
      1,  4, 11, 13, 12,  3,  7, 14, 10, 15,  6,  8,  0,  5,  9,  2,  6, 11, 13,  8,  1,  4, 10,  7,  9,  5,  0, 15, 14,  2,  3, 12],
    [13,  2,  8,  4,  6, 15, 11,  1, 10,  9,  3, 14,  5,  0, 12,  7,  1, 15, 13,  8, 10,  3,  7,  4, 12,  5,  6, 11,  0, 14,  9,  2,
      7, 11,  4,  1,  9, 12, 14,  2,  0,  6, 10, 13, 15,  3,  5,  8,  2,  1, 14,  7,  4, 10,  8, 13, 15, 12,  9,  0,  3,  5,  6, 11],
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by Perl's `crypt`.
    #[test]
    fn it_agrees_with_perl() {
        for (password, expected) in [
            ("-O<", "Ffbg.5IJP0iwc"),
            ("", "8ibbZRtWYxa0U"),
            ("St<G#&BN[m", "3mkgRn4z/NNO2"),
            ("x", "leCHEhiSW6ZA."),
            ("e", "/9dn01z5d.gcQ"),
            ("", "IziI8Smj7Oy9I"),
            ("_@jYm8", "IGTB0TwFkMV.g"),
            ("<j'!V2X7", "bSDF7v8vGD3Bs"),
            ("c9+x!f/lU", "HcimLLZUmGOFc"),
            ("1=", "w/vDqXa3ymcho"),
            ("GG_v829'", "dtOFQEJTkJabc"),
            ("`?", "xlwk8fEBT/WJQ"),
            ("", "6sdDvm5oAFPBc"),
            ("&h7A&fX(/", "0VDml.ukuGHD."),
            ("p", "3u2VZOarTOBNI"),
            ("[fZ8C<2d]", "f39uBuirHHyZQ"),
            ("u~c6L&;D", "ML/Jh/wdupdWw"),
            ("Go#", "I2wtGSx20wLUE"),
            ("pl5TNrY", "EGH/C4v72NFSk"),
            ("p\u{e4}ss", "abxNd6oRGYP9Q"),
        ] {
            let (before, behind) = expected.split_at(2);
            let made = des_crypt(password.as_bytes(), salt(before.as_bytes()).unwrap());
            assert_eq!(String::from_utf8(made).unwrap(), behind, "{password}");
        }
    }

    #[test]
    fn only_seven_bits_of_eight_bytes_count() {
        let stored = des_crypt(b"abcdefgh", 77);
        assert_eq!(des_crypt(b"abcdefghij", 77), stored);
        assert_eq!(des_crypt(b"abcdefg\xe8", 77), stored);
        assert_ne!(des_crypt(b"abcdefg", 77), stored);
    }

    #[test]
    fn a_salt_is_two_digits_of_crypt() {
        assert_eq!(salt(b".."), Some(0));
        assert_eq!(salt(b"zz"), Some(4095));
        assert_eq!(salt(b"/."), Some(1));
        for wrong in ["", "a", "a:", "-a", "\u{e4}"] {
            assert_eq!(salt(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
