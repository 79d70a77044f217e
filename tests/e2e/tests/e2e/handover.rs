//! A sidecar is replaced under load, by way of `outrigger keeper`, and no client notices.
//!
//! Clients of every kind go on all the while: kept connections, new ones, HTTP/2, gRPC's kind,
//! mTLS, ordinary TLS, the kubelet's probes and StatsD. A client does what HTTP asks of it and no more: it sends a
//! request again when a connection that had served it before is closed without a byte of
//! an answer ([RFC 9112], 9.3.1).
//!
//! [RFC 9112]: https://www.rfc-editor.org/rfc/rfc9112

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use outrigger_e2e::{
    Application, Authority, Called, Calls, Process, eventually, free_port, free_udp_port, outrigger_command, request,
    run, tool,
};
use rustix::process::Signal;

const BACKEND: &str = "spiffe://shop.example/ns/shop/sa/backend";
const CLIENT: &str = "spiffe://shop.example/ns/shop/sa/client";
const TIMEOUT: Duration = Duration::from_secs(20);
/// Any user but root.
const NOBODY: u32 = 65_534;

/// A pod's sidecar, of which there is one process after the other.
struct Sidecar {
    folder: tempfile::TempDir,
    _application: Application,
    /// Answers with trailers.
    _calls: Process,
    client: PathBuf,
    bundle: PathBuf,
    plain: u16,
    grpc: u16,
    tls: u16,
    ordinary: u16,
    health: u16,
    metrics: u16,
    statsd: u16,
    starts: u32,
}

impl Sidecar {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let application = Application::start();
        let authority = Authority::new(&folder.path().join("ca"));
        let (leaf, client) = (authority.issue("backend", BACKEND), authority.issue("client", CLIENT));
        let server = authority.issue_server("server", "shop.test");
        let (calls, callee) = answering_calls(folder.path());
        let [plain, grpc, tls, ordinary, admin, health, metrics] = [(); 7].map(|()| free_port());
        let statsd = free_udp_port();
        let listener = |name: &str, port: u16, cluster: &str, more: &str| {
            format!(
                "  - name: {name}\n    direction: inbound\n    address: 127.0.0.1:{port}\n{more}    \
                 routes: [{{ name: all, backendRefs: [{{ name: {cluster} }}] }}]\n"
            )
        };
        let simple = format!(
            "    tls: {{ mode: simple, certificates: [{{ certificate: {}, key: {} }}] }}\n",
            server.certificate.display(),
            server.key.display()
        );
        let text = format!(
            "admin: {{ listen: \"127.0.0.1:{admin}\", health: \"127.0.0.1:{health}\" }}\n\
             runtime: {{ workers: 2, shutdownBudget: 10s, flushBudget: 4s, handover: {{ socket: \"{0}/keeper\" }} }}\n\
             identity:\n  trustDomain: shop.example\n  files: {{ certificate: {1}, key: {2}, trustBundle: {3} }}\n\
             metrics: {{ listen: \"127.0.0.1:{metrics}\", statsd: {{ listen: \"127.0.0.1:{statsd}\" }} }}\n\
             proxy:\n  listeners:\n{4}{5}{6}{7}  \
             clusters: [{{ name: app, endpoints: [\"{8}\"] }}, {{ name: calls, endpoints: [\"127.0.0.1:{callee}\"] }}]\n",
            folder.path().display(),
            leaf.certificate.display(),
            leaf.key.display(),
            authority.bundle().display(),
            listener("plain", plain, "app", ""),
            listener("grpc", grpc, "calls", ""),
            listener("tls", tls, "app", "    tls: { mode: strict }\n"),
            listener("ordinary", ordinary, "app", &simple),
            application.address,
        );
        fs::write(folder.path().join("outrigger.yaml"), text).unwrap();
        // One file, as curl likes it.
        let pair = [fs::read(&client.certificate).unwrap(), fs::read(&client.key).unwrap()].concat();
        fs::write(folder.path().join("client.pem"), pair).unwrap();
        let client = folder.path().join("client.pem");
        let bundle = authority.bundle();
        Self {
            folder,
            _application: application,
            _calls: calls,
            client,
            bundle,
            plain,
            grpc,
            tls,
            ordinary,
            health,
            metrics,
            statsd,
            starts: 0,
        }
    }

    /// The next process, ready.
    fn start(&mut self) -> Process {
        let mut process = self.start_by(outrigger_command());
        self.wait_ready(&mut process);
        process
    }

    fn start_by(&mut self, mut command: Command) -> Process {
        self.starts += 1;
        let command = command.arg("run").arg("-c").arg(self.folder.path().join("outrigger.yaml"));
        Process::start(&format!("outrigger-{}", self.starts), command, self.folder.path())
    }

    fn wait_ready(&self, process: &mut Process) {
        eventually("readiness", || {
            process.still_runs()?;
            ensure!(process.log().contains("ready took="), "not ready");
            request("GET", &format!("http://127.0.0.1:{}/readyz", self.health), &[], "")?.ok()
        });
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("keeper")
    }

    fn keeper(&self, arguments: &[&str]) -> Process {
        self.keeper_by(outrigger_command(), arguments)
    }

    fn keeper_by(&self, mut command: Command, arguments: &[&str]) -> Process {
        let before = fs::read_to_string(self.folder.path().join("keeper.log")).unwrap_or_default().len();
        command.args(["keeper", "--socket"]).arg(self.socket()).args(arguments);
        let mut keeper = Process::start("keeper", &mut command, self.folder.path());
        eventually("the keeper", || {
            keeper.still_runs()?;
            ensure!(keeper.log()[before..].contains("waiting for a worker's sockets"), "it does not listen yet");
            Ok(())
        });
        keeper
    }

    /// The next process takes the place of this one. How long new connections had to wait.
    fn replace(&mut self, process: &mut Process) -> Duration {
        self.replace_by(process, outrigger_command(), outrigger_command())
    }

    /// The same with executables of one's own: the keeper's, and the next worker's.
    fn replace_by(&mut self, process: &mut Process, keeper: Command, next: Command) -> Duration {
        let mut keeper = self.keeper_by(keeper, &[]);
        process.signal(Signal::TERM);
        let begun = Instant::now();
        assert_eq!(process.wait(TIMEOUT).code(), Some(0));
        *process = self.start_by(next);
        self.wait_ready(process);
        let gap = begun.elapsed();
        assert_eq!(keeper.wait(TIMEOUT).code(), Some(0), "{}", keeper.log());
        assert!(!self.socket().exists());
        gap
    }
}

