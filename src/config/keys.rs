//! One table of every key: what is written for it, what it sets, what it does.

use std::time::Duration;

use super::problems::Found;
use super::written::{Written, put};
use super::{
    BackendKind, ClientAuth, Config, Cors, LedgerMode, LogFormat, Priority, Role, WeakHashes,
    backends, limits, rules, values, zone,
};

/// One row of the table.
#[derive(Debug)]
pub struct Key {
    /// With its table before a dot.
    pub name: &'static str,
    pub kind: Kind,
    /// As it would stand in the file.
    pub default: &'static str,
    /// `serve` takes it as a flag too.
    pub flag: bool,
    /// One sentence, without a full stop.
    pub says: &'static str,
    pub(super) set: fn(&mut Config, &Written) -> Result<(), Found>,
}

/// What is written for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    File,
    Folder,
    Backend,
    Web,
    Switch,
    Choice(&'static str),
    Count,
    Size,
    Duration,
    Addresses,
    Headers,
    Endpoints,
    Networks,
    Origins,
    Names,
    Pairs,
    Models,
    Openings,
    Policy,
    Groups,
    Prices,
    Expiry,
    Zone,
    AtOnce,
    Weight,
    Tags,
    ModelNames,
}

/// Every key that this version knows.
#[must_use]
pub fn reference() -> &'static [Key] {
    &KEYS
}

impl Key {
    /// Keys of tables have no variable: there is no one way to spell the dot.
    #[must_use]
    pub fn variable(&self) -> Option<String> {
        variable(self.name)
    }

    /// With its hyphens, if `serve` takes it as a flag.
    #[must_use]
    pub fn flag_name(&self) -> Option<String> {
        self.flag.then(|| format!("--{}", self.name.replace('_', "-")))
    }

    /// The table that it stands in, and its name there.
    #[must_use]
    pub fn in_table(&self) -> (Option<&'static str>, &'static str) {
        in_table(self.name)
    }
}

impl Kind {
    /// With an example, to stand after "expected".
    pub(super) fn wanted(self) -> &'static str {
        match self {
            Self::Text => "a text such as \"Anna, room 4\"",
            Self::File => "a file's path such as \"users.htpasswd\"",
            Self::Folder => "a folder's path such as \"data\"",
            Self::Backend => "an address such as \"http://127.0.0.1:11434\"",
            Self::Web => "a web address such as \"https://gate.example.com\"",
            Self::Switch => "true or false, without quotes",
            Self::Choice(choices) => choices,
            Self::Count => "a whole number such as 10, without quotes",
            Self::Size => "a size such as \"100MiB\"",
            Self::Duration => "a duration such as \"30s\"",
            Self::Addresses => "a list such as [\"0.0.0.0:8880\"]",
            Self::Headers => "a list such as [\"x-api-key\"]",
            Self::Endpoints => "a list such as [\"GET /api/x\"]",
            Self::Networks => "a list such as [\"10.0.0.0/8\"]",
            Self::Origins => "a list such as [\"https://chat.example.com\"]",
            Self::Names => "a list such as [\"anna\", \"s*\"]",
            Self::Models => "\"all\" or a list such as [\"gemma3*\"]",
            Self::Openings => "a list such as [\"inference\", \"/api/show\"]",
            Self::Policy => "a table such as { num_ctx = { max = 8192 }, tools = \"refuse\" }",
            Self::Groups => "a list of names such as [\"s01*\", \"anna\"]",
            Self::Prices => "prices such as { prompt = 0.10, completion = 0.40 }",
            Self::Expiry => "a day such as \"2027-01-31\"",
            Self::Zone => "a time zone such as \"Europe/Berlin\"",
            Self::AtOnce => "\"auto\" or a whole number such as 4",
            Self::Weight => "a number such as 2 or 0.5, without quotes",
            Self::Tags => "a list such as [\"room=4\", \"fast\"]",
            Self::ModelNames => "a model such as \"gemma3:12b\", or a list of them",
            Self::Pairs => "a list such as [{ cert = \"gate.pem\", key = \"gate.key\" }]",
        }
    }
}

pub(super) const VARIABLE: &str = "PORTCULLIS_";

