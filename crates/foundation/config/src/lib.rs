//! The one typed config model of Outrigger, and everything that reads or prints it.
//!
//! In: a YAML file. Out: a [`Config`], or [`Diagnostics`] that name every mistake of the
//! file at once with line, column and remedy. Promise: what is accepted here can be run;
//! what is printed from here holds no secret.

mod check;
mod diagnostic;
mod diff;
mod judge;
mod load;
mod model;
mod path;
mod print;
mod render;
mod schema;
mod secret;
mod source;
mod tree;
mod units;

pub use diagnostic::{Diagnostic, Diagnostics, Related, Severity};
pub use diff::{Change, diff};
pub use judge::is_untouched_field;
#[doc(hidden)]
pub use load::parse_whole;
pub use load::{Loaded, load, parse};
pub use model::*;
pub use path::{ConfigPath, Position, Positions};
pub use print::to_yaml;
pub use schema::{json_schema, markdown_reference};
pub use secret::{MASK, Secret};
pub use units::{
    ByteSize, Duration, FileMode, HostPort, InvalidScalar, ListenAddress, LogFilter, LogFormat, Name, SpiffeId,
    SpiffePattern, SrvName, TrustDomain, WorkloadEndpoint,
};

/// What formats and filters of the access log are made of.
pub mod log_line {
    pub use crate::units::{Attribute, Fact, Facts, LogField, LogOperator, LogPiece, TimePiece};
}
