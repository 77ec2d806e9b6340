//! A request's head: however its bytes come, the same is made of it, and nothing of what follows.
#![no_main]

use http::header;
use libfuzzer_sys::fuzz_target;
use portcullis::http1::{Framing, Inbox, MAX_HEAD, RequestHead};

fuzz_target!(|bytes: &[u8]| {
    let mut inbox = Inbox::from(bytes);
    let Ok(Some(head)) = RequestHead::take(&mut inbox) else { return };
    let taken = bytes.len() - inbox.held().len();
    assert!(bytes.ends_with(inbox.held()));
    assert!(!head.parts.uri.to_string().contains(['#', ' ', '\r', '\n']));
    let headers = &head.parts.headers;
    let coded = headers.contains_key(header::TRANSFER_ENCODING);
    let lengths = headers.get_all(header::CONTENT_LENGTH).iter().count();
    match head.framing {
        Framing::Chunked(..) => assert!(coded && lengths == 0),
        Framing::Length(0) => assert!(!coded && lengths <= 1),
        Framing::Length(_) => assert!(!coded && lengths == 1),
        Framing::UntilClose => panic!("a request never ends with its connection"),
    }
    // Alone, without what follows, it is the same head; cut short it is none.
    let alone = RequestHead::take(&mut Inbox::from(&bytes[..taken])).unwrap().unwrap();
    assert_eq!(alone.parts.headers, head.parts.headers);
    assert_eq!((alone.parts.uri, alone.framing), (head.parts.uri, head.framing));
    if taken <= MAX_HEAD {
        assert!(!matches!(RequestHead::take(&mut Inbox::from(&bytes[..taken - 1])), Ok(Some(_))));
    }
});
