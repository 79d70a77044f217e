//! Databases, whose protocols a proxy carries without understanding them.
//!
//! Promise: each has its data in the test's folder and none of what protects data from a
//! power cut; where it refuses to run as root it runs as `nobody`.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::certificates::Leaf;
use crate::pods::listen_on;
use crate::process::{Process, run, tool};
use crate::servers::is_listening;
use crate::{eventually, free_port};

/// The user `nobody` and its group on every Linux.
const NOBODY: u32 = 65_534;

/// A PostgreSQL server, with TLS on offer when it was given a certificate.
#[derive(Debug)]
pub struct Postgres {
    /// The process.
    pub process: Process,
    /// Where it listens: on 127.0.0.1, in a pod on all addresses.
    pub port: u16,
    data: PathBuf,
}

impl Postgres {
    /// Makes a database and serves it.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn start(folder: &Path, certificate: Option<&Leaf>) -> Self {
        let data = private_folder(folder, "postgres");
        run(as_nobody("initdb").arg("-D").arg(&data).args([
            "--no-sync",
            "--auth=trust",
            "--username=postgres",
            "--no-locale",
            "--encoding=UTF8",
        ]))
        .expect("initdb makes a database");
        let mut settings = format!(
            "listen_addresses = '{}'\nunix_socket_directories = '{}'\nfsync = off\nshared_buffers = 16MB\n",
            listen_on(),
            data.display()
        );
        // Through a sidecar its clients are the pod itself, which is not 127.0.0.1.
        fs::write(data.join("pg_hba.conf"), "host all all all trust\n").expect("the test's folder can be written");
        if let Some(leaf) = certificate {
            // The key must belong to the user the server runs as.
            for (from, to) in [(&leaf.certificate, "server.crt"), (&leaf.key, "server.key")] {
                let to = data.join(to);
                fs::copy(from, &to).expect("the test's folder can be written");
                give_to_nobody(&to, 0o600);
            }
            settings.push_str("ssl = on\n");
        }
        fs::write(data.join("postgresql.auto.conf"), settings).expect("the test's folder can be written");
        let port = free_port();
        Self { process: Self::serve(folder, &data, port), port, data }
    }

    /// Stops it at once, open connections too, and starts it again where it was.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn restart(&mut self, folder: &Path) {
        // SIGQUIT does not wait for clients.
        self.process.signal(rustix::process::Signal::QUIT);
        self.process.wait(std::time::Duration::from_secs(30));
        self.process = Self::serve(folder, &self.data, self.port);
    }

    fn serve(folder: &Path, data: &Path, port: u16) -> Process {
        let mut command = as_nobody("postgres");
        command.arg("-D").arg(data).args(["-p", &port.to_string()]);
        let mut process = Process::start("postgres", &mut command, folder);
        eventually("PostgreSQL to serve", || {
            process.still_runs()?;
            psql(here(port), "sslmode=disable", "select 1")
        });
        process
    }
}

/// What `psql` prints for a command (SQL or one of its own).
///
/// # Errors
/// When it fails, with what it says.
pub fn psql(at: SocketAddr, how: &str, command: &str) -> Result<String> {
    let (host, port) = (at.ip(), at.port());
    let place = format!("host={host} port={port} user=postgres dbname=postgres connect_timeout=10 {how}");
    run(tool("psql").args([&place, "--no-psqlrc", "-Atq", "-v", "ON_ERROR_STOP=1", "-c", command]))
}

/// A MariaDB server, which speaks first on every connection.
#[derive(Debug)]
pub struct Mariadb {
    /// The process.
    pub process: Process,
    /// Where it listens: on 127.0.0.1, in a pod on all addresses.
    pub port: u16,
    data: PathBuf,
}

