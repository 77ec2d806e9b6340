//! A backend's head: no bytes of it can become a line of their own at the caller's.
#![no_main]

use http::Method;
use libfuzzer_sys::fuzz_target;
use portcullis::http1::{FieldLines, Form, Framing, Inbox, Outbox, RequestHead, ResponseHead};

fuzz_target!(|bytes: &[u8]| {
    for asked in [Method::GET, Method::HEAD] {
        let mut inbox = Inbox::from(bytes);
        let Ok(Some(head)) = ResponseHead::take(&mut inbox, &asked) else { continue };
        assert!(bytes.ends_with(inbox.held()));
        if asked == Method::HEAD {
            assert_eq!(head.framing, Framing::NOTHING);
        }
        let mut lines = FieldLines::default();
        let mut fields = 0;
        for (name, value) in head.fields.iter() {
            lines.push(name, value);
            fields += 1;
        }
        let (mut parts, ()) = http::Response::new(()).into_parts();
        parts.status = head.status;
        let mut outbox = Outbox::default();
        let mut form = Form::of(&asked, http::Version::HTTP_11, true);
        form.push_head(&parts, &lines, Some(0), &mut outbox);
        // What goes to the caller is one head with as many fields, and at most ours beside them.
        let written = std::mem::take(outbox.text());
        let again = ResponseHead::take(&mut Inbox::from(&written[..]), &Method::HEAD);
        if let Ok(Some(again)) = again {
            assert!((fields..fields + 3).contains(&again.fields.iter().count()));
        }
        assert!(RequestHead::take(&mut Inbox::from(&written[..])).is_err());
    }
});
