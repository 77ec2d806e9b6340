//! A chunked body: the same in pieces as at once, and never more than was sent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::http1::{Framing, Inbox, Outbox, Piece};

/// The body, and whether it ended.
fn read(pieces: impl Iterator<Item = Vec<u8>>) -> Result<(Vec<u8>, bool), ()> {
    let (mut framing, mut held, mut body) = (Framing::CHUNKED, Vec::new(), Vec::new());
    for piece in pieces {
        held.extend_from_slice(&piece);
        let mut inbox = Inbox::from(&held[..]);
        loop {
            match framing.next(&mut inbox).map_err(|_| ())? {
                Piece::Data(data) => body.extend_from_slice(&data),
                Piece::Wanting => break,
                Piece::End => return Ok((body, true)),
            }
            let _ = framing.settle(&mut inbox);
        }
        held = inbox.held().to_vec();
    }
    Ok((body, false))
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let piece = usize::from(piece).max(1);
    let whole = read(std::iter::once(bytes.to_vec()));
    let pieces = read(bytes.chunks(piece).map(<[u8]>::to_vec));
    assert_eq!(whole, pieces);
    let Ok((body, _)) = whole else { return };
    assert!(body.len() <= bytes.len());
    // Framed by us it is read as it was.
    let mut outbox = Outbox::default();
    if body.len() <= 4096 {
        outbox.push_chunk(body.clone().into());
        outbox.push_last_chunk();
        let framed = std::mem::take(outbox.text());
        assert_eq!(read(framed.chunks(piece).map(<[u8]>::to_vec)), Ok((body, true)));
    }
});
