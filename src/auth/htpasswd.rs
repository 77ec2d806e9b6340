//! The htpasswd file: names and their password hashes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use crate::auth::lines::{Line, Notes, entries, fault_of_name};
use crate::auth::stored_hash::{StoredHash, Unusable};
use crate::config::WeakHashes;
use crate::live_file::Parsed;

/// Who may log in with which password.
pub struct Htpasswd {
    /// Nothing for a name whose first line is no good: that line counts all the same, as with
    /// Apache, so that a lock in front of an older line holds.
    users: HashMap<Box<str>, Option<StoredHash>>,
    costliest: Option<Box<str>>,
}

impl Htpasswd {
    /// Reads `name:hash[:anything]` lines; the first line of a name counts.
    #[must_use]
    pub fn parse(text: &str, weak: WeakHashes) -> Parsed<Self> {
        let mut notes = Notes::default();
        let mut users = HashMap::new();
        let mut most: Option<(u64, &str)> = None;
        let mut usable = 0;
        entries(text, &mut notes, |line, notes| {
            let Some((name, rest)) = divide(line, notes) else { return };
            let Entry::Vacant(place) = users.entry(name.into()) else {
                notes
                    .skip(line.number, "this name has a line further up, and the first one counts");
                return;
            };
            let stored = read(line.number, rest, weak, notes);
            if let Some(cost) = stored.as_ref().map(StoredHash::cost) {
                usable += 1;
                if most.is_none_or(|(most, _)| cost > most) {
                    most = Some((cost, name));
                }
            }
            place.insert(stored);
        });
        let costliest = most.map(|(_, name)| name.into());
        Parsed { content: Self { users, costliest }, entries: usable, notes: notes.finish() }
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&StoredHash> {
        self.users.get(name)?.as_ref()
    }

    /// The hash that takes longest to check, so that a name that is not here can take as long.
    #[must_use]
    pub fn costliest(&self) -> Option<&StoredHash> {
        self.get(self.costliest.as_ref()?)
    }

    /// In no particular order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.users.iter().filter(|(_, stored)| stored.is_some()).map(|(name, _)| &**name)
    }
}

impl fmt::Debug for Htpasswd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Htpasswd").field("users", &self.users.len()).finish_non_exhaustive()
    }
}

/// The name and what stands behind its colon.
fn divide<'a>(line: Line<'a>, notes: &mut Notes) -> Option<(&'a str, &'a str)> {
    let Some((name, rest)) = line.text.split_once(':') else {
        notes.skip(line.number, "no colon; a line is NAME:HASH");
        return None;
    };
    if let Some(fault) = fault_of_name(name) {
        notes.skip(line.number, fault);
        return None;
    }
    Some((name, rest))
}

fn read(number: usize, rest: &str, weak: WeakHashes, notes: &mut Notes) -> Option<StoredHash> {
    let text = rest.split(':').next().unwrap_or_default();
    let stored = match StoredHash::parse(text) {
        Ok(stored) => stored,
        // Understood: the user is to be kept out.
        Err(locked @ Unusable::Locked) => {
            notes.tell(number, locked);
            return None;
        }
        Err(unusable) => {
            notes.skip(number, unusable);
            return None;
        }
    };
    let format = stored.format();
    match (stored.weak(), weak) {
        (true, WeakHashes::Refuse) => {
            notes.skip(
                number,
                format_args!("{format} is weak and `weak_hashes` refuses it; {CURE}"),
            );
            None
        }
        (true, WeakHashes::Warn) => {
            notes.tell(number, format_args!("{format} is weak; {CURE}"));
            Some(stored)
        }
        (false, WeakHashes::Refuse | WeakHashes::Warn) => Some(stored),
    }
}

