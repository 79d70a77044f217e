//! Envoy, the other end of mTLS.

use std::fs;
use std::path::Path;

use crate::eventually;
use crate::process::{Process, tool};
use crate::servers::is_listening;

/// An Envoy with a static config.
#[derive(Debug)]
pub struct Envoy {
    /// The process.
    pub process: Process,
}

impl Envoy {
    /// Starts it with these `static_resources`, of which a listener is on `port`.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn start(folder: &Path, port: u16, static_resources: &str) -> Self {
        let config = folder.join("envoy.yaml");
        let text = format!("static_resources:\n{static_resources}");
        fs::write(&config, text).expect("the test's folder can be written");
        let mut command = tool("envoy");
        // Several run at once; each must have shared memory of its own.
        command.args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warn", "-c"]).arg(&config);
        let mut process = Process::start("envoy", &mut command, folder);
        eventually("Envoy to serve", || {
            process.still_runs()?;
            is_listening(port)
        });
        Self { process }
    }
}
