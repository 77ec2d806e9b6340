//! Bodies that come packed (RFC 8878), unpacked within bounds.

use std::io::Read;

use ruzstd::decoding::StreamingDecoder;

use crate::reject::Reject;

/// What Ollama's own reader takes [middleware/openai.go], and RFC 8878 asks of everybody.
const MAX_WINDOW: u64 = 8 * 1024 * 1024;
/// Bytes that are unpacked before the bounds are asked again.
const STEP: usize = 256 * 1024;

const BROKEN: Reject = Reject::BadBody("the body is not zstd, or not whole");
const FOLLOWED: Reject = Reject::BadBody("something follows the zstd frame in the body");

/// The one frame that the body is. `room` is asked before each step, with the bytes that there will
/// be then.
///
/// # Errors
/// 400 for what is no frame or more than one, and what `room` says.
pub(super) fn unpacked(
    packed: &[u8],
    mut room: impl FnMut(usize) -> Result<(), Reject>,
) -> Result<Vec<u8>, Reject> {
    let mut source = packed;
    let mut decoder = StreamingDecoder::new_with_max_window_size(&mut source, MAX_WINDOW);
    let decoder = decoder.as_mut().map_err(|_| BROKEN)?;
    let mut plain = Vec::new();
    loop {
        let before = plain.len();
        // One byte more than what is there would be too much already.
        room(before + 1)?;
        plain.resize(before + STEP, 0);
        let step = plain.get_mut(before..).unwrap_or_default();
        let read = decoder.read(step).map_err(|_| BROKEN)?;
        plain.truncate(before + read);
        room(plain.len())?;
        if read == 0 {
            break;
        }
    }
    let promised = decoder.decoder.get_checksum_from_data();
    if promised.is_some() && promised != decoder.decoder.get_calculated_checksum() {
        return Err(BROKEN);
    }
    if source.is_empty() { Ok(plain) } else { Err(FOLLOWED) }
}

#[cfg(test)]
mod tests {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn any(_: usize) -> Result<(), Reject> {
        Ok(())
    }

    fn frame(blocks: usize) -> Vec<u8> {
        // A window of 1 MiB, then blocks of one byte that is repeated 128 KiB times.
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 10 << 3];
        for at in 1..=blocks {
            let header = (128 << 10) << 3 | 1 << 1 | u32::from(at == blocks);
            frame.extend_from_slice(&header.to_le_bytes()[..3]);
            frame.push(b' ');
        }
        frame
    }

    #[test]
    fn a_frame_comes_out_as_it_went_in() {
        for text in [String::new(), "{}".to_owned(), "{\"model\":\"m\"} ".repeat(100_000)] {
            let packed = compress_to_vec(text.as_bytes(), CompressionLevel::Fastest);
            assert!(unpacked(&packed, any).unwrap() == text.as_bytes());
        }
        assert_eq!(unpacked(&frame(3), any).unwrap().len(), 3 * 128 * 1024);
    }

    #[test]
    fn a_bomb_stops_at_the_bound() {
        let mut most = 0;
        let bound = |bytes| {
            most = most.max(bytes);
            if bytes > 1_000_000 { Err(Reject::BodyTooLarge { limit: 1_000_000 }) } else { Ok(()) }
        };
        let bomb = frame(100_000);
        assert!(bomb.len() < 500_000);
        assert!(matches!(unpacked(&bomb, bound), Err(Reject::BodyTooLarge { .. })));
        assert!(most < 2_000_000, "{most}");
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let packed = compress_to_vec(&b"{\"model\":\"gemma3\"}"[..], CompressionLevel::Fastest);
        let mut flipped = packed.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let twice = [packed.clone(), packed.clone()].concat();
        let followed = [packed.clone(), b"x".to_vec()].concat();
        let skippable = [vec![0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0], packed.clone()].concat();
        let wide = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 14 << 3, 1, 0, 0];
        for body in [
            &b""[..],
            b"{}",
            &packed[..packed.len() - 5],
            &flipped,
            &twice,
            &followed,
            &skippable,
            &wide,
        ] {
            let refused = unpacked(body, any).unwrap_err();
            assert_eq!(refused.row().code, "bad_body", "{body:?}");
        }
        for end in 0..packed.len() {
            assert!(unpacked(&packed[..end], any).is_err(), "{end}");
        }
    }
}
