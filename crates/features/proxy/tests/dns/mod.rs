//! Names whose answers change, as a real DNS server (dnsmasq) gives them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use outrigger_http::{Resolver, ResolverOptions};

use crate::OK;
use crate::balancing::answers;
use crate::harness::{App, Proxy};

/// dnsmasq with a file of hosts. It knows nothing else, so a name that is not there does not exist.
struct Dns {
    folder: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl Dns {
    fn start(hosts: &str) -> Self {
        Self::start_with(hosts, &[])
    }

    /// It answers with these SRV records, too: `NAME,TARGET,PORT,PRIORITY,WEIGHT`.
    fn start_with(hosts: &str, services: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n").unwrap();
        fs::write(folder.path().join("hosts"), hosts).unwrap();
        let started = std::iter::repeat_with(quiet_port).take(20);
        let started = started.filter_map(|port| Some((port, Self::launch(&folder, port, services)?)));
        let (port, child) = { started }.next().expect("dnsmasq starts");
        Self { folder, port, child }
    }

    /// Starts it; `None` when it ends at once, for somebody has the port.
    fn launch(folder: &tempfile::TempDir, port: u16, services: &[&str]) -> Option<Child> {
        let file = folder.path().join("hosts");
        let program = if Path::new("/usr/sbin/dnsmasq").exists() { "/usr/sbin/dnsmasq" } else { "dnsmasq" };
        let child = Command::new(program)
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"])
            .args(["--listen-address=127.0.0.1", "--local-ttl=1", "--local=/test/", "--pid-file=", "--user="])
            .arg(format!("--port={port}"))
            .arg(format!("--addn-hosts={}", file.display()))
            .args(services.iter().map(|one| format!("--srv-host={one}")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut child = child.expect("dnsmasq is missing; `cargo xtask setup` installs it");
        // It answers over TCP, too, as soon as it answers at all.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let listens = TcpStream::connect(("127.0.0.1", port)).is_ok();
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            if listens {
                return Some(child);
            }
            assert!(Instant::now() < deadline, "dnsmasq does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Answers with these SRV records from now on; such are read at the start only.
    fn serve_services(&mut self, services: &[&str]) {
        self.end();
        self.child = Self::launch(&self.folder, self.port, services).expect("its port is still free");
    }

    /// Another server takes its place, which answers everything with SERVFAIL until told to end.
    fn fail(&mut self) -> Failing {
        self.end();
        let socket = UdpSocket::bind(("127.0.0.1", self.port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let (end, mut query) = (Arc::clone(&ended), [0; 512]);
        let thread = std::thread::spawn(move || {
            let mut answered = 0;
            while !end.load(Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut query) else { continue };
                // A response with SERVFAIL, and nothing but the question.
                let mut answer = query[..length].to_vec();
                (answer[2], answer[3]) = (answer[2] | 0x80, 0x82);
                answer[6..12].fill(0);
                let question = 12 + answer[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
                answer.truncate(question);
                socket.send_to(&answer, from).unwrap();
                answered += 1;
            }
            answered
        });
        Failing { ended, thread }
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Answers with these hosts from now on.
    fn serve(&self, hosts: &str) {
        fs::write(self.folder.path().join("hosts"), hosts).unwrap();
        self.signal("HUP");
    }

    fn signal(&self, name: &str) {
        let kill = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(kill.unwrap().success());
    }

    fn resolver(&self) -> Resolver {
        let resolv_conf = self.folder.path().join("resolv.conf");
        Resolver::new(ResolverOptions { resolv_conf, hosts: "/nonexistent".into(), port: self.port, cache_size: 16 })
    }
}

/// A port that is free for UDP and TCP, and that the kernel gives nobody who asks for any: a server that starts again needs
/// the one it had.
fn quiet_port() -> u16 {
    let random = || RandomState::new().hash_one(0);
    let free = |port: &u16| {
        UdpSocket::bind(("127.0.0.1", *port)).is_ok() && std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()
    };
    let mut ports = std::iter::repeat_with(|| 10_000 + (random() % 8_000) as u16);
    ports.find(free).unwrap()
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.end();
    }
}

/// A server that fails.
struct Failing {
    ended: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u32>,
}

impl Failing {
    /// Ends it; how often it was asked.
    fn end(self) -> u32 {
        self.ended.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}

fn config(port: u16) -> String {
    crate::balancing::config(&format!("\"app.test:{port}\""), "", "")
}

/// How many endpoints the cluster has.
async fn endpoints(proxy: &Proxy) -> usize {
    proxy.admin("/clusters").await["clusters"][0]["endpoints"].as_array().unwrap().len()
}

async fn until_endpoints(proxy: &Proxy, wanted: usize) {
    for _ in 0..1500 {
        if endpoints(proxy).await == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not {wanted} endpoints: {}", endpoints(proxy).await);
}

/// Waits until the component tells of a problem with the name, or of none.
async fn degraded(proxy: &Proxy, wanted: bool) {
    for _ in 0..1500 {
        if (proxy.status().0 == "degraded") == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?}", proxy.status());
}

#[tokio::test]
async fn the_last_good_addresses_stay_whatever_dns_does() {
    let app = App::answering(OK);
    let dns = Dns::start("127.0.0.1 app.test\n");
    let proxy = Proxy::start_resolving(&config(app.port), dns.resolver()).await;
    until_endpoints(&proxy, 1).await;
    // What changes is taken on within the record's time.
    dns.serve("127.0.0.1 app.test\n127.0.0.2 app.test\n");
    until_endpoints(&proxy, 2).await;
    dns.serve("127.0.0.1 app.test\n");
    until_endpoints(&proxy, 1).await;
    // There is no such name any more.
    dns.serve("");
    degraded(&proxy, true).await;
    assert_eq!(endpoints(&proxy).await, 1);
    assert_eq!(answers(proxy.port, 3, |_| String::new()).await.values().sum::<usize>(), 3);
    dns.serve("127.0.0.1 app.test\n");
    degraded(&proxy, false).await;
    // Silence: longer than the record's time, and than the one try at asking again.
    dns.signal("STOP");
    for _ in 0..15 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(endpoints(&proxy).await, 1);
    }
    assert_eq!(answers(proxy.port, 3, |_| String::new()).await.values().sum::<usize>(), 3);
    dns.signal("CONT");
    proxy.stop().await;
}

#[tokio::test]
async fn thousands_of_addresses_do_not_fill_the_memory() {
    let app = App::answering(OK);
    // About as many as an answer can hold.
    let host = |number: usize| format!("127.1.{}.{} app.test\n", number / 250, number % 250 + 1);
    let dns = Dns::start(&(0..3000).map(host).collect::<String>());
    let proxy = Proxy::start_resolving(&config(app.port), dns.resolver()).await;
    until_endpoints(&proxy, 1000).await;
    proxy.stop().await;
}

#[tokio::test]
async fn many_addresses_of_several_names_are_taken_up_to_the_bound() {
    let app = App::answering(OK);
    let host = |number: usize| {
        format!(
            "127.{}.{}.{} {}.test\n",
            number / 3000 + 1,
            number / 250 % 12,
            number % 250 + 1,
            ["a", "b", "c", "d"][number / 3000]
        )
    };
    let dns = Dns::start(&(0..12_000).map(host).collect::<String>());
    let names = ["a", "b", "c", "d"].map(|name| format!("\"{name}.test:{}\"", app.port)).join(", ");
    let proxy = Proxy::start_resolving(&crate::balancing::config(&names, "", ""), dns.resolver()).await;
    until_endpoints(&proxy, 1000).await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_name_without_an_answer_hides_no_other_and_keeps_what_it_had() {
    let app = App::answering(OK);
    let mut dns = Dns::start("127.0.0.1 a.test\n");
    let names = format!("\"a.test:{port}\", \"b.test:{port}\"", port = app.port);
    let proxy = Proxy::start_resolving(&crate::balancing::config(&names, "", ""), dns.resolver()).await;
    until_endpoints(&proxy, 1).await;
    degraded(&proxy, true).await;
    dns.serve("127.0.0.1 a.test\n127.0.0.2 b.test\n");
    until_endpoints(&proxy, 2).await;
    degraded(&proxy, false).await;
    let at = |numbers: [u8; 2]| numbers.map(|number| (format!("127.0.0.{number}:{}", app.port), 0, 1));
    let until = async |numbers| {
        let wanted = at(numbers);
        until_listed(
            &proxy,
            &wanted.each_ref().map(|(address, priority, weight)| (address.as_str(), *priority, *weight)),
        )
        .await;
    };
    // It is no name any more; the other one moves, and is followed.
    dns.serve("127.0.0.3 a.test\n");
    until([2, 3]).await;
    degraded(&proxy, true).await;
    // It is a name, but one that has no address.
    dns.serve("127.0.0.4 a.test\n");
    dns.serve_services(&["b.test,elsewhere.test,1,0,0"]);
    until([2, 4]).await;
    assert_eq!(answers(proxy.port, 4, |_| String::new()).await.values().sum::<usize>(), 4);
    dns.serve_services(&[]);
    dns.serve("127.0.0.4 a.test\n127.0.0.5 b.test\n");
    until([4, 5]).await;
    degraded(&proxy, false).await;
    proxy.stop().await;
}

#[tokio::test]
async fn an_error_of_the_server_takes_no_endpoint_away() {
    let app = App::answering(OK);
    let mut dns = Dns::start("127.0.0.1 app.test\n");
    let proxy = Proxy::start_resolving(&config(app.port), dns.resolver()).await;
    until_endpoints(&proxy, 1).await;
    let failing = dns.fail();
    // Longer than the record's time.
    for _ in 0..15 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(endpoints(&proxy).await, 1);
    }
    assert_eq!(answers(proxy.port, 3, |_| String::new()).await.values().sum::<usize>(), 3);
    assert!(failing.end() > 0, "nobody asked");
    proxy.stop().await;

    // And a cluster that never had one says why.
    let failing = dns.fail();
    let proxy = Proxy::start_resolving(&config(app.port), dns.resolver()).await;
    degraded(&proxy, true).await;
    assert_eq!(endpoints(&proxy).await, 0);
    failing.end();
    dns.serve_services(&[]);
    degraded(&proxy, false).await;
    until_endpoints(&proxy, 1).await;
    proxy.stop().await;
}

/// Address, priority and weight of each endpoint.
async fn listed(proxy: &Proxy) -> Vec<(String, u64, u64)> {
    let told = proxy.admin("/clusters").await;
    let endpoints = told["clusters"][0]["endpoints"].as_array().unwrap().iter();
    let mut listed: Vec<_> = endpoints
        .map(|one| {
            let number = |key: &str| one[key].as_u64().unwrap();
            (one["address"].as_str().unwrap().to_owned(), number("priority"), number("weight"))
        })
        .collect();
    listed.sort();
    listed
}

async fn until_listed(proxy: &Proxy, wanted: &[(&str, u64, u64)]) {
    let wanted: Vec<_> =
        wanted.iter().map(|(address, priority, weight)| (address.to_string(), *priority, *weight)).collect();
    for _ in 0..1500 {
        if listed(proxy).await == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?} is not {wanted:?}", listed(proxy).await);
}

#[tokio::test]
async fn services_are_found_with_their_ports_priorities_and_weights() {
    let (app, other) = (App::answering(OK), App::answering(OK));
    let name = "_http._tcp.app.test";
    let record = |target: &str, port: u16, priority: u16, weight: u16| {
        format!("{name},{target}.test,{port},{priority},{weight}")
    };
    let (first, second, spare) =
        (record("a", app.port, 10, 3), record("b", other.port, 10, 1), record("c", app.port, 20, 0));
    let hosts = "127.0.0.1 a.test\n127.0.0.2 b.test\n127.0.0.3 c.test\n";
    let mut dns = Dns::start_with(hosts, &[&first, &second, &spare]);
    let config = crate::balancing::config("", "", "").replace("endpoints: []", &format!("srv: {name}"));
    assert!(config.contains(name), "{config}");
    let proxy = Proxy::start_resolving(&config, dns.resolver()).await;
    let address = |number: u8, app: &App| format!("127.0.0.{number}:{}", app.port);
    let (a, b, c) = (address(1, &app), address(2, &other), address(3, &app));
    until_listed(&proxy, &[(&a, 0, 3), (&b, 0, 1), (&c, 1, 1)]).await;
    assert_eq!(answers(proxy.port, 12, |_| String::new()).await.values().sum::<usize>(), 12);
    assert!(!app.seen().is_empty(), "the first has three quarters");
    // One goes, one comes, one has another weight.
    dns.serve_services(&[&record("b", other.port, 10, 7), &record("c", other.port, 5, 2)]);
    let c = address(3, &other);
    until_listed(&proxy, &[(&b, 1, 7), (&c, 0, 2)]).await;
    // A target without an address does not hide the others.
    dns.serve_services(&[&record("b", other.port, 0, 0), &record("gone", other.port, 0, 0)]);
    until_listed(&proxy, &[(&b, 0, 1)]).await;
    // No such name: what was known holds on.
    dns.serve_services(&[]);
    degraded(&proxy, true).await;
    until_listed(&proxy, &[(&b, 0, 1)]).await;
    assert_eq!(answers(proxy.port, 3, |_| String::new()).await.values().sum::<usize>(), 3);
    dns.serve_services(&[&first]);
    until_listed(&proxy, &[(&a, 0, 3)]).await;
    degraded(&proxy, false).await;
    proxy.stop().await;
}
