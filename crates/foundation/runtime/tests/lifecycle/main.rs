//! The whole lifecycle, on real processes with real signals.
//!
//! Each test starts this very executable again in the role of Outrigger (the test
//! `process`), with components made for the purpose, and talks to it through its admin
//! socket, its signals and its exit code.

#![expect(clippy::unwrap_used, reason = "a test fails where what it needs is missing")]

mod cast;
mod handover;
mod load;
mod server;
mod stage;

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use outrigger_runtime::{Component, RuntimeOptions, run};

use cast::ACTORS;
use stage::{Outrigger, Stage, at_a_terminal, body, exchange, position, process_exists};

/// Not a test of its own: the process that the tests start.
#[test]
fn process() {
    let Some(config_path) = std::env::var_os("TEST_CONFIG").map(PathBuf::from) else { return };
    let loaded = match outrigger_config::load(&config_path) {
        Ok(loaded) => loaded,
        Err(diagnostics) => panic!("{diagnostics}"),
    };
    let command = std::env::var("TEST_COMMAND").ok().map(|command| command.split('\x1f').map(OsString::from).collect());
    let components = ACTORS.into_iter().map(|actor| Box::new(actor) as Box<dyn Component>).collect();
    let code = run(RuntimeOptions { config_path, loaded, components, command, version: "1.2.3", give_back: || {} });
    std::process::exit(code);
}

#[test]
fn it_starts_in_order_and_a_signal_stops_it_in_phases() {
    for signal in ["TERM", "INT", "QUIT"] {
        let mut outrigger = Stage::new("inbound,outbound,secrets,slow").start();
        outrigger.until("an explanation", |o| {
            o.try_ask("admin", "GET /readyz?verbose")
                .is_some_and(|(status, text)| status == 503 && text.contains("a tortoise"))
                || o.diary().contains(&"slow ready".to_owned())
        });
        outrigger.until_ready();
        let diary = outrigger.diary();
        assert!(position(&diary, "secrets ready") < position(&diary, "inbound begins"), "{diary:?}");
        assert_eq!(outrigger.ask("health", "GET /startupz").0, 200);
        outrigger.signal(signal);
        assert_eq!(outrigger.exit_code(), 0, "{}", outrigger.log());
        let diary = outrigger.diary();
        let stops: Vec<&str> = diary.iter().filter_map(|line| line.strip_suffix(" stopped")).collect();
        assert_eq!(stops, ["inbound", "outbound", "slow", "secrets"], "after {signal}");
        assert!(!outrigger.stage.path("admin").exists(), "the socket file goes with the process");
    }
}

