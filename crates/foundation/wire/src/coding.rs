//! Content codings ([RFC 9110], 8.4.1): gzip, br ([RFC 7932]) and zstd ([RFC 8878]), a piece at a time.
//!
//! In: bytes of a body as they come. Out: the same bytes compressed, or as they were before. Promise: what
//! is held does not grow with the body; at any time all that was taken can be had (a flush); what is
//! not as its coding says is an error, also when its end is missing.
//!
//! [RFC 7932]: https://www.rfc-editor.org/rfc/rfc7932
//! [RFC 8878]: https://www.rfc-editor.org/rfc/rfc8878
//! [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110

use brotli::enc::StandardAlloc;
use brotli::enc::encode::{BrotliEncoderOperation, BrotliEncoderParameter, BrotliEncoderStateStruct};
use brotli::{BrotliDecompressStream, BrotliResult, BrotliState};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer};

/// The window of gzip, which is deflate's largest: 32 KiB.
const GZIP_WINDOW: u8 = 15;
/// The window that br and zstd compress with: 256 KiB. More would find a little more and hold as much more.
const WINDOW: u32 = 18;
/// The largest window that a decoder of zstd must have for HTTP, and may: 8 MiB ([RFC 9659]).
///
/// [RFC 9659]: https://www.rfc-editor.org/rfc/rfc9659
const LARGEST_ZSTD_WINDOW: u32 = 23;
/// The largest window of br: 16 MiB. It grows with what was decoded.
const LARGEST_BR_WINDOW: usize = 1 << 24;

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the codings'")]
pub enum Coding {
    Gzip,
    Br,
    Zstd,
}

impl Coding {
    /// All that are known.
    pub const ALL: [Self; 3] = [Self::Gzip, Self::Br, Self::Zstd];

    /// The coding of this name, in whatever case ([RFC 9110], 8.4.1.3: `x-gzip` is gzip).
    ///
    /// [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110
    pub fn of(name: &[u8]) -> Option<Self> {
        if name.eq_ignore_ascii_case(b"x-gzip") {
            return Some(Self::Gzip);
        }
        Self::ALL.into_iter().find(|coding| name.eq_ignore_ascii_case(coding.as_str().as_bytes()))
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Br => "br",
            Self::Zstd => "zstd",
        }
    }
}

/// Why a body is not what its coding says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not as its content-encoding says")]
pub struct Invalid;

/// What came of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Step {
    /// So much of the input was taken.
    pub read: usize,
    /// So much of the output was filled.
    pub written: usize,
    /// What was asked for is done: all was flushed, or the end was written.
    pub done: bool,
}

/// What an encoder is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// To take input, and to give output when it likes.
    Go,
    /// To give all that it has; to be asked again until it is done. There is no input with it.
    Flush,
    /// To end the body; to be asked again until it is done. There is no input with it.
    End,
}

/// Compresses one body.
pub struct Encoder {
    encoding: Encoding,
    memory: usize,
}

/// The highest levels. Above them an encoder of br or zstd holds tens of MiB, for a hundredth of the size.
const HIGHEST_GZIP: u32 = 9;
const HIGHEST_BR: u32 = 5;
const HIGHEST_ZSTD: u32 = 6;

enum Encoding {
    Gzip(Compress),
    Br(Box<BrotliEncoderStateStruct<StandardAlloc>>),
    Zstd(CCtx<'static>),
}

impl Encoder {
    /// One that spends so much time on it: gzip 1 to 9, br 0 to 5, zstd 1 to 6.
    pub fn new(coding: Coding, level: u32) -> Self {
        let (encoding, memory) = match coding {
            Coding::Gzip => {
                let level = Compression::new(level.clamp(1, HIGHEST_GZIP));
                (Encoding::Gzip(Compress::new_gzip(level, GZIP_WINDOW)), 336 << 10)
            }
            Coding::Br => {
                let level = level.min(HIGHEST_BR);
                let mut state = Box::new(BrotliEncoderStateStruct::new(StandardAlloc::default()));
                state.set_parameter(BrotliEncoderParameter::BROTLI_PARAM_QUALITY, level);
                state.set_parameter(BrotliEncoderParameter::BROTLI_PARAM_LGWIN, WINDOW);
                (Encoding::Br(state), if level < 3 { 1200 << 10 } else { 4 << 20 })
            }
            Coding::Zstd => {
                let mut context = CCtx::create();
                // Neither can fail: both are within their bounds, and nothing was compressed yet.
                let level = level.clamp(1, HIGHEST_ZSTD) as i32;
                let _ = context.set_parameter(CParameter::CompressionLevel(level));
                let _ = context.set_parameter(CParameter::WindowLog(WINDOW));
                (Encoding::Zstd(context), 0)
            }
        };
        Self { encoding, memory }
    }