const CURE: &str = "set a new hash with `portcullis user add`";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::live_file::Note;

    /// Password `secret`.
    const BCRYPT: &str = "$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW";
    const BCRYPT_5: &str = "$2y$05$QsDzzqx2JL2PXkJlSL9zQ.It9Nlm0SqTc9fYZcl0Z31J5rlWBF9lC";
    const APR1: &str = "$apr1$/tenz12X$OqYbweJ1sVSbdLSDdzMe7.";

    fn parse(text: &str) -> (Htpasswd, Vec<Note>) {
        let parsed = Htpasswd::parse(text, WeakHashes::Warn);
        assert_eq!(parsed.entries, parsed.content.names().count());
        (parsed.content, parsed.notes)
    }

    #[test]
    fn a_locked_user_is_kept_out_and_the_line_is_understood() {
        let (file, notes) = parse(&format!("alice:!{BCRYPT}\n"));
        assert!(file.get("alice").is_none());
        // Of a file that is not understood at all the old content would go on.
        assert!(!notes.is_empty() && notes.iter().all(|note| !note.skipped), "{notes:?}");
    }

    #[test]
    fn users_are_found_by_name() {
        let text = format!(
            "# users\r\n\r\nalice:{BCRYPT}\r\nbob:{BCRYPT_5}:comment: more\nälice o'hara:{BCRYPT}"
        );
        let (file, notes) = parse(&text);
        assert_eq!(notes, []);
        assert_eq!(file.get("alice").map(StoredHash::text), Some(BCRYPT));
        assert!(file.get("bob").unwrap().verify(b"secret"));
        assert!(file.get("älice o'hara").is_some());
        for nobody in ["", "Alice", "alice ", "# users", "comment"] {
            assert!(file.get(nobody).is_none(), "{nobody}");
        }
    }

    #[test]
    fn the_costliest_hash_is_known() {
        let (file, _) = parse(&format!("a:{APR1}\nb:{BCRYPT_5}\nc:{BCRYPT}\nd:{BCRYPT_5}"));
        assert_eq!(file.costliest().map(StoredHash::text), Some(BCRYPT_5));
        assert!(parse("").0.costliest().is_none());
    }

    #[test]
    fn the_first_line_of_a_name_counts() {
        let (file, notes) = parse(&format!("alice:{BCRYPT}\nalice:{BCRYPT_5}\n"));
        assert_eq!(file.get("alice").map(StoredHash::text), Some(BCRYPT));
        assert_eq!(notes.iter().map(|n| (n.line, n.skipped)).collect::<Vec<_>>(), [(2, true)]);
    }

    #[test]
    fn a_lock_in_front_of_an_older_line_holds() {
        for lock in ["!", "*", "", "gone", &format!("!{BCRYPT}")] {
            let (file, notes) = parse(&format!("bob:{BCRYPT}\nalice:{lock}\nalice:{BCRYPT}\n"));
            assert!(file.get("alice").is_none(), "{lock}");
            assert_eq!(file.names().collect::<Vec<_>>(), ["bob"]);
            assert_eq!(notes.iter().map(|n| n.line).collect::<Vec<_>>(), [2, 3]);
        }
    }

    #[test]
    fn lines_that_are_none_are_told_with_the_reason() {
        let long = "n".repeat(256);
        for (line, says) in [
            ("alice".to_owned(), "no colon"),
            (format!(":{BCRYPT}"), "no name"),
            (format!("{long}:{BCRYPT}"), "255 bytes"),
            (format!("a/b:{BCRYPT}"), "a / in the name"),
            (format!("a\u{1}b:{BCRYPT}"), "control character"),
            ("alice:hunter2".to_owned(), "plain text"),
            ("alice:".to_owned(), "no hash"),
            (format!("a\rb:{BCRYPT}"), "lone carriage return"),
            (format!("alice:{}", "x".repeat(5000)), "4096 bytes"),
        ] {
            let (file, notes) = parse(&format!("bob:{BCRYPT}\n{line}\n"));
            assert_eq!(file.names().collect::<Vec<_>>(), ["bob"]);
            assert_eq!((notes[0].line, notes[0].skipped, notes.len()), (2, true, 1));
            assert!(notes[0].says.contains(says), "{}", notes[0].says);
            assert!(!notes[0].says.contains("hunter2") && !notes[0].says.contains("alice"));
        }
    }

    #[test]
    fn weak_hashes_are_told_or_refused() {
        let text = format!("a:{APR1}\nb:{BCRYPT}\na:{BCRYPT}");
        let kept = Htpasswd::parse(&text, WeakHashes::Warn);
        assert_eq!(kept.entries, 2);
        assert!(!kept.notes[0].skipped && kept.notes[0].says.starts_with("apr1 is weak"));
        let refused = Htpasswd::parse(&text, WeakHashes::Refuse);
        assert_eq!(refused.entries, 1);
        assert!(refused.content.get("a").is_none());
        assert!(refused.notes[0].skipped && refused.notes[0].line == 1);
    }

    #[test]
    fn it_does_not_show_its_content() {
        let shown = format!("{:?}", parse(&format!("alice:{BCRYPT}")).0);
        assert_eq!(shown, "Htpasswd { users: 1, .. }");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>(), name in any::<String>()) {
            for weak in [WeakHashes::Warn, WeakHashes::Refuse] {
                let parsed = Htpasswd::parse(&text, weak);
                let _ = (parsed.content.get(&name), parsed.content.costliest());
                prop_assert!(parsed.notes.len() <= 21);
            }
        }

        #[test]
        fn exactly_the_good_lines_count(
            names in prop::collection::btree_set("[a-zA-Zäöü .@_-]{1,12}", 1..20),
            junk in prop::collection::vec(
                prop::sample::select(vec!["#x:y", "", " \t", "none", "a/b:x", ":x", "9:plain", "8:$2y$", "\r:x"]),
                0..20,
            ),
            place in any::<prop::sample::Index>(),
        ) {
            let hashes = [BCRYPT, BCRYPT_5, APR1, "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ="];
            let mut lines: Vec<String> = names
                .iter()
                .zip(hashes.iter().cycle())
                .map(|(name, hash)| format!("{name}:{hash}"))
                .collect();
            for (at, junk) in junk.into_iter().enumerate() {
                let at = (place.index(83) * (at + 1)) % (lines.len() + 1);
                lines.insert(at, junk.to_owned());
            }
            let (file, _) = parse(&lines.join("\n"));
            let found: BTreeSet<String> = file.names().map(str::to_owned).collect();
            prop_assert_eq!(found, names);
        }
    }
}
