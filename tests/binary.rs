//! The real executable: its exit codes, what it says, and how it starts, reloads and stops.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, also in its helpers"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use tempfile::TempDir;

#[path = "binary/disk.rs"]
mod disk;
#[path = "binary/explain.rs"]
mod explain;
#[path = "binary/journal.rs"]
mod journal;
#[path = "binary/keys.rs"]
mod keys;
#[path = "binary/ledger.rs"]
mod ledger;
#[path = "binary/life.rs"]
mod life;
#[path = "binary/load.rs"]
mod load;
#[path = "it/machine.rs"]
mod machine;
#[path = "binary/managed.rs"]
mod managed;
#[path = "binary/many.rs"]
mod many;
#[path = "binary/running.rs"]
mod running;
#[path = "binary/tls.rs"]
mod tls;
#[path = "binary/usage.rs"]
mod usage;

/// The one of this build, or that of a release: `PORTCULLIS_PROGRAM`.
static PROGRAM: LazyLock<String> = LazyLock::new(|| {
    let built = || env!("CARGO_BIN_EXE_portcullis").to_owned();
    std::env::var("PORTCULLIS_PROGRAM").unwrap_or_else(|_| built())
});
/// Everything waits for at most this long, and for the thing itself.
const PATIENCE: Duration = Duration::from_secs(20);
const KEY: &str = "a-key-for-the-tests";
/// Nobody listens there.
const NOWHERE: &str = "http://127.0.0.1:1";

