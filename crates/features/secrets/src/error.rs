//! Why a secret is not where it shall be.
//!
//! Promise: each text says what failed, where, and what would mend it, in one line of
//! bounded length; none holds a secret, for none is ever made from a value.

use std::path::PathBuf;

/// Why a secret could not be read, rendered or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A template that cannot be used: a syntax error, or a function that does not exist.
    #[error("{at}: line {line} of the template: {message}")]
    Template {
        /// The config path of the template.
        at: String,
        /// Counted from 1, within the template.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A template that cannot be rendered from what the provider holds.
    #[error("{target}: line {line} of {at}: {message}")]
    Render {
        /// The file or variable it is for.
        target: String,
        /// The config path of the template.
        at: String,
        /// Counted from 1, within the template.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// Vault does not do what it is asked for.
    #[error(transparent)]
    Vault(#[from] outrigger_vault::Error),
    /// Vault does not accept the token.
    #[error("vault {address} does not accept the token for `{path}` (403): {problem}")]
    TokenRejected {
        /// Vault's address.
        address: String,
        /// What was asked for.
        path: String,
        /// Vault's own words.
        problem: String,
    },
    /// Nothing is at the path.
    #[error("{provider}: there is no secret at `{path}`{hint}")]
    Missing {
        /// The provider, and for Vault its address.
        provider: String,
        /// The path asked for.
        path: String,
        /// What may be the reason; empty or beginning with `: `.
        hint: String,
    },
    /// A file of the `file` provider that cannot be used.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why it cannot be used.
        problem: String,
    },
    /// A file that cannot be written.
    #[error("cannot write {}: {problem}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why it cannot be written.
        problem: String,
    },
}
