//! What a client still sends although it has its answer.
//!
//! In: a body that nobody asks for any more. Out: nothing. Promise: a client that was answered early, as by 413 or 429,
//! may end its request in peace for a moment. A reset right behind the answer is allowed ([RFC 9113], 8.1), but clients
//! that meet both in one read, as curl before 8.0, tell their user of an error instead of the answer.
//!
//! [RFC 9113]: https://www.rfc-editor.org/rfc/rfc9113

use std::future::poll_fn;
use std::task::{Poll, ready};
use std::time::Duration;

use crate::body::Source;
use crate::h1::server::MOST_LINGERED;

/// So long it may take; a client that reads its answer has stopped by then.
const LONGEST: Duration = Duration::from_secs(1);

/// Reads to the body's end, for a bounded time and number of bytes. On HTTP/1 the connection itself does it.
pub(crate) async fn linger(source: &mut Source<'_>) {
    let source = source.innermost();
    if !matches!(source, Source::H2(_)) {
        return;
    }
    let mut lingered = 0;
    let read = poll_fn(|cx| {
        while let Ok(true) = ready!(source.poll_ready(cx)) {
            let count = source.data().len();
            lingered += count;
            if lingered > MOST_LINGERED {
                break;
            }
            source.advance(count);
        }
        Poll::Ready(())
    });
    let _ = tokio::time::timeout(LONGEST, read).await;
}
