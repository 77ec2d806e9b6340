//! Rules as they are written, and slips in them.

use super::*;
use crate::config::{Bounds, Change, Given, load};

fn loaded(text: &str) -> Result<crate::config::Loaded, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.toml");
    std::fs::write(&file, format!("api_keys = 'k'\n{text}")).unwrap();
    let given = Given { file: Some(file.clone()), ..Given::default() };
    let name = format!("{}:", file.display());
    load(&given).map_err(|told| {
        told.0
            .into_iter()
            .map(|it| format!("{} {}", it.place, it.says).replace(&name, ""))
            .collect()
    })
}

fn rules(text: &str) -> Vec<Rule> {
    loaded(text).unwrap().config.rules
}

#[test]
fn rules_stand_in_the_order_of_the_file() {
    let rules = rules(
        "[[rule]]\nnames = ['anna']\nmodels = 'all'\ncloud = true\n\
         [[rule]]\nroles = ['user']\nmodels = ['gemma3*', 'llama3']\n\
         [rule.policy]\nnum_ctx = { max = 8192 }\nkeep_alive = { max = '10m' }\ntools = 'refuse'\n\
         [[rule]]\nmodels = []\n",
    );
    assert_eq!(rules.len(), 3);
    assert_eq!(rules[0].names, Some(vec![Pattern::new("anna")]));
    assert!(rules[0].cloud && rules[0].models == Models::All && rules[0].policy.is_empty());
    assert_eq!(rules[1].roles, Some(vec![Role::User]));
    let policy = &rules[1].policy;
    let max = |max| Change::Clamp(Bounds { min: None, max: Some(max) });
    assert!(policy.changes.contains(&("num_ctx".to_owned(), max(8192.0))));
    assert!(policy.changes.contains(&("keep_alive".to_owned(), max(600.0))));
    assert!(policy.refuses_tools && !policy.refuses_images);
    assert_eq!(rules[2].models, Models::Only(Vec::new()));
    assert!(rules[2].is_everybodys());
}

#[test]
fn changes_of_parameters_are_read_and_slips_are_told() {
    let change = |text: &str| {
        loaded(&format!("[[rule]]\npolicy = {{ {text} }}\n"))
            .map(|it| it.config.rules[0].policy.changes[0].1.clone())
            .map_err(|told| told.join("\n"))
    };
    assert_eq!(change("num_gpu = 'drop'"), Ok(Change::Drop));
    assert_eq!(change("num_ctx = 'loaded'"), Ok(Change::Loaded));
    assert_eq!(change("temperature = { force = 0.5 }"), Ok(Change::Force("0.5".to_owned())));
    assert_eq!(change("keep_alive = { force = '5m' }"), Ok(Change::Force("\"5m\"".to_owned())));
    assert_eq!(change("use_mmap = { force = true }"), Ok(Change::Force("true".to_owned())));
    for (text, word) in [
        ("num_gpu = 'loaded'", "is no change"),
        ("num_gpu = 1", "found a number"),
        ("num_gpu = {}", "changes nothing"),
        ("num_gpu = { max = 1, force = 1 }", "either forced or kept"),
        ("num_gpu = { min = 2, max = 1 }", "a min above its max"),
        ("num_gpu = { most = 1 }", "min, max and force"),
        ("num_gpu = { max = '1' }", "a bound is a number"),
        ("num_gpu = { max = inf }", "a bound is a number"),
        ("stream = 'drop'", "cannot be changed"),
        ("NumCtx = 'drop'", "is no parameter"),
        ("images = 'drop'", "only \"refuse\""),
        ("keep_alive = { force = 'soon' }", "not a duration"),
    ] {
        let told = change(text).unwrap_err();
        assert!(told.starts_with("3 rule.policy: ") && told.contains(word), "{text}: {told}");
    }
}

#[test]
fn a_key_of_the_file_has_the_terms_of_a_managed_one() {
    let digest = "ab".repeat(32);
    let key = |more: &str| {
        let text = format!("[[key]]\nname = 'ci'\nsha256 = '{digest}'\n{more}\n");
        loaded(&text).map(|mut it| it.config.keys.remove(0))
    };
    let plain = key("").unwrap();
    assert_eq!((plain.cloud, plain.note.as_str()), (None, ""));
    let terms = key("cloud = false\nnote = 'Anna, room 4'").unwrap();
    assert_eq!((terms.cloud, terms.note.as_str()), (Some(false), "Anna, room 4"));
    assert_eq!(key("cloud = true").unwrap().cloud, Some(true));
    for (text, word) in [
        ("cloud = 'no'".to_owned(), "true or false"),
        ("note = \"a\\nb\"".to_owned(), "one line of at most 1000 bytes"),
        (format!("note = '{}'", "n".repeat(1001)), "one line of at most 1000 bytes"),
    ] {
        let told = key(&text).unwrap_err();
        assert!(told.len() == 1 && told[0].contains(word), "{text}: {told:?}");
    }
}

