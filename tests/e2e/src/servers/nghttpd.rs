//! nghttpd, a server that speaks HTTP/2 and nothing else.

use std::path::Path;

use crate::pods::listen_on;
use crate::process::{Process, tool};
use crate::servers::is_listening;
use crate::{eventually, free_port};

/// An nghttpd in plain text, which is spoken to with prior knowledge.
#[derive(Debug)]
pub struct Nghttpd {
    /// The process.
    pub process: Process,
    /// Where it listens on 127.0.0.1.
    pub port: u16,
}

impl Nghttpd {
    /// Starts it with more arguments, serving the files in `folder/htdocs`.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn start(folder: &Path, arguments: &[&str]) -> Self {
        let port = free_port();
        let mut command = tool("nghttpd");
        command.args(["--no-tls", &format!("--address={}", listen_on()), "--htdocs"]).arg(folder.join("htdocs"));
        command.args(arguments).arg(port.to_string());
        let mut process = Process::start("nghttpd", &mut command, folder);
        eventually("nghttpd to serve", || {
            process.still_runs()?;
            is_listening(port)
        });
        Self { process, port }
    }
}
