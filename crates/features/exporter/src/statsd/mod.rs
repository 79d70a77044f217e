//! StatsD: from datagrams to series of the registry.
//!
//! In: a UDP socket. Out: counters, gauges and histograms under Prometheus names.
//! Promise: `parse` is pure, `series` alone touches the registry, `receiver` alone
//! touches the socket.

mod drops;
mod name;
mod parse;
mod receiver;
mod series;

pub use parse::{Refusal, Sample, Tags, Value, parse_datagram};

pub(crate) use receiver::Receiver;
pub(crate) use series::Series;
