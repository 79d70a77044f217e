//! nginx, an ordinary upstream.

use std::fs;
use std::path::Path;

use crate::pods::listen_on;
use crate::process::{Process, tool};
use crate::servers::is_listening;
use crate::{eventually, free_port};

/// An nginx in the foreground, with one `server` block.
#[derive(Debug)]
pub struct Nginx {
    /// The process.
    pub process: Process,
    /// `http://127.0.0.1:PORT`.
    pub address: String,
    /// The port alone.
    pub port: u16,
}

impl Nginx {
    /// Starts it with `locations` inside its server block, and waits until it serves.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn start(folder: &Path, locations: &str) -> Self {
        Self::start_with(folder, "", "", locations)
    }

    /// As [`Nginx::start`], with more words behind its `listen` (such as `http2`, with which `request` cannot ask
    /// it) and more settings in its `http` block.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn start_with(folder: &Path, listen: &str, settings: &str, locations: &str) -> Self {
        let port = free_port();
        let base = folder.join("nginx");
        fs::create_dir_all(&base).expect("the test's folder can be written");
        let base_text = base.display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {base_text}/{kind};"))
            .join(" ");
        let text = format!(
            "daemon off; worker_processes 1; error_log stderr; pid {base_text}/nginx.pid;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log {base_text}/access.log; {temporary} {settings}\n\
             server {{ listen {}:{port} {listen}; {locations} }} }}\n",
            listen_on()
        );
        let config = base.join("nginx.conf");
        fs::write(&config, text).expect("the test's folder can be written");
        let process = Process::start("nginx", tool("nginx").arg("-p").arg(&base).arg("-c").arg(&config), folder);
        let mut nginx = Self { process, address: format!("http://127.0.0.1:{port}"), port };
        eventually("nginx to serve", || {
            nginx.process.still_runs()?;
            is_listening(port)
        });
        nginx
    }
}
