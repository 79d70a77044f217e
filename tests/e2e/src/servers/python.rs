//! Clients and servers written in Python, for libraries that have no program of their own.
//!
//! In: the name of a file in `tests/e2e/peers` and its arguments. Out: its process, or its
//! output. Promise: they run in the environment that `cargo xtask setup` made, with the
//! versions pinned there.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::eventually;
use crate::pods::listen_on;
use crate::process::{Process, repository, run};
use crate::servers::is_listening;

fn python(file: &str) -> Command {
    let mut command = Command::new(repository().join("target/tools/python/bin/python"));
    command.env("PYTHONUNBUFFERED", "1").env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("LISTEN_ON", listen_on().to_string());
    command.arg(repository().join("tests/e2e/peers").join(file));
    command
}

/// Starts a server that takes its port as its first argument, and waits until it listens.
///
/// # Panics
/// When it does not serve.
#[track_caller]
pub fn peer_server(file: &str, port: u16, folder: &Path) -> Process {
    let mut process = Process::start(file, python(file).arg(port.to_string()), folder);
    eventually(&format!("{file} to serve"), || {
        process.still_runs()?;
        is_listening(port)
    });
    process
}

/// Starts a client and does not wait for it.
///
/// # Panics
/// When it cannot be started.
#[track_caller]
pub fn start_peer(file: &str, arguments: &[&str], folder: &Path) -> Process {
    Process::start(file, python(file).args(arguments), folder)
}

/// Runs a client to its end; what it wrote.
///
/// # Errors
/// When it fails, with all it wrote.
pub fn run_peer(file: &str, arguments: &[&str]) -> Result<String> {
    run(python(file).args(arguments))
}
