//! Portcullis and other proxies, measured side by side.

mod guard;
mod machine;
mod peer;

fn main() {}
