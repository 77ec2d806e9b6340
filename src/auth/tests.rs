//! The forms of `Authorization`.

use proptest::prelude::*;

use super::*;

#[test]
fn the_scheme_word_may_be_in_any_case_and_must_end() {
    assert_eq!(scheme(b"Bearer x", b"bearer"), Some(&b"x"[..]));
    assert_eq!(scheme(b"bEaReR   x ", b"bearer"), Some(&b"x"[..]));
    assert_eq!(scheme(b"Bearer", b"bearer"), Some(&b""[..]));
    assert_eq!(scheme(b"Bearerx", b"bearer"), None);
    assert_eq!(scheme(b"Bear", b"bearer"), None);
}

#[test]
fn the_first_colon_divides_name_and_password() {
    let login = |text: &str| name_and_password(STANDARD.encode(text).as_bytes());
    assert_eq!(login("anna:a:b"), Some(("anna".to_owned(), b"a:b".to_vec())));
    assert_eq!(login("anna"), None);
    assert_eq!(login(":x"), None);
    assert_eq!(login("anna:"), None);
    assert_eq!(name_and_password(b"YW5uYTp4eA"), Some(("anna".to_owned(), b"xx".to_vec())));
    assert_eq!(name_and_password(b"YW5uYTp4eA="), None);
}

proptest! {
    #[test]
    fn no_value_panics(value in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = reads_authorization(&value);
    }

    #[test]
    fn every_login_is_read_back(name in "[^:\\pC]{1,20}", password in prop::collection::vec(any::<u8>(), 1..40)) {
        let login = [name.as_bytes(), b":", &password].concat();
        let read = name_and_password(STANDARD.encode(login).as_bytes());
        prop_assert_eq!(read, Some((name, password)));
    }
}