/// A server whose answers have trailers, and its port.
fn answering_calls(folder: &Path) -> (Process, u16) {
    fs::write(folder.join("call"), "answer").unwrap();
    let port = free_port();
    let mut command = tool("nghttpd");
    command.args(["--no-tls", "--address", "127.0.0.1", "--trailer", "grpc-status: 0", "-d"]).arg(folder);
    let mut process = Process::start("nghttpd", command.arg(port.to_string()), folder);
    eventually("nghttpd", || {
        process.still_runs()?;
        TcpStream::connect(("127.0.0.1", port))?;
        Ok(())
    });
    (process, port)
}

/// Clients under way.
struct Load {
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
    clients: Vec<(&'static str, JoinHandle<Result<()>>)>,
}

#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    /// Kept connections that were closed just when the next request came.
    stale: AtomicU64,
    slowest_millis: AtomicU64,
}

impl Load {
    fn new() -> Self {
        Self { stop: Arc::default(), tally: Arc::default(), clients: Vec::new() }
    }

    /// Clients of HTTP/1.1, with and without TLS, and whoever else asks a sidecar all the time.
    fn start(sidecar: &Sidecar) -> Self {
        let mut load = Self::new();
        let (plain, tls, health, metrics) = (sidecar.plain, sidecar.tls, sidecar.health, sidecar.metrics);
        for pause in [0, 0, 0, 2, 5, 10] {
            let (mut kept, pause) = (None, Duration::from_millis(pause));
            load.add("a kept connection", move |tally| {
                std::thread::sleep(pause);
                exchange(plain, &mut kept, tally)
            });
            load.add("new connections", move |tally| exchange(plain, &mut None, tally));
        }
        let probe = move |port, path| {
            move |_: &Tally| {
                // A process that drains says 503, which is an answer.
                let response = request("GET", &format!("http://127.0.0.1:{port}{path}"), &[], "")?;
                ensure!(response.status == 200 || path == "/readyz", "{}", response.status);
                Ok(())
            }
        };
        load.add("the kubelet's probe", probe(health, "/livez"));
        load.add("the kubelet's readiness probe", probe(health, "/readyz"));
        load.add("Prometheus", probe(metrics, "/metrics"));
        let client = sidecar.client.display().to_string();
        let mtls = ["-k".to_owned(), "--cert".to_owned(), client].to_vec();
        let mtls = [mtls, twice(format!("https://127.0.0.1:{tls}"))].concat();
        load.add("mTLS", move |_| curl(&mtls));
        load
    }

