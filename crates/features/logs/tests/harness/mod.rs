//! A stage for the pillar: a folder, a numbered log that is rotated, a receiver over TCP, the component.

#![expect(clippy::unwrap_used, reason = "what fails on the stage fails the test")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outrigger_config::Config;
use outrigger_http::Resolver;
use outrigger_logs::LogsComponent;
use outrigger_runtime::{BoxError, Component, Context, LineQueue, Standalone};
use outrigger_telemetry::{Format, Registry};
use serde_json::Value;

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A running component.
pub(crate) struct Logs {
    pub(crate) outside: Standalone,
    pub(crate) registry: Registry,
    task: tokio::task::JoinHandle<Result<(), BoxError>>,
}

impl Logs {
    /// Starts the component; call it within a `LocalSet`.
    pub(crate) fn start(yaml: &str) -> Self {
        let (context, outside) = Context::standalone(config(yaml), 0);
        let registry = context.registry.clone();
        let run = async move { LogsComponent::new(Resolver::from_system(), LineQueue::new()).run(context).await };
        Self { outside, registry, task: tokio::task::spawn_local(run) }
    }

    pub(crate) fn reload(&self, yaml: &str) {
        self.outside.config.send(Arc::new(config(yaml))).unwrap();
    }

    /// Stops it as a pod does, within ten seconds.
    pub(crate) async fn stop(self) {
        self.stop_within(Duration::from_secs(10)).await;
    }

    pub(crate) async fn stop_within(self, budget: Duration) {
        self.outside.stop.request(tokio::time::Instant::now() + budget);
        self.task.await.expect("no panic").expect("a good stop");
    }

    /// The error of a component that cannot run.
    pub(crate) async fn failure(self) -> String {
        let error = tokio::time::timeout(SOON, self.task).await.expect("it fails soon").unwrap().unwrap_err();
        error.to_string()
    }

    pub(crate) fn metric(&self, series: &str) -> f64 {
        let mut text = Vec::new();
        self.registry.encode(Format::Text, &mut text);
        let text = String::from_utf8(text).unwrap();
        text.lines().find_map(|l| l.strip_prefix(series)?.trim().parse().ok()).unwrap_or(0.0)
    }

    /// Waits until the series has the value: an event is seen in a sink a moment before it is counted.
    pub(crate) async fn counted(&self, series: &str, wanted: f64) {
        eventually(|| {
            let value = self.metric(series);
            if value == wanted { Ok(()) } else { Err(format!("{series} is {value}, not {wanted}")) }
        })
        .await;
    }

    pub(crate) async fn status(&self, wanted: &str, reason: &str) {
        eventually(|| {
            let (state, why) = self.outside.status();
            if state == wanted && why.contains(reason) { Ok(()) } else { Err(format!("{state}: {why}")) }
        })
        .await;
    }
}

pub(crate) fn config(yaml: &str) -> Config {
    outrigger_config::parse("test.yaml", yaml, &|_| None).unwrap_or_else(|e| panic!("{e}")).config
}

pub(crate) async fn local<F: Future>(test: F) -> F::Output {
    tokio::task::LocalSet::new().run_until(test).await
}

