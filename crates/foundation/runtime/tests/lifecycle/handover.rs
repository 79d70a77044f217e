//! The keeper and the workers it stands between, as processes of their own.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use outrigger_config::OwnLog;
use outrigger_runtime::{KeeperOptions, keep};

use crate::load::Load;
use crate::stage::{Outrigger, Stage};

/// Not a test of its own: the keeper that the tests start.
#[test]
fn keeper() {
    let Some(socket) = std::env::var_os("TEST_KEEPER").map(PathBuf::from) else { return };
    let duration = |name: &str| Duration::from_millis(std::env::var(name).unwrap().parse().unwrap());
    let options =
        KeeperOptions { socket, wait: duration("TEST_WAIT"), idle: duration("TEST_IDLE"), log: OwnLog::default() };
    std::process::exit(keep(options));
}

const LONG: Duration = Duration::from_secs(60);

/// A keeper's process.
struct Keeper {
    child: Child,
    log: PathBuf,
    socket: PathBuf,
}

impl Keeper {
    fn start(folder: &Path, wait: Duration, idle: Duration) -> Self {
        let (log, socket) = (folder.join("keeper.log"), folder.join("keeper"));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "handover::keeper", "--nocapture", "--test-threads=1"]).env("TEST_KEEPER", &socket);
        command.env("TEST_WAIT", wait.as_millis().to_string()).env("TEST_IDLE", idle.as_millis().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        let keeper = Self { child: command.spawn().unwrap(), log, socket };
        keeper.until("waiting for a worker's sockets");
        keeper
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn until(&self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.log().contains(text) {
            assert!(Instant::now() < deadline, "the keeper did not say `{text}`:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn signal(&self, name: &str) {
        assert!(
            Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap().success()
        );
    }

    fn exit_code(&mut self) -> i32 {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "the keeper does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address, the keeper's folder, and as many workers one after the other as a test needs.
struct Roll {
    folder: tempfile::TempDir,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Roll {
    fn new() -> Self {
        let [address, admin] = [free_address(), free_address()];
        Self { folder: tempfile::tempdir().unwrap(), address, admin }
    }

    fn keeper(&self) -> Keeper {
        Keeper::start(self.folder.path(), LONG, LONG)
    }

    fn worker(&self, workers: usize) -> Outrigger {
        self.worker_as("server,outbound", workers)
    }

    fn worker_as(&self, cast: &'static str, workers: usize) -> Outrigger {
        let stage = Stage::new(cast).with("TEST_SERVER", &self.address.to_string());
        let (folder, admin) = (self.folder.path().display(), self.admin);
        let text = format!(
            "admin: {{ listen: \"unix:{folder}/admin\", health: \"{admin}\" }}\n\
             telemetry: {{ log: {{ level: debug }} }}\n\
             runtime: {{ workers: {workers}, shutdownBudget: 6s, flushBudget: 2s, handover: {{ socket: \"{folder}/keeper\", wait: 20s }} }}\n"
        );
        fs::write(stage.path("outrigger.yaml"), text).unwrap();
        stage.start()
    }
}

/// Where nobody listens now, below the range from which the kernel takes the ports of clients.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 71).unwrap() * 97;
    let mut ports = (0..7000).map(|_| 10_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 7000);
    let free =
        |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok() && UdpSocket::bind(("127.0.0.1", *port)).is_ok();
    SocketAddr::from(([127, 0, 0, 1], ports.find(free).unwrap()))
}

fn until_serving(worker: &Outrigger, roll: &Roll) {
    let pid = worker.child.id().to_string();
    worker.until("it to serve", |worker| {
        worker.log().contains(" ready") && get(roll.address).is_some_and(|answer| answer.ends_with(&pid))
    });
}

fn get(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    exchange(&mut stream)
}

fn exchange(stream: &mut TcpStream) -> Option<String> {
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").ok()?;
    let mut answer = vec![0; 256];
    let length = stream.read(&mut answer).ok()?;
    String::from_utf8(answer[..length].to_vec()).ok()
}

#[test]
fn workers_are_replaced_under_load_and_nothing_fails() {
    let roll = Roll::new();
    let mut worker = roll.worker(2);
    until_serving(&worker, &roll);
    let load = Load::start(roll.address, 6, 6);
    // More workers, fewer, one and many: whatever the group was, all of it is served.
    for workers in [3, 1, 1, 2] {
        load.goes_on(100);
        let mut keeper = roll.keeper();
        worker.signal("TERM");
        assert_eq!(worker.exit_code(), 0, "{}", worker.log());
        let health = TcpStream::connect(roll.admin).expect("the health port waits for the next one, too");
        let next = roll.worker(workers);
        assert_eq!(keeper.exit_code(), 0, "{}\n{}", keeper.log(), next.log());
        assert!(!keeper.socket.exists());
        load.goes_on(50);
        let mut probe = health;
        probe.write_all(b"GET /livez HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        probe.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("200 OK"), "{answer}");
        assert!(UnixStream::connect(roll.folder.path().join("admin")).is_ok());
        worker = next;
    }
    let (answered, slowest) = load.end();
    assert!(answered > 600 && slowest < Duration::from_secs(10), "{answered} answers, the slowest took {slowest:?}");
    let sockets: Vec<_> = worker.diary();
    assert!(sockets[1..].contains(&"server has 3 sockets".to_owned()), "a group never loses a member: {sockets:?}");
}

#[test]
fn datagrams_wait_for_the_next_worker() {
    let roll = Roll::new();
    let mut worker = roll.worker(1);
    until_serving(&worker, &roll);
    let mut keeper = roll.keeper();
    worker.signal("TERM");
    assert_eq!(worker.exit_code(), 0);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"patience", roll.address).unwrap();
    let next = roll.worker(1);
    next.until_noted("datagram patience");
    assert_eq!(keeper.exit_code(), 0);
}

#[test]
fn a_worker_that_is_started_early_waits_for_the_one_before_it() {
    let roll = Roll::new();
    let mut worker = roll.worker(2);
    until_serving(&worker, &roll);
    let mut keeper = roll.keeper();
    let next = roll.worker(2);
    next.until("it to wait", |next| next.log().contains("waiting for the sockets"));
    assert!(get(roll.address).unwrap().ends_with(&worker.child.id().to_string()));
    worker.signal("TERM");
    until_serving(&next, &roll);
    assert_eq!((worker.exit_code(), keeper.exit_code()), (0, 0));
    // And a signal ends the wait.
    let mut keeper = roll.keeper();
    let mut third = roll.worker(2);
    third.until("it to wait", |third| third.log().contains("waiting for the sockets"));
    third.signal("TERM");
    assert_eq!(third.exit_code(), 0);
    keeper.signal("TERM");
    assert_eq!(keeper.exit_code(), 4, "{}", keeper.log());
}

#[test]
fn a_worker_that_is_killed_leaves_nothing_to_wait_for() {
    let roll = Roll::new();
    let mut worker = roll.worker(2);
    until_serving(&worker, &roll);
    let mut keeper = roll.keeper();
    let next = roll.worker(2);
    next.until("it to wait", |next| next.log().contains("waiting for the sockets"));
    worker.child.kill().unwrap();
    worker.child.wait().unwrap();
    until_serving(&next, &roll);
    // The keeper is still there, for the next one.
    let mut worker = next;
    worker.signal("TERM");
    assert_eq!(worker.exit_code(), 0);
    let next = roll.worker(2);
    until_serving(&next, &roll);
    assert_eq!(keeper.exit_code(), 0);
}

#[test]
fn a_worker_that_fails_to_start_leaves_the_sockets_with_the_keeper() {
    let roll = Roll::new();
    let mut worker = roll.worker(2);
    until_serving(&worker, &roll);
    let mut keeper = roll.keeper();
    worker.signal("TERM");
    assert_eq!(worker.exit_code(), 0);
    // Two that never become ready; one ends badly, one when it is told to.
    for signal in ["KILL", "TERM"] {
        let broken = roll.worker_as("server,failing", 2);
        broken.until("it to take the sockets", |broken| broken.log().contains("took over sockets"));
        broken.until("a failure", |broken| broken.log().contains("the dog ate it"));
        broken.signal(signal);
        let mut broken = broken;
        broken.exit_code();
    }
    keeper.until("the worker ended before it was ready");
    let waiting = TcpStream::connect(roll.address).expect("the keeper holds the socket");
    let next = roll.worker(2);
    let mut waiting = waiting;
    let answer = exchange(&mut waiting).unwrap();
    assert!(answer.ends_with(&next.child.id().to_string()), "{answer}");
    assert_eq!(keeper.exit_code(), 0);
}

#[test]
fn a_keeper_that_nobody_comes_to_closes_the_sockets_and_says_so() {
    for (wait, signal) in [(Duration::from_millis(200), None), (LONG, Some("TERM"))] {
        let roll = Roll::new();
        let mut worker = roll.worker(2);
        until_serving(&worker, &roll);
        let mut keeper = Keeper::start(roll.folder.path(), wait, LONG);
        worker.signal("TERM");
        keeper.until("keeping sockets");
        if let Some(signal) = signal {
            keeper.signal(signal);
        }
        assert_eq!(keeper.exit_code(), 3, "{}", keeper.log());
        assert!(keeper.log().contains("they are closed"), "{}", keeper.log());
        assert_eq!(worker.exit_code(), 0);
        assert!(TcpStream::connect(roll.address).is_err());
        until_serving(&roll.worker(2), &roll);
    }
    let roll = Roll::new();
    let mut keeper = Keeper::start(roll.folder.path(), LONG, Duration::from_millis(50));
    assert_eq!(keeper.exit_code(), 4, "{}", keeper.log());
}

#[test]
fn a_worker_that_is_slow_to_become_ready_keeps_what_it_took() {
    let roll = Roll::new();
    let mut worker = roll.worker(2);
    until_serving(&worker, &roll);
    let mut keeper = Keeper::start(roll.folder.path(), Duration::from_secs(2), LONG);
    worker.signal("TERM");
    assert_eq!(worker.exit_code(), 0);
    let slow = roll.worker_as("server,failing", 2);
    slow.until("it to take the sockets", |slow| slow.log().contains("took over sockets"));
    assert_eq!(keeper.exit_code(), 0, "{}", keeper.log());
    assert!(keeper.log().contains("has not become ready"), "{}", keeper.log());
    assert!(get(roll.address).unwrap().ends_with(&slow.child.id().to_string()));
}

#[test]
fn a_listener_that_the_next_worker_does_not_want_is_closed() {
    let roll = Roll::new();
    let mut worker = roll.worker(2);
    until_serving(&worker, &roll);
    let mut keeper = roll.keeper();
    worker.signal("TERM");
    assert_eq!(worker.exit_code(), 0);
    let without = roll.worker_as("outbound", 2);
    assert_eq!(keeper.exit_code(), 0, "{}", keeper.log());
    assert!(without.log().contains("is used by no listener; closed"), "{}", without.log());
    without.until("the port to be free", |_| TcpStream::connect(roll.address).is_err());
    assert!(TcpListener::bind(roll.address).is_ok());
}

#[test]
fn a_keeper_that_dies_costs_no_more_than_its_sockets() {
    let roll = Roll::new();
    let mut worker = roll.worker(2);
    until_serving(&worker, &roll);
    let mut keeper = roll.keeper();
    worker.signal("TERM");
    keeper.until("keeping sockets");
    keeper.child.kill().unwrap();
    assert_eq!(worker.exit_code(), 0);
    // Its socket's file is still there, and so are those of unix listeners; nobody answers at any of them.
    let next = roll.worker(2);
    until_serving(&next, &roll);
    drop(next);
    // A new keeper takes the place of the dead one.
    let second = roll.keeper();
    let mode = fs::metadata(&second.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn without_a_keeper_nothing_differs() {
    let roll = Roll::new();
    let mut worker = roll.worker(2);
    until_serving(&worker, &roll);
    worker.signal("TERM");
    assert_eq!(worker.exit_code(), 0);
    assert!(worker.log().contains("no keeper is there"), "{}", worker.log());
    assert!(TcpStream::connect(roll.address).is_err());
    assert!(!roll.folder.path().join("admin").exists());
}

#[test]
fn clients_that_talk_rubbish_or_nothing_disturb_nobody() {
    let roll = Roll::new();
    let mut worker = roll.worker(2);
    until_serving(&worker, &roll);
    let mut keeper = roll.keeper();
    let socket = keeper.socket.clone();
    let said = |bytes: &[u8]| -> String {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // It may hang up with some of our bytes unread, which is an error here.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(answer.get(4..).unwrap_or_default()).into_owned()
    };
    let framed = |text: &str| [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat();
    let silent: Vec<UnixStream> = (0..8).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    for (bytes, part) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "too long"),
        (framed("not json"), "not JSON"),
        (framed(r#"{"protocol":7,"type":"take","from":"x"}"#), "version 7"),
        (framed(r#"{"protocol":1,"type":"ready"}"#), "nothing a worker says"),
        (framed(r#"{"protocol":1,"type":"empty"}"#), "nothing a worker says"),
        (framed(r#"{"protocol":1,"type":"give","from":"x","more":false,"sockets":[{"address":"x"}]}"#), "descriptors"),
    ] {
        let answer = said(&bytes);
        assert!(answer.contains(part), "{} gives {answer}", String::from_utf8_lossy(&bytes));
    }
    worker.signal("TERM");
    assert_eq!(worker.exit_code(), 0);
    // Half a message, left lying there.
    let mut half = UnixStream::connect(&socket).unwrap();
    half.write_all(&[0, 0]).unwrap();
    let answer = said(&framed(r#"{"protocol":1,"type":"give","from":"x","more":false,"sockets":[{"address":"x"}]}"#));
    assert!(answer.contains("refused"), "{answer}");
    keeper.until("it was silent for too long");
    drop(silent);
    let next = roll.worker(2);
    until_serving(&next, &roll);
    assert_eq!(keeper.exit_code(), 0, "{}", keeper.log());
}
