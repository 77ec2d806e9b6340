//! Keys, the trail and the files of a store; faults of the disk; two processes at one store.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tempfile::TempDir;

use super::*;
use crate::config::{Models, Role};

mod held;
mod older;

struct Room {
    folder: TempDir,
}

impl Room {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn file(&self) -> PathBuf {
        self.path().join(DATABASE)
    }

    fn open(&self) -> Store {
        Store::open(&self.path()).unwrap()
    }

    /// A second program at the same file.
    fn other(&self) -> Connection {
        Connection::open(self.file()).unwrap()
    }
}

fn anna() -> Actor {
    Actor { who: "cli:anna".to_owned(), client: None }
}

fn named(name: &str) -> KeyDetails {
    KeyDetails { name: name.to_owned(), ..KeyDetails::default() }
}

fn only(patterns: &[&str]) -> Models {
    Models::Only(patterns.iter().map(|it| it.parse().unwrap()).collect())
}

fn whole() -> KeyDetails {
    KeyDetails {
        name: "bot".to_owned(),
        owner: Some("bert".to_owned()),
        role: Some(Role::Operator),
        models: Some(only(&["gemma3*", "hf.co/bartowski/*"])),
        cloud: Some(true),
        expires: Some(Timestamp::from_second(4_000_000_000).unwrap()),
        networks: Some(vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()]),
        limits: "tokens_per_day=100000 concurrent=2".parse().unwrap(),
        note: "for the build machine".to_owned(),
    }
}

fn trail(store: &Store) -> Vec<AuditEntry> {
    store.audit(&AuditQuery { limit: 1000, ..AuditQuery::default() }).unwrap()
}

#[test]
fn a_key_comes_back_as_it_was_made_also_after_a_restart() {
    let room = Room::new();
    let (made, secret) = room.open().create_key(whole(), &anna()).unwrap();
    let store = Store::open_existing(&room.path()).unwrap();
    let found = store.find_keys("bot").unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0], made);
    assert_eq!(found[0].details, whole());
    assert_eq!(found[0].digest, secret.digest());
    assert_eq!(store.find_keys(made.id.as_str()).unwrap(), found);
    assert_eq!(store.find_keys("bert"), Err(StoreError::NoSuchKey("bert".to_owned())));
}

#[test]
fn the_text_of_a_key_is_in_none_of_the_files() {
    let room = Room::new();
    let store = room.open();
    let (_, secret) = store.create_key(named("bot"), &anna()).unwrap();
    let mut looked_at = 0;
    for entry in fs::read_dir(room.path()).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        let random = &secret.as_str().as_bytes()[3..40];
        assert!(!bytes.windows(random.len()).any(|at| at == random));
        looked_at += 1;
    }
    assert!(looked_at >= 3);
}

#[test]
fn every_change_has_its_line_with_before_and_after() {
    let room = Room::new();
    let store = room.open();
    let (key, _) = store.create_key(named("bot"), &anna()).unwrap();
    let web = Actor { who: "root".to_owned(), client: Some("192.0.2.7".parse().unwrap()) };
    store.set_key_state(key.id, KeyState::Disabled, &web).unwrap();
    store.set_key_state(key.id, KeyState::Disabled, &web).unwrap();
    store.change_key(key.id, &anna(), |details| details.note = "new".to_owned()).unwrap();
    store.set_key_state(key.id, KeyState::Active, &anna()).unwrap();
    let (next, _) = store.rotate_key(key.id, Duration::from_secs(60), &anna()).unwrap();
    store.set_key_state(next.id, KeyState::Revoked, &anna()).unwrap();
    let mut lines = trail(&store);
    lines.reverse();
    let actions: Vec<_> = lines.iter().map(|line| line.action.as_str()).collect();
    // What was so already is no change.
    assert_eq!(actions, ["create", "disable", "change", "enable", "create", "rotate", "revoke"]);
    let disable = &lines[1];
    assert_eq!((disable.who.as_str(), disable.client.as_deref()), ("root", Some("192.0.2.7")));
    assert_eq!(disable.subject, format!("key {}", key.id));
    assert_eq!(disable.before.as_ref().unwrap()["state"], "active");
    assert_eq!(disable.after.as_ref().unwrap()["state"], "disabled");
    assert_eq!(lines[0].before, None);
    assert_eq!(lines[2].after.as_ref().unwrap()["note"], "new");
    assert_eq!(lines[5].after.as_ref().unwrap()["rotated_to"], next.id.as_str());
    let digest: String = key.digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!lines.iter().any(|line| line.to_json().to_string().contains(&digest)));
}

