//! Bodies that are compressed or decompressed on their way.
//!
//! In: a body, and its coding. Out: the same body in another coding. Promise: one block of it is in hand at a time; when
//! its sender pauses, all that came has gone on; a body that is not as it says, or grows beyond its ratio, is never
//! ended as if it were whole; how many there are at once is bounded over all workers, and their memory is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};

use outrigger_wire::coding::{Coding, Decoder, Encoder, Op, Step};

use crate::body::{Broken, Source};
use crate::buffer::{self, BLOCK, Buffer};
use crate::metrics::CodedMetrics;

/// After so many bytes of input and output others on the worker have their turn: about half a millisecond's work.
const MOST_AT_ONCE: usize = 64 * 1024;
/// A body may become so large whatever its ratio.
const HARMLESS: u64 = 64 * 1024;

/// Why a body is cut.
const INVALID: &str = "the body is not as its content-encoding says";
const EXPANDS: &str = "the body becomes too large when it is decompressed";

/// How many bodies are coded at once, over all workers.
pub(crate) struct CodedBodies {
    open: AtomicU32,
    most: AtomicU32,
}

impl CodedBodies {
    pub(crate) fn new(most: u32) -> Arc<Self> {
        Arc::new(Self { open: AtomicU32::new(0), most: AtomicU32::new(most) })
    }

    /// Changes how many there may be.
    pub(crate) fn set_most(&self, most: u32) {
        self.most.store(most, Relaxed);
    }

    /// A place for another one, if there is room and memory for it.
    pub(crate) fn place(self: &Arc<Self>) -> Option<Place> {
        if buffer::is_short() {
            return None;
        }
        // Counted before it is looked at, so that two workers never take the last place both.
        let before = self.open.fetch_add(1, Relaxed);
        let place = Place(Arc::clone(self));
        (before < self.most.load(Relaxed)).then_some(place)
    }
}

/// A place among them, free again when dropped.
pub(crate) struct Place(Arc<CodedBodies>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// A body that is coded as it goes.
pub(crate) struct CodedSource<'a> {
    pub(crate) inner: Source<'a>,
    codec: Codec,
    out: Buffer,
    state: State,
    /// Bytes that went in and out since others had their turn.
    worked: usize,
    taken: u64,
    given: u64,
    /// Bytes of memory that are counted for the codec.
    held: usize,
    metrics: CodedMetrics,
    _place: Place,
}

enum Codec {
    Encoder(Encoder),
    /// The second is its largest ratio.
    Decoder(Decoder, u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing that came waits in the codec.
    Idle,
    /// Something may.
    Holding,
    /// It is being taken out, and no input may come before that is done.
    Flushing,
    /// The input is over.
    Ending,
    Over,
}

impl<'a> CodedSource<'a> {
    /// A body that is compressed.
    pub(crate) fn compressed(
        inner: Source<'a>,
        (coding, level): (Coding, u32),
        place: Place,
        metrics: CodedMetrics,
    ) -> Source<'a> {
        let encoder = Encoder::new(coding, level);
        let memory = encoder.memory();
        Self::of(inner, Codec::Encoder(encoder), memory, place, metrics)
    }

