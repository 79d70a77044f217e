//! Limits of a listener that no parser keeps.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use outrigger_config::ListenerLimits;
use outrigger_wire::head::Head;

use crate::snapshot::Listener;

/// What a field takes beside its name and its value in HTTP/1: a colon, a blank and the line's end.
const PER_FIELD: usize = 4;

/// Whether the head of an HTTP/2 request is larger than one of HTTP/1 may be.
pub(crate) fn is_beyond(head: &Head, limits: &ListenerLimits) -> bool {
    head.len() > limits.max_headers as usize
        || head.size() + head.len() * PER_FIELD > limits.max_header_bytes.as_usize()
}

/// What the `h2` crate is told to take: more than that, so that it is refused here and noted. It counts 32 bytes a field.
pub(crate) fn header_list_size(limits: &ListenerLimits) -> u32 {
    let most = limits.max_header_bytes.as_usize() * 2 + limits.max_headers as usize * 32;
    u32::try_from(most).unwrap_or(u32::MAX)
}

/// A place under `maxRequests`, free again when dropped. Workers share the count, but only where there is a limit.
pub(crate) struct Place(Arc<Listener>);

impl Place {
    /// Takes a place, if there is one.
    pub(crate) fn take(listener: &Arc<Listener>, most: u32) -> Option<Self> {
        // Counted before it is looked at, so that two workers never take the last place both.
        let before = listener.requests.fetch_add(1, Relaxed);
        let place = Self(Arc::clone(listener));
        (before < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
    }
}
