//! Managed keys by the command line, while the real gate serves.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{House, KEY, NOWHERE, text};

const DATA: [&str; 2] = ["--data-dir", "data"];

fn key(house: &House, arguments: &[&str]) -> (bool, String, String) {
    let out = house.run(&[&["key"], arguments, &DATA[..]].concat());
    let of = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (out.status.success(), of(&out.stdout).trim_end().to_owned(), of(&out.stderr))
}

fn good(house: &House, arguments: &[&str]) -> String {
    let (is_good, stdout, stderr) = key(house, arguments);
    assert!(is_good, "{arguments:?}: {stderr}");
    stdout
}

fn bad(house: &House, arguments: &[&str]) -> String {
    let (is_good, stdout, stderr) = key(house, arguments);
    assert!(!is_good && stdout.is_empty(), "{arguments:?}: {stdout}");
    stderr
}

#[test]
fn what_a_key_is_good_for_is_changed_while_the_gate_serves() {
    let house = House::new();
    let serve = ["serve", "--upstream", NOWHERE, "--listen", "127.0.0.1:0", DATA[0], DATA[1]];
    let gate = house.serve_as(&serve);
    let anna = good(&house, &["create", "anna"]);
    let me = || gate.get("/_portcullis/me", Some(&anna));
    let shown = || {
        let json = good(&house, &["show", "anna", "--format", "json"]);
        serde_json::from_str::<serde_json::Value>(&json).unwrap()
    };
    let before = shown();
    let all = "change anna --owner bert --role operator --models gemma3* --cloud false \
               --expires 2099-01-01 --network 127.0.0.0/8 --limit tokens_per_day=1000 --note new";
    let all: Vec<_> = all.split_whitespace().collect();
    assert!(good(&house, &all).starts_with("changed anna ("));
    let (status, told) = me();
    assert!(status == 200 && told.contains("bert") && told.contains("operator"), "{told}");
    assert!(told.contains("gemma3*"), "{told}");
    good(&house, &["change", "anna", "--network", "192.0.2.7", "--network", "10.0.0.0/8"]);
    assert_eq!(me().0, 401, "from another network");
    assert_eq!(shown()["note"], "new", "what is not said stays");
    let back = "change anna --role user --cloud inherit --expires never --network any --limit none";
    let back: Vec<_> = back.split_whitespace().chain(["--owner", "", "--note", ""]).collect();
    good(&house, &back);
    let (status, told) = me();
    assert!(status == 200 && told.contains("anna") && told.contains("user"), "{told}");
    let mut after = shown();
    assert_eq!(after["models"], serde_json::json!(["gemma3*"]));
    after["models"] = before["models"].clone();
    after["used"] = before["used"].clone();
    assert_eq!(after, before);

    good(&house, &["create", "carl"]);
    assert!(bad(&house, &["change", "anna"]).contains("--expires"), "nothing to change");
    bad(&house, &["change", "anna", "carl", "--name", "both"]);
    bad(&house, &["change", "anna", "nobody", "--note", "x"]);
    assert_eq!(shown()["note"], "", "all or none");
    bad(&house, &["change", "anna", "--owner", "a/b"]);
    bad(&house, &["change", "anna", "--cloud", "perhaps"]);
    good(&house, &["change", "anna", "--name", "dora"]);
    good(&house, &["revoke", "dora"]);
    bad(&house, &["change", "dora", "--note", "x"]);
}

