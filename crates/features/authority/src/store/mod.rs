//! Where the roots are kept: one small document, replaced as a whole or not at all.
//!
//! In: a document and the version it replaces. Out: the document with its version. Promise: of
//! two who replace the same version one succeeds, and the other is told so; a crash leaves the
//! old document or the new one.

mod folder;

use zeroize::Zeroizing;

use outrigger_runtime::BoxFuture;

pub use folder::Folder;

/// Why a document cannot be read or replaced.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}: {problem}")]
pub struct StoreError {
    /// What was tried.
    pub action: &'static str,
    /// What went wrong.
    pub problem: String,
}

/// A document as it was read.
pub struct Stored {
    /// Changes with every replacement.
    pub version: String,
    /// Its bytes; they hold keys.
    pub document: Zeroizing<Vec<u8>>,
}

/// One place for one document.
pub trait Store: Send + Sync {
    /// Where it is, for messages.
    fn place(&self) -> String;

    /// The document, if there is one.
    fn read(&self) -> BoxFuture<'_, Result<Option<Stored>, StoreError>>;

    /// Puts `document` in the place of that `version`, or where there is none. `false` when somebody else was first.
    /// When it is cancelled or fails, it may have happened or not.
    fn replace<'a>(&'a self, version: Option<&'a str>, document: &'a [u8]) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Tells those who look there whom to trust. What the bundle is taken for is up to the store.
    fn publish<'a>(&'a self, bundle: &'a str) -> BoxFuture<'a, Result<(), StoreError>>;
}