    fn add(&mut self, name: &'static str, mut ask: impl FnMut(&Tally) -> Result<()> + Send + 'static) {
        let (stop, tally) = (Arc::clone(&self.stop), Arc::clone(&self.tally));
        let client = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                ask(&tally)?;
                tally.answered.fetch_add(1, Ordering::Relaxed);
                let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                tally.slowest_millis.fetch_max(took, Ordering::Relaxed);
            }
            Ok(())
        });
        self.clients.push((name, client));
    }

    /// Waits until `more` further requests were answered.
    #[track_caller]
    fn goes_on(&mut self, more: u64) {
        let until = self.tally.answered.load(Ordering::Relaxed) + more;
        eventually("the load to go on", || {
            if let Some(index) = self.clients.iter().position(|(_, client)| client.is_finished()) {
                let (name, client) = self.clients.swap_remove(index);
                panic!("{name}: {:?}", client.join().expect("no client panics"));
            }
            let answered = self.tally.answered.load(Ordering::Relaxed);
            ensure!(answered >= until, "{answered} of {until} requests");
            Ok(())
        });
    }

    /// Ends it, and fails with every failure there was.
    #[track_caller]
    fn end(self) -> Arc<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let failures: Vec<String> = self
            .clients
            .into_iter()
            .filter_map(|(name, client)| Some(format!("{name}: {:#}", client.join().expect("no client panics").err()?)))
            .collect();
        assert!(failures.is_empty(), "{failures:#?}");
        self.tally
    }
}

/// One request, on the connection there is or on a new one, which is kept if the server keeps it.
fn exchange(port: u16, kept: &mut Option<BufReader<TcpStream>>, tally: &Tally) -> Result<()> {
    let (mut stream, used) = match kept.take() {
        Some(stream) => (stream, true),
        None => (connect(port)?, false),
    };
    let mut keeps = ask(&mut stream);
    if used && matches!(&keeps, Err(Failure::NoAnswer)) {
        tally.stale.fetch_add(1, Ordering::Relaxed);
        stream = connect(port)?;
        keeps = ask(&mut stream);
    }
    match keeps {
        Ok(true) => *kept = Some(stream),
        Ok(false) => {}
        Err(Failure::NoAnswer) => bail!("closed without an answer"),
        Err(Failure::Other(error)) => return Err(error),
    }
    Ok(())
}

/// curl's arguments for two requests.
fn twice(address: String) -> Vec<String> {
    vec![format!("{address}/a"), "-o".to_owned(), "/dev/null".to_owned(), format!("{address}/b")]
}

fn curl(arguments: &[String]) -> Result<()> {
    let mut curl = tool("curl");
    run(curl.args(["-sS", "--fail", "--max-time", "20", "-o", "/dev/null"]).args(arguments)).map(|_| ())
}

fn connect(port: u16) -> Result<BufReader<TcpStream>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, TIMEOUT).context("connection refused")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

enum Failure {
    /// The connection was closed before a byte of an answer.
    NoAnswer,
    Other(anyhow::Error),
}

