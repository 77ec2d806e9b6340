//! `portcullis init`: a commented configuration, a keys file and what runs the gate, to begin with.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use clap::Args;

mod with;

use crate::tls::SelfSigned;
use with::With;

const EXAMPLE: &str = include_str!("../../portcullis.example.toml");
const KEYS: &str = "\
# API keys, one a line; what stands behind a blank and # is the key's name in the log.
# Changes count from the next request on. Make a key and add it in one go:
#   echo \"$(openssl rand -hex 24) # laptop\" >> api_keys.txt
";
/// The user and the group that the gate has in a container unless told otherwise.
const CONTAINER_USER: u32 = 1000;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The folder; it is made if it does not exist
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// What runs the gate; may be given several times
    #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',')]
    with: Vec<With>,
    /// Also make a certificate for these host names and addresses, for development: it vouches for
    /// itself, so nobody trusts it who was not told to
    #[arg(long, value_name = "NAME", num_args = 1..)]
    self_signed: Vec<String>,
}

struct NewFile {
    name: &'static str,
    text: String,
    mode: u32,
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let Options { folder, with, self_signed } = options;
    let pair = match self_signed.as_slice() {
        [] => None,
        names => Some(SelfSigned::new(names, SystemTime::now()).context("--self-signed")?),
    };
    let files = files(with, pair);
    for file in &files {
        let path = folder.join(file.name);
        if path.symlink_metadata().is_ok() {
            bail!("{} is there already; nothing was written", path.display());
        }
    }
    fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
    for file in &files {
        write_new(&folder.join(file.name), &file.text, file.mode)?;
        super::say(&format!("wrote {}", folder.join(file.name).display()));
    }
    if with.iter().any(|with| with.is_compose_base()) {
        hand_to_the_container(folder, &files)?;
    }
    super::say(&format!("\nNext:\n  {}", with::next(folder, with).join("\n  ")));
    Ok(())
}

fn files(with: &[With], pair: Option<SelfSigned>) -> Vec<NewFile> {
    let mut files = Vec::new();
    if With::needs_configuration(with) {
        let text = configuration(pair.is_some());
        files.push(NewFile { name: "portcullis.toml", text, mode: 0o644 });
    }
    if let Some(SelfSigned { cert, key }) = pair {
        files.push(NewFile { name: "cert.pem", text: cert, mode: 0o644 });
        files.push(NewFile { name: "key.pem", text: key, mode: 0o600 });
    }
    if With::needs_keys(with) {
        files.push(NewFile { name: "api_keys.txt", text: KEYS.to_owned(), mode: 0o600 });
    }
    for with in with {
        for (name, text) in with.files() {
            if files.iter().all(|file| file.name != name) {
                files.push(NewFile { name, text, mode: 0o644 });
            }
        }
    }
    files
}

/// Who begins anew gives each login only what it needs; who replaces a proxy keeps what was.
fn configuration(with_pair: bool) -> String {
    let text = EXAMPLE
        .replace("\ndefault_role = \"operator\"", "\ndefault_role = \"user\"")
        .replace("\napi_keys = \"\"", "\napi_keys = \"api_keys.txt\"")
        .replace("\ndata_dir = \"\"", "\ndata_dir = \"data\"");
    if !with_pair {
        return text;
    }
    text.replace("\ntls_cert = \"\"", "\ntls_cert = \"cert.pem\"")
        .replace("\ntls_key = \"\"", "\ntls_key = \"key.pem\"")
}

fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .with_context(|| format!("could not write {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("could not write {}", path.display()))
}

/// The gate in the container must be able to read what only its owner may: it runs as that owner,
/// or, where that would be root, the files are given to the user that it runs as.
fn hand_to_the_container(folder: &Path, files: &[NewFile]) -> anyhow::Result<()> {
    let Some(first) = files.first() else { return Ok(()) };
    let us = fs::metadata(folder.join(first.name)).context("could not look at a new file")?;
    match us.uid() {
        CONTAINER_USER => {}
        0 => {
            for file in files {
                let path = folder.join(file.name);
                chown(&path, Some(CONTAINER_USER), Some(CONTAINER_USER))
                    .with_context(|| format!("could not give {} away", path.display()))?;
            }
        }
        uid => {
            let path = folder.join(".env");
            let says = format!("PUID={uid}\nPGID={}\n", us.gid());
            if path.symlink_metadata().is_ok() {
                let lines = says.trim_end().replace('\n', " and ");
                super::say(&format!("{} is there already; it needs {lines}", path.display()));
            } else {
                write_new(&path, &says, 0o644)?;
                super::say(&format!("wrote {}", path.display()));
            }
        }
    }
    Ok(())
}
