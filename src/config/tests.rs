//! Every key with good and bad values; every kind of mistake with its place.

use proptest::prelude::*;
use tempfile::TempDir;

use super::keys::{LATER, LATER_TABLES};
use super::*;

mod told;

const EXAMPLE: &str = include_str!("../../portcullis.example.toml");

/// A folder with a file of this text, and what names it.
pub(super) fn file_of(text: impl AsRef<[u8]>) -> (TempDir, Given) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.toml");
    std::fs::write(&path, text).unwrap();
    (folder, Given { file: Some(path), ..Given::default() })
}

fn read_text(text: impl AsRef<[u8]>) -> Reading {
    let (_folder, given) = file_of(text);
    read(&given)
}

/// As `p.toml:LINE: what it says`.
pub(super) fn problems(text: impl AsRef<[u8]>) -> Vec<String> {
    let told = read_text(text).problems;
    let name = |problem: &Problem| problem.place.rsplit('/').next().unwrap().to_owned();
    told.iter().map(|problem| format!("{}: {}", name(problem), problem.says)).collect()
}

pub(super) fn config(text: &str) -> Config {
    let reading = read_text(text);
    assert_eq!(reading.problems, [], "{text}");
    reading.loaded.config
}

/// Only paths differ from folder to folder, so a configuration is compared as it prints.
fn print(config: &Config) -> String {
    format!("{config:#?}")
}

/// A key's line, in its table where it has one.
fn line(key: &str, value: &str) -> String {
    match key.split_once('.') {
        None => format!("{key} = {value}\n"),
        Some(("alias", name)) => {
            let rest = if name == "name" { "model = 'm'" } else { "name = 'n'" };
            format!("[[alias]]\n{name} = {value}\n{rest}\n")
        }
        Some((table @ ("backend" | "rule" | "limit"), name)) => {
            let more = match name {
                "groups" if table == "limit" => "concurrent = 1\n[groups]\nstudents = ['s*']\n",
                "per" | "names" | "roles" | "keys" | "models" if table == "limit" => {
                    "concurrent = 1\n"
                }
                "acts_for" => "names = ['webui']\n",
                "groups" => "[groups]\nstudents = ['s*']\n",
                _ => "",
            };
            format!("[[{table}]]\n{name} = {value}\n{more}")
        }
        Some(("key", name)) => {
            let rest = |it: &str| match name == it.split(' ').next().unwrap_or_default() {
                true => String::new(),
                false => format!("{it}\n"),
            };
            format!("[[key]]\n{name} = {value}\n{}{}", rest("name = 'n'"), rest(&digest_line()))
        }
        Some(("groups", _)) => format!("[groups]\nstudents = {value}\n"),
        Some(("prices", _)) => format!("[prices]\n\"gemma3*\" = {value}\n"),
        Some((table, name)) => format!("[{table}]\n{name} = {value}\n"),
    }
}

fn digest_line() -> String {
    format!("sha256 = '{}'", "7f".repeat(32))
}

fn variables(list: &[(&str, &str)]) -> Given {
    let env = list.iter().map(|(name, value)| (format!("PORTCULLIS_{name}"), (*value).to_owned()));
    let flags = vec![("api_keys", "k".to_owned())];
    Given { file: None, flags, env: env.collect() }
}

