//! The one HTTP client, a small HTTPS server, gRPC over HTTP/2 at both ends, and the one resolver of the house.
//!
//! In: requests with whole bodies, host names; for the server, a socket and a service. Out: responses
//! with whole bodies, addresses; or an error that says where it failed and whether another try may help. Promise: every
//! wait ends, every buffer, pool and cache is bounded, no error shows a query, credentials
//! or headers, and nothing is started before it is needed. Names are resolved in here, never
//! by the C library, for the executable is static.

mod client;
mod connect;
mod connection;
mod error;
mod grpc;
mod https;
mod open;
mod pool;
mod resolver;
mod server;
mod stream;
mod target;

pub use client::{Client, ClientOptions, Streamed};
pub use connect::client_tls;
pub use error::{HttpError, Stage};
pub use grpc::{GrpcClient, GrpcError, GrpcOptions};
pub use https::{HttpAnswer, HttpService, HttpsOptions, serve_https};
pub use open::{GrpcReceiver, GrpcSender, StreamOver};
pub use resolver::{ResolveError, Resolved, ResolvedSrv, Resolver, ResolverOptions, SrvRecord};
pub use server::{GrpcAnswer, GrpcCall, GrpcCode, GrpcServerOptions, GrpcService, GrpcStatus, TlsSource, serve_grpc};
pub use stream::{GrpcAnswers, GrpcMessages, GrpcOpened};