#[test]
fn the_trail_is_read_page_by_page_and_cannot_be_changed() {
    let room = Room::new();
    let store = room.open();
    let (key, _) = store.create_key(named("bot"), &anna()).unwrap();
    for number in 0..7 {
        let subject = format!("name {number}");
        let event = Event { action: "login failed", subject, before: None, after: None };
        store.note(event, &anna()).unwrap();
    }
    let mut query = AuditQuery { limit: 3, ..AuditQuery::default() };
    let mut numbers = Vec::new();
    loop {
        let page = store.audit(&query).unwrap();
        let Some(last) = page.last() else { break };
        query.before = Some(last.number);
        numbers.extend(page.iter().map(|line| line.number));
    }
    assert_eq!(numbers, [8, 7, 6, 5, 4, 3, 2, 1]);
    let subject = Some(format!("key {}", key.id));
    assert_eq!(store.audit(&AuditQuery { limit: 9, subject, before: None }).unwrap().len(), 1);
    for sql in ["UPDATE audit SET who = 'x'", "DELETE FROM audit"] {
        assert!(room.other().execute(sql, []).is_err(), "{sql}");
    }
}

#[test]
fn keys_are_listed_page_by_page_by_identity_and_by_state() {
    let room = Room::new();
    let store = room.open();
    let all: Vec<_> = (0..5).map(|number| named(&format!("n{number}"))).collect();
    let made = store.create_keys(all, &anna()).unwrap();
    let (bot, _) = store.create_key(whole(), &anna()).unwrap();
    let page = store.keys(&KeyQuery { limit: 4, ..KeyQuery::default() }).unwrap();
    assert_eq!(page.keys.len(), 4);
    assert_eq!(page.next, Some(made[3].0.id));
    let page = store.keys(&KeyQuery { limit: 4, after: page.next, ..KeyQuery::default() }).unwrap();
    assert_eq!(page.keys.iter().map(|key| key.id).collect::<Vec<_>>(), [made[4].0.id, bot.id]);
    assert_eq!(page.next, None);
    let of = |identity: &str| KeyQuery {
        identity: Some(identity.to_owned()),
        limit: 9,
        ..KeyQuery::default()
    };
    assert_eq!(store.keys(&of("bert")).unwrap().keys, [bot]);
    assert_eq!(store.keys(&of("bot")).unwrap().keys, []);
    store.set_key_state(made[0].0.id, KeyState::Revoked, &anna()).unwrap();
    let state = Some(KeyState::Revoked);
    let revoked = store.keys(&KeyQuery { state, limit: 9, ..KeyQuery::default() }).unwrap().keys;
    assert_eq!(revoked.iter().map(|key| key.id).collect::<Vec<_>>(), [made[0].0.id]);
}

#[test]
fn a_roster_is_made_whole_or_not_at_all() {
    let room = Room::new();
    let store = room.open();
    let roster = vec![named("good"), named("bad/name")];
    let refused = store.create_keys(roster, &anna()).unwrap_err();
    assert!(refused.is_askers() && refused.to_string().contains("bad/name"), "{refused}");
    assert_eq!(store.count_keys().unwrap(), 0);
    assert_eq!(trail(&store), []);
}

