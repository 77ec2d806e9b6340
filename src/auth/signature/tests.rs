//! Signatures made by `ssh-keygen` keys and by aws-lc-rs, right and wrong in every part.

use std::net::Ipv4Addr;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use proptest::prelude::*;

use super::*;

const NOW: i64 = 1_755_800_000;
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const AWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

struct Client {
    pair: Ed25519KeyPair,
}

impl Client {
    fn new(seed: u8) -> Self {
        Self { pair: Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap() }
    }

    fn coded_key(&self) -> String {
        STANDARD.encode([BEFORE_KEY, self.pair.public_key().as_ref()].concat())
    }

    fn authorization(&self, text: &str) -> String {
        let signature = STANDARD.encode(self.pair.sign(text.as_bytes()).as_ref());
        format!("{}:{signature}", self.coded_key())
    }

    fn sign(&self, text: &str) -> Signed {
        Signed::parse(self.authorization(text).as_bytes()).unwrap()
    }
}

fn keys(text: &str) -> AuthorizedKeys {
    let parsed = AuthorizedKeys::parse(text);
    assert_eq!(parsed.notes, []);
    parsed.content
}

fn asked<'a>(method: &'a str, path: &'a str, ts: &'a str) -> Asked<'a> {
    Asked { method, path, ts }
}

#[test]
fn a_right_signature_names_its_signer() {
    let client = Client::new(1);
    let keys = keys(&format!("ssh-ed25519 {} alice", client.coded_key()));
    let signed = client.sign("POST,/api/chat?ts=1755800000");
    let asked = asked("POST", "/api/chat", "1755800000");
    let signer = keys.check(&signed, &asked, HOME, NOW, &Replays::default()).unwrap();
    assert_eq!(signer.name.as_str(), "alice");
    assert_eq!(signer.endpoints, Endpoints::All);
    assert_eq!(keys.names().collect::<Vec<_>>(), ["alice"]);
}