    /// How much memory it holds, about (measured by the example `coding_cost`).
    pub fn memory(&self) -> usize {
        match &self.encoding {
            Encoding::Zstd(context) => context.sizeof(),
            _ => self.memory,
        }
    }

    /// Does a step.
    ///
    /// # Errors
    /// When the library fails, which it has no reason to.
    pub fn step(&mut self, input: &[u8], output: &mut [u8], op: Op) -> Result<Step, Invalid> {
        match &mut self.encoding {
            Encoding::Gzip(state) => gzip_step(state, input, output, op),
            Encoding::Br(state) => br_step(state, input, output, op),
            Encoding::Zstd(context) => {
                let directive = match op {
                    Op::Go => ZSTD_EndDirective::ZSTD_e_continue,
                    Op::Flush => ZSTD_EndDirective::ZSTD_e_flush,
                    Op::End => ZSTD_EndDirective::ZSTD_e_end,
                };
                let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(output));
                let left = context.compress_stream2(&mut to, &mut from, directive).map_err(|_| Invalid)?;
                Ok(Step { read: from.pos, written: to.pos(), done: op != Op::Go && left == 0 })
            }
        }
    }
}

fn gzip_step(state: &mut Compress, input: &[u8], output: &mut [u8], op: Op) -> Result<Step, Invalid> {
    let flush = match op {
        Op::Go => FlushCompress::None,
        Op::Flush => FlushCompress::Sync,
        Op::End => FlushCompress::Finish,
    };
    let (before_in, before_out) = (state.total_in(), state.total_out());
    let status = state.compress(input, output, flush).map_err(|_| Invalid)?;
    let written = (state.total_out() - before_out) as usize;
    let done = match op {
        Op::Go => false,
        // What fills the output may not be all.
        Op::Flush => written < output.len(),
        Op::End => status == Status::StreamEnd,
    };
    Ok(Step { read: (state.total_in() - before_in) as usize, written, done })
}

fn br_step(
    state: &mut BrotliEncoderStateStruct<StandardAlloc>,
    input: &[u8],
    output: &mut [u8],
    op: Op,
) -> Result<Step, Invalid> {
    let operation = match op {
        Op::Go => BrotliEncoderOperation::BROTLI_OPERATION_PROCESS,
        Op::Flush => BrotliEncoderOperation::BROTLI_OPERATION_FLUSH,
        Op::End => BrotliEncoderOperation::BROTLI_OPERATION_FINISH,
    };
    let (mut left, mut read, mut room, mut written) = (input.len(), 0, output.len(), 0);
    let taken = state.compress_stream(
        operation,
        &mut left,
        input,
        &mut read,
        &mut room,
        output,
        &mut written,
        &mut None,
        &mut |_, _, _, _| (),
    );
    let done = match op {
        Op::Go => false,
        Op::Flush => !state.has_more_output(),
        Op::End => state.is_finished(),
    };
    if taken { Ok(Step { read, written, done }) } else { Err(Invalid) }
}

/// Undoes the compression of one body.
pub struct Decoder {
    decoding: Decoding,
    /// What came so far may be all.
    whole: bool,
    taken: u64,
    given: u64,
}

