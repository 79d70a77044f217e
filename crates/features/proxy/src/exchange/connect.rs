//! CONNECT: a tunnel to a host and port that the client names.
//!
//! In: a CONNECT of either version of HTTP. Out: bytes both ways, with an endpoint of the cluster
//! that the listener's `connectRoutes` name, or the same request at one that is a proxy itself.
//! Promise: nothing is connected to that no route allows, and what is not the network's (loopback,
//! link-local) only where a route names that very address; a connection on which a tunnel was
//! refused is not used again, for bytes of it may have been sent already.

use std::net::{IpAddr, SocketAddr};

use outrigger_config::ClusterProtocol;
use outrigger_wire::h1::{BodyDecoder, Framing};
use outrigger_wire::head::{Head, Version};

use super::{After, Exchange, Incoming};
use crate::body::{Sink, Source};
use crate::buffer::Buffer;
use crate::error::Reason;
use crate::pool::Way;
use crate::transport::Output;
use crate::upstream::{Ask, TRAILER_LIMITS};
use crate::{headers, judge};

impl Exchange {
    /// Answers a CONNECT.
    pub(super) async fn connect(&mut self, incoming: &mut Incoming<'_>, response: &mut Head) -> Result<After, Reason> {
        if !self.snapshot.routes.takes_connect() {
            return Err(Reason::Unsupported);
        }
        if !matches!(incoming.framing, Framing::Empty) {
            return Err(Reason::BadRequest("CONNECT has no body"));
        }
        let (host, port) = judge::authority(incoming.request)?;
        let to = self.snapshot.routes.connect(&host, port).ok_or(Reason::NoRoute)?;
        self.route = Some(to.route);
        let route = self.snapshot.routes.route(to.route).ok_or(Reason::NoRoute)?;
        self.watched.set_deadline(route.timeout.and_then(|timeout| self.started.checked_add(timeout)));
        let worker = &self.downstream.local.worker;
        let cluster = route.backend(worker.random()).ok_or(Reason::NoEndpoint)?;
        let address =
            if cluster.config.original_destination { Some(destination(&host, port, to.named)?) } else { None };
        let pool = worker.pool_toward(cluster, false, address)?;
        self.pool = Some(pool.clone());
        if to.forward {
            let request = &mut *incoming.request;
            headers::strip_hop_by_hop(request);
            headers::via(request, &self.snapshot.forwarded, request.version());
            let target = request.target().to_owned();
            request.set("Host", target.as_bytes());
            request.set_version(Version::Http11);
            let way = if pool.cluster.config.protocol == ClusterProtocol::Http2 { Way::Shared } else { Way::Own };
            return Ok(self.send(&pool, way, incoming, Framing::Empty, Ask::Connect, response).await?.after());
        }
        let tunnel = self.in_time(Box::pin(pool.tunnel(self.downstream.ends)).as_mut()).await??;
        self.endpoint = Some(tunnel.address);
        self.endpoint_peer.clone_from(&tunnel.peer);
        self.watched.set_deadline(None);
        response.clear();
        response.set_version(Version::Http11);
        response.set_status(200);
        let (mut output, mut input) = (Output::default(), Buffer::default());
        let mut until_close = BodyDecoder::new(Framing::UntilClose, TRAILER_LIMITS);
        let up = Sink::tunnel(&tunnel.io, &mut output);
        self.carry(up, Source::h1(&tunnel.io, &mut input, &mut until_close), incoming, response).await
    }
}

/// The address that is asked for, if it is one that may be connected to.
fn destination(host: &str, port: u16, named: bool) -> Result<SocketAddr, Reason> {
    let Ok(address) = host.parse::<IpAddr>() else {
        return Err(Reason::Forbidden("this route connects to addresses, not to names"));
    };
    let address = address.to_canonical();
    let is_here = address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || match address {
            IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
    if is_here && !named {
        return Err(Reason::Forbidden("this route does not connect to loopback, link-local and group addresses"));
    }
    Ok(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_networks_must_be_named() {
        for (host, named, allowed) in [
            ("192.0.2.1", false, true),
            ("2001:db8::1", false, true),
            ("127.0.0.1", false, false),
            ("127.9.9.9", false, false),
            ("127.0.0.1", true, true),
            ("::1", false, false),
            ("::ffff:127.0.0.1", false, false),
            ("0.0.0.0", false, false),
            ("::", false, false),
            ("169.254.169.254", false, false),
            ("fe80::1", false, false),
            ("224.0.0.1", false, false),
            ("255.255.255.255", false, false),
            ("shop.example", true, false),
            ("127.1", false, false),
            ("2130706433", false, false),
        ] {
            assert_eq!(destination(host, 80, named).is_ok(), allowed, "{host} {named}");
        }
    }
}
