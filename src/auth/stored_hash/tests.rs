//! Vectors made by other programs, and what is refused.

use proptest::prelude::*;

use super::*;

const LONG: &str = "a longer password of more than sixteen and even sixty-four bytes in all, yes";

/// Password `secret` unless said otherwise; made by openssl 3.0, Perl's `crypt` (libxcrypt 4.4),
/// `htpasswd` 2.4 and argon2-cffi 25.1.
const VECTORS: &[(&str, &str, &str)] = &[
    ("bcrypt", "secret", "$2y$05$QsDzzqx2JL2PXkJlSL9zQ.It9Nlm0SqTc9fYZcl0Z31J5rlWBF9lC"),
    ("bcrypt", "secret", "$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW"),
    ("bcrypt", "secret", "$2a$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"),
    ("bcrypt", "secret", "$2x$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"),
    ("apr1", "secret", "$apr1$/tenz12X$OqYbweJ1sVSbdLSDdzMe7."),
    ("apr1", "", "$apr1$saLt/.9z$.iLJ/q9422MyTFjnDr4Mo1"),
    ("apr1", LONG, "$apr1$saLt/.9z$C2soHVyP6mTty.erhtcgq0"),
    ("md5-crypt", "secret", "$1$saLt/.9z$HYBaNRfaqIEYJ.BrhAb9X0"),
    ("md5-crypt", "pässwört", "$1$saLt/.9z$1FaMNSQBQ424JIIPgvHkO/"),
    ("md5-crypt", "secret", "$1$$ysVNzQc4CTMkp5daOdZ.3/"),
    ("{SHA}", "secret", "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ="),
    ("{SHA}", "secret", "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ"),
    ("DES crypt", "secret", "PSlSumH/TvYvk"),
    ("DES crypt", "pl5TNrY", "EGH/C4v72NFSk"),
    ("sha256-crypt", "secret", "$5$wpwaXgeHOQ6yjlsH$TwosPnuaFU8fW2WfBlb9KL7MDXbL81rC7hUTqLjjc24"),
    ("sha256-crypt", "pässwört", "$5$saLt/.9z$wbMWrAeSeguVdlEHtKIaYhCTyJaB7Hxb6r5QX8Dgg2/"),
    ("sha256-crypt", LONG, "$5$saLt/.9z$a0ArbYjxahX5hcETmv1oxr9h/qwlhYXHrKpH9mTeuG5"),
    (
        "sha256-crypt",
        "secret",
        "$5$rounds=12345$longsaltlongsalt$//FObeWQ/ZHtEiSPu4RE5CCLX8UyVOcHPR3xaxCTPZ/",
    ),
    (
        "sha512-crypt",
        "secret",
        "$6$TPyUzLig3AiIUfQO$.2/RUGO5gGlx2PsfhHqUe68tHJ0v5bQGibO38NbGyrkeRHKAr71L9mmXk76/w00qs6cTA0GM2UnfFBudUf./y0",
    ),
    (
        "sha512-crypt",
        LONG,
        "$6$saLt/.9z$yNbwxa8L9oAK0gmyKaj1C5nrkBMfRTQCXRitNhvercqdoo2wweq7G7IhG2MlqWh/tgnSxQZ/ZZdRpxAXUHXwW/",
    ),
    (
        "sha512-crypt",
        "secret",
        "$6$rounds=1000$saltstring$2BkAo106CG84raQcWpAlhyy6TSSkAsL1nfvBCoezLYyerUzY2l8axTvq6NynEt7SQAx3/cdop9ds0po8uaeHq0",
    ),
    (
        "sha512-crypt",
        "secret",
        "$6$$2M9DchxW4txWyTYoZrH9D3VvAAQxBpEezYsLY6Cao.jwzEXpyL9xwip9hiUZX7GqTqe/E/z6iKvZqXUuqniQH.",
    ),
    (
        "argon2",
        "secret",
        "$argon2id$v=19$m=64,t=2,p=2$c2FsdFNBTFQ$RzHtE7ck7lpDc46QpQwe6nfapy0240VHz64Yns53JOM",
    ),
    (
        "argon2",
        "secret",
        "$argon2i$v=19$m=64,t=2,p=2$c2FsdFNBTFQ$N1Ac6MBFseEWS4D7ALEJiQffj5rOf5giCY5gxYyW/M0",
    ),
    (
        "argon2",
        "secret",
        "$argon2d$v=19$m=64,t=2,p=2$c2FsdFNBTFQ$XPTw4jZ9U1XE69yS1QOiiS+ZEkwg8jwd55HiaBh+Lic",
    ),
    (
        "argon2",
        "secret",
        "$argon2id$v=19$m=64,t=1,p=1$c2FsdFNBTFRzYWx0U0FMVA$GpqrZPMDJaIjYGzhq9H9MQ",
    ),
    (
        "argon2",
        "secret",
        "$argon2id$v=16$m=64,t=2,p=1$c2FsdFNBTFQ$QMbU1xALz0sfvJaTvwErU58bnW/u0NpB9jBshGvygbA",
    ),
    // Without a version it is the first one, 16.
    (
        "argon2",
        "secret",
        "$argon2id$m=64,t=2,p=1$c2FsdFNBTFQ$QMbU1xALz0sfvJaTvwErU58bnW/u0NpB9jBshGvygbA",
    ),
    (
        "yescrypt",
        "secret",
        "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$GmcwIgvdUC9qLWcKCi6gklUa1dM3ziD43YxYNURLKy0",
    ),
    (
        "yescrypt",
        "secret",
        "$y$j75$saltSALTsaltSALT.saLt.$c6zUHsNW0GLOVDskELXvsh9BXy1v1j7nkc2lZhef2QD",
    ),
    (
        "yescrypt",
        "secret",
        "$y$j85$F5Jx5fExrKuPp53xLKQ..1$VE3SeUlYnr4Jqa9EQPVgvZtC8aIrhPKtnKby91QyD//",
    ),
    (
        "yescrypt",
        "secret",
        "$y$jAT$F5Jx5fExrKuPp53xLKQ..1$YF8nql2X4nczYTbljZjZtQLdLHV2U4Y/iWtcF/j01b9",
    ),
    ("plain text", "secret", "{PLAIN}secret"),
    ("plain text", "two words ", "{PLAIN}two words "),
];