#[test]
fn every_part_is_covered() {
    let (client, other) = (Client::new(1), Client::new(2));
    let keys = keys(&format!("ssh-ed25519 {} alice", client.coded_key()));
    let replays = Replays::default();
    let text = "POST,/api/chat?ts=1755800000";
    let signed = client.sign(text);
    let check = |signed: &Signed, method, path, ts| {
        keys.check(signed, &asked(method, path, ts), HOME, NOW, &replays).map(drop)
    };
    let bad = Err(SignatureFault::BadSignature);
    assert_eq!(check(&signed, "GET", "/api/chat", "1755800000"), bad);
    assert_eq!(check(&signed, "POST", "/api/tags", "1755800000"), bad);
    assert_eq!(check(&signed, "POST", "/api/chat", "1755800001"), bad);
    assert_eq!(check(&signed, "POST", "/api/chat", "01755800000"), bad);
    let unknown = Err(SignatureFault::UnknownKey);
    assert_eq!(check(&other.sign(text), "POST", "/api/chat", "1755800000"), unknown);
    let mut forged = client.sign(text);
    forged.signature = other.sign(text).signature;
    assert_eq!(check(&forged, "POST", "/api/chat", "1755800000"), bad);
    for bit in 0..512 {
        let mut forged = client.sign(text);
        forged.signature[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(check(&forged, "POST", "/api/chat", "1755800000"), bad, "{bit}");
    }
    // None of these spoilt it for its owner.
    assert_eq!(check(&signed, "POST", "/api/chat", "1755800000"), Ok(()));
}

#[test]
fn the_time_may_be_five_minutes_off() {
    let client = Client::new(1);
    let keys = keys(&format!("ssh-ed25519 {} alice", client.coded_key()));
    let signed = client.sign("HEAD,/?ts=1755800000");
    let asked_now = asked("HEAD", "/", "1755800000");
    let at = |now| keys.check(&signed, &asked_now, HOME, now, &Replays::default()).map(drop);
    for now in [NOW, NOW - 300, NOW + 300] {
        assert_eq!(at(now), Ok(()), "{now}");
    }
    for now in [NOW - 301, NOW + 301, 0, i64::MIN, i64::MAX] {
        assert_eq!(at(now), Err(SignatureFault::BadTime), "{now}");
    }
    for ts in [
        "",
        "x",
        "-1755800000",
        "+1755800000",
        " 1755800000",
        "1755800000.0",
        "9".repeat(30).as_str(),
    ] {
        let signed = client.sign(&format!("HEAD,/?ts={ts}"));
        let fault = keys.check(&signed, &asked("HEAD", "/", ts), HOME, NOW, &Replays::default());
        assert_eq!(fault.unwrap_err(), SignatureFault::BadTime, "{ts}");
    }
}

#[test]
fn a_signature_seen_on_its_way_is_of_no_use_elsewhere_or_later() {
    let client = Client::new(1);
    let keys = keys(&format!("ssh-ed25519 {} alice", client.coded_key()));
    let replays = Replays::default();
    let signed = client.sign("POST,/api/show?ts=1755800000");
    let asked = asked("POST", "/api/show", "1755800000");
    let from = |client, now| keys.check(&signed, &asked, client, now, &replays).map(drop);
    assert_eq!(from(HOME, NOW), Ok(()));
    assert_eq!(from(HOME, NOW), Ok(()));
    assert_eq!(from(AWAY, NOW), Err(SignatureFault::Replayed));
    assert_eq!(from(HOME, NOW + 11), Err(SignatureFault::Replayed));
    assert_eq!(from(HOME, NOW + 301), Err(SignatureFault::BadTime));
}

#[test]
fn a_restricted_key_carries_its_endpoints() {
    let client = Client::new(1);
    let line = format!("ssh-ed25519 {} ci /api/tags,/api/show", client.coded_key());
    let signed = client.sign("GET,/api/tags?ts=1755800000");
    let asked = asked("GET", "/api/tags", "1755800000");
    let signer = keys(&line).check(&signed, &asked, HOME, NOW, &Replays::default()).unwrap();
    assert!(signer.endpoints.allow("/api/tags") && signer.endpoints.allow("/api/show"));
    for path in ["/api/chat", "/api/tags/", "/api/tag", "/", "", "/API/TAGS"] {
        assert!(!signer.endpoints.allow(path), "{path}");
    }
}

/// The public key made by `ssh-keygen`, the signature over the same text by another library
/// (Python's `cryptography`).
#[test]
fn a_key_of_ssh_keygen_verifies() {
    let keys = keys(concat!(
        "ssh-ed25519 ",
        "AAAAC3NzaC1lZDI1NTE5AAAAIDVzO2jT59FyTRrOzNeQE/dp6k3DUHTCinrPiGyzHjP+",
        " someone@example"
    ));
    let authorization = concat!(
        "AAAAC3NzaC1lZDI1NTE5AAAAIDVzO2jT59FyTRrOzNeQE/dp6k3DUHTCinrPiGyzHjP+",
        ":",
        "K5x7L1QYHdWLntaNM3qP3jsedvPPuTdZFoamWaBF+cH03WxaF5PBNShEhxz1VuGBSs7GBtC2RIL8j+BxsC76BQ=="
    );
    let signed = Signed::parse(authorization.as_bytes()).unwrap();
    let asked = asked("HEAD", "/", "1755800000");
    let signer = keys.check(&signed, &asked, HOME, NOW, &Replays::default()).unwrap();
    assert_eq!(signer.name.as_str(), "someone@example");
}

/// Made by the `ollama` program 0.20.0; the last two with an address that had a key in its path.
#[test]
#[rustfmt::skip]
fn what_the_stock_program_signs_verifies() {
    const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIOHrEY9pj9VDWSCCCFtUILBe0ri4U1rg8r51DrEj2aMC";
    let signed = [
        ("HEAD", "/", "1795454355", "tHZxupdfTvjDGsgRkBFId4Mf5HaUkw/sQTBei6tysntLuAG0bKNsyYtsLnAXEjDNVA5MHSRk7HjxPCqPeWBCDg=="),
        ("GET", "/api/tags", "1795454355", "JkJH6mJsTZFoFpQwziqiOnyUFMkOxrMeqWn+78XFzjkQP9NGODHXakPwQ2zoaDQrX1t4K7Vs1yxHy2Yf4b0zBQ=="),
        ("POST", "/api/show", "1795454355", "4OklmTwDfVAfVjUb4KL/duYpeDNMg2YV3zGUiH1sptz/BAOW5gxFYTAVRWnZWOUpxaQmuWxiLoAaaympHZDJCw=="),
        ("POST", "/api/pull", "1795454356", "sFNGMe3j4q7qbaygqI8wu0Eo29cjgFr/NyrIrcDUFD380QLAk5EoQSC0cj3QF96BkEj9xyFp1gbq+1aeUo08Bw=="),
    ];
    let keys = keys(&format!("ssh-ed25519 {KEY} anna\n"));
    for (method, path, ts, signature) in signed {
        let signed = Signed::parse(format!("{KEY}:{signature}").as_bytes()).unwrap();
        let now: i64 = ts.parse().unwrap();
        let check = |method, path| keys.check(&signed, &asked(method, path, ts), HOME, now, &Replays::default());
        assert_eq!(check(method, path).unwrap().name.as_str(), "anna", "{method} {path}");
        assert!(check("DELETE", path).is_err() && check(method, "/api/delete").is_err());
    }
}

#[test]
fn what_is_no_signature_is_none() {
    let whole = Client::new(1).authorization("GET,/?ts=1");
    assert!(Signed::parse(whole.as_bytes()).is_some());
    let (key, signature) = whole.split_once(':').unwrap();
    for wrong in [
        "",
        ":",
        "Basic YTpi",
        key,
        &format!("Bearer {whole}"),
        &format!("{signature}:{key}"),
        &format!("{key}:{signature}:"),
        &format!("{key}:{}", &signature[..86]),
        &format!("{key}:{}", signature.replace("==", "=A")),
        &format!("{}:{signature}", key.replace("AAAAC3", "AAAAC4")),
        &format!(" {whole}"),
    ] {
        assert!(Signed::parse(wrong.as_bytes()).is_none(), "{wrong}");
    }
}

#[test]
fn lines_that_cannot_be_a_signer_are_told() {
    let key = Client::new(1).coded_key();
    for (line, says) in [
        ("* * * /api/tags".to_owned(), "everybody"),
        ("ssh-ed25519 * *".to_owned(), "everybody"),
        (format!("ssh-ed25519 {key} * /api/tags"), "everybody"),
        (format!("* {key} alice"), "everybody"),
        (format!("ssh-rsa {key} alice"), "ssh-ed25519"),
        ("ecdsa-sha2-nistp256 AAAA alice".to_owned(), "ssh-ed25519"),
        (format!("command=\"x\" ssh-ed25519 {key} alice"), "ssh-ed25519"),
        (key.clone(), "ssh-ed25519"),
        ("ssh-ed25519".to_owned(), "no key"),
        ("ssh-ed25519 !!! alice".to_owned(), "base64"),
        (format!("ssh-ed25519 {} alice", &key[..64]), "whole ssh-ed25519"),
        (format!("ssh-ed25519 {key}AAAA alice"), "whole ssh-ed25519"),
        (format!("ssh-ed25519 {key} a/b"), "a / in the name"),
        (format!("ssh-ed25519 {key} Alice Smith"), "begins with /"),
        (format!("ssh-ed25519 {key} alice /api/tags,"), "begins with /"),
        (format!("ssh-ed25519 {key} alice /api/tags,*"), "begins with /"),
        (format!("ssh-ed25519 {key} alice /api/*"), "exact"),
        (format!("ssh-ed25519 {key} alice /api/tags /api/show"), "four fields"),
    ] {
        let parsed = AuthorizedKeys::parse(&format!("# who\n{line}\n"));
        assert_eq!(parsed.entries, 0, "{line}");
        assert_eq!((parsed.notes[0].line, parsed.notes[0].skipped), (2, true));
        assert!(parsed.notes[0].says.contains(says), "{line}: {}", parsed.notes[0].says);
        assert!(!parsed.notes[0].says.contains("alice"), "{line}");
    }
}

#[test]
fn the_first_line_of_a_key_counts_and_a_name_may_have_several() {
    let (one, two) = (Client::new(1).coded_key(), Client::new(2).coded_key());
    let text = format!(
        "ssh-ed25519 {one} alice *\r\nssh-ed25519 {one} bob\r\n\tssh-ed25519\t{two}  alice \r\n"
    );
    let parsed = AuthorizedKeys::parse(&text);
    assert_eq!(parsed.entries, 2);
    assert_eq!(parsed.notes.iter().map(|note| note.line).collect::<Vec<_>>(), [2]);
    assert_eq!(parsed.content.names().collect::<Vec<_>>(), ["alice", "alice"]);
}

#[test]
fn a_key_without_a_name_is_called_by_its_digest() {
    let key = Client::new(1).coded_key();
    let parsed = AuthorizedKeys::parse(&format!("ssh-ed25519 {key}"));
    let digest: [u8; 32] = Sha256::digest(STANDARD.decode(&key).unwrap()).into();
    let digest = digest.map(|b| format!("{b:02x}")).concat();
    assert_eq!(parsed.content.names().collect::<Vec<_>>(), [format!("key-{}", &digest[..8])]);
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>(), value in any::<Vec<u8>>()) {
        let parsed = AuthorizedKeys::parse(&text);
        prop_assert!(parsed.notes.len() <= 21);
        let _ = AuthorizedKeys::parse(&format!("ssh-ed25519 {text}"));
        let _ = Signed::parse(&value);
        let _ = Signed::parse(&[text.as_bytes(), b":", &value].concat());
    }

    #[test]
    fn exactly_the_good_lines_count(
        seeds in prop::collection::btree_set(any::<u8>(), 1..10),
        junk in prop::collection::vec(
            prop::sample::select(vec!["# x", "", "*", "* * *", "ssh-rsa AAAA x", "ssh-ed25519 AAAA", "ä", "a\rb"]),
            0..10,
        ),
        place in any::<prop::sample::Index>(),
    ) {
        let mut lines: Vec<String> = seeds
            .iter()
            .map(|seed| format!("ssh-ed25519 {} n{seed}", Client::new(*seed).coded_key()))
            .collect();
        for (at, junk) in junk.into_iter().enumerate() {
            let at = (place.index(89) * (at + 1)) % (lines.len() + 1);
            lines.insert(at, junk.to_owned());
        }
        let parsed = AuthorizedKeys::parse(&lines.join("\n"));
        prop_assert_eq!(parsed.entries, seeds.len());
        for seed in seeds {
            let signed = Client::new(seed).sign("GET,/?ts=1755800000");
            let asked = asked("GET", "/", "1755800000");
            let signer = parsed.content.check(&signed, &asked, HOME, NOW, &Replays::default());
            prop_assert_eq!(signer.unwrap().name.to_string(), format!("n{seed}"));
        }
    }
}