#[test]
fn the_admin_api_shows_everything_and_the_health_port_only_health() {
    let mut outrigger = Stage::new("outbound,worker").start();
    outrigger.until_ready();
    let mode = fs::metadata(outrigger.stage.path("admin")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for (request, status, part) in [
        ("GET /", 200, "/quitquitquit"),
        ("GET /", 200, "says hello"),
        ("GET /hello", 200, "hello"),
        ("GET /livez?verbose", 200, "worker-"),
        ("GET /readyz", 200, "ok"),
        ("GET /readyz?verbose", 200, "metrics    disabled"),
        ("GET /startupz", 200, "ok"),
        ("HEAD /readyz", 200, ""),
        ("GET /metrics", 200, "outrigger_component_ready{component=\"outbound\"} 1"),
        ("GET /config", 200, "shutdownBudget: 6s"),
        ("GET /version", 200, "outrigger 1.2.3"),
        ("GET /debug/tasks", 200, "THREAD"),
        ("GET /log-level", 200, "info"),
        ("PUT /log-level?level=debug", 200, "debug"),
        ("GET /log-level", 200, "debug"),
        ("PUT /log-level?level=loud", 400, "not a level"),
        ("DELETE /log-level", 405, "allow: GET, PUT, POST, HEAD"),
        ("GET /quitquitquit", 405, "allow: POST"),
        ("POST /hello", 405, "allow: GET, HEAD"),
        ("GET /nowhere", 404, "no such endpoint"),
    ] {
        let (got, answer) = outrigger.ask("admin", request);
        assert_eq!(got, status, "{request}: {answer}");
        assert!(answer.contains(part), "{request}: {answer}");
    }
    let json = |path: &str| -> serde_json::Value {
        let stream = UnixStream::connect(outrigger.stage.path("admin")).unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\naccept: application/json\r\nconnection: close\r\n\r\n");
        serde_json::from_str(body(&exchange(stream, &request).unwrap().1)).unwrap()
    };
    assert_eq!(json("/readyz?verbose")["ready"], true);
    assert_eq!(json("/config")["runtime"]["flushBudget"], "2s");
    assert_eq!(json("/debug/tasks")["components"][1]["state"], "ready");
    assert_eq!(json("/")[0]["path"], "/");
    for (path, status) in [("/readyz?verbose", 200), ("/livez", 200), ("/metrics", 404), ("/config", 404), ("/", 404)] {
        assert_eq!(outrigger.ask("health", &format!("GET {path}")).0, status, "{path}");
    }
    assert_eq!(outrigger.ask("health", "POST /readyz").0, 405);
    assert_eq!(outrigger.ask("admin", "POST /quitquitquit").0, 200);
    assert_eq!(outrigger.exit_code(), 0);
}

#[test]
fn over_tcp_foreign_names_and_pages_are_refused_and_large_requests_too() {
    let stage = Stage::new("");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text =
        format!("admin: {{ listen: \"127.0.0.1:{port}\", health: \"unix:{}\" }}\n", stage.path("health").display());
    fs::write(stage.path("outrigger.yaml"), text).unwrap();
    let mut outrigger = stage.start();
    let ask = |head: &str, body: &str| {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        exchange(stream, &format!("{head}\r\nconnection: close\r\n\r\n{body}"))
    };
    outrigger.until("admin", |_| TcpStream::connect(("127.0.0.1", port)).is_ok());
    let long = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}", "x".repeat(40_000));
    for (head, body, status) in [
        ("GET /version HTTP/1.1\r\nhost: localhost:1", "", 200),
        ("GET /version HTTP/1.1\r\nhost: evil.example", "", 403),
        ("GET http://evil.example/version HTTP/1.1\r\nhost: localhost", "", 403),
        ("POST /quitquitquit HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.example", "", 403),
        ("POST /quitquitquit HTTP/1.1\r\nhost: localhost\r\nsec-fetch-site: cross-site", "", 403),
        ("PUT /log-level HTTP/1.1\r\nhost: localhost\r\ncontent-length: 6", "error\n", 200),
        ("PUT /log-level HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999", &"x".repeat(9999), 413),
        (&long, "", 431),
    ] {
        let (got, _) = ask(head, body).unwrap_or_else(|| panic!("no answer to {head}"));
        assert_eq!(got, status, "{}", &head[..head.len().min(100)]);
    }
    // Clients that say nothing, however many, keep nobody else from being answered.
    let _silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    assert_eq!(ask("GET /livez HTTP/1.1\r\nhost: localhost", "").unwrap().0, 200);
    assert_eq!(ask("POST /quitquitquit HTTP/1.1\r\nhost: 127.0.0.1", "").unwrap().0, 200);
    assert_eq!(outrigger.exit_code(), 0);
}

#[test]
fn an_admin_address_that_cannot_be_had_fails_the_start_and_says_why() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let stage = Stage::new("outbound");
    fs::write(stage.path("outrigger.yaml"), format!("admin: {{ listen: \"{address}\" }}\n")).unwrap();
    let mut outrigger = stage.start();
    assert_eq!(outrigger.exit_code(), 1);
    let log = outrigger.log();
    assert!(log.contains("admin.listen") && log.contains(&address.to_string()), "{log}");
    assert!(log.contains(&format!("process {}", std::process::id())), "{log}");
    assert!(outrigger.diary().is_empty(), "no component was started");
}