#[test]
fn the_version_is_told() {
    let out = House::new().run(&["--version"]);
    assert_eq!(text(&out), format!("portcullis {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(out.status.code(), Some(0));
}

#[test]
fn a_running_gate_is_asked_why_and_ends_what_runs_by_a_key() {
    let house = House::new();
    fs::write(house.path("keys"), format!("{KEY} # anna\n")).unwrap();
    let data = ["--data-dir", "data"];
    let serve =
        ["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--api-keys", "keys"];
    let mut gate = Gate::start(house.command(&[&serve[..], &data].concat()));
    gate.address = after(&gate.says("listening"), "address=");
    let admin = after(&gate.says("the admin API listens"), "address=");
    let mode = fs::metadata(house.path("data/cli.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let ask = |arguments: &[&str]| house.run(&[arguments, &data, &["--admin", &admin]].concat());

    let (_, refused) = gate.get("/api/tags", Some("wrong"));
    let id = refused.split("x-request-id: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let why = ask(&["why", id]);
    assert_eq!(why.status.code(), Some(0), "{}", text(&why));
    for part in [id, "login     refused", "endpoint  not reached", "what would have allowed it: "] {
        assert!(text(&why).contains(part), "{part}: {}", text(&why));
    }
    let never = ask(&["why", "0000000000000000"]);
    assert!(never.status.code() == Some(1) && text(&never).contains("no request of that id"));
    let nobody = ask(&["allow", "ABCD-2345", "laptop"]);
    assert!(nobody.status.code() == Some(1) && text(&nobody).contains("no machine was told"));

    assert_eq!(house.run(&[&["key", "create", "bot"], &data[..]].concat()).status.code(), Some(0));
    let revoked = ask(&["key", "revoke", "bot", "--now"]);
    assert_eq!(revoked.status.code(), Some(0), "{}", text(&revoked));
    assert!(text(&revoked).contains("ended 0"), "{}", text(&revoked));

    // A key of somebody who is no admin is not taken for one.
    let mut command = house.command(&["why", id, "--admin", &admin]);
    let other = command.env("PORTCULLIS_ADMIN_KEY", KEY).output().unwrap();
    assert!(text(&other).contains("needs the role admin"), "{}", text(&other));
    drop(gate);
    let alone = ask(&["why", id]);
    assert!(alone.status.code() == Some(1) && text(&alone).contains("no gate can be asked"));
}

#[test]
fn a_command_that_is_not_known_is_a_mistake_in_the_line() {
    for arguments in [&["sevre"][..], &["serve", "--lisen", "x"], &[]] {
        let out = House::new().run(arguments);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}");
        assert!(text(&out).contains("Usage"), "{}", text(&out));
    }
}

#[test]
fn completions_and_the_manual_page_are_printed() {
    let completions = House::new().run(&["completions", "bash"]);
    assert_eq!(completions.status.code(), Some(0));
    assert!(text(&completions).contains("complete -F _portcullis"));
    let man = House::new().run(&["man"]);
    assert_eq!(man.status.code(), Some(0));
    assert!(text(&man).contains(".TH portcullis 1"));
}

#[test]
fn without_a_login_nothing_is_served_and_the_way_out_is_told() {
    let out = House::new().run(&["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(out.status.code(), Some(1));
    for way in ["--htpasswd", "--api-keys", "--authorized-keys", "portcullis try"] {
        assert!(text(&out).contains(way), "{way} in {}", text(&out));
    }
}

#[test]
fn what_init_writes_passes_the_check_and_is_not_written_over() {
    let house = House::new();
    let first = house.run(&["init", "gate"]);
    assert_eq!(first.status.code(), Some(0), "{}", text(&first));
    let keys = house.path("gate/api_keys.txt");
    assert_eq!(fs::metadata(&keys).unwrap().mode() & 0o777, 0o600);
    let config = fs::read_to_string(house.path("gate/portcullis.toml")).unwrap();
    assert!(config.contains("\ndefault_role = \"user\""));

    let check = house.run(&["check", "--config", "gate/portcullis.toml"]);
    assert_eq!(check.status.code(), Some(0), "{}", text(&check));
    assert!(text(&check).contains("0 problems"), "{}", text(&check));

    fs::write(&keys, KEY).unwrap();
    let again = house.run(&["init", "gate"]);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(fs::read_to_string(&keys).unwrap(), KEY, "nothing is written over");
}

#[test]
fn a_pair_for_development_is_made_checked_served_and_asked() {
    let house = House::new();
    let made = house.run(&["init", "gate", "--self-signed", "gate.lan", "127.0.0.1"]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made));
    let key = house.path("gate/key.pem");
    assert_eq!(fs::metadata(&key).unwrap().mode() & 0o777, 0o600);
    fs::write(house.path("gate/api_keys.txt"), KEY).unwrap();
    let config = ["--config", "gate/portcullis.toml"];

    let check = house.run(&["check", config[0], config[1]]);
    assert_eq!(check.status.code(), Some(0), "{}", text(&check));
    assert!(text(&check).contains("certificate for gate.lan 127.0.0.1, 36"), "{}", text(&check));

    let doctor = house.run(&["doctor", config[0], config[1], "--upstream", NOWHERE]);
    assert!(text(&doctor).contains("days left"), "{}", text(&doctor));

    let gate = house.serve(&[config[0], config[1], "--upstream", NOWHERE]);
    assert!(gate.says("days_left").contains("gate.lan"));
    let alive = ["health", config[0], config[1], "--listen", &gate.address];
    let alive = house.run(&alive);
    assert_eq!(alive.status.code(), Some(0), "{}", text(&alive));
    let (status, told) = gate.get("/_portcullis/me", Some(KEY));
    assert!(status == 400 && told.contains("https://"), "{told}");

    // Another key: the check tells it, and nothing is served.
    assert_eq!(house.run(&["init", "other", "--self-signed", "gate.lan"]).status.code(), Some(0));
    fs::copy(house.path("other/key.pem"), &key).unwrap();
    for command in ["check", "serve"] {
        let out = house.run(&[command, config[0], config[1]]);
        assert_eq!(out.status.code(), Some(1), "{}", text(&out));
        assert!(text(&out).contains("key.pem is not that of"), "{}", text(&out));
    }
    let odd = house.run(&["init", "odd", "--self-signed", "größe.lan"]);
    assert_eq!(odd.status.code(), Some(1), "{}", text(&odd));
    assert!(!house.path("odd").exists(), "nothing was written");
}

#[test]
fn init_writes_what_runs_the_gate_by_its_image_and_tells_how_it_is_made() {
    for (what, file, base) in [
        ("compose", "docker-compose.yml", true),
        ("compose-basic", "docker-compose.basic.yml", false),
        ("compose-bearer", "docker-compose.bearer.yml", false),
        ("kubernetes", "kubernetes.yaml", false),
    ] {
        let house = House::new();
        let out = house.run(&["init", "gate", "--with", what]);
        assert_eq!(out.status.code(), Some(0), "{what}: {}", text(&out));
        let written = fs::read_to_string(house.path(&format!("gate/{file}"))).unwrap();
        let image = format!("portcullis:{}", env!("CARGO_PKG_VERSION"));
        assert!(written.contains("image: ") && written.contains(&image), "{what}: {written}");
        assert!(!written.contains("build:") && !written.contains("PORTCULLIS_SOURCE"), "{written}");
        let build = format!("docker build -t {image} -f deploy/Dockerfile .");
        assert!(text(&out).contains(&build), "{what}: {}", text(&out));
        assert_eq!(house.path("gate/portcullis.toml").exists(), base, "{what}");

        let again = house.run(&["init", "gate", "--with", what]);
        assert_eq!(again.status.code(), Some(1), "{what}: nothing is written over");
        let kept = fs::read_to_string(house.path(&format!("gate/{file}"))).unwrap();
        assert_eq!(kept, written, "{what}");
    }
}

#[test]
fn init_writes_overlays_and_units_as_they_are_kept() {
    let house = House::new();
    let all = ["--with", "compose-tls,compose-gpu,compose-gpu-amd", "--with", "systemd"];
    let out = house.run(&[&["init", "gate"][..], &all].concat());
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    let deploy = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy");
    for name in [
        "docker-compose.tls.yml",
        "docker-compose.gpu.yml",
        "docker-compose.gpu-amd.yml",
        "portcullis.service",
        "portcullis.socket",
    ] {
        let written = fs::read_to_string(house.path(&format!("gate/{name}"))).unwrap();
        assert_eq!(written, fs::read_to_string(deploy.join(name)).unwrap(), "{name}");
    }
    assert!(text(&out).contains("systemctl enable --now"), "{}", text(&out));
    let up = "cd gate && docker compose -f docker-compose.yml -f docker-compose.tls.yml";
    assert!(text(&out).contains(up), "overlays go over what is there: {}", text(&out));
    let here = house.run(&["init", "--with", "compose-basic"]);
    let up = "\n  docker compose -f docker-compose.basic.yml up -d";
    assert!(text(&here).contains(up), "{}", text(&here));

    let unknown = house.run(&["init", "other", "--with", "compsoe"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown).contains("'compose'"), "{}", text(&unknown));
    assert!(!house.path("other").exists());
}

#[test]
fn what_init_writes_for_a_container_is_readable_for_the_user_that_it_runs_as() {
    const OTHER: (&str, &str) = ("65534", "65533");
    let house = House::new();
    let init = ["init", "gate", "--with", "compose"];
    let us = fs::metadata(house.folder.path()).unwrap();
    let env = house.path("gate/.env");
    let (uid, gid) = if us.uid() == 0 {
        let out = house.run(&init);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out));
        let keys = fs::metadata(house.path("gate/api_keys.txt")).unwrap();
        assert_eq!((keys.uid(), keys.gid(), keys.mode() & 0o777), (1000, 1000, 0o600));
        assert!(!env.exists(), "nothing makes the gate run as root");

        fs::remove_dir_all(house.path("gate")).unwrap();
        let program = house.path("portcullis");
        fs::copy(&*PROGRAM, &program).unwrap();
        fs::set_permissions(house.folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut other = Command::new("setpriv");
        other.args(["--reuid", OTHER.0, "--regid", OTHER.1, "--clear-groups"]).arg(&program);
        let out = other.args(init).current_dir(house.folder.path()).output();
        let Ok(out) = out.map_err(|_| skip("no setpriv, so nobody else could write")) else {
            return;
        };
        assert_eq!(out.status.code(), Some(0), "{}", text(&out));
        (OTHER.0.to_owned(), OTHER.1.to_owned())
    } else {
        let out = house.run(&init);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out));
        (us.uid().to_string(), us.gid().to_string())
    };
    match uid.as_str() {
        "1000" => assert!(!env.exists()),
        _ => assert_eq!(fs::read_to_string(env).unwrap(), format!("PUID={uid}\nPGID={gid}\n")),
    }
}

#[test]
fn systemd_understands_the_units() {
    let house = House::new();
    let service = include_str!("../deploy/portcullis.service");
    // The program must be there; where it will be installed, it need not be yet.
    let service = service.replace("/usr/local/bin/portcullis", &PROGRAM);
    fs::write(house.path("portcullis.service"), service).unwrap();
    let socket = include_str!("../deploy/portcullis.socket");
    fs::write(house.path("portcullis.socket"), socket).unwrap();
    let verify = Command::new("systemd-analyze")
        .args(["verify", "./portcullis.service", "./portcullis.socket"])
        .current_dir(house.folder.path())
        .output();
    let Ok(verify) = verify.map_err(|_| skip("no systemd-analyze to verify the units")) else {
        return;
    };
    assert!(verify.status.success() && verify.stderr.is_empty(), "{}", text(&verify));
}

#[test]
fn a_user_is_added_listed_verified_changed_and_removed() {
    let house = House::new();
    let user = |action: &[&str], password: &str| {
        let arguments = [&["user", "--htpasswd", "users"], action].concat();
        let out = house.run_with(&arguments, password);
        (out.status.code().unwrap(), text(&out))
    };
    let cheap = ["--cost", "4"];
    assert_eq!(user(&[&["add", "anna"][..], &cheap].concat(), "one\n").0, 0);
    let kept = fs::read_to_string(house.path("users")).unwrap();
    assert!(kept.starts_with("anna:$2") && !kept.contains("one"), "{kept}");
    assert_eq!(user(&["add", "anna"], "other\n").0, 1, "a name is not taken twice");

    let (code, list) = user(&["list"], "");
    assert!(code == 0 && list.contains("anna") && list.contains("bcrypt"), "{list}");

    assert_eq!(user(&["verify", "anna"], "one\n").0, 0);
    assert_eq!(user(&["verify", "anna"], "two\n").0, 1);
    assert_eq!(user(&[&["passwd", "anna"][..], &cheap].concat(), "two\n").0, 0);
    assert_eq!(user(&["verify", "anna"], "one\n").0, 1);
    assert_eq!(user(&["verify", "anna"], "two\n").0, 0);

    assert_eq!(user(&["remove", "bert"], "").0, 1, "who is not there is not removed");
    assert_eq!(user(&["remove", "anna"], "").0, 0);
    assert_eq!(fs::read_to_string(house.path("users")).unwrap(), "# no users\n");
}

#[test]
fn the_check_names_file_line_and_cure_of_everything_that_is_wrong() {
    let house = House::new();
    fs::write(house.path("keys"), "good-key\ntwo words\n").unwrap();
    fs::write(house.path("users"), "anna:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n\nno colon\n").unwrap();
    fs::write(house.path("signers"), "# machines\n\n\nssh-rsa AAAA anna\n").unwrap();
    let out = house.run(&[
        "check",
        "--api-keys",
        "keys",
        "--htpasswd",
        "users",
        "--authorized-keys",
        "signers",
    ]);
    assert_eq!(out.status.code(), Some(1));
    for line in
        ["keys:2: a blank inside the key", "users:3: no colon", "signers:4: not an ssh-ed25519"]
    {
        assert!(text(&out).contains(&format!("problem  {line}")), "{line} in {}", text(&out));
    }
    assert!(text(&out).contains("warning  users:1: "), "weak: {}", text(&out));
    // A file in which no line at all can be understood is a problem of its own.
    assert!(text(&out).contains("problem  signers: "), "{}", text(&out));
    assert!(text(&out).contains("4 problems"), "{}", text(&out));

    for (name, content, says) in [
        ("empty", Some(&b""[..]), "is empty"),
        ("utf16", Some(b"\xff\xfek\0e\0y\0\n\0"), "UTF-16"),
        ("nul", Some(b"key\0\n"), "NUL"),
        ("missing", None, "does not exist"),
        (".", None, "directory"),
    ] {
        if let Some(content) = content {
            fs::write(house.path(name), content).unwrap();
        }
        let out = house.run(&["check", "--api-keys", name]);
        assert_eq!(out.status.code(), Some(1), "{name}");
        assert!(text(&out).contains(&format!("problem  {name}: ")), "{}", text(&out));
        assert!(text(&out).contains(says), "{says} in {}", text(&out));
    }
}

#[test]
fn the_check_tells_all_mistakes_of_a_configuration_at_once() {
    let house = House::new();
    let config = "listen = [\"here\"]\napi_keys = \"keys\"\n\nmax_bdy = \"1MiB\"\n[timeouts]\nidle = \"soon\"\n";
    fs::write(house.path("portcullis.toml"), config).unwrap();
    fs::write(house.path("keys"), "key\n").unwrap();
    let out = house.run(&["check"]);
    assert_eq!(out.status.code(), Some(1));
    for line in [1, 4, 6] {
        assert!(
            text(&out).contains(&format!("portcullis.toml:{line} ")),
            "{line} in {}",
            text(&out)
        );
    }
    assert!(text(&out).contains("max_body"), "the nearest known key: {}", text(&out));
    // What does not pass the check does not start.
    let serve = house.run(&["serve"]);
    assert_eq!(serve.status.code(), Some(1));
    assert!(text(&serve).contains("portcullis.toml:4"), "{}", text(&serve));
}

#[test]
fn a_file_that_may_not_be_read_is_told_with_its_owner_its_mode_our_user_and_the_cure() {
    const NOBODY: u32 = 65534;
    let house = House::new();
    let keys = house.path("keys");
    fs::write(&keys, "key\n").unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o200)).unwrap();
    let owner = fs::metadata(&keys).unwrap().uid();
    let (out, us) = if owner == 0 {
        // Root may read everything, so another user has to look; from where that one may.
        let program = house.path("portcullis");
        fs::copy(&*PROGRAM, &program).unwrap();
        fs::set_permissions(house.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut other = Command::new("setpriv");
        other.args(["--reuid", &NOBODY.to_string(), "--clear-groups"]).arg(&program);
        let other = other.args(["check", "--api-keys"]).arg(&keys).current_dir("/").output();
        let Ok(out) = other.map_err(|_| skip("no setpriv, so nobody else could look")) else {
            return;
        };
        (out, NOBODY)
    } else {
        (house.run(&["check", "--api-keys", keys.to_str().unwrap()]), owner)
    };
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    let keys = keys.display();
    for part in [
        format!("problem  {keys}: "),
        format!("belongs to user {owner}"),
        "mode 0200".to_owned(),
        format!("we run as user {us}"),
        if owner == us { format!("`chmod u+r {keys}`") } else { format!("`chown {us} {keys}`") },
    ] {
        assert!(text(&out).contains(&part), "{part} in {}", text(&out));
    }
}

#[test]
fn it_serves_is_alive_and_stops_in_order() {
    let house = House::new();
    fs::write(house.path("keys"), format!("{KEY} # anna\n")).unwrap();
    let mut gate = house.serve(&["--api-keys", "keys", "--upstream", NOWHERE]);
    assert_eq!(gate.get("/_portcullis/me", None).0, 401);
    let (status, me) = gate.get("/_portcullis/me", Some(KEY));
    assert_eq!(status, 200);
    assert!(me.contains("\"name\":\"anna\""), "{me}");

    let alive = house.run(&["health", "--listen", &gate.address]);
    assert_eq!(alive.status.code(), Some(0), "{}", text(&alive));

    gate.signal("TERM");
    assert_eq!(gate.wait(), Some(0));
    let log = gate.rest_of_stdout();
    assert_eq!(log.matches("/_portcullis/me").count(), 2, "{log}");
    assert!(!log.contains(KEY));

    let dead = house.run(&["health", "--listen", &gate.address]);
    assert_eq!(dead.status.code(), Some(1), "{}", text(&dead));
}

#[test]
fn the_doctor_tells_what_is_wrong_what_to_do_and_finds_a_gate_that_runs() {
    let house = House::new();
    fs::write(house.path("keys"), format!("{KEY} # anna\n")).unwrap();
    fs::set_permissions(house.path("keys"), fs::Permissions::from_mode(0o644)).unwrap();
    let gate = house.serve(&["--api-keys", "keys", "--upstream", NOWHERE]);
    let arguments =
        ["doctor", "--api-keys", "keys", "--upstream", NOWHERE, "--listen", &gate.address];
    let out = house.run(&arguments);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    for line in [
        "\n  ok    no configuration file; flags and defaults\n",
        "\n  warn  keys: mode 0644: everybody on this machine may read it; `chmod 600 keys`\n        keeps it private\n",
        "\nbackend  http://127.0.0.1:1\n  fail  connection    no connection: ",
        "\n                      → nobody listens there. Start Ollama (`ollama serve`,\n",
        "\n  ok    login         a request without one gets 401\n",
        "\n  ok    clock         agrees with that of the gate\n",
        "\n  ok    plain HTTP    the gate listens for this machine alone\n",
        "\n1 failure, ",
    ] {
        assert!(text(&out).contains(line), "{line:?} in {}", text(&out));
    }
    assert!(text(&out).lines().all(|line| line.chars().count() <= 80), "{}", text(&out));
    assert!(!text(&out).contains(KEY) && !text(&out).contains('\u{1b}'));

    let json = house.run(&[&arguments[..], &["--json"]].concat());
    assert_eq!(json.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json.pointer("/fail"), Some(&1.into()));

    // A key that others may read is told as any file of logins is.
    let config =
        format!("api_keys = \"keys\"\n[[backend]]\nurl = \"{NOWHERE}\"\nkey_file = \"key\"\n");
    fs::write(house.path("portcullis.toml"), config).unwrap();
    let without = house.run(&["doctor"]);
    assert!(text(&without).contains("nothing else was looked at"), "{}", text(&without));
    fs::write(house.path("key"), "of-the-backend\n").unwrap();
    fs::set_permissions(house.path("key"), fs::Permissions::from_mode(0o666)).unwrap();
    for command in ["check", "doctor"] {
        let out = house.run(&[command]);
        assert!(text(&out).contains("key: mode 0666: others may write it"), "{}", text(&out));
    }
    fs::remove_file(house.path("portcullis.toml")).unwrap();

    // A gate that does not start can be looked at all the same.
    let out = house.run(&["doctor", "--upstream", NOWHERE]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out).contains("  fail  configuration: no login is configured"), "{}", text(&out));
    assert!(text(&out).contains("\nwho can reach what\n"), "{}", text(&out));
}

