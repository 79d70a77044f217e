//! The data plane: listeners, routes and clusters.
//!
//! In: HTTP/1.1 connections, plain or mTLS. Out: the same requests at a cluster's
//! endpoints, metrics, and an access log. Promise: bodies are streamed and never held,
//! nothing is shared or locked between workers on a request's path, a message cut short
//! upstream is never a short success downstream, and a reload touches only what changed.
//!
//! # What is changed on the way
//!
//! Between two sidecars an application should see what its peer sent, so little is touched.
//!
//! - Removed: hop-by-hop fields and those that `Connection` names, in both directions; `TE` but for `trailers`; offers
//!   of HTTP/2 (`Upgrade: h2c`). Other upgrades and CONNECT get 501.
//! - Set: `x-forwarded-client-cert: URI=<SPIFFE ID>` from the client's certificate; whatever a client itself claims in
//!   it is removed, on plain listeners too. `Host` for HTTP/1.0 requests that have none, and from the target when that
//!   is a URI. `Date`, if a response has none.
//! - Not added: `Via`, `X-Forwarded-For`, `X-Forwarded-Proto`, `X-Request-Id`. A sidecar is part of its application,
//!   not a hop of its own; the edge adds them. They pass untouched, and the access log tells `x-request-id`.
//! - The names of header fields keep their case, and the path its bytes.
//!
//! # What is refused
//!
//! Refused with 400, before any rule looks at it: heads that two readers may frame differently (`judge`), paths with dot
//! segments (plain, escaped, with parameters, or between escaped slashes), backslashes or NUL. `//` and `%2F` are
//! passed on as they came and are no separators to a route. 431: heads beyond the listener's limits. 408: a request's
//! rest that does not come within `timeouts.request`. 404: no route. 503: no endpoint, no connection, no room. 502: an
//! endpoint that breaks off or breaks the protocol. 504: one that does not answer in time. The reason and Envoy's
//! response flag are in the access log.
//!
//! # Timeouts
//!
//! `headerTimeout` bounds TLS handshakes and request heads; `idleTimeout` rests between requests and, within a request,
//! how long a client may neither send what is missing nor take what there is; `timeouts.request` the time to an
//! answer's headers; `connectTimeout` each try to connect. A response under way has no limit of its own: it ends with
//! its endpoint or its client.
//!
//! # A stop
//!
//! Inbound closes its sockets at once, serves what waits in the backlog, and ends each connection after the request
//! under way. Outbound serves on, new connections too, until the application has no connection open any more. What
//! lives longer is cut just before the deadline, and counted.

mod access_log;
mod balance;
mod body;
mod buffer;
mod cluster;
mod component;
mod connection;
mod dial;
mod error;
mod exchange;
mod h1;
mod h2;
mod headers;
mod judge;
mod listener;
mod metrics;
mod pool;
mod respond;
mod route;
mod snapshot;
mod socket;
mod tcp;
mod tls;
mod transport;
mod upstream;
mod watch;
mod worker;

pub use component::components;
#[doc(hidden)]
pub use route::fuzz_match;