#[test]
fn what_cannot_be_a_key_is_refused_in_words() {
    let room = Room::new();
    let store = room.open();
    let many = only(&["x"; 1001]);
    for (bad, says) in [
        (named(""), "no name"),
        (named(&"n".repeat(256)), "255"),
        (KeyDetails { owner: Some("a/b".to_owned()), ..named("x") }, "owner"),
        (KeyDetails { note: "a\nb".to_owned(), ..named("x") }, "note"),
        (KeyDetails { models: Some(only(&[])), ..named("x") }, "every model"),
        (KeyDetails { models: Some(many), ..named("x") }, "1000"),
        (KeyDetails { networks: Some(Vec::new()), ..named("x") }, "leave them out"),
    ] {
        let refused = store.create_key(bad, &anna()).unwrap_err();
        assert!(refused.to_string().contains(says), "{refused}");
        assert!(refused.is_askers());
    }
    let (key, _) = store.create_key(named("x"), &anna()).unwrap();
    let refused = store.change_key(key.id, &anna(), |details| details.name = "a/b".to_owned());
    assert!(refused.unwrap_err().is_askers());
    assert_eq!(store.find_keys("x").unwrap(), [key]);
}

#[test]
fn revoked_is_for_ever() {
    let room = Room::new();
    let store = room.open();
    let (key, _) = store.create_key(named("bot"), &anna()).unwrap();
    store.set_key_state(key.id, KeyState::Revoked, &anna()).unwrap();
    for state in [KeyState::Active, KeyState::Disabled] {
        assert!(store.set_key_state(key.id, state, &anna()).unwrap_err().is_askers());
    }
    assert!(store.change_key(key.id, &anna(), |it| it.name = "y".to_owned()).is_err());
    assert!(store.rotate_key(key.id, Duration::ZERO, &anna()).is_err());
    assert_eq!(store.find_keys("bot").unwrap()[0].state, KeyState::Revoked);
    store.set_key_state(key.id, KeyState::Revoked, &anna()).unwrap();
    let over = KeyDetails { expires: Some(Timestamp::UNIX_EPOCH), ..named("over") };
    let over = store.create_key(over, &anna()).unwrap().0.id; // so would be what takes its place
    let refused = store.rotate_key(over, Duration::ZERO, &anna()).unwrap_err().to_string();
    assert!(refused.contains("has expired"));
}

#[test]
fn an_import_leaves_alone_what_is_there() {
    let room = Room::new();
    let store = room.open();
    let (known, secret) = store.create_key(whole(), &anna()).unwrap();
    let all =
        vec![([7; 32], named("new")), (secret.digest(), named("other")), ([7; 32], named("again"))];
    let came = store.import_keys(all, &anna()).unwrap();
    assert_eq!(came, Imported { added: 1, known: 2 });
    assert_eq!(store.find_keys(known.id.as_str()).unwrap(), [known]);
    assert_eq!(store.find_keys("new").unwrap()[0].digest, [7; 32]);
}

