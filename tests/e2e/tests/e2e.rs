//! The built executable, end to end, against real servers; one file per part.
//!
//! In: `OUTRIGGER_BIN` (else what cargo built last) and what `cargo xtask setup`
//! installed. Promise: nothing is skipped; what is missing fails.

#[path = "e2e/access_log.rs"]
mod access_log;
#[path = "e2e/admin.rs"]
mod admin;
#[path = "e2e/authority.rs"]
mod authority;
#[path = "e2e/cli.rs"]
mod cli;
#[path = "e2e/compression.rs"]
mod compression;
#[path = "e2e/connections.rs"]
mod connections;
#[path = "e2e/controller.rs"]
mod controller;
#[path = "e2e/curl.rs"]
mod curl;
#[path = "e2e/databases.rs"]
mod databases;
#[path = "e2e/demo.rs"]
mod demo;
#[path = "e2e/discovery.rs"]
mod discovery;
#[path = "e2e/envoy.rs"]
mod envoy;
#[path = "e2e/faults.rs"]
mod faults;
#[path = "e2e/grpc.rs"]
mod grpc;
#[path = "e2e/grpc_tonic.rs"]
mod grpc_tonic;
#[path = "e2e/guard.rs"]
mod guard;
#[path = "e2e/handover.rs"]
mod handover;
#[path = "e2e/harness.rs"]
mod harness;
#[path = "e2e/http2.rs"]
mod http2;
#[path = "e2e/inject.rs"]
mod inject;
#[path = "e2e/install.rs"]
mod install;
#[path = "e2e/intercept.rs"]
mod intercept;
#[path = "e2e/kubernetes.rs"]
mod kubernetes;
#[path = "e2e/metrics.rs"]
mod metrics;
#[path = "e2e/openssl.rs"]
mod openssl;
#[path = "e2e/page.rs"]
mod page;
#[path = "e2e/profiles.rs"]
mod profiles;
#[path = "e2e/published.rs"]
mod published;
#[path = "e2e/rate_limit.rs"]
mod rate_limit;
#[path = "e2e/reload.rs"]
mod reload;
#[path = "e2e/resilience.rs"]
mod resilience;
#[path = "e2e/rollout.rs"]
mod rollout;
#[path = "e2e/routing.rs"]
mod routing;
#[path = "e2e/sessions.rs"]
mod sessions;
#[path = "e2e/supervise.rs"]
mod supervise;
#[path = "e2e/tap.rs"]
mod tap;
#[path = "e2e/tls.rs"]
mod tls;
#[path = "e2e/top.rs"]
mod top;
#[path = "e2e/traces.rs"]
mod traces;
#[path = "e2e/trust.rs"]
mod trust;
#[path = "e2e/websocket.rs"]
mod websocket;
#[path = "e2e/workload_api.rs"]
mod workload_api;
