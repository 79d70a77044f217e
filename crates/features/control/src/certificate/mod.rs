//! The webhook's certificate: whose it is, and who is told to trust it.

mod authorities;
mod keeper;
mod trust;

pub(crate) use keeper::{Keeper, Shown};
