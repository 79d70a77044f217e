//! The data plane: listeners, routes and clusters.
//!
//! In: connections, plain or mTLS, that speak HTTP/1, HTTP/2 or anything else. Out: the same
//! requests or bytes at a cluster's endpoints, metrics, and an access log. Promise: bodies
//! are streamed and never held, nothing is shared or locked between workers on a request's
//! path, a message cut short upstream is never a short success downstream, and a reload
//! touches only what changed.
//!
//! # What is spoken
//!
//! A listener with `protocol: http` serves HTTP/1.0, HTTP/1.1 and HTTP/2 on one port: ALPN or the first bytes tell.
//! `auto` adds everything else: what does not begin like HTTP is carried as TCP, and so is a client that stays silent
//! for `detectTimeout`, for then the server speaks first; that is remembered for five minutes, for each destination.
//! `tcp` carries bytes, and `tls` carries TLS undecrypted, routed by the name the client asks for. With
//! `mode: permissive`, `auto` and `tcp` know a sidecar by the protocols it offers (ALPN); other TLS is the application's
//! own and is carried as it comes. Upgrades (WebSocket, also by HTTP/2's extended CONNECT) become tunnels once the
//! endpoint agrees. So does CONNECT where the listener's `connectRoutes` allow it, to an endpoint of ours or through a
//! proxy behind us; else 501.
//!
//! Towards a cluster HTTP/2 is spoken for gRPC, which needs it, and HTTP/1.1 for everything else, unless the cluster says
//! otherwise. Redirected connections are spoken as their clients chose: HTTP/2 stays HTTP/2 where the request goes to the
//! destination that the client had in mind, through two Outriggers too, which tell one another (`outrigger-protocol`).
//! Two Outriggers know one another by ALPN names of their own; when many requests are under way between them,
//! those that find no kept connection share a few HTTP/2 connections (`pool.multiplexAbove`). Names of header fields keep
//! their case and order over these, trailers' names and reason phrases do not. Towards a cluster with `protocol: http2` an
//! upgrade is an extended CONNECT where the endpoint takes it, else it gets an HTTP/1.1 connection of its own.
//!
//! # What is changed on the way
//!
//! Between two sidecars an application should see what its peer sent, so little is touched.
//!
//! - Removed: hop-by-hop fields and those that `Connection` names, in both directions; `TE` but for `trailers`; offers
//!   of HTTP/2 (`Upgrade: h2c`).
//! - Removed, too: trailers that frame, route, authenticate or tell who called; a length with 204; what an HTTP/1.0 client
//!   expects. `Max-Forwards` of OPTIONS and TRACE is counted down, and at 0 the answer is ours.
//! - Set: `x-forwarded-client-cert: By=<our SPIFFE ID>;Hash=<SHA-256>;URI=<SPIFFE ID>` from the client's certificate;
//!   whatever a client itself claims in it is removed, on plain listeners too (`forwarded.clientCert`). `Host` for HTTP/1.0 requests that have none, and from the target when that
//!   is a URI. `Date`, if a response has none. The framing that the receiver's protocol needs.
//! - Added only where the listener's `forwarded` says so: `Via`, `X-Forwarded-For`, `X-Forwarded-Proto`.
//! - Paths are normalised by the listener's `path` before routes look at them, and go on so. The query keeps its bytes,
//!   the names of header fields their case and order. Interim responses (100, 103) and trailers pass.
//! - Changed by a route's `filters`, after all of that: fields, host and path, which is normalised again. What frames a
//!   message, belongs to one connection or tells who called is out of their reach. Our own answers are changed like an
//!   application's.
//!
//! # What is refused
//!
//! Refused with 400, before any rule looks at it: heads that two readers may frame or split differently (bare line
//! feeds, folded lines, blanks before a colon, lengths that repeat or come with a coding), paths that lead above the
//! root or that only some readers take for dot segments, backslashes, NUL. What is not HTTP at all is closed without an
//! answer. 414, 431: targets and heads beyond the listener's limits; 413: bodies. 408: a request's rest that does not come within
//! `timeouts.request`. 429: a rate limit, ours or the rate limit service's; 500 where that one does not answer and must. 404: no route. 503: no endpoint, no connection, no room, an overload; with
//! `X-Envoy-Overloaded` where holding back helps. 502: an endpoint that breaks off or
//! breaks the protocol. 504: one that does not answer in time. A gRPC client over HTTP/2 gets 200 and a gRPC status
//! instead, as gRPC itself maps them (mostly `UNAVAILABLE`), with the reason as its message. The reason and Envoy's
//! response flag are in the access log. A client that floods its HTTP/2 connection is cut off, named in a warning, and counted in
//! `outrigger_downstream_connections_cut_total{reason="http2_flood"}`; an endpoint that does so likewise in
//! `outrigger_upstream_connections_cut_total`, and its requests get 502.
//!
//! # What is bounded
//!
//! Per listener `limits`, over all of them `proxy.limits`. Memory for bytes on their way is counted per worker: when a
//! worker's share is nearly in use new requests get 503, beyond it those are cut who hold it longest without going on.
//! Nobody waits for memory, so nobody can wait for ever.
//!
//! # Timeouts
//!
//! `headerTimeout` bounds TLS handshakes, protocol detection and request heads; `bodyTimeout` how long a client may let a
//! request's body or an answer wait, which trickles do not renew; `idleTimeout` rests between requests and in tunnels;
//! `timeouts.request` the time to an answer's headers, `timeouts.backendRequest` one try's, `timeouts.idle` a rest within an
//! answer;
//! `connectTimeout` each try to connect. A response under way has no other limit: it ends with its endpoint or its
//! client.
//!
//! # Retries
//!
//! A route's `retry` sends a request again that failed, never once a byte of its answer went to the client, and within
//! the cluster's `retryConstraint`. Without it only a kept connection that turns out closed is replaced.
//!
//! # A stop
//!
//! Inbound closes its sockets at once, serves what waits in the backlog (unless the sockets were handed to the next
//! process), gives a connection at rest a moment for a last request, and ends each after the request under way: HTTP/1
//! with `Connection: close`, HTTP/2 with GOAWAY twice. Outbound serves on, new connections too, until the application has
//! no connection open any more. What lives longer is cut just before the deadline, and counted.

mod access_log;
mod ahead;
mod ask;
mod balance;
mod body;
mod breakers;
mod buffer;
mod care;
mod cluster;
mod coded;
mod component;
mod connection;
mod connections;
mod dial;
mod error;
mod exchange;
mod global_limit;
mod h1;
mod h2;
mod headers;
mod health;
mod judge;
mod limits;
mod listener;
mod members;
mod metrics;
mod mirror;
mod on_demand;
mod origination;
mod outlier;
mod permissive;
mod pool;
mod probe;
mod race;
mod relay;
mod resilience;
mod respond;
mod route;
mod session;
mod shared;
mod snapshot;
mod socket;
mod sources;
mod speaks_first;
mod splice;
mod state;
mod tap;
mod tapped;
mod tcp;
mod tls;
mod transport;
mod upgrade;
mod upstream;
mod watch;
mod worker;

pub use component::components;
