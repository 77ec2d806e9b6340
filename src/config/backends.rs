//! `[[backend]]` and `[[alias]]`: the model servers, and other names for their models.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::path::PathBuf;

use super::problems::{Found, shown};
use super::written::{Form, Written};
use super::{BackendUrl, Config, ModelName, values};

/// More models side by side, or requests of one model, than any machine runs.
const MOST_AT_ONCE: u32 = 10_000;
const MOST_TAGS: usize = 32;
/// The queue has room for twice as many, so that a reload may put others in the place of all.
const MOST_BACKENDS: usize = 32;

/// A model server behind the gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Where it stands, for problems; empty for the one that nobody wrote.
    pub place: String,
    pub name: String,
    pub url: BackendUrl,
    pub kind: BackendKind,
    /// Its part of the work, beside others that have the same model.
    pub weight: Weight,
    /// Requests of one model at once; `None` is what is usual for its kind.
    pub parallel: Option<AtOnce>,
    /// Models in memory at once; `None` is what is usual for its kind.
    pub models_at_once: Option<AtOnce>,
    pub key_file: Option<PathBuf>,
    /// Whose word is taken about its certificate; without one that of the system's authorities.
    pub ca_file: Option<PathBuf>,
    pub preserve_host: bool,
    /// It is asked to tell usage also where every piece of an answer changes by that.
    pub ask_usage: bool,
    /// Calls that manage models go there, where they name no backend.
    pub manage: bool,
    pub tags: Vec<String>,
}

/// What a backend speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// Ollama's API, all of it.
    Ollama,
    /// Only what lies under `/v1`: llama.cpp's server, vLLM, LM Studio.
    OpenAi,
}

/// How much at once, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtOnce {
    /// Found out by watching.
    Auto,
    AtMost(NonZeroU32),
    Unbounded,
}

/// A share in relation to others', in thousandths of 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(NonZeroU32);

/// Which requests go first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// It has time.
    Batch,
}

/// Another name for a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Alias {
    pub place: String,
    pub name: Option<NamedModel>,
    /// In order of preference: the first that some backend has.
    pub models: Vec<NamedModel>,
}

/// A model, and how its name is written to a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedModel {
    pub text: String,
    pub name: ModelName,
}

/// Backends that a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedBackends {
    Name(String),
    /// All that have it.
    Tag(String),
}

/// What every alias stands for in the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aliases(HashMap<ModelName, Vec<NamedModel>>);

impl Backend {
    pub(super) fn builtin() -> Self {
        Self {
            place: String::new(),
            name: "ollama".to_owned(),
            url: BackendUrl::Http { host: "127.0.0.1".to_owned(), port: 11434 },
            kind: BackendKind::Ollama,
            weight: Weight::default(),
            parallel: None,
            models_at_once: None,
            key_file: None,
            ca_file: None,
            preserve_host: false,
            ask_usage: false,
            manage: false,
            tags: Vec::new(),
        }
    }

    /// Requests of one model that it runs at once.
    #[must_use]
    pub fn parallel(&self) -> AtOnce {
        self.parallel.unwrap_or(self.kind.usual())
    }

    /// Models that it has in memory at once.
    #[must_use]
    pub fn models_at_once(&self) -> AtOnce {
        self.models_at_once.unwrap_or(self.kind.usual())
    }
}

impl BackendKind {
    /// What is put as `kind`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ollama => "ollama",
            Self::OpenAi => "openai",
        }
    }

    /// Ollama runs a few requests and keeps the rest waiting; the others bound themselves.
    fn usual(self) -> AtOnce {
        match self {
            Self::Ollama => AtOnce::Auto,
            Self::OpenAi => AtOnce::Unbounded,
        }
    }
}

impl NamedBackends {
    /// Whether a backend with this name and these tags is meant.
    #[must_use]
    pub fn means(&self, name: &str, tags: &[String]) -> bool {
        match self {
            Self::Name(meant) => meant == name,
            Self::Tag(meant) => tags.contains(meant),
        }
    }

    fn read(text: &str) -> Result<Self, String> {
        match text.strip_prefix("tag:") {
            Some(word) => tag(word).map(Self::Tag),
            None => values::backend_name(text).map(Self::Name),
        }
    }
}

impl fmt::Display for NamedBackends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Tag(word) => write!(f, "tag:{word}"),
        }
    }
}

impl Weight {
    const ONE: NonZeroU32 = NonZeroU32::MIN.saturating_add(999);

    /// `None` for nothing.
    #[must_use]
    pub fn of_thousandths(thousandths: u32) -> Option<Self> {
        NonZeroU32::new(thousandths).map(Self)
    }

    /// Never 0.
    #[must_use]
    pub fn thousandths(self) -> u32 {
        self.0.get()
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(Self::ONE)
    }
}

