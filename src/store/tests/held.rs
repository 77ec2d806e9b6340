//! Keys as they are held in memory.

use super::*;

/// Of a key without terms of its own little is looked at; one that has any is none of those.
#[test]
fn each_term_that_a_key_alone_has_is_held_in_memory() {
    let room = Room::new();
    let store = room.open();
    let all = whole();
    let one = |change: fn(&mut KeyDetails, KeyDetails)| {
        let mut details = named("bot");
        change(&mut details, whole());
        details
    };
    let made = [
        one(|it, all| it.owner = all.owner),
        one(|it, all| it.role = all.role),
        one(|it, all| it.models = all.models),
        one(|it, all| it.cloud = all.cloud),
        one(|it, all| it.expires = all.expires),
        one(|it, all| it.networks = all.networks),
        one(|it, all| it.limits = all.limits),
        named("plain"),
        KeyDetails { note: String::new(), ..all },
    ];
    let made = store.create_keys(made.into(), &anna()).unwrap();
    let (old, _) = made.first().unwrap();
    let (next, _) = store.rotate_key(old.id, Duration::from_secs(60), &anna()).unwrap();
    let mut expected: Vec<_> = made.iter().map(|(key, _)| key.clone()).chain([next]).collect();
    expected[0] = store.find_keys(old.id.as_str()).unwrap().remove(0);
    let mut held = Vec::new();
    store.changed_since(0, |read| held.push(read)).unwrap();
    for (read, expected) in held.iter().zip(&expected) {
        let keys::Read::Key(key) = read else { panic!("{read:?}") };
        let terms = |key: &ManagedKey| (key.id, key.details.clone(), key.state, key.rotated);
        assert_eq!(terms(key), terms(expected));
    }
    assert_eq!(held.len(), expected.len());
}
