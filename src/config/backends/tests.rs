//! Tests of backends and aliases as they are written together.

use super::super::tests::{config, problems};
use super::*;

fn model(text: &str) -> ModelName {
    ModelName::parse(text).unwrap()
}

fn stands_for(text: &str, name: &str) -> Vec<String> {
    let aliases = Aliases::new(&config(text).aliases);
    let models = aliases.find(&model(name)).unwrap_or_default();
    models.iter().map(|it| it.text.clone()).collect()
}

#[test]
fn backends_stand_in_the_order_of_the_file_in_place_of_the_default() {
    let text = "[[backend]]\nname = 'a'\nurl = 'http://a:1'\n[[backend]]\nname = 'b'\nkind = 'openai'\n\
                parallel = 'auto'\nweight = 0.5\n";
    let backends = config(text).backends;
    let names: Vec<_> = backends.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!((backends[0].parallel(), backends[1].parallel()), (AtOnce::Auto, AtOnce::Auto));
    assert_eq!(backends[1].models_at_once(), AtOnce::Unbounded);
    assert_eq!(backends[1].weight.thousandths(), 500);
    assert_eq!(config("").backends.len(), 1);
}

#[test]
fn what_only_one_backend_may_have_is_told_of_the_second() {
    let two = |keys: &str| format!("[[backend]]\n{keys}\n[[backend]]\n{keys}\nname = 'b'\n");
    let told = problems("[[backend]]\n[[backend]]\n");
    assert!(told.len() == 1 && told[0].starts_with("p.toml:2: "), "{told:?}");
    assert!(told[0].contains("a second [[backend]] has the name"), "{told:?}");
    assert!(problems(two("manage = true"))[0].contains("one may have it"));
    assert_eq!(problems(two("manage = false")), [""; 0]);
    assert!(problems("backend = []\n")[0].contains("two brackets"));
}

#[test]
fn who_is_to_manage_models_is_a_backend_of_the_file_that_knows_how() {
    let file = "[[backend]]\nname = 'a'\ntags = ['lab']\n[[backend]]\nname = 'b'\ntags = ['lab']\n\
                [[backend]]\nname = 'c'\nkind = 'openai'\ntags = ['cpp']\n[[rule]]\nmanage = ";
    let managers = |list: &str| config(&format!("{file}{list}\n")).rules[0].manage.clone();
    let name = NamedBackends::Name("a".to_owned());
    assert_eq!(managers("['a', 'tag:lab']"), [name, NamedBackends::Tag("lab".to_owned())]);
    for (list, says) in [
        ("['d']", "there is no such"),
        ("['tag:a']", "there is no such"),
        ("['c']", "kind openai"),
        ("['tag:cpp']", "kind openai"),
        ("['a', 'a']", "twice"),
        ("['a b']", "letters"),
        ("['tag:']", "letters"),
    ] {
        let told = problems(format!("{file}{list}\n"));
        assert!(told.len() == 1 && told[0].contains(says), "{list}: {told:?}");
    }
}

#[test]
fn an_alias_stands_for_models_over_other_aliases_each_once() {
    let text = "[[alias]]\nname = 'gpt-4o'\nmodel = ['big', 'gemma3:4b']\n\
                [[alias]]\nname = 'big'\nmodel = ['gemma3:27b', 'gemma3:4b', 'qwen3']\n";
    assert_eq!(stands_for(text, "GPT-4o:latest"), ["gemma3:27b", "gemma3:4b", "qwen3"]);
    assert_eq!(stands_for(text, "qwen3"), [""; 0]);
}

#[test]
fn an_alias_that_names_itself_is_a_model_with_fallbacks() {
    let text = "[[alias]]\nname = 'gemma3:12b'\nmodel = ['gemma3:12b', 'gemma3:4b']\n";
    assert_eq!(stands_for(text, "gemma3:12b"), ["gemma3:12b", "gemma3:4b"]);
    let over = format!("{text}[[alias]]\nname = 'gpt-4o'\nmodel = 'gemma3:12b'\n");
    assert_eq!(stands_for(&over, "gpt-4o"), ["gemma3:12b", "gemma3:4b"]);
}

