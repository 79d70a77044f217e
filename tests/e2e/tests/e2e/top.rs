//! `outrigger top`: one look, and a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use outrigger_e2e::{Application, Outrigger, eventually, free_port, outrigger_command, request, start_outrigger};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;

struct Pod {
    outrigger: Outrigger,
    _application: Application,
    port: u16,
}

impl Pod {
    fn start(folder: &Path) -> Self {
        let (application, port) = (Application::start(), free_port());
        let config = format!(
            r#"proxy:
  listeners:
    - {{ name: in, direction: inbound, address: "127.0.0.1:{port}", limits: {{ maxConnections: 500 }}, routes: [{{ name: all, backendRefs: [{{ name: app }}] }}, {{ name: nowhere, matches: [{{ path: {{ value: /gone }} }}], backendRefs: [{{ name: gone }}] }}] }}
  clusters:
    - {{ name: app, endpoints: ["{}"] }}
    - {{ name: gone, endpoints: ["127.0.0.1:{}"] }}
"#,
            application.address,
            free_port()
        );
        Self { outrigger: start_outrigger(folder, &config), _application: application, port }
    }

    fn get(&self, path: &str) -> u16 {
        request("GET", &format!("http://127.0.0.1:{}{path}", self.port), &[], "").expect("an answer").status
    }

    fn once(&self, flags: &[&str]) -> String {
        let arguments = ["top", "--admin", &self.outrigger.admin, "--once", "--interval", "500ms"];
        let output = outrigger_command().args(arguments).args(flags).output().expect("the executable can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("all that is printed is UTF-8")
    }
}

fn row<'a>(report: &'a Value, name: &str) -> &'a Value {
    let rows = report["rows"].as_array().expect("rows");
    rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no row {name} in {report:#}"))
}

#[test]
fn one_look_tells_what_went_on() {
    let folder = tempfile::tempdir().unwrap();
    let pod = Pod::start(folder.path());
    (0..30).for_each(|_| assert_eq!(pod.get("/"), 200));
    (0..10).for_each(|_| assert_eq!(pod.get("/gone"), 503));
    let report: Value = serde_json::from_str(&pod.once(&["--format", "json"])).unwrap();
    let (all, nowhere) = (row(&report, "all"), row(&report, "nowhere"));
    assert_eq!((&all["requests"], &all["failed"], &all["rate"]), (&30.into(), &0.into(), &0.0.into()), "{report:#}");
    assert_eq!((&nowhere["requests"], &nowhere["failed"]), (&10.into(), &10.into()));
    assert!(all["p50"].is_null() && report["by"] == "route", "nothing happened meanwhile: {report:#}");

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_eq!((pod.get("/"), pod.get("/gone")), (200, 503));
            }
        });
        for (by, good, bad) in [("route", "all", "nowhere"), ("cluster", "app", "gone")] {
            let report: Value = serde_json::from_str(&pod.once(&["--format", "json", "--by", by])).unwrap();
            let (good, bad) = (row(&report, good), row(&report, bad));
            assert!(good["rate"].as_f64().unwrap() > 0.0 && bad["rate"].as_f64().unwrap() > 0.0, "{report:#}");
            assert_eq!((&good["success"], &bad["success"]), (&1.0.into(), &0.0.into()), "{report:#}");
            assert!(good["p50"].as_f64().unwrap() <= good["p99"].as_f64().unwrap(), "{report:#}");
        }
        let text = pod.once(&["--by", "listener"]);
        assert!(
            text.lines().any(|line| line.starts_with("in ") && line.contains("/500")) && text.contains("RATE/s"),
            "{text}"
        );
        assert!(!text.contains('\x1b'), "{text}");
        done.store(true, Ordering::Relaxed);
    });
    let nobody = outrigger_command().args(["top", "--once", "--admin", "127.0.0.1:1"]).output().unwrap();
    let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(nobody.status.code() == Some(1) && said.contains("is Outrigger running?"), "{said}");
}

