//! Every key with good and bad values; every kind of mistake with its place.

use proptest::prelude::*;
use tempfile::TempDir;

use super::keys::{LATER, LATER_TABLES};
use super::*;

const EXAMPLE: &str = include_str!("../../portcullis.example.toml");

/// A folder with a file of this text, and what names it.
fn file_of(text: impl AsRef<[u8]>) -> (TempDir, Given) {
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
fn problems(text: impl AsRef<[u8]>) -> Vec<String> {
    let told = read_text(text).problems;
    let name = |problem: &Problem| problem.place.rsplit('/').next().unwrap().to_owned();
    told.iter().map(|problem| format!("{}: {}", name(problem), problem.says)).collect()
}

fn config(text: &str) -> Config {
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
const VALUES: [(&str, &str, &str, &str); 100] = [
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
    ("key.expires", "'2027-01-31'", "'soon'", "write it as a day"),
    ("key.networks", "['10.0.0.0/8']", "['10.0.0.0/99']", "10.0.0.0/99"),
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
        let starts = format!("p.toml:{}: {key}: ", if key.contains('.') { 2 } else { 1 });
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
        !matches!(key.in_table().0, Some("rule" | "key" | "limit" | "groups" | "prices"))
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
            (Some("rule" | "key" | "limit"), name) => format!("{name} = "),
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
    assert_eq!(print(&config(&backend)), print(&Config::builtin()));
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

#[test]
fn all_problems_are_told_at_once_in_the_order_of_their_lines() {
    let text = "path_keys = 1\nlisten = [\n  'x',\n  '127.0.0.1:1',\n  'y',\n]\nhtpaswd = 'f'\n\
                [timeouts]\nidel = '1s'\n[cors]\nqueue_timeout = 1\n[audit]\ncontent = 'x'\n";
    let told = problems(text);
    let expected = [
        ("p.toml:1: ", "true or false"),
        ("p.toml:3: ", "ADDRESS:PORT"),
        ("p.toml:5: ", "ADDRESS:PORT"),
        ("p.toml:7: ", "did you mean htpasswd?"),
        ("p.toml:9: ", "did you mean timeouts.idle?"),
        ("p.toml:11: ", "cors.queue_timeout is not yet known"),
        ("p.toml:12: ", "audit is not yet known"),
    ];
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for (told, (place, word)) in told.iter().zip(expected) {
        assert!(told.starts_with(place) && told.contains(word), "{told}");
    }
}

#[test]
fn the_file_the_variables_and_the_flags_are_told_together() {
    let (_folder, mut given) = file_of("log_format = 'xml'\n");
    given.env = variables(&[("MAX_BODY", "many"), ("PATH_KEYS", "yes")]).env;
    given.flags = vec![("upstream", "gpu".to_owned())];
    let problems = load_without_credentials(&given).unwrap_err();
    let places: Vec<_> = problems.0.iter().map(|problem| problem.place.as_str()).collect();
    assert!(places[0].ends_with("p.toml:1"));
    assert_eq!(places[1..], ["PORTCULLIS_MAX_BODY", "PORTCULLIS_PATH_KEYS", "--upstream"]);
    assert_eq!(problems.to_string().lines().count(), 4);
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    for (text, word) in [
        ("htpaswd = 'x'", "did you mean htpasswd?"),
        ("api-keys = 'x'", "did you mean api_keys?"),
        ("apikeys = 'x'", "did you mean api_keys?"),
        ("Listen = 'x'", "did you mean listen?"),
        ("defualt_role = 'x'", "did you mean default_role?"),
        ("[timeout]\nidle = 'x'", "did you mean [timeouts]?"),
        ("[[backends]]\nurl = 'x'", "did you mean [[backend]]?"),
        ("[[aliases]]\nname = 'x'", "alias, if you mean that, comes with a later version"),
        (
            "[something]\nx = 'x'",
            "roles, groups, prices, tls, cors, timeouts, backend, rule, key and limit are",
        ),
        ("[timeouts]\nfirstbyte = '1s'", "did you mean timeouts.first_byte?"),
        ("[[backend]]\nuri = 'x'", "did you mean backend.url?"),
        ("[cors]\norigin = '*'", "did you mean cors.origins?"),
        ("tls_crt = 'x'", "did you mean tls_cert?"),
        ("[tsl]\nclient_ca = 'x'", "did you mean [tls]?"),
        ("[timeouts]\nhtpasswd = 'x'", "htpasswd stands at the top of the file"),
        ("idle = '1s'", "timeouts.idle stands under [timeouts]"),
        ("key_file = 'x'", "backend.key_file stands under [[backend]]"),
        ("operator = ['anna']", "roles.operator stands under [roles]"),
        ("admins = ['anna']", "did you mean admin?"),
        ("completely_different = 1", "portcullis init"),
        ("'a\\u001bb' = 1", "there is no key"),
    ] {
        let told = problems(text);
        assert!(told.len() == 1 && told[0].contains(word), "{text}: {told:?}");
        assert!(!told[0].contains('\u{1b}'));
    }
    let long = format!("{} = 1", "x".repeat(500_000));
    assert!(problems(long)[0].len() < 200);
}

#[test]
fn a_key_of_a_later_version_is_refused_not_ignored() {
    for key in LATER {
        let text = match key.split_once('.') {
            Some((_, name)) => format!("[[backend]]\n{name} = 1\n"),
            None if matches!(key, "rule" | "key" | "alias") => format!("[[{key}]]\nx = 1\n"),
            None if LATER_TABLES.contains(&key) => format!("[{key}]\nx = 1\n"),
            None => format!("{key} = 1\n"),
        };
        let told = problems(&text);
        assert!(told.len() == 1 && told[0].contains("not yet known"), "{key}: {told:?}");
        assert!(told[0].contains("a later one brings it"), "{told:?}");
        if !LATER_TABLES.contains(&key) && !key.contains('.') {
            let given = variables(&[(key.to_ascii_uppercase().as_str(), "x")]);
            let told = load(&given).unwrap_err();
            assert!(told.0[0].says.contains("not yet known"), "{key}: {told:?}");
        }
    }
    assert!(problems("[[backend]]\n[[backend]]\n")[0].contains("second [[backend]] is not yet"));
}

#[test]
fn a_unix_socket_is_a_path_that_starts_at_the_files_folder() {
    let twice = "listen = ['unix:/x', '127.0.0.1:1', 'unix:/x']";
    assert!(problems(twice)[0].contains("twice"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gate.toml");
    std::fs::write(&file, "listen = ['unix:run/gate']\napi_keys = 'k'\n").unwrap();
    let given = Given { file: Some(file), ..Given::default() };
    let listen = load(&given).unwrap().config.listen;
    assert_eq!(listen, [ListenAddr::Unix(folder.path().join("run/gate"))]);
}

#[test]
fn keys_that_mean_nothing_without_each_other_are_told() {
    let told = |text: &str| {
        let (_folder, given) = file_of(format!("api_keys = 'k'\n{text}"));
        load(&given).map_or_else(|told| told.0, |_| Vec::new())
    };
    let pair = "tls_cert = 'c'\ntls_key = 'k'\n";
    for (text, line, word) in [
        ("tls_cert = 'c'", 2, "its key"),
        ("tls_key = 'k'", 2, "its certificate"),
        ("redirect_listen = '127.0.0.1:80'", 2, "leads to TLS"),
        (
            "listen = '127.0.0.1:80'\nredirect_listen = '127.0.0.1:80'\ntls_cert = 'c'\ntls_key = 'k'",
            3,
            "port of its own",
        ),
        (&format!("{pair}[tls]\nclient_auth = 'required'"), 5, "needs client_ca"),
        (&format!("{pair}[tls]\nclient_ca = 'c'"), 5, "no effect"),
        (&format!("{pair}[tls]\nclient_cert_login = true"), 5, "needs client_auth"),
        ("[tls]\nclient_auth = 'optional'\nclient_ca = 'c'", 3, "needs TLS"),
        ("[[backend]]\nca_file = 'c'", 3, "is about an https:// address"),
    ] {
        let told = told(text);
        assert_eq!(told.len(), 1, "{text}: {told:?}");
        assert!(told[0].place.ends_with(&format!("p.toml:{line}")), "{text}: {told:?}");
        assert!(told[0].says.contains(word), "{text}: {told:?}");
    }
    let whole = format!(
        "{pair}redirect_listen = '127.0.0.1:80'\n[tls]\nclient_auth = 'optional'\nclient_ca = 'c'\nclient_cert_login = true\n[[backend]]\nurl = 'https://gpu'\nca_file = 'c'"
    );
    assert_eq!(told(&whole), []);
}

#[test]
fn a_pair_is_a_certificate_and_a_key_in_this_files_folder() {
    let (folder, given) = file_of("[[tls.pairs]]\ncert = 'b.pem'\nkey = 'b.key'\n");
    let (cert, key) = (folder.path().join("b.pem"), folder.path().join("b.key"));
    let config = read(&given).loaded.config;
    assert_eq!(config.tls_pairs(), [PairFiles { cert, key }]);
    for (pairs, word) in [
        ("[{ cert = 'a' }]", "both cert and key"),
        ("[{ cert = 'a', key = '' }]", "names no file"),
        ("[{ cert = 'a', key = 1 }]", "names no file"),
        ("[{ cert = 'a', key = 'k', name = 'x' }]", "no \"name\""),
        ("['a']", "a list such as"),
        ("'a'", "a list such as"),
    ] {
        let told = problems(format!("[tls]\npairs = {pairs}"));
        assert!(told.len() == 1 && told[0].contains(word), "{pairs}: {told:?}");
    }
}

#[test]
fn a_certificate_may_be_the_only_login() {
    let text = "tls_cert = 'c'\ntls_key = 'k'\n[tls]\nclient_auth = 'required'\nclient_ca = 'c'\n";
    assert!(load(&file_of(text).1).unwrap_err().to_string().contains("no login is configured"));
    assert!(load(&file_of(format!("{text}client_cert_login = true\n")).1).is_ok());
}

#[test]
fn tables_that_are_written_otherwise_are_told_how() {
    let told = problems("upstream = 'http://a'\n[[backend]]\nurl = 'http://b'\n");
    assert!(told.len() == 1 && told[0].starts_with("p.toml:1: "), "{told:?}");
    assert!(problems("[backend]\nurl = 'http://b'\n")[0].contains("two brackets"));
    assert!(problems("backend = 'http://b'\n")[0].contains("two brackets"));
    assert!(problems("backend = ['http://b']\n")[0].contains("[[backend]]"));
    assert!(problems("roles = ['anna']\n")[0].contains("write [roles]"));
    assert_eq!(problems("roles = { admin = ['anna'] }\ntimeouts.idle = '1s'\n"), [""; 0]);
}

#[test]
fn text_that_is_not_toml_is_told_with_line_and_column() {
    let told = problems("listen = []\n\npath_keys = = true\nhtpasswd = \"x\n");
    assert!(told[0].starts_with("p.toml:3:13: not TOML: "), "{told:?}");
    assert!(told.iter().any(|told| told.starts_with("p.toml:4:")), "{told:?}");
    assert!(problems("[cors]\norigins = []\norigins = []\n")[0].starts_with("p.toml:3:"));
    assert!(problems("= 1\n".repeat(1000)).len() <= 10);
    let told = load(&file_of("htpasswd = = 'x'").1).unwrap_err();
    assert!(told.0.iter().all(|told| told.place != "configuration"), "a login was meant: {told}");
}

#[test]
fn a_file_of_another_kind_is_told_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let told = |path: PathBuf| {
        let given = Given { file: Some(path), ..Given::default() };
        let told = load(&given).unwrap_err();
        assert_eq!(told.0.len(), 1, "nobody knows whether a login is named in it: {told:?}");
        told.to_string()
    };
    assert!(told(folder.path().join("none.toml")).contains("none.toml  does not exist"));
    assert!(told(folder.path().to_owned()).contains("is a folder"));
    for (bytes, word) in [
        (&b"\xff\xfea\0"[..], "UTF-16"),
        (b"listen = []\n\xff", "p.toml:2: is not UTF-8"),
        (b"listen = [\0]", "not TOML"),
        (&[b'#'; 2 << 20], "larger than 1MiB"),
    ] {
        assert!(problems(bytes)[0].contains(word), "{:?}", problems(bytes));
    }
    assert_eq!(problems("\u{feff}path_keys = true\r\n# x\r\n"), [""; 0], "a BOM and CRLF are fine");
    assert_eq!(problems(""), [""; 0]);
}

#[test]
fn a_flag_stands_over_a_variable_over_the_file_over_the_default() {
    let (folder, mut given) =
        file_of("listen = ['1.1.1.1:1']\nupstream = 'http://file'\nhtpasswd = 'u'\n");
    given.env = variables(&[
        ("LISTEN", "2.2.2.2:2, [::1]:3"),
        ("UPSTREAM", "http://env"),
        ("PATH_KEYS", "true"),
        ("FAILED_ATTEMPTS_PER_MINUTE", "5"),
        ("AUTHORIZED_KEYS", "m"),
    ])
    .env;
    given.flags = vec![("listen", "3.3.3.3:3".to_owned()), ("api_keys", "keys".to_owned())];
    let config = load(&given).unwrap().config;
    assert_eq!(config.listen, ["3.3.3.3:3".parse().unwrap()]);
    assert_eq!(config.backend.url.authority(), "env");
    assert_eq!(config.htpasswd, Some(folder.path().join("u")), "relative to the file");
    assert_eq!(config.api_keys, Some(PathBuf::from("keys")), "relative to here");
    assert_eq!(config.authorized_keys, Some(PathBuf::from("m")), "relative to here");
    assert!(config.path_keys && config.failed_attempts_per_minute == 5);
    assert_eq!(config.max_body, 100 << 20, "a default");
    given.flags.clear();
    assert_eq!(load(&given).unwrap().config.listen.len(), 2);
    given.env.clear();
    assert_eq!(load(&given).unwrap().config.listen, ["1.1.1.1:1".parse().unwrap()]);
    std::fs::write(folder.path().join("p.toml"), "htpasswd = '/etc/u'\n").unwrap();
    assert_eq!(load(&given).unwrap().config.htpasswd, Some(PathBuf::from("/etc/u")));
}

#[test]
fn a_bad_value_is_told_even_if_a_flag_stands_over_it() {
    let (_folder, mut given) = file_of("listen = ['nonsense']\n");
    given.flags = vec![("listen", "127.0.0.1:0".to_owned()), ("api_keys", "k".to_owned())];
    assert_eq!(load(&given).unwrap_err().0.len(), 1);
}

#[test]
fn the_variable_names_the_file_and_the_flag_goes_before_it() {
    let (folder, mut given) = file_of("path_keys = true\napi_keys = 'k'\n");
    let path = given.file.take().unwrap();
    given.env = vec![(CONFIG_VARIABLE.to_owned(), path.display().to_string())];
    let loaded = load(&given).unwrap();
    assert!(loaded.config.path_keys);
    assert_eq!(loaded.file, Some(path));
    assert_eq!(loaded.warnings, []);
    given.file = Some(folder.path().join("other.toml"));
    assert!(load(&given).unwrap_err().0[0].place.ends_with("other.toml"));
    given = variables(&[("CONFIG", "")]);
    assert_eq!(load(&given).unwrap().file, None, "an empty one names none");
}

#[test]
fn only_a_variable_that_looks_like_a_slip_is_told() {
    for name in ["PORT", "SERVICE_HOST", "SERVICE_PORT", "PORT_8880_TCP_ADDR", "ADMIN_KEY", ""] {
        let given = variables(&[(name, "tcp://10.0.0.1:80")]);
        assert_eq!(load(&given).unwrap().warnings, [], "{name}");
    }
    for (name, meant) in [("HTPASWD", "HTPASSWD"), ("APIKEYS", "API_KEYS"), ("LISTNE", "LISTEN")] {
        let warnings = load(&variables(&[(name, "x")])).unwrap().warnings;
        assert_eq!(warnings[0].place, format!("PORTCULLIS_{name}"));
        assert!(warnings[0].says.contains(&format!("PORTCULLIS_{meant}?")), "{warnings:?}");
    }
    let elsewhere = Given { env: vec![("HTPASSWD".into(), "x".into())], ..variables(&[]) };
    assert_eq!(load(&elsewhere).unwrap().config.htpasswd, None);
}

#[test]
fn a_gate_without_any_login_is_refused_with_advice() {
    let (_folder, given) = file_of("path_keys = true\nhtpasswd = ''\n");
    let problems = load(&given).unwrap_err();
    assert!(problems.0.len() == 1 && problems.0[0].place == "configuration");
    for word in ["--htpasswd", "--api-keys", "--authorized-keys", "portcullis try"] {
        assert!(problems.0[0].says.contains(word), "{problems}");
    }
    assert!(load_without_credentials(&given).is_ok());
    for key in LOGINS {
        assert!(load(&file_of(line(key, "'f'")).1).is_ok(), "{key} is enough");
        let told = load(&file_of(line(key, "7")).1).unwrap_err();
        assert_eq!(told.0.len(), 1, "a login was meant: {told}");
    }
}

#[test]
fn a_password_in_a_value_is_never_repeated() {
    let secret = "http://user:canary@gpu:1";
    for key in reference() {
        for value in [format!("'{secret}'"), format!("['{secret}', 'https://a:canary@b']")] {
            let told = problems(line(key.name, &value)).concat();
            assert!(!told.contains("canary"), "{}: {told}", key.name);
        }
        if let Some(variable) = key.variable() {
            let given = Given { env: vec![(variable, secret.to_owned())], ..Given::default() };
            let told = read(&given).problems;
            assert!(!format!("{told:?}").contains("canary"), "{told:?}");
        }
    }
    for text in ["upstream = http://user:canary@gpu", "upstream = 'http://user:canary@gpu"] {
        assert!(!problems(text).concat().contains("canary"), "{:?}", problems(text));
    }
}

#[test]
fn one_name_cannot_have_two_roles() {
    let told = problems("[roles]\nuser = ['bob', 'anna']\n\nadmin = [\n  'anna'\n]\n");
    assert_eq!(told.len(), 1);
    assert!(told[0].starts_with("p.toml:5: roles.admin: \"anna\" is named as user already"));
    let roles = config("[roles]\nadmin = ['anna']\nviewer = ['a*']\n").roles;
    assert_eq!((roles.role_of("anna"), roles.role_of("alf")), (Role::Admin, Role::Viewer));
    assert_eq!(roles.role_of("bob"), Role::Operator);
}

#[test]
fn what_stands_in_a_list_twice_is_a_slip() {
    assert!(problems("listen = ['1.1.1.1:1',\n'1.1.1.1:1']")[0].starts_with("p.toml:2: "));
    assert_eq!(problems("listen = ['127.0.0.1:0', '127.0.0.1:0']"), [""; 0]);
    assert!(problems("credential_headers = ['x-key', 'X-Key']")[0].contains("twice"));
    assert!(problems("listen = []")[0].contains("one address"));
}

#[test]
fn the_memory_for_bodies_holds_one_at_least() {
    assert!(problems("max_body = '2GiB'\n")[0].starts_with("p.toml:1: max_body"));
    let told = problems("max_body = '2MiB'\nmax_body_memory = '1MiB'\n");
    assert!(told.len() == 1 && told[0].starts_with("p.toml:2: "), "{told:?}");
    assert_eq!(problems("max_body = '2MiB'\nmax_body_memory = '2MiB'\n"), [""; 0]);
}

#[test]
fn to_trust_everybody_is_warned_of() {
    for (networks, count) in [("['0.0.0.0/0']", 1), ("['::/0']", 1), ("['10.0.0.0/8']", 0)] {
        let warnings = read_text(format!("trusted_proxies = {networks}")).loaded.warnings;
        assert_eq!(warnings.len(), count, "{networks}");
    }
}

fn near_toml() -> impl Strategy<Value = String> {
    let name = (0..reference().len()).prop_map(|key| reference()[key].name.to_owned());
    let odd = prop::sample::select(LATER.to_vec()).prop_map(str::to_owned);
    let value = "[\\[\\]{}\"'a-z0-9:/.*@,= -]{0,12}";
    let line = (prop_oneof![4 => name, 1 => odd, 1 => "[a-z._]{0,8}"], value);
    let header = "\\[{0,2}(roles|cors|timeouts|backend|tls|[a-z]{1,4})\\]{0,2}";
    let line = line.prop_map(|(name, value)| format!("{name} = {value}"));
    prop::collection::vec(prop_oneof![6 => line, 1 => header], 0..8)
        .prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = load(&file_of(bytes).1);
    }

    #[test]
    fn no_text_makes_reading_panic(text in near_toml()) {
        if let Err(problems) = load(&file_of(&text).1) {
            prop_assert!(!problems.0.is_empty());
            prop_assert_eq!(problems.to_string().lines().count(), problems.0.len(), "{}", problems);
        }
    }

    #[test]
    fn no_flag_and_no_variable_makes_reading_panic(key in 0..reference().len(), value in "\\PC{0,20}") {
        let key = &reference()[key];
        let env = key.variable().map(|name| (name, value.clone()));
        let flags = vec![(key.name, value)];
        let given = Given { file: None, env: env.into_iter().collect(), flags };
        let _ = load(&given);
    }
}
