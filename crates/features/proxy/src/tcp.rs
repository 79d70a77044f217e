//! Connections that are carried as they come.
//!
//! In: a client's connection, and the route it takes. Out: the same bytes at an endpoint, and
//! back. Promise: each direction ends when its sender ends it; what breaks off is seen by the
//! other side as broken off; bytes are counted and never looked at.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Instant, SystemTime};

use outrigger_wire::h1::{BodyDecoder, Framing};

use crate::access_log::Entry;
use crate::body::{Broken, Sink, Source, poll_pump};
use crate::buffer::Buffer;
use crate::connection::Downstream;
use crate::error::Reason;
use crate::metrics::RequestNames;
use crate::pool::Pool;
use crate::snapshot::LocalSnapshot;
use crate::transport::{Output, Transport};
use crate::upstream::TRAILER_LIMITS;
use crate::watch::{Order, Watched};

/// A connection under way, and what is noted of it at its end.
struct Relay {
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
    ended: bool,
}

/// Carries a connection to its end. `input` is what was read already.
pub(crate) async fn relay(
    downstream: Rc<Downstream>,
    watched: &Rc<Watched>,
    io: Transport,
    mut input: Buffer,
    route: Option<u32>,
) {
    watched.begin(Instant::now());
    watched.handled.set(watched.handled.get() + 1);
    let mut relay = Relay {
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
        ended: false,
    };
    let outcome = relay.run(&io, &mut input).await;
    relay.ended = true;
    if let Err(reason) = outcome {
        relay.reason = Some(reason);
        // A reset, so that the client does not take what it has for all there is.
        io.reset();
    }
}

impl Relay {
    async fn run(&mut self, io: &Transport, input: &mut Buffer) -> Result<(), Reason> {
        let number = self.route.ok_or(Reason::NoRoute)?;
        let worker = &self.downstream.local.worker;
        let route = self.snapshot.routes.route(number).ok_or(Reason::NoRoute)?;
        let cluster = route.backend(worker.random()).ok_or(Reason::NoEndpoint)?;
        let pool = worker.pool_toward(cluster, self.downstream.original)?;
        self.pool = Some(Rc::clone(&pool));
        let tunnel = pool.tunnel(self.downstream.ends).await?;
        self.endpoint = Some(tunnel.address);
        self.peer.clone_from(&tunnel.peer);

        let (mut from_client, mut from_endpoint) = (until_close(), until_close());
        let (mut to_client, mut to_endpoint) = (Output::default(), Output::default());
        let mut answer = Buffer::large();
        input.enlarge();
        let mut there = (Source::h1(io, input, &mut from_client), Sink::tunnel(&tunnel.io, &mut to_endpoint), false);
        let mut back =
            (Source::h1(&tunnel.io, &mut answer, &mut from_endpoint), Sink::tunnel(io, &mut to_client), false);
        self.watched.be_patient();
        let outcome = poll_fn(|cx| {
            if !there.2 {
                let moved = |count| {
                    self.received += count as u64;
                    self.watched.be_patient();
                };
                match poll_pump(cx, &mut there.0, &mut there.1, moved, &mut None) {
                    Poll::Ready(Ok(())) => there.2 = true,
                    Poll::Ready(Err(Broken::Refused)) => return Poll::Ready(Err(Reason::Reset)),
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Reason::ClientGone)),
                    Poll::Pending => {}
                }
            }
            if !back.2 {
                let moved = |count| {
                    self.sent += count as u64;
                    self.watched.be_patient();
                };
                match poll_pump(cx, &mut back.0, &mut back.1, moved, &mut None) {
                    Poll::Ready(Ok(())) => back.2 = true,
                    Poll::Ready(Err(Broken::Refused)) => return Poll::Ready(Err(Reason::ClientGone)),
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Reason::Reset)),
                    Poll::Pending => {}
                }
            }
            if there.2 && back.2 { Poll::Ready(Ok(())) } else { Poll::Pending }
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
impl Drop for Relay {
    fn drop(&mut self) {
        if !self.ended {
            self.reason = Some(match self.watched.order() {
                Order::Cut("drain") => Reason::Stopped,
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
        if let Some(log) = &self.snapshot.access_log {
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
            local.worker.log(log, &entry);
        }
    }
}

fn until_close() -> BodyDecoder {
    BodyDecoder::new(Framing::UntilClose, TRAILER_LIMITS)
}
