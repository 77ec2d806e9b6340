//! A form with a model: what is found stands in the body once, in a part of that name.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use portcullis::call::reading::Reading;

fuzz_target!(|body: &[u8]| {
    let bytes = Bytes::copy_from_slice(body);
    let Ok(reading) = Reading::of_form(&bytes, b"multipart/form-data; boundary=X", None) else {
        return;
    };
    assert!(body.is_empty() || body.starts_with(b"--X\r\n"));
    let Some(model) = reading.model() else { return };
    assert!(!model.contains("--X"));
    let lower = String::from_utf8_lossy(body).to_ascii_lowercase();
    assert!(lower.contains("name") && lower.contains("model"));
    // A second one anywhere makes it ambiguous.
    let part = b"--X\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nother\r\n";
    let twice = Bytes::from([&part[..], body].concat());
    assert!(Reading::of_form(&twice, b"multipart/form-data; boundary=X", None).is_err());
});
