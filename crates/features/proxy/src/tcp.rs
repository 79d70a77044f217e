//! Connections that are carried as they come.
//!
//! In: a client's connection, and the route it takes. Out: the same bytes at an endpoint, and
//! back. Promise: each direction ends when its sender ends it; what breaks off is seen by the
//! other side as broken off; bytes are counted and never looked at.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Instant, SystemTime};

use crate::access_log::Entry;
use crate::body::Broken;
use crate::buffer::Buffer;
use crate::connection::Downstream;
use crate::error::Reason;
use crate::metrics::RequestNames;
use crate::pool::Pool;
use crate::relay::Relay;
use crate::snapshot::LocalSnapshot;
use crate::transport::Transport;
use crate::watch::{Order, Watched};

/// A connection under way, and what is noted of it at its end.
struct Carried {
    downstream: Rc<Downstream>,
    watched: Rc<Watched>,
    snapshot: Rc<LocalSnapshot>,
    started: Instant,
    at: SystemTime,
    route: Option<u32>,
    pool: Option<Rc<Pool>>,
    endpoint: Option<std::net::SocketAddr>,
    peer: Option<Rc<str>>,
    received: u64,
    sent: u64,
    reason: Option<Reason>,
    /// Who speaks first is kept in mind.
    learns: bool,
    ended: bool,
}

/// Carries a connection to its end. `input` is what was read already. When it `learns`, who speaks first is kept in mind.
pub(crate) async fn relay(
    downstream: Rc<Downstream>,
    watched: &Rc<Watched>,
    io: Transport,
    mut input: Buffer,
    route: Option<u32>,
    learns: bool,
) {
    watched.begin(Instant::now());
    watched.handled.set(watched.handled.get() + 1);
    let mut carried = Carried {
        snapshot: downstream.local.snapshot(),
        downstream,
        watched: Rc::clone(watched),
        started: Instant::now(),
        at: SystemTime::now(),
        route,
        pool: None,
        endpoint: None,
        peer: None,
        received: 0,
        sent: 0,
        reason: None,
        learns: learns && input.is_empty(),
        ended: false,
    };
    let outcome = carried.run(&io, &mut input).await;
    carried.ended = true;
    if let Err(reason) = outcome {
        carried.reason = Some(reason);
        // A reset, so that the client does not take what it has for all there is.
        io.reset();
    }
}

impl Carried {
    async fn run(&mut self, io: &Transport, input: &mut Buffer) -> Result<(), Reason> {
        let unknown = if self.snapshot.redirected { Reason::UnknownDestination } else { Reason::NoRoute };
        let number = self.route.ok_or(unknown)?;
        let worker = &self.downstream.local.worker;
        let route = self.snapshot.routes.route(number).ok_or(Reason::NoRoute)?;
        let cluster = route.backend(worker.random()).ok_or(Reason::NoEndpoint)?;
        let pool = worker.pool_for(cluster, route.direct, &self.downstream)?;
        self.pool = Some(Rc::clone(&pool));
        let tunnel = pool.tunnel(self.downstream.ends).await?;
        self.endpoint = Some(tunnel.address);
        self.peer.clone_from(&tunnel.peer);

        let mut there = Relay::new(io, &tunnel.io, std::mem::take(input));
        let mut back = Relay::new(&tunnel.io, io, Buffer::default());
        if let Some(about) = self.watched.about() {
            about.tunnels();
        }
        self.watched.be_patient();
        let watched = &self.watched;
        let (received, sent) = (&mut self.received, &mut self.sent);
        let (local, original) = (&self.downstream.local, self.downstream.original);
        // Nobody has spoken yet, and it is of interest who will.
        let learns = Cell::new(self.learns);
        let outcome = poll_fn(|cx| {
            let moved = |count| {
                if learns.take() {
                    local.speak_first.forget(original);
                }
                *received += count as u64;
                watched.be_patient();
            };
            let gone = match there.poll(cx, moved) {
                Poll::Ready(Err(Broken::Refused)) => return Poll::Ready(Err(Reason::Reset)),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Reason::ClientGone)),
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            };
            let moved = |count| {
                if learns.take() {
                    local.speak_first.remember(original, Instant::now());
                }
                *sent += count as u64;
                watched.be_patient();
            };
            let come = match back.poll(cx, moved) {
                Poll::Ready(Err(Broken::Refused)) => return Poll::Ready(Err(Reason::ClientGone)),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Reason::Reset)),
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            };
            watched.hold(there.holds() || back.holds());
            if gone && come { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await;
        if outcome.is_err() {
            tunnel.io.reset();
        }
        outcome
    }

    fn route_name(&self) -> &str {
        self.route.and_then(|route| self.snapshot.routes.route(route)).map_or("", |route| route.name.as_str())
    }
}

/// Noted in any case, also when the connection is cut.
impl Drop for Carried {
    fn drop(&mut self) {
        if !self.ended {
            self.reason = Some(match self.watched.order() {
                Order::Cut("drain") => Reason::Stopped,
                Order::Cut("memory") => Reason::MemoryShort,
                _ => Reason::ClientSlow,
            });
        }
        let local = &self.downstream.local;
        let cluster = self.pool.as_ref().map_or("", |pool| pool.cluster.name.as_str());
        let peer = match (&self.downstream.peer, &self.peer) {
            (Some(peer), _) => peer.id.as_str(),
            (None, Some(peer)) => peer,
            (None, None) => "",
        };
        let names = RequestNames { route: self.route_name(), cluster, peer };
        let flag = self.reason.map_or("", Reason::flag);
        local.metrics.tcp(&names, flag, self.received, self.sent);
        let tapped = self.snapshot.taps.are_on();
        if tapped || self.snapshot.access_log.is_some() {
            let entry = Entry {
                started: self.at,
                duration: self.started.elapsed(),
                direction: local.shared.direction,
                listener: &local.shared.name,
                protocol: "TCP",
                reason: self.reason,
                bytes_received: self.received,
                bytes_sent: self.sent,
                route: names.route,
                cluster,
                endpoint: self.endpoint,
                peer,
                ..Entry::of(self.downstream.remote)
            };
            if tapped {
                self.snapshot.taps.tell(&local.worker, &entry, None);
            }
            if let Some(log) = &self.snapshot.access_log {
                local.worker.log(log, &entry);
            }
        }
    }
}
