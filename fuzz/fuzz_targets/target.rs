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
    // A capital K is a path like any other, but in the log it counts as a slip with a key behind it.
    if !path.starts_with("/K/") {
        let logged = Target::read(without_key(uri.path())).expect("behind the key is a path");
        assert_eq!((logged.path_key, &logged.path), (None, path), "the log has the path alone");
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
