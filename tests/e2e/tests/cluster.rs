//! The image in pods of a real cluster, beside applications that know nothing of it; one file per part.
//!
//! In: a running cluster with the image, which `cargo xtask cluster test` sees to. Promise: each test has a namespace of
//! its own, so all run at once; nothing is skipped.

#[path = "cluster/api.rs"]
mod api;
#[path = "cluster/injected.rs"]
mod injected;
#[path = "cluster/installation.rs"]
mod installation;
#[path = "cluster/installed.rs"]
mod installed;
#[path = "cluster/manifest.rs"]
mod manifest;
#[path = "cluster/pods.rs"]
mod pods;
#[path = "cluster/roll.rs"]
mod roll;
#[path = "cluster/rollout.rs"]
mod rollout;
#[path = "cluster/workloads.rs"]
mod workloads;
