//! Bytes on the wire: what a data plane must read and write itself, without any I/O.
//!
//! In: bytes as they came, in whatever pieces. Out: heads, bodies, names and addresses, or
//! a precise reason why not. Promise: nothing that two readers may understand differently is
//! let through ([RFC 9112], section 11), every input has limits, and in steady state nothing
//! is allocated.
//!
//! [RFC 9112]: https://www.rfc-editor.org/rfc/rfc9112

mod bytes;
pub mod coding;
pub mod frames;
pub mod h1;
pub mod head;
pub mod hello;
pub mod path;
pub mod pattern;
pub mod preamble;
pub mod protobuf;
pub mod rate_limit_service;
pub mod sniff;
pub mod xds;
