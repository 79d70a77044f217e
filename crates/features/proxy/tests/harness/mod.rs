//! Raw clients, scripted applications, and proxies run as the runtime would run them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outrigger_config::Config;
use outrigger_http::Resolver;
use outrigger_identity::{Identities, IdentityComponent};
use outrigger_runtime::{BoxError, Component, Context, LineQueue, Standalone};
use outrigger_telemetry::trace::SpanQueue;
use outrigger_telemetry::{Format, Registry};
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Polls until something holds, letting the runtime work meanwhile.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn text<E: std::fmt::Debug>(outcome: Result<String, E>) -> String {
    outcome.unwrap()
}

/// A client that speaks bytes.
pub(crate) struct Client(TcpStream);

impl Client {
    pub(crate) fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    pub(crate) fn send(&mut self, bytes: &str) {
        self.0.write_all(bytes.as_bytes()).unwrap();
    }

    pub(crate) fn into_socket(self) -> TcpStream {
        self.0
    }

    /// The socket itself.
    pub(crate) fn socket(&mut self) -> &mut TcpStream {
        &mut self.0
    }

    /// Sends and reads one answer: its head, and its body as the head frames it.
    pub(crate) fn ask(&mut self, request: &str) -> String {
        self.ask_bytes(request.as_bytes())
    }

    pub(crate) fn ask_bytes(&mut self, request: &[u8]) -> String {
        // The answer may come, and the connection end, before all of a refused request is taken.
        let _ = self.0.write_all(request);
        let mut answer = String::new();
        loop {
            let more = self.read_some();
            if more.is_empty() {
                return answer;
            }
            answer.push_str(&more);
            if let Some((head, body)) = answer.split_once("\r\n\r\n") {
                let head = head.to_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                let whole = match length {
                    Some(length) => body.len() >= length.parse().unwrap(),
                    None => body.ends_with("0\r\n\r\n"),
                };
                if whole {
                    return answer;
                }
            }
        }
    }

    pub(crate) fn read_some(&mut self) -> String {
        let mut buffer = [0; 4096];
        let read = self.0.read(&mut buffer).unwrap_or(0);
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    }

    pub(crate) fn read_to_end(&mut self) -> String {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => all.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                Err(error) => panic!("the connection was not closed: {error}"),
            }
        }
        String::from_utf8_lossy(&all).into_owned()
    }
}

/// An application that answers each request as a script says.
pub(crate) struct App {
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<String>>>,
}

/// What the application does with a request: answer it, or not; and whether it then closes.
type Script = dyn Fn(usize, &str) -> (Option<String>, bool) + Send + Sync;

impl App {
    pub(crate) fn answering(answer: &str) -> Self {
        let answer = answer.to_owned();
        Self::new(move |_| Some(answer.clone()))
    }

    pub(crate) fn new(script: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        Self::scripted(Arc::new(move |_, request: &str| (script(request), false)))
    }

    pub(crate) fn closing_after(answer: &str) -> Self {
        let answer = answer.to_owned();
        Self::scripted(Arc::new(move |_, _: &str| (Some(answer.clone()), true)))
    }

    pub(crate) fn closing_on_second_request(answer: &str) -> Self {
        let answer = answer.to_owned();
        Self::scripted(Arc::new(
            move |number, _: &str| if number == 0 { (Some(answer.clone()), false) } else { (None, true) },
        ))
    }

    /// Answers one request for each message on the channel.
    pub(crate) fn held(answer: &str) -> (Self, SyncSender<()>) {
        let (sender, receiver): (SyncSender<()>, Receiver<()>) = sync_channel(4);
        let (answer, receiver) = (answer.to_owned(), Mutex::new(receiver));
        let app = Self::new(move |_| {
            let _ = receiver.lock().unwrap().recv_timeout(PATIENCE);
            Some(answer.clone())
        });
        (app, sender)
    }