#[test]
fn an_address_that_is_taken_is_told_with_advice() {
    let house = House::new();
    fs::write(house.path("keys"), "key\n").unwrap();
    let gate = house.serve(&["--api-keys", "keys", "--upstream", NOWHERE]);
    let out = house.run(&["serve", "--api-keys", "keys", "--listen", &gate.address]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out).contains("choose another --listen"), "{}", text(&out));
}

#[test]
fn a_hangup_reads_the_configuration_anew_and_keeps_the_old_one_if_it_is_broken() {
    let house = House::new();
    let config = |more: &str| {
        let text =
            format!("api_keys = \"keys\"\nupstream = \"{NOWHERE}\"\nlisten = [\"127.0.0.1:0\"]\n");
        fs::write(house.path("portcullis.toml"), format!("{text}{more}\n")).unwrap();
    };
    fs::write(house.path("keys"), format!("{KEY} # anna\n")).unwrap();
    config("");
    let mut gate = house.serve_as(&["serve"]);
    let by_path = format!("/k/{KEY}/_portcullis/me");
    assert_eq!(gate.get(&by_path, None).0, 404, "keys in the path are off");

    config("path_keys = true");
    gate.signal("HUP");
    gate.says("configuration reloaded");
    assert_eq!(gate.get(&by_path, None).0, 200);

    config("path_keys = maybe");
    gate.signal("HUP");
    gate.says("reload refused");
    gate.says("portcullis.toml:4");
    assert_eq!(gate.get(&by_path, None).0, 200, "the old configuration serves on");

    gate.signal("TERM");
    assert_eq!(gate.wait(), Some(0));
}

