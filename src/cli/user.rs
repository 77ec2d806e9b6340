//! `portcullis user`: an htpasswd that works everywhere, and writes so that nobody sees half a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};

use crate::auth::fault_of_name;
use crate::auth::htpasswd::Htpasswd;
use crate::auth::stored_hash::StoredHash;
use crate::config::{self, Given, WeakHashes};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    action: Action,
    /// The users' file; without it the one that the configuration names
    #[arg(long, global = true, value_name = "FILE")]
    htpasswd: Option<PathBuf>,
    /// The configuration that names the users' file
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Add a user; the password is asked for, or read from standard input
    Add {
        name: String,
        /// bcrypt's cost, 4 to 16: each step doubles the work of checking
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(4..=16))]
        cost: u32,
    },
    /// Change a user's password
    Passwd {
        name: String,
        /// bcrypt's cost, 4 to 16: each step doubles the work of checking
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(4..=16))]
        cost: u32,
    },
    /// Remove a user
    Remove { name: String },
    /// List the users and how their passwords are kept
    List,
    /// Ask for a user's password and say whether it is right
    Verify { name: String },
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let path = users_file(options)?;
    match &options.action {
        Action::Add { name, cost } => {
            if name.contains(':') || name.trim_start().starts_with('#') {
                bail!(
                    "{name:?} cannot be a user's name: a colon or a leading # means something else"
                );
            }
            if let Some(fault) = fault_of_name(name) {
                bail!("{name:?} cannot be a user's name: {fault}");
            }
            absent(&read(&path)?.unwrap_or_default(), name, &path)?;
            let hash = StoredHash::new_bcrypt(new_password()?.as_bytes(), *cost)?;
            change(&path, |text| {
                absent(&text, name, &path)?;
                let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
                Ok(format!("{text}{gap}{name}:{hash}\n"))
            })?;
            super::say(&format!("added {name} to {}", path.display()));
        }
        Action::Passwd { name, cost } => {
            existing(&path, name)?;
            let hash = StoredHash::new_bcrypt(new_password()?.as_bytes(), *cost)?;
            change(&path, |text| {
                present(&text, name, &path)?;
                Ok(with_hash(&text, name, &hash))
            })?;
            super::say(&format!("changed the password of {name}"));
        }
        Action::Remove { name } => {
            change(&path, |text| {
                present(&text, name, &path)?;
                Ok(without(&text, name))
            })?;
            super::say(&format!("removed {name} from {}", path.display()));
        }
        Action::List => list(&path)?,
        Action::Verify { name } => verify(&path, name)?,
    }
    Ok(())
}

fn users_file(options: &Options) -> anyhow::Result<PathBuf> {
    if let Some(path) = &options.htpasswd {
        return Ok(path.clone());
    }
    let env = std::env::vars().collect();
    let given = Given { file: options.config.clone(), flags: Vec::new(), env };
    let loaded = config::load_without_credentials(&given).context("cannot find the users' file")?;
    loaded.config.htpasswd.context("no users' file is configured; name one with --htpasswd FILE")
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("could not read {}", path.display())),
    }
}

fn absent(text: &str, name: &str, path: &Path) -> anyhow::Result<()> {
    if lines_of(text, name).next().is_some() {
        bail!("{name} is in {} already; `user passwd {name}` changes it", path.display());
    }
    Ok(())
}

fn existing(path: &Path, name: &str) -> anyhow::Result<String> {
    let text = read(path)?.with_context(|| format!("{} does not exist", path.display()))?;
    present(&text, name, path)?;
    Ok(text)
}

fn present(text: &str, name: &str, path: &Path) -> anyhow::Result<()> {
    if lines_of(text, name).next().is_none() {
        bail!("{name} is not in {}", path.display());
    }
    Ok(())
}

/// The lines that begin with the name and a colon.
fn lines_of<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter(move |line| is_of(line, name))
}

fn is_of(line: &str, name: &str) -> bool {
    line.trim_start_matches('\u{feff}').strip_prefix(name).is_some_and(|rest| rest.starts_with(':'))
}

/// The first line of a name is the one that counts; what else stands in it stays.
fn with_hash(text: &str, name: &str, hash: &str) -> String {
    let mut changed = false;
    text.split_inclusive('\n')
        .map(|line| {
            if changed || !is_of(line, name) {
                return line.to_owned();
            }
            changed = true;
            let end = if line.ends_with("\r\n") { "\r\n" } else { "\n" };
            let rest: Vec<_> = line.trim_end().splitn(3, ':').skip(2).collect();
            let rest = rest.first().map_or_else(String::new, |rest| format!(":{rest}"));
            format!("{name}:{hash}{rest}{end}")
        })
        .collect()
}

