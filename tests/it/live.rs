//! Credential files that change under the gate: what is saved is what the next request sees.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine;

use crate::house::{Backend, Caller, House, KEY, PASSWORD, until};

const ROUNDS: usize = 1_000;

/// A house whose wrong keys are never braked, so that each is told as what it is.
async fn unbraked(backend: &Backend) -> House {
    House::with(backend, |config, _| config.failed_attempts_per_minute = 0).await
}

async fn status(caller: &mut Caller, key: &str) -> u16 {
    let request =
        format!("GET /_portcullis/me HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\n\r\n");
    caller.send(request).await;
    caller.answer().await.status
}

async fn alarms(house: &House) -> u64 {
    house.get("/_portcullis/ready").await.json()["alarms"].as_u64().unwrap()
}

/// What the operator is told of the key file.
fn trouble(house: &House) -> Option<String> {
    let reports = house.gateway.state().auth().files().reports();
    let report = reports.into_iter().find(|(what, _)| *what == "api_keys").unwrap().1;
    report.trouble.map(|trouble| trouble.to_string())
}

/// Saves a new key again and again and asks at once: the new key must be in, the one before out.
async fn never_stale(save: impl Fn(&Path, usize, &str)) {
    let backend = Backend::ok().await;
    let house = unbraked(&backend).await;
    let keys = house.file("api_keys.txt");
    let mut caller = house.connect().await;
    let mut before = KEY.to_owned();
    for round in 0..ROUNDS {
        let key = format!("key-of-round-{round:06}");
        save(&keys, round, &key);
        assert_eq!(status(&mut caller, &key).await, 200, "round {round}: the new key is not in");
        assert_eq!(status(&mut caller, &before).await, 401, "round {round}: the old key is in");
        before = key;
    }
}

