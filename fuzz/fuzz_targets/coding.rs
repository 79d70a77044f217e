//! Compressed bodies and `Accept-Encoding` from anybody: nothing panics, what is given is bounded by what may be asked
//! for at a time, and a body that was compressed here comes back whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_traffic::filter::preferred;
use outrigger_wire::coding::{Coding, Decoder, Encoder, Op};
use outrigger_wire::h1::is_field_value;
use outrigger_wire::head::Head;

/// The output of a bomb is not waited for.
const MOST: usize = 1 << 20;

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else { return };
    if is_field_value(bytes) {
        let mut head = Head::default();
        head.push("accept-encoding", bytes);
        let _ = preferred(&head, Coding::ALL.into_iter());
    }
    let coding = Coding::ALL[usize::from(choice % 3)];
    let piece = usize::from(choice / 3) + 1;
    let _ = decode(coding, bytes, piece);
    let back = decode(coding, &encode(coding, bytes, piece), piece);
    assert!(back.is_some_and(|(back, whole)| back == bytes && whole), "{coding:?}");
});

fn decode(coding: Coding, bytes: &[u8], piece: usize) -> Option<(Vec<u8>, bool)> {
    let (mut decoder, mut output, mut all) = (Decoder::new(coding), vec![0; 4096], Vec::new());
    for piece in bytes.chunks(piece) {
        let mut rest = piece;
        loop {
            let step = decoder.step(rest, &mut output).ok()?;
            rest = &rest[step.read..];
            all.extend_from_slice(&output[..step.written]);
            if all.len() > MOST {
                return None;
            }
            if step.read == 0 && step.written == 0 {
                if !rest.is_empty() {
                    return None;
                }
                break;
            }
        }
    }
    Some((all, decoder.is_whole()))
}

fn encode(coding: Coding, bytes: &[u8], piece: usize) -> Vec<u8> {
    let (mut encoder, mut output, mut all) = (Encoder::new(coding, 1), vec![0; 300], Vec::new());
    for piece in bytes.chunks(piece) {
        let mut rest = piece;
        while !rest.is_empty() {
            let step = encoder.step(rest, &mut output, Op::Go).expect("it compresses");
            rest = &rest[step.read..];
            all.extend_from_slice(&output[..step.written]);
        }
    }
    for op in [Op::Flush, Op::End] {
        loop {
            let step = encoder.step(&[], &mut output, op).expect("it compresses");
            all.extend_from_slice(&output[..step.written]);
            if step.done {
                break;
            }
        }
    }
    all
}
