//! A service's endpoints as a source, and the notebook as a directory of services.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use outrigger_traffic::directory::{Directory, FoundService, Known, Later};
use outrigger_traffic::endpoints::{Endpoint, EndpointSource, NextUpdate, Update};
use tokio::sync::watch;

use crate::notebook::{Notebook, Told};

/// Follows one service while it lives.
struct Followed {
    notebook: Notebook,
    service: String,
    told: watch::Receiver<Told>,
    /// What was given already.
    given: Option<Arc<[Endpoint]>>,
    problem: Option<Arc<str>>,
}

impl EndpointSource for Followed {
    fn next(&mut self) -> NextUpdate<'_> {
        Box::pin(async {
            loop {
                let now = self.told.borrow_and_update().clone();
                let same = match (&now.endpoints, &self.given) {
                    (Some(now), Some(given)) => Arc::ptr_eq(now, given),
                    (None, _) => true,
                    (Some(_), None) => false,
                };
                // What is told again when a problem is over says so.
                let over = now.problem.is_none() && self.problem.is_some() && now.endpoints.is_some();
                if !same || over {
                    self.given.clone_from(&now.endpoints);
                    // A problem that goes on is told next.
                    self.problem = None;
                    return Ok(Update::All(now.endpoints.map(|all| all.to_vec()).unwrap_or_default()));
                }
                if now.problem != self.problem {
                    self.problem.clone_from(&now.problem);
                    if let Some(problem) = now.problem {
                        return Err(problem.to_string());
                    }
                }
                if self.told.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        })
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.notebook.unfollow(&self.service);
    }
}

impl Directory for Notebook {
    fn follow(&self, service: &str) -> Box<dyn EndpointSource> {
        let told = self.follow(service);
        Box::new(Followed { notebook: self.clone(), service: service.to_owned(), told, given: None, problem: None })
    }

    fn ask(&self, address: SocketAddr) -> Known {
        self.ask(address, Instant::now())
    }

    fn found(&self) -> (u64, Arc<[FoundService]>) {
        self.found()
    }

    fn changed(&self, since: u64) -> Later<'_, ()> {
        Box::pin(self.changed(since))
    }
}