/// Truncates and writes in one go, as `>` of a shell does.
fn in_place(path: &Path, text: &str) {
    let mut file = OpenOptions::new().write(true).truncate(true).create(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn by_rename(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(&beside, path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_in_place_is_seen_by_the_next_request() {
    // Sizes differ from one round to the next.
    never_stale(|path, round, key| {
        in_place(path, &format!("{key} # {}\n", "n".repeat(round % 7 + 1)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_in_place_of_the_same_size_is_seen_by_the_next_request() {
    // No truncation either: neither inode nor size tell anything, and the clock of the file system
    // does not tick between two rounds.
    never_stale(|path, round, key| {
        if round == 0 {
            return in_place(path, &format!("{key}\n"));
        }
        let mut file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all(format!("{key}\n").as_bytes()).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_saves_in_one_tick_leave_the_second() {
    never_stale(|path, _, key| {
        in_place(path, &format!("{}\n", key.replace("key", "not")));
        in_place(path, &format!("{key}\n"));
    })
    .await;
    never_stale(|path, _, key| {
        by_rename(path, &format!("{}\n", key.replace("key", "not")));
        by_rename(path, &format!("{key}\n"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_with_the_time_set_back_is_seen_by_the_next_request() {
    // `cp -p`, `rsync -t`, `tar x`: the time of change says nothing, and here the size neither.
    let then = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    never_stale(|path, _, key| {
        in_place(path, &format!("{key}\n"));
        File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_by_rename_is_seen_by_the_next_request() {
    never_stale(|path, _, key| by_rename(path, &format!("{key}\n"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_symlink_is_seen_by_the_next_request() {
    // As Kubernetes does it: api_keys.txt -> ..data/api_keys.txt, ..data -> ..N, and a rename.
    never_stale(|path, round, key| {
        let folder = path.parent().unwrap();
        let version = folder.join(format!("..{round}"));
        fs::create_dir(&version).unwrap();
        fs::write(version.join("api_keys.txt"), format!("{key}\n")).unwrap();
        let data = folder.join("..data_tmp");
        symlink(&version, &data).unwrap();
        fs::rename(&data, folder.join("..data")).unwrap();
        if round == 0 {
            fs::remove_file(path).unwrap();
            symlink("..data/api_keys.txt", path).unwrap();
        } else {
            fs::remove_dir_all(folder.join(format!("..{}", round - 1))).unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_appended_line_is_seen_by_the_next_request() {
    let backend = Backend::ok().await;
    let house = unbraked(&backend).await;
    let mut file = OpenOptions::new().append(true).open(house.file("api_keys.txt")).unwrap();
    let mut caller = house.connect().await;
    for round in 0..ROUNDS {
        let key = format!("key-of-round-{round}");
        assert_eq!(status(&mut caller, &key).await, 401, "round {round}");
        file.write_all(format!("{key}\n").as_bytes()).unwrap();
        assert_eq!(status(&mut caller, &key).await, 200, "round {round}");
    }
    assert_eq!(status(&mut caller, KEY).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_is_forgotten_with_the_next_request() {
    // Cost 4 of bcrypt; both for the user anna.
    let hashes = [
        ("open sesame", "$2y$04$FRGiMtVb3qtDTX7I0fnjxutgwrMyuRhd0FZeO506Scl21JCiMK/Pe"),
        ("other sesame", "{PLAIN}other sesame"),
    ];
    let backend = Backend::ok().await;
    let house = unbraked(&backend).await;
    let mut caller = house.connect().await;
    for round in 0..200 {
        let (password, hash) = hashes[round % 2];
        let (wrong, _) = hashes[(round + 1) % 2];
        in_place(&house.file("htpasswd"), &format!("anna:{hash}\n"));
        for (password, expected) in [(password, 200), (wrong, 401), (password, 200)] {
            let login =
                base64::engine::general_purpose::STANDARD.encode(format!("anna:{password}"));
            let request = "GET /_portcullis/me HTTP/1.1\r\nHost: g\r\nAuthorization: Basic ";
            caller.send(format!("{request}{login}\r\n\r\n")).await;
            assert_eq!(caller.answer().await.status, expected, "round {round}: {password}");
        }
    }
    assert_eq!(hashes[0].0, PASSWORD);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_did_not_exist_at_the_start_opens_its_door_when_it_comes() {
    for save in [in_place, by_rename] {
        let backend = Backend::ok().await;
        let house = House::with(&backend, |config, folder| {
            config.api_keys = Some(folder.path().join("later/keys"));
            config.failed_attempts_per_minute = 0;
        })
        .await;
        let mut caller = house.connect().await;
        assert_eq!(status(&mut caller, "late").await, 401);
        assert_eq!(alarms(&house).await, 1);
        assert!(trouble(&house).unwrap().contains("does not exist"));
        fs::create_dir(house.file("later")).unwrap();
        save(&house.file("later/keys"), "late\n");
        assert_eq!(status(&mut caller, "late").await, 200);
        assert_eq!(alarms(&house).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_gone_for_a_moment_refuses_nobody_and_for_longer_everybody() {
    type Way = (&'static str, fn(&Path), &'static str);
    let ways: [Way; 2] = [
        ("missing", |path| fs::remove_file(path).unwrap(), "does not exist"),
        ("empty", |path| in_place(path, ""), "is empty"),
    ];
    for (what, go, says) in ways {
        let backend = Backend::ok().await;
        let house = unbraked(&backend).await;
        let keys = house.file("api_keys.txt");
        let mut caller = house.connect().await;
        for _ in 0..50 {
            let gone = Instant::now();
            go(&keys);
            let served = status(&mut caller, KEY).await;
            assert!(served == 200 || gone.elapsed() > Duration::from_secs(2), "{what}: {served}");
            assert!(trouble(&house).is_none() || gone.elapsed() > Duration::from_secs(2));
            in_place(&keys, &format!("{KEY}\n"));
            assert_eq!(status(&mut caller, KEY).await, 200);
        }
        let gone = Instant::now();
        go(&keys);
        while status(&mut caller, KEY).await == 200 {
            assert!(gone.elapsed() < Duration::from_secs(10), "{what}: the door stays open");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(
            gone.elapsed() >= Duration::from_secs(2),
            "{what}: shut after {:?}",
            gone.elapsed()
        );
        assert_eq!(alarms(&house).await, 1, "{what}");
        assert!(trouble(&house).unwrap().contains(says), "{:?}", trouble(&house));
        assert_eq!(status(&mut caller, KEY).await, 401, "{what}");
        in_place(&keys, &format!("{KEY}\n"));
        assert_eq!(status(&mut caller, KEY).await, 200, "{what}: the door opens again");
        assert_eq!(alarms(&house).await, 0, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_gone_alarms_although_nobody_asks() {
    let backend = Backend::ok().await;
    let house = unbraked(&backend).await;
    fs::remove_file(house.file("api_keys.txt")).unwrap();
    until("an alarm", || (house.gateway.state().auth().files().alarms() == 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_last_line_keeps_what_was_before_until_it_has_settled() {
    let backend = Backend::ok().await;
    let house = unbraked(&backend).await;
    let keys = house.file("api_keys.txt");
    let mut caller = house.connect().await;
    let mut kept = 0;
    for _ in 0..50 {
        let saved = Instant::now();
        in_place(&keys, "the-beginning-of-a-longer-k");
        let (old, new) = (
            status(&mut caller, KEY).await,
            status(&mut caller, "the-beginning-of-a-longer-k").await,
        );
        if saved.elapsed() < Duration::from_millis(45) {
            assert_eq!((old, new), (200, 401));
            kept += 1;
        }
        in_place(&keys, &format!("{KEY}\n"));
        assert_eq!(status(&mut caller, KEY).await, 200);
    }
    assert!(kept > 0, "this machine was too busy for a single round");
    // A file that simply has no newline at its end counts after a moment.
    in_place(&keys, "no-newline");
    let saved = Instant::now();
    while status(&mut caller, "no-newline").await != 200 {
        assert!(saved.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(status(&mut caller, KEY).await, 401);
}

/// Saves in pieces of which none but the last ends at a line's end; the longest pause between two.
fn save_in_pieces(path: &Path, text: &str, size: usize) -> Duration {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path).unwrap();
    let mut rest = text.as_bytes();
    let mut longest = Duration::ZERO;
    while !rest.is_empty() {
        let started = Instant::now();
        let mut end = size.min(rest.len());
        end -= usize::from(end < rest.len() && rest[end - 1] == b'\n');
        file.write_all(&rest[..end]).unwrap();
        rest = &rest[end..];
        std::thread::yield_now();
        longest = longest.max(started.elapsed());
    }
    longest
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_saves_in_pieces_refuses_nobody() {
    let backend = Backend::ok().await;
    let house = unbraked(&backend).await;
    let keys = house.file("api_keys.txt");
    let filler: String = (0..2_000).map(|n| format!("key-{n:011}\n")).collect();
    let text = filler + "the-last-one-is-" + "x\n";
    let text = text.replacen("key-00000000000\n", &format!("{KEY}\n"), 1);
    let mut caller = house.connect().await;
    in_place(&keys, &text);
    assert_eq!(status(&mut caller, "the-last-one-is-x").await, 200);
    let (mut asked, mut valid) = (0, 0);
    for round in 0..40 {
        let (path, text) = (keys.clone(), text.clone());
        let size = [509, 1021][round % 2];
        let writer = tokio::task::spawn_blocking(move || save_in_pieces(&path, &text, size));
        let mut refused = 0;
        while !writer.is_finished() {
            for key in [KEY, "the-last-one-is-x"] {
                refused += usize::from(status(&mut caller, key).await != 200);
                asked += 1;
            }
        }
        // The promise is made to writers who pause for less than 50 ms.
        if writer.await.unwrap() < Duration::from_millis(35) {
            assert_eq!(refused, 0, "round {round}");
            valid += 1;
        }
    }
    assert!(valid > 10 && asked > 40, "{valid} rounds, {asked} questions: this proves nothing");
}

/// What breaks a file, and what the operator reads about it.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_broke_keeps_its_last_good_content_and_says_so() {
    let utf16: Vec<u8> =
        [0xff, 0xfe].into_iter().chain("new-key\n".bytes().flat_map(|b| [b, 0])).collect();
    let breaks: [(&str, Vec<u8>, &str); 4] = [
        ("UTF-16", utf16, "save it as UTF-8"),
        ("UTF-16, the other end first", b"\xfe\xff\0n\0e\0w\0\n".to_vec(), "save it as UTF-8"),
        ("NUL", b"new-key\n\0\0\0\n".to_vec(), "NUL"),
        ("garbage", vec![0xff, 0xc0, b'\n', 0xfe, 0xfa, b'\n'], "portcullis check"),
    ];
    for (what, bytes, says) in breaks {
        let backend = Backend::ok().await;
        let house = unbraked(&backend).await;
        let keys = house.file("api_keys.txt");
        let mut caller = house.connect().await;
        assert_eq!(alarms(&house).await, 0, "{what}");
        fs::write(&keys, bytes).unwrap();
        assert_eq!(status(&mut caller, KEY).await, 200, "{what}: the last good content is lost");
        assert_eq!(status(&mut caller, "new-key").await, 401, "{what}");
        assert_eq!(alarms(&house).await, 1, "{what}");
        assert!(trouble(&house).unwrap().contains(says), "{what}: {:?}", trouble(&house));
        in_place(&keys, "mended\n");
        assert_eq!(status(&mut caller, "mended").await, 200, "{what}");
        assert_eq!(status(&mut caller, KEY).await, 401, "{what}");
        assert_eq!((alarms(&house).await, trouble(&house)), (0, None), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_a_files_place_keeps_the_last_good_content() {
    let backend = Backend::ok().await;
    let house = unbraked(&backend).await;
    let keys = house.file("api_keys.txt");
    let mut caller = house.connect().await;
    fs::remove_file(&keys).unwrap();
    fs::create_dir(&keys).unwrap();
    assert_eq!(status(&mut caller, KEY).await, 200);
    assert!(trouble(&house).unwrap().contains("is a directory"), "{:?}", trouble(&house));
    assert_eq!(alarms(&house).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_may_not_be_read_keeps_the_last_good_content() {
    let backend = Backend::ok().await;
    let house = unbraked(&backend).await;
    let keys = house.file("api_keys.txt");
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o000)).unwrap();
    if File::open(&keys).is_ok() {
        // Root reads everything; the sentence has a test beside its function.
        return;
    }
    let mut caller = house.connect().await;
    assert_eq!(status(&mut caller, KEY).await, 200);
    assert!(trouble(&house).unwrap().contains("repair it with"), "{:?}", trouble(&house));
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_line_ends_a_bom_and_long_lines_do_no_harm() {
    let long = "x".repeat(1 << 20);
    let texts: [(&str, String, usize); 5] = [
        ("a BOM", format!("\u{feff}{KEY}\nsecond\n"), 2),
        ("CRLF", format!("{KEY}\r\nsecond\r\n"), 2),
        ("lone CR", format!("{KEY}\rsecond\r"), 0),
        ("a line of 1 MiB", format!("{KEY}\n{long}\nsecond\n"), 2),
        ("blank lines", format!("\n \n\t\n  {KEY}  \r\n\n# second\nsecond"), 2),
    ];
    for (what, text, expected) in texts {
        let backend = Backend::ok().await;
        let house = House::with(&backend, |config, folder| {
            fs::write(folder.path().join("api_keys.txt"), &text).unwrap();
            config.failed_attempts_per_minute = 0;
        })
        .await;
        let mut caller = house.connect().await;
        let mut known = 0;
        for key in [KEY, "second"] {
            known += usize::from(status(&mut caller, key).await == 200);
        }
        if what == "lone CR" {
            // Read as line ends, or told: but never one key that nobody has, without a word.
            let reports = house.gateway.state().auth().files().reports();
            let told = reports.iter().any(|(_, report)| !report.notes.is_empty());
            assert!(known == 2 || told, "{what}: {known} known and nothing told");
        } else {
            assert_eq!(known, expected, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_replaced_out_of_sight_serves_on_and_names_the_cure() {
    let backend = Backend::ok().await;
    let mut hold = None;
    let house = House::with(&backend, |config, folder| {
        let path = folder.path().join("api_keys.txt");
        let file = File::open(&path).unwrap();
        let seen = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        config.api_keys = Some(PathBuf::from(seen));
        config.failed_attempts_per_minute = 0;
        hold = Some((file, path));
    })
    .await;
    let (file, path) = hold.unwrap();
    let mut caller = house.connect().await;
    assert_eq!(status(&mut caller, KEY).await, 200);
    assert_eq!(alarms(&house).await, 0);
    by_rename(&path, "new-key\n");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(status(&mut caller, KEY).await, 200);
    let says = trouble(&house).unwrap();
    assert!(says.contains("link count is 0") && says.contains("mount the folder"), "{says}");
    assert_eq!(alarms(&house).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_broken_at_the_start_closes_its_own_door_only() {
    let breaks: [fn(&Path); 5] = [
        |path| fs::remove_file(path).unwrap(),
        |path| fs::write(path, "").unwrap(),
        |path| fs::write(path, b"\xff\xfeh\0i\0\n\0").unwrap(),
        |path| fs::write(path, "no colon\nnone either\n").unwrap(),
        |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        },
    ];
    for (number, broken) in breaks.into_iter().enumerate() {
        let backend = Backend::ok().await;
        let house = House::with(&backend, |config, folder| {
            broken(&folder.path().join("htpasswd"));
            config.failed_attempts_per_minute = 0;
        })
        .await;
        let mut caller = house.connect().await;
        assert_eq!(status(&mut caller, KEY).await, 200, "{number}");
        let login = base64::engine::general_purpose::STANDARD.encode(format!("anna:{PASSWORD}"));
        let basic =
            format!("GET /api/tags HTTP/1.1\r\nHost: g\r\nAuthorization: Basic {login}\r\n\r\n");
        assert_eq!(house.ask(&basic).await.status, 401, "{number}");
        assert_eq!(alarms(&house).await, 1, "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_typo_in_one_line_does_not_hold_up_the_removal_of_another() {
    let backend = Backend::ok().await;
    let house = unbraked(&backend).await;
    let keys = house.file("api_keys.txt");
    let mut caller = house.connect().await;
    fs::write(&keys, format!("{KEY}\nsecond\n")).unwrap();
    assert_eq!(status(&mut caller, "second").await, 200);
    fs::write(&keys, format!("{KEY}\nsha256:not-a-digest\n")).unwrap();
    assert_eq!(status(&mut caller, "second").await, 401);
    assert_eq!(status(&mut caller, KEY).await, 200);
    let reports = house.gateway.state().auth().files().reports();
    let notes: Vec<_> = reports.into_iter().flat_map(|(_, report)| report.notes).collect();
    assert_eq!(notes.iter().map(|note| (note.line, note.skipped)).collect::<Vec<_>>(), [(2, true)]);
    assert!(!notes[0].says.contains("not-a-digest"), "{}", notes[0].says);
}