impl Mariadb {
    /// Makes a database and serves it.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn start(folder: &Path) -> Self {
        let data = private_folder(folder, "mariadb");
        run(as_nobody("mariadb-install-db")
            .args(["--no-defaults", "--auth-root-authentication-method=normal"])
            .args(["--skip-test-db", "--innodb-log-file-size=8M", &format!("--datadir={}", data.display())]))
        .expect("mariadb-install-db makes a database");
        let port = free_port();
        Self { process: Self::serve(folder, &data, port), port, data }
    }

    /// Kills it, and starts it again where it was.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn restart(&mut self, folder: &Path) {
        self.process.kill();
        self.process = Self::serve(folder, &self.data, self.port);
    }

    fn serve(folder: &Path, data: &Path, port: u16) -> Process {
        let mut command = as_nobody("mariadbd");
        // Through a sidecar its clients are not `localhost`, whom alone it knows.
        command
            .args(["--no-defaults", "--skip-grant-tables", "--skip-networking=0", "--innodb-log-file-size=8M"])
            .args([
                &format!("--bind-address={}", listen_on()),
                "--innodb-buffer-pool-size=16M",
                "--innodb-flush-log-at-trx-commit=0",
                &format!("--port={port}"),
                &format!("--datadir={}", data.display()),
                &format!("--socket={}", data.join("socket").display()),
            ]);
        let mut process = Process::start("mariadbd", &mut command, folder);
        eventually("MariaDB to serve", || {
            process.still_runs()?;
            mariadb(here(port), "select 1")
        });
        process
    }
}

/// What `mariadb` prints for a statement.
///
/// # Errors
/// When it fails, with what it says.
pub fn mariadb(at: SocketAddr, statement: &str) -> Result<String> {
    let (host, port) = (format!("--host={}", at.ip()), format!("--port={}", at.port()));
    let how = ["--no-defaults", "--protocol=TCP", "--user=root", "--connect-timeout=10", "--quick"];
    run(tool("mariadb").args(how).args([
        &host,
        &port,
        "--database=mysql",
        "--skip-column-names",
        "--batch",
        "--execute",
        statement,
    ]))
}

/// A Redis server.
#[derive(Debug)]
pub struct Redis {
    /// The process.
    pub process: Process,
    /// Where it listens: on 127.0.0.1, in a pod on all addresses.
    pub port: u16,
}

impl Redis {
    /// Starts it, empty.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn start(folder: &Path) -> Self {
        let port = free_port();
        Self { process: Self::serve(folder, port), port }
    }

    /// Kills it, and starts it again where it was, empty.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn restart(&mut self, folder: &Path) {
        self.process.kill();
        self.process = Self::serve(folder, self.port);
    }

    fn serve(folder: &Path, port: u16) -> Process {
        let mut command = tool("redis-server");
        command.args([
            "--bind",
            &listen_on().to_string(),
            "--protected-mode",
            "no",
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        command.args(["--port", &port.to_string(), "--dir"]);
        let mut process = Process::start("redis-server", command.arg(folder), folder);
        eventually("Redis to serve", || {
            process.still_runs()?;
            is_listening(port)
        });
        process
    }
}

/// What `redis-cli` prints for a command.
///
/// # Errors
/// When it fails, or Redis answers with an error.
pub fn redis(at: SocketAddr, command: &[&str]) -> Result<String> {
    let place = ["-h", &at.ip().to_string(), "-p", &at.port().to_string()];
    let printed = run(tool("redis-cli").arg("-e").args(place).args(command))?;
    if printed.starts_with("ERR") { bail!("{command:?}: {printed}") } else { Ok(printed) }
}

/// A port of the machine, or pod, that we are in.
fn here(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A folder that `nobody` may reach and only it may read.
fn private_folder(folder: &Path, name: &str) -> PathBuf {
    let own = folder.join(name);
    fs::create_dir(&own).expect("the test's folder can be written");
    if rustix::process::geteuid().is_root() {
        fs::set_permissions(folder, PermissionsExt::from_mode(0o711)).expect("the test's folder is ours");
    }
    give_to_nobody(&own, 0o700);
    own
}

fn give_to_nobody(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("the test's folder is ours");
    if rustix::process::geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("root may give a folder away");
    }
}

/// A program that refuses to run as root, or warns when it does.
fn as_nobody(name: &str) -> Command {
    if !rustix::process::geteuid().is_root() {
        return tool(name);
    }
    let mut command = tool("setpriv");
    let id = NOBODY.to_string();
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(tool(name).get_program());
    command.current_dir("/");
    command
}
