//! HTTP/2, on both sides.

pub(crate) mod guard;
pub(crate) mod headers;
pub(crate) mod linger;
pub(crate) mod names;
pub(crate) mod server;
pub(crate) mod wire;
