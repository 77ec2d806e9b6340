//! A request target: what is accepted means the same when it is read again.
#![no_main]

use http::{Method, Uri};
use libfuzzer_sys::fuzz_target;
use portcullis::api::{Asked, Target, without_key};
use portcullis::forward;

fuzz_target!(|raw: &[u8]| {
    let Ok(uri) = Uri::try_from(raw) else { return };
    let Ok(target) = Target::read(uri.path()) else { return };
    let path = &target.path;
    assert!(path.starts_with('/') && !path.contains("//") && !path.contains('%'));
    assert!(path.split('/').all(|segment| segment != "." && segment != ".."));
    let again = Target::read(path).expect("what was accepted is accepted again");
    assert_eq!((again.path_key, &again.path), (None, path));
    if let Some(key) = target.path_key.filter(|key| key.len() > 8) {
        let key = String::from_utf8_lossy(&key).into_owned();
        assert!(!without_key(uri.path()).contains(&key) || path.contains(&key));
    }
    for method in [Method::GET, Method::HEAD, Method::POST, Method::DELETE, Method::PUT] {
        let Ok(asked) = Asked::find(&method, path, &[]) else { continue };
        assert_eq!(asked.path(), path);
        let Ok(sent) = forward::target(asked.path(), uri.query()) else { continue };
        assert_eq!(sent.path(), path);
        let signed = |query: &str| query.split('&').any(|pair| pair.starts_with("ts="));
        assert!(!sent.query().is_some_and(signed));
    }
});
