//! `outrigger run -- CMD`: the application's life in Outrigger's hands.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outrigger_e2e::{
    Application, Authority, Connection, Outrigger, eventually, eventually_within, free_port, request, start_outrigger,
    start_outrigger_with,
};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(20);

/// Starts `outrigger run -- sh -c SCRIPT`.
#[track_caller]
fn supervise(folder: &Path, config: &str, script: &str) -> Outrigger {
    start_outrigger_with(folder, config, &["--", "sh", "-c", script])
}

/// Waits for a file that the application writes, and reads it.
#[track_caller]
fn wait_for(outrigger: &mut Outrigger, path: &Path) -> String {
    eventually(&format!("{}", path.display()), || {
        outrigger.process.still_runs()?;
        let text = fs::read_to_string(path)?;
        ensure!(text.ends_with('\n'), "not written to its end");
        Ok(text)
    })
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Field `index` of `/proc/PID/stat`, counted from the state at 0.
fn stat(pid: u32, index: usize) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = text.rsplit_once(')').context("no name in stat")?.1;
    Ok(fields.split_whitespace().nth(index).context("too few fields")?.to_owned())
}

fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).expect("the process is there");
}

#[test]
fn what_the_start_needed_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let application = Application::start();
    let port = free_port();
    let config = format!(
        "proxy:\n  listeners: [{{ name: in, direction: inbound, address: \"127.0.0.1:{port}\", \
         routes: [{{ name: all, backendRefs: [{{ name: app }}] }}] }}]\n  \
         clusters: [{{ name: app, endpoints: [\"{}\"] }}]\n",
        application.address
    );
    let mut outrigger = start_outrigger(folder.path(), &config);
    let rests = |outrigger: &mut Outrigger| {
        eventually("memory to be given back", || {
            outrigger.process.still_runs()?;
            let (most, now) = (outrigger.process.memory("VmHWM")?, outrigger.process.memory("VmRSS")?);
            ensure!(now < most / 4 * 3, "{now} of {most} KiB");
            Ok(())
        });
    };
    rests(&mut outrigger);
    // All of it is there when it is needed.
    let url = format!("http://127.0.0.1:{port}/orders");
    request("GET", &url, &[], "").unwrap().ok().unwrap();
    // A reload reads the file anew, refused or not. The most it ever held is counted from here (proc(5), clear_refs).
    fs::write(format!("/proc/{}/clear_refs", outrigger.process.id()), "5").unwrap();
    outrigger.write_config("proxy: { nonsense: 1 }\n");
    eventually("the reload to be refused", || {
        let refused = outrigger.metric("outrigger_config_reloads_total{result=\"refused\"}")?;
        ensure!(refused > 0.5, "{refused}");
        Ok(())
    });
    rests(&mut outrigger);
    request("GET", &url, &[], "").unwrap().ok().unwrap();
}

#[test]
fn the_exit_code_is_the_applications() {
    let folder = tempfile::tempdir().unwrap();
    let plain_file = folder.path().join("not-executable");
    fs::write(&plain_file, "#!/bin/sh\n").unwrap();
    let plain_file = plain_file.to_str().unwrap();
    let directory = folder.path().to_str().unwrap();
    let rows: [(&str, &[&str], i32); 9] = [
        ("success", &["true"], 0),
        ("a code", &["sh", "-c", "exit 7"], 7),
        ("the highest code", &["sh", "-c", "exit 255"], 255),
        ("SIGTERM", &["sh", "-c", "kill -TERM $$"], 143),
        ("SIGKILL", &["sh", "-c", "kill -KILL $$"], 137),
        ("SIGSEGV", &["sh", "-c", "kill -SEGV $$"], 139),
        ("cannot be executed", &[plain_file], 126),
        ("a directory", &[directory], 126),
        ("not found", &["outrigger-no-such-program", "-c", "x"], 127),
    ];
    for (name, command, code) in rows {
        let arguments = [&["--"], command].concat();
        let mut outrigger = start_outrigger_with(folder.path(), "", &arguments);
        let status = outrigger.process.wait(PATIENCE);
        assert_eq!(status.code(), Some(code), "{name}: {status}: {}", outrigger.process.log());
    }
}

