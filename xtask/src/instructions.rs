//! Counts the instructions that one proxied request takes, and holds them to the last count.
//!
//! In: the data plane alone (the example `plain_proxy`) under callgrind, h2load before it and an
//! answering thread, or nghttpd, behind it. Out: instructions per request for each protocol, beside those in `bench/instructions.txt`.
//! Promise: the figure is the same on a busy machine; a start, a stop and what comes
//! once are not in it, for it is the difference between two runs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::args::Args;
use crate::command::{Cmd, cargo};
use crate::{setup, test, ui};

pub(crate) const USAGE: &str = "cargo xtask instructions [--write]

Builds the data plane first, as it is shipped. Fails when a request takes over 3 % more instructions than
bench/instructions.txt says.

  --write   write the counts to bench/instructions.txt; read the diff";

/// Where the last counts are.
const KEPT: &str = "bench/instructions.txt";
/// Requests of the two runs; what they differ by is counted.
const FEW: u64 = 300;
const MANY: u64 = 2300;
/// Timers and the order in which things come make some of it.
const TOLERANCE: f64 = 0.03;
/// Callgrind makes everything some fifty times slower.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests of one kind.
struct Case {
    name: &'static str,
    /// What makes h2load send them.
    arguments: &'static [&'static str],
    path: &'static str,
    /// HTTP/2 is spoken to the endpoint, too.
    is_grpc: bool,
}

const CASES: &[Case] = &[
    Case { name: "HTTP/1.1", arguments: &["--h1"], path: "/", is_grpc: false },
    Case { name: "HTTP/2", arguments: &[], path: "/", is_grpc: false },
    Case {
        name: "gRPC",
        arguments: &["-H", "content-type: application/grpc", "-H", "te: trailers", "-d", MESSAGE],
        path: "/message.grpc",
        is_grpc: true,
    },
];

/// The message of a call, which is sent both ways: 15 bytes, as the benchmark's.
const MESSAGE: &str = "message.grpc";

pub(crate) fn verb(args: &mut Args) -> Result<()> {
    let write = args.flag("--write");
    args.done()?;
    setup::ensure(setup::Need::Everything)?;
    let counts = measure()?;
    if write {
        let lines: String = counts.iter().map(|(case, count)| format!("{case} {count}\n")).collect();
        return fs::write(KEPT, lines).with_context(|| format!("cannot write {KEPT}"));
    }
    judge(&counts)
}

/// The stage of `cargo xtask test`.
pub(crate) fn check() -> Result<()> {
    judge(&measure()?)
}

