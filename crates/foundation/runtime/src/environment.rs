//! Variables for the application that `run -- CMD` starts.

use std::sync::Arc;

use outrigger_config::Secret;
use parking_lot::Mutex;

/// Variables for CMD, set by `secrets` before it reports ready and read once, when CMD starts.
#[derive(Clone, Default)]
pub struct AppEnvironment(Arc<Mutex<Vec<(String, Secret)>>>);

impl AppEnvironment {
    /// No variables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces all variables.
    pub fn set(&self, variables: Vec<(String, Secret)>) {
        *self.0.lock() = variables;
    }

    /// A copy of the variables.
    pub fn variables(&self) -> Vec<(String, Secret)> {
        self.0.lock().clone()
    }
}