/// Whether the server keeps the connection after its answer.
fn ask(stream: &mut BufReader<TcpStream>) -> Result<bool, Failure> {
    let gone = |error: std::io::Error| match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Failure::NoAnswer,
        _ => Failure::Other(error.into()),
    };
    stream.get_mut().write_all(b"GET /load HTTP/1.1\r\nhost: shop\r\n\r\n").map_err(gone)?;
    let mut head = String::new();
    if stream.read_line(&mut head).map_err(gone)? == 0 {
        return Err(Failure::NoAnswer);
    }
    let rest = |stream: &mut BufReader<TcpStream>| -> Result<bool> {
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        let (mut length, mut keeps, mut line) = (0, true, String::new());
        while line != "\r\n" {
            line.clear();
            ensure!(stream.read_line(&mut line)? > 0, "the answer breaks off");
            let line = line.to_ascii_lowercase();
            length = line.strip_prefix("content-length: ").map_or(Ok(length), |n| n.trim().parse())?;
            keeps &= line.trim() != "connection: close";
        }
        stream.read_exact(&mut vec![0; length])?;
        Ok(keeps)
    };
    rest(stream).map_err(Failure::Other)
}

#[test]
fn a_sidecar_is_replaced_under_load_and_no_request_fails() {
    let mut sidecar = Sidecar::new();
    let mut process = sidecar.start();
    let load = Load::start(&sidecar);
    replace_under(load, &mut sidecar, &mut process, 200);
}

#[test]
fn clients_of_http2_notice_nothing_either() {
    let mut sidecar = Sidecar::new();
    let mut process = sidecar.start();
    let mut load = Load::new();
    for _ in 0..3 {
        // One request only: this curl fails the second one on a connection, whoever the server is.
        let arguments = ["--http2-prior-knowledge".to_owned(), format!("http://127.0.0.1:{}/a", sidecar.plain)];
        load.add("HTTP/2", move |_| curl(&arguments));
    }
    replace_under(load, &mut sidecar, &mut process, 20);
}

#[test]
fn clients_of_grpc_and_of_ordinary_tls_notice_nothing_either() {
    let mut sidecar = Sidecar::new();
    let mut process = sidecar.start();
    let (grpc, ordinary) = (sidecar.grpc, sidecar.ordinary);
    let mut load = Load::new();
    for pause in [0, 0, 3] {
        let (mut kept, pause) = (None, Duration::from_millis(pause));
        load.add("calls with trailers", move |tally| {
            std::thread::sleep(pause);
            call(grpc, &mut kept, tally)
        });
    }
    let address = format!("https://shop.test:{ordinary}");
    let resolve = format!("shop.test:{ordinary}:127.0.0.1");
    let common = ["--resolve", &resolve, "--cacert", &sidecar.bundle.display().to_string()].map(str::to_owned);
    let http1 = [&common[..], &["--http1.1".to_owned()], &twice(address.clone())].concat();
    load.add("ordinary TLS", move |_| curl(&http1));
    let http2 = [&common[..], &["--http2".to_owned(), address]].concat();
    load.add("ordinary TLS and HTTP/2", move |_| curl(&http2));
    replace_under(load, &mut sidecar, &mut process, 60);
    let text = request("GET", &format!("http://127.0.0.1:{}/metrics", sidecar.metrics), &[], "").unwrap().body;
    let counted =
        |line: &&str| line.starts_with("outrigger_http_requests_total{") && line.contains("listener=\"grpc\"");
    let calls: Vec<_> = text.lines().filter(counted).collect();
    assert!(calls.len() == 1 && calls[0].contains("code=\"200\""), "{calls:?}");
}

/// One call, on the connection there is or on a new one; what no server looked at is sent again.
fn call(port: u16, kept: &mut Option<Calls>, tally: &Tally) -> Result<()> {
    for _ in 0..5 {
        let mut calls = kept.take().map_or_else(|| Calls::connect(port), Ok)?;
        let called = calls.call("/call")?;
        if !calls.is_ending() {
            *kept = Some(calls);
        }
        match called {
            Called::Answered => return Ok(()),
            Called::Unseen => drop(tally.stale.fetch_add(1, Ordering::Relaxed)),
        }
    }
    bail!("five servers did not look at it")
}