impl Aliases {
    /// Of aliases without a circle; of others some lead nowhere.
    #[must_use]
    pub fn new(written: &[Alias]) -> Self {
        let named = by_name(written);
        let resolved = named.keys().map(|name| {
            let (mut models, mut met) = (Vec::new(), HashSet::new());
            resolve(name, &named, &mut met, &mut models);
            ((*name).clone(), models)
        });
        Self(resolved.collect())
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What stands for this name, in order of preference; `None` where it is no alias.
    #[must_use]
    pub fn find(&self, name: &ModelName) -> Option<&[NamedModel]> {
        let name = Some(name).filter(|name| !name.is_cloud())?;
        self.0.get(&*name.without_source()).map(Vec::as_slice)
    }

    /// Whether any of them has to know which backend has what.
    #[must_use]
    pub fn have_choices(&self) -> bool {
        self.0.values().any(|models| models.len() > 1)
    }
}

type ByName<'a> = HashMap<&'a ModelName, &'a [NamedModel]>;

fn by_name(written: &[Alias]) -> ByName<'_> {
    let pairs = written.iter().filter_map(|it| Some((&it.name.as_ref()?.name, &*it.models)));
    pairs.collect()
}

/// Each model once, where it is met first; so it takes no longer than there are names.
fn resolve(
    alias: &ModelName,
    named: &ByName<'_>,
    met: &mut HashSet<ModelName>,
    models: &mut Vec<NamedModel>,
) {
    if !met.insert(alias.clone()) {
        return;
    }
    for model in named.get(alias).copied().unwrap_or_default() {
        if model.name == *alias || !named.contains_key(&model.name) {
            if !models.iter().any(|known| known.name == model.name) {
                models.push(model.clone());
            }
        } else {
            resolve(&model.name, named, met, models);
        }
    }
}

/// Where clouds tell a machine its own secrets, over IPv6; over IPv4 that is link-local.
const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Whether an address is good only on its own cable, where no model server is, but what clouds tell a
/// machine alone (169.254.169.254).
#[must_use]
pub fn is_link_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip == METADATA,
    }
}

/// The first `[[backend]]` takes the place of the one that nobody wrote.
pub(super) fn open_backend(config: &mut Config, written: &Written) -> Result<(), Found> {
    config.backends.retain(|backend| !backend.place.is_empty());
    config.backends.push(Backend { place: written.place.to_string(), ..Backend::builtin() });
    Ok(())
}

pub(super) fn open_alias(config: &mut Config, written: &Written) -> Result<(), Found> {
    config.aliases.push(Alias { place: written.place.to_string(), ..Alias::default() });
    Ok(())
}

/// The backend that is being read; its header came before its keys.
pub(super) fn backend(
    config: &mut Config,
    set: impl FnOnce(&mut Backend) -> Result<(), Found>,
) -> Result<(), Found> {
    config.backends.last_mut().map_or(Ok(()), set)
}

pub(super) fn alias(
    config: &mut Config,
    set: impl FnOnce(&mut Alias) -> Result<(), Found>,
) -> Result<(), Found> {
    config.aliases.last_mut().map_or(Ok(()), set)
}

/// Names one backend, so there may not be several.
pub(super) fn upstream(config: &mut Config, written: &Written) -> Result<(), Found> {
    let url = written.parsed(str::parse)?;
    let [only] = config.backends.as_mut_slice() else {
        return Err(written.wrong(
            "names one model server, and the file names several as [[backend]]; leave it out",
        ));
    };
    only.url = url;
    Ok(())
}

impl Written {
    /// `"auto"`, or a number.
    pub(super) fn at_once(&self) -> Result<Option<AtOnce>, Found> {
        if let Form::Text(text) = &self.form {
            return match text.as_str() {
                "auto" => Ok(Some(AtOnce::Auto)),
                _ => Err(self.misfit()),
            };
        }
        let count = self.count(1..=MOST_AT_ONCE)?;
        Ok(NonZeroU32::new(count).map(AtOnce::AtMost))
    }

    pub(super) fn weight(&self) -> Result<Weight, Found> {
        let value = match &self.form {
            Form::Number(number) => number.to_string().parse().ok(),
            Form::Fraction(text) => text.replace('_', "").parse::<f64>().ok(),
            Form::Text(_)
            | Form::Switch(_)
            | Form::List(_)
            | Form::Tables(_)
            | Form::Table(_)
            | Form::Other(_) => return Err(self.misfit()),
        };
        let value = value.filter(|it| (0.001..=1000.0).contains(it));
        // Within these bounds nothing is lost but digits that mean nothing.
        let weight = value.and_then(|it| Weight::of_thousandths((it * 1000.0).round() as u32));
        weight.ok_or_else(|| self.wrong("a weight is from 0.001 to 1000"))
    }

    pub(super) fn tags(&self) -> Result<Vec<String>, Found> {
        let tags = self.each_once(tag, |_| false)?;
        if tags.len() > MOST_TAGS {
            return Err(self.wrong(format!("at most {MOST_TAGS} tags")));
        }
        Ok(tags)
    }

    pub(super) fn named_backends(&self) -> Result<Vec<NamedBackends>, Found> {
        self.each_once(NamedBackends::read, |_| false)
    }

    pub(super) fn model_names(&self) -> Result<Vec<NamedModel>, Found> {
        let models = self.each(named_model)?;
        match models.is_empty() {
            true => Err(self.wrong("an empty list stands for no model; name one at least")),
            false => Ok(models),
        }
    }
}