#[test]
fn keys_are_made_changed_and_taken_away_while_the_gate_serves() {
    let house = House::new();
    let serve = ["serve", "--upstream", NOWHERE, "--listen", "127.0.0.1:0", DATA[0], DATA[1]];
    let mut gate = house.serve_as(&serve);
    let status = |key: &str| gate.get("/_portcullis/me", Some(key)).0;

    let anna = good(&house, &["create", "anna", "--note", "laptop"]);
    assert!(anna.starts_with("pc_") && anna.len() == 52, "the key alone: {anna}");
    let (found, me) = gate.get("/_portcullis/me", Some(&anna));
    assert!(found == 200 && me.contains("\"anna\"") && me.contains("\"user\""), "{me}");
    good(&house, &["disable", "anna"]);
    assert_eq!(status(&anna), 401);
    good(&house, &["enable", "anna"]);
    assert_eq!(status(&anna), 200);
    let next = good(&house, &["rotate", "anna", "--overlap", "1h"]);
    assert_eq!((status(&anna), status(&next)), (200, 200));
    let ambiguous = bad(&house, &["revoke", "anna"]);
    let ids: Vec<_> = ambiguous.split_whitespace().filter(|it| it.len() == 12).collect();
    assert_eq!(ids.len(), 2, "{ambiguous}");
    good(&house, &["revoke", ids[0]]);
    assert_eq!((status(&anna), status(&next)), (401, 200));
    assert!(bad(&house, &["enable", ids[0]]).contains("for ever"));
    let listed = good(&house, &["list"]);
    assert!(listed.contains("revoked") && !listed.contains("pc_"), "{listed}");

    fs::write(house.path("old.txt"), format!("{KEY} # bert\n")).unwrap();
    good(&house, &["import", "old.txt"]);
    assert_eq!(status(KEY), 200);
    fs::write(house.path("roster.csv"), "name,role\ns01,user\ns02,viewer\n").unwrap();
    let roster = good(&house, &["create", "--csv", "roster.csv"]);
    let made: Vec<_> = roster.lines().map(|line| line.rsplit(',').next().unwrap()).collect();
    assert_eq!((made.len(), made[0]), (3, "key"), "{roster}");
    assert_eq!((status(made[1]), status(made[2])), (200, 200));

    // Who used them is known at the latest when the gate has ended.
    gate.signal("TERM");
    assert_eq!(gate.wait(), Some(0));
    let shown = good(&house, &["show", ids[1]]);
    assert!(shown.contains("from 127.0.0.1"), "{shown}");
    for file in fs::read_dir(house.path("data")).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        for secret in [&anna, &next, &KEY.to_owned()] {
            assert!(!bytes.windows(20).any(|at| at == &secret.as_bytes()[..20.min(secret.len())]));
        }
    }
}

#[test]
fn slips_on_the_line_are_told_with_what_to_do() {
    let house = House::new();
    assert!(bad(&house, &["list"]).contains("key create"));
    good(&house, &["create", "anna"]);
    for (arguments, says) in [
        (&["show", "bert"][..], "key list"),
        (&["create", "a/b"], "a / in the name"),
        (&["create", "x", "--role", "king"], "no role"),
        (&["create", "x", "--expires", "soon"], "90d"),
        (&["create", "x", "--network", "here"], "10.0.0.0/8"),
        (&["create"], "<NAME>"),
        (&["import", "nowhere.txt"], "could not read nowhere.txt"),
        (&["rotate", "anna", "--overlap", "x"], "24h"),
    ] {
        let told = bad(&house, arguments);
        assert!(told.contains(says), "{arguments:?}: {told}");
    }
    let without = house.run(&["key", "list"]);
    assert!(text(&without).contains("--data-dir DIR"), "{}", text(&without));
    assert_eq!(good(&house, &["list"]).lines().count(), 2, "nothing was made of any of it");
}

#[test]
fn a_backup_goes_back_into_its_place_and_a_bad_store_starts_no_gate() {
    let house = House::new();
    good(&house, &["create", "anna"]);
    let store = |arguments: &[&str]| house.run(&[&["store"], arguments, &DATA[..]].concat());
    assert!(store(&["backup", "copy.db"]).status.success());
    assert!(store(&["check"]).status.success());
    let file = house.path("data/portcullis.db");
    let serve = ["serve", "--listen", "127.0.0.1:0", DATA[0], DATA[1]];
    let refused = |says: &str| {
        for arguments in [&serve[..], &["check", DATA[0], DATA[1]]] {
            let out = house.run(arguments);
            assert_eq!(out.status.code(), Some(1), "{arguments:?}: {}", text(&out));
            assert!(text(&out).contains(says), "{arguments:?}: {}", text(&out));
        }
    };
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    refused("chmod 600");
    fs::write(&file, "x".repeat(9000)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    refused("is not a store of portcullis");
    fs::remove_file(&file).unwrap();
    refused("restore a backup");
    fs::rename(house.path("copy.db"), &file).unwrap();
    let check = house.run(&["check", DATA[0], DATA[1]]);
    assert!(text(&check).contains("1 managed key"), "{}", text(&check));
    assert!(good(&house, &["list"]).contains("anna"));
}
