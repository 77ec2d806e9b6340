//! Managed keys by the command line, while the real gate serves.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use sha2::{Digest, Sha256};

use super::{House, KEY, NOWHERE, text};
use crate::machine::{Machine, code_in};
use crate::managed::Managed;

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
fn a_machine_is_let_in_by_the_code_that_it_was_told() {
    let managed = Managed::start(None, None);
    let laptop = Machine::new(9);
    let asks = |path: &str, shift| {
        let request = laptop.asks(path, shift).replacen("\r\n", "\r\nConnection: close\r\n", 1);
        managed.gate.ask(&request)
    };
    let (status, told) = asks("/api/tags", 0);
    let code = code_in(&told).unwrap_or_else(|| panic!("{told}"));
    assert_eq!(status, 401);
    let allowed = managed.desk.done(&["allow", &code, "laptop"]);
    assert!(
        allowed.starts_with("laptop may come in from now on, by its own signing key"),
        "{allowed}"
    );
    let (status, me) = asks("/_portcullis/me", 1);
    assert!(status == 200 && me.contains("\"laptop\"") && me.contains("\"operator\""), "{me}");
    let shown = managed.desk.done(&["key", "show", "laptop", "--format", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let id = shown["id"].as_str().unwrap();
    assert!(allowed.ends_with(&format!("which is called {id}")), "{allowed}");
    assert_eq!(
        (shown["form"].as_str(), shown["state"].as_str()),
        (Some("signing"), Some("active"))
    );
    let again = managed.desk.run(&["allow", &code, "laptop"]);
    assert!(
        again.status.code() == Some(1) && text(&again).contains("has been let in"),
        "{}",
        text(&again)
    );
    managed.desk.done(&["key", "revoke", "laptop"]);
    assert_eq!(asks("/_portcullis/me", 2).0, 401);
}

#[test]
fn an_import_takes_over_what_a_file_of_keys_says_and_tells_what_it_does_not_take() {
    let house = House::new();
    let serve = ["serve", "--upstream", NOWHERE, "--listen", "127.0.0.1:0", DATA[0], DATA[1]];
    fs::write(
        house.path("portcullis.toml"),
        "default_role = 'user'\n[roles]\noperator = ['bert']\n",
    )
    .unwrap();
    let gate = house.serve_as(&serve);
    let me = |key: &str| {
        let (status, told) = gate.get("/_portcullis/me", Some(key));
        let body = told.split("\r\n\r\n").nth(1).unwrap_or_default();
        let told: serde_json::Value = serde_json::from_str(body).unwrap();
        let of = |field: &str| told[field].as_str().unwrap_or_default().to_owned();
        (status, of("name"), of("role"))
    };
    let digest: String =
        Sha256::digest("hashed-key").iter().map(|it| format!("{it:02x}")).collect();
    let lines = [
        "# a comment",
        "plain-key # anna",
        &format!("sha256:{digest} # bert"),
        "unnamed-key",
        "two words",
        "sha256:12",
        "plain-key # again",
        "",
    ];
    fs::write(house.path("old.txt"), lines.join("\n")).unwrap();
    let (is_good, told, beside) = key(&house, &["import", "old.txt", "--note", "from nginx"]);
    assert!(
        is_good && told.starts_with("took over 3 keys; 0 were known already"),
        "{told} {beside}"
    );
    assert!(beside.contains("old.txt:5: line skipped: a blank inside the key"), "{beside}");
    assert!(
        beside.contains("old.txt:6: line skipped: a key's digest has 64 hex digits"),
        "{beside}"
    );
    let named = |name: &str, role: &str| (200, name.to_owned(), role.to_owned());
    assert_eq!(me("plain-key"), named("anna", "user"));
    // What [roles] says of a name goes on counting.
    assert_eq!(me("hashed-key"), named("bert", "operator"));
    let digest: String =
        Sha256::digest("unnamed-key").iter().map(|it| format!("{it:02x}")).collect();
    assert_eq!(me("unnamed-key"), named(&format!("key-{}", &digest[..8]), "user"));
    assert_eq!((me(&format!("sha256:{digest}")).0, me("two words").0), (401, 401));

    let told = good(&house, &["import", "old.txt", "--role", "admin"]);
    assert!(told.starts_with("took over 0 keys; 3 were known already"), "{told}");
    assert_eq!(me("plain-key"), named("anna", "user"), "what is there stays as it is");
    let shown = good(&house, &["show", "anna", "--format", "json"]);
    assert!(shown.contains("\"from nginx\""), "{shown}");
    fs::write(house.path("none.txt"), "# nothing\ntwo words\n").unwrap();
    assert!(bad(&house, &["import", "none.txt"]).contains("none.txt holds no key"));
    let data = [&["key", "import", "-"], &DATA[..]].concat();
    let piped = house.run_with(&data, "piped-key # carl\n");
    assert!(text(&piped).contains("took over 1 key;"), "{}", text(&piped));
    assert_eq!(me("piped-key"), named("carl", "user"));
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
