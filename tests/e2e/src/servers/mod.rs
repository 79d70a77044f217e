//! The servers around an Outrigger, real ones.
//!
//! In: a folder and a config. Out: guards of running servers. Promise: each returns once
//! it serves, on free ports, and ends with its guard.

mod bao;
mod cluster;
mod databases;
mod envoy;
mod nghttpd;
mod nginx;
mod otelcol;
mod prometheus;
mod python;

use std::net::{Ipv4Addr, TcpStream};

use anyhow::{Context, Result};

pub use bao::Bao;
pub use cluster::{ApiServer, KubeNamespace, outrigger_image};
pub use databases::{Mariadb, Postgres, Redis, mariadb, psql, redis};
pub use envoy::Envoy;
pub use nghttpd::Nghttpd;
pub use nginx::Nginx;
pub use otelcol::{Otelcol, Span};
pub use prometheus::Prometheus;
pub use python::{peer_server, run_peer, start_peer};

/// Whether something listens on a port of this machine.
///
/// # Errors
/// When nothing does.
pub fn is_listening(port: u16) -> Result<()> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map(drop).with_context(|| format!("nothing listens on {port}"))
}
