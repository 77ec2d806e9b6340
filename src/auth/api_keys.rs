//! The API-key file: keys as SHA-256 digests, found by digest.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::auth::Name;
use crate::auth::lines::{Line, Notes, entries, fault_of_name};
use crate::config::key_digest;
use crate::live_file::Parsed;

/// The keys of one file: 41 bytes each, and the names that were given.
pub struct ApiKeys {
    /// In the order of the digests.
    keys: Vec<Key>,
    /// Digests are uniform: so many shelves hold about four keys each. Where each begins.
    shelves: Vec<u32>,
    names: Vec<Arc<str>>,
}

#[derive(Clone, Copy)]
struct Key {
    digest: [u8; 32],
    line: u32,
    /// Where its name stands, from 1; 0 without one.
    name: u32,
}

impl ApiKeys {
    /// Reads one key a line, `KEY # name` for one with a name, `sha256:<64 hex>` for its digest.
    #[must_use]
    pub fn parse(text: &str) -> Parsed<Self> {
        let mut notes = Notes::default();
        let lines = memchr::memchr_iter(b'\n', text.as_bytes()).count() + 1;
        // A file of blank lines needs no room.
        let mut keys = Vec::with_capacity(lines.min(text.len() / 16 + 1));
        let mut names: Vec<Arc<str>> = Vec::new();
        entries(text, &mut notes, |line, notes| match read(line) {
            Ok((digest, name)) => {
                names.extend(name.map(Arc::from));
                let name = name.map_or(0, |_| small(names.len()));
                keys.push(Key { digest, line: small(line.number), name });
            }
            Err(fault) => notes.skip(line.number, fault),
        });
        drop_repeated(&mut keys, &mut notes);
        keys.shrink_to_fit();
        names.shrink_to_fit();
        let entries = keys.len();
        let shelves = shelves_for(&keys);
        Parsed { content: Self { keys, shelves, names }, entries, notes: notes.finish() }
    }

    /// The name of this key, if it is one of them.
    #[must_use]
    pub fn find(&self, presented: &[u8]) -> Option<Name> {
        self.find_digest(&Sha256::digest(presented).into())
    }

    /// The name of the key with this digest.
    #[must_use]
    pub fn find_digest(&self, digest: &[u8; 32]) -> Option<Name> {
        let keys = self.alike(digest);
        let key = keys.get(keys.partition_point(|key| key.digest < *digest))?;
        // The search's time tells something about stored digests only, of which no key can be made.
        bool::from(key.digest.ct_eq(digest)).then(|| self.name_of(key))
    }

    /// In no particular order.
    pub fn names(&self) -> impl Iterator<Item = Name> {
        self.keys.iter().map(|key| self.name_of(key))
    }

    /// Each key's digest, and what the key is called; in no particular order.
    pub fn digests(&self) -> impl Iterator<Item = ([u8; 32], Name)> {
        self.keys.iter().map(|key| (key.digest, self.name_of(key)))
    }

    /// The few keys whose digests begin alike.
    fn alike(&self, digest: &[u8; 32]) -> &[Key] {
        let shelf = shelf_of(digest, self.shelves.len());
        let start = |shelf: usize| self.shelves.get(shelf).and_then(|at| usize::try_from(*at).ok());
        let from = start(shelf).unwrap_or_default();
        let to = start(shelf + 1).unwrap_or(self.keys.len());
        self.keys.get(from..to).unwrap_or_default()
    }

    fn name_of(&self, key: &Key) -> Name {
        let given =
            usize::try_from(key.name).ok().and_then(|name| self.names.get(name.checked_sub(1)?));
        match given {
            Some(name) => Name::Given(Arc::clone(name)),
            None => short_name(&key.digest),
        }
    }
}