fn without(text: &str, name: &str) -> String {
    let left: String = text.split_inclusive('\n').filter(|line| !is_of(line, name)).collect();
    // An empty file is taken for one in the middle of a save.
    if left.is_empty() { "# no users\n".to_owned() } else { left }
}

/// Of two who change it at once the second reads what the first has written.
fn change(
    path: &Path,
    change: impl FnOnce(String) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let held = File::open(folder_of(&path)).and_then(|folder| folder.lock().map(|()| folder));
    let _held = held.with_context(|| format!("could not lock the folder of {}", path.display()))?;
    write(&path, &change(read(&path)?.unwrap_or_default())?)
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or_else(|| Path::new("."))
}

/// A temporary file beside it, flushed to the disk and renamed over it; mode and owner stay.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = folder_of(&path);
    let name = path.file_name().context("that is no file name")?.to_string_lossy();
    let beside = folder.join(format!(".{name}.{}.new", std::process::id()));
    let written = replace(&path, &beside, folder, text);
    if written.is_err() {
        // The file itself is as it was; the attempt is not left lying about.
        let _ = fs::remove_file(&beside);
    }
    written.with_context(|| {
        format!(
            "could not replace {}; if it is mounted by itself, mount its folder instead",
            path.display()
        )
    })
}

fn replace(path: &Path, beside: &Path, folder: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
    file.write_all(text.as_bytes())?;
    if let Ok(before) = fs::metadata(path) {
        file.set_permissions(fs::Permissions::from_mode(before.mode() & 0o7777))?;
        let mine = file.metadata()?;
        if (mine.uid(), mine.gid()) != (before.uid(), before.gid()) {
            chown(beside, Some(before.uid()), Some(before.gid()))?;
        }
    }
    file.sync_all()?;
    fs::rename(beside, path)?;
    File::open(folder)?.sync_all()
}

fn new_password() -> anyhow::Result<String> {
    if !io::stdin().is_terminal() {
        return one_line();
    }
    let password = rpassword::prompt_password("New password: ")?;
    if rpassword::prompt_password("The same again: ")? != password {
        bail!("the two are not the same; nothing was changed");
    }
    Ok(password)
}

fn one_line() -> anyhow::Result<String> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).context("could not read standard input")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn list(path: &Path) -> anyhow::Result<()> {
    let text = read(path)?.with_context(|| format!("{} does not exist", path.display()))?;
    let parsed = Htpasswd::parse(text.trim_start_matches('\u{feff}'), WeakHashes::Warn);
    let mut names: Vec<_> = parsed.content.names().collect();
    names.sort_unstable();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["USER", "PASSWORD KEPT AS", ""]);
    for name in names {
        let Some(stored) = parsed.content.get(name) else { continue };
        let weak = if stored.weak() { "weak: set it anew with `user passwd`" } else { "" };
        table.add_row([name, stored.format(), weak]);
    }
    super::say(&table.trim_fmt());
    for note in parsed.notes.iter().filter(|note| note.skipped) {
        super::say_to(
            &mut io::stderr(),
            &format!("{}:{}: line skipped: {}", path.display(), note.line, note.says),
        );
    }
    Ok(())
}

fn verify(path: &Path, name: &str) -> anyhow::Result<()> {
    let text = existing(path, name)?;
    let parsed = Htpasswd::parse(&text, WeakHashes::Warn);
    let stored = parsed.content.get(name).context("the line of this user cannot be understood")?;
    let password = match io::stdin().is_terminal() {
        true => rpassword::prompt_password("Password: ")?,
        false => one_line()?,
    };
    if !stored.verify(password.as_bytes()) {
        bail!("the password of {name} is not right");
    }
    super::say(&format!("the password of {name} is right"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# staff\nanna:old:Anna A.\r\nbert:other\nanna:second\n";

    #[test]
    fn a_changed_password_keeps_the_rest_of_its_line_and_of_the_file() {
        let changed = with_hash(FILE, "anna", "new");
        assert_eq!(changed, "# staff\nanna:new:Anna A.\r\nbert:other\nanna:second\n");
    }

    #[test]
    fn a_removed_user_has_no_line_left() {
        assert_eq!(without(FILE, "anna"), "# staff\nbert:other\n");
        assert_eq!(without(FILE, "ann"), FILE);
        assert_eq!(without("anna:x\n", "anna"), "# no users\n");
    }

    #[test]
    fn of_changes_at_once_none_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        std::thread::scope(|scope| {
            for number in 0..16 {
                let path = &path;
                scope.spawn(move || {
                    change(path, |text| Ok(format!("{text}u{number}:x\n"))).unwrap()
                });
            }
        });
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 16);
    }

    #[test]
    fn a_new_file_is_private_and_an_old_one_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        write(&path, "anna:x\n").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        write(&path, "anna:y\n").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&real, "anna:x\n").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        write(&link, "anna:y\n").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&real).unwrap(), "anna:y\n");
    }
}
