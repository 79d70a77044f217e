//! Buffers for bytes on their way, lent by the worker.
//!
//! Promise: a connection that rests holds no buffer; a worker keeps a bounded number of
//! blocks for the next that needs one; a block that had to grow is not kept; all that is held
//! is counted, and whoever watches over it is woken when it is too much.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

use bytes::Bytes;

/// A block: enough for nearly every head, and a good size for a read.
pub(crate) const BLOCK: usize = 16 * 1024;
/// For connections that are carried as they come: fewer system calls per byte.
pub(crate) const LARGE_BLOCK: usize = 64 * 1024;
/// Blocks a worker keeps, of either size.
const MOST_KEPT: usize = 64;
const MOST_LARGE_KEPT: usize = 8;

thread_local! {
    /// Bytes in use.
    static LENT: Cell<usize> = const { Cell::new(0) };
    /// Bytes that may be in use.
    static MOST: Cell<usize> = const { Cell::new(usize::MAX) };
    /// Who is told when it is more.
    static WATCH: RefCell<Option<Waker>> = const { RefCell::new(None) };
    static KEPT: RefCell<Kept> = const { RefCell::new(Kept { blocks: Vec::new(), large: Vec::new() }) };
}

struct Kept {
    blocks: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
}

fn lend(large: bool) -> Vec<u8> {
    let (kept, size) = if large {
        (KEPT.with_borrow_mut(|kept| kept.large.pop()), LARGE_BLOCK)
    } else {
        (KEPT.with_borrow_mut(|kept| kept.blocks.pop()), BLOCK)
    };
    hold(size);
    kept.unwrap_or_else(|| vec![0; size])
}

/// Counts bytes that are held for a connection.
pub(crate) fn hold(count: usize) {
    LENT.set(LENT.get() + count);
    if is_over() {
        WATCH.with_borrow_mut(|watch| watch.take().map(Waker::wake));
    }
}

/// Counts bytes that are held no more. While the thread ends nobody counts.
pub(crate) fn give_back(count: usize) {
    let _ = LENT.try_with(|lent| lent.set(lent.get().saturating_sub(count)));
}

/// From so many bytes on it is worth it to count a copy.
const WORTH_COUNTING: usize = 4 * 1024;

/// A copy for those who take bytes over and free them when they like: counted until then.
pub(crate) fn counted(bytes: &[u8]) -> Bytes {
    struct Counted(Box<[u8]>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            give_back(self.0.len());
        }
    }
    if bytes.len() < WORTH_COUNTING {
        return Bytes::copy_from_slice(bytes);
    }
    hold(bytes.len());
    Bytes::from_owner(Counted(bytes.into()))
}

/// Sets how many bytes this worker's connections may hold.
pub(crate) fn set_most(most: usize) {
    MOST.set(most);
}

/// Whether so little is left that no new request should begin.
pub(crate) fn is_short() -> bool {
    let most = MOST.get();
    LENT.get() > most - most / 8
}

/// Whether more is held than may be.
pub(crate) fn is_over() -> bool {
    LENT.get() > MOST.get()
}

/// How many bytes must be given back until there is room again for new requests.
pub(crate) fn excess() -> usize {
    let most = MOST.get();
    LENT.get().saturating_sub(most - most / 4)
}

/// Waits until more is held than may be. One task per worker may wait.
pub(crate) async fn over() {
    poll_fn(|cx| {
        if is_over() {
            return Poll::Ready(());
        }
        WATCH.set(Some(cx.waker().clone()));
        Poll::Pending
    })
    .await;
}

/// Bytes of blocks that connections of this worker hold, and that it keeps for the next.
pub(crate) fn bytes_held() -> (usize, usize) {
    let kept = KEPT.with_borrow(|kept| kept.blocks.len() * BLOCK + kept.large.len() * LARGE_BLOCK);
    (LENT.get(), kept)
}

fn take_back(block: Vec<u8>, large: bool) {
    give_back(block.len());
    // While the thread ends there is nobody to keep it for.
    let _ = KEPT.try_with(|kept| {
        let kept = &mut *kept.borrow_mut();
        let (shelf, size, most) =
            if large { (&mut kept.large, LARGE_BLOCK, MOST_LARGE_KEPT) } else { (&mut kept.blocks, BLOCK, MOST_KEPT) };
        if block.len() == size && shelf.len() < most {
            shelf.push(block);
        }
    });
}