#[test]
fn a_command_that_cannot_start_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut outrigger = start_outrigger_with(folder.path(), "", &["--", "outrigger-no-such-program"]);
    outrigger.process.wait(PATIENCE);
    let log = outrigger.process.log();
    assert!(log.contains("cannot start `outrigger-no-such-program`"), "{log}");
}

#[test]
fn the_application_starts_only_when_everything_is_ready() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(&folder.path().join("ca"));
    let leaf = authority.issue("leaf", "spiffe://shop.example/ns/shop/sa/backend");
    let (certificate, marker) = (folder.path().join("late.pem"), folder.path().join("started"));
    let config = format!(
        "identity:\n  trustDomain: shop.example\n  files: {{ certificate: {}, key: {}, trustBundle: {} }}\n",
        certificate.display(),
        leaf.key.display(),
        authority.bundle().display()
    );
    let script = format!("test -e {} && echo yes > {}; exec sleep 600", certificate.display(), marker.display());
    let mut outrigger = supervise(folder.path(), &config, &script);
    // Seen waiting twice, half a second of its time apart: it looks again and still does not start.
    for failures in [1.0, 3.0] {
        eventually("another look for the certificate", || {
            let seen = outrigger.metric("outrigger_identity_rotations_total{result=\"error\"}")?;
            ensure!(seen >= failures, "{seen} looks");
            Ok(())
        });
        assert_eq!(outrigger.get("/startupz").unwrap().status, 503);
        assert!(outrigger.children().is_empty(), "the application was started without a certificate");
        assert!(!marker.exists());
    }
    fs::rename(&leaf.certificate, &certificate).unwrap();
    assert_eq!(wait_for(&mut outrigger, &marker), "yes\n");
    outrigger.wait_ready();
    assert_eq!(outrigger.get("/startupz").unwrap().status, 200);
    assert_eq!(outrigger.children().len(), 1);
    assert_eq!(outrigger.process.stop().code(), Some(143));
}

#[test]
fn a_stop_before_the_application_started_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let config = "identity: { trustDomain: shop.example, files: { certificate: /nowhere/a, key: /nowhere/b, trustBundle: /nowhere/c } }\n";
    let marker = folder.path().join("started");
    let mut outrigger = supervise(folder.path(), config, &format!("touch {}", marker.display()));
    eventually("its admin API", || outrigger.get("/livez")?.ok());
    // The job that the command stands for was never done.
    assert_eq!(outrigger.process.stop().code(), Some(143));
    assert!(!marker.exists());
}

#[test]
fn the_application_gets_a_clean_start() {
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let script = format!(
        "{{ readlink -m /proc/self/fd/* | grep -c -e socket -e anon_inode; grep -E '^Sig(Blk|Ign)' /proc/self/status; \
         ulimit -Sn; ulimit -Sc; echo \"$0 $1 $2\"; echo end; }} > {0}.new; mv {0}.new {0}; exec sleep 600",
        told.display()
    );
    let mut command = std::process::Command::new("sh");
    // As a container runtime may set them.
    command.args(["-c", "trap '' HUP USR1 PIPE; ulimit -Sn 777; ulimit -Sc 11; exec \"$@\"", "sh"]);
    let config = folder.path().join("outrigger.yaml");
    let ports = (free_port(), free_port());
    fs::write(&config, format!("admin: {{ listen: \"127.0.0.1:{}\", health: \"127.0.0.1:{}\" }}\n", ports.0, ports.1))
        .unwrap();
    command.arg(outrigger_e2e::outrigger_command().get_program()).args(["run", "-c"]).arg(&config);
    command.args(["--", "sh", "-c", &script, "zero", "-c", "--help"]);
    let mut process = outrigger_e2e::Process::start("outrigger", &mut command, folder.path());
    let text = eventually("the application's report", || {
        process.still_runs()?;
        Ok(fs::read_to_string(&told)?)
    });
    let (signals, rest): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with("Sig"));
    assert_eq!(rest, ["0", "777", "11", "zero -c --help", "end"]);
    assert_eq!(signals.len(), 2, "{text}");
    for line in signals {
        let mask = u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap();
        // Real-time signals are as whoever started the test left them.
        assert_eq!(mask & 0x7fff_ffff, 0, "{line}");
    }
    // Its own limits: all files it may have, no core dump that could hold a secret.
    let limits = fs::read_to_string(format!("/proc/{}/limits", process.id())).unwrap();
    let of = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of("Max core file size")[0], "0");
    let files = of("Max open files");
    assert_eq!(files[0], files[1]);
    process.stop();
}