fn measure() -> Result<BTreeMap<&'static str, u64>> {
    ui::step("instructions: build the data plane alone", || {
        cargo("build").args(["--release", "--package", "outrigger-proxy", "--example", "plain_proxy", "--locked"]).run()
    })?;
    let folder = std::env::temp_dir().join(format!("outrigger-instructions-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let upstream = TcpListener::bind("127.0.0.1:0")?;
    let port = upstream.local_addr()?.port();
    // Ends with the process.
    thread::spawn(move || upstream.incoming().flatten().for_each(|stream| drop(thread::spawn(|| answer(stream)))));
    let calls = answer_calls(&folder)?;
    let mut counts = BTreeMap::new();
    for case in CASES {
        let port = if case.is_grpc { calls.1 } else { port };
        let count = ui::step(&format!("instructions: {}", case.name), || {
            let few = one_run(&folder, port, case, FEW)?;
            let many = one_run(&folder, port, case, MANY)?;
            ensure!(many > few, "callgrind counted {few} instructions for {FEW} requests and {many} for {MANY}");
            Ok((many - few) / (MANY - FEW))
        })?;
        counts.insert(case.name, count);
    }
    drop(calls);
    fs::remove_dir_all(&folder)?;
    Ok(counts)
}

/// Compares with what is kept, and shows both.
fn judge(counts: &BTreeMap<&'static str, u64>) -> Result<()> {
    let kept = fs::read_to_string(KEPT).with_context(|| format!("cannot read {KEPT}"))?;
    let mut more = Vec::new();
    for (case, count) in counts {
        let known = kept.lines().find_map(|line| line.strip_prefix(case)?.trim().parse::<u64>().ok());
        let Some(known) = known else {
            bail!("{KEPT} has no line `{case} COUNT`; `cargo xtask instructions --write` adds it")
        };
        let growth = *count as f64 / known as f64 - 1.0;
        ui::note(&format!("{case}: {count} per request, {:+.1} % against {known}", 100.0 * growth));
        if growth > TOLERANCE {
            more.push(format!("{case}: {count} instead of {known}"));
        }
    }
    ensure!(
        more.is_empty(),
        "a request takes more instructions than before ({}); find out why (docs/adr/0005-data-plane-threads-and-cost.md \
         tells how to profile), or accept it with `cargo xtask instructions --write`",
        more.join(", ")
    );
    Ok(())
}

/// The instructions of one whole run with so many requests.
fn one_run(folder: &Path, upstream: u16, case: &Case, requests: u64) -> Result<u64> {
    let [port, admin, health] = free_ports()?;
    let config = folder.join("proxy.yaml");
    let protocol = if case.is_grpc { "http2" } else { "auto" };
    let text = format!(
        "runtime: {{ workers: 1 }}\nadmin: {{ listen: \"127.0.0.1:{admin}\", health: \"127.0.0.1:{health}\" }}\nproxy:\n  \
         listeners: [{{ name: in, direction: inbound, address: \"127.0.0.1:{port}\", routes: [{{ name: all, backendRefs: \
         [{{ name: app }}] }}] }}]\n  clusters: [{{ name: app, protocol: {protocol}, endpoints: [\"127.0.0.1:{upstream}\"] }}]\n"
    );
    fs::write(&config, text)?;
    let counted = folder.join("callgrind.out");
    let mut proxy = Ended(
        Command::new("valgrind")
            .args(["--tool=callgrind", "--quiet", &format!("--callgrind-out-file={}", counted.display())])
            .arg(test::executable("release").with_file_name("examples").join("plain_proxy"))
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("proxy.log"))?)
            .spawn()
            .context("cannot start valgrind")?,
    );
    until_listening(&mut proxy, port, &folder.join("proxy.log"))?;
    let requests_text = requests.to_string();
    let said = Cmd::new("h2load")
        .args(["-c1", "-m1", "-n", &requests_text])
        .args(case.arguments)
        .arg(format!("http://127.0.0.1:{port}{}", case.path))
        .within(folder)
        .output()?;
    ensure!(said.contains(&format!("{requests} succeeded")), "not every request was answered:\n{said}");
    Cmd::new("kill").args(["-TERM", &proxy.0.id().to_string()]).output()?;
    let deadline = Instant::now() + PATIENCE;
    while proxy.0.try_wait()?.is_none() {
        ensure!(Instant::now() < deadline, "it does not stop");
        thread::sleep(Duration::from_millis(20));
    }
    total(&counted)
}

/// Begins to answer calls: the message, and its status as a trailer, over HTTP/2 only. Returns the port.
fn answer_calls(folder: &Path) -> Result<(Ended, u16)> {
    fs::write(folder.join(MESSAGE), b"\0\0\0\0\x0a\x0a\x08outrider")?;
    let (types, log) = (folder.join("mime.types"), folder.join("nghttpd.log"));
    fs::write(&types, "application/grpc grpc\n")?;
    let [port] = free_ports()?;
    let mut process = Ended(
        Command::new("nghttpd")
            .args(["--no-tls", "-a", "127.0.0.1", "--trailer", "grpc-status: 0"])
            .arg(format!("--mime-types-file={}", types.display()))
            .arg("-d")
            .arg(folder)
            .arg(port.to_string())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("cannot start nghttpd")?,
    );
    until_listening(&mut process, port, &log)?;
    Ok((process, port))
}

fn until_listening(process: &mut Ended, port: u16, log: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !listens(port)? {
        if let Some(status) = process.0.try_wait()? {
            bail!("it ended with {status}: {}", fs::read_to_string(log)?);
        }
        ensure!(Instant::now() < deadline, "it does not listen");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A process that does not outlive its guard.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What callgrind counted in all.
fn total(file: &PathBuf) -> Result<u64> {
    let text = fs::read_to_string(file).with_context(|| format!("callgrind wrote no {}", file.display()))?;
    let total = text.lines().rev().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
    total.with_context(|| format!("no totals in {}", file.display()))
}

/// Whether somebody listens, as the kernel says it: asking the process itself would be counted.
fn listens(port: u16) -> Result<bool> {
    const LISTEN: &str = "0A";
    let local = format!("0100007F:{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp").context("cannot read /proc/net/tcp")?;
    Ok(table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some(local.as_str()) && words.nth(1) == Some(LISTEN)
    }))
}

fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// Answers each request of a connection with 1 KiB.
fn answer(mut stream: TcpStream) {
    let mut response = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n".to_vec();
    response.resize(response.len() + 1024, b'x');
    let mut asked = Vec::new();
    let mut part = [0; 4096];
    let _ = stream.set_nodelay(true);
    while let Ok(count @ 1..) = stream.read(&mut part) {
        asked.extend_from_slice(&part[..count]);
        while let Some(end) = asked.windows(4).position(|four| four == b"\r\n\r\n") {
            asked.drain(..end + 4);
            if stream.write_all(&response).is_err() {
                return;
            }
        }
    }
}
