//! Portcullis and other proxies, measured side by side.

fn main() {}
