//! Which servers speak first, as learned from them.
//!
//! In: who was heard first on a connection whose client had been silent. Out: whether to wait for the client at
//! all, the next time somebody wants to go there. Promise: bounded, and forgotten after a while or when
//! a client turns out to speak first, so that one slow client spoils nothing for the others.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long it is remembered that a server speaks first.
const REMEMBERED: Duration = Duration::from_secs(300);
/// Servers remembered per listener and worker.
const MOST: usize = 1024;

/// Where servers speak first: by the original destination, or without one for all that is behind the listener.
#[derive(Default)]
pub(crate) struct SpeakFirst(RefCell<HashMap<Option<SocketAddr>, Instant>>);

impl SpeakFirst {
    /// Whether the server there is known to speak first.
    pub(crate) fn knows(&self, destination: Option<SocketAddr>, now: Instant) -> bool {
        let known = self.0.borrow();
        !known.is_empty() && known.get(&destination).is_some_and(|until| now < *until)
    }

    /// The server there spoke first.
    pub(crate) fn remember(&self, destination: Option<SocketAddr>, now: Instant) {
        let mut known = self.0.borrow_mut();
        if known.len() >= MOST && !known.contains_key(&destination) {
            known.retain(|_, until| now < *until);
        }
        if known.len() >= MOST
            && !known.contains_key(&destination)
            && let Some(oldest) = known.iter().min_by_key(|(_, until)| **until).map(|(key, _)| *key)
        {
            known.remove(&oldest);
        }
        known.insert(destination, now + REMEMBERED);
    }

    /// A client spoke first there.
    pub(crate) fn forget(&self, destination: Option<SocketAddr>) {
        self.0.borrow_mut().remove(&destination);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_destination_is_remembered_for_itself_and_for_a_while() {
        let (memory, now) = (SpeakFirst::default(), Instant::now());
        let (mysql, http) = (Some("10.0.0.1:3306".parse().unwrap()), Some("10.0.0.1:80".parse().unwrap()));
        assert!(!memory.knows(mysql, now));
        memory.remember(mysql, now);
        assert!(memory.knows(mysql, now) && !memory.knows(http, now) && !memory.knows(None, now));
        assert!(memory.knows(mysql, now + REMEMBERED - Duration::from_secs(1)));
        assert!(!memory.knows(mysql, now + REMEMBERED));
        memory.forget(mysql);
        assert!(!memory.knows(mysql, now));
    }

    #[test]
    fn the_oldest_gives_way() {
        let (memory, now) = (SpeakFirst::default(), Instant::now());
        let destination = |number: usize| Some(SocketAddr::from(([10, 0, 0, 1], u16::try_from(number).unwrap())));
        for number in 0..=MOST {
            memory.remember(destination(number), now + Duration::from_millis(number as u64));
        }
        assert_eq!(memory.0.borrow().len(), MOST);
        assert!(!memory.knows(destination(0), now) && memory.knows(destination(1), now));
        // What has expired goes first, all of it.
        memory.remember(destination(5000), now + REMEMBERED * 2);
        assert_eq!(memory.0.borrow().len(), 1);
    }
}
