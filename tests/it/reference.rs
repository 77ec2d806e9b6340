//! The reference pages say what the tables in the code say; `PORTCULLIS_BLESS=1` writes them anew.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use portcullis::admin::{Needs, ROUTES};
use portcullis::api::{ENDPOINTS, ModelIn, Stream};
use portcullis::config::markdown_reference;
use portcullis::metrics::{FAMILIES, MOST_MODELS};
use portcullis::reject::{Fault, one_of_each};

fn compare(page: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference").join(page);
    if std::env::var_os("PORTCULLIS_BLESS").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == expected,
        "docs/reference/{page} is not what the code says; look at it and run the tests with PORTCULLIS_BLESS=1"
    );
}

/// When each code is given, in words.
const WHEN: [(&str, &str); 38] = [
    ("bad_request", "the head cannot be understood, or could be understood in two ways"),
    ("bad_path", "the path is spelt so that a server behind could read it in another way"),
    ("bad_body", "the body is not framed right, is not JSON, or has a wrong type in it"),
    (
        "ambiguous_body",
        "the body could be read in two ways: a key stands twice, or in another case",
    ),
    ("no_credentials", "nothing was sent to log in with"),
    ("bad_credentials", "what was sent does not let anybody in"),
    ("forbidden", "the caller is known and may not do this; the text says what it would take"),
    (
        "model_forbidden",
        "the caller may not use this model, or none in the cloud; the text says which are allowed",
    ),
    (
        "unknown_model",
        "no backend has the model, or with `hide_models` the caller may not use it: told as Ollama tells \
         of a model that it does not have, without a code",
    ),
    (
        "tls_required",
        "a credential, or anything but a GET or HEAD, over the plain listener beside TLS",
    ),
    ("unknown_endpoint", "there is no such endpoint, or not for this caller"),
    ("method_not_allowed", "the endpoint answers to other methods; `Allow` names them"),
    ("request_timeout", "the head or the body did not arrive in time"),
    ("body_too_large", "the body is larger than `max_body`"),
    ("target_too_long", "path and query are longer than 8 KiB"),
    ("unsupported_encoding", "a `Content-Encoding` that is not taken there; zstd is, on `/v1`"),
    ("bad_expectation", "an `Expect` other than `100-continue`"),
    (
        "wrong_host",
        "an absolute target names another host than `Host`; on the admin listener, a `Host` that is \
         neither an IP address nor `localhost` nor that of `public_url`",
    ),
    ("unsupported_media_type", "the admin API takes bodies as `application/json` alone"),
    ("not_found", "the admin API has no such key, decision or code"),
    ("no_store", "the gate was started without a `data_dir`, so that it keeps no keys"),
    ("conflict", "the admin API was asked for what contradicts what is there"),
    (
        "invalid",
        "the admin API was sent JSON that asks for what cannot be; the text names the field",
    ),
    ("store_failed", "the store in `data_dir` cannot be used; the gate's log has the reason"),
    ("headers_too_large", "headers of more than 32 KiB, or more than 100 of them"),
    ("too_many_failures", "too many wrong passwords or keys within a minute"),
    ("rate_limited", "more requests or tokens within a minute than a limit allows"),
    ("quota_exhausted", "the tokens or the backend time of a day or a month are used up"),
    ("too_many_concurrent", "more requests at once than a limit allows"),
    ("internal", "something broke in the gate; its log has the reason"),
    ("bad_version", "HTTP/2 without TLS is not spoken"),
    ("loop_detected", "`upstream` leads back to this gate"),
    (
        "backend_failed",
        "a connection to the model server was made and failed before the first byte",
    ),
    ("no_backend", "no connection to a model server could be made, or all are in maintenance"),
    (
        "overloaded",
        "there is no memory for bodies, no place in the queue for a model or for passwords, or no connection \
         left",
    ),
    ("queue_timeout", "it waited for its turn for as long as `queue_timeout`"),
    ("stopped", "whoever runs the gate ended it, with `portcullis stop`"),
    ("backend_timeout", "the model server stayed silent for too long"),
];

#[test]
fn the_codes_page_is_the_table_of_refusals() {
    let mut page = "\
# Codes

Every refusal has a status and a code that stays the same over versions. The body is JSON in the
dialect of the path: `{\"error\":\"…\",\"code\":\"…\"}` under `/api`, OpenAI's error object under `/v1`,
Anthropic's under `/v1/messages`. Every answer carries `X-Request-Id`, which is also in the log.

*Again* says whether a client may send the same request again by itself (`x-should-retry`, which the
SDKs of OpenAI and Anthropic obey); `Retry-After` says when.

| status | code | when | whose fault | again |
|---|---|---|---|---|
"
    .to_owned();
    let mut told = Vec::new();
    for reject in one_of_each() {
        let row = reject.row();
        // Two causes may have one code.
        if told.contains(&row.code) {
            continue;
        }
        told.push(row.code);
        let (_, when) = WHEN.iter().find(|(code, _)| *code == row.code).unwrap();
        let fault = match row.fault {
            Fault::Caller => "the caller's",
            Fault::Backend => "the model server's",
            Fault::Ours => "the gate's",
        };
        let again = match (row.retry, reject.retry_after()) {
            (true, _) => "yes",
            (false, Some(_)) => "after `Retry-After`",
            (false, None) => "no",
        };
        writeln!(page, "| {} | `{}` | {when} | {fault} | {again} |", row.status, row.code).unwrap();
    }
    page.push_str(
        "\nWhat cannot be read as HTTP at all gets a bare 400, 414 or 431 without a body. A stream that \
         breaks after its first byte ends with an error in its own form (a line `{\"error\":…}`, or an \
         SSE event `error`), and the connection is cut.\n",
    );
    compare("codes.md", &page);
}

