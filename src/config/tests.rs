//! Every key with a good and a bad value; every kind of mistake with its place.

use proptest::prelude::*;

use super::*;

const EXAMPLE: &str = include_str!("../../portcullis.example.toml");

/// Reads a file with this text.
fn load_text(text: &str) -> (Loaded, Vec<Problem>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.toml");
    std::fs::write(&path, text).unwrap();
    read(&Given { file: Some(path), ..Given::default() })
}

fn problems(text: &str) -> Vec<String> {
    let (_, problems) = load_text(text);
    let place = |problem: &Problem| problem.place.rsplit('/').next().unwrap().to_owned();
    problems.iter().map(|problem| format!("{}: {}", place(problem), problem.says)).collect()
}

fn config(text: &str) -> Config {
    let (loaded, problems) = load_text(text);
    assert_eq!(problems, [], "{text}");
    loaded.config
}

/// A key's line, in its table where it has one.
fn line(key: &str, value: &str) -> String {
    match key.split_once('.') {
        None => format!("{key} = {value}\n"),
        Some(("backend", name)) => format!("[[backend]]\n{name} = {value}\n"),
        Some((table, name)) => format!("[{table}]\n{name} = {value}\n"),
    }
}

/// Key, a good value that is not the default, a bad one, and a word of what is said to it.
const VALUES: [(&str, &str, &str, &str); 36] = [
    ("listen", "[\"127.0.0.1:0\", \"[::1]:80\"]", "[\"localhost\"]", "ADDRESS:PORT"),
    ("upstream", "\"http://gpu:11434\"", "\"gpu:11434\"", "http://"),
    ("htpasswd", "\"users\"", "7", "text"),
    ("api_keys", "\"keys\"", "[1]", "list of something else"),
    ("authorized_keys", "\"machines\"", "true", "text"),
    ("path_keys", "true", "\"yes\"", "true or false"),
    ("weak_hashes", "\"refuse\"", "\"never\"", "warn or refuse"),
    ("credential_headers", "[\"x-key\"]", "[\"x key\"]", "header"),
    ("failed_attempts_per_minute", "0", "-1", "number"),
    ("default_role", "\"user\"", "\"root\"", "viewer, user, operator and admin"),
    ("extra_endpoints", "[\"GET /api/x\"]", "[\"GET /api/../x\"]", "GET /api/x"),
    ("public_url", "\"https://gate.example.com\"", "\"gate\"", "web address"),
    ("help_url", "\"https://wiki.example.com/gate\"", "\"ftp://x/\"", "web address"),
    ("contact", "\"Anna, room 4\"", "\"a\\u0007b\"", "plain text"),
    ("trusted_proxies", "[\"10.0.0.0/8\", \"192.0.2.1\"]", "[\"10.0.0.0/99\"]", "network"),
    ("max_body", "\"1MiB\"", "\"many\"", "64KiB"),
    ("max_body_memory", "1048576", "0", "refuse every body"),
    ("log_format", "\"json\"", "\"xml\"", "text or json"),
    ("drain_delay", "\"5s\"", "\"5\"", "duration"),
    ("drain_timeout", "\"2m\"", "\"soon\"", "duration"),
    ("roles.viewer", "[\"v\"]", "1", "list"),
    ("roles.user", "[\"u*\"]", "[\"\"]", "empty"),
    ("roles.operator", "[\"homeassistant\"]", "true", "list"),
    ("roles.admin", "[\"anna\"]", "[\"a\\u0000\"]", "control"),
    ("cors.origins", "[\"https://chat.example.com\"]", "[\"*\", \"https://x\"]", "any origin"),
    ("timeouts.connect", "\"1s\"", "\"0s\"", "no time"),
    ("timeouts.first_byte", "\"1s\"", "\"1 day\"", "duration"),
    ("timeouts.idle", "\"1s\"", "5", "duration"),
    ("timeouts.header", "\"1s\"", "\"99999999999999999999s\"", "duration"),
    ("timeouts.keep_alive", "\"1s\"", "\"-1s\"", "duration"),
    ("timeouts.body_grace", "\"1s\"", "\"99999999d\"", "duration"),
    ("backend.name", "\"gpu-1\"", "\"a b\"", "letters"),
    ("backend.url", "\"http://[::1]:11434\"", "\"https://gpu\"", "not yet known"),
    ("backend.key_file", "\"key\"", "1", "text"),
    ("backend.preserve_host", "true", "1", "true or false"),
    ("backend.kind", "\"ollama\"", "\"openai\"", "ollama"),
];

