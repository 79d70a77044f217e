//! HTTP/1.0 and 1.1 ([RFC 9112]): heads, framing and bodies.
//!
//! Promise: one reading only. Whatever the RFC lets a recipient mend is refused where two
//! recipients may mend it differently: bare line feeds, folded lines, blanks before a colon,
//! lengths that repeat or come with a coding.
//!
//! [RFC 9112]: https://www.rfc-editor.org/rfc/rfc9112

mod body;
mod error;
mod framing;
mod parse;
mod target;
mod write;

pub use body::{BodyDecoder, BodyError, Decoded, is_forbidden_trailer};
pub use error::HeadError;
pub use framing::{Framing, persists, request_framing, response_framing};
pub use parse::{Limits, Parsed, is_field_name, is_field_value, parse_fields, parse_request, parse_response};
pub use target::{Target, authority, check_target, is_authority};
pub use write::{CHUNK_END, write_chunk_head, write_last_chunk, write_request_head, write_response_head};

#[cfg(test)]
mod tests;
