//! One table of every key: it names what can be set, and writes the reference.

use std::fmt::Write as _;

/// What is written for a key in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    List,
    Switch,
    Number,
}

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
    pub says: &'static str,
}

impl Key {
    /// Keys of tables have no variable: there is no one way to spell the dot.
    #[must_use]
    pub fn has_variable(&self) -> bool {
        !self.name.contains('.')
    }

    #[must_use]
    pub fn variable(&self) -> String {
        format!("PORTCULLIS_{}", self.name.to_ascii_uppercase())
    }

    #[must_use]
    pub fn flag_name(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }
}

const fn row(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    flag: bool,
    says: &'static str,
) -> Key {
    Key { name, kind, default, flag, says }
}

use Kind::{List, Number, Switch, Text};

/// Every key that this version knows.
#[rustfmt::skip]
pub static KEYS: [Key; 36] = [
    row("listen",            List,   "[\"0.0.0.0:8880\"]", true, "addresses to listen on, as ADDRESS:PORT"),
    row("upstream",          Text,   "\"http://127.0.0.1:11434\"", true, "the model server; short for one `[[backend]]` with this `url`"),
    row("htpasswd",          Text,   "\"\"", true, "users and their password hashes, as Apache and nginx have them"),
    row("api_keys",          Text,   "\"\"", true, "API keys, one a line"),
    row("authorized_keys",   Text,   "\"\"", true, "public keys of machines whose `ollama` signs its requests"),
    row("path_keys",         Switch, "false", false, "accept a key in the path, as `/k/KEY/…`, for programs that ask only for an address"),
    row("weak_hashes",       Text,   "\"warn\"", false, "`warn` about password hashes that are quick to guess, or `refuse` them"),
    row("credential_headers", List,  "[\"x-api-key\", \"api-key\"]", false, "headers that may carry a key"),
    row("failed_attempts_per_minute", Number, "10", false, "wrong passwords of one user from one address, and wrong keys from one address, before they are told to wait; 0 is off"),
    row("default_role",      Text,   "\"operator\"", false, "role of whoever `[roles]` does not name: `viewer`, `user`, `operator` or `admin`"),
    row("extra_endpoints",   List,   "[]", false, "endpoints outside Ollama's table that users may ask for, as \"GET /api/x\""),
    row("public_url",        Text,   "\"\"", false, "the address under which people reach this gate, for the help page"),
    row("help_url",          Text,   "\"\"", false, "a page of your own for people without a login; otherwise the gate's"),
    row("contact",           Text,   "\"\"", false, "whom the help page names"),
    row("trusted_proxies",   List,   "[]", false, "networks of proxies before this gate whose X-Forwarded-For is believed"),
    row("max_body",          Text,   "\"100MiB\"", false, "largest request body; model blobs have no limit"),
    row("max_body_memory",   Text,   "\"1GiB\"", false, "memory for all request bodies at once"),
    row("log_format",        Text,   "\"text\"", false, "one line a request as `text` or as `json`"),
    row("drain_delay",       Text,   "\"0s\"", false, "how long to go on accepting connections after being told to stop"),
    row("drain_timeout",     Text,   "\"30s\"", false, "how long running requests may take to end when stopping"),
    row("roles.viewer",      List,   "[]", false, "names who may ask the backend for nothing; `*` stands for any run of characters"),
    row("roles.user",        List,   "[]", false, "names who may use models and list them"),
    row("roles.operator",    List,   "[]", false, "names who may also pull, create and delete models, and use unknown endpoints"),
    row("roles.admin",       List,   "[]", false, "names who may do everything, also with the server owner's cloud account"),
    row("cors.origins",      List,   "[\"*\"]", false, "sites whose pages may read answers, as \"https://chat.example.com\"; \"*\" is any"),
    row("timeouts.connect",  Text,   "\"10s\"", false, "to connect to the backend"),
    row("timeouts.first_byte", Text, "\"600s\"", false, "from the request's end to the answer's first byte; a model may have to be loaded"),
    row("timeouts.idle",     Text,   "\"300s\"", false, "between two bytes of an answer"),
    row("timeouts.header",   Text,   "\"10s\"", false, "for a caller to send a request's head"),
    row("timeouts.keep_alive", Text, "\"75s\"", false, "for a caller's connection to stay idle"),
    row("timeouts.body_grace", Text, "\"20s\"", false, "for a request's body to begin; after it 500 bytes a second are due"),
    row("backend.name",      Text,   "\"ollama\"", false, "the backend's name in the log"),
    row("backend.url",       Text,   "\"http://127.0.0.1:11434\"", false, "the backend's address"),
    row("backend.key_file",  Text,   "\"\"", false, "a file with a key for the backend, sent as a Bearer token"),
    row("backend.preserve_host", Switch, "false", false, "pass on the caller's Host instead of the backend's own"),
    row("backend.kind",      Text,   "\"ollama\"", false, "what kind of server it is; `ollama` is the only one so far"),
];

/// Keys whose capability a later version brings; a table stands for all that is in it.
pub(super) const LATER: [&str; 29] = [
    "redirect_listen",
    "admin",
    "data_dir",
    "hide_models",
    "proxy_protocol_from",
    "max_connections",
    "max_connections_per_address",
    "h2c",
    "upgrades",
    "queue_timeout",
    "time_zone",
    "ledger",
    "keep",
    "tls_cert",
    "tls_key",
    "groups",
    "prices",
    "tls",
    "audit",
    "rule",
    "key",
    "alias",
    "backend.weight",
    "backend.parallel",
    "backend.models_at_once",
    "backend.ca_file",
    "backend.ask_usage",
    "backend.manage",
    "backend.tags",
];

pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The known key that is spelt most like this, if it is near enough.
pub(super) fn nearest(name: &str, most: usize) -> Option<&'static Key> {
    let near = KEYS.iter().map(|key| (distance(name, key.name), key));
    near.filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, key)| key)
}

/// Levenshtein: the fewest letters to add, drop or change.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.chars()) {
            let next = (diagonal + usize::from(x != y)).min(left + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, next);
            left = next;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

/// The reference page, one table.
#[must_use]
pub fn markdown_reference() -> String {
    let mut page = "\
# Configuration

Every key, where it can be set, and what it means. A flag stands over a variable, a variable over the
file, the file over the default. The file is `portcullis.toml` in the current folder, or what
`--config` or `PORTCULLIS_CONFIG` names. Relative paths in the file start at the file's folder.
Lists in flags and variables are separated by commas. Sizes: `100MiB`, `1GiB`, or bytes. Durations:
`500ms`, `10s`, `2m`, `1h`.

| key | default | flag and variable | what it does |
|---|---|---|---|
"
    .to_owned();
    for key in &KEYS {
        let flag = if key.flag { format!("`{}` ", key.flag_name()) } else { String::new() };
        let variable =
            if key.has_variable() { format!("`{}`", key.variable()) } else { String::new() };
        // Writing into a String cannot fail.
        let _ = writeln!(
            page,
            "| `{}` | `{}` | {flag}{variable} | {} |",
            key.name, key.default, key.says
        );
    }
    page.push_str(
        "\nKeys with a dot stand in a table: `roles.admin` is `admin` under `[roles]`. The keys of \
         `backend` stand under one `[[backend]]`.\n",
    );
    page
}