fn variable(name: &str) -> Option<String> {
    (!name.contains('.')).then(|| format!("{VARIABLE}{}", name.to_ascii_uppercase()))
}

pub(super) fn in_table(name: &str) -> (Option<&str>, &str) {
    match name.split_once('.') {
        Some((table, name)) => (Some(table), name),
        None => (None, name),
    }
}

/// What a name that is written somewhere turns out to be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Named {
    Known(&'static Key),
    /// Its capability comes with a later version.
    Later(&'static str),
}

impl Named {
    pub(super) fn find(name: &str) -> Option<Self> {
        let known = KEYS.iter().find(|key| key.name == name).map(Self::Known);
        known.or_else(|| LATER.iter().find(|later| **later == name).map(|name| Self::Later(name)))
    }

    /// What is spelt most like it, at most so many slips away.
    pub(super) fn nearest(name: &str, most: usize) -> Option<Self> {
        let all = all().map(|named| (distance(name, named.name()), named));
        let near = all.filter(|(distance, _)| *distance <= most);
        near.min_by_key(|(distance, _)| *distance).map(|(_, named)| named)
    }

    /// A key of that name in another table, or in none.
    pub(super) fn elsewhere(name: &str) -> Option<Self> {
        let (_, bare) = in_table(name);
        all().find(|named| named.name() != name && in_table(named.name()).1 == bare)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Known(key) => key.name,
            Self::Later(name) => name,
        }
    }

    pub(super) fn variable(self) -> Option<String> {
        let is_table = matches!(self, Self::Later(name) if LATER_TABLES.contains(&name));
        variable(self.name()).filter(|_| !is_table)
    }
}

fn all() -> impl Iterator<Item = Named> {
    KEYS.iter().map(Named::Known).chain(LATER.iter().map(|name| Named::Later(name)))
}

/// The fewest letters to add, drop, change, or swap with their neighbour.
pub(super) fn distance(a: &str, b: &str) -> usize {
    // No key is as long, and comparing takes time in proportion to both lengths.
    if a.len() > 80 {
        return usize::MAX;
    }
    let (a, b): (Vec<_>, Vec<_>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    let at = |rows: &[Vec<usize>], i: usize, j: usize| {
        rows.get(i).and_then(|row| row.get(j)).copied().unwrap_or(usize::MAX / 2)
    };
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let changed = at(&rows, i, j) + usize::from(x != y);
            let dropped = at(&rows, i, j + 1).min(row.last().copied().unwrap_or(0)) + 1;
            let crossed = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            let swapped = if crossed { at(&rows, i - 1, j - 1) + 1 } else { usize::MAX };
            row.push(changed.min(dropped).min(swapped));
        }
        rows.push(row);
    }
    at(&rows, a.len(), b.len())
}

const fn row(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    set: fn(&mut Config, &Written) -> Result<(), Found>,
    says: &'static str,
) -> Key {
    Key { name, kind, default, flag: false, says, set }
}

