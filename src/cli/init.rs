//! `portcullis init`: a commented configuration and a keys file to begin with.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use clap::Args;

use crate::tls::SelfSigned;

const EXAMPLE: &str = include_str!("../../portcullis.example.toml");
const KEYS: &str = "\
# API keys, one a line; what stands behind a blank and # is the key's name in the log.
# Changes count from the next request on. Make a key and add it in one go:
#   echo \"$(openssl rand -hex 24) # laptop\" >> api_keys.txt
";

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The folder; it is made if it does not exist
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Also make a certificate for these host names and addresses, for development: it vouches for
    /// itself, so nobody trusts it who was not told to
    #[arg(long, value_name = "NAME", num_args = 1..)]
    self_signed: Vec<String>,
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let folder = &options.folder;
    let pair = match options.self_signed.as_slice() {
        [] => None,
        names => Some(SelfSigned::new(names, SystemTime::now()).context("--self-signed")?),
    };
    fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
    let mut files = vec![
        ("portcullis.toml", configuration(pair.is_some()), 0o644),
        ("api_keys.txt", KEYS.to_owned(), 0o600),
    ];
    if let Some(SelfSigned { cert, key }) = pair {
        files.extend([("cert.pem", cert, 0o644), ("key.pem", key, 0o600)]);
    }
    for (name, _, _) in &files {
        let path = folder.join(name);
        if path.exists() {
            bail!("{} is there already; nothing was written", path.display());
        }
    }
    for (name, text, mode) in &files {
        write_new(&folder.join(name), text, *mode)?;
        super::say(&format!("wrote {}", folder.join(name).display()));
    }
    let config = folder.join("portcullis.toml");
    super::say(&format!(
        "\nNext:\n  add a key to {}\n  portcullis check --config {config}\n  portcullis serve --config {config}",
        folder.join("api_keys.txt").display(),
        config = config.display(),
    ));
    Ok(())
}

/// Who begins anew gives each login only what it needs; who replaces a proxy keeps what was.
fn configuration(with_pair: bool) -> String {
    let text = EXAMPLE
        .replace("\ndefault_role = \"operator\"", "\ndefault_role = \"user\"")
        .replace("\napi_keys = \"\"", "\napi_keys = \"api_keys.txt\"");
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