#[test]
fn its_files_are_private_whatever_the_folder_is() {
    let room = Room::new();
    let store = room.open();
    store.create_key(named("bot"), &anna()).unwrap();
    assert_eq!(fs::metadata(room.path()).unwrap().mode() & 0o777, 0o700);
    for entry in fs::read_dir(room.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
}

#[test]
fn a_store_that_others_may_write_is_not_opened() {
    let room = Room::new();
    drop(room.open());
    for (mode, is_good) in [(0o620, false), (0o602, false), (0o644, true)] {
        fs::set_permissions(room.file(), fs::Permissions::from_mode(mode)).unwrap();
        let opened = Store::open(&room.path());
        match is_good {
            true => assert!(opened.is_ok()),
            false => assert!(
                matches!(opened, Err(StoreError::WritableByOthers { mode: found, .. }) if found == mode)
            ),
        }
    }
}

#[test]
fn a_newer_schema_and_another_programs_file_are_not_touched() {
    let room = Room::new();
    drop(room.open());
    room.other().pragma_update(None, "user_version", 99).unwrap();
    let refused = Store::open(&room.path()).unwrap_err();
    assert!(matches!(refused, StoreError::Newer { found: 99, .. }), "{refused}");

    let others = Room::new();
    fs::create_dir(others.path()).unwrap();
    others.other().execute_batch("CREATE TABLE theirs (x); PRAGMA user_version = 1").unwrap();
    fs::set_permissions(others.file(), fs::Permissions::from_mode(0o600)).unwrap();
    let refused = Store::open(&others.path()).unwrap_err();
    assert!(matches!(refused, StoreError::NotOurs { .. }), "{refused}");
    fs::write(others.file(), "no database at all, but a text that is long enough".repeat(40))
        .unwrap();
    let refused = Store::open(&others.path()).unwrap_err();
    assert!(matches!(refused, StoreError::NotOurs { .. }), "{refused}");
}

#[test]
fn two_who_begin_at_once_make_one_schema() {
    let room = Room::new();
    fs::create_dir(room.path()).unwrap();
    files::create(&room.file()).unwrap();
    let opened: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| Store::open(&room.path()).map(drop))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(opened, [const { Ok(()) }; 8]);
    assert_eq!(room.open().check().unwrap(), Vec::<String>::new());
}

#[test]
fn a_lost_store_does_not_come_back_empty() {
    let room = Room::new();
    let store = room.open();
    let (key, _) = store.create_key(named("bot"), &anna()).unwrap();
    fs::remove_file(room.file()).unwrap();
    let gone = |it: StoreError| matches!(it, StoreError::Gone { .. });
    assert!(gone(store.create_key(named("x"), &anna()).unwrap_err()));
    assert!(gone(store.find_keys("bot").unwrap_err()));
    assert!(gone(store.set_key_state(key.id, KeyState::Revoked, &anna()).unwrap_err()));
    assert!(gone(Store::open(&room.path()).unwrap_err()));
    assert!(!room.file().exists());

    fs::write(room.file(), "").unwrap();
    let refused = store.create_key(named("x"), &anna()).unwrap_err();
    assert!(matches!(refused, StoreError::Replaced { .. }), "{refused}");
}

#[test]
fn a_backup_is_whole_private_and_opens() {
    let room = Room::new();
    let store = room.open();
    let (key, _) = store.create_key(whole(), &anna()).unwrap();
    let copy = room.folder.path().join("copy").join(DATABASE);
    fs::create_dir(copy.parent().unwrap()).unwrap();
    store.backup(&copy).unwrap();
    assert_eq!(fs::metadata(&copy).unwrap().mode() & 0o777, 0o600);
    let restored = Store::open(copy.parent().unwrap()).unwrap();
    assert_eq!(restored.find_keys("bot").unwrap(), [key]);
    assert_eq!(trail(&restored).len(), 1);
    assert!(store.backup(&copy).is_err(), "nothing is written over");
    assert_eq!(Store::open(copy.parent().unwrap()).unwrap().check().unwrap(), Vec::<String>::new());
}

#[test]
fn damage_is_told_and_not_repaired() {
    let room = Room::new();
    let store = room.open();
    let all = (0..500).map(|number| named(&format!("n{number}"))).collect();
    store.create_keys(all, &anna()).unwrap();
    drop(store);
    room.other().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let mut bytes = fs::read(room.file()).unwrap();
    let pages = bytes.len() / 4096;
    for page in (3..pages).step_by(2) {
        bytes[page * 4096..page * 4096 + 64].fill(0xff);
    }
    fs::write(room.file(), bytes).unwrap();
    match Store::open(&room.path()) {
        Err(error) => assert!(matches!(error, StoreError::Corrupt { .. }), "{error}"),
        Ok(store) => {
            let told = store.check();
            let is_told = told.as_ref().map_or(true, |told| !told.is_empty());
            assert!(is_told, "{told:?}");
            let read = KeyRing::open(Arc::new(store)).unwrap_err();
            assert!(matches!(read, StoreError::Corrupt { .. }), "{read}");
        }
    }
}

