//! Portcullis: the gate in front of a self-hosted model server.
//!
//! The rooms, foundations first. A room uses only rooms above it in this list; `tests/rules.rs`
//! keeps that so. Start reading at [`gateway`], which holds the path of a request.

pub mod config; // the file, the environment and the flags, checked
pub mod reject; // every refusal, in one table
pub mod client_addr; // who is at the door, as an address
pub mod proxy_protocol; // whom a proxy of the transport layer names
pub mod socket; // one socket, of whatever kind
pub mod http1; // HTTP/1.1 on the wire
pub mod incoming; // a request's body as it comes, by either version of HTTP
pub mod live_file; // files whose newest content the next request sees
pub mod store; // what survives a restart
pub mod tls; // certificates, and what they keep secret
pub mod auth; // whose credentials these are
pub mod api; // the endpoints of the API
pub mod metrics; // counters, and their text
pub mod call; // what is being asked
pub mod access; // whether they may
pub mod limit; // whether they may now
pub mod pool; // which backend, over which connection
pub mod traces; // what a collector of traces is told
pub mod record; // one line per request
pub mod report; // what was used, for whom asks
pub mod admin; // the admin API
pub mod meter; // counting the answer as it passes
pub mod forward; // sending it on
pub mod gateway; // the path, stage by stage
pub mod server; // sockets
pub mod stand_in; // a tiny model server, for a first look and for the tests
pub mod doctor; // a look at the whole installation from outside
pub mod cli; // the commands