fn shelves_for(keys: &[Key]) -> Vec<u32> {
    let count = keys.len() / 4 + 1;
    let mut shelves = Vec::with_capacity(count);
    for (at, key) in keys.iter().enumerate() {
        let shelf = shelf_of(&key.digest, count);
        shelves.resize(shelves.len().max(shelf + 1), small(at));
    }
    shelves.resize(count, small(keys.len()));
    shelves
}

fn shelf_of(digest: &[u8; 32], count: usize) -> usize {
    let [a, b, c, d, ..] = *digest;
    let share = u64::from(u32::from_be_bytes([a, b, c, d]));
    usize::try_from((share * count as u64) >> 32).unwrap_or_default()
}

fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeys").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

/// What a key without a name is called.
pub(crate) fn short_name(digest: &[u8; 32]) -> Name {
    let mut name = *b"key-........";
    for (place, digit) in name.iter_mut().skip(4).enumerate() {
        let byte = digest.get(place / 2).copied().unwrap_or_default();
        let nibble = if place % 2 == 0 { byte >> 4 } else { byte & 0xf };
        *digit = b"0123456789abcdef".get(usize::from(nibble)).copied().unwrap_or(b'0');
    }
    Name::OfKey(name)
}

fn read(line: Line<'_>) -> Result<([u8; 32], Option<&str>), &'static str> {
    let line = line.text.trim_ascii();
    let (key, name) = match line.find([' ', '\t']) {
        None => (line, None),
        Some(blank) => {
            let (key, rest) = line.split_at(blank);
            let name = rest.trim_ascii_start().strip_prefix('#');
            let name = name.ok_or("a blank inside the key; a name is written KEY # NAME")?;
            (key, Some(name.trim_ascii()).filter(|name| !name.is_empty()))
        }
    };
    if let Some(fault) = name.and_then(fault_of_name) {
        return Err(fault);
    }
    if !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("a control or non-ASCII character in the key, which no client can send");
    }
    let digest = match key.strip_prefix("sha256:") {
        Some(hex) => key_digest(hex)?,
        None => Sha256::digest(key).into(),
    };
    Ok((digest, name))
}

