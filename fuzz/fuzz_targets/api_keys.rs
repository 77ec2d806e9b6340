//! A key file: every key that can be one is found, and nothing else is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::auth::api_keys::ApiKeys;

fuzz_target!(|text: &str| {
    let parsed = ApiKeys::parse(text);
    let keys = &parsed.content;
    assert_eq!(parsed.entries, keys.names().count());
    let lines: Vec<_> = text.split('\n').collect();
    assert!(parsed.notes.iter().all(|note| (1..=lines.len()).contains(&note.line)));
    for line in &lines {
        let key = line.trim_ascii();
        let is_one = key.bytes().all(|byte| byte.is_ascii_graphic())
            && !key.is_empty()
            && !key.starts_with('#')
            && !key.starts_with("sha256:")
            && line.len() <= 4096
            && !line.trim_end_matches('\r').contains('\r')
            && !line.ends_with("\r\r");
        if is_one {
            assert!(keys.find(key.as_bytes()).is_some(), "{key:?} is not found");
        }
    }
    // What stands nowhere, and what is only a part.
    assert!(text.contains("no such key") || keys.find(b"no such key").is_none());
    assert!(keys.find(b"").is_none());
    assert!(keys.find(b"#").is_none());
});
