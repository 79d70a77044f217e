//! HTTP/2, on both sides.

pub(crate) mod headers;
pub(crate) mod server;