#[test]
fn hashes_of_other_programs_verify() {
    for (format, password, text) in VECTORS {
        let stored = StoredHash::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"));
        assert_eq!(stored.format(), *format, "{text}");
        assert_eq!(stored.text(), *text);
        assert!(stored.verify(password.as_bytes()), "{text}");
        for wrong in ["Secret", "secre", "x", &format!("{password}!")] {
            let cut = (*format == "DES crypt" && password.len() >= 8) || *wrong == **password;
            assert!(cut || !stored.verify(wrong.as_bytes()), "{text} {wrong}");
        }
        assert!(stored.cost() >= 1000, "{text}");
    }
}

#[test]
fn salted_sha1_verifies_with_any_salt() {
    for salt in [&b""[..], b"salt", b"a salt of twenty bytes"] {
        let digest = Sha1::new().chain_update(b"secret").chain_update(salt).finalize();
        let coded = base64::engine::general_purpose::STANDARD.encode([&digest[..], salt].concat());
        for coded in [coded.as_str(), coded.trim_end_matches('=')] {
            let stored = StoredHash::parse(&format!("{{SSHA}}{coded}")).unwrap();
            assert_eq!(stored.format(), "{SSHA}");
            assert!(stored.verify(b"secret") && !stored.verify(b"Secret"));
        }
    }
}

#[test]
fn blanks_behind_a_hash_are_ignored() {
    assert!(StoredHash::parse("PSlSumH/TvYvk \t").unwrap().verify(b"secret"));
}