enum Decoding {
    Gzip(Decompress),
    Br(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
    Zstd(DCtx<'static>),
}

impl Decoder {
    /// One for a body of this coding.
    pub fn new(coding: Coding) -> Self {
        let alloc = StandardAlloc::default;
        let decoding = match coding {
            Coding::Gzip => Decoding::Gzip(Decompress::new_gzip(GZIP_WINDOW)),
            Coding::Br => Decoding::Br(Box::new(BrotliState::new_strict(alloc(), alloc(), alloc()))),
            Coding::Zstd => {
                let mut context = DCtx::create();
                // It is within its bounds, and nothing was decompressed yet.
                let _ = context.set_parameter(DParameter::WindowLogMax(LARGEST_ZSTD_WINDOW));
                Decoding::Zstd(context)
            }
        };
        Self { decoding, whole: true, taken: 0, given: 0 }
    }

    /// How much memory it holds, about.
    pub fn memory(&self) -> usize {
        match &self.decoding {
            Decoding::Gzip(_) => 48 << 10,
            Decoding::Br(_) => (64 << 10) + (self.given as usize).next_power_of_two().min(LARGEST_BR_WINDOW),
            Decoding::Zstd(context) => context.sizeof(),
        }
    }

    /// Bytes that were taken and given so far.
    pub fn moved(&self) -> (u64, u64) {
        (self.taken, self.given)
    }

    /// Whether the body may end here.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Does a step. When all of the output was filled there may be more, also without further input.
    ///
    /// # Errors
    /// When the body is not what its coding says.
    pub fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Invalid> {
        let step = match &mut self.decoding {
            Decoding::Gzip(state) => {
                if self.whole && self.taken > 0 && !input.is_empty() {
                    // Another member follows ([RFC 1952], 2.2).
                    state.reset(true);
                }
                let (before_in, before_out) = (state.total_in(), state.total_out());
                let status = state.decompress(input, output, FlushDecompress::None).map_err(|_| Invalid)?;
                let (read, written) =
                    ((state.total_in() - before_in) as usize, (state.total_out() - before_out) as usize);
                Step { read, written, done: status == Status::StreamEnd }
            }
            Decoding::Br(state) => {
                if self.whole && self.taken > 0 {
                    return if input.is_empty() { Ok(Step { done: true, ..Step::default() }) } else { Err(Invalid) };
                }
                let (mut left, mut read, mut room, mut written, mut total) = (input.len(), 0, output.len(), 0, 0);
                let result = BrotliDecompressStream(
                    &mut left,
                    &mut read,
                    input,
                    &mut room,
                    &mut written,
                    output,
                    &mut total,
                    state,
                );
                if matches!(result, BrotliResult::ResultFailure) {
                    return Err(Invalid);
                }
                Step { read, written, done: matches!(result, BrotliResult::ResultSuccess) }
            }
            Decoding::Zstd(context) => {
                let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(output));
                let left = context.decompress_stream(&mut to, &mut from).map_err(|_| Invalid)?;
                Step { read: from.pos, written: to.pos(), done: left == 0 }
            }
        };
        self.taken += step.read as u64;
        self.given += step.written as u64;
        if step.read > 0 || step.written > 0 {
            self.whole = step.done;
        }
        Ok(step)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Compresses pieces with a flush behind each, or only some.
    fn encoded(coding: Coding, level: u32, pieces: &[Vec<u8>], flush_every: usize, room: usize) -> Vec<u8> {
        let mut encoder = Encoder::new(coding, level);
        let (mut all, mut output) = (Vec::new(), vec![0; room]);
        for (index, piece) in pieces.iter().enumerate() {
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let step = encoder.step(rest, &mut output, Op::Go).unwrap();
                assert!(step.read > 0 || step.written > 0, "it goes on");
                rest = &rest[step.read..];
                all.extend_from_slice(&output[..step.written]);
            }
            if !piece.is_empty() && index % flush_every == 0 {
                drain(&mut encoder, Op::Flush, &mut output, &mut all);
            }
        }
        drain(&mut encoder, Op::End, &mut output, &mut all);
        all
    }

    fn drain(encoder: &mut Encoder, op: Op, output: &mut [u8], all: &mut Vec<u8>) {
        loop {
            let step = encoder.step(&[], output, op).unwrap();
            all.extend_from_slice(&output[..step.written]);
            if step.done {
                return;
            }
        }
    }

    fn decoded(coding: Coding, bytes: &[u8], piece: usize, room: usize) -> Result<(Vec<u8>, bool), Invalid> {
        let mut decoder = Decoder::new(coding);
        let (mut all, mut output) = (Vec::new(), vec![0; room]);
        for piece in bytes.chunks(piece) {
            let mut rest = piece;
            loop {
                let step = decoder.step(rest, &mut output)?;
                rest = &rest[step.read..];
                all.extend_from_slice(&output[..step.written]);
                if step.read == 0 && step.written == 0 {
                    if !rest.is_empty() {
                        return Err(Invalid);
                    }
                    break;
                }
            }
        }
        Ok((all, decoder.is_whole()))
    }

    #[test]
    fn names() {
        for (name, expected) in
            [("gzip", Some(Coding::Gzip)), ("X-GZIP", Some(Coding::Gzip)), ("Br", Some(Coding::Br)), ("deflate", None)]
        {
            assert_eq!(Coding::of(name.as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn what_was_flushed_can_be_read() {
        for coding in Coding::ALL {
            let (mut encoder, mut decoder) = (Encoder::new(coding, 4), Decoder::new(coding));
            let (mut output, mut back) = (vec![0; 4096], vec![0; 4096]);
            for number in 0..5 {
                let event = format!("data: {number} {}\n\n", "x".repeat(number * 100));
                let step = encoder.step(event.as_bytes(), &mut output, Op::Go).unwrap();
                assert_eq!(step.read, event.len());
                let mut sent = output[..step.written].to_vec();
                drain(&mut encoder, Op::Flush, &mut output, &mut sent);
                let mut read = Vec::new();
                while !sent.is_empty() {
                    let step = decoder.step(&sent, &mut back).unwrap();
                    read.extend_from_slice(&back[..step.written]);
                    sent.drain(..step.read);
                }
                assert_eq!(String::from_utf8_lossy(&read), event, "{coding:?}");
                assert!(!decoder.is_whole(), "{coding:?}: more may come");
            }
        }
    }

    #[test]
    fn what_is_cut_or_followed_by_something_is_wrong() {
        for coding in Coding::ALL {
            let whole = encoded(coding, 3, &[b"hello ".repeat(1000)], 1, 4096);
            for end in 1..whole.len() {
                let cut = decoded(coding, &whole[..end], 7, 64);
                assert!(!matches!(cut, Ok((_, true))), "{coding:?}: cut at {end} of {}", whole.len());
            }
            let more = [&whole[..], b"garbage"].concat();
            assert!(!matches!(decoded(coding, &more, 5, 64), Ok((_, true))), "{coding:?}");
            assert!(decoded(coding, b"not compressed at all", 3, 64).is_err(), "{coding:?}");
        }
        // Only what has members or frames may have several.
        for coding in [Coding::Gzip, Coding::Zstd] {
            let twice = encoded(coding, 3, &[b"ab".to_vec()], 1, 64).repeat(2);
            assert_eq!(decoded(coding, &twice, 3, 64), Ok((b"abab".to_vec(), true)), "{coding:?}");
        }
    }

    #[test]
    fn memory_stays_bounded() {
        for coding in Coding::ALL {
            let mut decoder = Decoder::new(coding);
            let bomb = encoded(coding, 9, &vec![vec![0; 1 << 20]; 20], 1000, 4096);
            let mut output = vec![0; 16 << 10];
            let (mut rest, mut most) = (&bomb[..], 0);
            loop {
                let step = decoder.step(rest, &mut output).unwrap();
                rest = &rest[step.read..];
                most = most.max(decoder.memory());
                if step.read == 0 && step.written == 0 {
                    break;
                }
            }
            assert_eq!(decoder.moved(), (bomb.len() as u64, 20 << 20), "{coding:?}");
            assert!(most <= 17 << 20, "{coding:?}: {most}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn bodies_come_back_as_they_were(
            pieces in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..2000),
                (any::<u8>(), 0..40_000_usize).prop_map(|(byte, count)| vec![byte; count]),
            ], 0..6),
            flush_every in 1..4_usize, room in 1..5000_usize, piece in 1..3000_usize, level in 0..10_u32,
        ) {
            for coding in Coding::ALL {
                let bytes = encoded(coding, level, &pieces, flush_every, room);
                let back = decoded(coding, &bytes, piece, room);
                prop_assert_eq!(back, Ok((pieces.concat(), true)), "{:?}", coding);
            }
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), piece in 1..50_usize) {
            for coding in Coding::ALL {
                let _ = decoded(coding, &bytes, piece, 100);
            }
        }
    }
}