#[test]
fn try_greets_with_a_key_that_works() {
    let house = House::new();
    let mut gate =
        Gate::start(house.command(&["try", "--upstream", NOWHERE, "--listen", "127.0.0.1:0"]));
    let greeting = gate.stdout_until("Each request as it passes");
    assert!(greeting.contains("built-in stand-in"), "{greeting}");
    gate.address = after(&greeting, "listens at http://");
    let key = after(&greeting, "Bearer ");
    let key = key.trim_end_matches('"');
    let (status, answer) = gate.post("/api/generate", key, "{\"model\":\"m\",\"prompt\":\"Who?\"}");
    assert_eq!(status, 200, "{answer}");
    assert!(answer.contains("\"done\":true"), "{answer}");
    assert_eq!(gate.get("/api/tags", None).0, 401);
    gate.stdout_until("/api/tags");
    gate.signal("INT");
    assert_eq!(gate.wait(), Some(0));
}

// ---- a folder, and the program in it -----------------------------------------------------------

struct House {
    folder: TempDir,
}

impl House {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program with nothing of our own environment.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&*PROGRAM);
        command.args(arguments).env_clear().current_dir(self.folder.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, "")
    }

    fn run_with(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Who does not ask for input has perhaps ended already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn serve(&self, arguments: &[&str]) -> Gate {
        self.serve_as(&[&["serve", "--listen", "127.0.0.1:0"], arguments].concat())
    }

    fn serve_as(&self, arguments: &[&str]) -> Gate {
        let mut gate = Gate::start(self.command(arguments));
        gate.address = after(&gate.says("listening"), "address=");
        gate
    }
}