#[test]
fn long_passwords_and_nul_never_verify() {
    let just = "p".repeat(256);
    let stored = StoredHash::parse(&format!("{{PLAIN}}{just}")).unwrap();
    assert!(stored.verify(just.as_bytes()));
    let over = "p".repeat(257);
    let stored = StoredHash::parse(&format!("{{PLAIN}}{over}")).unwrap();
    assert!(!stored.verify(over.as_bytes()));
    // "secret" and what bcrypt and DES would take for the same.
    for text in ["PSlSumH/TvYvk", "$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW"] {
        assert!(!StoredHash::parse(text).unwrap().verify(b"secret\0"));
    }
}

#[test]
fn bcrypt_looks_at_72_bytes_as_apache_does() {
    let text = "$2y$04$J75.HHigjyp4j0.zm8R4nuVrFO3wu7nqEtKni0asIMDUzIYQQm1Dm";
    let stored = StoredHash::parse(text).unwrap();
    assert!(stored.verify(&[b'x'; 72]));
    assert!(stored.verify(&[b'x'; 80]));
    assert!(!stored.verify(&[b'x'; 71]));
}

#[test]
fn the_faulty_bcrypt_verifies_ascii_only() {
    let made = StoredHash::new_bcrypt("pässwört".as_bytes(), 4).unwrap();
    assert!(StoredHash::parse(&made).unwrap().verify("pässwört".as_bytes()));
    let faulty = made.replace("$2y$", "$2x$");
    assert!(!StoredHash::parse(&faulty).unwrap().verify("pässwört".as_bytes()));
}

#[test]
fn few_rounds_are_a_thousand() {
    let text = "$6$rounds=10$saltstring$2BkAo106CG84raQcWpAlhyy6TSSkAsL1nfvBCoezLYyerUzY2l8axTvq6NynEt7SQAx3/cdop9ds0po8uaeHq0";
    assert!(StoredHash::parse(text).unwrap().verify(b"secret"));
}

#[test]
fn what_would_stall_the_machine_is_refused() {
    let fail = |text: &str| StoredHash::parse(text).unwrap_err().to_string();
    let bcrypt =
        |cost: &str| format!("$2y${cost}$QsDzzqx2JL2PXkJlSL9zQ.It9Nlm0SqTc9fYZcl0Z31J5rlWBF9lC");
    assert!(StoredHash::parse(&bcrypt("16")).is_ok());
    assert_eq!(fail(&bcrypt("31")), "bcrypt cost 31 would stall the machine; 16 is the most");
    assert!(fail(&bcrypt("17")).contains("cost 17"));
    assert!(fail(&bcrypt("99")).contains("cost 99"));
    assert!(fail(&bcrypt("03")).contains("not a whole bcrypt"));
    let sha = |rounds: &str| {
        format!("$5$rounds={rounds}$salt$6nRdl5g2odl/TpiUePiXYIraXGGFILtkg2AyYY0dpP6")
    };
    assert!(StoredHash::parse(&sha("1000000")).is_ok());
    assert!(fail(&sha("1000001")).contains("1000001 rounds"));
    assert!(fail(&sha("99999999999999999999999")).contains("rounds would stall"));
    for wrong in ["", "x", "-5", "+5000"] {
        assert!(fail(&sha(wrong)).contains("not a whole"), "{wrong}");
    }
    let argon = |params: &str| {
        format!("$argon2id$v=19${params}$c2FsdFNBTFQ$RzHtE7ck7lpDc46QpQwe6nfapy0240VHz64Yns53JOM")
    };
    assert!(StoredHash::parse(&argon("m=262144,t=16,p=4")).is_ok());
    assert!(fail(&argon("m=262145,t=1,p=1")).contains("262145 KiB"));
    assert!(fail(&argon("m=262144,t=17,p=1")).contains("17 passes"));
    assert!(fail(&argon("m=64,t=4294967295,p=1")).contains("passes"));
    for wrong in ["m=7,t=1,p=1", "m=64,t=0,p=1", "m=262144,t=1,p=65", "m=9999999999999,t=1,p=1"] {
        assert!(fail(&argon(wrong)).contains("argon2"), "{wrong}");
    }
    let yes = |params: &str| {
        format!("$y${params}$F5Jx5fExrKuPp53xLKQ..1$GmcwIgvdUC9qLWcKCi6gklUa1dM3ziD43YxYNURLKy0")
    };
    assert!(StoredHash::parse(&yes("jDT")).is_ok());
    assert!(fail(&yes("jET")).contains("512 MiB"));
    assert!(fail(&yes("jzT")).contains("yescrypt"));
    assert!(fail(&yes("j9zzzzzz")).contains("yescrypt"));
    for wrong in ["", "j", "j9", "j9T9", "j95.0", "l9T", "j9T "] {
        assert!(fail(&yes(wrong)).contains("yescrypt"), "{wrong}");
    }
}