#[test]
fn a_stop_keeps_its_phases() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Application::start();
    let (inbound, outbound) = (free_port(), free_port());
    let listener = |name: &str, port: u16| {
        format!(
            "  - {{ name: {name}, direction: {name}, address: \"127.0.0.1:{port}\", routes: [{{ name: all, backendRefs: [{{ name: up }}] }}] }}\n"
        )
    };
    let config = format!(
        "telemetry: {{ log: {{ level: debug }} }}\nproxy:\n  listeners:\n{}{}  clusters: [{{ name: up, endpoints: [\"{}\"] }}]\n",
        listener("inbound", inbound),
        listener("outbound", outbound),
        upstream.address
    );
    let (started, told) = (folder.path().join("started"), folder.path().join("told"));
    // On SIGTERM it still needs the outbound side, as a real application does; nobody new comes in.
    let script = format!(
        "trap 'curl -s -o /dev/null -w \"out %{{http_code}}\\n\" --max-time 5 http://127.0.0.1:{outbound}/bye > {0}; \
         curl -s -o /dev/null -w \"in %{{http_code}}\\n\" --max-time 5 http://127.0.0.1:{inbound}/ >> {0}; exit 5' TERM; \
         echo yes > {1}; while :; do sleep 0.02; done",
        told.display(),
        started.display()
    );
    let mut outrigger = supervise(folder.path(), &config, &script);
    wait_for(&mut outrigger, &started);
    assert_eq!(outrigger.process.stop().code(), Some(5));
    assert_eq!(fs::read_to_string(&told).unwrap(), "out 200\nin 000\n");
    assert_eq!(upstream.seen().last().unwrap().line, "GET /bye HTTP/1.1");
    let log = outrigger.process.log();
    let mut rest = log.as_str();
    for step in [
        "stopping cause=",
        "phase=inbound",
        "application exited exit=\"exit code 5\"",
        "phase=outbound",
        "phase=logs",
        "phase=metrics",
        "phase=secrets",
        "phase=identity",
        "stopped took=",
    ] {
        let at = rest.find(step).unwrap_or_else(|| panic!("no {step} in its place in:\n{log}"));
        rest = &rest[at..];
    }
}

#[test]
fn a_request_under_way_is_finished_before_the_stop() {
    let folder = tempfile::tempdir().unwrap();
    let slow = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free_port();
    // Whoever waits for its end waits too long for this test.
    let config = format!(
        "runtime: {{ shutdownBudget: 2m, flushBudget: 4s }}\nproxy:\n  listeners: [{{ name: in, direction: inbound, address: \"127.0.0.1:{port}\", routes: [{{ name: all, backendRefs: [{{ name: app }}] }}] }}]\n  \
         clusters: [{{ name: app, endpoints: [\"{}\"] }}]\n",
        slow.local_addr().unwrap()
    );
    let mut outrigger = outrigger_e2e::start_outrigger(folder.path(), &config);
    let mut idle = TcpStream::connect(("127.0.0.1", port)).unwrap();
    idle.set_read_timeout(Some(PATIENCE)).unwrap();
    let client = std::thread::spawn(move || request("GET", &format!("http://127.0.0.1:{port}/slow"), &[], ""));
    let (mut upstream, _) = slow.accept().unwrap();
    let mut head = [0; 4096];
    assert!(upstream.read(&mut head).unwrap() > 0);
    outrigger.process.signal(Signal::TERM);
    eventually("the stop to begin, and to take no more connections", || {
        ensure!(outrigger.get("/readyz")?.body.contains("stopping"), "not yet");
        ensure!(Connection::open(port).is_err(), "it still takes connections");
        Ok(())
    });
    // A connection without a request is no reason to wait.
    assert_eq!(idle.read(&mut head).unwrap(), 0, "it is closed");
    outrigger.process.still_runs().unwrap();
    upstream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate").unwrap();
    let response = client.join().unwrap().unwrap();
    assert_eq!((response.status, response.body.as_str()), (200, "late"));
    assert_eq!(outrigger.process.wait(PATIENCE).code(), Some(0));
}

