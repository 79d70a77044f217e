//! Whether an endpoint counts as healthy, by checks of it.
//!
//! In: how each check went. Out: whether that changes anything. Promise: one check alone changes nothing where the
//! thresholds are higher, so a check that flaps does not; an endpoint that was never checked counts as healthy.

/// So many checks in a row change what counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Successes, until an unhealthy endpoint counts as healthy.
    pub healthy: u32,
    /// Failures, until a healthy endpoint counts as unhealthy.
    pub unhealthy: u32,
}

/// One endpoint, as a check sees it.
#[derive(Debug, Default)]
pub struct Health {
    unhealthy: bool,
    /// Checks in a row that speak for the other.
    row: u32,
}

impl Health {
    /// Takes in how a check went. `Some` tells that from now on the endpoint counts as healthy, or not.
    pub fn observe(&mut self, good: bool, thresholds: Thresholds) -> Option<bool> {
        if good != self.unhealthy {
            self.row = 0;
            return None;
        }
        self.row += 1;
        let enough = if good { thresholds.healthy } else { thresholds.unhealthy };
        if self.row < enough {
            return None;
        }
        self.row = 0;
        self.unhealthy = !good;
        Some(good)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const THRESHOLDS: Thresholds = Thresholds { healthy: 2, unhealthy: 3 };

    #[test]
    fn only_a_row_changes_anything() {
        let mut health = Health::default();
        let mut seen = |checks: &str| -> Vec<Option<bool>> {
            checks.chars().map(|check| health.observe(check == '+', THRESHOLDS)).collect()
        };
        assert_eq!(seen("+--+--+-+-"), vec![None; 10], "flapping");
        assert_eq!(seen("--"), [None, Some(false)], "with the one before it, the third");
        assert_eq!(seen("--+-+-"), vec![None; 6]);
        assert_eq!(seen("++"), [None, Some(true)]);
    }

    proptest! {
        /// Changes alternate, and each needs its row.
        #[test]
        fn changes_alternate(checks in prop::collection::vec(any::<bool>(), 0..200), healthy in 1_u32..5, unhealthy in 1_u32..5) {
            let thresholds = Thresholds { healthy, unhealthy };
            let (mut health, mut last, mut row, mut before) = (Health::default(), true, 0, None);
            for good in checks {
                row = if before == Some(good) { row + 1 } else { 1 };
                before = Some(good);
                if let Some(change) = health.observe(good, thresholds) {
                    prop_assert!(change != last && change == good);
                    let least = if good { healthy } else { unhealthy };
                    prop_assert!(row >= least);
                    last = change;
                }
            }
        }
    }
}
