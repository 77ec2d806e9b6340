//! The commands.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::{self, Config, Given};

mod allow;
mod ask;
mod backend;
mod check;
mod desk;
mod doctor;
mod explain;
mod init;
mod key;
mod running;
mod serve;
mod stop;
mod store;
mod supervisor;
mod try_it;
mod usage;
mod user;
mod why;

/// The gate in front of a self-hosted model server.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: check each caller's login and pass requests on to the model server
    Serve(Settings),
    /// A five-minute look: makes a user and a key, prints lines to copy, and serves
    Try(try_it::Options),
    /// Read the configuration and every file it names, and tell all problems
    Check(check::Options),
    /// Look at everything: configuration, backend, gate, this machine, and who can go round the gate
    Doctor(doctor::Options),
    /// Say what would become of a request, stage by stage, and why
    Explain(explain::Options),
    /// Write a commented configuration, a keys file and what runs the gate into a folder
    Init(init::Options),
    /// Add, change, remove, list and verify users in an htpasswd file
    User(user::Options),
    /// Make, list, rotate and take away keys, also while the gate serves
    Key(key::Options),
    /// Tell what was used, by whom and of what, and what it cost
    Usage(usage::Options),
    /// Back up what survives a restart, and check it
    Store(store::Options),
    /// Let the machine in that was told a code by a running gate
    Allow(allow::Options),
    /// Tell what a running gate decided about a request, and what would have allowed it
    Why(why::Options),
    /// Show who runs and who waits at a running gate, and where
    Running(running::Options),
    /// End a request at a running gate, or all of a caller's
    Stop(stop::Options),
    /// List a running gate's model servers, or take one out for maintenance
    Backend(backend::Options),
    /// Ask a running gate whether it lives; exit status 0 if it does
    Health(Settings),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// Flags that stand over the environment (`PORTCULLIS_…`), which stands over the file.
#[derive(Debug, Args)]
struct Settings {
    /// The configuration; `portcullis.toml` in this folder is read if it is there
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen, as ADDRESS:PORT; may be given several times [default: 0.0.0.0:8880]
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// The model server [default: http://127.0.0.1:11434]
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Users and their password hashes, as Apache and nginx have them
    #[arg(long, value_name = "FILE")]
    htpasswd: Option<String>,
    /// API keys, one a line
    #[arg(long, value_name = "FILE")]
    api_keys: Option<String>,
    /// Public keys of machines whose `ollama` signs its requests
    #[arg(long, value_name = "FILE")]
    authorized_keys: Option<String>,
    /// Where the admin API listens, as ADDRESS:PORT [default: 127.0.0.1:8881]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// A folder for what survives a restart, such as managed keys
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// The gate's certificate, for https
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// The certificate's private key
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
}

impl Settings {
    fn given(&self) -> Given {
        let listen = (!self.listen.is_empty()).then(|| self.listen.join(","));
        let flags = [
            ("listen", listen),
            ("upstream", self.upstream.clone()),
            ("htpasswd", self.htpasswd.clone()),
            ("api_keys", self.api_keys.clone()),
            ("authorized_keys", self.authorized_keys.clone()),
            ("admin", self.admin.clone()),
            ("data_dir", self.data_dir.clone()),
            ("tls_cert", self.tls_cert.clone()),
            ("tls_key", self.tls_key.clone()),
        ];
        Given {
            file: self.config.clone(),
            flags: flags.into_iter().filter_map(|(key, value)| Some((key, value?))).collect(),
            env: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
        }
    }
}

/// Runs the command line; a problem is told on stderr.
#[must_use]
pub fn run() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(settings) => serve::run(&settings.given()),
        Command::Try(options) => try_it::run(&options),
        Command::Check(options) => return check::run(&options),
        Command::Doctor(options) => return doctor::run(&options),
        Command::Explain(options) => return explain::run(&options),
        Command::Init(options) => init::run(&options),
        Command::User(options) => user::run(&options),
        Command::Key(options) => key::run(&options),
        Command::Usage(options) => usage::run(&options),
        Command::Store(options) => store::run(&options),
        Command::Allow(options) => allow::run(&options),
        Command::Why(options) => why::run(&options),
        Command::Running(options) => running::run(&options),
        Command::Stop(options) => stop::run(&options),
        Command::Backend(options) => backend::run(&options),
        Command::Health(settings) => ask::health(&settings.given()),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "portcullis", &mut io::stdout());
            Ok(())
        }
        Command::Man => clap_mangen::Man::new(Cli::command())
            .render(&mut io::stdout())
            .context("could not write the manual page"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say_to(&mut io::stderr(), &format!("portcullis: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Where the store is: the flag, or what the configuration says.
fn data_folder(flag: Option<&Path>, config: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(folder) = flag {
        return Ok(folder.to_owned());
    }
    configured(config).context("cannot find the data folder")?.data_dir.context(NO_FOLDER)
}

const NO_FOLDER: &str = "no data folder is configured; name the gate's with --data-dir DIR";

/// What the file and the environment say, for a command that does not serve.
fn configured(file: Option<&Path>) -> anyhow::Result<Config> {
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let given = Given { file: file.map(Path::to_owned), flags: Vec::new(), env };
    Ok(config::load_without_credentials(&given)?.config)
}

/// Who types, as the system has it.
fn user_name() -> String {
    let id = rustix::process::getuid().as_raw();
    let known = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let is_mine = |line: &&str| line.split(':').nth(2) == Some(&*id.to_string());
    let name = known.lines().find(is_mine).and_then(|line| line.split(':').next());
    name.map_or_else(|| format!("uid {id}"), str::to_owned)
}

/// A person's terminal that has gone away is no reason to fail.
fn say_to(sink: &mut impl Write, text: &str) {
    let _ = writeln!(sink, "{text}");
}

fn say(text: &str) {
    say_to(&mut io::stdout(), text);
}
