//! The handle by which others reach the current identity.

use std::sync::Arc;

use tokio::sync::watch;

use crate::snapshot::Snapshot;

/// Gives the current [`Snapshot`], and tells when it changes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Identities(watch::Receiver<Option<Arc<Snapshot>>>);

impl Identities {
    pub(crate) fn channel() -> (watch::Sender<Option<Arc<Snapshot>>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    /// The current identity; `None` until the first one is there.
    pub fn current(&self) -> Option<Arc<Snapshot>> {
        self.0.borrow().clone()
    }

    /// Follows the identity: the value changes with every rotation, and when the trust bundle changes.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.0.clone()
    }

    /// Waits for the first identity. Cancel-safe. `None` when the component is gone.
    pub async fn first(&self) -> Option<Arc<Snapshot>> {
        let mut receiver = self.0.clone();
        let value = receiver.wait_for(Option::is_some).await.ok()?;
        value.clone()
    }
}
