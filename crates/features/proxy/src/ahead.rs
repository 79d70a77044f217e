//! Connections made before a request wants them.
//!
//! In: a look once a second at what each endpoint has. Out: as many kept connections as
//! `pool.minIdle` says. Promise: no storm: one at a time for each endpoint of a worker, begun
//! at a random moment within the second; an endpoint that failed lately is left alone; room
//! for connections that requests need is never taken.

use std::rc::Rc;
use std::time::{Duration, Instant};

use outrigger_config::ClusterProtocol;
use tokio::time::{sleep, timeout};

use crate::balance::Endpoint;
use crate::error::Reason;
use crate::pool::{Pool, Ticket};
use crate::upstream::Speech;

/// Within it each endpoint's first connection is begun.
const SPREAD_MILLIS: u32 = 500;

/// Nobody else makes connections ahead for the endpoint meanwhile.
struct Preparing(Rc<Endpoint>);

impl Drop for Preparing {
    fn drop(&mut self) {
        self.0.preparing.set(false);
    }
}

impl Pool {
    /// Begins to make what is missing.
    pub(crate) fn make_ahead(self: &Rc<Self>, random: impl Fn() -> u32) {
        let Ok(generation) = self.generation() else { return };
        self.renew();
        let now = Instant::now();
        let mut lacking = self.all_endpoints();
        lacking.retain(|one| {
            !one.preparing.get() && one.peer.is_usable() && !one.is_avoided(now) && self.lacks(one, generation)
        });
        for endpoint in lacking {
            endpoint.preparing.set(true);
            let preparing = Preparing(endpoint);
            let pause = Duration::from_millis(u64::from(random() % SPREAD_MILLIS));
            // The pool owns the task that uses it, so the task must not keep the pool.
            let pool = Rc::downgrade(self);
            self.drivers.borrow_mut().spawn_local(async move {
                sleep(pause).await;
                while let Some(pool) = pool.upgrade() {
                    let endpoint = &preparing.0;
                    if endpoint.retired.get() || !pool.has_room() || !pool.lacks(endpoint, generation) {
                        return;
                    }
                    if pool.make_one(endpoint, generation).await.is_err() {
                        pool.failed(endpoint);
                        return;
                    }
                    pool.metrics.ahead.inc();
                }
            });
        }
    }

    fn lacks(&self, endpoint: &Endpoint, generation: u64) -> bool {
        if self.cluster.config.protocol == ClusterProtocol::Http2 {
            return !endpoint.shared.are_ready(generation);
        }
        (endpoint.idle.borrow().len() as u32) < self.cluster.config.pool.min_idle
    }

    async fn make_one(self: &Rc<Self>, endpoint: &Rc<Endpoint>, generation: u64) -> Result<(), Reason> {
        let mut ticket = Ticket::take(self, Rc::clone(endpoint));
        if self.cluster.config.protocol == ClusterProtocol::Http2 {
            return self.place(&mut ticket, generation, false).await.map(drop);
        }
        ticket.open();
        let dial = async {
            let stream = self.tcp(endpoint.address).await?;
            self.reach(stream, endpoint.address, Speech::Http1, None).await
        };
        let dialled = timeout(self.cluster.config.connect_timeout.into(), dial).await;
        match dialled.unwrap_or(Err(Reason::ConnectTimeout)) {
            Ok(dialled) => {
                self.metrics.connected.inc();
                endpoint.connected();
                endpoint.kin.set(dialled.kin);
                ticket.keep(dialled.into());
                Ok(())
            }
            Err(reason) => {
                self.metrics.failed.inc();
                Err(reason)
            }
        }
    }
}
