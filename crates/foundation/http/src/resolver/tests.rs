//! The resolver against a DNS server of our own, which answers, refuses, is silent, and counts.

use std::collections::HashMap;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use hickory_resolver::proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};

use super::*;

/// What the server does with a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Answering,
    Silent,
    Failing,
}

struct State {
    mood: Mood,
    /// Names with a final dot.
    records: HashMap<String, (Vec<IpAddr>, u32)>,
    queries: Vec<(String, RecordType)>,
}

/// A DNS server on a thread of its own.
struct Dns {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Dns {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        Self::on(socket)
    }

    fn on(socket: UdpSocket) -> Self {
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let address = socket.local_addr().unwrap();
        let state = State { mood: Mood::Answering, records: HashMap::new(), queries: Vec::new() };
        let (state, stop) = (Arc::new(Mutex::new(state)), Arc::new(AtomicBool::new(false)));
        let (shared, stopped) = (state.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
                if let Some(reply) = shared.lock().reply(&buffer[..length]) {
                    let _ = socket.send_to(&reply, peer);
                }
            }
        });
        Self { address, state, stop, thread: Some(thread) }
    }

    fn record(&self, name: &str, addresses: &[&str], ttl: u32) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.state.lock().records.insert(name.to_owned(), (addresses, ttl));
    }

    fn mood(&self, mood: Mood) {
        self.state.lock().mood = mood;
    }

    fn asked(&self) -> usize {
        self.state.lock().queries.len()
    }

    fn resolver(&self, folder: &Path, options: &str) -> Resolver {
        let conf = format!("nameserver {}\noptions timeout:1 attempts:1\n{options}\n", self.address.ip());
        fs::write(folder.join("resolv.conf"), conf).unwrap();
        resolver(folder, self.address.port())
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

impl State {
    fn reply(&mut self, query: &[u8]) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        let question = query.queries.first()?.clone();
        let name = question.name().to_string().to_ascii_lowercase();
        self.queries.push((name.clone(), question.query_type()));
        let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
        reply.metadata.recursion_desired = true;
        reply.metadata.recursion_available = true;
        reply.add_query(question.clone());
        match (self.mood, self.records.get(&name)) {
            (Mood::Silent, _) => return None,
            (Mood::Failing, _) => reply.metadata.response_code = ResponseCode::ServFail,
            (Mood::Answering, None) => reply.metadata.response_code = ResponseCode::NXDomain,
            (Mood::Answering, Some((addresses, ttl))) => {
                let v6 = question.query_type() == RecordType::AAAA;
                for address in addresses.iter().filter(|address| address.is_ipv6() == v6) {
                    let data = RData::from(*address);
                    reply.add_answer(Record::from_rdata(question.name().clone(), *ttl, data));
                }
            }
        }
        reply.to_vec().ok()
    }
}