#[test]
fn what_cannot_be_meant_is_told_with_its_line() {
    let digest = format!("sha256 = '{}'", "ab".repeat(32));
    for (text, line, word) in [
        ("[[rule]]\ngroups = ['s']".to_owned(), 2, "no group"),
        ("[[rule]]\nacts_for = 'x-user'".to_owned(), 2, "front ends that are named"),
        ("[[rule]]\nnames = ['web*']\nacts_for = 'x-user'".to_owned(), 2, "without a *"),
        (format!("[[key]]\n{digest}"), 2, "needs a name"),
        ("[[key]]\nname = 'a'".to_owned(), 2, "needs sha256"),
        (format!("[[key]]\nname='a'\n{digest}\n[[key]]\nname='b'\n{digest}"), 5, "another [[key]]"),
        ("[rule]\nnames = ['a']".to_owned(), 2, "[[rule]]"),
        ("[[rules]]\nnames = ['a']".to_owned(), 2, "did you mean [[rule]]"),
        ("[[rule]]\nname = ['a']".to_owned(), 3, "rule.name"),
    ] {
        let told = loaded(&text).unwrap_err();
        assert_eq!(told.len(), 1, "{text}: {told:?}");
        assert!(told[0].starts_with(&format!("{line} ")) && told[0].contains(word), "{told:?}");
    }
}

#[test]
fn a_rule_behind_one_that_takes_all_its_callers_is_warned_of() {
    for (first, second, warned) in [
        ("", "names = ['anna']", true),
        ("names = ['a*']", "names = ['anna', 'abel']", true),
        ("names = ['anna']", "names = ['a*']", false),
        ("names = ['anna']", "", false),
        ("roles = ['user', 'viewer']", "roles = ['user']", true),
        ("names = ['anna']\nroles = ['user']", "names = ['anna']", false),
        ("names = ['anna']", "names = ['anna']\nroles = ['user']", true),
    ] {
        let text = format!("[[rule]]\n{first}\n[[rule]]\n{second}\n");
        let warnings = loaded(&text).unwrap().warnings;
        assert_eq!(warnings.len(), usize::from(warned), "{text}: {warnings:?}");
        assert!(warnings.iter().all(|it| it.says.contains("never counts")));
    }
}

#[test]
fn what_several_rules_take_together_is_warned_of_and_so_is_what_is_named_in_vain() {
    let groups = "[groups]\nlab = ['anna', 's0*']\nstaff = ['boss', 'anna']\nnone = []\n";
    for (rules, says) in [
        // Two take what one does not.
        (
            &["names = ['a*']", "names = ['b*']", "names = ['anna', 'bob']"][..],
            "those at 6, 8 match",
        ),
        (
            &["roles = ['user', 'viewer']", "roles = ['operator', 'admin']", ""],
            "those at 6, 8 match",
        ),
        (
            &[
                "names = ['a*']\nroles = ['user']",
                "names = ['*']\nroles = ['admin']",
                "names = ['anna']\nroles = ['user', 'admin']",
            ],
            "those at 6, 9 match",
        ),
        // Groups are their members.
        (&["groups = ['lab']", "names = ['anna', 's01']"], "the one at 6 matches"),
        (&["names = ['anna', 's*']", "groups = ['lab']"], "the one at 6 matches"),
        (&["groups = ['lab']", "names = ['boss']", "groups = ['staff']"], "those at 6, 8 match"),
        (&["groups = ['none']"], "its groups have no members"),
        // Named in vain.
        (
            &["names = ['a*']", "names = ['anna', 'bob', 'abel']"],
            "names these never count here: \"abel\", \"anna\";",
        ),
        (
            &["roles = ['user']", "roles = ['user', 'viewer']"],
            "roles these never count here: \"user\"",
        ),
        (
            &["groups = ['lab']", "groups = ['lab', 'staff']"],
            "groups these never count here: \"lab\"",
        ),
        (&["keys = ['k*']", "keys = ['ci', 'kim']"], "keys these never count here: \"kim\""),
        // The order is there for these.
        (&["names = ['boss']", "groups = ['staff']", "roles = ['user']", ""], ""),
        (&["names = ['anna']", "names = ['a*']", "names = ['*']"], ""),
        (&["names = ['anna']\nroles = ['user']", "names = ['anna', 'bob']"], ""),
        (&["roles = ['user', 'operator', 'viewer']", ""], ""),
        (&["names = ['a*']", "groups = ['lab']"], ""),
        (&["keys = ['ci']", "names = ['ci']"], ""),
        (&["groups = ['staff']", "names = ['a*', 'boss*']"], ""),
    ] {
        let rules: String = rules.iter().map(|rule| format!("[[rule]]\n{rule}\n")).collect();
        let warnings = loaded(&format!("{groups}{rules}")).unwrap().warnings;
        assert_eq!(warnings.len(), usize::from(!says.is_empty()), "{rules}: {warnings:?}");
        let told = warnings.first().map_or(String::new(), |it| {
            let file = it.place.rsplit_once(':').unwrap().0;
            it.says.replace(&format!("{file}:"), "")
        });
        assert!(told.contains(says), "{rules}: {told}");
    }
}

