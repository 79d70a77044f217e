//! HTTP/2, on both sides.

pub(crate) mod headers;
pub(crate) mod names;
pub(crate) mod server;