#[test]
fn a_dead_component_never_looks_healthy() {
    let mut outrigger = Stage::new("outbound,failing,panicking").start();
    outrigger.until("two failures of each", |o| {
        let Some((_, text)) = o.try_ask("admin", "GET /metrics") else { return false };
        ["failing", "panicking"].iter().all(|name| {
            let prefix = format!("outrigger_component_restarts_total{{component=\"{name}\"}} ");
            text.lines().any(|l| l.strip_prefix(&prefix).is_some_and(|n| n != "0"))
        })
    });
    let (status, text) = outrigger.ask("admin", "GET /readyz?verbose");
    assert_eq!(status, 503);
    assert!(
        text.contains("the dog ate it") && text.contains("a mouse") && text.contains("lifecycle/cast.rs"),
        "{text}"
    );
    assert_eq!(outrigger.ask("health", "GET /readyz").0, 503);
    assert_eq!(outrigger.ask("health", "GET /startupz").0, 503);
    assert_eq!(outrigger.ask("admin", "GET /livez").0, 200, "a restart of the process would not help");
    assert!(outrigger.metric("outrigger_component_ready{component=\"failing\"} 0"));
    let log = outrigger.log();
    assert!(log.contains("the dog ate it") && log.contains("a mouse"), "{log}");
    outrigger.signal("TERM");
    assert_eq!(outrigger.exit_code(), 0, "it stops all the same");
}

#[test]
fn the_command_starts_when_all_is_ready_and_its_exit_code_is_ours() {
    for (script, code) in [("exit 7", 7), ("exit 0", 0), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        let mut outrigger = Stage::new("inbound,outbound,secrets,slow")
            .shell(&format!("echo app $DB_PASSWORD >> $TEST_DIARY; {script}"))
            .start();
        assert_eq!(outrigger.exit_code(), code, "{script}\n{}", outrigger.log());
        let diary = outrigger.diary();
        let app = position(&diary, "app s3cret");
        assert!(["inbound ready", "slow ready"].iter().all(|line| position(&diary, line) < app), "{diary:?}");
        assert_eq!(&diary[app + 1..], ["inbound stopped", "outbound stopped", "slow stopped", "secrets stopped"]);
        assert!(!outrigger.log().contains("s3cret"), "{}", outrigger.log());
    }
}

#[test]
fn a_command_that_cannot_be_started_gives_a_shells_exit_codes() {
    let mut stage = Stage::new("outbound");
    stage.command = vec!["/no/such/command".to_owned()];
    let mut outrigger = stage.start();
    assert_eq!(outrigger.exit_code(), 127);
    assert!(outrigger.log().contains("/no/such/command"), "{}", outrigger.log());
    assert!(outrigger.diary().contains(&"outbound stopped".to_owned()));
    let mut stage = Stage::new("outbound");
    let file = stage.path("not-executable");
    fs::write(&file, "#!/bin/sh\n").unwrap();
    stage.command = vec![file.display().to_string()];
    assert_eq!(stage.start().exit_code(), 126);
}

#[test]
fn a_stop_lets_the_command_finish_between_inbound_and_outbound() {
    let script = "trap 'echo app told >> $TEST_DIARY; sleep 0.2; echo app done >> $TEST_DIARY; exit 5' TERM; \
                  echo app up >> $TEST_DIARY; while :; do sleep 0.05; done";
    let mut outrigger = Stage::new("inbound,outbound,secrets").shell(script).start();
    outrigger.until_noted("app up");
    outrigger.signal("TERM");
    assert_eq!(outrigger.exit_code(), 5);
    let diary = outrigger.diary();
    let tail = &diary[position(&diary, "app up") + 1..];
    assert_eq!(tail, ["inbound stopped", "app told", "app done", "outbound stopped", "secrets stopped"]);
}

#[test]
fn a_command_that_does_not_exit_is_killed_with_all_its_helpers_before_the_flush() {
    let script =
        "trap '' TERM; sleep 1000 & echo helper $! >> $TEST_DIARY; echo app up >> $TEST_DIARY; while :; do wait; done";
    let stage = Stage::new("inbound,outbound,secrets").shell(script);
    stage.write_config("runtime: { shutdownBudget: 2s, flushBudget: 1s }\n");
    let mut outrigger = stage.start();
    outrigger.until_noted("app up");
    let begun = Instant::now();
    outrigger.signal("TERM");
    assert_eq!(outrigger.exit_code(), 137);
    let took = begun.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(6)).contains(&took), "{took:?}");
    let diary = outrigger.diary();
    assert!(diary.contains(&"secrets stopped".to_owned()), "the phases behind it still ran");
    let helper = diary.iter().find_map(|line| line.strip_prefix("helper ")).unwrap();
    outrigger.until("the helper's end", |_| !process_exists(helper));
}