/// Key, a good value that is not the default, a bad one, and a word of what is said to it.
const VALUES: [(&str, &str, &str, &str); 116] = [
    ("listen", "['127.0.0.1:0', '[::1]:80', 'unix:/run/gate']", "['localhost:1']", "ADDRESS:PORT"),
    ("redirect_listen", "'127.0.0.1:80'", "'gate:80'", "ADDRESS:PORT"),
    ("admin", "'127.0.0.1:81'", "'gate:81'", "ADDRESS:PORT"),
    ("tls_cert", "'gate.pem'", "7", "a file's path"),
    ("tls_key", "'gate.key'", "['gate.key']", "a file's path"),
    ("upstream", "'http://gpu:11434'", "'gpu:11434'", "http://"),
    ("htpasswd", "'users'", "7", "users.htpasswd\", found a number"),
    ("api_keys", "'keys'", "['keys']", "a file's path"),
    ("authorized_keys", "'machines'", "true", "found true or false"),
    ("data_dir", "'data'", "7", "a folder's path"),
    ("path_keys", "true", "'yes'", "true or false, without quotes, found a text"),
    ("weak_hashes", "'refuse'", "'never'", "\"warn\" or \"refuse\""),
    ("credential_headers", "['x-key']", "['x key']", "header"),
    ("failed_attempts_per_minute", "0", "-1", "from 0 to"),
    ("default_role", "'user'", "'root'", "viewer, user, operator and admin"),
    ("extra_endpoints", "['GET /api/x']", "['GET /api/../x']", "GET /api/x"),
    ("public_url", "'https://gate.example.com'", "'gate'", "web address"),
    ("help_url", "'https://wiki.example.com/gate'", "'ftp://x/'", "web address"),
    ("contact", "'Anna, room 4'", "\"a\\u0007b\"", "plain text"),
    ("trusted_proxies", "['10.0.0.0/8', '192.0.2.1']", "['10.0.0.0/99']", "network"),
    ("proxy_protocol_from", "['10.0.0.0/8']", "['lb']", "network"),
    ("max_connections", "100", "0", "from 1 to"),
    ("max_connections_per_address", "100", "'many'", "a whole number"),
    ("max_body", "'1MiB'", "'many'", "64KiB"),
    ("max_body_memory", "1_073_741_825", "0", "refused"),
    ("h2c", "true", "'on'", "true or false, without quotes, found a text"),
    ("log_format", "'json'", "'xml'", "\"text\" or \"json\""),
    ("drain_delay", "'5s'", "5", "a duration such as \"30s\", found a number"),
    ("time_zone", "'Europe/Berlin'", "'Europe/Belrin'", "did you mean Europe/Berlin?"),
    ("ledger", "'durable'", "'sync'", "\"journal\" or \"durable\""),
    ("keep", "'30d'", "'23h'", "at least a day"),
    ("queue_timeout", "'1m'", "'25h'", "at most 24 hours"),
    ("heartbeat", "'15s'", "'2h'", "at most an hour"),
    ("drain_timeout", "'2m'", "'25h'", "at most 24 hours"),
    ("roles.viewer", "['v']", "1", "a list such as"),
    ("roles.user", "['u*']", "['']", "empty"),
    ("roles.operator", "'o'", "[1]", "found a number in it"),
    ("roles.admin", "['anna', 'anna']", "[\"a\\nb\"]", "control"),
    (
        "tls.pairs",
        "[{ cert = 'b.pem', key = 'b.key' }]",
        "[{ cert = 'b.pem' }]",
        "both cert and key",
    ),
    ("tls.client_ca", "'ca.pem'", "true", "a file's path"),
    ("tls.client_auth", "'optional'", "'on'", "\"off\", \"optional\" or \"required\""),
    ("tls.client_cert_login", "true", "'yes'", "true or false"),
    ("cors.origins", "['https://chat.example.com']", "['*', 'https://a']", "alone"),
    ("traces.endpoint", "'http://127.0.0.1:4318'", "'collector'", "http://127.0.0.1:4318"),
    ("traces.sample", "100", "0", "from 1 to"),
    ("timeouts.connect", "'1s'", "'0s'", "no time"),
    ("timeouts.first_byte", "'1h'", "'1y'", "not a duration"),
    ("timeouts.idle", "'1m'", "'60'", "60 of what?"),
    ("timeouts.header", "'500ms'", "1.5", "a number with a fraction"),
    ("timeouts.keep_alive", "'5s'", "1979-05-27", "a date"),
    ("timeouts.body_grace", "'1s'", "'999d'", "at most 720 hours"),
    ("backend.name", "'gpu-1'", "'gpu 1'", "letters, digits"),
    ("backend.url", "'http://[::1]:11434'", "'http://gpu/v1'", "the path is the caller's"),
    ("backend.kind", "'openai'", "'vllm'", "\"ollama\" or \"openai\""),
    ("backend.weight", "2.5", "0", "from 0.001 to 1000"),
    ("backend.parallel", "4", "0", "from 1 to"),
    ("backend.models_at_once", "2", "'many'", "\"auto\" or a whole number"),
    ("backend.ask_usage", "true", "1", "true or false"),
    ("backend.manage", "true", "'yes'", "true or false"),
    ("backend.tags", "['room=4', 'fast']", "['a b']", "letters, digits"),
    ("alias.name", "'gpt-4o'", "'gpt 4o'", "names no model"),
    ("alias.model", "['gemma3:12b', 'gemma3:4b']", "[]", "name one at least"),
    ("rule.weight", "0.5", "'heavy'", "a number such as 2"),
    ("rule.manage", "['ollama']", "['a b']", "letters, digits"),
    ("rule.priority", "'batch'", "'low'", "\"interactive\" or \"batch\""),
    ("backend.key_file", "'key'", "{ a = 1 }", "found a table"),
    ("backend.ca_file", "'ca.pem'", "1", "a file's path"),
    ("backend.preserve_host", "true", "1", "true or false"),
    ("hide_models", "true", "'yes'", "true or false"),
    ("groups.*", "['s01*', 'anna']", "7", "a list of names"),
    ("prices.*", "{ prompt = 0.1, completion = 1 }", "{ prompt = -1 }", "a number from 0"),
    ("rule.names", "['anna', 's*']", "[]", "an empty list is nobody"),
    ("rule.roles", "['user']", "['boss']", "is no role"),
    ("rule.groups", "'students'", "['a/b']", "without a /"),
    ("rule.keys", "['laptop']", "['']", "a name is not empty"),
    ("rule.models", "['gemma3*']", "['all']", "stands alone"),
    ("rule.cloud", "true", "1", "true or false"),
    ("rule.endpoints", "['inference', '/api/show']", "['GET /x']", "neither a path"),
    ("rule.policy", "{ num_ctx = { max = 8192 } }", "{ model = 'drop' }", "cannot be changed"),
    ("rule.acts_for", "'x-openwebui-user-id'", "'authorization'", "authorization"),
    ("rule.requests_per_minute", "10", "0", "refuse every request"),
    ("rule.tokens_per_minute", "20000", "-5", "from 1 to"),
    ("rule.tokens_per_day", "100_000", "'many'", "a whole number"),
    ("rule.tokens_per_month", "2_000_000", "1.5", "a number with a fraction"),
    ("rule.gpu_seconds_per_day", "600", "1_000_000_000_000_001", "at most"),
    ("rule.gpu_seconds_per_month", "7200", "[1]", "found a list"),
    ("rule.concurrent", "2", "true", "a whole number"),
    ("key.name", "'laptop'", "'a/b'", "without a /"),
    ("key.owner", "'anna'", "'a\tb'", "without a /"),
    ("key.role", "'user'", "'boss'", "is no role"),
    (
        "key.sha256",
        "'8888888888888888888888888888888888888888888888888888888888888888'",
        "'88'",
        "64 hex digits",
    ),
    ("key.models", "'all'", "['']", "pattern"),
    ("key.cloud", "false", "'never'", "true or false"),
    ("key.expires", "'2027-01-31'", "'soon'", "write it as a day"),
    ("key.networks", "['10.0.0.0/8']", "['10.0.0.0/99']", "10.0.0.0/99"),
    ("key.note", "'Anna, room 4'", "\"a\\nb\"", "one line"),
    ("key.requests_per_minute", "10", "0", "refuse every request"),
    ("key.tokens_per_minute", "20000", "-5", "from 1 to"),
    ("key.tokens_per_day", "100_000", "'many'", "a whole number"),
    ("key.tokens_per_month", "2_000_000", "1.5", "a number with a fraction"),
    ("key.gpu_seconds_per_day", "600", "1_000_000_000_000_001", "at most"),
    ("key.gpu_seconds_per_month", "7200", "[1]", "found a list"),
    ("key.concurrent", "2", "true", "a whole number"),
    ("limit.per", "'all'", "'user'", "\"identity\", \"key\""),
    ("limit.names", "['anna', 's*']", "[]", "an empty list is nobody"),
    ("limit.roles", "['user']", "['boss']", "is no role"),
    ("limit.groups", "'students'", "['a/b']", "without a /"),
    ("limit.keys", "['laptop']", "['']", "a name is not empty"),
    ("limit.models", "['gemma3*']", "['all']", "stands alone"),
    ("limit.requests_per_minute", "10", "0", "refuse every request"),
    ("limit.tokens_per_minute", "20000", "-5", "from 1 to"),
    ("limit.tokens_per_day", "100_000", "'many'", "a whole number"),
    ("limit.tokens_per_month", "2_000_000", "1.5", "a number with a fraction"),
    ("limit.gpu_seconds_per_day", "600", "1_000_000_000_000_001", "at most"),
    ("limit.gpu_seconds_per_month", "7200", "[1]", "found a list"),
    ("limit.concurrent", "2", "true", "a whole number"),
];

