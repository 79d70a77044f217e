//! A stage for one process under test: its folder, its config, its diary, and ways to talk to it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Stage {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) cast: &'static str,
    pub(crate) command: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

pub(crate) struct Outrigger {
    pub(crate) child: Child,
    pub(crate) stage: Stage,
}

impl Stage {
    pub(crate) fn new(cast: &'static str) -> Self {
        let stage = Self { folder: tempfile::tempdir().unwrap(), cast, command: Vec::new(), environment: Vec::new() };
        stage.write_config("");
        stage
    }

    pub(crate) fn shell(mut self, script: &str) -> Self {
        self.command = vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
        self
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write_config(&self, more: &str) {
        let folder = self.folder.path().display();
        let runtime = if more.contains("runtime:") { "" } else { "runtime: { shutdownBudget: 6s, flushBudget: 2s }\n" };
        let text =
            format!("admin: {{ listen: \"unix:{folder}/admin\", health: \"unix:{folder}/health\" }}\n{runtime}{more}");
        fs::write(self.path("new.yaml"), text).unwrap();
        fs::rename(self.path("new.yaml"), self.path("outrigger.yaml")).unwrap();
    }

    /// The process, about to be started.
    pub(crate) fn prepare(&self, mut command: Command) -> Command {
        command.args(["--exact", "process", "--nocapture", "--test-threads=1"]);
        command.env("TEST_CONFIG", self.path("outrigger.yaml")).env("TEST_DIARY", self.path("diary"));
        command.env("TEST_CAST", self.cast).env_remove("RUST_BACKTRACE").stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if !self.command.is_empty() {
            command.env("TEST_COMMAND", self.command.join("\x1f"));
        }
        let log = fs::File::create(self.path("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        command
    }

    pub(crate) fn start(self) -> Outrigger {
        let child = self.prepare(Command::new(std::env::current_exe().unwrap())).spawn().unwrap();
        Outrigger { child, stage: self }
    }
}

impl Outrigger {
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.stage.path("log")).unwrap_or_default()
    }

    pub(crate) fn diary(&self) -> Vec<String> {
        let text = fs::read_to_string(self.stage.path("diary")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub(crate) fn until(&self, what: &str, enough: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !enough(self) {
            assert!(Instant::now() < deadline, "{what} did not come to pass\n{:?}\n{}", self.diary(), self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn until_ready(&self) {
        self.until("ready", |o| o.try_ask("admin", "GET /readyz").is_some_and(|(status, _)| status == 200));
    }

    pub(crate) fn until_noted(&self, line: &str) {
        self.until(line, |o| o.diary().iter().any(|l| l == line));
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn exit_code(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "it does not exit\n{:?}\n{}", self.diary(), self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks over a unix socket: `METHOD /path`, status and body.
    pub(crate) fn ask(&self, socket: &str, request: &str) -> (u16, String) {
        self.try_ask(socket, request).unwrap_or_else(|| panic!("no answer to {request}\n{}", self.log()))
    }

    pub(crate) fn try_ask(&self, socket: &str, request: &str) -> Option<(u16, String)> {
        let stream = UnixStream::connect(self.stage.path(socket)).ok()?;
        exchange(stream, &format!("{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
    }

    pub(crate) fn metric(&self, line: &str) -> bool {
        self.ask("admin", "GET /metrics").1.lines().any(|l| l == line)
    }
}

impl Drop for Outrigger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn exchange(mut stream: impl Read + Write, request: &str) -> Option<(u16, String)> {
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer))
}

pub(crate) fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

pub(crate) fn position(diary: &[String], line: &str) -> usize {
    diary.iter().position(|l| l == line).unwrap_or_else(|| panic!("`{line}` is not in {diary:?}"))
}

pub(crate) fn process_exists(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// Starts the stage at a terminal of its own; what is written to the child's input is typed there.
pub(crate) fn at_a_terminal(stage: Stage) -> Outrigger {
    let exe = std::env::current_exe().unwrap().display().to_string();
    let inner = format!("exec {exe} --exact process --nocapture --test-threads=1 2>>{}", stage.path("log").display());
    let command = stage.prepare(Command::new("env"));
    let environment: Vec<_> = command.get_envs().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))).collect();
    let mut command = Command::new("script");
    command.args(["-qefc", &inner, "/dev/null"]).envs(environment).stdin(Stdio::piped()).stdout(Stdio::null());
    let child = command.spawn().unwrap();
    Outrigger { child, stage }
}
