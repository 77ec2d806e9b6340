//! What is wrong, in which words, and which of several places counts.

use super::*;

#[test]
fn all_problems_are_told_at_once_in_the_order_of_their_lines() {
    let text = "path_keys = 1\nlisten = [\n  'x',\n  '127.0.0.1:1',\n  'y',\n]\nhtpaswd = 'f'\n\
                [timeouts]\nidel = '1s'\n[cors]\nupgrades = 1\n[audit]\ncontent = 'x'\n";
    let told = problems(text);
    let expected = [
        ("p.toml:1: ", "true or false"),
        ("p.toml:3: ", "ADDRESS:PORT"),
        ("p.toml:5: ", "ADDRESS:PORT"),
        ("p.toml:7: ", "did you mean htpasswd?"),
        ("p.toml:9: ", "did you mean timeouts.idle?"),
        ("p.toml:11: ", "cors.upgrades is not yet known"),
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
        ("[[aliases]]\nname = 'x'", "did you mean [[alias]]?"),
        ("[audits]\ncontent = 'x'", "audit, if you mean that, comes with a later version"),
        (
            "[something]\nx = 'x'",
            "roles, groups, prices, tls, cors, timeouts, backend, alias, rule, key and limit are",
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
        ("[roles]\nanna = 'admin'", "a role has its names: admin = [\"anna\"]"),
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
    assert_eq!(config.backends[0].url.authority(), "env");
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
