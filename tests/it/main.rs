//! The whole gate in this process, on a port of the system's, asked in bytes.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, also in its helpers"
)]
#![expect(unreachable_pub, reason = "nothing of a test is reachable from outside")]

mod doctor; // a look from outside at all of it
mod events; // no secret in what the operator reads, and no byte that breaks it
mod gin; // Ollama's own router, asked about every target
mod admin; // the admin API: who may ask it, and what it does
mod backends; // several backends, one of which fails
mod bodies; // what bodies say, and what is sent on of them
mod gin_bodies; // what Ollama's own reader finds in a body
mod announced; // connections that a proxy announces
mod crowd; // more connections than there may be
mod doors; // where callers come in
mod hostile_backend; // a backend that answers what it must not
mod house; // a gate, a backend, a caller
mod http2; // many streams on one connection
mod login; // who gets in
mod malformed; // what a guard must refuse
mod meter; // what answers came to
mod headers; // what goes along, and what does not
mod ledger; // a row for what a backend began
mod targets; // endpoints, methods, spellings, roles
mod lifecycle; // start, reload, drain, end
mod limits; // how much, and how much at once
mod live; // credential files that change under the gate
mod log; // one line per request
mod machine; // a stock `ollama` that signs
mod managed; // keys of the store
mod metrics; // what it tells of itself, and to whom
mod model_names; // Ollama's own packages, asked about every name
mod mutations; // valid requests with a few bytes changed
mod path; // the way of an ordinary request
mod path_key; // keys in the path
mod queue; // who waits for whom
mod reference; // the reference pages
mod refusals; // each code of the table, provoked
mod running; // who runs and who waits, and ending that
mod rules; // who may use which model
mod several; // several backends that answer together
mod stream; // answers as they pass
mod traces; // what a collector of traces is told
mod tls; // https on both sides, certificates, the door beside it
mod upload; // request bodies
mod usage; // what was used
