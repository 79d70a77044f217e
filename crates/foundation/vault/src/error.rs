//! Why Vault does not do what it is asked for.
//!
//! Promise: each text says what failed, where, and what would mend it, in one line of bounded length; none holds a secret.

use std::path::PathBuf;

/// Why Vault does not do what it is asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A token, secret ID or CA bundle that cannot be read.
    #[error("{what} {}: {problem}", path.display())]
    Credential {
        /// What it is.
        what: &'static str,
        /// Its file.
        path: PathBuf,
        /// Why it cannot be used.
        problem: String,
    },
    /// Vault cannot be reached, or does not answer as Vault.
    #[error("vault {address} {problem}; retrying")]
    Unavailable {
        /// Vault's address.
        address: String,
        /// What it does instead.
        problem: String,
    },
    /// Vault refuses a request for good.
    #[error("vault {address}: {problem}")]
    Refused {
        /// Vault's address.
        address: String,
        /// What it refuses, and why.
        problem: String,
    },
}