/// A program on a terminal of its own.
struct Terminal {
    master: File,
    terminal: OwnedFd,
    child: Child,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn start(pod: &Pod) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("a pseudo-terminal of ours");
        let name = ptsname(&master, Vec::new()).expect("it has a name");
        let path = name.into_string().expect("a path of digits and letters");
        let terminal: OwnedFd = File::options().read(true).write(true).open(path).expect("it can be opened").into();
        resize(&terminal, 80, 24);
        let side = || Stdio::from(terminal.try_clone().expect("a file can be cloned"));
        let child = outrigger_command()
            .args(["top", "--interval", "200ms", "--admin", &pod.outrigger.admin])
            .env("TERM", "xterm")
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .expect("the executable can be started");
        let (master, written) = (File::from(master), Arc::<Mutex<Vec<u8>>>::default());
        let (mut reader, kept) = (master.try_clone().expect("a file can be cloned"), Arc::clone(&written));
        // Ends with the terminal.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                kept.lock().expect("no test panics with the lock").extend_from_slice(&bytes[..count]);
            }
        });
        Self { master, terminal, child, written }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().expect("no test panics with the lock")).into_owned()
    }

    /// The last whole frame.
    fn frame(&self) -> String {
        let text = self.text();
        let whole = text.rfind("\x1b[J").map_or("", |end| &text[..end]);
        whole.rsplit("\x1b[H").next().unwrap_or_default().to_owned()
    }

    fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("the terminal is there");
    }

    #[track_caller]
    fn shows(&self, part: &str) {
        eventually(&format!("`{part}` on the terminal"), || {
            let frame = self.frame();
            ensure!(frame.contains(part), "{frame}");
            Ok(())
        });
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).expect("it is a terminal").local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    #[track_caller]
    fn ended(&mut self) -> ExitStatus {
        let status = eventually("its end", || -> Result<ExitStatus> { self.child.try_wait()?.context("it runs") });
        assert!(!self.is_raw(), "the terminal is as it was");
        eventually("the first screen to be back", || {
            let text = self.text();
            ensure!(text.contains("\x1b[?1049h") && text.ends_with("\x1b[?25h\x1b[?1049l"), "{text:?}");
            Ok(())
        });
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resize(terminal: &OwnedFd, columns: u16, lines: u16) {
    let size = Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("it is a terminal");
}

#[test]
fn a_terminal_is_drawn_on_reacts_to_keys_and_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut pod = Pod::start(folder.path());
    assert_eq!((pod.get("/"), pod.get("/gone")), (200, 503));
    let mut top = Terminal::start(&pod);
    top.shows("nowhere");
    assert!(top.is_raw());
    top.press("2");
    top.shows("CLUSTER");
    top.press("n");
    top.shows("app");
    // The first of them, and what is behind it.
    top.press("\r");
    top.shows("cluster=app");
    top.press("\x1b");
    top.shows("gone");
    top.press("?");
    top.shows("sort by rate");
    top.press("1");
    top.press("1");
    top.shows("ROUTE");
    resize(&top.terminal, 40, 10);
    top.signal(Signal::WINCH);
    eventually("a smaller frame", || {
        let frame = top.frame();
        let plain = frame.replace("\x1b[K", "").replace("\x1b[0m", "").replace("\x1b[1m", "");
        let plain = ["\x1b[2m", "\x1b[7m", "\x1b[31m"].iter().fold(plain, |text, code| text.replace(code, ""));
        let lines: Vec<_> = plain.split("\r\n").collect();
        ensure!(lines.len() == 10 && lines.iter().all(|line| line.chars().count() <= 40), "{lines:#?}");
        Ok(())
    });
    top.press("q");
    assert!(top.ended().success());

    for end in [Signal::TERM, Signal::INT] {
        let mut top = Terminal::start(&pod);
        top.shows("nowhere");
        top.signal(end);
        assert!(top.ended().success());
    }
    let mut top = Terminal::start(&pod);
    top.shows("nowhere");
    pod.outrigger.process.kill();
    top.shows("cannot reach");
    top.press("\x03");
    assert!(top.ended().success());
}
