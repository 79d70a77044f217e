//! HTTP/1, towards the client.

pub(crate) mod server;