#[test]
fn every_key_takes_a_good_value_and_tells_of_a_bad_one() {
    for (key, good, bad, word) in VALUES {
        assert_eq!(problems(&line(key, good)), [""; 0], "{key}");
        let told = problems(&line(key, bad));
        assert_eq!(told.len(), 1, "{key}: {told:?}");
        assert!(told[0].contains(word) && told[0].contains(key), "{told:?}");
    }
    let mut tested: Vec<_> = VALUES.iter().map(|row| row.0).collect();
    let mut known: Vec<_> = KEYS.iter().map(|key| key.name).collect();
    (tested.sort_unstable(), known.sort_unstable());
    assert_eq!(tested, known, "every key of the table has a row here");
}

#[test]
fn every_good_value_changes_the_configuration() {
    let unchanged = format!("{:?}", Config::builtin());
    for (key, good, _, _) in VALUES.iter().filter(|row| row.0 != "backend.kind") {
        assert_ne!(format!("{:?}", config(&line(key, good))), unchanged, "{key}");
    }
}

#[test]
fn the_defaults_of_the_table_are_the_defaults() {
    let unchanged = format!("{:?}", Config::builtin());
    for key in &KEYS {
        assert_eq!(
            format!("{:?}", config(&line(key.name, key.default))),
            unchanged,
            "{}",
            key.name
        );
    }
}

#[test]
fn the_example_names_every_key_with_its_default() {
    assert_eq!(format!("{:?}", config(EXAMPLE)), format!("{:?}", Config::builtin()));
    for key in &KEYS {
        let name = key.name.rsplit('.').next().unwrap();
        let written = format!("{name} = {}", key.default);
        let is_there =
            EXAMPLE.lines().any(|line| line.trim_start_matches("# ").starts_with(&written));
        assert!(is_there, "{written}");
    }
    let backend = EXAMPLE.split("# [[backend]]\n").nth(1).unwrap();
    let uncommented = backend.replace("\n# ", "\n").replacen("# ", "", 1);
    assert_eq!(problems(&format!("[[backend]]\n{uncommented}")), [""; 0]);
}

#[test]
fn all_problems_are_told_at_once_with_their_lines() {
    let text =
        "path_keys = 1\nlisten = [\"x\"]\n\nhtpaswd = \"f\"\n[timeouts]\nidel = \"1s\"\ntls = 1\n";
    let told = problems(text);
    assert_eq!(told.len(), 5, "{told:#?}");
    for (line, word) in
        [(1, "true or false"), (2, "ADDRESS"), (4, "htpasswd"), (6, "timeouts.idle"), (7, "tls")]
    {
        let place = format!("p.toml:{line}: ");
        assert!(
            told.iter().any(|says| says.starts_with(&place) && says.contains(word)),
            "{told:#?}"
        );
    }
}

#[test]
fn a_key_of_a_later_version_is_refused_not_ignored() {
    for key in keys::LATER {
        let text = match key.split_once('.') {
            Some((_, name)) => format!("[[backend]]\n{name} = 1\n"),
            None if matches!(key, "rule" | "key" | "alias") => format!("[[{key}]]\nx = 1\n"),
            None if matches!(key, "groups" | "prices" | "tls" | "audit") => {
                format!("[{key}]\nx = 1\n")
            }
            None => format!("{key} = 1\n"),
        };
        let told = problems(&text);
        assert!(told.len() == 1 && told[0].contains("not yet known"), "{key}: {told:?}");
    }
    assert!(problems("[[backend]]\n[[backend]]\n")[0].contains("several backends"));
    assert!(problems("listen = [\"unix:/x\"]")[0].contains("not yet known"));
}

#[test]
fn two_ways_to_name_the_backend_are_one_too_many() {
    let told = problems("upstream = \"http://a\"\n[[backend]]\nurl = \"http://b\"\n");
    assert!(told.len() == 1 && told[0].starts_with("p.toml:1: "), "{told:?}");
    assert!(problems("[backend]\nurl = \"http://b\"\n")[0].contains("[[backend]]"));
}

#[test]
fn text_that_is_not_toml_is_told_with_line_and_column() {
    let told = problems("listen = [\n\npath_keys = = true\n");
    assert!(told.len() == 1 && told[0].contains("p.toml:3: not TOML at column"), "{told:?}");
}

