//! The first bytes of a connection from a proxy: read to the end of their header, and no further.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::proxy_protocol::{Seen, look, read};

fuzz_target!(|bytes: &[u8]| {
    let mut end = 0;
    let seen = loop {
        match look(&bytes[..end]) {
            Ok(Seen::Wants(more)) => {
                assert!(more > 0);
                end += more;
                if end > bytes.len() {
                    break None;
                }
            }
            Ok(Seen::Whole(named)) => break Some(named),
            Err(_) => break None,
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut rest = bytes;
    let named = runtime.block_on(read(&mut rest));
    assert_eq!(named.ok(), seen);
    assert!(seen.is_none() || rest == &bytes[end..], "a byte was taken that is not the header's");
});