#[test]
fn of_many_that_are_named_in_vain_some_are_told() {
    let names: Vec<_> = (100..200).map(|name| format!("'n{name}'")).collect();
    let names = names.join(", ");
    let rules: String =
        (0..30).map(|at| format!("[[rule]]\nnames = ['{at}', {names}]\n")).collect();
    let warnings = loaded(&rules).unwrap().warnings;
    assert_eq!(warnings.len(), 29);
    let says = &warnings[28].says;
    assert!(
        says.contains("\"n100\", \"n101\", \"n102\"") && says.contains("\"n107\", …;"),
        "{says}"
    );
    assert!(!says.contains("n108"), "{says}");
}

#[test]
fn a_start_does_not_wait_for_what_is_said_of_very_many_rules() {
    let group = |name: &str| {
        let members: Vec<_> = (0..5_000).map(|at| format!("'{name}{at}'")).collect();
        format!("{name} = [{}]\n", members.join(", "))
    };
    let rules = |name: &str| format!("[[rule]]\ngroups = ['{name}']\n").repeat(100);
    let text = format!("[groups]\n{}{}{}{}", group("a"), group("b"), rules("a"), rules("b"));
    // To the end it would be 5,000 callers and 5,000 members for each of 20,000 pairs of rules.
    assert!(loaded(&text).unwrap().warnings.len() < 200);
}

#[test]
fn a_day_counts_to_its_end() {
    let at = |text| expiry(text).map(|moment| moment.to_string());
    assert_eq!(at("2027-01-31"), Ok("2027-02-01T00:00:00Z".to_owned()));
    assert_eq!(at("2027-01-31T18:00:00Z"), Ok("2027-01-31T18:00:00Z".to_owned()));
    assert!(at("31.1.2027").is_err() && at("").is_err());
}

#[test]
fn limits_that_make_no_sense_are_told_and_those_that_never_count_too() {
    let (groups, limit) = ("[groups]\nstudents = ['s*']\n", "[[limit]]\nconcurrent = 2\n");
    for (text, word) in [
        ("[[limit]]\nnames = ['anna']\n".to_owned(), "needs a number"),
        (format!("{limit}groups = ['students']\n"), "there is no group \"students\""),
        (format!("{limit}per = 'group'\n"), "needs groups"),
        (format!("{limit}models = []\n"), "limits nothing"),
        ("[limit]\nconcurrent = 2\n".to_owned(), "two brackets"),
    ] {
        let told = loaded(&text).unwrap_err();
        assert!(told.len() == 1 && told[0].contains(word), "{text}: {told:?}");
    }
    for (text, word) in [
        (format!("{limit}[[limit]]\nconcurrent = 3\n"), Some("concurrent (3) never counts: 2")),
        (format!("{limit}{limit}"), Some("concurrent (2) never counts: 2")),
        (format!("{limit}per = 'key'\n{limit}"), None),
        (format!("{limit}models = ['a']\n{limit}"), None),
        (format!("{limit}groups = ['students']\n{limit}{groups}"), None),
        (
            "[[rule]]\ntokens_per_day = 100\ntokens_per_month = 100\n".to_owned(),
            Some("tokens_per_day (100) never counts: tokens_per_month (100)"),
        ),
    ] {
        let warnings = loaded(&text).unwrap().warnings;
        assert_eq!(warnings.len(), usize::from(word.is_some()), "{text}: {warnings:?}");
        assert!(word.is_none_or(|word| warnings[0].says.contains(word)), "{warnings:?}");
    }
}