#[test]
fn readiness_goes_first_when_a_stop_begins() {
    let folder = tempfile::tempdir().unwrap();
    let started = folder.path().join("started");
    let script = format!("trap '' TERM; echo yes > {}; while :; do sleep 0.05; done", started.display());
    let mut outrigger = supervise(folder.path(), "runtime: { shutdownBudget: 3s, flushBudget: 500ms }\n", &script);
    wait_for(&mut outrigger, &started);
    outrigger.wait_ready();
    outrigger.process.signal(Signal::TERM);
    eventually_within(Duration::from_secs(2), "readiness to go", || {
        let response = outrigger.get("/readyz")?;
        ensure!(response.status == 503 && response.body.contains("stopping"), "{response:?}");
        ensure!(outrigger.get("/livez")?.status == 200, "it counts as dead");
        Ok(())
    });
    outrigger.process.wait(PATIENCE);
}

#[test]
fn signals_reach_the_application() {
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let traps: String = ["USR1", "USR2", "QUIT", "WINCH", "HUP"]
        .map(|name| format!("trap 'echo {name} >> {}' {name}; ", told.display()))
        .concat();
    let started = folder.path().join("started");
    let script = format!("{traps} echo yes > {}; while :; do sleep 0.02; done", started.display());
    let mut outrigger = supervise(folder.path(), "", &script);
    wait_for(&mut outrigger, &started);
    let mut expected = String::new();
    // SIGHUP is ours: it reloads the config.
    outrigger.process.signal(Signal::HUP);
    for (name, signal) in
        [("USR1", Signal::USR1), ("USR2", Signal::USR2), ("QUIT", Signal::QUIT), ("WINCH", Signal::WINCH)]
    {
        outrigger.process.signal(signal);
        expected.push_str(&format!("{name}\n"));
        eventually(name, || {
            ensure!(fs::read_to_string(&told)? == expected, "the application was told otherwise");
            Ok(())
        });
    }
    assert_eq!(outrigger.process.stop().code(), Some(143));
    assert_eq!(fs::read_to_string(&told).unwrap(), expected);
}

#[test]
fn interrupt_stops_it_like_terminate() {
    let folder = tempfile::tempdir().unwrap();
    let mut outrigger = supervise(folder.path(), "", "trap 'exit 9' TERM; while :; do sleep 0.02; done");
    eventually("the application", || {
        ensure!(!outrigger.children().is_empty(), "not started");
        Ok(())
    });
    outrigger.process.signal(Signal::INT);
    let status = outrigger.process.wait(PATIENCE);
    // The shell may not have set its trap yet.
    assert!(matches!(status.code(), Some(9 | 143)), "{status}");
}

#[test]
fn without_an_application_a_stop_is_a_success() {
    let folder = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let mut outrigger = outrigger_e2e::start_outrigger(folder.path(), "");
        outrigger.process.signal(signal);
        assert_eq!(outrigger.process.wait(PATIENCE).code(), Some(0), "{signal:?}");
    }
}

