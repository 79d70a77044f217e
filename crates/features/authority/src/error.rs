//! Why the authority cannot sign, in the words of the operator who has to mend it.

use std::path::PathBuf;

use crate::store::StoreError;

/// Why there is nothing to sign with, or a signature failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The place of the roots cannot be used.
    #[error("the roots in {place}: {source}")]
    Store {
        /// Where they are.
        place: String,
        /// What went wrong there.
        source: StoreError,
    },
    /// What stands there is no set of roots of ours.
    #[error("the roots in {place} cannot be used: {problem}; restore them, or remove them to have new ones made")]
    Roots {
        /// Where they are.
        place: String,
        /// What is wrong with them.
        problem: String,
    },
    /// Somebody else keeps changing them.
    #[error("the roots in {place} were changed by somebody else at each try")]
    Contended {
        /// Where they are.
        place: String,
    },
    /// What was read is too old to go by.
    #[error("the roots were read too long ago to sign by: {0}")]
    Stale(String),
    /// Vault has signed nothing yet, or all that it signed has ended.
    #[error("there is no intermediate below vault {address} that is valid now")]
    NoIntermediate {
        /// Vault's address.
        address: String,
    },
    /// A file of a given authority is no good.
    #[error("the authority's {}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and how to mend it.
        problem: String,
    },
    /// Vault does not do what it is asked for.
    #[error(transparent)]
    Vault(#[from] outrigger_vault::Error),
    /// The cryptography failed.
    #[error("cannot sign a certificate")]
    Sign(#[source] rcgen::Error),
    /// The system gave no random numbers.
    #[error("the system gave no random numbers")]
    Random,
}