#[test]
fn a_second_signal_skips_what_is_waited_for_and_the_flush_still_runs() {
    let stage = Stage::new("stubborn,outbound,secrets")
        .shell("trap '' TERM; echo app up >> $TEST_DIARY; while :; do sleep 0.05; done");
    stage.write_config("runtime: { shutdownBudget: 60s, flushBudget: 10s }\n");
    let mut outrigger = stage.start();
    outrigger.until_noted("app up");
    outrigger.signal("TERM");
    outrigger
        .until("the stop", |o| o.try_ask("admin", "GET /readyz").is_some_and(|(_, text)| text.contains("stopping")));
    outrigger.signal("TERM");
    assert_eq!(outrigger.exit_code(), 137);
    let log = outrigger.log();
    assert!(log.contains("stubborn") && log.contains("did not stop by its deadline"), "{log}");
    assert!(outrigger.diary().contains(&"secrets stopped".to_owned()));
}

#[test]
fn a_stop_before_the_command_ran_does_not_look_like_its_success() {
    let mut outrigger = Stage::new("failing").shell("echo app >> $TEST_DIARY").start();
    outrigger.until_noted("failing begins");
    outrigger.signal("TERM");
    assert_eq!(outrigger.exit_code(), 143);
    assert!(!outrigger.diary().contains(&"app".to_owned()));
}

#[test]
fn signals_meant_for_the_command_reach_it_once() {
    let script = "for s in USR1 USR2 QUIT WINCH; do trap \"echo app $s >> $TEST_DIARY\" $s; done; \
                  echo app up >> $TEST_DIARY; while :; do sleep 0.02; done";
    let outrigger = Stage::new("").shell(script).start();
    outrigger.until_noted("app up");
    for signal in ["USR1", "USR2", "QUIT", "WINCH"] {
        outrigger.signal(signal);
        outrigger.until_noted(&format!("app {signal}"));
    }
    outrigger.signal("USR1");
    outrigger.until("the second USR1", |o| o.diary().iter().filter(|line| *line == "app USR1").count() == 2);
    let diary = outrigger.diary();
    assert_eq!(diary.len(), 6, "{diary:?}");
}

#[test]
fn the_command_gets_limits_and_signals_as_we_got_them_and_orphans_are_reaped() {
    // The middle process exits first, so its child is orphaned onto us, and must not stay a zombie.
    let script = "grep -E 'SigBlk|SigIgn' /proc/self/status >> $TEST_DIARY; echo limits $(ulimit -Sn) $(ulimit -Sc) >> $TEST_DIARY; \
                  (sh -c 'echo orphan $$ >> $TEST_DIARY; exec sleep 0.2' &) ; sleep 30";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -Sn 77; ulimit -Sc 0; exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
    let stage = Stage::new("").shell(script);
    let child = stage.prepare(command).spawn().unwrap();
    let outrigger = Outrigger { child, stage };
    outrigger.until("the orphan", |o| o.diary().iter().any(|line| line.starts_with("orphan ")));
    let diary = outrigger.diary();
    assert!(diary.contains(&"limits 77 0".to_owned()), "{diary:?}");
    for line in diary.iter().filter(|line| line.starts_with("Sig")) {
        // 32 and above belong to the C library, which hides them from everybody.
        let mask = u64::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap();
        assert_eq!(mask & 0x7fff_ffff, 0, "{line}");
    }
    let orphan = diary.iter().find_map(|line| line.strip_prefix("orphan ")).unwrap();
    let proc = format!("/proc/{orphan}");
    outrigger.until("the orphan's end", |_| !Path::new(&proc).exists());
    let status = fs::read_to_string(format!("/proc/{}/limits", outrigger.child.id())).unwrap();
    let own = status.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(own.split_ascii_whitespace().nth(4), Some("0"));
}

