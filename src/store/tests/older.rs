//! Stores that older versions wrote, with what was in them; and what goes wrong under an open one.

use super::super::schema::{APPLICATION, MIGRATIONS};
use super::*;

/// As a version with so many migrations left it: a key, what was done with it, and a request.
fn older(room: &Room, version: usize) -> Secret {
    fs::create_dir(room.path()).unwrap();
    files::create(&room.file()).unwrap();
    let connection = room.other();
    for migration in &MIGRATIONS[..version] {
        connection.execute_batch(migration).unwrap();
    }
    let secret = Secret::draw().unwrap();
    let key = "INSERT INTO key (id, form, digest, name, owner, role, models, cloud, expires, networks, \
               note, state, created, created_by, rotated_to, overlap_until, used, used_from, changed) \
               VALUES ('k0000000000a', 'secret', ?1, 'bot', 'bert', 'operator', '[\"gemma3*\"]', 1, \
               4000000000, '[\"192.0.2.0/24\"]', 'for the build machine', 'active', 1700000000, \
               'cli:anna', NULL, NULL, 1700000005, '192.0.2.9', 7)";
    connection.execute(key, [secret.digest().as_slice()]).unwrap();
    connection
        .execute_batch(
            "UPDATE generation SET number = 7;
             INSERT INTO audit (at, who, client, action, subject, before, after) VALUES
                 (1700000000123, 'cli:anna', NULL, 'create', 'key k0000000000a', NULL, '{\"name\":\"bot\"}'),
                 (1700000001000, 'nobody', '192.0.2.7', 'login failed', 'the admin API', NULL, NULL);",
        )
        .unwrap();
    if version >= 2 {
        connection
            .execute_batch(
                "INSERT INTO usage_word VALUES (1, 'bert'), (2, 'm:latest'), (3, 'chat'), (4, 'gpu1'), (5, 'done');
                 INSERT INTO usage (place, id, name, key, model, operation, backend, inference, status,
                     outcome, options, prompt, completion, estimated, bytes_in, bytes_out, queue, total,
                     backend_time)
                 VALUES (1700000002000 << 20, '00112233445566aa', 1, 0, 2, 3, 4, 1, 200, 5, 0, 11, 22, 0,
                     100, 200, 0, 3000000, 3000000);",
            )
            .unwrap();
    }
    let version = u32::try_from(version).unwrap();
    connection.pragma_update(None, "user_version", version).unwrap();
    connection.pragma_update(None, "application_id", APPLICATION).unwrap();
    secret
}

fn schema_of(room: &Room) -> usize {
    let version = room.other().pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0));
    usize::try_from(version.unwrap()).unwrap()
}

#[tokio::test]
async fn what_an_older_version_kept_is_there_after_the_step_forward_and_counts() {
    for version in 1..MIGRATIONS.len() {
        let room = Room::new();
        let secret = older(&room, version);
        // Who only looks, or comes beside a gate of that version, changes nothing.
        assert_eq!(Store::inspect(&room.path()), Ok(1), "{version}");
        assert!(Store::open_current(&room.path()).unwrap_err().is_askers(), "{version}");
        assert_eq!(schema_of(&room), version);

        let store = Arc::new(room.open());
        assert_eq!(schema_of(&room), MIGRATIONS.len(), "{version}");
        let key = store.find_keys("bot").unwrap().remove(0);
        let networks = Some(vec!["192.0.2.0/24".parse().unwrap()]);
        let details = KeyDetails {
            models: Some(only(&["gemma3*"])),
            networks,
            limits: Default::default(),
            ..whole()
        };
        assert_eq!((key.details, key.digest), (details, secret.digest()), "{version}");
        assert_eq!((key.created.as_second(), key.created_by.as_str()), (1_700_000_000, "cli:anna"));
        assert_eq!(key.used.unwrap().from.to_string(), "192.0.2.9");
        let told: Vec<_> = trail(&store).into_iter().map(|it| (it.number, it.action)).collect();
        assert_eq!(told, [(2, "login failed".to_owned()), (1, "create".to_owned())], "{version}");
        let ring = Arc::new(KeyRing::open(Arc::clone(&store)).unwrap());
        assert_eq!(find(&ring, &secret).await, "bert", "{version}");

        let limits = || "tokens_per_day=5".parse().unwrap();
        store.change_key(key.id, &anna(), move |details| details.limits = limits()).unwrap();
        assert_eq!(store.find_keys("bot").unwrap()[0].details.limits, limits());
        store.set_key_state(key.id, KeyState::Revoked, &anna()).unwrap();
        assert_eq!(find(&ring, &secret).await, "!revoked", "{version}");
        let asked = RowsQuery {
            since: Timestamp::from_second(0).unwrap(),
            until: Timestamp::now(),
            only: UsageFilter::default(),
            before: None,
            limit: 9,
        };
        let rows = store.usage_rows(&asked).unwrap();
        assert_eq!(rows.len(), usize::from(version >= 2), "{version}");
        for row in rows {
            assert_eq!((row.name.as_str(), row.model.as_deref()), ("bert", Some("m:latest")));
            assert_eq!((row.usage.prompt, row.usage.completion), (11, 22));
            assert_eq!(
                (row.time.as_millisecond(), row.outcome.as_str()),
                (1_700_000_002_000, "done")
            );
        }
        // Of the trail, failed logins alone may go, whatever the version that wrote it.
        let delete =
            |what: &str| room.other().execute(&format!("DELETE FROM audit WHERE {what}"), []);
        assert!(delete("action = 'create'").is_err(), "{version}");
        assert_eq!(delete("action = 'login failed'"), Ok(1), "{version}");
        drop((ring, store));
        assert_eq!(room.open().check(), Ok(Vec::new()), "{version}");
    }
}