    fn scripted(script: Arc<Script>) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        Self { seen, ..Self::talking(move |stream| converse(stream, &*script, &log)) }
    }

    /// An application that does with each connection what it likes.
    pub(crate) fn talking(talk: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let talk = Arc::new(talk);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let talk = Arc::clone(&talk);
                std::thread::spawn(move || talk(stream.unwrap()));
            }
        });
        Self { port, seen: Arc::default() }
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// One plain inbound listener `in` in front of this application.
    pub(crate) fn plain_config(&self, listener_lines: &str) -> String {
        format!(
            r#"
proxy:
  listeners:
    - name: in
      direction: inbound
      address: 127.0.0.1:PORT
      routes: [{{ name: all, backendRefs: [{{ name: app }}] }}]
{listener_lines}  clusters:
    - name: app
      endpoints: ["127.0.0.1:{}"]
"#,
            self.port
        )
    }
}

fn converse(mut stream: TcpStream, script: &Script, log: &Mutex<Vec<String>>) {
    for number in 0.. {
        let Some(request) = read_request(&mut stream) else { return };
        log.lock().unwrap().push(request.clone());
        let (answer, close) = script(number, &request);
        if let Some(answer) = answer
            && stream.write_all(answer.as_bytes()).is_err()
        {
            return;
        }
        if close {
            return;
        }
    }
}