#[test]
fn every_key_takes_a_good_value_and_tells_of_a_bad_one() {
    for (key, good, bad, word) in VALUES {
        assert_eq!(problems(line(key, good)), [""; 0], "{key}");
        let told = problems(line(key, bad));
        assert_eq!(told.len(), 1, "{key}: {told:?}");
        // As `line` writes them.
        let named = key.replace("groups.*", "groups.students");
        let named = named.replace("prices.*", "prices.\"gemma3*\"");
        let starts = format!("p.toml:{}: {named}: ", if key.contains('.') { 2 } else { 1 });
        assert!(told[0].starts_with(&starts) && told[0].contains(word), "{told:?}");
    }
    let mut tested: Vec<_> = VALUES.iter().map(|row| row.0).collect();
    let mut known: Vec<_> = reference().iter().map(|key| key.name).collect();
    tested.sort_unstable();
    known.sort_unstable();
    assert_eq!(tested, known, "every key of the table has a row here");
}

#[test]
fn every_good_value_sets_something_of_its_own() {
    let mut seen = vec![print(&Config::builtin())];
    for (key, good, _, _) in VALUES {
        // The folder is another one each time.
        let changed = print(&config(&line(key, good)));
        assert!(!seen.contains(&changed), "{key}");
        seen.push(changed);
    }
}

