//! Paths that can be read in one way only, and the table's own consistency.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

#[test]
fn a_plain_path_is_itself() {
    for path in ["/", "/api/tags", "/v1/models/gemma3:1b", "/api/blobs/sha256:00ff", "/a-b_c.d~e"] {
        assert_eq!(Target::read(path).unwrap().path, path);
    }
    assert_eq!(Target::read("/v1/models/gemma3%3A1b").unwrap().path, "/v1/models/gemma3:1b");
}

#[test]
fn a_key_is_taken_out_of_the_path_and_decoded() {
    let target = Target::read("/k/a%2Fb%25/api/tags").unwrap();
    assert_eq!((target.path_key.unwrap(), target.path.as_str()), (b"a/b%".to_vec(), "/api/tags"));
    assert_eq!(without_key("/k/secret/api/tags"), "/api/tags");
    assert_eq!(without_key("/k/secret"), "/");
    assert_eq!(without_key("/keys"), "/keys");
}

#[test]
fn an_oddly_spelt_path_is_logged_without_what_may_be_a_key() {
    assert_eq!(loggable("/api/tags"), "/api/tags");
    assert_eq!(loggable("/api/new-thing"), "/api/new-thing");
    assert_eq!(loggable("/k/secret/api/tags"), "/api/tags");
    assert_eq!(loggable("/%6b/secret/api/tags"), "/…/…/api/tags");
    assert_eq!(loggable("/k%2fsecret/api/tags"), "/…/api/tags");
    assert_eq!(loggable("/api/%64elete"), "/api/…");
    assert_eq!(loggable("/api/v1/keys/pc_secret/revoke"), "/api/v1/keys/…/…");
}

#[test]
fn every_row_stands_once_and_in_canonical_form() {
    let mut operations = HashSet::new();
    for row in &ENDPOINTS {
        assert!(operations.insert(row.operation), "{} stands twice", row.operation);
        let path = row.path.replace('*', "x");
        assert_eq!(Target::read(&path).unwrap().path, path);
        assert!(!row.methods.is_empty());
        let found = ENDPOINTS.iter().filter(|other| other.matches(&path)).count();
        assert_eq!(found, 1, "{path} is matched by {found} rows");
    }
}

#[test]
fn a_parameter_is_one_segment_that_is_not_empty() {
    let find = |path: &str| Asked::find(&Method::GET, path, &[]).unwrap().operation();
    assert_eq!(find("/v1/models/m"), "v1_model");
    assert_eq!(find("/v1/models/m/n"), "unknown");
    assert_eq!(find("/v1/models"), "v1_models");
    assert_eq!(find("/v1/modelsx"), "unknown");
}

proptest! {
    #[test]
    fn no_target_panics_and_what_is_canonical_stays_so(raw in "/[ -~]{0,40}") {
        if let Ok(target) = Target::read(&raw)
            && target.path_key.is_none()
        {
            let again = Target::read(&target.path).unwrap();
            prop_assert_eq!(&again.path, &target.path);
            prop_assert!(!target.path.contains(['%', '\\', ';', '?', '#', ' ']));
        }
    }

    #[test]
    fn no_text_panics(raw in any::<String>()) {
        let _ = Target::read(&raw);
        let _ = without_key(&raw);
    }

    /// However a letter of a known path is escaped, it is refused and not taken for the path.
    #[test]
    fn an_escaped_letter_is_refused(row in 0..ENDPOINTS.len(), at in any::<prop::sample::Index>()) {
        let path = ENDPOINTS[row].path.replace('*', "x");
        let at = at.index(path.len());
        let byte = path.as_bytes()[at];
        let raw = format!("{}%{byte:02x}{}", &path[..at], &path[at + 1..]);
        prop_assert!(Target::read(&raw).is_err(), "{raw}");
    }
}
