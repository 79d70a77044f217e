//! The counter of HTTP/2 frames: the same frames wherever the bytes are cut, and as a plain reader finds them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_wire::frames::{Frame, Frames, PREFACE};

fuzz_target!(|input: (u8, &[u8])| {
    let (cut, bytes) = input;
    let pass = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut frames, mut told) = (Frames::of_client(), Vec::<Frame>::new());
        pieces.for_each(|piece| frames.pass(piece, |frame| told.push(frame)));
        told
    };
    let whole = pass(&mut std::iter::once(bytes));
    assert_eq!(pass(&mut bytes.chunks(usize::from(cut).max(1))), whole);
    let mut rest = bytes.get(PREFACE.len()..).unwrap_or_default();
    for frame in whole {
        assert_eq!(frame.length, u32::from_be_bytes([0, rest[0], rest[1], rest[2]]));
        rest = rest.get(9 + frame.length as usize..).unwrap_or_default();
    }
    assert!(rest.len() < 9, "a frame was passed over");
});
