//! The forms of `Authorization`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
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

#[tokio::test]
async fn checking_a_key_allocates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("api_keys.txt");
    std::fs::write(&keys, "key-of-anna # anna\nkey-of-nobody\n").unwrap();
    let mut config = Config::builtin();
    config.api_keys = Some(keys);
    let auth = Auth::new(&config, Files::open(&config, None));
    let memory = Memory::new(1).unwrap();
    let peer = crate::client_addr::PeerAddr::new([192, 0, 2, 1].into());
    let mut headers = HeaderMap::new();
    let client = crate::client_addr::TrustedProxies::default().client_addr(peer, &headers);
    for (key, name) in [("key-of-anna", "anna"), ("key-of-nobody", "key-")] {
        let login = HeaderValue::from_str(&format!("Bearer {key}")).unwrap();
        headers.insert(header::AUTHORIZATION, login);
        let presented = Presented {
            headers: &headers,
            path_key: None,
            method: "GET",
            path: "/",
            ts: None,
            certificate: None,
        };
        // Until the file is older than the grain of its stamp, it is read again each time.
        let mut allocated = u64::MAX;
        let began = Instant::now();
        while began.elapsed() < std::time::Duration::from_secs(20) {
            let mut check = Box::pin(auth.authenticate(&memory, client, presented, Instant::now()));
            let mut at_once = None;
            let info = allocation_counter::measure(|| {
                let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
                at_once = Some(check.as_mut().poll(&mut cx));
            });
            if let Some(std::task::Poll::Ready(who)) = at_once {
                assert!(who.unwrap().name().as_str().starts_with(name));
                allocated = allocated.min(info.count_total);
            } else {
                check.await.unwrap();
            }
            if allocated == 0 {
                break;
            }
        }
        assert_eq!(allocated, 0, "{name}");
    }
}