#[test]
fn the_endpoints_page_is_the_table_of_endpoints() {
    let mut page = "\
# Endpoints

What the gate knows of Ollama's API. *Needs* is the least role that may use it. Paths and methods that
are not here are `unknown`: for operators, and for users only where `extra_endpoints` names them.

| methods | path | operation | class | needs | model in | streams as |
|---|---|---|---|---|---|---|
"
    .to_owned();
    for row in &ENDPOINTS {
        let methods: Vec<_> = row.methods.iter().map(|method| method.as_str()).collect();
        let model = match row.model {
            ModelIn::Nowhere => "–",
            ModelIn::Body => "body",
            ModelIn::BothEnds => "body, both ends",
            ModelIn::Form => "form",
            ModelIn::Path => "path",
            ModelIn::Perhaps => "perhaps",
        };
        let stream = match row.stream {
            Stream::No => "–",
            Stream::Ndjson => "NDJSON",
            Stream::Sse => "SSE",
        };
        let (methods, class) = (methods.join(", "), row.class);
        let (path, operation, needs) = (row.path, row.operation, row.class.needs());
        writeln!(
            page,
            "| {methods} | `{path}` | {operation} | {class} | {needs} | {model} | {stream} |"
        )
        .unwrap();
    }
    page.push_str(
        "\n## The gate's own\n\n\
         | methods | path | login | what |\n|---|---|---|---|\n\
         | GET, HEAD | `/_portcullis/health` | no | the gate lives |\n\
         | GET, HEAD | `/_portcullis/ready` | no | it takes requests; 503 while it drains |\n\
         | GET, HEAD | `/_portcullis/help` | no | a page for people without a login |\n\
         | GET, HEAD | `/_portcullis/me` | yes | who the caller is, what it may do, what it used and what is left |\n\
         | HEAD | `/` and, with `path_keys`, `/k/KEY/` | no | answered by the gate; the `ollama` program begins with it |\n\
         | OPTIONS | any, from a page of another site | no | CORS preflight |\n",
    );
    compare("endpoints.md", &page);
}

#[test]
fn the_admin_page_is_the_table_of_routes() {
    let mut page = "\
# Admin API

JSON over HTTP on a listener of its own (`admin`); the same is described for programs, with every
field, at `/api/v1/openapi.json`. *Needs* is who may ask: `viewer` or `admin`, or `admin` alone.

| method | path | operation | needs | what it does |
|---|---|---|---|---|
"
    .to_owned();
    for route in &ROUTES {
        let needs = match route.needs {
            Needs::Viewer => "viewer, admin",
            Needs::Admin => "admin",
        };
        let (method, path, operation, says) =
            (&route.method, route.path, route.operation, route.says);
        writeln!(page, "| {method} | `{path}` | {operation} | {needs} | {says} |").unwrap();
    }
    page.push_str(
        "\nLists take `limit` (1 to 999, 100 unless told) and `after`, which is the `next` of the page \
         before. Errors are as on the [codes](codes.md) page. Bodies are JSON with `Content-Type: \
         application/json`; a field that is not known is refused by its name.\n",
    );
    compare("admin-api.md", &page);
}

#[test]
fn the_configuration_page_is_the_table_of_keys() {
    compare("configuration.md", &markdown_reference());
}

#[test]
fn the_commands_page_is_what_help_says() {
    let mut page =
        "# Commands\n\nWhat `portcullis --help` says, and `--help` of each command.\n".to_owned();
    for command in [
        "",
        "serve",
        "try",
        "check",
        "doctor",
        "init",
        "user",
        "user add",
        "user passwd",
        "user remove",
        "user list",
        "user verify",
        "key",
        "key create",
        "key list",
        "key show",
        "key disable",
        "key enable",
        "key revoke",
        "key rotate",
        "key import",
        "usage",
        "store",
        "store backup",
        "store check",
        "allow",
        "why",
        "running",
        "stop",
        "backend",
        "backend list",
        "backend drain",
        "backend undrain",
        "health",
        "completions",
        "man",
    ] {
        let help = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(command.split(' ').filter(|word| !word.is_empty()))
            .arg("--help")
            .output()
            .unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let name = format!("portcullis {command}");
        write!(page, "\n## {}\n\n```\n{}\n```\n", name.trim(), help.trim()).unwrap();
    }
    compare("commands.md", &page);
}

#[test]
fn the_metrics_page_is_the_table_of_metrics() {
    let mut page = "\
# Metrics

What `GET /metrics` on the admin listener tells, as OpenMetrics text; how to scrape it is on
[a page of its own](../how-to/metrics.md). A histogram `x` is asked for as `x_bucket`, `x_sum` and
`x_count`.

| name | kind | labels | what |
|---|---|---|---|
"
    .to_owned();
    for family in FAMILIES {
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, labels) = (family.name(), family.kind.as_str(), labels.join(", "));
        writeln!(page, "| `{name}` | {kind} | {labels} | {} |", family.says).unwrap();
    }
    writeln!(
        page,
        "\nClasses are those of the [endpoints](endpoints.md), and `admin` and `none`. A model is told by \
         its name once a backend has answered for it; the first {MOST_MODELS} since the start are, all \
         others together are `other`. All in all there are never more than 2,000 series. People and keys \
         are no labels. What does not apply (a gate without a `data_dir` has no store) is left out."
    )
    .unwrap();
    compare("metrics.md", &page);
}