/// Bytes that were read and not used yet; holds memory only while there are any.
#[derive(Default)]
pub(crate) struct Buffer {
    /// All of it is initialised.
    block: Vec<u8>,
    start: usize,
    end: usize,
    /// Its block is a large one.
    large: bool,
}

impl Buffer {
    /// A buffer for many bytes at once.
    pub(crate) fn large() -> Self {
        Self { block: Vec::new(), start: 0, end: 0, large: true }
    }

    /// Makes it one for many bytes at once. What waits must fit, as what was read to find out a protocol does.
    pub(crate) fn enlarge(&mut self) {
        if !self.large {
            let mut large = Self::large();
            if !self.is_empty() {
                let space = large.space();
                let count = self.len();
                debug_assert!(count <= space.len());
                space[..count].copy_from_slice(self.filled());
                large.filled_by(count);
            }
            *self = large;
        }
    }

    /// The bytes that wait.
    pub(crate) fn filled(&self) -> &[u8] {
        &self.block[self.start..self.end]
    }

    /// How many bytes wait.
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether no more fits without moving or growing.
    pub(crate) fn is_full(&self) -> bool {
        self.end == self.block.len()
    }

    /// Forgets the first `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Room for at least one more byte; what waits is moved to the front, or the block grows.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.block.is_empty() {
            self.block = lend(self.large);
        }
        if self.end == self.block.len() {
            if self.start > 0 {
                self.block.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            } else {
                hold(self.block.len());
                let grown = self.block.len() * 2;
                self.block.resize(grown, 0);
            }
        }
        &mut self.block[self.end..]
    }

    /// Counts bytes that were written into [`Self::space`].
    pub(crate) fn filled_by(&mut self, count: usize) {
        self.end += count;
    }

    /// Puts bytes behind those that wait.
    pub(crate) fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.space();
            let count = space.len().min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            self.filled_by(count);
            bytes = &bytes[count..];
        }
    }

    /// Gives the block back when no byte waits.
    pub(crate) fn rest(&mut self) {
        if self.is_empty() && !self.block.is_empty() {
            self.start = 0;
            self.end = 0;
            take_back(std::mem::take(&mut self.block), self.large);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.block.is_empty() {
            take_back(std::mem::take(&mut self.block), self.large);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_and_resting_holds_nothing() {
        let mut buffer = Buffer::default();
        let bytes: Vec<u8> = (0..40_000_u32).map(|n| n as u8).collect();
        buffer.put(&bytes[..10]);
        buffer.consume(4);
        buffer.put(&bytes[10..]);
        assert_eq!(buffer.filled(), &bytes[4..]);
        buffer.rest();
        assert_eq!(buffer.len(), bytes.len() - 4, "what waits is kept");
        buffer.consume(bytes.len() - 4);
        buffer.rest();
        assert_eq!((buffer.block.capacity(), buffer.is_empty()), (0, true));
        assert_eq!(bytes_held().0, 0, "it is counted as given back");
    }

    #[test]
    fn what_is_held_is_counted_and_the_watch_is_woken() {
        set_most(8 * BLOCK);
        let mut buffer = Buffer::default();
        buffer.put(&vec![0; 3 * BLOCK]);
        assert_eq!(bytes_held().0, 4 * BLOCK, "a block that grew counts as what it is");
        assert!(!is_short() && !is_over());
        let mut watch = Box::pin(over());
        let mut cx = std::task::Context::from_waker(Waker::noop());
        assert!(std::future::Future::poll(watch.as_mut(), &mut cx).is_pending());
        hold(3 * BLOCK + BLOCK / 2);
        assert!(is_short() && !is_over());
        hold(BLOCK);
        assert!(is_over() && excess() == 2 * BLOCK + BLOCK / 2);
        assert!(std::future::Future::poll(watch.as_mut(), &mut cx).is_ready());
        give_back(4 * BLOCK + BLOCK / 2);
        drop(buffer);
        assert_eq!(bytes_held().0, 0);
    }

    #[test]
    fn blocks_are_used_again_and_few_are_kept() {
        let many: Vec<Buffer> = (0..MOST_KEPT + 10)
            .map(|_| {
                let mut buffer = Buffer::default();
                buffer.put(b"x");
                buffer
            })
            .collect();
        drop(many);
        KEPT.with_borrow(|kept| {
            assert_eq!(kept.blocks.len(), MOST_KEPT);
            assert!(kept.blocks.iter().all(|block| block.len() == BLOCK));
            assert!(kept.large.is_empty());
        });
    }
}
