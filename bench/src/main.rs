//! Portcullis and other proxies, measured side by side.

mod peer;

fn main() {}
