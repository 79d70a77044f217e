//! Names whose answers change, as a real DNS server (dnsmasq) gives them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
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
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n").unwrap();
        let file = folder.path().join("hosts");
        fs::write(&file, hosts).unwrap();
        let program = if Path::new("/usr/sbin/dnsmasq").exists() { "/usr/sbin/dnsmasq" } else { "dnsmasq" };
        let child = Command::new(program)
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"])
            .args(["--listen-address=127.0.0.1", "--local-ttl=1", "--local=/test/", "--pid-file=", "--user="])
            .arg(format!("--port={port}"))
            .arg(format!("--addn-hosts={}", file.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = child.expect("dnsmasq is missing; `cargo xtask setup` installs it");
        // It answers over TCP, too, as soon as it answers at all.
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "dnsmasq does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { folder, port, child }
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

impl Drop for Dns {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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
