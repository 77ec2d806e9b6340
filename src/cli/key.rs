//! `portcullis key`: keys that are made, listed, rotated and taken away while the gate serves.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::check::counted;
use super::desk::Desk;
use super::{configured, say, say_to};
use crate::auth::api_keys;
use crate::config::{Allowance, Config, Measure, Models};
use crate::store::{
    Actor, KeyDetails, KeyId, KeyQuery, KeyState, ManagedKey, Secret, Store, StoreError,
};

mod change;
mod roster;
mod table;
mod values;

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    place: Place,
}

/// Where the store is.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The gate's data folder; without it the one that the configuration names
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The configuration that names the data folder
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a key and print it, this once; or one for each line of a roster
    Create {
        /// What the key is called; also whose it is, unless --owner says otherwise
        #[arg(required_unless_present = "csv")]
        name: Option<String>,
        #[command(flatten)]
        terms: Terms,
        /// A roster: a line of headings (name,owner,role,models,cloud,expires,networks,limits,note), then one
        /// line a key; what it leaves empty the other options say
        #[arg(long, value_name = "FILE", conflicts_with = "name")]
        csv: Option<PathBuf>,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// List the keys
    List {
        /// Only this person's: by owner, or else by name
        #[arg(long, value_name = "NAME")]
        of: Option<String>,
        /// Only active, disabled or revoked ones
        #[arg(long, value_parser = values::state)]
        state: Option<KeyState>,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Show all there is to know about a key, but not the key
    Show {
        /// Its id or its name
        key: String,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Change what keys are good for, from the next request on
    Change {
        /// Their ids or names
        #[arg(required = true)]
        keys: Vec<String>,
        #[command(flatten)]
        changes: change::Changes,
    },
    /// Let nobody in with these keys until they are enabled again
    Disable {
        /// Their ids or names
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// Let disabled keys count again
    Enable {
        /// Their ids or names
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// Take keys away for ever, from the next request on
    Revoke {
        /// Their ids or names
        #[arg(required = true)]
        keys: Vec<String>,
        /// Also end what runs by them, which the running gate is asked for
        #[arg(long)]
        now: bool,
        /// Where that gate's admin API listens; without it where the configuration says
        #[arg(long, value_name = "ADDR", requires = "now")]
        admin: Option<String>,
    },
    /// Make a key that takes the place of another, and print it; both count for a while
    Rotate {
        /// Its id or its name
        key: String,
        /// How long the old key still counts, as 24h or 7d
        #[arg(long, default_value = "24h", value_parser = values::overlap)]
        overlap: Duration,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Take over the keys of an api_keys.txt; who has them goes on using them
    Import {
        /// The file; `-` is standard input
        file: PathBuf,
        #[command(flatten)]
        terms: Terms,
    },
}

/// What a new key is good for.
#[derive(Debug, Args)]
struct Terms {
    /// Who has the key, if that is not its name: several keys of one owner share its rules
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// viewer, user, operator or admin; `inherit` is what [roles] says of whose key it is
    /// [default: user; of import: inherit]
    #[arg(long, value_parser = values::role)]
    role: Option<values::KeyRole>,
    /// Models that it may use, as `gemma3*,qwen3*`; of those that rules allow
    #[arg(long, value_name = "PATTERNS", value_parser = values::models)]
    models: Option<Models>,
    /// Whether it may use models in the cloud: true or false
    #[arg(long)]
    cloud: Option<bool>,
    /// Until when it counts: 90d, 2027-01-31 or never
    #[arg(long, value_name = "WHEN", value_parser = values::expiry)]
    expires: Option<values::Expiry>,
    /// A network that it may be used from; may be given several times
    #[arg(long, value_name = "NET", value_parser = values::network)]
    network: Vec<IpNet>,
    /// How much it may have, as `tokens_per_day=100000`; may be given several times
    #[arg(long, value_name = "LIMIT=NUMBER", value_parser = values::limit)]
    limit: Vec<(Measure, u64)>,
    /// A line to remember it by
    #[arg(long, default_value = "")]
    note: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    #[default]
    Table,
    Json,
}

impl Terms {
    fn details(&self, name: &str, usual: values::KeyRole) -> KeyDetails {
        KeyDetails {
            name: name.to_owned(),
            owner: self.owner.clone(),
            role: self.role.unwrap_or(usual).0,
            models: self.models.clone(),
            cloud: self.cloud,
            expires: self.expires.and_then(|expiry| expiry.0),
            networks: (!self.network.is_empty()).then(|| self.network.clone()),
            limits: self.limits(),
            note: self.note.clone(),
        }
    }
}

impl Terms {
    /// Of two for the same the last one.
    fn limits(&self) -> Allowance {
        let mut limits = Allowance::default();
        for (measure, number) in &self.limit {
            // What the parser took is a limit.
            let _ = limits.set(*measure, *number);
        }
        limits
    }
}

impl Place {
    /// The folder of the store.
    pub(super) fn folder(&self) -> anyhow::Result<PathBuf> {
        super::data_folder(self.data_dir.as_deref(), self.config.as_deref())
    }
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let folder = options.place.folder()?;
    let by = Actor { who: format!("cli:{}", super::user_name()), client: None };
    match &options.action {
        Action::Create { name, terms, csv, format } => {
            let usual = values::KeyRole::USUAL;
            let all = match (name, csv) {
                (_, Some(file)) => roster::read(file, &terms.details("", usual))?,
                (Some(name), None) => vec![terms.details(name, usual)],
                (None, None) => bail!("a key needs a name"),
            };
            let made = Store::open(&folder)?.create_keys(all, &by)?;
            hand_over(&made, csv.is_some(), *format);
        }
        Action::List { of, state, format } => list(&folder, of.clone(), *state, *format)?,
        Action::Show { key, format } => {
            let store = Store::open_existing(&folder)?;
            show(&store.find_keys(key).map_err(advised)?, *format);
        }
        Action::Change { keys, changes } => change::run(&folder, keys, changes, &by)?,
        Action::Disable { keys } => drop(set(&folder, keys, KeyState::Disabled, &by)?),
        Action::Enable { keys } => drop(set(&folder, keys, KeyState::Active, &by)?),
        Action::Revoke { keys, now, admin } => {
            let ids = set(&folder, keys, KeyState::Revoked, &by)?;
            if *now {
                let desk = Desk::new(admin.clone(), folder, options.place.config.clone());
                end(&desk, &ids).context("the keys are revoked, but what runs was not ended")?;
            }
        }
        Action::Rotate { key, overlap, format } => {
            let store = Store::open_existing(&folder)?;
            let id = the_one(&store, key)?;
            let made = store.rotate_key(id, *overlap, &by)?;
            hand_over(std::slice::from_ref(&made), false, *format);
            let until = table::span(*overlap);
            say_to(&mut io::stderr(), &format!("{id} counts for {until} more beside it"));
            let config = configured(options.place.config.as_deref());
            if config.is_ok_and(|config| names_the_old(&config, id, made.0.id)) {
                let says = format!("rules or limits name {id}: write {} there too", made.0.id);
                say_to(&mut io::stderr(), &says);
            }
        }
        Action::Import { file, terms } => import(&folder, file, terms, &by)?,
    }
    Ok(())
}

/// Whether something is written for one key by its id, and not for the one that takes its place.
fn names_the_old(config: &Config, old: KeyId, new: KeyId) -> bool {
    let of_rules = config.rules.iter().map(|rule| &rule.keys);
    let all = of_rules.chain(config.limits.iter().map(|limit| &limit.keys)).flatten().flatten();
    let mut all = all.filter(|pattern| pattern.matches(old.as_str()));
    all.any(|pattern| !pattern.matches(new.as_str()))
}

/// The keys alone on standard output, for scripts; what there is to say about them beside it.
fn hand_over(made: &[(ManagedKey, Secret)], is_roster: bool, format: Format) {
    let stderr = &mut io::stderr();
    if format == Format::Json {
        let json = |(key, secret): &(ManagedKey, Secret)| {
            let mut json = key.to_json();
            if let Value::Object(fields) = &mut json {
                fields.insert("key".to_owned(), json!(secret.as_str()));
            }
            json
        };
        let all: Vec<_> = made.iter().map(json).collect();
        match all.as_slice() {
            [one] if !is_roster => say(&format!("{one:#}")),
            all => say(&format!("{:#}", json!(all))),
        }
    } else if is_roster {
        say("name,id,key");
        for (key, secret) in made {
            say(&format!("{},{},{}", roster::quoted(&key.details.name), key.id, secret.as_str()));
        }
    } else {
        for (key, secret) in made {
            say(secret.as_str());
            let role =
                key.details.role.map_or_else(|| "by [roles]".to_owned(), |it| it.to_string());
            let whose = key.details.identity();
            say_to(
                stderr,
                &format!("made {} ({}) for {whose}, role {role}", key.details.name, key.id),
            );
        }
    }
    let says = match made.len() {
        1 => "the key is shown this once and kept nowhere: hand it over now",
        _ => "the keys are shown this once and kept nowhere: hand them over now",
    };
    say_to(stderr, says);
}

fn list(
    folder: &Path,
    identity: Option<String>,
    state: Option<KeyState>,
    format: Format,
) -> anyhow::Result<()> {
    let store = Store::open_existing(folder)?;
    let mut query = KeyQuery { after: None, limit: 1000, identity, state };
    let mut keys = Vec::new();
    loop {
        let page = store.keys(&query)?;
        keys.extend(page.keys);
        query.after = page.next;
        if page.next.is_none() {
            break;
        }
    }
    match format {
        Format::Json => {
            let all: Vec<_> = keys.iter().map(ManagedKey::to_json).collect();
            say(&format!("{:#}", json!(all)));
        }
        Format::Table if keys.is_empty() => say("no key"),
        Format::Table => say(&table::of_keys(&keys)),
    }
    Ok(())
}

fn show(keys: &[ManagedKey], format: Format) {
    match (format, keys) {
        (Format::Json, [one]) => say(&format!("{:#}", one.to_json())),
        (Format::Json, all) => {
            let all: Vec<_> = all.iter().map(ManagedKey::to_json).collect();
            say(&format!("{:#}", json!(all)));
        }
        (Format::Table, all) => {
            let shown: Vec<_> = all.iter().map(table::of_one).collect();
            say(&shown.join("\n\n"));
        }
    }
}

/// Has the running gate end what runs by keys that are revoked.
fn end(desk: &Desk, ids: &[KeyId]) -> anyhow::Result<()> {
    for id in ids {
        let path = format!("/api/v1/keys/{id}/revoke");
        let said = desk.ask("POST", &path, Some(&json!({"now": true})))?;
        let Some(ended) = said.body.get("ended") else { bail!("{}", said.error()) };
        say(&format!("ended {ended} of {id}"));
    }
    Ok(())
}

fn set(folder: &Path, keys: &[String], state: KeyState, by: &Actor) -> anyhow::Result<Vec<KeyId>> {
    let store = Store::open_existing(folder)?;
    // All of them are looked for first: a slip in the last name changes nothing.
    let ids = keys.iter().map(|key| the_one(&store, key)).collect::<anyhow::Result<Vec<_>>>()?;
    for id in &ids {
        let key = store.set_key_state(*id, state, by)?;
        let done = match state {
            KeyState::Active => "enabled",
            KeyState::Disabled => "disabled",
            KeyState::Revoked => "revoked",
        };
        say(&format!("{done} {} ({id})", key.details.name));
    }
    Ok(ids)
}

/// By id, or by a name that only one key has that is not revoked.
fn the_one(store: &Store, asked: &str) -> anyhow::Result<KeyId> {
    let found = store.find_keys(asked).map_err(advised)?;
    if let [one] = found.as_slice() {
        return Ok(one.id);
    }
    let alive: Vec<_> = found.iter().filter(|key| key.state != KeyState::Revoked).collect();
    match alive.as_slice() {
        [one] => Ok(one.id),
        [] => bail!("every key called {asked} is revoked"),
        several => {
            let ids: Vec<_> = several.iter().map(|key| key.id.to_string()).collect();
            bail!("{} keys are called {asked}; say which by its id: {}", ids.len(), ids.join(" "))
        }
    }
}

fn advised(error: StoreError) -> anyhow::Error {
    if matches!(error, StoreError::NoSuchKey(_)) {
        return anyhow!("{error}; `portcullis key list` shows them all");
    }
    error.into()
}

fn import(folder: &Path, file: &Path, terms: &Terms, by: &Actor) -> anyhow::Result<()> {
    let text = read(file)?;
    let parsed = api_keys::ApiKeys::parse(text.trim_start_matches('\u{feff}'));
    let shown = file.display();
    for note in parsed.notes.iter().filter(|note| note.skipped) {
        say_to(&mut io::stderr(), &format!("{shown}:{}: line skipped: {}", note.line, note.says));
    }
    let details = |name: &str| terms.details(name, values::KeyRole::INHERIT);
    let all: Vec<_> =
        parsed.content.digests().map(|(digest, name)| (digest, details(name.as_str()))).collect();
    if all.is_empty() {
        bail!("{shown} holds no key");
    }
    let came = Store::open(folder)?.import_keys(all, by)?;
    say(&format!(
        "took over {}; {} known already",
        counted(came.added, "key", "keys"),
        if came.known == 1 { "1 was".to_owned() } else { format!("{} were", came.known) },
    ));
    say("the file may go from the configuration once its keys are taken over");
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        io::stdin().lock().read_to_string(&mut text).context("could not read standard input")?;
        return Ok(text);
    }
    fs::read_to_string(file).with_context(|| format!("could not read {}", file.display()))
}