#[track_caller]
fn replace_under(mut load: Load, sidecar: &mut Sidecar, process: &mut Process, pause: u64) {
    let mut gaps = Vec::new();
    for _ in 0..5 {
        load.goes_on(pause);
        gaps.push(sidecar.replace(process));
    }
    load.goes_on(pause);
    let tally = load.end();
    let [answered, stale, slowest] =
        [&tally.answered, &tally.stale, &tally.slowest_millis].map(|count| count.load(Ordering::Relaxed));
    println!("{answered} answers, {stale} stale connections, the slowest answer took {slowest} ms, gaps {gaps:?}");
    assert!(answered >= 6 * pause);
}

/// The executable under another version's name; its length is the same, so that everything else stays where it is.
fn of_another_version(folder: &Path) -> (PathBuf, String) {
    let version = run(outrigger_command().arg("--version")).unwrap();
    let own = version.split_whitespace().nth(1).unwrap().to_owned();
    let other: String = own.chars().map(|letter| if letter.is_ascii_digit() { '7' } else { letter }).collect();
    let mut bytes = fs::read(outrigger_command().get_program()).unwrap();
    let finder = memchr::memmem::Finder::new(&own);
    let places: Vec<_> = finder.find_iter(&bytes).collect();
    for place in places {
        bytes[place..place + own.len()].copy_from_slice(other.as_bytes());
    }
    let path = folder.join("outrigger-of-another-version");
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    (path, other)
}

#[test]
fn another_version_takes_over_and_gives_back_under_load() {
    let mut sidecar = Sidecar::new();
    let (path, version) = of_another_version(sidecar.folder.path());
    let mut process = sidecar.start();
    let mut load = Load::start(&sidecar);
    load.goes_on(200);
    // The upgrade: the old one's sockets, through a keeper of the new image, as an ephemeral container has it.
    sidecar.replace_by(&mut process, Command::new(&path), Command::new(&path));
    load.goes_on(200);
    // The rollback, by a keeper of the image that goes.
    sidecar.replace_by(&mut process, Command::new(&path), outrigger_command());
    load.goes_on(200);
    load.end();
    let log = fs::read_to_string(sidecar.folder.path().join("keeper.log")).unwrap();
    for said in [format!("to=\"outrigger {version}, "), format!("from=\"outrigger {version}, ")] {
        assert!(log.contains(&said), "{said} is not in\n{log}");
    }
}