#[test]
fn the_defaults_of_the_table_are_the_defaults() {
    // Of what there may be any number of there is none by default.
    let once = |key: &&Key| {
        !matches!(
            key.in_table().0,
            Some("backend" | "alias" | "rule" | "key" | "limit" | "groups" | "prices")
        )
    };
    for key in reference().iter().filter(once) {
        let written = config(&line(key.name, key.default));
        assert_eq!(print(&written), print(&Config::builtin()), "{}", key.name);
    }
}

#[test]
fn every_key_without_a_table_is_a_variable_too() {
    for (key, good, bad, _) in VALUES.iter().filter(|row| !row.0.contains('.')) {
        let variable = |value: &str| {
            let value = value.replace("', '", ",").replace(['[', ']', '\'', '_', '{', '}'], "");
            variables(&[(key.to_ascii_uppercase().as_str(), &value)])
        };
        let mut given = if *key == "listen" { variable("'127.0.0.1:0'") } else { variable(good) };
        given.flags.clear();
        let reading = read(&given);
        assert_eq!(reading.problems, [], "{key}");
        let without = read(&Given::default()).loaded.config;
        assert_ne!(print(&reading.loaded.config), print(&without), "{key} has an effect");
        // Any text may be a file's name.
        if matches!(
            *key,
            "htpasswd"
                | "api_keys"
                | "authorized_keys"
                | "contact"
                | "data_dir"
                | "drain_delay"
                | "tls_cert"
                | "tls_key"
        ) {
            continue;
        }
        let told = read(&variable(bad)).problems;
        assert_eq!(told.len(), 1, "{key}: {told:?}");
        assert_eq!(told[0].place, format!("PORTCULLIS_{}", key.to_ascii_uppercase()));
    }
}

#[test]
fn the_example_names_every_key_with_its_default() {
    assert_eq!(print(&config(EXAMPLE)), print(&Config::builtin()));
    for key in reference() {
        let (table, name) = key.in_table();
        let start = table.map_or(Some(0), |table| EXAMPLE.find(&format!("[{table}]"))).unwrap();
        let written = match (table, name) {
            (Some("groups"), _) => "students = [".to_owned(),
            (Some("prices"), _) => "\"gemma3*\" = {".to_owned(),
            // Of what there may be any number of the example shows one.
            (Some("rule" | "key" | "limit" | "alias"), name) => format!("{name} = "),
            (_, name) => format!("{name} = {}", key.default),
        };
        let mut lines = EXAMPLE[start..].lines().map(|line| line.trim_start_matches("# "));
        assert!(lines.any(|line| line.starts_with(&written)), "{table:?} {written}");
    }
}