/// Sorts by digest; of a key that stands there twice the first line counts.
fn drop_repeated(keys: &mut Vec<Key>, notes: &mut Notes) {
    keys.sort_unstable_by(|a, b| a.digest.cmp(&b.digest).then(a.line.cmp(&b.line)));
    let mut repeated = Vec::new();
    keys.dedup_by(|later, first| {
        let same = later.digest == first.digest;
        repeated.extend(same.then_some(later.line));
        same
    });
    repeated.sort_unstable();
    for line in repeated {
        let line = usize::try_from(line).unwrap_or(usize::MAX);
        notes.skip(line, "this key has a line further up, and the first one counts");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(keys: &ApiKeys, key: &str) -> Option<String> {
        keys.find(key.as_bytes()).map(|name| name.to_string())
    }

    /// `printf sk-one | sha256sum`.
    const SK_ONE: &str = "456f1612bd25c6c8455039437bf441f43aa3b7d1c0b0047c712d5036dfebef0d";

    #[test]
    fn one_key_a_line_is_found_and_nothing_else() {
        let parsed = ApiKeys::parse("# keys\n\n  sk-one \r\nsk-two\t# bob \nsk#three #\n");
        assert_eq!((parsed.entries, parsed.notes.len()), (3, 0));
        let keys = parsed.content;
        assert_eq!(found(&keys, "sk-two").as_deref(), Some("bob"));
        let name = found(&keys, "sk-one").unwrap();
        assert!(name.starts_with("key-") && name.len() == 12, "{name}");
        assert!(found(&keys, "sk#three").unwrap().starts_with("key-"));
        for wrong in ["", "sk-on", "sk-one ", "SK-ONE", "# keys", "bob", "sk-two\t# bob"] {
            assert_eq!(found(&keys, wrong), None, "{wrong}");
        }
        let mut names: Vec<_> = keys.names().map(|name| name.to_string()).collect();
        names.sort();
        assert_eq!(names.len(), 3);
        assert_eq!(names[0], "bob");
    }

    #[test]
    fn a_digest_stands_for_its_key() {
        let upper = SK_ONE.to_uppercase();
        for line in [format!("sha256:{SK_ONE}"), format!("sha256:{upper}  #alice")] {
            let keys = ApiKeys::parse(&line).content;
            let name = found(&keys, "sk-one").unwrap();
            assert!(name == "alice" || name == format!("key-{}", &SK_ONE[..8]), "{name}");
            assert_eq!(found(&keys, &line), None);
            assert_eq!(found(&keys, SK_ONE), None);
        }
    }

    #[test]
    fn lines_that_cannot_be_a_key_are_told() {
        let long = format!("k # {}", "n".repeat(256));
        let nothing = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for line in [
            "two words",
            "sk # a/b",
            "sk # a\u{7f}b",
            "schlüssel",
            "s\u{7f}k",
            "sha256:12",
            &long,
            nothing,
        ] {
            let parsed = ApiKeys::parse(&format!("good-one\n{line}\n"));
            assert_eq!(parsed.entries, 1, "{line}");
            assert_eq!(parsed.notes.len(), 1, "{line}");
            assert_eq!((parsed.notes[0].line, parsed.notes[0].skipped), (2, true));
        }
    }

    #[test]
    fn the_first_of_two_lines_for_a_key_counts() {
        let text = format!("sk-one # first\nsk-two\nsk-one # second\nsha256:{SK_ONE} # third\n");
        let parsed = ApiKeys::parse(&text);
        assert_eq!(parsed.entries, 2);
        assert_eq!(parsed.notes.iter().map(|n| n.line).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(found(&parsed.content, "sk-one").as_deref(), Some("first"));
    }

    #[test]
    fn every_one_of_many_keys_is_found_under_its_name() {
        let key = |n: u32| {
            format!(
                "sk-{n}{}",
                if n.is_multiple_of(3) { format!(" # n{n}") } else { String::new() }
            )
        };
        let text = (0..30_000).map(key).collect::<Vec<_>>().join("\n");
        let keys = ApiKeys::parse(&text).content;
        for n in 0..30_000 {
            let name = found(&keys, &format!("sk-{n}")).unwrap();
            assert_eq!(name == format!("n{n}"), n % 3 == 0, "{n} {name}");
            assert_eq!(found(&keys, &format!("no-{n}")), None);
        }
    }

    #[test]
    fn it_does_not_show_its_keys() {
        let shown = format!("{:?}", ApiKeys::parse("sk-one # alice").content);
        assert_eq!(shown, "ApiKeys { keys: 1, .. }");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>(), presented in any::<Vec<u8>>()) {
            let parsed = ApiKeys::parse(&text);
            let _ = parsed.content.find(&presented);
            prop_assert!(parsed.notes.len() <= 21);
            prop_assert_eq!(parsed.content.names().count(), parsed.entries);
        }

        #[test]
        fn exactly_the_good_lines_count(
            keys in prop::collection::btree_set("sk-[a-z0-9]{4,20}", 1..20),
            junk in prop::collection::vec(
                prop::sample::select(vec!["# sk-x", "", "  ", "a b", "sha256:xyz", "ü", "x # a/b", "a\rb"]), 0..20),
            order in any::<prop::sample::Index>(),
        ) {
            let mut lines: Vec<&str> = keys.iter().map(String::as_str).collect();
            for (at, junk) in junk.iter().enumerate() {
                lines.insert((order.index(97) * (at + 1)) % (lines.len() + 1), junk);
            }
            let parsed = ApiKeys::parse(&lines.join("\n"));
            prop_assert_eq!(parsed.entries, keys.len());
            for key in &keys {
                prop_assert!(parsed.content.find(key.as_bytes()).is_some());
            }
            for junk in junk {
                prop_assert!(parsed.content.find(junk.as_bytes()).is_none());
            }
        }
    }
}
