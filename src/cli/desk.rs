//! Asking a running gate by its admin API.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use super::ask::on_this_machine;
use crate::admin::read_command_key;
use crate::config::{self, Config, Given, ListenAddr};

/// The store may wait for the disk.
const PATIENCE: Duration = Duration::from_secs(10);
const MOST_READ: u64 = 64 * 1024 * 1024;
/// Holds a key of somebody who looks after the gate.
const KEY_VARIABLE: &str = "PORTCULLIS_ADMIN_KEY";

/// Which gate is asked, and with what key.
#[derive(Debug, Args)]
pub(super) struct Desk {
    /// Where the gate's admin API listens; without it where the configuration says
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// The gate's data folder, which has a key for this machine's commands; not asked for if
    /// PORTCULLIS_ADMIN_KEY has one
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The configuration that names both
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// A gate's status and what it said.
pub(super) struct Said {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl Desk {
    pub(super) fn new(admin: Option<String>, data_dir: PathBuf, config: Option<PathBuf>) -> Self {
        Self { admin, data_dir: Some(data_dir), config }
    }

    /// # Errors
    /// Where nobody answers, there is no key, or the gate does not take it.
    pub(super) fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Said> {
        let config = self.configured()?;
        let listen =
            config.admin.clone().context("the gate has no admin API (`admin` is empty)")?;
        let key = self.key(&config)?;
        let said = talk(&listen, &key, (method, path), body)
            .with_context(|| format!("no gate can be asked at {listen}"))?;
        if said.status == 401 {
            bail!("the gate at {listen} does not take the key: {}", said.error());
        }
        Ok(said)
    }

    fn configured(&self) -> anyhow::Result<Config> {
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let flags = self.admin.clone().map(|admin| ("admin", admin)).into_iter().collect();
        let given = Given { file: self.config.clone(), flags, env };
        Ok(config::load_without_credentials(&given).context("cannot ask")?.config)
    }

    fn key(&self, config: &Config) -> anyhow::Result<String> {
        if let Ok(key) = std::env::var(KEY_VARIABLE) {
            return Ok(key);
        }
        let folder = self.data_dir.as_ref().or(config.data_dir.as_ref()).with_context(|| {
            format!("no key to ask with: name the gate's --data-dir, or set {KEY_VARIABLE}")
        })?;
        read_command_key(folder).with_context(|| {
            format!(
                "no key to ask with in {} (a running gate writes cli.key there, for its own user \
                 alone); or set {KEY_VARIABLE}",
                folder.display()
            )
        })
    }
}

impl Said {
    /// What a refusal says.
    pub(super) fn error(&self) -> &str {
        self.body.get("error").and_then(Value::as_str).unwrap_or("it said nothing")
    }
}

fn talk(
    listen: &ListenAddr,
    key: &str,
    asked: (&str, &str),
    body: Option<&Value>,
) -> anyhow::Result<Said> {
    match listen {
        ListenAddr::Tcp(address) => {
            let address: SocketAddr = on_this_machine(*address);
            let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            exchange(&mut socket, &address.to_string(), key, asked, body)
        }
        ListenAddr::Unix(path) => {
            let mut socket = UnixStream::connect(path)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            exchange(&mut socket, "localhost", key, asked, body)
        }
    }
}

fn exchange(
    socket: &mut (impl Read + Write),
    host: &str,
    key: &str,
    (method, path): (&str, &str),
    body: Option<&Value>,
) -> anyhow::Result<Said> {
    let is_plain = |b: u8| b.is_ascii_graphic() || b == b' ';
    if !key.bytes().all(is_plain) || !path.bytes().all(|b| b.is_ascii_graphic()) {
        bail!("a key, an id or a code is printable text");
    }
    let body = body.map(Value::to_string).unwrap_or_default();
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    write!(
        socket,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n{kind}\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    socket.take(MOST_READ).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let no_http = || io::Error::other("what answers there is not a gate");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(no_http)?;
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    let status = status.and_then(|digits| digits.parse().ok()).ok_or_else(no_http)?;
    let body = serde_json::from_str(body).map_err(|_| no_http())?;
    Ok(Said { status, body })
}
