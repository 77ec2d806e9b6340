//! A users' file: what is accepted stands in the file, and the stricter setting accepts no more.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use portcullis::auth::htpasswd::Htpasswd;
use portcullis::config::WeakHashes;

const PLAIN: &str = "{PLAIN}";

fuzz_target!(|text: &str| {
    let parsed = Htpasswd::parse(text, WeakHashes::Warn);
    let names: BTreeSet<_> = parsed.content.names().collect();
    assert_eq!(parsed.entries, names.len());
    assert_eq!(parsed.content.costliest().is_some(), !names.is_empty());
    let lines = text.split('\n').count();
    assert!(parsed.notes.iter().all(|note| (1..=lines).contains(&note.line)));
    for name in &names {
        let stored = parsed.content.get(name).expect("a name that is listed is found");
        let line = format!("{name}:{}", stored.text());
        assert!(text.split('\n').any(|it| it.starts_with(&line)), "{line} does not stand there");
        if let Some(password) = stored.text().strip_prefix(PLAIN) {
            assert!(stored.verify(password.as_bytes()));
            assert!(!stored.verify(format!("{password}x").as_bytes()));
        }
    }
    let strict = Htpasswd::parse(text, WeakHashes::Refuse);
    for name in strict.content.names() {
        assert!(names.contains(name));
        assert!(strict.content.get(name).is_some_and(|stored| !stored.weak()));
    }
});
