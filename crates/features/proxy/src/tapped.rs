//! Bodies of which somebody who taps wants to see the beginning.
//!
//! In: a body on its way. Out: the same, and a copy of its first bytes. Promise: nothing is copied while nobody asks;
//! a copy is bounded and its memory counted; a body that is sent again is copied once.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::body::{Broken, Source};
use crate::buffer;

/// A body that is copied as it goes.
pub(crate) struct TappedSource<'a> {
    pub(crate) inner: Source<'a>,
    copy: Rc<RefCell<BodyCopy>>,
    /// So much of it has gone on.
    at: u64,
}

/// The beginning of a body.
pub(crate) struct BodyCopy {
    bytes: Vec<u8>,
    most: usize,
    length: u64,
}

impl BodyCopy {
    pub(crate) fn new(most: usize) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self { bytes: Vec::new(), most, length: 0 }))
    }

    /// What was copied.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How long the body is, as far as it came.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Bytes went on, which stand there in the body.
    fn take(&mut self, at: u64, data: &[u8]) {
        let known = usize::try_from(self.length.saturating_sub(at)).unwrap_or(usize::MAX);
        let Some(new) = data.get(known..) else { return };
        self.length += new.len() as u64;
        let room = self.most - self.bytes.len();
        // Traffic comes first.
        if room > 0 && !buffer::is_short() {
            let before = self.bytes.capacity();
            self.bytes.extend_from_slice(&new[..new.len().min(room)]);
            buffer::hold(self.bytes.capacity() - before);
        }
    }
}

impl Drop for BodyCopy {
    fn drop(&mut self) {
        buffer::give_back(self.bytes.capacity());
    }
}

impl<'a> TappedSource<'a> {
    pub(crate) fn of(inner: Source<'a>, copy: Rc<RefCell<BodyCopy>>) -> Source<'a> {
        Source::Tapped(Box::new(Self { inner, copy, at: 0 }))
    }

    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        self.inner.poll_ready(cx)
    }

    pub(crate) fn advance(&mut self, count: usize) {
        self.copy.borrow_mut().take(self.at, &self.inner.data()[..count]);
        self.at += count as u64;
        self.inner.advance(count);
    }

    pub(crate) fn rewind(&mut self) -> bool {
        let can = self.inner.rewind();
        if can {
            self.at = 0;
        }
        can
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_is_copied_once() {
        let copy = BodyCopy::new(5);
        copy.borrow_mut().take(0, b"abc");
        // It is sent again, and further.
        copy.borrow_mut().take(0, b"ab");
        copy.borrow_mut().take(2, b"cdefg");
        copy.borrow_mut().take(7, b"h");
        assert_eq!((copy.borrow().bytes(), copy.borrow().length()), (&b"abcde"[..], 8));
        assert!(buffer::bytes_held().0 >= 5);
        drop(copy);
        assert_eq!(buffer::bytes_held().0, 0);
    }

    #[test]
    fn the_body_goes_on_as_it_came() {
        let copy = BodyCopy::new(100);
        let mut source = TappedSource::of(Source::Own(b"hello"), Rc::clone(&copy));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert_eq!(source.poll_ready(&mut cx), Poll::Ready(Ok(true)));
        assert_eq!(source.data(), b"hello");
        source.advance(2);
        source.advance(3);
        assert!(source.is_ended() && copy.borrow().bytes() == b"hello");
    }
}
