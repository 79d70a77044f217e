//! What only the leader of a controller's replicas does, as a meeting place: a feature does it, the controller says when.

use std::sync::Arc;

use outrigger_runtime::BoxFuture;

use crate::client::Client;
use crate::election::Leadership;

/// What somebody needs who leads.
#[derive(Clone)]
pub struct Leader {
    /// The API server.
    pub client: Client,
    /// Whether we still lead; to be asked before each change.
    pub leadership: Leadership,
}

/// Something that only one replica does.
pub trait Duty: Send + Sync {
    /// One word.
    fn name(&self) -> &'static str;

    /// Does it until it is dropped, which happens when we lead no more. Must be cancel-safe.
    fn run<'a>(&'a self, leader: &'a Leader) -> BoxFuture<'a, ()>;

    /// Why it cannot be done as it should.
    fn problem(&self) -> Option<String>;
}

impl Leader {
    /// Does a duty whenever we lead, until it is dropped.
    pub async fn serve(self, duty: Arc<dyn Duty>) {
        loop {
            self.leadership.gained().await;
            tokio::select! {
                () = duty.run(&self) => {}
                () = self.leadership.lost() => {}
            }
            // A duty that ended by itself is begun again, but not at once.
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    }
}
