//! Configs that were found good, so that pods that get the same one cost one look at it.
//!
//! In: a config's text. Out: whether it was found good before. Promise: what is remembered is bounded, and is the text itself, so that no
//! verdict is another than it would have been; a config with mistakes is looked at each time.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Configs that are remembered: one for each way in which the pods of a cluster differ.
const MOST: usize = 128;
/// A longer one is not remembered; together they have at most 2 MiB.
const LONGEST: usize = 16 << 10;

/// Configs that were found good. Clones share what they know; it makes no difference to what anything is.
#[derive(Clone, Default)]
pub struct KnownGood(Arc<Mutex<HashSet<Key>>>);

/// Whether connections are redirected, which a config has to suit, and its text.
type Key = (bool, Box<str>);

impl KnownGood {
    /// Whether it was found good.
    pub(crate) fn knows(&self, key: &Key) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    /// It was found good.
    pub(crate) fn remember(&self, key: Key) {
        if key.1.len() > LONGEST {
            return;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Which of them will come again nobody knows; those that do are back at once.
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(key);
    }
}

impl PartialEq for KnownGood {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Debug for KnownGood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KnownGood")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_and_told_apart() {
        let good = KnownGood::default();
        let key = |redirects: bool, text: &str| (redirects, Box::from(text));
        good.remember(key(true, "a"));
        assert!(good.clone().knows(&key(true, "a")));
        assert!(!good.knows(&key(false, "a")) && !good.knows(&key(true, "b")));
        good.remember(key(true, &"x".repeat(LONGEST + 1)));
        assert!(!good.knows(&key(true, &"x".repeat(LONGEST + 1))), "too long");
        for number in 0..=MOST {
            good.remember(key(true, &number.to_string()));
        }
        assert!(good.0.lock().unwrap().len() <= MOST);
        assert!(good.knows(&key(true, &MOST.to_string())), "the newest one");
    }
}
