//! The admin API and the kubelet's health port.

mod routes;

pub use routes::{AdminHandler, AdminRequest, AdminResponse, AdminRoute, AdminRoutes};