    /// A body that is decompressed.
    pub(crate) fn decompressed(
        inner: Source<'a>,
        coding: Coding,
        max_ratio: u32,
        place: Place,
        metrics: CodedMetrics,
    ) -> Source<'a> {
        let decoder = Decoder::new(coding);
        let memory = decoder.memory();
        Self::of(inner, Codec::Decoder(decoder, max_ratio), memory, place, metrics)
    }

    fn of(inner: Source<'a>, codec: Codec, memory: usize, place: Place, metrics: CodedMetrics) -> Source<'a> {
        buffer::hold(memory);
        Source::Coded(Box::new(Self {
            inner,
            codec,
            out: Buffer::default(),
            state: State::Idle,
            worked: 0,
            taken: 0,
            given: 0,
            held: memory,
            metrics,
            _place: place,
        }))
    }

    /// Whether all of it has come and gone on.
    pub(crate) fn is_ended(&self) -> bool {
        self.state == State::Over && self.out.is_empty()
    }

    pub(crate) fn data(&self) -> &[u8] {
        self.out.filled()
    }

    pub(crate) fn advance(&mut self, count: usize) {
        self.out.consume(count);
    }

    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        loop {
            if !self.out.is_empty() {
                return Poll::Ready(Ok(true));
            }
            if self.worked >= MOST_AT_ONCE {
                self.worked = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match self.state {
                State::Over => {
                    self.out.rest();
                    return Poll::Ready(Ok(false));
                }
                State::Flushing => self.step(Op::Flush)?,
                State::Ending => self.step(Op::End)?,
                State::Idle | State::Holding => match self.inner.poll_ready(cx)? {
                    Poll::Ready(true) => self.step(Op::Go)?,
                    Poll::Ready(false) => self.state = State::Ending,
                    // What came must not wait for what is to come.
                    Poll::Pending if self.state == State::Holding => self.state = State::Flushing,
                    Poll::Pending => {
                        self.worked = 0;
                        self.out.rest();
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    /// Lets the codec do a step: take some of the run of bytes in hand, or give what it holds.
    fn step(&mut self, op: Op) -> Result<(), Broken> {
        let run = if op == Op::Go { self.inner.data() } else { &[] };
        let input = &run[..run.len().min(BLOCK)];
        let space = self.out.space();
        let room = space.len();
        let wrong = |_| Broken::Invalid(INVALID);
        let (step, memory) = match &mut self.codec {
            Codec::Encoder(encoder) => (encoder.step(input, space, op).map_err(wrong)?, encoder.memory()),
            Codec::Decoder(decoder, max_ratio) => {
                let step = decoder.step(input, space).map_err(wrong)?;
                let (taken, given) = decoder.moved();
                if given > HARMLESS && given > taken.saturating_mul(u64::from(*max_ratio)) {
                    return Err(Broken::Invalid(EXPANDS));
                }
                let done = step.written < room;
                if op == Op::End && done && step.written == 0 && !decoder.is_whole() {
                    return Err(Broken::Invalid(INVALID));
                }
                (Step { done, ..step }, decoder.memory())
            }
        };
        if op == Op::Go && step.read == 0 && step.written == 0 {
            return Err(Broken::Invalid(INVALID));
        }
        self.out.filled_by(step.written);
        if op == Op::Go {
            self.inner.advance(step.read);
        }
        buffer::hold(memory.saturating_sub(self.held));
        self.held = self.held.max(memory);
        self.taken += step.read as u64;
        self.given += step.written as u64;
        self.worked += step.read + step.written;
        self.state = match (op, step.done) {
            (Op::Go, _) => State::Holding,
            (Op::Flush, true) => State::Idle,
            (Op::End, true) => State::Over,
            (_, false) => self.state,
        };
        Ok(())
    }
}

impl Drop for CodedSource<'_> {
    fn drop(&mut self) {
        buffer::give_back(self.held);
        self.metrics.ended(self.taken, self.given);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn whole(source: &mut Source<'_>) -> Result<Vec<u8>, Broken> {
        let (mut all, mut turns) = (Vec::new(), 0);
        loop {
            match source.poll_ready(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(true)) => {
                    let data = source.data().to_vec();
                    all.extend_from_slice(&data);
                    source.advance(data.len());
                }
                Poll::Ready(Ok(false)) => return Ok(all),
                Poll::Ready(Err(broken)) => return Err(broken),
                Poll::Pending => turns += 1,
            }
            assert!(turns < 100_000, "it ends");
        }
    }

    fn compressed(bytes: &[u8], coding: Coding, bodies: &Arc<CodedBodies>) -> Vec<u8> {
        let place = bodies.place().unwrap();
        whole(&mut CodedSource::compressed(Source::Own(bytes), (coding, 4), place, CodedMetrics::none())).unwrap()
    }

    #[test]
    fn bodies_come_back_and_what_they_held_is_given_back() {
        let bodies = CodedBodies::new(1);
        let text = "all work and no play ".repeat(20_000);
        for coding in Coding::ALL {
            let small = compressed(text.as_bytes(), coding, &bodies);
            assert!(small.len() < text.len() / 20, "{coding:?}: {}", small.len());
            let place = bodies.place().unwrap();
            let mut back =
                CodedSource::decompressed(Source::Own(&small), coding, 1_000_000, place, CodedMetrics::none());
            assert!(bodies.place().is_none(), "there is one place");
            assert!(buffer::bytes_held().0 > 0, "its memory counts");
            assert!(whole(&mut back).unwrap() == text.as_bytes() && back.is_ended(), "{coding:?}");
            drop(back);
            assert_eq!(buffer::bytes_held().0, 0);
        }
        assert_eq!(bodies.open.load(Relaxed), 0);
    }

    #[test]
    fn bombs_and_what_is_cut_are_never_whole() {
        let bodies = CodedBodies::new(8);
        let text = vec![0; 1 << 20];
        for coding in Coding::ALL {
            let small = compressed(&text, coding, &bodies);
            let back = |bytes: &[u8], ratio| {
                let place = bodies.place().unwrap();
                whole(&mut CodedSource::decompressed(Source::Own(bytes), coding, ratio, place, CodedMetrics::none()))
            };
            assert_eq!(back(&small, 100), Err(Broken::Invalid(EXPANDS)), "{coding:?}");
            assert_eq!(back(&small[..small.len() - 1], 100_000), Err(Broken::Invalid(INVALID)), "{coding:?}");
            assert_eq!(back(&small, 100_000).map(|all| all.len()), Ok(1 << 20), "{coding:?}");
            let harmless = compressed(&text[..HARMLESS as usize], coding, &bodies);
            assert!(back(&harmless, 1).is_ok(), "{coding:?}");
        }
    }
}