/// Looks until it is so.
pub(crate) async fn eventually(mut check: impl FnMut() -> Result<(), String>) {
    let begun = Instant::now();
    loop {
        match check() {
            Ok(()) => return,
            Err(why) => assert!(begun.elapsed() < SOON, "still not: {why}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An application's log: lines are numbered from 1, so that each can be told from all others.
pub(crate) struct App {
    pub(crate) path: PathBuf,
    file: Option<File>,
    pub(crate) written: u64,
    /// Rotated files that are kept.
    pub(crate) keep: u32,
}

impl App {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, written: 0, keep: 1000 }
    }

    /// Closes the file, which may be gone; the next line makes a new one.
    pub(crate) fn reopen(&mut self) {
        self.file = None;
    }

    /// Writes bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        let path = &self.path;
        let open = || OpenOptions::new().create(true).append(true).open(path).unwrap();
        self.file.get_or_insert_with(open).write_all(bytes).unwrap();
    }

    pub(crate) fn lines(&mut self, count: u64) {
        let mut text = String::new();
        for _ in 0..count {
            self.written += 1;
            writeln!(text, "line {}", self.written).unwrap();
        }
        self.raw(text.as_bytes());
    }

    pub(crate) fn name(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    /// Renames as logrotate does: `.1` is the newest.
    pub(crate) fn rotate(&mut self) {
        if !self.path.exists() {
            return;
        }
        self.shift();
        fs::rename(&self.path, self.name(1)).unwrap();
        let _ = fs::remove_file(self.name(self.keep + 1));
        self.file = None;
    }

    fn shift(&self) {
        for number in (1..200).rev() {
            if self.name(number).exists() {
                fs::rename(self.name(number), self.name(number + 1)).unwrap();
            }
        }
    }

    /// Copies, then truncates, as logrotate does with `copytruncate`.
    pub(crate) fn copytruncate(&mut self) {
        self.shift();
        fs::copy(&self.path, self.name(1)).unwrap();
        OpenOptions::new().write(true).open(&self.path).unwrap().set_len(0).unwrap();
    }
}

/// The messages of the JSON lines in a file, in order.
pub(crate) fn messages(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let complete = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    complete.map(|line| message(line).unwrap_or_else(|| panic!("no event: {line:?}"))).collect()
}

pub(crate) fn events(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn message(line: &str) -> Option<String> {
    Some(serde_json::from_str::<Value>(line).ok()?["message"].as_str()?.to_owned())
}

/// Waits until exactly the lines 1 to `count` are there, in order.
pub(crate) async fn arrived(path: &Path, count: u64) {
    eventually(|| {
        let got = messages(path);
        if got.len() as u64 >= count { Ok(()) } else { Err(format!("{} of {count}", got.len())) }
    })
    .await;
    in_order(&messages(path), count);
}

pub(crate) fn in_order(got: &[String], count: u64) {
    for (index, message) in got.iter().enumerate() {
        assert_eq!(
            *message,
            format!("line {}", index + 1),
            "around {:?}",
            &got[index.saturating_sub(3)..(index + 3).min(got.len())]
        );
    }
    assert_eq!(got.len() as u64, count);
}

/// Whether all of 1 to `count` are there; how many came more than once.
pub(crate) fn at_least_once(got: &[String], count: u64) -> usize {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for message in got {
        *counts.entry(message).or_default() += 1;
    }
    let lost: Vec<u64> = (1..=count).filter(|n| !counts.contains_key(format!("line {n}").as_str())).collect();
    assert!(lost.is_empty(), "lost {} of {count}: {:?}", lost.len(), &lost[..lost.len().min(10)]);
    counts.values().filter(|count| **count > 1).count()
}

/// What a receiver answers to a batch: status and further headers.
pub(crate) type Rule = Box<dyn FnMut(&Post) -> (u16, &'static str) + Send>;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) messages: Vec<String>,
}

/// An HTTP receiver that can come and go.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    pub(crate) posts: Arc<Mutex<Vec<(Post, u16)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    pub(crate) fn start(rule: Rule) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), rule)
    }

    pub(crate) fn start_at(address: SocketAddr, rule: Rule) -> Self {
        let begun = Instant::now();
        let listener = loop {
            match TcpListener::bind(address) {
                Ok(listener) => break listener,
                Err(error) => assert!(begun.elapsed() < SOON, "{address}: {error}"),
            }
        };
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (posts, stop) = (Arc::<Mutex<Vec<_>>>::default(), Arc::new(AtomicBool::new(false)));
        let rule = Arc::new(Mutex::new(rule));
        let (all, over) = (Arc::clone(&posts), Arc::clone(&stop));
        let serve = move || {
            std::thread::scope(|scope| {
                while !over.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            let (rule, posts, over) = (Arc::clone(&rule), Arc::clone(&all), Arc::clone(&over));
                            scope.spawn(
                                move || while !over.load(Ordering::Relaxed) && answer(&stream, &rule, &posts) {},
                            );
                        }
                        Err(_) => std::thread::sleep(Duration::from_millis(2)),
                    }
                }
            });
        };
        Self { address, posts, stop, thread: Some(std::thread::spawn(serve)) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/ingest", self.address)
    }

    /// The messages of all requests that were answered with 2xx.
    pub(crate) fn taken(&self) -> Vec<String> {
        let posts = self.posts.lock().unwrap();
        posts.iter().filter(|(_, status)| status / 100 == 2).flat_map(|(post, _)| post.messages.clone()).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads one request and answers it; false when the connection is over.
fn answer(stream: &TcpStream, rule: &Mutex<Rule>, posts: &Mutex<Vec<(Post, u16)>>) -> bool {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut reader = BufReader::new(stream);
    let mut headers = BTreeMap::new();
    let mut line = String::new();
    if !reader.read_line(&mut line).is_ok_and(|read| read > 0) {
        return false;
    }
    loop {
        line.clear();
        if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.trim().split_once(": ") {
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return false;
    }
    let body = String::from_utf8(body).unwrap();
    let post = Post { headers, messages: body.lines().map(|line| message(line).expect("an event")).collect() };
    let (status, more) = rule.lock().unwrap()(&post);
    posts.lock().unwrap().push((post, status));
    let text = "no, because";
    let answer = format!("HTTP/1.1 {status} X\r\n{more}content-length: {}\r\n\r\n{text}", text.len());
    let mut stream = stream;
    status != 0 && stream.write_all(answer.as_bytes()).is_ok()
}