#[test]
fn what_is_no_hash_is_refused_without_showing_it() {
    for text in [
        "",
        " ",
        "{PLAIN}",
        "hunter2secret",
        "hunter2",
        "!$6$x",
        "*",
        "{MD5}5en6G6MezRroT3XKqkdPOg==",
        "{SHA}hunter2",
        "{SSHA}5en6G6Mez",
        "$7$hunter2",
        "$gy$j9T$hunter2",
        "$",
        "$$",
        "$1$hunter2",
        "$1$salt$HYBaNRfaqIEYJ.BrhAb9X",
        "$1$salt$HYBaNRfaqIEYJ.BrhAb9X0x",
        "$apr1$salt$HYBaNRfaqIEYJ.BrhAb9Xä",
        "$5$saLt/.9z$hunter2",
        "$6$hunter2",
        "$6$saLt/.9z$6nRdl5g2odl/TpiUePiXYIraXGGFILtkg2AyYY0dpP6",
        "$2y$05$hunter2",
        "$2z$05$QsDzzqx2JL2PXkJlSL9zQ.It9Nlm0SqTc9fYZcl0Z31J5rlWBF9lC",
        "$argon2id$v=19$m=64,t=2,p=2$c2FsdFNBTFQ",
        "$argon2id$v=18$m=64,t=2,p=2$c2FsdFNBTFQ$RzHtE7ck7lpDc46QpQwe6nfapy0240VHz64Yns53JOM",
        "$argon2x$v=19$m=64,t=2,p=2$c2FsdFNBTFQ$RzHtE7ck7lpDc46QpQwe6nfapy0240VHz64Yns53JOM",
        "$y$j9T$hunter2",
        "$y$j75$$2ydGyJY.m3lesWesWhmcrVX27GKM4AqNwOMJADwvhjB",
        "_J9..hunter2secret..",
    ] {
        let why = StoredHash::parse(text).unwrap_err();
        let said = format!("{why} {why:?}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    assert_eq!(StoredHash::parse("hunter2").unwrap_err(), Unusable::LooksPlain);
    assert_eq!(StoredHash::parse("hunter2secreb").unwrap_err(), Unusable::LooksPlain);
}

#[test]
fn a_stored_hash_is_small_and_does_not_show_itself() {
    assert!(size_of::<Option<StoredHash>>() <= 24);
    let shown = format!("{:?}", StoredHash::parse("{PLAIN}secret").unwrap());
    assert_eq!(shown, r#"StoredHash("plain text")"#);
}

#[test]
fn weak_hashes_are_known() {
    let weak: Vec<_> = VECTORS
        .iter()
        .filter(|(_, _, text)| StoredHash::parse(text).unwrap().weak())
        .map(|(format, _, _)| *format)
        .collect();
    let expected = ["apr1", "md5-crypt", "{SHA}", "DES crypt", "plain text"];
    assert!(weak.iter().all(|format| expected.contains(format)));
    assert!(expected.iter().all(|format| weak.contains(format)));
}

#[test]
fn a_new_hash_verifies_and_odd_passwords_get_none() {
    let longest = [b'x'; 72];
    for password in [&b"secret"[..], &longest, "pässwört".as_bytes()] {
        let made = StoredHash::new_bcrypt(password, 4).unwrap();
        assert!(made.starts_with("$2y$04$"));
        let stored = StoredHash::parse(&made).unwrap();
        assert!(stored.verify(password) && !stored.verify(b"other"));
    }
    assert!(matches!(StoredHash::new_bcrypt(b"", 4), Err(Unhashable::Empty)));
    assert!(matches!(StoredHash::new_bcrypt(b"a\0b", 4), Err(Unhashable::Nul)));
    assert!(matches!(StoredHash::new_bcrypt(&[b'x'; 73], 4), Err(Unhashable::TooLong(73))));
    for cost in [0, 3, 17, 31, u32::MAX] {
        assert!(matches!(StoredHash::new_bcrypt(b"secret", cost), Err(Unhashable::Cost)));
    }
}

/// Parameters that no crypt writes must not bring down the crate that checks them.
#[test]
fn every_small_yescrypt_is_checked_or_refused() {
    let digits = crate::auth::crypt_md5::DIGITS;
    for n in digits.iter().take(12) {
        for r in digits.iter().take(40) {
            let text = format!(
                "$y$j{}{}$F5Jx5fExrKuPp53xLKQ..1$GmcwIgvdUC9qLWcKCi6gklUa1dM3ziD43YxYNURLKy0",
                char::from(*n),
                char::from(*r)
            );
            if let Ok(stored) = StoredHash::parse(&text)
                && stored.cost() < 5_000_000
            {
                assert!(!stored.verify(b"secret"), "{text}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_text_panics(text in any::<String>(), password in any::<Vec<u8>>()) {
        if let Ok(stored) = StoredHash::parse(&text) && stored.cost() < 20_000_000 {
            let _ = stored.verify(&password);
        }
    }

    #[test]
    fn no_broken_hash_panics(
        (index, at) in (0..VECTORS.len(), any::<prop::sample::Index>()),
        put in "[$./0-9A-Za-z=,ä{}]{0,3}",
        cut in 0..3_usize,
    ) {
        let mut chars: Vec<char> = VECTORS[index].2.chars().collect();
        let from = at.index(chars.len());
        let to = (from + cut).min(chars.len());
        chars.splice(from..to, put.chars());
        let text: String = chars.into_iter().collect();
        if let Ok(stored) = StoredHash::parse(&text) && stored.cost() < 5_000_000 {
            let _ = stored.verify(b"secret");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_was_hashed_verifies_and_nothing_else(
        password in "[ -~]{1,40}",
        other in "[ -~]{1,40}",
        salt in "[./0-9A-Za-z]{8}",
        des_salt in "[./0-9A-Za-z]{2}",
    ) {
        for magic in ["$1$", "$apr1$"] {
            let made = md5_crypt(magic, password.as_bytes(), salt.as_bytes());
            let text = format!("{magic}{salt}${}", String::from_utf8(made).unwrap());
            let stored = StoredHash::parse(&text).unwrap();
            prop_assert!(stored.verify(password.as_bytes()));
            prop_assert_eq!(stored.verify(other.as_bytes()), other == password);
        }
        let salt = crypt_des::salt(des_salt.as_bytes()).unwrap();
        let made = crypt_des::des_crypt(password.as_bytes(), salt);
        let stored = StoredHash::parse(&format!("{des_salt}{}", String::from_utf8(made).unwrap())).unwrap();
        prop_assert!(stored.verify(password.as_bytes()));
        let alike = password.chars().take(8).eq(other.chars().take(8));
        prop_assert_eq!(stored.verify(other.as_bytes()), alike);
    }
}