pub(crate) fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        request.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&request).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    if head.contains("expect: 100-continue") {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    if head.contains("transfer-encoding: chunked") {
        // Trailers may come behind the last chunk.
        let begin = request.len() - 2;
        let last = |body: &[u8]| body.windows(5).any(|bytes| bytes == b"\r\n0\r\n");
        while !(request.ends_with(b"\r\n\r\n") && last(&request[begin..])) {
            stream.read_exact(&mut byte).ok()?;
            request.push(byte[0]);
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    request.extend_from_slice(&body);
    Some(String::from_utf8_lossy(&request).into_owned())
}

/// The inbound or outbound component, run as the runtime runs it.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    registry: Registry,
    standalone: Standalone,
    running: JoinSet<Result<(), BoxError>>,
}

impl Proxy {
    pub(crate) async fn start(config: &str) -> Self {
        Self::start_on(config, 2).await
    }

    /// Starts the inbound component on so many workers.
    pub(crate) async fn start_on(config: &str, workers: usize) -> Self {
        let (_unused, identities) = IdentityComponent::new();
        Self::launch(config, identities, 0, workers, Resolver::from_system()).await
    }

    /// Starts the inbound component on one worker, with a resolver of its own.
    pub(crate) async fn start_resolving(config: &str, resolver: Resolver) -> Self {
        let (_unused, identities) = IdentityComponent::new();
        Self::launch(config, identities, 0, 1, resolver).await
    }

    /// Starts the component of a direction: 0 inbound, 1 outbound. `PORT` in the config becomes a free port.
    pub(crate) async fn start_with(config: &str, identities: Identities, direction: usize) -> Self {
        Self::launch(config, identities, direction, 2, Resolver::from_system()).await
    }

    async fn launch(
        config: &str,
        identities: Identities,
        direction: usize,
        workers: usize,
        resolver: Resolver,
    ) -> Self {
        let port = free_port();
        let config = parse(&config.replace("PORT", &port.to_string()));
        let (ctx, mut standalone) = Context::standalone(config, workers);
        let registry = ctx.registry.clone();
        let component = outrigger_proxy::components(identities, resolver, SpanQueue::new(), LineQueue::new(), None)
            .remove(direction);
        let mut running = JoinSet::new();
        running.spawn(async move { component.run(ctx).await });
        tokio::select! {
            () = standalone.ready() => {}
            ended = running.join_next() => panic!("the proxy did not start: {ended:?}"),
            () = tokio::time::sleep(PATIENCE) => panic!("the proxy is not ready"),
        }
        Self { port, registry, standalone, running }
    }

    pub(crate) fn reload(&self, config: &str) {
        let config = parse(&config.replace("PORT", &self.port.to_string()));
        self.standalone.config.send(Arc::new(config)).unwrap();
    }

    pub(crate) fn status(&self) -> (&'static str, String) {
        self.standalone.status()
    }

    pub(crate) fn request_stop(&mut self, within: Duration) {
        self.standalone.stop.request(tokio::time::Instant::now() + within);
    }

    pub(crate) async fn ended(&mut self) {
        let ended = tokio::time::timeout(PATIENCE, self.running.join_next()).await.expect("the stop has an end");
        ended.unwrap().unwrap().unwrap();
    }

    pub(crate) async fn stop(mut self) {
        self.request_stop(Duration::from_secs(2));
        self.ended().await;
    }

    /// What the admin API answers, which is JSON.
    pub(crate) async fn admin(&self, path: &str) -> serde_json::Value {
        let handler = self.standalone.admin.handler(path).unwrap();
        let request = outrigger_runtime::AdminRequest { query: String::new(), headers: http::HeaderMap::new() };
        serde_json::from_slice(&handler(request).await.into_body().whole().unwrap()).unwrap()
    }

    /// All metrics as text.
    pub(crate) fn metrics(&self) -> String {
        let mut bytes = Vec::new();
        self.registry.encode(Format::Text, &mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    /// Waits until the metrics hold a text.
    pub(crate) async fn metrics_have(&self, wanted: &str) {
        self.metrics_have_one_of(&[wanted]).await;
    }

    pub(crate) async fn metrics_have_one_of(&self, wanted: &[&str]) {
        let mut text = String::new();
        let deadline = Instant::now() + PATIENCE;
        while !wanted.iter().any(|wanted| text.contains(wanted)) {
            assert!(Instant::now() < deadline, "none of {wanted:?} is in\n{text}");
            tokio::time::sleep(Duration::from_millis(5)).await;
            text = self.metrics();
        }
    }

    /// Waits until a metric has the value: what a client sees is counted a moment later.
    pub(crate) async fn counts(&self, name: &str, value: f64) {
        self.counts_such(name, |now| now == value).await;
    }

    /// Waits until a metric has at least the value.
    pub(crate) async fn counts_at_least(&self, name: &str, value: f64) {
        self.counts_such(name, |now| now >= value).await;
    }

    async fn counts_such(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(self.metric(name)) {
            assert!(Instant::now() < deadline, "{name} is {}", self.metric(name));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The value of a metric now, by its name and labels as they are written; 0 when there is none.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let metrics = self.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

fn parse(text: &str) -> Config {
    outrigger_config::parse("test.yaml", text, &|_| None).unwrap_or_else(|error| panic!("{error}")).config
}

/// A workload's identity, kept by its component.
pub(crate) struct Identified {
    /// The config's section.
    pub(crate) section: String,
    pub(crate) identities: Identities,
    outside: Standalone,
}

impl Identified {
    /// The identity of a service account, from the development authority in a folder.
    pub(crate) async fn start(authority: &tempfile::TempDir, account: &str, keepers: &mut JoinSet<()>) -> Self {
        let section = identity_section(authority, account);
        let (component, identities) = IdentityComponent::new();
        let (ctx, outside) = Context::standalone(parse(&section), 1);
        keepers.spawn(async move { component.run(ctx).await.unwrap() });
        tokio::time::timeout(PATIENCE, identities.first()).await.unwrap().expect("an identity");
        Self { section, identities, outside }
    }

    /// Gives it a new certificate, of the authority in this folder.
    pub(crate) async fn renew(&self, authority: &tempfile::TempDir) {
        let before = self.identities.current().unwrap().generation;
        let account = self.section.split("serviceAccount: ").nth(1).unwrap().split([' ', '}']).next().unwrap();
        // Another lifetime makes it another section, and so a new certificate.
        let section = identity_section(authority, &format!("{account}, ttl: {}s", 3000 - before));
        self.outside.config.send(Arc::new(parse(&section))).unwrap();
        let mut newest = self.identities.subscribe();
        let newer = newest.wait_for(|one| one.as_ref().is_some_and(|one| one.generation > before));
        tokio::time::timeout(PATIENCE, newer).await.expect("a new certificate").unwrap();
    }
}

/// A frontend's outbound side and a backend's inbound side with mTLS between them.
pub(crate) struct Shop {
    pub(crate) backend: Proxy,
    pub(crate) frontend: Proxy,
    /// As it was given, with `PORT`.
    pub(crate) frontend_config: String,
    /// The same of the backend.
    pub(crate) backend_config: String,
    authority: tempfile::TempDir,
    /// The backend's and the frontend's identity.
    workloads: [Identified; 2],
    _keepers: JoinSet<()>,
}

impl Shop {
    /// `expected` is whom the frontend takes the backend for.
    pub(crate) async fn start(app: &App, expected: &str) -> Self {
        Self::start_with(app, expected, "limits: {}").await
    }

    /// With a further line for the backend's listener.
    pub(crate) async fn start_with(app: &App, expected: &str, line: &str) -> Self {
        Self::start_in_mode(app, expected, line, "strict").await
    }

    /// With a backend that takes plain text too.
    pub(crate) async fn start_permissive(app: &App, expected: &str) -> Self {
        Self::start_in_mode(app, expected, "limits: {}", "permissive").await
    }

    /// With a further line for the frontend's cluster, and a frontend of so many workers.
    pub(crate) async fn start_toward(app: &App, cluster_line: &str, workers: usize) -> Self {
        let expected = "spiffe://shop.example/ns/shop/sa/backend";
        Self::start_wholly(app, expected, "limits: {}", "strict", cluster_line, workers).await
    }

    async fn start_in_mode(app: &App, expected: &str, line: &str, mode: &str) -> Self {
        Self::start_wholly(app, expected, line, mode, "# as it comes", 2).await
    }

    async fn start_wholly(
        app: &App,
        expected: &str,
        line: &str,
        mode: &str,
        cluster_line: &str,
        workers: usize,
    ) -> Self {
        let authority = tempfile::tempdir().unwrap();
        let mut keepers = JoinSet::new();
        let workloads = [
            Identified::start(&authority, "backend", &mut keepers).await,
            Identified::start(&authority, "frontend", &mut keepers).await,
        ];
        let [backend_identity, frontend_identity] = &workloads;
        let peers = "[spiffe://shop.example/ns/shop/sa/frontend, spiffe://shop.example/ns/shop/sa/renewed]";
        let tls = format!("      tls: {{ mode: {mode}, allowedPeers: {peers} }}\n");
        let backend_config = backend_identity.section.clone() + &app.plain_config(&format!("{tls}      {line}\n"));
        let backend = Proxy::start_with(&backend_config, backend_identity.identities.clone(), 0).await;
        let config = frontend_identity.section.clone()
            + &format!(
                r#"
proxy:
  listeners:
    - name: out
      direction: outbound
      address: 127.0.0.1:PORT
      routes: [{{ name: all, backendRefs: [{{ name: backend }}] }}]
  clusters:
    - name: backend
      endpoints: ["127.0.0.1:{}"]
      tls: {{ spiffeIds: ["{expected}"] }}
      {cluster_line}
"#,
                backend.port
            );
        let identities = frontend_identity.identities.clone();
        let frontend = Proxy::launch(&config, identities, 1, workers, Resolver::from_system()).await;
        Self { backend, frontend, frontend_config: config, backend_config, authority, workloads, _keepers: keepers }
    }

    /// Gives the frontend a new certificate, for another account so that it can be told from the old one.
    pub(crate) fn rotate_frontend(&self, account: &str) {
        let config = parse(&identity_section(&self.authority, account));
        self.workloads[1].outside.config.send(Arc::new(config)).unwrap();
    }

    /// Gives the frontend's cluster a further member.
    pub(crate) fn change_cluster(&self, member: &str) {
        self.frontend
            .reload(&self.frontend_config.replace("      endpoints:", &format!("      {member}\n      endpoints:")));
    }

    pub(crate) fn outbound(&self) -> u16 {
        self.frontend.port
    }

    pub(crate) async fn stop(self) {
        self.frontend.stop().await;
        self.backend.stop().await;
    }
}

fn identity_section(authority: &tempfile::TempDir, account: &str) -> String {
    format!(
        "identity:\n  trustDomain: shop.example\n  development: {{ directory: {}, namespace: shop, serviceAccount: {account} }}\n",
        authority.path().join("ca").display()
    )
}