// ---- the ring ----

const FROM: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

async fn find(ring: &Arc<KeyRing>, secret: &Secret) -> String {
    let found = ring.find(&secret.digest(), KeyForm::Secret, FROM, Instant::now()).await;
    match found {
        Finding::Good(held) => held.identity.to_string(),
        Finding::Refused(why) => format!("!{}", why.as_str()),
        Finding::Unknown => "?".to_owned(),
        Finding::Unclear => "??".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_by_another_process_counts_for_the_next_request() {
    let room = Room::new();
    let ring = Arc::new(KeyRing::open(Arc::new(room.open())).unwrap());
    // Another Store is another process, as far as this one can tell.
    let other = room.open();
    for round in 0..30 {
        let (key, secret) = other.create_key(named(&format!("bot{round}")), &anna()).unwrap();
        assert_eq!(find(&ring, &secret).await, format!("bot{round}"));
        other.set_key_state(key.id, KeyState::Disabled, &anna()).unwrap();
        assert_eq!(find(&ring, &secret).await, "!disabled");
        other.set_key_state(key.id, KeyState::Active, &anna()).unwrap();
        assert_eq!(find(&ring, &secret).await, format!("bot{round}"));
        let (_, next) = other.rotate_key(key.id, Duration::from_secs(60), &anna()).unwrap();
        assert_eq!(find(&ring, &secret).await, format!("bot{round}"));
        assert_eq!(find(&ring, &next).await, format!("bot{round}"));
        other.set_key_state(key.id, KeyState::Revoked, &anna()).unwrap();
        assert_eq!(find(&ring, &secret).await, "!revoked");
        assert_eq!(find(&ring, &next).await, format!("bot{round}"));
    }
    assert_eq!(ring.len(), 60);
    assert_eq!(find(&ring, &Secret::draw().unwrap()).await, "?");
}

#[tokio::test(flavor = "multi_thread")]
async fn time_network_and_form_are_looked_at() {
    let room = Room::new();
    let store = Arc::new(room.open());
    let ring = Arc::new(KeyRing::open(Arc::clone(&store)).unwrap());
    let past = Some(Timestamp::now() - Duration::from_secs(2));
    let (_, old) = store.create_key(KeyDetails { expires: past, ..named("old") }, &anna()).unwrap();
    assert_eq!(find(&ring, &old).await, "!expired");
    let (key, rotated) = store.create_key(named("bot"), &anna()).unwrap();
    store.rotate_key(key.id, Duration::ZERO, &anna()).unwrap();
    assert_eq!(find(&ring, &rotated).await, "!rotated");
    let (_, inside) = store.create_key(whole(), &anna()).unwrap();
    assert_eq!(find(&ring, &inside).await, "!wrong network");
    for (from, is_good) in
        [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("2001:db8::1", true), ("11.0.0.1", false)]
    {
        let client = from.parse().unwrap();
        let found = ring.find(&inside.digest(), KeyForm::Secret, client, Instant::now()).await;
        assert_eq!(matches!(found, Finding::Good(_)), is_good, "{from}");
    }
    let signing = store.allow_signing_key([9; 32], named("laptop"), &anna()).unwrap();
    let as_secret = ring.find(&[9; 32], KeyForm::Secret, FROM, Instant::now()).await;
    assert!(matches!(as_secret, Finding::Unknown));
    let as_signature = ring.find(&[9; 32], KeyForm::Signing, FROM, Instant::now()).await;
    assert!(matches!(as_signature, Finding::Good(_)));
    let again = store.allow_signing_key([9; 32], named("other"), &anna()).unwrap_err();
    assert!(again.to_string().contains(signing.id.as_str()), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_stamp_heals_within_a_look_of_the_gates_own() {
    let room = Room::new();
    let ring = Arc::new(KeyRing::open(Arc::new(room.open())).unwrap());
    let other = room.open();
    let (key, secret) = other.create_key(named("bot"), &anna()).unwrap();
    assert_eq!(find(&ring, &secret).await, "bot");
    // As if the other process had ended between its change and the stamp.
    let stamp = fs::read(room.path().join(STAMP_NAME)).unwrap();
    other.set_key_state(key.id, KeyState::Revoked, &anna()).unwrap();
    fs::write(room.path().join(STAMP_NAME), stamp).unwrap();
    ring.tend(Instant::now()).await;
    assert_eq!(find(&ring, &secret).await, "!revoked");
    fs::remove_file(room.path().join(STAMP_NAME)).unwrap();
    ring.tend(Instant::now()).await;
    assert!(room.path().join(STAMP_NAME).exists());
}

const STAMP_NAME: &str = "keys.generation";

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_another_process_holds_delays_nobody() {
    let room = Room::new();
    let store = Arc::new(room.open());
    let (_, secret) = store.create_key(named("bot"), &anna()).unwrap();
    let ring = Arc::new(KeyRing::open(Arc::clone(&store)).unwrap());
    let other = room.other();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    assert_eq!(find(&ring, &secret).await, "bot");
    // Readers go on beside a writer.
    assert_eq!(store.find_keys("bot").unwrap().len(), 1);
    let held_up = Arc::clone(&store);
    let waits = tokio::task::spawn_blocking(move || held_up.create_key(named("next"), &anna()));
    assert_eq!(find(&ring, &secret).await, "bot");
    other.execute_batch("COMMIT").unwrap();
    let (_, next) = waits.await.unwrap().unwrap();
    assert_eq!(find(&ring, &next).await, "next");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_gone_known_keys_are_served_and_others_are_told_to_come_again() {
    let room = Room::new();
    let store = Arc::new(room.open());
    let (_, secret) = store.create_key(named("bot"), &anna()).unwrap();
    let ring = Arc::new(KeyRing::open(store).unwrap());
    let other = room.open();
    let (_, unseen) = other.create_key(named("unseen"), &anna()).unwrap();
    fs::rename(room.file(), room.path().join("away")).unwrap();
    assert_eq!(find(&ring, &unseen).await, "??");
    assert_eq!(find(&ring, &secret).await, "bot");
    ring.tend(Instant::now()).await;
    assert!(matches!(ring.trouble(), Some(StoreError::Gone { .. })));
    fs::rename(room.path().join("away"), room.file()).unwrap();
    ring.tend(Instant::now()).await;
    assert_eq!(ring.trouble(), None);
    assert_eq!(find(&ring, &unseen).await, "unseen");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_cannot_be_read_is_not_ignored_for_long() {
    for is_stamp_lost in [false, true] {
        let room = Room::new();
        let store = Arc::new(room.open());
        let (_, secret) = store.create_key(named("bot"), &anna()).unwrap();
        let (key, gone) = store.create_key(named("gone"), &anna()).unwrap();
        let ring = Arc::new(KeyRing::open(store).unwrap());
        let other = room.open();
        other.set_key_state(key.id, KeyState::Revoked, &anna()).unwrap();
        let now = Instant::now();
        fs::rename(room.file(), room.path().join("away")).unwrap();
        if is_stamp_lost {
            // As one that is missing reads after two seconds.
            fs::write(room.path().join(STAMP_NAME), "0\n").unwrap();
            ring.tend(now).await;
        }
        assert_eq!(find(&ring, &gone).await, "gone", "it cannot be known yet");
        assert_eq!(find(&ring, &secret).await, "bot");
        let later = now + Duration::from_secs(60);
        for secret in [&gone, &secret] {
            let found = ring.find(&secret.digest(), KeyForm::Secret, FROM, later).await;
            assert!(matches!(found, Finding::Unclear), "{found:?}");
        }
        assert_eq!(ring.found_revoked(), []);
        fs::rename(room.path().join("away"), room.file()).unwrap();
        ring.tend(later).await;
        let found = ring.find(&secret.digest(), KeyForm::Secret, FROM, later).await;
        assert!(matches!(found, Finding::Good(_)), "{found:?}");
        assert_eq!(find(&ring, &gone).await, "!revoked");
        assert_eq!(ring.found_revoked(), [key.id], "it was let in meanwhile");
        assert_eq!(ring.found_revoked(), [], "once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_read_but_has_not_changed_serves_on() {
    let room = Room::new();
    let store = Arc::new(room.open());
    let (_, secret) = store.create_key(named("bot"), &anna()).unwrap();
    let ring = Arc::new(KeyRing::open(store).unwrap());
    fs::rename(room.file(), room.path().join("away")).unwrap();
    let later = Instant::now() + Duration::from_secs(3600);
    ring.tend(Instant::now()).await;
    ring.tend(later).await;
    let found = ring.find(&secret.digest(), KeyForm::Secret, FROM, later).await;
    assert!(matches!(found, Finding::Good(_)), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_row_that_is_not_understood_is_no_key_and_holds_up_no_other() {
    for odd in ["state = 'asleep'", "models = '{'", "id = 'k'", "role = 'god'"] {
        let room = Room::new();
        let store = Arc::new(room.open());
        let (key, secret) = store.create_key(named("odd"), &anna()).unwrap();
        let (good, other) = store.create_key(named("good"), &anna()).unwrap();
        let ring = Arc::new(KeyRing::open(Arc::clone(&store)).unwrap());
        assert_eq!(find(&ring, &secret).await, "odd");
        let id = key.id;
        let spoil = format!("UPDATE key SET {odd}, changed = 1000 WHERE id = '{id}'");
        room.other().execute(&spoil, []).unwrap();
        store.set_key_state(good.id, KeyState::Disabled, &anna()).unwrap();
        assert_eq!(find(&ring, &other).await, "!disabled", "{odd}");
        assert_eq!(find(&ring, &secret).await, "?", "{odd}");
        let trouble = ring.trouble();
        assert!(matches!(trouble, Some(StoreError::OddKeys { .. })), "{trouble:?}");
        let anew = Arc::new(KeyRing::open(Arc::clone(&store)).unwrap());
        assert_eq!(find(&anew, &other).await, "!disabled", "{odd}");
        assert_eq!(find(&anew, &secret).await, "?", "{odd}");
        assert!(anew.trouble().is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_key_was_used_is_kept_in_groups_and_not_lost_by_a_failure() {
    let room = Room::new();
    let store = Arc::new(room.open());
    let (key, secret) = store.create_key(named("bot"), &anna()).unwrap();
    let ring = Arc::new(KeyRing::open(Arc::clone(&store)).unwrap());
    let before = Timestamp::now().as_second();
    find(&ring, &secret).await;
    assert_eq!(store.find_keys("bot").unwrap()[0].used, None);
    fs::rename(room.file(), room.path().join("away")).unwrap();
    ring.keep_uses(Instant::now());
    fs::rename(room.path().join("away"), room.file()).unwrap();
    ring.keep_uses(Instant::now());
    let used = store.find_keys(key.id.as_str()).unwrap()[0].used.unwrap();
    assert_eq!(used.from, FROM);
    assert!((before..=Timestamp::now().as_second()).contains(&used.at.as_second()));
    // No change in the sense of the trail, and nothing for other gates to read.
    assert_eq!(trail(&store).len(), 1);
}

#[test]
fn a_file_in_the_folders_place_is_told() {
    let room = Room::new();
    File::create(room.path()).unwrap();
    let refused = Store::open(&room.path()).unwrap_err();
    assert!(matches!(refused, StoreError::Folder { .. }), "{refused}");
    let missing = Store::open_existing(&room.path().join("x")).unwrap_err();
    assert!(matches!(missing, StoreError::Missing { .. }), "{missing}");
}