fn tag(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:=".contains(&b);
    match text.is_empty() || text.len() > 64 || !text.bytes().all(plain) {
        true => Err("a tag has 1 to 64 letters, digits and `-_.:=`, as \"room=4\"".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// One model, by a name that a request could have.
pub(super) fn named_model(text: &str) -> Result<NamedModel, String> {
    let name = ModelName::parse(text);
    let name = name.map_err(|error| format!("{} names no model: {error}", shown(text)))?;
    Ok(NamedModel { text: text.trim().to_owned(), name })
}

/// By which an alias is asked for.
pub(super) fn alias_name(text: &str) -> Result<NamedModel, String> {
    let NamedModel { text, name } = named_model(text)?;
    match name.is_cloud() {
        true => Err(format!("{} says where a model runs, which an alias does not", shown(&text))),
        false => Ok(NamedModel { text, name: name.without_source().into_owned() }),
    }
}

/// Whether an authority is named for an address without TLS.
pub(super) fn has_stray_ca(config: &Config) -> bool {
    let is_stray =
        |it: &Backend| it.ca_file.is_some() && !matches!(it.url, BackendUrl::Https { .. });
    config.backends.iter().any(is_stray)
}

/// Whether the backends and aliases of a whole configuration make sense together.
pub(super) fn faults(config: &Config) -> Vec<(String, String)> {
    let mut faults = Vec::new();
    for (at, backend) in config.backends.iter().enumerate() {
        let mut add = |says: String| faults.push((backend.place.clone(), says));
        let earlier = config.backends.get(..at).unwrap_or_default();
        if earlier.iter().any(|other| other.name == backend.name) {
            add(format!(
                "a second [[backend]] has the name {}; give each a name of its own",
                shown(&backend.name)
            ));
        }
        if let BackendUrl::Http { host, .. } | BackendUrl::Https { host, .. } = &backend.url
            && host.parse().is_ok_and(is_link_local)
        {
            add(format!(
                "{host} is a link-local address, where clouds keep a machine's secrets; no request is \
                 sent there"
            ));
        }
        if backend.manage && earlier.iter().any(|other| other.manage) {
            add("manage = true stands at another [[backend]] already; one may have it".to_owned());
        }
    }
    if let Some(one_more) = config.backends.get(MOST_BACKENDS) {
        faults.push((
            one_more.place.clone(),
            format!("there may be {MOST_BACKENDS} backends, and this is one more"),
        ));
    }
    faults.extend(faults_of_aliases(&config.aliases));
    faults.extend(faults_of_managers(config));
    faults
}

/// Who is to manage models has to know how.
fn faults_of_managers(config: &Config) -> Vec<(String, String)> {
    let mut faults = Vec::new();
    for rule in &config.rules {
        for named in &rule.manage {
            let mut meant =
                config.backends.iter().filter(|it| named.means(&it.name, &it.tags)).peekable();
            let named = shown(&named.to_string());
            if meant.peek().is_none() {
                let says = format!("manage names {named}, and there is no such [[backend]]");
                faults.push((rule.place.clone(), says));
            }
            if let Some(other) = meant.find(|it| it.kind != BackendKind::Ollama) {
                let says = format!(
                    "manage names {named}, and the backend {} has no calls that manage models: \
                     it is of the kind openai",
                    shown(&other.name)
                );
                faults.push((rule.place.clone(), says));
            }
        }
    }
    faults
}

fn faults_of_aliases(aliases: &[Alias]) -> Vec<(String, String)> {
    let named = by_name(aliases);
    let mut faults = Vec::new();
    for (at, alias) in aliases.iter().enumerate() {
        let mut add = |says: String| faults.push((alias.place.clone(), says));
        let Some(NamedModel { text, name }) = &alias.name else {
            add("an alias needs a name, that by which it is asked for".to_owned());
            continue;
        };
        let earlier = aliases.get(..at).unwrap_or_default().iter();
        if earlier.filter_map(|other| other.name.as_ref()).any(|other| other.name == *name) {
            add(format!("there is an alias {} already; one name stands for one list", shown(text)));
        }
        if alias.models.is_empty() {
            add("an alias needs model, what it stands for".to_owned());
        }
        if alias.models.iter().all(|it| it.name == *name) && !alias.models.is_empty() {
            add(format!("the alias {} stands for itself; name another model", shown(text)));
        } else if leads_back(name, &named) {
            add(format!("the alias {} leads back to itself over others", shown(text)));
        }
    }
    faults
}

/// An alias that names itself means the model of that name, and is no circle.
fn leads_back(start: &ModelName, named: &ByName<'_>) -> bool {
    let (mut met, mut waiting) = (HashSet::new(), vec![start]);
    while let Some(name) = waiting.pop() {
        for next in named.get(name).copied().unwrap_or_default() {
            if next.name == *name {
                continue;
            }
            if next.name == *start {
                return true;
            }
            if named.contains_key(&next.name) && met.insert(&next.name) {
                waiting.push(&next.name);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests;