#[test]
fn a_flag_stands_over_a_variable_over_the_file_over_the_default() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.toml");
    std::fs::write(
        &path,
        "listen = [\"1.1.1.1:1\"]\nupstream = \"http://file\"\nhtpasswd = \"u\"\n",
    )
    .unwrap();
    let env = [
        ("LISTEN", "2.2.2.2:2,[::1]:3"),
        ("UPSTREAM", "http://env"),
        ("PATH_KEYS", "true"),
        ("FAILED_ATTEMPTS_PER_MINUTE", "5"),
    ];
    let mut given = Given {
        file: Some(path),
        flags: vec![("listen", "3.3.3.3:3".to_owned()), ("api_keys", "keys".to_owned())],
        env: env.iter().map(|(k, v)| (format!("PORTCULLIS_{k}"), (*v).to_owned())).collect(),
    };
    let config = load(&given).unwrap().config;
    assert_eq!(config.listen, ["3.3.3.3:3".parse().unwrap()]);
    assert_eq!(config.backend.url.host, "env");
    assert_eq!(config.htpasswd, Some(folder.path().join("u")), "relative to the file");
    assert_eq!(config.api_keys, Some(PathBuf::from("keys")), "relative to here");
    assert!(config.path_keys && config.failed_attempts_per_minute == 5);
    given.flags.clear();
    assert_eq!(load(&given).unwrap().config.listen.len(), 2);
}

#[test]
fn only_a_variable_that_looks_like_a_slip_is_told() {
    let given = |name: &str| Given {
        env: vec![(format!("PORTCULLIS_{name}"), "tcp://10.0.0.1:80".to_owned())],
        flags: vec![("api_keys", "k".to_owned())],
        file: None,
    };
    assert!(load(&given("PORT")).unwrap().warnings.is_empty(), "Kubernetes sets it");
    assert!(load(&given("SERVICE_HOST")).unwrap().warnings.is_empty());
    let warnings = load(&given("HTPASWD")).unwrap().warnings;
    assert!(warnings[0].says.contains("PORTCULLIS_HTPASSWD"), "{warnings:?}");
    let problems = load(&given("LOG_FORMAT")).unwrap_err();
    assert_eq!(problems.0[0].place, "PORTCULLIS_LOG_FORMAT");
}

#[test]
fn a_gate_without_any_login_is_refused_with_advice() {
    let problems = load(&Given::default()).unwrap_err().to_string();
    assert!(problems.contains("--htpasswd") && problems.contains("portcullis try"), "{problems}");
    assert!(load_without_credentials(&Given::default()).is_ok());
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem() {
    let given = Given { file: Some("/nowhere/p.toml".into()), ..Given::default() };
    let problems = load(&given).unwrap_err();
    assert_eq!(problems.0[0].place, "/nowhere/p.toml");
}

#[test]
fn a_login_in_an_address_is_refused_and_not_repeated() {
    let told =
        problems("upstream = \"http://user:canary@gpu:1\"\npublic_url = \"https://a:canary@b/\"");
    assert_eq!(told.len(), 2);
    assert!(!told.concat().contains("canary"), "{told:?}");
}

#[test]
fn one_name_cannot_have_two_roles() {
    let told = problems("[roles]\nadmin = [\"anna\"]\nuser = [\"anna\"]\n");
    assert!(told.len() == 1 && told[0].contains("already"), "{told:?}");
}

#[test]
fn an_address_listened_on_twice_is_a_slip() {
    assert!(problems("listen = [\"1.1.1.1:1\", \"1.1.1.1:1\"]")[0].contains("twice"));
    assert_eq!(problems("listen = [\"127.0.0.1:0\", \"127.0.0.1:0\"]"), [""; 0]);
    assert!(problems("listen = []")[0].contains("one address"));
}

#[test]
fn a_backends_address_is_host_and_port() {
    let url = |text: &str| text.parse::<BackendUrl>();
    assert_eq!(url("http://gpu").unwrap().authority(), "gpu");
    assert_eq!(url("http://gpu/").unwrap().authority(), "gpu");
    assert_eq!(url("http://gpu:11434").unwrap().authority(), "gpu:11434");
    assert_eq!(url("http://[::1]:11434").unwrap().authority(), "[::1]:11434");
    assert_eq!(url("http://gpu/ollama"), Err(values::BadUrl::Path));
    assert_eq!(url("http://gpu:99999"), Err(values::BadUrl::NoUrl));
    assert_eq!(url("ftp://gpu"), Err(values::BadUrl::Scheme));
    assert_eq!(url(""), Err(values::BadUrl::NoUrl));
}

proptest! {
    #[test]
    fn no_text_makes_reading_panic(text in "\\PC{0,80}") {
        let _ = load_text(&text);
    }

    #[test]
    fn no_value_makes_reading_panic(key in 0..KEYS.len(), value in "[\\[\\]\"a-z0-9:/.*-]{0,20}") {
        let _ = load_text(&line(KEYS[key].name, &value));
        let flags = vec![(KEYS[key].name, value)];
        let _ = read(&Given { flags, ..Given::default() });
    }
}