fn resolver(folder: &Path, port: u16) -> Resolver {
    let (resolv_conf, hosts) = (folder.join("resolv.conf"), folder.join("hosts"));
    Resolver::new(ResolverOptions { resolv_conf, hosts, port, cache_size: 8 })
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn literals_and_localhost_need_no_file() {
    let resolver = resolver(Path::new("/nonexistent"), 1);
    for (host, addresses) in [
        ("10.0.0.1", ips(&["10.0.0.1"])),
        ("::1", ips(&["::1"])),
        ("[fe80::1]", ips(&["fe80::1"])),
        ("localhost", ips(&["127.0.0.1", "::1"])),
        ("Any.LocalHost.", ips(&["127.0.0.1", "::1"])),
    ] {
        let resolved = resolver.resolve(host).await.unwrap();
        assert_eq!(resolved.addresses, addresses, "{host}");
        assert!(!resolved.stale);
    }
    assert!(resolver.0.upstream.lock().current().is_err());
}

#[tokio::test]
async fn what_is_no_name_is_not_asked_for() {
    let dns = Dns::start();
    let folder = tempfile::tempdir().unwrap();
    let resolver = dns.resolver(folder.path(), "");
    let long = format!("{}.example", "a".repeat(64));
    for host in ["", ".", "a..b", "a b", "10.0.0.256", "1.2.3", "a/b", "a\nb", "é", "[10.0.0.1]", long.as_str()] {
        let error = resolver.resolve(host).await.unwrap_err();
        assert!(matches!(error, ResolveError::InvalidName { .. }), "{host:?}: {error}");
        assert!(!error.retryable() && !error.to_string().contains('\n'));
    }
    assert_eq!(dns.asked(), 0);
}

#[tokio::test]
async fn the_hosts_file_comes_first_and_is_read_again() {
    let dns = Dns::start();
    let folder = tempfile::tempdir().unwrap();
    let resolver = dns.resolver(folder.path(), "");
    let hosts = folder.path().join("hosts");
    fs::write(&hosts, "10.0.0.1 vault\n::5 localhost\n").unwrap();
    assert_eq!(resolver.resolve("Vault.").await.unwrap().addresses, ips(&["10.0.0.1"]));
    assert_eq!(resolver.resolve("localhost").await.unwrap().addresses, ips(&["::5"]));
    fs::write(&hosts, "# moved\n10.0.0.22 vault\n").unwrap();
    assert_eq!(resolver.resolve("vault").await.unwrap().addresses, ips(&["10.0.0.22"]));
    assert_eq!(dns.asked(), 0);
}

#[tokio::test]
async fn both_families_are_asked_once_per_ttl() {
    let dns = Dns::start();
    dns.record("backend.shop.", &["fd00::1", "10.0.0.2", "10.0.0.1", "10.0.0.2"], 30);
    let folder = tempfile::tempdir().unwrap();
    let resolver = dns.resolver(folder.path(), "");
    let before = Instant::now();
    let resolved = resolver.resolve("backend.shop").await.unwrap();
    assert_eq!(resolved.addresses, ips(&["10.0.0.2", "10.0.0.1", "fd00::1"]));
    let ttl = resolved.valid_until - before;
    assert!(ttl > Duration::from_secs(28) && ttl < Duration::from_secs(32), "{ttl:?}");
    assert_eq!(resolver.resolve("BACKEND.shop").await.unwrap(), resolved);
    assert_eq!(dns.asked(), 2);
}

#[tokio::test]
async fn lookups_of_one_name_are_joined_also_when_the_first_gives_up() {
    let dns = Dns::start();
    dns.record("a.example.", &["10.0.0.1"], 30);
    let folder = tempfile::tempdir().unwrap();
    let resolver = dns.resolver(folder.path(), "");
    let mut first = Box::pin(resolver.resolve("a.example"));
    // It has asked, and then nobody is interested any more.
    assert!(futures_util::poll!(&mut first).is_pending());
    let many = futures_util::future::join_all((0..20).map(|_| resolver.resolve("a.example")));
    drop(first);
    for resolved in many.await {
        assert_eq!(resolved.unwrap().addresses, ips(&["10.0.0.1"]));
    }
    assert!(dns.asked() <= 4, "{} queries", dns.asked());
    assert!(resolver.0.flights.lock().is_empty());
}

#[tokio::test]
async fn search_domains_are_tried_by_the_dots() {
    let dns = Dns::start();
    dns.record("backend.shop.svc.cluster.local.", &["10.0.0.7"], 30);
    dns.record("vault.infra.svc.cluster.local.", &["10.0.0.8"], 30);
    dns.record("example.com.", &["10.0.0.9"], 30);
    let folder = tempfile::tempdir().unwrap();
    let search = "search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5";
    let resolver = dns.resolver(folder.path(), search);
    for (name, address) in [
        ("backend", "10.0.0.7"),
        ("vault.infra", "10.0.0.8"),
        ("vault.infra.svc", "10.0.0.8"),
        ("example.com", "10.0.0.9"),
        ("example.com.", "10.0.0.9"),
    ] {
        assert_eq!(resolver.resolve(name).await.unwrap().addresses, ips(&[address]), "{name}");
    }
}

#[tokio::test]
async fn a_refusal_is_kept_for_a_moment_only() {
    let dns = Dns::start();
    let folder = tempfile::tempdir().unwrap();
    let resolver = dns.resolver(folder.path(), "");
    let missing = ResolveError::NotFound { host: "new.example".into() };
    assert_eq!(resolver.resolve("new.example").await, Err(missing.clone()));
    let asked = dns.asked();
    assert_eq!(resolver.resolve("new.example").await, Err(missing));
    assert_eq!(dns.asked(), asked);
    dns.record("new.example.", &["10.0.0.1"], 30);
    let until = Instant::now() + Duration::from_secs(15);
    while resolver.resolve("new.example").await.is_err() {
        assert!(Instant::now() < until, "never found");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_last_good_answer_is_used_while_dns_is_down() {
    for mood in [Mood::Silent, Mood::Failing] {
        let dns = Dns::start();
        dns.record("a.example.", &["10.0.0.1"], 0);
        let folder = tempfile::tempdir().unwrap();
        let resolver = dns.resolver(folder.path(), "");
        let good = resolver.resolve("a.example").await.unwrap();
        dns.mood(mood);
        tokio::time::sleep_until((good.valid_until + Duration::from_millis(10)).into()).await;
        let begin = Instant::now();
        let stale = resolver.resolve("a.example").await.unwrap();
        assert_eq!((stale.stale, &stale.addresses), (true, &good.addresses), "{mood:?}");
        assert!(begin.elapsed() < STALE_PATIENCE + Duration::from_millis(700), "{:?}", begin.elapsed());
        // Others need not wait as long.
        let begin = Instant::now();
        assert!(resolver.resolve("a.example").await.unwrap().stale);
        assert!(begin.elapsed() < Duration::from_millis(300));
        // Whoever was never resolved gets the reason.
        let error = resolver.resolve("b.example").await.unwrap_err();
        assert!(matches!(error, ResolveError::Failed { .. }) && error.retryable(), "{error}");
    }
}

#[tokio::test]
async fn resolv_conf_may_be_missing_come_late_and_change() {
    let dns = Dns::start();
    dns.record("a.example.", &["10.0.0.1"], 30);
    dns.record("b.example.", &["10.0.0.2"], 30);
    let folder = tempfile::tempdir().unwrap();
    let resolver = resolver(folder.path(), dns.address.port());
    let error = resolver.resolve("a.example").await.unwrap_err().to_string();
    assert!(error.contains("a.example") && error.contains("resolv.conf cannot be read"), "{error}");
    fs::write(folder.path().join("resolv.conf"), "search example\n# nothing else\n").unwrap();
    let error = resolver.resolve("a.example").await.unwrap_err().to_string();
    assert!(error.contains("names no DNS server"), "{error}");
    fs::write(folder.path().join("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
    assert_eq!(resolver.resolve("a.example").await.unwrap().addresses, ips(&["10.0.0.1"]));
    fs::write(folder.path().join("resolv.conf"), "nameserver 127.0.0.1\nsearch example\n").unwrap();
    assert_eq!(resolver.resolve("b").await.unwrap().addresses, ips(&["10.0.0.2"]));
}

#[test]
fn one_resolver_serves_runtimes_that_come_and_go() {
    let dns = Dns::start();
    let folder = tempfile::tempdir().unwrap();
    let resolver = dns.resolver(folder.path(), "");
    for at in 1..4 {
        let (name, address) = (format!("n{at}.example"), format!("10.0.0.{at}"));
        dns.record(&format!("{name}."), &[address.as_str()], 30);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let resolved = runtime.block_on(resolver.resolve(&name)).unwrap();
        assert_eq!(resolved.addresses, ips(&[address.as_str()]));
    }
}

proptest::proptest! {
    #[test]
    fn any_host_is_a_literal_a_name_or_refused(host in "\\PC{0,80}") {
        let _ = (literal(&host), normal(&host));
    }
}