/// Both of its outputs.
fn text(out: &Output) -> String {
    String::from_utf8_lossy(&[out.stdout.as_slice(), &out.stderr].concat()).into_owned()
}

/// The word behind `what`.
fn after(text: &str, what: &str) -> String {
    let (_, rest) = text.split_once(what).unwrap_or_else(|| panic!("no {what:?} in {text}"));
    rest.split_whitespace().next().unwrap_or_default().to_owned()
}

fn skip(why: &str) {
    tell(&format!("skip: {why}"));
}

/// Past the test's captured output, so that it is seen.
fn tell(what: &str) {
    let _ = writeln!(std::io::stdout(), "\n{what}");
}

/// A running program that goes when the test does.
struct Gate {
    child: Child,
    address: String,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Gate {
    fn start(command: Command) -> Self {
        Self::start_with(command, Stdio::null())
    }

    fn start_with(mut command: Command, stdin: Stdio) -> Self {
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = lines(child.stdout.take().unwrap());
        let stderr = lines(child.stderr.take().unwrap());
        Self { child, address: String::new(), stdout, stderr }
    }

    /// Waits for a line on stderr that holds this.
    fn says(&self, what: &str) -> String {
        until(&self.stderr, what).pop().unwrap()
    }

    /// Everything on stdout up to a line that holds this.
    fn stdout_until(&self, what: &str) -> String {
        until(&self.stdout, what).join("\n")
    }

    /// After its end.
    fn rest_of_stdout(&self) -> String {
        self.stdout.iter().collect::<Vec<_>>().join("\n")
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -s {name} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(sent.success());
    }

    /// Its exit code; what it says on the way out is read by then.
    fn wait(&mut self) -> Option<i32> {
        let last = loop {
            match self.stderr.recv_timeout(PATIENCE) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(last, std::sync::mpsc::RecvTimeoutError::Disconnected, "it does not stop");
        self.child.wait().unwrap().code()
    }

    fn get(&self, path: &str, key: Option<&str>) -> (u16, String) {
        let key = key.map_or_else(String::new, |key| format!("Authorization: Bearer {key}\r\n"));
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: gate\r\n{key}Connection: close\r\n\r\n"))
    }

    fn post(&self, path: &str, key: &str, body: &str) -> (u16, String) {
        let length = body.len();
        self.ask(&format!(
            "POST {path} HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {key}\r\n\
             Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    }

    fn ask(&self, request: &str) -> (u16, String) {
        ask(&self.address, request)
    }
}

fn ask(address: &str, request: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|it| it.parse().ok());
    (status.unwrap_or_else(|| panic!("no answer: {answer}")), answer)
}

fn lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn until(lines: &Receiver<String>, what: &str) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    loop {
        let line = lines.recv_timeout(PATIENCE);
        let line = line.unwrap_or_else(|_| panic!("waited in vain for {what:?} after {seen:#?}"));
        let found = line.contains(what);
        seen.push(line);
        if found {
            return seen;
        }
    }
}
