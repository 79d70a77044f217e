//! The admin API and the kubelet's health port.
//!
//! In: HTTP/1.1 on a loopback port or a unix socket, and probes from outside the pod. Out:
//! what is going on, and a few levers. Promise: no secret is shown, a web page somewhere
//! else can pull no lever and read nothing, and clients cannot use up our memory.

mod api;
mod guard;
mod health;
mod routes;
mod server;

pub use routes::{AdminBody, AdminHandler, AdminRequest, AdminResponse, AdminRoute, AdminRoutes, AdminStream};

pub(crate) use api::Api;
pub(crate) use health::{Health, Stage, timestamp};
pub(crate) use server::{BindError, Endpoint, Servers};