#[test]
fn orphans_are_reaped() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    // Each subshell ends at once, so the sleeper's parent is gone.
    let script = format!(
        "for i in 1 2 3; do (sleep 600 & echo $! >> {0}.new); done; mv {0}.new {0}; exec sleep 600",
        pids.display()
    );
    let mut outrigger = supervise(folder.path(), "", &script);
    let orphans: Vec<u32> = wait_for(&mut outrigger, &pids).lines().map(|pid| pid.parse().unwrap()).collect();
    let id = outrigger.process.id().to_string();
    eventually("the orphans to become its children", || {
        for orphan in &orphans {
            ensure!(stat(*orphan, 1)? == id, "the parent of {orphan} is {}", stat(*orphan, 1)?);
        }
        Ok(())
    });
    for orphan in &orphans {
        send(*orphan, Signal::KILL);
    }
    eventually("the orphans to be reaped", || {
        for orphan in &orphans {
            ensure!(!exists(*orphan), "{orphan} is {}", stat(*orphan, 0)?);
        }
        Ok(())
    });
    assert_eq!(outrigger.children().len(), 1, "the application lives on");
    assert_eq!(outrigger.process.stop().code(), Some(143));
}

#[test]
fn an_application_that_outlives_the_budget_is_killed_with_its_helpers() {
    let folder = tempfile::tempdir().unwrap();
    let helper = folder.path().join("helper");
    let script = format!(
        "trap '' TERM; sleep 600 & echo $! > {0}.new; mv {0}.new {0}; while :; do sleep 0.05; done",
        helper.display()
    );
    let mut outrigger = supervise(folder.path(), "runtime: { shutdownBudget: 2s, flushBudget: 500ms }\n", &script);
    let helper: u32 = wait_for(&mut outrigger, &helper).trim().parse().unwrap();
    let begun = Instant::now();
    let status = outrigger.process.stop();
    let took = begun.elapsed();
    assert_eq!(status.code(), Some(137), "{}", outrigger.process.log());
    // Not before the flush time begins; the upper bound has room for a busy machine.
    assert!(took >= Duration::from_millis(1400) && took < Duration::from_secs(8), "{took:?}");
    assert!(outrigger.process.log().contains("did not exit in time and is killed"), "{}", outrigger.process.log());
    eventually("the helper to go with it", || {
        ensure!(!exists(helper) || stat(helper, 0)? == "Z", "{helper} lives");
        Ok(())
    });
}

#[test]
fn a_second_signal_hastens() {
    let folder = tempfile::tempdir().unwrap();
    let started = folder.path().join("started");
    let script = format!("trap '' TERM INT; echo yes > {}; while :; do sleep 0.05; done", started.display());
    for second in [Signal::TERM, Signal::INT] {
        let _ = fs::remove_file(&started);
        let config = "runtime: { shutdownBudget: 10m, flushBudget: 1s }\n";
        let mut outrigger = supervise(folder.path(), config, &script);
        wait_for(&mut outrigger, &started);
        outrigger.process.signal(Signal::TERM);
        eventually("the stop to begin", || {
            ensure!(outrigger.get("/readyz")?.body.contains("stopping"), "not yet");
            Ok(())
        });
        outrigger.process.signal(second);
        assert_eq!(outrigger.process.wait(PATIENCE).code(), Some(137), "{}", outrigger.process.log());
    }
}

#[test]
fn the_application_does_not_outlive_a_killed_outrigger() {
    let folder = tempfile::tempdir().unwrap();
    let mut outrigger = supervise(folder.path(), "", "exec sleep 600");
    let pid = eventually("the application", || {
        ensure!(!outrigger.children().is_empty(), "not started");
        Ok(outrigger.children()[0])
    });
    outrigger.process.signal(Signal::KILL);
    assert_eq!(outrigger.process.wait(PATIENCE).signal(), Some(9));
    eventually("the application to go with it", || {
        ensure!(!exists(pid) || stat(pid, 0)? == "Z", "{pid} lives");
        Ok(())
    });
}