#[test]
fn at_a_terminal_an_interrupt_is_the_commands_own_business() {
    let script = "trap 'echo app INT >> $TEST_DIARY' INT; trap 'echo app TERM >> $TEST_DIARY; exit 4' TERM; \
                  echo pid $PPID >> $TEST_DIARY; while :; do sleep 0.02; done";
    let mut outrigger = at_a_terminal(Stage::new("outbound").shell(script));
    outrigger.until("the app", |o| o.diary().iter().any(|line| line.starts_with("pid ")));
    let mut keyboard = outrigger.child.stdin.take().unwrap();
    keyboard.write_all(b"\x03").unwrap();
    outrigger.until_noted("app INT");
    assert_eq!(outrigger.ask("admin", "GET /readyz").0, 200, "an interpreter's user goes on");
    let diary = outrigger.diary();
    let pid = diary.iter().find_map(|line| line.strip_prefix("pid ")).unwrap();
    assert!(Command::new("kill").args(["-TERM", pid]).status().unwrap().success());
    assert_eq!(outrigger.exit_code(), 4);
    let diary = outrigger.diary();
    assert_eq!(diary.iter().filter(|line| *line == "app INT").count(), 1, "{diary:?}");

    // One that does not mind dies of it, and the rest stops in order.
    let mut outrigger = at_a_terminal(Stage::new("outbound").shell("echo app up >> $TEST_DIARY; exec sleep 1000"));
    outrigger.until_noted("app up");
    let mut keyboard = outrigger.child.stdin.take().unwrap();
    keyboard.write_all(b"\x03").unwrap();
    assert_eq!(outrigger.exit_code(), 130);
    assert!(outrigger.diary().contains(&"outbound stopped".to_owned()));

    // A terminal that is closed takes us with it, in order; elsewhere SIGHUP means reload.
    let outrigger = at_a_terminal(Stage::new("outbound"));
    outrigger.until_ready();
    let script = outrigger.child.id().to_string();
    assert!(Command::new("kill").args(["-KILL", &script]).status().unwrap().success());
    outrigger.until_noted("outbound stopped");
}

#[test]
fn the_command_does_not_outlive_us() {
    let mut outrigger = Stage::new("").shell("echo app $$ >> $TEST_DIARY; exec sleep 1000").start();
    outrigger.until("the app", |o| o.diary().iter().any(|line| line.starts_with("app ")));
    let diary = outrigger.diary();
    let pid = diary[0].strip_prefix("app ").unwrap();
    assert!(process_exists(pid));
    outrigger.child.kill().unwrap();
    outrigger.until("the app's end", |_| !process_exists(pid));
}

#[test]
fn a_good_config_is_applied_a_bad_one_refused_and_an_unchanged_one_left() {
    let mut outrigger = Stage::new("outbound").start();
    outrigger.until_ready();
    outrigger.stage.write_config("telemetry: { log: { rateLimit: 5 } }\n");
    outrigger.until_noted("outbound sees 5");
    assert!(outrigger.metric("outrigger_config_generation 2"));
    assert!(outrigger.log().contains("telemetry.log.rateLimit"), "{}", outrigger.log());

    outrigger.stage.write_config("telemetry: { log: { rateLimt: 6 } }\n");
    outrigger.until("a refusal", |o| o.metric("outrigger_config_reloads_total{result=\"refused\"} 1"));
    assert!(outrigger.metric("outrigger_config_last_reload_successful 0"));
    assert!(outrigger.log().contains("rateLimt"), "{}", outrigger.log());
    assert!(outrigger.ask("admin", "GET /config").1.contains("rateLimit: 5"));
    assert_eq!(outrigger.ask("admin", "GET /readyz").0, 200);

    outrigger.stage.write_config("runtime: { flushBudget: 1313ms }\n");
    outrigger.until("a component's refusal", |o| o.metric("outrigger_config_reloads_total{result=\"refused\"} 2"));
    assert!(outrigger.log().contains("unlucky"), "{}", outrigger.log());
    outrigger.stage.write_config("runtime: { flushBudget: 1414ms }\n");
    outrigger.until("a panic's refusal", |o| o.metric("outrigger_config_reloads_total{result=\"refused\"} 3"));
    assert!(outrigger.log().contains("unheard of"), "{}", outrigger.log());

    outrigger.stage.write_config("telemetry: { log: { rateLimit: 5 } }\n");
    outrigger.until("no change", |o| o.metric("outrigger_config_reloads_total{result=\"unchanged\"} 1"));
    assert!(outrigger.metric("outrigger_config_last_reload_successful 1"));
    outrigger.signal("HUP");
    outrigger.until("SIGHUP", |o| o.metric("outrigger_config_reloads_total{result=\"unchanged\"} 2"));

    outrigger.stage.write_config("runtime: { workers: 1, shutdownBudget: 6s, flushBudget: 2s }\nmetrics: {}\n");
    outrigger.until_noted("metrics ready");
    assert!(outrigger.log().contains("next start"), "{}", outrigger.log());
    outrigger.stage.write_config("");
    outrigger.until_noted("metrics stopped");
    assert!(outrigger.metric("outrigger_config_generation 4"));
    outrigger.signal("TERM");
    assert_eq!(outrigger.exit_code(), 0);
}