#[test]
fn the_examples_backend_can_be_taken_as_it_stands() {
    let (_, backend) = EXAMPLE.split_once("\n# [[backend]]\n").unwrap();
    let (backend, _) = backend.split_once("\n\n").unwrap_or((backend, ""));
    let backend = format!("[[backend]]\n{}", backend.replace("\n# ", "\n").replacen("# ", "", 1));
    let mut config = config(&backend);
    let [only] = config.backends.as_mut_slice() else { panic!("{:?}", config.backends) };
    only.place.clear();
    (only.parallel, only.models_at_once) = (None, None);
    assert_eq!(print(&config), print(&Config::builtin()));
}

#[test]
fn the_examples_groups_rules_and_keys_can_be_taken_as_they_stand() {
    let (_, blocks) = EXAMPLE.split_once("\n# [groups]\n").unwrap();
    let blocks = blocks.lines().filter(|line| line.starts_with("# ") && line.contains([']', '=']));
    let blocks: Vec<_> = blocks.map(|line| line.trim_start_matches("# ")).collect();
    let config = config(&format!("[groups]\n{}\n", blocks.join("\n")));
    let Config { groups, rules, keys, limits, .. } = &config;
    assert_eq!((groups.len(), rules.len(), keys.len(), limits.len()), (1, 2, 1, 2));
}

#[test]
fn the_examples_aliases_can_be_taken_as_they_stand() {
    let (_, aliases) = EXAMPLE.split_once("\n# [[alias]]\n").unwrap();
    let (aliases, _) = aliases.split_once("\n\n").unwrap();
    let aliases =
        config(&format!("[[alias]]\n{}", aliases.replace("# ", "").replace('#', ""))).aliases;
    assert_eq!(aliases.len(), 2);
}

#[test]
fn the_examples_prices_can_be_taken_as_they_stand() {
    let (_, prices) = EXAMPLE.split_once("\n# [prices]\n").unwrap();
    let (prices, _) = prices.split_once("\n\n").unwrap();
    let config = config(&format!("[prices]\n{}", prices.replace("# ", "")));
    assert_eq!(config.prices.of("gemma3:12b").map(|price| price.cached), Some(Some(0.05)));
    assert_eq!(config.prices.of("qwen3").map(|price| price.backend_hour), Some(0.12));
}

#[test]
fn a_price_that_is_none_is_told() {
    for (line, word) in [
        ("\"gemma3*\" = 0.1", "prices such as"),
        ("\"gemma3*\" = {}", "has no price"),
        ("\"a b\" = { prompt = 1 }", "no pattern of models"),
        ("\"m\" = { prompt = nan }", "a number from 0"),
        ("\"m\" = { prompt = inf }", "a number from 0"),
        ("\"m\" = { prompt = 1e308 }", "a number from 0"),
        ("\"m\" = { prompt = -0.1 }", "a number from 0"),
        ("\"m\" = { prompt = '1' }", "without quotes"),
        ("\"m\" = { output = 1 }", "none of prompt"),
        ("\"m\" = { cached = 1 }", "write prompt too"),
        ("\"m\" = { prompt = 1 }\n\"M\" = { prompt = 2 }", "already"),
    ] {
        let told = problems(format!("[prices]\n{line}\n"));
        assert!(told.len() == 1 && told[0].contains(word), "{line}: {told:?}");
    }
    for (name, told) in [("m", "prices.m: "), ("\"gemma3:*\"", "prices.\"gemma3:*\": ")] {
        let problem = &problems(format!("[prices]\n{name} = {{ prompt = -1 }}\n"))[0];
        assert!(problem.contains(told), "{problem}");
    }
    assert!(problems("[[prices]]\nm = 1\n")[0].contains("did you mean [prices]?"));
}

#[test]
fn the_lines_that_init_changes_stand_once_in_the_example() {
    for line in [
        "\ndefault_role = \"operator\"",
        "\napi_keys = \"\"",
        "\ntls_cert = \"\"",
        "\ntls_key = \"\"",
    ] {
        assert_eq!(EXAMPLE.matches(line).count(), 1, "{line:?}");
    }
}
