//! The executable when it runs short: of file descriptors; and what it tells of clients that flood it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use outrigger_e2e::{eventually, free_port, outrigger_command, request, start_outrigger, start_outrigger_as};

fn config(folder: &std::path::Path, listen: u16, app: u16) -> String {
    format!(
        r#"runtime: {{ workers: 1, shutdownBudget: 10s, flushBudget: 4s }}
proxy:
  listeners:
    - {{ name: in, direction: inbound, address: "127.0.0.1:{listen}", routes: [{{ name: all, backendRefs: [{{ name: app }}] }}] }}
  clusters:
    - {{ name: app, endpoints: ["127.0.0.1:{app}"] }}
  accessLog: {{ path: {} }}
"#,
        folder.join("access.log").display()
    )
}

/// An application that answers every connection's first request, for as long as the test runs.
fn application() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
            });
        }
    });
    port
}

/// User and system time that a process has taken, in hundredths of a second.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    fields[11].parse::<u64>().expect("a number") + fields[12].parse::<u64>().expect("a number")
}

#[test]
fn without_file_descriptors_nothing_spins_and_it_recovers() {
    const MOST: usize = 80;
    let folder = tempfile::tempdir().expect("a folder");
    let (listen, app) = (free_port(), application());
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit -n {MOST}; exec \"$@\"")).arg("sh").arg(outrigger_command().get_program());
    let mut outrigger = start_outrigger_as(command, folder.path(), &config(folder.path(), listen, app), &[]);
    outrigger.wait_ready();
    let pid = outrigger.process.id();
    let ask = |stream: &mut TcpStream| -> Result<String> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
        let mut answer = [0; 4096];
        let read = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
    };
    // More clients than there are descriptors; the kernel connects those that are not accepted, too.
    let mut clients: Vec<TcpStream> =
        (0..2 * MOST).map(|_| TcpStream::connect(("127.0.0.1", listen)).expect("the backlog has room")).collect();
    eventually("all descriptors to be in use", || {
        let log = outrigger.process.log();
        ensure!(log.contains("cannot accept connections"), "{log}");
        Ok(())
    });
    // One that waits at the admin API, which cannot accept it either.
    let _waiting = TcpStream::connect(outrigger.admin.trim_start_matches("http://")).expect("the backlog has room");
    let (began, before) = (Instant::now(), ticks(pid));
    // A request on a connection that was accepted: none is left for the endpoint.
    let answer = ask(&mut clients[0]).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("no file descriptor"), "{answer}");
    std::thread::sleep(Duration::from_secs(1).saturating_sub(began.elapsed()));
    let (taken, passed) = (ticks(pid) - before, began.elapsed());
    assert!(u128::from(taken) * 10 < passed.as_millis() / 2, "{taken} hundredths of a second in {passed:?}");
    drop(clients);
    eventually("it to serve again", || {
        let answer = ask(&mut TcpStream::connect(("127.0.0.1", listen))?)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(())
    });
    let failed = r#"outrigger_downstream_accept_errors_total{listener="in",reason="resources"}"#;
    eventually("the metric to say so", || {
        ensure!(outrigger.metric(failed)? > 0.0, "none");
        Ok(())
    });
    let log = outrigger.process.log();
    assert!(log.contains("no file descriptor is left"), "{log}");
    assert_eq!(log.matches("cannot accept connections").count(), 1, "told once: {log}");
    let access = std::fs::read_to_string(folder.path().join("access.log")).expect("an access log");
    assert!(access.contains("\"flags\":\"UF\",\"reason\":\"no file descriptor is left"), "{access}");
    assert!(request("GET", &format!("{}/readyz", outrigger.admin), &[], "").expect("it answers").status == 200);
}

#[test]
fn a_client_that_floods_is_named_in_the_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let (listen, app) = (free_port(), application());
    let outrigger = start_outrigger(folder.path(), &config(folder.path(), listen, app));
    let mut client = TcpStream::connect(("127.0.0.1", listen)).expect("it listens");
    let from = client.local_addr().expect("an address");
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("it is taken");
    let ping = b"\0\0\x08\x06\0\0\0\0\0\0\0\0\0\0\0\0\0".repeat(100);
    // It may be cut off before all of them are taken.
    let _ = (0..1000).all(|_| client.write_all(&ping).is_ok());
    eventually("the warning", || {
        let log = outrigger.process.log();
        let line = log.lines().find(|line| line.contains("floods its HTTP/2 connection"));
        ensure!(line.is_some_and(|line| line.contains(&from.to_string()) && line.contains("PING")), "{log}");
        Ok(())
    });
}