/// What the keeper answers to a message, which is as a process of another version would say it.
fn say(socket: &Path, message: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(&[&(message.len() as u32).to_be_bytes(), message.as_bytes()].concat()).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

#[test]
fn what_another_version_says_is_understood_or_refused_with_the_reason() {
    let mut sidecar = Sidecar::new();
    let mut process = sidecar.start();
    let keeper = sidecar.keeper(&[]);
    for (name, message, expected) in [
        ("newer, with more to tell", r#"{"protocol":1,"type":"take","from":"x","mood":{"good":[1]}}"#, "\"empty\""),
        ("newer, and no longer understood", r#"{"protocol":2,"type":"take","from":"x"}"#, "it speaks version 2"),
        ("older than the first", r#"{"protocol":0,"type":"take","from":"x"}"#, "it speaks version 0"),
        ("newer, with another message", r#"{"protocol":1,"type":"share"}"#, "it says `share`, which is unknown here"),
    ] {
        let answer = say(&sidecar.socket(), message);
        assert!(answer.contains(expected), "{name}: {answer}");
    }
    assert!(keeper.log().contains("use a keeper of the newer image"), "{}", keeper.log());
    // None of them disturbed it.
    process.signal(Signal::TERM);
    assert_eq!(process.wait(TIMEOUT).code(), Some(0));
    drop(keeper);
    fs::remove_file(sidecar.socket()).ok();

    // A keeper that this worker does not understand: it says so, and starts without.
    let foreign = std::os::unix::net::UnixListener::bind(sidecar.socket()).unwrap();
    let answering = std::thread::spawn(move || {
        let (mut client, _) = foreign.accept().unwrap();
        let answer = br#"{"protocol":2,"type":"empty"}"#;
        client.write_all(&[&(answer.len() as u32).to_be_bytes()[..], answer].concat()).unwrap();
        let _ = client.read_to_end(&mut Vec::new());
    });
    let process = sidecar.start();
    answering.join().unwrap();
    let log = process.log();
    assert!(log.contains("sockets are not taken over") && log.contains("version 2 of the hand-over protocol"), "{log}");
}

/// A request that its client has begun and not ended.
fn begin_upload(port: u16) -> BufReader<TcpStream> {
    let mut upload = connect(port).unwrap();
    upload.get_mut().write_all(b"POST /upload HTTP/1.1\r\nhost: shop\r\ncontent-length: 5\r\n\r\nfi").unwrap();
    upload
}

#[test]
fn who_comes_while_a_request_under_way_ends_is_served_by_the_process_that_goes() {
    let mut sidecar = Sidecar::new();
    // Time enough for any machine: it ends with the upload.
    let path = sidecar.folder.path().join("outrigger.yaml");
    let config = fs::read_to_string(&path).unwrap().replace("shutdownBudget: 10s", "shutdownBudget: 120s");
    fs::write(path, config).unwrap();
    let mut process = sidecar.start();
    let mut keeper = sidecar.keeper(&[]);
    let mut upload = begin_upload(sidecar.plain);
    eventually("the upload to be under way", || {
        let text = request("GET", &format!("http://127.0.0.1:{}/metrics", sidecar.metrics), &[], "")?.ok()?;
        let under_way =
            |line: &str| line.starts_with("outrigger_http_requests_in_flight{") && line.contains("\"plain\"");
        ensure!(text.lines().any(|line| under_way(line) && line.ends_with(" 1")), "{text}");
        Ok(())
    });
    let mut kept = Some(connect(sidecar.plain).unwrap());
    assert!(matches!(ask(kept.as_mut().unwrap()), Ok(true)), "it is kept");

    process.signal(Signal::TERM);
    eventually("the sockets to be kept", || {
        ensure!(keeper.log().contains("keeping sockets"), "{}", keeper.log());
        Ok(())
    });
    let tally = Tally::default();
    let client = ["-k".to_owned(), "--cert".to_owned(), sidecar.client.display().to_string()];
    for _ in 0..3 {
        // Nobody else is there who could answer.
        exchange(sidecar.plain, &mut kept, &tally).unwrap();
        curl(&[&client[..], &[format!("https://127.0.0.1:{}/a", sidecar.tls)]].concat()).unwrap();
    }
    process.still_runs().unwrap();

    upload.get_mut().write_all(b"end").unwrap();
    let mut line = String::new();
    upload.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 200"), "{line}");
    assert_eq!(process.wait(TIMEOUT).code(), Some(0));
    let _next = sidecar.start();
    assert_eq!(keeper.wait(TIMEOUT).code(), Some(0), "{}", keeper.log());
}

#[test]
fn a_counter_that_was_sent_in_between_is_counted_by_the_next() {
    let mut sidecar = Sidecar::new();
    let mut process = sidecar.start();
    let mut keeper = sidecar.keeper(&[]);
    assert_eq!(process.stop().code(), Some(0));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"orders:7|c", ("127.0.0.1", sidecar.statsd)).unwrap();
    let _process = sidecar.start();
    eventually("the counter", || {
        let text = request("GET", &format!("http://127.0.0.1:{}/metrics", sidecar.metrics), &[], "")?.ok()?;
        ensure!(text.lines().any(|line| line.starts_with("orders") && line.ends_with(" 7")), "{text}");
        Ok(())
    });
    assert_eq!(keeper.wait(TIMEOUT).code(), Some(0));
}

#[test]
fn the_keeper_is_tiny_and_says_what_it_does() {
    let mut sidecar = Sidecar::new();
    let mut process = sidecar.start();
    let mut keeper = sidecar.keeper(&["--wait", "1s", "--log-format", "json"]);
    let mode = fs::metadata(sidecar.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // A debug build is several times as large, on disk and in memory.
    let debug = outrigger_command().get_program().to_string_lossy().contains("/debug/");
    let limit = if debug { 6 << 10 } else { 2 << 10 };
    let mut sizes = Vec::new();
    let mut until_small = |keeper: &Process| {
        // What a moment's work needs is given back after it.
        eventually("the keeper to be small", || {
            sizes.push(keeper.memory("VmRSS")?);
            ensure!(sizes.last().is_some_and(|size| *size <= limit), "{sizes:?} kB");
            Ok(())
        });
    };
    until_small(&keeper);
    process.signal(Signal::TERM);
    eventually("the sockets to be kept", || {
        ensure!(keeper.log().contains("keeping sockets"), "{}", keeper.log());
        Ok(())
    });
    until_small(&keeper);
    println!("{sizes:?} kB resident");
    assert_eq!(keeper.wait(TIMEOUT).code(), Some(3));
    assert_eq!(process.wait(TIMEOUT).code(), Some(0));
    for line in keeper.log().lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(event["message"].is_string() && event["component"] == "keeper", "{line}");
    }
    assert!(keeper.log().contains("they are closed"));
    assert!(TcpStream::connect(("127.0.0.1", sidecar.plain)).is_err());
}

/// In a container of its own, as far as process ids go.
fn contained() -> Command {
    let outrigger = outrigger_command();
    let mut command = tool("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(outrigger.get_program());
    command
}

#[test]
fn keeper_and_workers_may_be_in_containers_of_their_own() {
    let mut sidecar = Sidecar::new();
    let mut keeper = sidecar.keeper_by(contained(), &[]);
    let mut process = sidecar.start();
    process.signal(Signal::TERM);
    assert_eq!(process.wait(TIMEOUT).code(), Some(0));
    assert!(keeper.log().contains("keeping sockets"), "{}", keeper.log());
    let mut next = sidecar.start_by(contained());
    sidecar.wait_ready(&mut next);
    assert_eq!(keeper.wait(TIMEOUT).code(), Some(0), "{}", keeper.log());
    assert!(!next.log().contains("not taken over"), "{}", next.log());
}

#[test]
fn another_user_is_neither_given_nor_sends_anything() {
    let mut sidecar = Sidecar::new();
    let as_nobody = || {
        let mut command = tool("setpriv");
        let id = NOBODY.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(outrigger_command().get_program());
        command
    };
    open_to_all(sidecar.folder.path());
    // A keeper of another user is not trusted: whoever can write there could steal the pod's traffic.
    let mut process = sidecar.start();
    let mut foreign = sidecar.keeper_by(as_nobody(), &[]);
    assert_eq!(process.stop().code(), Some(0));
    assert!(process.log().contains("not trusted"), "{}", process.log());
    foreign.signal(Signal::TERM);
    assert_eq!(foreign.wait(TIMEOUT).code(), Some(4), "{}", foreign.log());
    fs::remove_file(sidecar.socket()).ok();
    // A keeper gives another user nothing, even when the file's mode would let it.
    let mut process = sidecar.start();
    let mut keeper = sidecar.keeper(&["--wait", "60s"]);
    fs::set_permissions(sidecar.socket(), PermissionsExt::from_mode(0o666)).unwrap();
    assert_eq!(process.stop().code(), Some(0));
    open_to_all(sidecar.folder.path());
    let mut thief = sidecar.start_by(as_nobody());
    eventually("the refusal", || {
        ensure!(thief.log().contains("sockets are not taken over"), "{}", thief.log());
        ensure!(thief.log().contains(&format!("runs as user {NOBODY}")), "{}", thief.log());
        Ok(())
    });
    // It cannot bind them either: they are held.
    assert_eq!(thief.wait(TIMEOUT).code(), Some(1));
    let _process = sidecar.start();
    assert_eq!(keeper.wait(TIMEOUT).code(), Some(0));
}

/// Lets any user read and use what is in a folder.
fn open_to_all(folder: &Path) {
    run(tool("chmod").arg("-R").arg("a+rwX").arg(folder)).unwrap();
}
