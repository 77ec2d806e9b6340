//! A file of signing keys: nobody is let in by a line that names no key, or everybody.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::auth::signature::{AuthorizedKeys, Signed};

fuzz_target!(|text: &str| {
    let parsed = AuthorizedKeys::parse(text);
    let lines: Vec<_> = text.split('\n').collect();
    assert!(parsed.notes.iter().all(|note| (1..=lines.len()).contains(&note.line)));
    let names: Vec<_> = parsed.content.names().collect();
    assert_eq!(parsed.entries, names.len());
    let enrolling = lines.iter().filter(|line| line.trim_ascii_start().starts_with("ssh-ed25519"));
    assert!(parsed.entries <= enrolling.count());
    for name in names {
        assert!(!name.is_empty() && name != "*" && !name.contains('/'));
        assert!(name.starts_with("key-") || text.contains(name));
    }
    // The same text as what a client sends.
    if let Some(signed) = Signed::parse(text.as_bytes()) {
        assert!(!format!("{signed:?}").contains(text), "a signature is not shown");
    }
});