#[test]
fn an_alias_in_a_circle_and_one_that_says_nothing_are_told() {
    let circle = "[[alias]]\nname = 'a'\nmodel = 'b'\n[[alias]]\nname = 'b'\nmodel = ['x', 'c']\n\
                  [[alias]]\nname = 'c'\nmodel = 'a:latest'\n";
    let told = problems(circle);
    assert!(told.len() == 3 && told[0].contains("leads back to itself"), "{told:?}");
    // Whoever leads into a circle is not in it.
    let into = format!("{circle}[[alias]]\nname = 'd'\nmodel = 'a'\n");
    assert_eq!(problems(&into).len(), 3);
    for (text, word) in [
        ("[[alias]]\nname = 'a'\nmodel = 'a'\n", "stands for itself"),
        ("[[alias]]\nname = 'a'\n", "needs model"),
        ("[[alias]]\nmodel = 'a'\n", "needs a name"),
        ("[[alias]]\nname = 'a'\nmodel = 'b'\n[[alias]]\nname = 'A'\nmodel = 'c'\n", "already"),
    ] {
        let told = problems(text);
        assert!(told.len() == 1 && told[0].contains(word), "{text}: {told:?}");
    }
}

#[test]
fn aliases_that_branch_everywhere_are_read_at_once() {
    let level = |at: usize| {
        let next = at + 1;
        format!(
            "[[alias]]\nname = 'a{at}'\nmodel = ['a{next}', 'm{at}', 'a{next}', 'a{next}:latest']\n"
        )
    };
    let text: String = (0..500).map(level).collect();
    assert_eq!(stands_for(&text, "a0").len(), 501);
}

#[test]
fn an_address_in_a_flag_stands_for_the_only_backend_and_not_for_one_of_several() {
    let (_folder, mut given) = super::super::tests::file_of(
        "api_keys = 'k'\n[[backend]]\nname = 'a'\n[[backend]]\nname = 'b'\n",
    );
    given.flags = vec![("upstream", "http://c".to_owned())];
    let told = super::super::load(&given).unwrap_err().to_string();
    assert!(told.contains("--upstream") && told.contains("several"), "{told}");
}

#[test]
fn an_address_where_clouds_keep_secrets_is_no_backends() {
    for (url, count) in [
        ("http://169.254.169.254", 1),
        ("http://[fe80::1]:11434", 1),
        ("https://[::ffff:169.254.1.1]", 1),
        ("http://10.0.0.1:11434", 0),
    ] {
        let told = problems(format!("[[backend]]\nurl = '{url}'\n"));
        assert_eq!(told.len(), count, "{url}: {told:?}");
        assert!(told.iter().all(|it| it.contains("link-local")), "{told:?}");
    }
}

#[test]
fn only_addresses_of_the_own_cable_are_refused() {
    for (ip, refused) in [
        ("169.254.169.254", true),
        ("169.254.0.1", true),
        ("::ffff:169.254.169.254", true),
        ("fe80::1", true),
        ("febf::1", true),
        ("fd00:ec2::254", true),
        ("fec0::1", false),
        ("fd00::1", false),
        ("127.0.0.1", false),
        ("::1", false),
        ("10.0.0.1", false),
        ("169.253.255.255", false),
    ] {
        assert_eq!(is_link_local(ip.parse().unwrap()), refused, "{ip}");
    }
}

#[test]
fn there_are_no_more_backends_than_the_queue_has_room_for() {
    let so_many = |number: usize| {
        let block = |at| format!("[[backend]]\nname = 'b{at}'\nurl = 'http://127.0.0.1:{at}'\n");
        problems((1..=number).map(block).collect::<String>())
    };
    assert_eq!(so_many(MOST_BACKENDS), [""; 0]);
    assert!(so_many(MOST_BACKENDS + 1)[0].contains("this is one more"));
}
