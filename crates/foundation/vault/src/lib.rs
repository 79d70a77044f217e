//! Vault and OpenBao over their HTTP API: requests, and a session that lives as long as it is needed.
//!
//! In: where Vault is, what we log in with, requests. Out: its answers as JSON, or an error that says who has to mend what.
//! Promise: each request ends in time and within a size; a token that was issued to us is given back, one that was
//! given to us is not; nothing secret is in an error or a log. What secrets, leases or certificates are is for its users
//! to know.

mod client;
mod error;
mod login;
pub mod member;
mod session;

pub use client::{Answer, Call, Observer, VaultClient, VaultSettings};
pub use error::Error;
pub use session::{Session, given_token};
