//! Each form of value, well and badly written.

use proptest::prelude::*;

use super::*;

#[test]
fn durations_are_a_number_and_a_unit() {
    for (text, millis) in [
        ("0s", 0),
        ("500ms", 500),
        ("10s", 10_000),
        ("10 s", 10_000),
        ("2m", 120_000),
        ("1h", 3_600_000),
        ("400d", 34_560_000_000),
    ] {
        assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    for text in ["", "s", "10", "-1s", "1.5s", "10S", "1w", "10s ", "99999999999999999999s"] {
        assert!(duration(text).unwrap_err().contains("write it as 500ms"), "{text}");
    }
    assert!(duration("30").unwrap_err().starts_with("30 of what?"));
    assert!(duration("18446744073709551615d").is_err(), "an overflow");
}

#[test]
fn sizes_are_a_number_and_a_binary_unit() {
    for (text, bytes) in [
        ("0", 0),
        ("17", 17),
        ("17B", 17),
        ("64KiB", 65_536),
        ("100MiB", 104_857_600),
        ("1 GiB", 1 << 30),
        ("2TiB", 2 << 40),
    ] {
        assert_eq!(size(text), Ok(bytes), "{text}");
    }
    for text in ["", "MiB", "1.5MiB", "-1", "1PiB", "18446744073709551615KiB"] {
        assert!(size(text).unwrap_err().contains("write it as 64KiB"), "{text}");
    }
    for text in ["1MB", "1M", "1mib", "1G", "5kb"] {
        assert!(size(text).unwrap_err().contains("two things or none"), "{text}");
    }
}

#[test]
fn an_address_to_listen_on_has_a_number_and_a_port() {
    for text in ["0.0.0.0:8880", "127.0.0.1:0", "[::]:8880", "[::1]:1", "unix:/run/gate"] {
        assert_eq!(listen(text).unwrap().to_string(), text);
    }
    let long = format!("unix:/{}", "x".repeat(107));
    for (text, advice) in [
        (long.as_str(), "107 bytes"),
        ("0.0.0.0", "0.0.0.0:8880"),
        ("::1", "[::1]:8880"),
        ("[::1]", "[::1]:8880"),
        (":8880", "127.0.0.1:8880 for this machine alone"),
        ("*:80", "0.0.0.0:80 for every network"),
        ("localhost:8880", "names are not looked up"),
        ("http://0.0.0.0:8880", "ADDRESS:PORT"),
        ("0.0.0.0:99999", "ADDRESS:PORT"),
        ("", "ADDRESS:PORT"),
        ("unix:", "needs a path"),
    ] {
        let says = listen(text).unwrap_err();
        assert!(says.contains(advice), "{text}: {says}");
    }
}

#[test]
fn a_backends_address_is_scheme_host_and_port() {
    for (text, authority) in [
        ("http://gpu", "gpu"),
        ("http://gpu/", "gpu"),
        ("http://gpu:80", "gpu"),
        ("http://gpu:11434", "gpu:11434"),
        ("http://my_gpu.lan:11434/", "my_gpu.lan:11434"),
        ("http://192.0.2.1:11434", "192.0.2.1:11434"),
        ("http://[::1]:11434", "[::1]:11434"),
        ("https://gpu", "gpu"),
        ("https://gpu:443", "gpu"),
        ("https://gpu:80", "gpu:80"),
        ("unix:/run/ollama.sock", "localhost"),
    ] {
        assert_eq!(text.parse::<BackendUrl>().unwrap().authority(), authority);
    }
    let v6: BackendUrl = "http://[::1]:11434".parse().unwrap();
    assert_eq!(v6, BackendUrl::Http { host: "::1".to_owned(), port: 11434 });
    for text in ["http://gpu:11434", "https://[::1]:1", "unix:/run/ollama.sock"] {
        assert_eq!(text.parse::<BackendUrl>().unwrap().to_string(), text);
    }
    for (text, bad) in [
        ("", BadUrl::NoUrl),
        ("gpu", BadUrl::Scheme),
        ("gpu:11434", BadUrl::Scheme),
        ("ftp://gpu", BadUrl::Scheme),
        ("unix:run/ollama.sock", BadUrl::UnixPath),
        ("unix:/", BadUrl::UnixPath),
        ("https://gpu:0", BadUrl::NoUrl),
        ("https://gpu/ollama", BadUrl::Path),
        ("http://gpu:", BadUrl::NoUrl),
        ("http://gpu:0", BadUrl::NoUrl),
        ("http://gpu:99999", BadUrl::NoUrl),
        ("http://[::1", BadUrl::NoUrl),
        ("http://[nonsense]:1", BadUrl::NoUrl),
        ("http://a$b", BadUrl::NoUrl),
        ("http://gpu/ollama", BadUrl::Path),
        ("http://gpu?x", BadUrl::Path),
        ("http://gpu/#x", BadUrl::Path),
        ("http://user:canary@gpu", BadUrl::UserInfo),
    ] {
        assert_eq!(text.parse::<BackendUrl>(), Err(bad), "{text}");
    }
}

#[test]
fn an_endpoint_is_a_method_and_a_canonical_path() {
    let good = endpoint("GET /api/x").unwrap();
    assert_eq!((good.method, good.path.as_str()), (Method::GET, "/api/x"));
    assert!(endpoint("POST /v1/x:y/z").is_ok());
    for text in [
        "",
        "/api/x",
        "GET",
        "get /api/x",
        "G-T /api/x",
        "GET api/x",
        "GET  /api/x",
        "GET /api/x?y",
        "GET /api/%78",
        "GET /api//x",
        "GET /api/x/",
        "GET /api/../x",
        "GET /api/./x",
        "GET /api\\x",
        "GET /api/x y",
        "GET /api/ü",
        "CONNECT /x",
        "TRACE /x",
        "GET /_portcullis/me",
        "GET /k/KEY",
    ] {
        assert!(endpoint(text).is_err(), "{text}");
    }
}

#[test]
fn an_origin_is_what_a_browser_sends() {
    for (text, sent) in [
        ("https://chat.example.com", "https://chat.example.com"),
        ("https://Chat.Example.COM", "https://chat.example.com"),
        ("https://chat.example.com:443", "https://chat.example.com"),
        ("http://chat.example.com:443", "http://chat.example.com:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("app://obsidian.md", "app://obsidian.md"),
    ] {
        assert_eq!(origin(text).as_deref(), Ok(sent));
    }
    for (text, advice) in [
        ("chat.example.com", "not an origin"),
        ("null", "not an origin"),
        ("https://", "not an origin"),
        ("https://a:canary@b", "not an origin"),
        ("https://a:99999", "not an origin"),
        ("://a", "not an origin"),
        ("https://chat.example.com/", "goes on after the host"),
        ("https://chat.example.com/x", "goes on after the host"),
        ("https://*.example.com", "stands alone"),
    ] {
        let says = origin(text).unwrap_err();
        assert!(says.contains(advice) && !says.contains("canary"), "{text}: {says}");
    }
}

#[test]
fn a_page_for_people_can_be_printed_anywhere() {
    for text in ["https://gate.example.com", "http://10.0.0.1:8880/a?b=c"] {
        assert_eq!(web_page(text).as_deref(), Ok(text));
    }
    for text in [
        "",
        "gate.example.com",
        "ftp://gate",
        "/help",
        "https://user:canary@gate",
        "https://gate/<b>",
        "https://gate/\u{1b}[2J",
        "https://gate/ x",
        "javascript:alert(1)",
    ] {
        assert!(!web_page(text).unwrap_err().contains("canary"), "{text}");
    }
    assert!(web_base("https://gate?x=1").is_err(), "paths are added to it");
}

#[test]
fn a_header_with_a_meaning_of_its_own_carries_no_key() {
    assert_eq!(header("X-My-Key").unwrap(), "x-my-key");
    for name in ["", "x key", "Authorization", "cookie", "Host", "x-forwarded-for", "x:y"] {
        assert!(header(name).is_err(), "{name}");
    }
}

#[test]
fn a_network_may_be_one_address() {
    assert_eq!(network("192.0.2.1").unwrap().to_string(), "192.0.2.1/32");
    assert_eq!(network("fd00::/8").unwrap().to_string(), "fd00::/8");
    for text in ["", "10.0.0.0/33", "10.0.0", "proxy.lan", "10.0.0.0/8,"] {
        assert!(network(text).unwrap_err().contains("10.0.0.0/8"), "{text}");
    }
}

proptest! {
    #[test]
    fn a_whole_number_of_any_unit_is_read_back(number in 0_u64..1 << 20) {
        for (unit, seconds) in [("s", 1), ("m", 60), ("h", 3600), ("d", 86400)] {
            let read = duration(&format!("{number}{unit}"));
            prop_assert_eq!(read, Ok(Duration::from_secs(number * seconds)));
        }
        for (unit, bytes) in [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)] {
            prop_assert_eq!(size(&format!("{number}{unit}")), Ok(number * bytes));
        }
    }

    #[test]
    fn an_accepted_backend_address_makes_a_host_header(text in "http://[!-~]{1,20}") {
        if let Ok(url) = text.parse::<BackendUrl>() {
            prop_assert!(http::HeaderValue::from_str(&url.authority()).is_ok());
            let again: BackendUrl = format!("http://{}", url.authority()).parse().unwrap();
            prop_assert_eq!(again, url);
        }
    }
}