#[test]
fn an_inherited_socket_is_used_and_not_passed_on() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stage = Stage::new("")
        .shell("echo app $LISTEN_FDS/$LISTEN_PID >> $TEST_DIARY; ls -l /proc/self/fd >> $TEST_DIARY; sleep 30");
    let text = format!("admin: {{ listen: \"{address}\", health: \"unix:{}\" }}\n", stage.path("health").display());
    fs::write(stage.path("outrigger.yaml"), text).unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "export LISTEN_FDS=1 LISTEN_FDNAMES=admin LISTEN_PID=$$; exec \"$0\" \"$@\" 3<&0 0</dev/null"]);
    command.arg(std::env::current_exe().unwrap());
    let mut command = stage.prepare(command);
    let child = command.stdin(Stdio::from(OwnedFd::from(listener))).spawn().unwrap();
    drop(command);
    let outrigger = Outrigger { child, stage };
    outrigger.until_noted("app /");
    assert_eq!(exchange(TcpStream::connect(address).unwrap(), "GET /version HTTP/1.0\r\n\r\n").unwrap().0, 200);
    outrigger.until("the list of descriptors", |o| o.diary().iter().any(|line| line.contains(" 2 -> ")));
    assert!(!outrigger.diary().iter().any(|line| line.contains("socket:")), "{:?}", outrigger.diary());
}

#[test]
fn a_second_signal_hastens_and_a_third_abandons() {
    let stage = Stage::new("stubborn,hoarder");
    stage.write_config("runtime: { shutdownBudget: 10m, flushBudget: 5m }\n");
    let mut outrigger = stage.start();
    outrigger.until("ready", |o| o.log().contains(" ready"));
    outrigger.signal("TERM");
    outrigger.until("the stop", |o| o.log().contains("stopping"));
    // What drains is waited for no longer; what flushes is.
    outrigger.signal("TERM");
    outrigger.until("the second one", |o| o.log().contains("second signal"));
    outrigger.until("the end of the drain", |o| {
        o.metric("outrigger_component_stops_overdue_total{component=\"stubborn\"} 1")
    });
    assert!(outrigger.metric("outrigger_component_stops_overdue_total{component=\"hoarder\"} 0"));
    assert!(outrigger.child.try_wait().unwrap().is_none());
    let begun = Instant::now();
    outrigger.signal("TERM");
    assert_eq!(outrigger.exit_code(), 0, "{}", outrigger.log());
    assert!(begun.elapsed() < Duration::from_secs(15));
    assert!(outrigger.log().contains("nothing is waited for\n"), "{}", outrigger.log());
    assert!(outrigger.log().contains("hoarder"), "{}", outrigger.log());
}

#[test]
fn what_the_logs_rate_limit_held_back_is_summed_up_at_the_end() {
    let stage = Stage::new("chatty");
    stage.write_config("telemetry: { log: { rateLimit: 1 } }\n");
    let mut outrigger = stage.start();
    outrigger.until_ready();
    outrigger.signal("TERM");
    assert_eq!(outrigger.exit_code(), 0);
    assert!(outrigger.log().contains("suppressed=3"), "{}", outrigger.log());
}

#[test]
fn an_idle_process_sleeps() {
    let outrigger = Stage::new("inbound,outbound,secrets,worker").start();
    outrigger.until_ready();
    let switches = || -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", outrigger.child.id())).unwrap();
        let of_task = |path: PathBuf| -> u64 {
            let status = fs::read_to_string(path.join("status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.map_or(0, |n| n.trim().parse().unwrap())
        };
        tasks.map(|task| of_task(task.unwrap().path())).sum()
    };
    std::thread::sleep(Duration::from_millis(300));
    let before = switches();
    std::thread::sleep(Duration::from_secs(3));
    let woken = switches() - before;
    assert!(woken <= 6, "{woken} wake-ups in three seconds of idleness");
}