impl Key {
    const fn also_a_flag(mut self) -> Self {
        self.flag = true;
        self
    }
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

// What the limits are, in three tables.
const REQUESTS: &str =
    "requests a minute; as many at once, then one whenever its share of the minute has passed";
const TOKENS: &str =
    "tokens a minute, of prompts and answers; more may be spent than is left, and is waited for";
const TOKENS_DAY: &str = "tokens a day, from midnight in `time_zone`";
const TOKENS_MONTH: &str = "tokens a month, from its first midnight in `time_zone`";
const GPU_DAY: &str = "seconds a day that a backend worked on inference";
const GPU_MONTH: &str = "seconds a month that a backend worked on inference";
const CONCURRENT: &str = "requests at once";

#[rustfmt::skip]
static KEYS: [Key; 116] = [
    row("listen", Kind::Addresses, r#"["0.0.0.0:8880"]"#,
        |config, it| put(&mut config.listen, it.listen()),
        "where to listen, as ADDRESS:PORT or `unix:/path`; sockets that a supervisor hands over replace it").also_a_flag(),
    row("redirect_listen", Kind::Text, r#""""#,
        |config, it| put(&mut config.redirect_listen, it.filled(values::listen)),
        "an address for plain HTTP beside TLS: browsers are sent on to https, and a credential is refused"),
    row("admin", Kind::Text, r#""127.0.0.1:8881""#,
        |config, it| put(&mut config.admin, it.filled(values::listen)),
        "where the admin API listens, as ADDRESS:PORT or `unix:/path`, in plain HTTP; empty for nowhere").also_a_flag(),
    row("tls_cert", Kind::File, r#""""#,
        |config, it| put(&mut config.tls_cert, it.path()),
        "a file with the gate's certificate and those between it and an authority, as PEM; with `tls_key` the gate speaks https").also_a_flag(),
    row("tls_key", Kind::File, r#""""#,
        |config, it| put(&mut config.tls_key, it.path()),
        "a file with the certificate's private key, as PEM").also_a_flag(),
    row("upstream", Kind::Backend, r#""http://127.0.0.1:11434""#, backends::upstream,
        "the model server, as `http://`, `https://` or `unix:/path`; short for one `[[backend]]` with this `url`").also_a_flag(),
    row("htpasswd", Kind::File, r#""""#,
        |config, it| put(&mut config.htpasswd, it.path()),
        "a file of users and their password hashes, as Apache and nginx have them").also_a_flag(),
    row("api_keys", Kind::File, r#""""#,
        |config, it| put(&mut config.api_keys, it.path()),
        "a file of API keys, one a line").also_a_flag(),
    row("authorized_keys", Kind::File, r#""""#,
        |config, it| put(&mut config.authorized_keys, it.path()),
        "a file of public keys of machines whose `ollama` signs its requests").also_a_flag(),
    row("data_dir", Kind::Folder, r#""""#,
        |config, it| put(&mut config.data_dir, it.path()),
        "a folder for what survives a restart: managed keys and the audit trail").also_a_flag(),
    row("path_keys", Kind::Switch, "false",
        |config, it| put(&mut config.path_keys, it.switch()),
        "accept a key in the path, as `/k/KEY/…`, for programs that ask only for an address"),
    row("weak_hashes", Kind::Choice(r#""warn" or "refuse""#), r#""warn""#,
        |config, it| put(&mut config.weak_hashes, it.one_of(&[("warn", WeakHashes::Warn), ("refuse", WeakHashes::Refuse)])),
        "`warn` about password hashes that are quick to guess, or `refuse` them"),
    row("credential_headers", Kind::Headers, r#"["x-api-key", "api-key"]"#,
        |config, it| put(&mut config.credential_headers, it.each_once(values::header, |_| false)),
        "headers that may carry a key, beside `Authorization`"),
    row("failed_attempts_per_minute", Kind::Count, "10",
        |config, it| put(&mut config.failed_attempts_per_minute, it.count(0..=100_000)),
        "wrong passwords of one user from one address, and wrong keys from one address, before they are told to wait; 0 is off"),
    row("default_role", Kind::Choice(r#""viewer", "user", "operator" or "admin""#), r#""operator""#,
        |config, it| it.parsed(str::parse).map(|role| config.roles.set_default(role)),
        "the role of whoever `[roles]` does not name: `viewer`, `user`, `operator` or `admin`"),
    row("extra_endpoints", Kind::Endpoints, "[]",
        |config, it| put(&mut config.extra_endpoints, it.each_once(values::endpoint, |_| false)),
        "endpoints outside Ollama's table that users may ask for, as `GET /api/x`"),
    row("hide_models", Kind::Switch, "false",
        |config, it| put(&mut config.hide_models, it.switch()),
        "a model that a caller may not use looks as if it did not exist"),
    row("public_url", Kind::Web, r#""""#,
        |config, it| put(&mut config.public_url, it.filled(values::web_base)),
        "the address under which people reach this gate, for the help page"),
    row("help_url", Kind::Web, r#""""#,
        |config, it| put(&mut config.help_url, it.filled(values::web_page)),
        "a page of your own for people without a login, instead of the gate's"),
    row("contact", Kind::Text, r#""""#,
        |config, it| put(&mut config.contact, it.filled(values::contact)),
        "whom the help page names"),
    row("trusted_proxies", Kind::Networks, "[]",
        |config, it| put(&mut config.trusted_proxies, it.each(values::network)),
        "networks of proxies before this gate whose `X-Forwarded-For` or `Forwarded` is believed"),
    row("proxy_protocol_from", Kind::Networks, "[]",
        |config, it| put(&mut config.proxy_protocol_from, it.each(values::network)),
        "networks of proxies whose connections begin with a PROXY header that names the caller"),
    row("max_connections", Kind::Count, "10000",
        |config, it| put(&mut config.max_connections, it.count(1..=1_000_000)),
        "callers' connections at once; for each the system has to allow two open files"),
    row("max_connections_per_address", Kind::Count, "0",
        |config, it| put(&mut config.max_connections_per_address, it.count(0..=1_000_000)),
        "connections at once from one address, or from one /64 of IPv6, but for `trusted_proxies`; 0 is off"),
    row("max_body", Kind::Size, r#""100MiB""#,
        |config, it| put(&mut config.max_body, it.size()),
        "the largest request body; model blobs have no limit"),
    row("max_body_memory", Kind::Size, r#""1GiB""#,
        |config, it| put(&mut config.max_body_memory, it.size()),
        "memory for all request bodies at once, not less than `max_body`"),
    row("h2c", Kind::Switch, "false",
        |config, it| put(&mut config.h2c, it.switch()),
        "speak HTTP/2 without TLS to callers who begin with it (prior knowledge)"),
    row("log_format", Kind::Choice(r#""text" or "json""#), r#""text""#,
        |config, it| put(&mut config.log_format, it.one_of(&[("text", LogFormat::Text), ("json", LogFormat::Json)])),
        "one line a request as `text` or as `json`"),
    row("drain_delay", Kind::Duration, r#""0s""#,
        |config, it| put(&mut config.drain_delay, it.duration(HOUR)),
        "how long to go on accepting connections after being told to stop, an hour at most"),
    row("drain_timeout", Kind::Duration, r#""30s""#,
        |config, it| put(&mut config.drain_timeout, it.duration(DAY)),
        "how long running requests may take to end when stopping, a day at most"),
    row("queue_timeout", Kind::Duration, r#""300s""#,
        |config, it| put(&mut config.queue_timeout, it.duration(DAY)),
        "how long a request waits for its turn at a backend, a day at most"),
    row("heartbeat", Kind::Duration, r#""0s""#,
        |config, it| put(&mut config.heartbeat, it.duration(HOUR)),
        "how long a streamed answer is silent before it begins with 200, and then every so often a blank or an empty comment until there is more; 0 is off, an hour at most"),
    row("time_zone", Kind::Zone, r#""UTC""#,
        |config, it| put(&mut config.time_zone, it.parsed(zone::named)),
        "whose days and months are counted, as `Europe/Berlin`"),
    row("ledger", Kind::Choice(r#""journal" or "durable""#), r#""journal""#,
        |config, it| put(&mut config.ledger, it.one_of(&[("journal", LedgerMode::Journal), ("durable", LedgerMode::Durable)])),
        "before an answer ends, its usage is in a `journal`, which outlives the gate, or on the disk (`durable`), which outlives the machine"),
    row("keep", Kind::Duration, r#""400d""#,
        |config, it| put(&mut config.keep, it.kept()),
        "how long each request's usage is kept, a day at least; sums by days are kept for ten years"),
    row("roles.viewer", Kind::Names, "[]",
        |config, it| it.names(&mut config.roles, Role::Viewer),
        "names who may ask the backend for nothing; `*` stands for any run of characters"),
    row("roles.user", Kind::Names, "[]",
        |config, it| it.names(&mut config.roles, Role::User),
        "names who may use models and list them"),
    row("roles.operator", Kind::Names, "[]",
        |config, it| it.names(&mut config.roles, Role::Operator),
        "names who may also pull, create and delete models, and use unknown endpoints"),
    row("roles.admin", Kind::Names, "[]",
        |config, it| it.names(&mut config.roles, Role::Admin),
        "names who may do everything, also with the server owner's cloud account"),
    row("groups.*", Kind::Groups, "[]",
        |config, it| it.groups(&mut config.groups),
        "the names of a group, for `groups` of a rule; `*` stands for any run of characters"),
    row("prices.*", Kind::Prices, "{}",
        |config, it| it.prices(&mut config.prices),
        "what a model costs, by a pattern of its name: `prompt`, `completion` and `cached` for a million tokens, `backend_hour` for an hour of a backend"),
    row("tls.pairs", Kind::Pairs, "[]",
        |config, it| put(&mut config.tls.pairs, it.pairs()),
        "further certificates, each with its key, as `{ cert = \"b.pem\", key = \"b.key\" }`; a caller gets the one for the host it names, or else the first"),
    row("tls.client_ca", Kind::File, r#""""#,
        |config, it| put(&mut config.tls.client_ca, it.path()),
        "a file with the certificates of the authorities that vouch for callers', as PEM"),
    row("tls.client_auth", Kind::Choice(r#""off", "optional" or "required""#), r#""off""#,
        |config, it| put(&mut config.tls.client_auth, it.one_of(&[("off", ClientAuth::Off), ("optional", ClientAuth::Optional), ("required", ClientAuth::Required)])),
        "whether callers show certificates: `off`, `optional` (who shows one must show a good one) or `required`; not on Unix sockets, where no TLS is spoken"),
    row("tls.client_cert_login", Kind::Switch, "false",
        |config, it| put(&mut config.tls.client_cert_login, it.switch()),
        "a certificate's CN is the login of a request without another credential"),
    row("cors.origins", Kind::Origins, r#"["*"]"#,
        |config, it| it.origins().map(|origins| config.cors = Cors { origins }),
        "sites whose pages may read answers, as `https://chat.example.com`; `*` alone is any"),
    row("traces.endpoint", Kind::Backend, r#""""#,
        |config, it| put(&mut config.traces.endpoint, it.filled(values::collector)),
        "a collector that takes OTLP over HTTP, as `http://127.0.0.1:4318`; empty for none"),
    row("traces.sample", Kind::Count, "1",
        |config, it| put(&mut config.traces.sample, it.count(1..=1_000_000)),
        "of so many requests one is traced, where its caller does not say whether it is"),
    row("timeouts.connect", Kind::Duration, r#""10s""#,
        |config, it| put(&mut config.timeouts.connect, it.timeout()),
        "to connect to the backend"),
    row("timeouts.first_byte", Kind::Duration, r#""600s""#,
        |config, it| put(&mut config.timeouts.first_byte, it.timeout()),
        "from the request's end to the answer's first byte; a model may have to be loaded"),
    row("timeouts.idle", Kind::Duration, r#""300s""#,
        |config, it| put(&mut config.timeouts.idle, it.timeout()),
        "between two bytes of an answer; a caller who takes none for as long, or for 60 s, is given up"),
    row("timeouts.header", Kind::Duration, r#""10s""#,
        |config, it| put(&mut config.timeouts.header, it.timeout()),
        "for a caller to send a request's head"),
    row("timeouts.keep_alive", Kind::Duration, r#""75s""#,
        |config, it| put(&mut config.timeouts.keep_alive, it.timeout()),
        "for a caller's connection to stay idle"),
    row("timeouts.body_grace", Kind::Duration, r#""20s""#,
        |config, it| put(&mut config.timeouts.body_grace, it.timeout()),
        "for a request's body to begin; after it 500 bytes a second are due"),
    row("backend.name", Kind::Text, r#""ollama""#,
        |config, it| backends::backend(config, |backend| put(&mut backend.name, it.parsed(values::backend_name))),
        "the backend's name, in the log and the metrics; another for each"),
    row("backend.url", Kind::Backend, r#""http://127.0.0.1:11434""#,
        |config, it| backends::backend(config, |backend| put(&mut backend.url, it.parsed(str::parse))),
        "the backend's address"),
    row("backend.kind", Kind::Choice(r#""ollama" or "openai""#), r#""ollama""#,
        |config, it| backends::backend(config, |backend| put(&mut backend.kind, it.one_of(&[("ollama", BackendKind::Ollama), ("openai", BackendKind::OpenAi)]))),
        "`ollama`, or `openai` for a server that has only what lies under `/v1`: llama.cpp, vLLM, LM Studio"),
    row("backend.weight", Kind::Weight, "1",
        |config, it| backends::backend(config, |backend| put(&mut backend.weight, it.weight())),
        "how much of the work it gets beside others that have the same model"),
    row("backend.parallel", Kind::AtOnce, r#""auto""#,
        |config, it| backends::backend(config, |backend| put(&mut backend.parallel, it.at_once())),
        "requests of one model that it runs at once; `auto` finds it out, and without this line the kind `openai` has no bound"),
    row("backend.models_at_once", Kind::AtOnce, r#""auto""#,
        |config, it| backends::backend(config, |backend| put(&mut backend.models_at_once, it.at_once())),
        "models that it keeps in memory side by side; `auto` finds it out, and without this line the kind `openai` has no bound"),
    row("backend.key_file", Kind::File, r#""""#,
        |config, it| backends::backend(config, |backend| put(&mut backend.key_file, it.path())),
        "a file with a key for the backend, sent as a Bearer token"),
    row("backend.ca_file", Kind::File, r#""""#,
        |config, it| backends::backend(config, |backend| put(&mut backend.ca_file, it.path())),
        "a file with the certificate of the authority that vouches for an `https://` backend, as PEM; without one the system's authorities count"),
    row("backend.preserve_host", Kind::Switch, "false",
        |config, it| backends::backend(config, |backend| put(&mut backend.preserve_host, it.switch())),
        "pass on the caller's `Host` instead of the backend's own"),
    row("backend.ask_usage", Kind::Switch, "false",
        |config, it| backends::backend(config, |backend| put(&mut backend.ask_usage, it.switch())),
        "ask for the true counts of tokens also where the answer changes by that: in streams of `/v1/completions`, and of the kind `openai`"),
    row("backend.manage", Kind::Switch, "false",
        |config, it| backends::backend(config, |backend| put(&mut backend.manage, it.switch())),
        "calls that pull, create, copy or delete models and name no backend go to this one, instead of the first; one at most"),
    row("backend.tags", Kind::Tags, "[]",
        |config, it| backends::backend(config, |backend| put(&mut backend.tags, it.tags())),
        "words of your own about it, shown where backends are listed"),
    row("alias.name", Kind::Text, "",
        |config, it| backends::alias(config, |alias| put(&mut alias.name, it.parsed(backends::alias_name).map(Some))),
        "the name that is asked for"),
    row("alias.model", Kind::ModelNames, "",
        |config, it| backends::alias(config, |alias| put(&mut alias.models, it.model_names())),
        "the model that it stands for, or a list: the first of them that some backend has"),
    row("rule.names", Kind::Names, "",
        |config, it| rules::rule(config, |rule| put(&mut rule.names, it.patterns())),
        "for callers of these names; `*` stands for any run of characters"),
    row("rule.roles", Kind::Names, "",
        |config, it| rules::rule(config, |rule| put(&mut rule.roles, it.each(str::parse).and_then(|roles| it.filled_list(roles)))),
        "for callers with one of these roles"),
    row("rule.groups", Kind::Names, "",
        |config, it| rules::rule(config, |rule| put(&mut rule.groups, it.each(rules::name).and_then(|groups| it.filled_list(groups)))),
        "for the members of these `[groups]`"),
    row("rule.keys", Kind::Names, "",
        |config, it| rules::rule(config, |rule| put(&mut rule.keys, it.patterns())),
        "for these managed keys, by id or name"),
    row("rule.models", Kind::Models, r#""all""#,
        |config, it| rules::rule(config, |rule| put(&mut rule.models, it.models())),
        "`all`, or patterns of the models that may be used and seen; an empty list is none"),
    row("rule.cloud", Kind::Switch, "false",
        |config, it| rules::rule(config, |rule| put(&mut rule.cloud, it.switch())),
        "models that run on ollama.com under the account of the server's owner may be used; the role admin always may"),
    row("rule.endpoints", Kind::Openings, "",
        |config, it| rules::rule(config, |rule| put(&mut rule.endpoints, it.openings())),
        "the only endpoints, of those that the role allows: paths, or the classes inference, models, manage and owner"),
    row("rule.policy", Kind::Policy, "{}",
        |config, it| rules::rule(config, |rule| put(&mut rule.policy, it.policy())),
        "what becomes of parameters, as `{ num_ctx = { max = 8192 }, keep_alive = \"drop\", images = \"refuse\" }`"),
    row("rule.acts_for", Kind::Text, r#""""#,
        |config, it| rules::rule(config, |rule| put(&mut rule.acts_for, it.filled(rules::user_header))),
        "the header in which this front end names the user it asks for; only with `names` or `keys` without a `*`"),
    row("rule.weight", Kind::Weight, "1",
        |config, it| rules::rule(config, |rule| put(&mut rule.weight, it.weight())),
        "the share of a backend's time that each of these callers has beside others who wait"),
    row("rule.priority", Kind::Choice(r#""interactive" or "batch""#), r#""interactive""#,
        |config, it| rules::rule(config, |rule| put(&mut rule.priority, it.one_of(&[("interactive", Priority::Interactive), ("batch", Priority::Batch)]))),
        "`interactive`, or `batch` for requests that wait while others do not"),
    row("rule.manage", Kind::Names, "[]",
        |config, it| rules::rule(config, |rule| put(&mut rule.manage, it.named_backends())),
        "the backends that their calls which pull, create, copy or delete models go to, each to all of these; by name, or as `tag:WORD` those with this tag"),
    row("rule.requests_per_minute", Kind::Count, "", limits::of_rule, REQUESTS),
    row("rule.tokens_per_minute", Kind::Count, "", limits::of_rule, TOKENS),
    row("rule.tokens_per_day", Kind::Count, "", limits::of_rule, TOKENS_DAY),
    row("rule.tokens_per_month", Kind::Count, "", limits::of_rule, TOKENS_MONTH),
    row("rule.gpu_seconds_per_day", Kind::Count, "", limits::of_rule, GPU_DAY),
    row("rule.gpu_seconds_per_month", Kind::Count, "", limits::of_rule, GPU_MONTH),
    row("rule.concurrent", Kind::Count, "", limits::of_rule, CONCURRENT),
    row("key.name", Kind::Text, "",
        |config, it| rules::key(config, |key| put(&mut key.name, it.parsed(rules::name))),
        "the key's name, in the log and in rules"),
    row("key.owner", Kind::Text, r#""""#,
        |config, it| rules::key(config, |key| put(&mut key.owner, it.filled(rules::name))),
        "whose key it is; without one it stands for its own name"),
    row("key.role", Kind::Choice(r#""viewer", "user", "operator" or "admin""#), "",
        |config, it| rules::key(config, |key| put(&mut key.role, it.parsed(str::parse).map(Some))),
        "its role, in place of what `[roles]` says of the name"),
    row("key.sha256", Kind::Text, "",
        |config, it| rules::key(config, |key| put(&mut key.digest, it.parsed(rules::digest))),
        "the key's SHA-256, 64 hex digits; the key itself stands nowhere"),
    row("key.models", Kind::Models, "",
        |config, it| rules::key(config, |key| put(&mut key.models, it.models().map(Some))),
        "the models that this key is good for, of those that rules allow"),
    row("key.cloud", Kind::Switch, "",
        |config, it| rules::key(config, |key| put(&mut key.cloud, it.switch().map(Some))),
        "`false` keeps models that run on ollama.com from this key, whatever the rule says; `true` adds nothing to the rule"),
    row("key.expires", Kind::Expiry, "",
        |config, it| rules::key(config, |key| put(&mut key.expires, it.parsed(rules::expiry).map(Some))),
        "the last day on which it counts, or the moment from which it does not"),
    row("key.networks", Kind::Networks, "[]",
        |config, it| rules::key(config, |key| put(&mut key.networks, it.each(values::network))),
        "where it may be used from; an empty list is anywhere"),
    row("key.note", Kind::Text, r#""""#,
        |config, it| rules::key(config, |key| put(&mut key.note, it.parsed(rules::note))),
        "a line to remember it by"),
    row("key.requests_per_minute", Kind::Count, "", limits::of_key, REQUESTS),
    row("key.tokens_per_minute", Kind::Count, "", limits::of_key, TOKENS),
    row("key.tokens_per_day", Kind::Count, "", limits::of_key, TOKENS_DAY),
    row("key.tokens_per_month", Kind::Count, "", limits::of_key, TOKENS_MONTH),
    row("key.gpu_seconds_per_day", Kind::Count, "", limits::of_key, GPU_DAY),
    row("key.gpu_seconds_per_month", Kind::Count, "", limits::of_key, GPU_MONTH),
    row("key.concurrent", Kind::Count, "", limits::of_key, CONCURRENT),
    row("limit.per", Kind::Choice(r#""identity", "key", "group", "model" or "all""#), r#""identity""#,
        |config, it| limits::limit(config, |limit| put(&mut limit.per, it.per())),
        "who shares one count: each `identity`, each `key`, each `group`, each `model`, or `all` together"),
    row("limit.names", Kind::Names, "",
        |config, it| limits::limit(config, |limit| put(&mut limit.names, it.patterns())),
        "for callers of these names; `*` stands for any run of characters"),
    row("limit.roles", Kind::Names, "",
        |config, it| limits::limit(config, |limit| put(&mut limit.roles, it.each(str::parse).and_then(|roles| it.filled_list(roles)))),
        "for callers with one of these roles"),
    row("limit.groups", Kind::Names, "",
        |config, it| limits::limit(config, |limit| put(&mut limit.groups, it.each(rules::name).and_then(|groups| it.filled_list(groups)))),
        "for the members of these `[groups]`"),
    row("limit.keys", Kind::Names, "",
        |config, it| limits::limit(config, |limit| put(&mut limit.keys, it.patterns())),
        "for these managed keys, by id or name"),
    row("limit.models", Kind::Models, r#""all""#,
        |config, it| limits::limit(config, |limit| put(&mut limit.models, it.models())),
        "`all`, or patterns of the models whose requests count"),
    row("limit.requests_per_minute", Kind::Count, "", limits::of_limit, REQUESTS),
    row("limit.tokens_per_minute", Kind::Count, "", limits::of_limit, TOKENS),
    row("limit.tokens_per_day", Kind::Count, "", limits::of_limit, TOKENS_DAY),
    row("limit.tokens_per_month", Kind::Count, "", limits::of_limit, TOKENS_MONTH),
    row("limit.gpu_seconds_per_day", Kind::Count, "", limits::of_limit, GPU_DAY),
    row("limit.gpu_seconds_per_month", Kind::Count, "", limits::of_limit, GPU_MONTH),
    row("limit.concurrent", Kind::Count, "", limits::of_limit, CONCURRENT),
];

/// What begins a `[[backend]]`, an `[[alias]]`, a `[[rule]]`, a `[[key]]` and a `[[limit]]`.
pub(super) static BACKEND: Key =
    row("backend", Kind::Text, "", backends::open_backend, "a backend");
pub(super) static ALIAS: Key = row("alias", Kind::Text, "", backends::open_alias, "an alias");
pub(super) static RULE: Key = row("rule", Kind::Text, "", rules::open_rule, "a rule");
pub(super) static KEY: Key = row("key", Kind::Text, "", rules::open_key, "a key");
pub(super) static LIMIT: Key = row("limit", Kind::Text, "", limits::open, "a limit");

/// The tables of the keys above.
pub(super) const TABLES: [&str; 12] = [
    "roles", "groups", "prices", "tls", "cors", "traces", "timeouts", "backend", "alias", "rule",
    "key", "limit",
];

/// Keys whose capability a later version brings; a table stands for all that is in it.
pub(super) static LATER: [&str; 2] = ["upgrades", "audit"];

pub(super) const LATER_TABLES: [&str; 1] = ["audit"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_any_kind_counts_one() {
        for slip in ["htpaswd", "htppasswd", "htpasswf", "htpassdw", "htpasswd"] {
            assert!(distance(slip, "htpasswd") <= 1, "{slip}");
        }
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("port", "keep"), 4);
    }

    #[test]
    fn no_key_stands_in_the_table_twice() {
        let mut names: Vec<_> = all().map(Named::name).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before);
        assert!(LATER_TABLES.iter().all(|table| LATER.contains(table)));
    }

    #[test]
    fn every_key_is_told_in_one_sentence_without_a_full_stop() {
        for key in reference() {
            assert!(!key.says.is_empty() && !key.says.ends_with('.') && !key.says.contains('|'));
            let (table, _) = key.in_table();
            assert!(table.is_none_or(|table| TABLES.contains(&table)), "{}", key.name);
        }
    }
}
