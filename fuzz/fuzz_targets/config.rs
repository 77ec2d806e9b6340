//! A configuration file: all problems have a place and advice, and reading it twice gives the same.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use portcullis::config::{Given, load, load_without_credentials};

fn file() -> PathBuf {
    std::env::temp_dir().join(format!("portcullis-fuzz-{}.toml", std::process::id()))
}

fuzz_target!(|text: &[u8]| {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    let file = FILE.get_or_init(file);
    std::fs::write(file, text).unwrap();
    let env = vec![("PORTCULLIS_MAX_BODY".to_owned(), String::from_utf8_lossy(text).into_owned())];
    let given = Given { file: Some(file.clone()), flags: Vec::new(), env: Vec::new() };
    let shout = Given { env, ..given.clone() };
    match load_without_credentials(&given) {
        Ok(loaded) => {
            assert!(!loaded.config.listen.is_empty());
            for backend in &loaded.config.backends {
                assert!(backend.url.authority().parse::<http::uri::Authority>().is_ok());
            }
            let again = load_without_credentials(&given).unwrap();
            assert_eq!(format!("{:?}", loaded.config), format!("{:?}", again.config));
            let keyless = loaded.config.htpasswd.is_none()
                && loaded.config.api_keys.is_none()
                && loaded.config.authorized_keys.is_none();
            assert_eq!(load(&given).is_err(), keyless, "an open gate is not served");
        }
        Err(problems) => {
            let name = file.display().to_string();
            assert!(!problems.0.is_empty());
            for problem in &problems.0 {
                assert!(problem.place.starts_with(&name) && !problem.says.is_empty());
            }
        }
    }
    let _ = load(&shout);
});