#[tokio::test]
async fn a_store_that_may_only_be_read_serves_its_keys_and_says_why_it_keeps_no_change() {
    let room = Room::new();
    let store = Arc::new(room.open());
    let (key, secret) = store.create_key(named("bot"), &anna()).unwrap();
    let ring = Arc::new(KeyRing::open(Arc::clone(&store)).unwrap());
    // What SQLite answers for a file that may not be written; root may write every one.
    store.write(|it| Ok(it.pragma_update(None, "query_only", true)?)).unwrap();
    let refused = store.set_key_state(key.id, KeyState::Disabled, &anna()).unwrap_err();
    assert!(matches!(refused, StoreError::ReadOnly(_)) && !refused.is_askers(), "{refused}");
    assert!(refused.to_string().starts_with("the store may only be read: "), "{refused}");
    assert_eq!(find(&ring, &secret).await, "bot");
    assert_eq!(store.find_keys("bot").unwrap()[0].state, KeyState::Active);
    assert_eq!(ring.trouble(), Some(refused));
    ring.tend(Instant::now()).await;
    assert!(matches!(ring.trouble(), Some(StoreError::ReadOnly(_))), "it is tried again in vain");
}

#[tokio::test]
async fn damage_under_an_open_store_is_told_and_the_keys_that_were_read_serve_on() {
    let room = Room::new();
    let store = Arc::new(room.open());
    let all = (0..50).map(|number| named(&format!("n{number}"))).collect();
    let (_, secret) = store.create_keys(all, &anna()).unwrap().remove(7);
    let ring = Arc::new(KeyRing::open(Arc::clone(&store)).unwrap());
    room.other().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let mut bytes = fs::read(room.file()).unwrap();
    // The first page has the schema: it would not be taken for ours.
    for page in bytes.chunks_mut(4096).skip(1) {
        page[..64].fill(0xff);
    }
    fs::write(room.file(), &bytes).unwrap();

    let is_corrupt = |error: &StoreError| matches!(error, StoreError::Corrupt { .. });
    let read = store.find_keys("n7").unwrap_err();
    assert!(is_corrupt(&read) && read.to_string().contains("restore a backup"), "{read}");
    let written = store.create_key(named("late"), &anna()).unwrap_err();
    assert!(is_corrupt(&written), "{written}");
    assert!(store.check().map_or_else(|error| is_corrupt(&error), |told| !told.is_empty()));
    ring.tend(Instant::now()).await;
    assert!(ring.trouble().as_ref().is_some_and(is_corrupt), "{:?}", ring.trouble());
    assert_eq!(find(&ring, &secret).await, "n7");
    assert_eq!(
        find(&ring, &Secret::draw().unwrap()).await,
        "?",
        "the stamp says that nothing is new"
    );
    assert_eq!(fs::read(room.file()).unwrap(), bytes, "nothing is repaired, or begun anew");
}
