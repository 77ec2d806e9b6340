//! Managed keys: a change by whatever process counts from the next request on.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis::config::{Models, Pattern, Role, Rule};
use portcullis::store::{
    Actor, Finding, KeyDetails, KeyForm, KeyRing, KeyState, ManagedKey, Secret, Store,
};
use sha2::{Digest, Sha256};

use crate::events::events;
use crate::house::{Backend, House, KEY, until};
use crate::machine::{Machine, code_in};

fn by() -> Actor {
    Actor { who: "cli:tester".to_owned(), client: None }
}

fn named(name: &str) -> KeyDetails {
    KeyDetails { name: name.to_owned(), role: Some(Role::User), ..KeyDetails::default() }
}

async fn house(backend: &Backend) -> House {
    House::with(backend, |config, folder| {
        config.data_dir = Some(folder.path().join("data"));
        config.failed_attempts_per_minute = 0;
    })
    .await
}

/// As a command in another process has it.
fn other(house: &House) -> Store {
    Store::open_existing(&house.file("data")).unwrap()
}

fn get(key: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {key}\r\n\r\n")
}

fn made(store: &Store, name: &str) -> (ManagedKey, Secret) {
    store.create_key(named(name), &by()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_counts_for_the_next_request_also_on_a_kept_connection() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let store = other(&house);
    let mut caller = house.connect().await;
    for round in 0..10 {
        let (key, secret) = made(&store, &format!("bot{round}"));
        let mut asked = async || {
            caller.send(get(secret.as_str(), "/api/tags")).await;
            caller.answer().await.status
        };
        assert_eq!(asked().await, 200, "created");
        store.set_key_state(key.id, KeyState::Disabled, &by()).unwrap();
        assert_eq!(asked().await, 401, "disabled");
        store.set_key_state(key.id, KeyState::Active, &by()).unwrap();
        assert_eq!(asked().await, 200, "enabled");
        let (_, next) = store.rotate_key(key.id, Duration::from_secs(60), &by()).unwrap();
        assert_eq!(asked().await, 200, "rotated, in the time of both");
        store.set_key_state(key.id, KeyState::Revoked, &by()).unwrap();
        assert_eq!(asked().await, 401, "revoked");
        assert_eq!(house.ask(get(next.as_str(), "/api/tags")).await.status, 200, "what came after");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_it_is_and_what_they_may_do_comes_from_the_key() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let store = other(&house);
    let owned = KeyDetails { owner: Some("bert".to_owned()), ..named("bot") };
    let (_, user) = store.create_key(owned, &by()).unwrap();
    let me = house.ask(get(user.as_str(), "/_portcullis/me")).await.json();
    assert_eq!((&me["name"], &me["role"]), (&"bert".into(), &"user".into()));
    let delete = |key: &Secret| {
        let key = key.as_str();
        format!(
            "DELETE /api/delete HTTP/1.1\r\nHost: gate\r\nx-api-key: {key}\r\n\
             Content-Length: 13\r\n\r\n{{\"model\":\"x\"}}"
        )
    };
    assert_eq!(house.ask(delete(&user)).await.code(), "forbidden");
    // Without a role of its own it has the one of the configuration: operator, where none is said.
    let inherits = KeyDetails { role: None, ..named("carl") };
    let (_, operator) = store.create_key(inherits, &by()).unwrap();
    assert_eq!(house.ask(delete(&operator)).await.status, 200);
    for seen in backend.seen() {
        assert!(!seen.head.contains("pc_"), "{}", seen.head);
    }
    for line in house.lines().await {
        assert!(!line.to_string().contains("pc_"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_names_keys_by_their_ids_or_by_their_names() {
    let backend = Backend::ok().await;
    let mut secrets = Vec::new();
    let house = House::with(&backend, |config, folder| {
        let data = folder.path().join("data");
        let store = Store::open(&data).unwrap();
        // Two of one name are told apart by the id.
        let all = ["bot", "bot", "lab1"].map(|name| made(&store, name));
        let rule = |keys: &str, models: &str| Rule {
            keys: Some(vec![Pattern::new(keys)]),
            models: Models::Only(vec![models.parse().unwrap()]),
            ..Rule::default()
        };
        config.data_dir = Some(data);
        config.rules = vec![
            rule(all[0].0.id.as_str(), "small*"),
            rule("lab*", "big*"),
            Rule { cloud: true, ..Rule::default() },
        ];
        secrets.extend(all.map(|(_, secret)| secret));
    })
    .await;
    for (secret, small, big) in
        [(&secrets[0], 200, 403), (&secrets[1], 200, 200), (&secrets[2], 403, 200)]
    {
        for (model, status) in [("small", small), ("big", big)] {
            let body = format!("{{\"model\":\"{model}\"}}");
            let ask = format!(
                "POST /api/chat HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {}\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                secret.as_str(),
                body.len()
            );
            assert_eq!(house.ask(ask).await.status, status, "{model}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_a_key_the_caller_hears_the_same() {
    let events = events();
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let store = other(&house);
    let (revoked, one) = made(&store, "revoked");
    store.set_key_state(revoked.id, KeyState::Revoked, &by()).unwrap();
    let (disabled, two) = made(&store, "disabled");
    store.set_key_state(disabled.id, KeyState::Disabled, &by()).unwrap();
    let nets = Some(vec!["192.0.2.0/24".parse().unwrap()]);
    let elsewhere = KeyDetails { networks: nets, ..named("elsewhere") };
    let (elsewhere, three) = store.create_key(elsewhere, &by()).unwrap();
    let past = jiff::Timestamp::now() - Duration::from_secs(5);
    let expired = KeyDetails { expires: Some(past), ..named("expired") };
    let (expired, four) = store.create_key(expired, &by()).unwrap();
    let (rotated, five) = made(&store, "rotated");
    store.rotate_key(rotated.id, Duration::ZERO, &by()).unwrap();
    let unknown = Secret::draw().unwrap();
    let mut told = Vec::new();
    for secret in [&one, &two, &three, &four, &five, &unknown] {
        let answer = house.ask(get(secret.as_str(), "/api/tags")).await;
        assert_eq!(answer.code(), "bad_credentials");
        told.push(answer.text());
    }
    told.dedup();
    assert_eq!(told.len(), 1, "{told:?}");
    // Whoever runs the gate hears which it was.
    for (key, secret, why) in [
        (&revoked, &one, "revoked"),
        (&disabled, &two, "disabled"),
        (&elsewhere, &three, "wrong network"),
        (&expired, &four, "expired"),
        (&rotated, &five, "rotated"),
    ] {
        let (id, name) = (key.id, &key.details.name);
        let line = format!(
            "a managed key was refused key=\"{id}\" name=\"{name}\" why=\"{why}\" client=127.0.0.1"
        );
        until(&line, || events.text().contains(&line).then_some(())).await;
        assert!(!events.text().contains(secret.as_str()));
    }
    let whole = unknown.as_str();
    let miscopied = house.ask(get(&whole[..whole.len() - 1], "/api/tags")).await;
    assert!(miscopied.text().contains("copy it again"), "{}", miscopied.text());
    assert_eq!(miscopied.code(), "bad_credentials");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_the_file_and_in_the_store_goes_by_the_file() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let store = other(&house);
    let (key, secret) = made(&store, "managed");
    let name = async || {
        let me = house.ask(get(secret.as_str(), "/_portcullis/me")).await;
        (me.status == 200).then(|| me.json()["name"].as_str().unwrap().to_owned())
    };
    assert_eq!(name().await.as_deref(), Some("managed"));
    let line = format!("{KEY} # anna\n{} # filed\n", secret.as_str());
    std::fs::write(house.file("api_keys.txt"), line).unwrap();
    assert_eq!(name().await.as_deref(), Some("filed"));
    store.set_key_state(key.id, KeyState::Revoked, &by()).unwrap();
    assert_eq!(name().await.as_deref(), Some("filed"));
    std::fs::write(house.file("api_keys.txt"), format!("{KEY} # anna\n")).unwrap();
    assert_eq!(name().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_vanishes_is_an_alarm_and_not_an_open_or_a_closed_door() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let store = other(&house);
    let (_, known) = made(&store, "known");
    assert_eq!(house.ask(get(known.as_str(), "/api/tags")).await.status, 200);
    let (_, unread) = made(&store, "unread");
    let (file, away) = (house.file("data/portcullis.db"), house.file("away"));
    std::fs::rename(&file, &away).unwrap();
    // There is a change that nobody can read, and this key may be what it is about.
    let answer = house.ask(get(unread.as_str(), "/api/tags")).await;
    assert_eq!((answer.status, answer.code()), (503, "overloaded".to_owned()));
    assert!(answer.header("retry-after").is_some());
    assert_eq!(house.ask(get(known.as_str(), "/api/tags")).await.status, 200);
    assert_eq!(house.ask(get(KEY, "/api/tags")).await.status, 200);
    let alarms = async || {
        let ready = house.ask("GET /_portcullis/ready HTTP/1.1\r\nHost: gate\r\n\r\n").await;
        ready.json()["alarms"].as_u64().unwrap()
    };
    let managed = house.gateway.managed().unwrap();
    until("the alarm", || managed.trouble()).await;
    assert_eq!(alarms().await, 1);
    assert!(!Path::new(&file).exists(), "no empty store in its place");
    std::fs::rename(&away, &file).unwrap();
    until("the end of it", || managed.trouble().is_none().then_some(())).await;
    assert_eq!(house.ask(get(unread.as_str(), "/api/tags")).await.status, 200);
    assert_eq!(alarms().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_the_keys_and_who_used_them() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let store = other(&house);
    let (key, secret) = made(&store, "bot");
    assert_eq!(house.ask(get(secret.as_str(), "/api/tags")).await.status, 200);
    house.gateway.reload(house.gateway.state().config().clone()).unwrap();
    assert_eq!(house.ask(get(secret.as_str(), "/api/tags")).await.status, 200);
    house.gateway.managed().unwrap().keep_uses(Instant::now());
    let used = store.find_keys(key.id.as_str()).unwrap()[0].used.unwrap();
    assert_eq!(used.from.to_string(), "127.0.0.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_knocks_is_told_a_code_and_is_let_in_by_it() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let laptop = Machine::new(1);
    let refused = house.ask(laptop.asks("/api/tags", 0)).await;
    assert_eq!((refused.status, refused.code()), (401, "bad_credentials".to_owned()));
    let code = code_in(&refused.text()).unwrap();
    // Whatever the CLI prints of it, the code is in it.
    for field in ["error", "status", "signin_url"] {
        let told = refused.json()[field].as_str().unwrap().to_owned();
        assert!(told.contains(&code), "{field}: {told}");
    }
    assert_eq!(code_in(&house.ask(laptop.asks("/api/ps", 1)).await.text()), Some(code.clone()));

    // Nobody else is told: a forged signature, another time, no login, a wrong key.
    let other = Machine::new(2).asks("/api/tags", 0);
    let signature = other.split(':').nth(2).unwrap().split("\r\n").next().unwrap();
    let mut forged = laptop.asks("/api/tags", 2);
    let from = forged.find("Authorization: ").unwrap();
    let colon = from + 16 + forged[from + 16..].find(':').unwrap();
    forged.replace_range(colon + 1.., &format!("{signature}\r\n\r\n"));
    let nobody = "GET /api/tags HTTP/1.1\r\nHost: gate\r\n\r\n".to_owned();
    for request in [forged, laptop.asks("/api/tags", 1000), nobody, get("wrong", "/api/tags")] {
        let answer = house.ask(&request).await;
        assert_eq!(answer.status, 401, "{request}");
        assert_eq!(code_in(&answer.text()), None, "{request}");
        assert!(!answer.text().contains(&code), "{request}");
    }

    let memory = house.gateway.memory();
    let store = house.gateway.managed().unwrap().store();
    let enrol = |code: &str, name| memory.enrol(code, named(name), &by(), Instant::now());
    assert!(enrol("ABCD-2345", "laptop").unwrap_err().to_string().contains("ask again"));
    assert!(enrol(&code, "a/b").unwrap_err().is_askers(), "and the code stays good");
    let key = enrol(&code.to_lowercase(), "laptop").unwrap();
    assert!(enrol(&code, "laptop").is_err(), "good once");
    let me = house.ask(laptop.asks("/_portcullis/me", 3)).await;
    assert_eq!(me.json()["name"], "laptop", "{}", me.text());
    // A signature lets in once from anywhere else than where it was seen; and revoked is revoked.
    store.set_key_state(key.id, KeyState::Revoked, &by()).unwrap();
    let revoked = house.ask(laptop.asks("/api/tags", 4)).await;
    assert_eq!((revoked.status, code_in(&revoked.text())), (401, None));
    assert!(!std::fs::exists(house.file("authorized_keys")).unwrap());
}

/// How many keys there are; `PORTCULLIS_KEYS=1000000` for the promise of the whole.
fn many() -> u32 {
    std::env::var("PORTCULLIS_KEYS").map_or(5_000, |count| count.parse().unwrap())
}

fn digest_of(number: u32) -> [u8; 32] {
    Sha256::digest(format!("sk-{number}")).into()
}

/// Bytes that this process has in memory.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn every_one_of_many_keys_is_found_after_a_start_and_after_a_change() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(folder.path()).unwrap());
    let all = (0..many()).map(|n| (digest_of(n), named(&format!("name{n}")))).collect();
    store.import_keys(all, &by()).unwrap();
    let (before, began) = (resident(), Instant::now());
    let ring = Arc::new(KeyRing::open(Arc::clone(&store)).unwrap());
    let told = format!(
        "\n{} keys read in {} ms, {} bytes each\n",
        ring.len(),
        began.elapsed().as_millis(),
        resident().saturating_sub(before) / u64::from(many()),
    );
    // Past the test's captured output, so that it is seen.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), told.as_bytes());
    let from = [192, 0, 2, 1].into();
    let (_, secret) = made(&store, "late");
    for number in (0..many()).step_by(7) {
        let found = ring.find(&digest_of(number), KeyForm::Secret, from, Instant::now()).await;
        let Finding::Good(held) = found else { panic!("{number}: {found:?}") };
        assert_eq!(*held.identity, *format!("name{number}"));
    }
    let late = ring.find(&secret.digest(), KeyForm::Secret, from, Instant::now()).await;
    assert!(matches!(late, Finding::Good(_)), "{late:?}");
    let none = ring.find(&digest_of(many()), KeyForm::Secret, from, Instant::now()).await;
    assert!(matches!(none, Finding::Unknown), "{none:?}");
}
