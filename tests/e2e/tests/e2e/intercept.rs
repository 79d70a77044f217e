//! Interception: unmodified applications in pods, redirected by `outrigger init`.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use outrigger_e2e::{
    APPLICATION, Application, Authority, Namespace, Node, PROXY, Pod, PodOutrigger, Process, eventually,
    outrigger_command, request, run, tool,
};
use serde_json::Value;

const BACKEND: &str = "spiffe://shop.example/ns/shop/sa/backend";
const FRONTEND: &str = "spiffe://shop.example/ns/shop/sa/frontend";
/// The Service's addresses: nobody has them.
const SERVICE: &str = "10.96.0.1";
const SERVICE_V6: &str = "fd96::1";
const TIMEOUT: Duration = Duration::from_secs(10);
/// As a 404 of ours would never be taken for the application's.
const ANSWER: &str = "GET /orders HTTP/1.1";

/// Two pods with Outriggers and rules, and a third one without.
struct Mesh {
    frontend: Pod,
    backend: Pod,
    outside: Pod,
    node: Node,
    folder: tempfile::TempDir,
}

impl Mesh {
    fn new() -> Self {
        let node = Node::new();
        let (frontend, backend, outside) = (node.pod(), node.pod(), node.pod());
        let folder = tempfile::tempdir().unwrap();
        run(tool("chmod").arg("755").arg(folder.path())).unwrap();
        Self { frontend, backend, outside, node, folder }
    }

    /// The rules, and an Outrigger with listeners for both directions, in a pod. `out` and `inside` are further keys
    /// of the listeners.
    fn mesh<'p>(&self, pod: &'p Pod, name: &str, id: &str, out: &str, inside: &str) -> PodOutrigger<'p> {
        pod.namespace.must_init(&[]);
        self.outrigger(pod, name, id, PROXY, out, inside)
    }

    fn outrigger<'p>(&self, pod: &'p Pod, name: &str, id: &str, uid: u32, out: &str, inside: &str) -> PodOutrigger<'p> {
        let authority = Authority::of(&self.folder.path().join("ca"));
        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let leaf = authority.issue(name, id);
        let place = |file: &Path| folder.join(file.file_name().unwrap());
        for file in [&leaf.certificate, &leaf.key, &authority.bundle()] {
            std::fs::copy(file, place(file)).unwrap();
        }
        let (v4, v6, other) = (self.backend.v4, self.backend.v6, self.outside.v4);
        let config = format!(
            r#"
identity:
  trustDomain: shop.example
  files: {{ certificate: {}, key: {}, trustBundle: {} }}
proxy:
  accessLog: {{ path: {}/access.log }}
  listeners:
  - {{ name: out, direction: outbound, address: "[::]:15001", protocol: auto, redirected: true{out} }}
  - {{ name: in, direction: inbound, address: "[::]:15006", protocol: auto, redirected: true{inside} }}
  clusters:
  - {{ name: orders, endpoints: ["{v4}:8080"], virtualAddresses: ["{SERVICE}:80"], tls: {{ spiffeIds: ["{BACKEND}"] }} }}
  - {{ name: orders6, endpoints: ["[{v6}]:8080"], virtualAddresses: ["[{SERVICE_V6}]:80"], tls: {{ spiffeIds: ["{BACKEND}"] }} }}
  - {{ name: mail, endpoints: ["{v4}:2525"], virtualAddresses: ["{SERVICE}:25"], tls: {{ spiffeIds: ["{BACKEND}"] }} }}
  - {{ name: chat, endpoints: ["{v4}:8082"], virtualAddresses: ["{SERVICE}:82"], tls: {{ spiffeIds: ["{BACKEND}"] }} }}
  - {{ name: shards, endpoints: ["{v4}:9000", "{other}:9000", "[{v6}]:9000"], tls: {{ spiffeIds: ["{BACKEND}"] }} }}
  - {{ name: web, endpoints: ["{v4}:8443"], virtualAddresses: ["{SERVICE}:443"], tls: {{ spiffeIds: ["{BACKEND}"] }} }}
"#,
            place(&leaf.certificate).display(),
            place(&leaf.key).display(),
            place(&authority.bundle()).display(),
            folder.display(),
        );
        pod.start_outrigger(&folder, uid, &config)
    }

    fn access_log(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name).join("access.log")).unwrap_or_default()
    }
}

/// An application in a pod, on all its addresses.
fn serve(pod: &Pod, port: u16) -> Application {
    pod.namespace.enter(APPLICATION, || Application::start_on((Ipv6Addr::UNSPECIFIED, port).into()))
}

/// A server of one connection after the other, on a thread that ends with the test's process.
fn server(pod: &Pod, port: u16, talk: impl Fn(TcpStream) + Send + 'static) {
    let listener = pod.namespace.enter(APPLICATION, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            talk(stream.unwrap());
        }
    });
}

fn connect(namespace: &Namespace, uid: u32, to: &str) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    namespace.enter(uid, || {
        let stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(stream)
    })
}

fn curl(pod: &Pod, arguments: &[&str]) -> Result<String> {
    let mut command = tool("curl");
    command.args(["-sS", "-g", "--max-time", "10", "-w", "\n%{http_code} HTTP/%{http_version}"]).args(arguments);
    pod.namespace.run(APPLICATION, &mut command)
}

/// What a server said that speaks first.
fn greeting(namespace: &Namespace, uid: u32, to: &str) -> std::io::Result<String> {
    let mut stream = connect(namespace, uid, to)?;
    // All of it, so that the connection ends well.
    let mut line = [0; 11];
    stream.read_exact(&mut line)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Where nft and the kernel say the same.
fn rules(namespace: &Namespace) -> Vec<Value> {
    let text = namespace.run(0, tool("nft").args(["-j", "list", "ruleset"])).unwrap();
    let mut all: Value = serde_json::from_str(&text).unwrap();
    strip(&mut all);
    all["nftables"].as_array().unwrap()[1..].to_vec()
}

/// Takes out what is the kernel's own: numbers it gives, and counts.
fn strip(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.remove("handle");
            if let Some(Value::Object(counter)) = members.get_mut("counter") {
                counter.clear();
            }
            members.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

fn code(output: &std::process::Output) -> i32 {
    output.status.code().expect("it ended by itself")
}

#[test]
fn the_dry_run_is_what_the_kernel_then_has() {
    let (made, printed) = (Node::new(), Node::new());
    let (made, printed) = (&made.namespace, &printed.namespace);
    for flags in [
        &[][..],
        &["--direction", "inbound"],
        &["--direction", "outbound", "--redirect-dns", "--proxy-gid", "7,8"],
        &[
            "--exclude-outbound-cidrs=10.0.0.0/13,192.168.1.1,fd00::/61,::/0",
            "--include-outbound-cidrs=172.16.0.0/12,2001:db8::/32",
            "--exclude-outbound-ports=22,8000-8100",
            "--include-outbound-ports=80-443",
            "--exclude-outbound-interfaces=docker0,br-*",
            "--include-outbound-interfaces=eth*",
            "--exclude-outbound-uids=0",
            "--include-outbound-uids=1000,1001",
            "--exclude-inbound-cidrs=10.9.0.0/16",
            "--include-inbound-cidrs=10.0.0.0/8,fd00::/8",
            "--exclude-inbound-ports=9000-9100",
            "--include-inbound-ports=80,443",
            "--exclude-inbound-interfaces=net1",
            "--include-inbound-interfaces=eth0",
            "--outbound-listener=16001",
            "--inbound-listener=16006",
            "--own-ports=16000-16100",
            "--proxy-uid=1337",
        ],
    ] {
        let text = printed.must_init(&[flags, &["--dry-run"]].concat());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rules.nft");
        std::fs::write(&file, &text).unwrap();
        printed.run(0, tool("nft").args(["-c", "-f"]).arg(&file)).unwrap();
        // Twice, as a pod's restart does it.
        for _ in 0..2 {
            printed.run(0, tool("nft").arg("-f").arg(&file)).unwrap();
            made.must_init(flags);
            let rules = rules(made);
            assert!(rules.len() > 5, "{rules:?}");
            assert_eq!(rules, self::rules(printed), "{flags:?}\n{text}");
        }
        // What nft made of the text is ours, too.
        assert_eq!(printed.must_init(&["--undo"]), "rules: removed\n");
        assert_eq!(rules(printed), Vec::<Value>::new());
    }
    let json = made.must_init(&["--format", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["result"], "replaced");
    assert_eq!(made.must_init(&["--undo"]), "rules: removed\n");
    assert_eq!(made.must_init(&["--undo"]), "rules: there were none\n");
    assert_eq!(rules(made), Vec::<Value>::new());
}

#[test]
fn what_cannot_be_done_is_said() {
    let node = Node::new();
    let namespace = &node.namespace;
    // Somebody else's table.
    namespace.run(0, tool("nft").args(["add", "table", "inet", "outrigger"])).unwrap();
    let before = rules(namespace);
    for flags in [&[][..], &["--undo"], &["--verify"]] {
        let output = namespace.init(flags);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(code(&output) == 5 && said.contains("was not made by `outrigger init`"), "{flags:?}: {said}");
    }
    assert_eq!(rules(namespace), before, "left as it is");
    namespace.run(0, tool("nft").args(["delete", "table", "inet", "outrigger"])).unwrap();
    // No privilege; and one is enough.
    let outrigger = outrigger_e2e::outrigger_command();
    let with = |capabilities: &str, flags: &[&str]| {
        let mut command = tool("setpriv");
        command.args(["--bounding-set", capabilities, "--inh-caps", capabilities, "--"]).arg(outrigger.get_program());
        command.arg("init").args(flags);
        namespace.command(0, &command).output().unwrap()
    };
    let output = with("-all", &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(code(&output) == 3 && said.contains("capability NET_ADMIN"), "{said}");
    assert_eq!(code(&with("-all", &["--dry-run"])), 0, "to print needs no privilege");
    let output = with("-all,+net_admin", &[]);
    assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!rules(namespace).is_empty());
    // Words that are none.
    for (flag, word, hint) in [
        ("--exclude-outbound-cidrs", "10.0.0.1/8", "write `10.0.0.0/8`"),
        ("--include-inbound-cidrs", "example.com", "is no IP address"),
        ("--exclude-inbound-ports", "80-70", "write `70-80`"),
        ("--own-ports", "0", "neither a port nor a range"),
        ("--inbound-listener", "99999", "no port from 1 to 65535"),
        ("--proxy-uid", "root", "invalid digit"),
        ("--exclude-outbound-interfaces", "eth 0", "no name of a network interface"),
    ] {
        let output = namespace.init(&[flag, word]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(code(&output) == 2 && said.contains(flag) && said.contains(hint), "{flag} {word}: {said}");
    }
    let output = namespace.init(&["--inbound-listener", "15001"]);
    assert_eq!(code(&output), 2, "{}", String::from_utf8_lossy(&output.stderr));
    let output = namespace
        .init(&["--exclude-outbound-ports", &(1..500).map(|port| port.to_string()).collect::<Vec<_>>().join(",")]);
    assert!(code(&output) == 2 && String::from_utf8_lossy(&output.stderr).contains("join ports to ranges"));
}

#[test]
fn the_largest_set_of_rules_fits() {
    let node = Node::new();
    let networks: Vec<String> =
        (0..370).map(|number| format!("fd00:{number:x}::/40")).map(|text| text.replace("/40", "/48")).collect();
    let said = node.namespace.must_init(&["--exclude-outbound-cidrs", &networks.join(",")]);
    assert!(said.contains("made, 390"), "{said}");
    assert!(node.namespace.must_init(&["--undo"]).contains("removed"));
}

#[test]
fn a_round_trip_proves_the_rules_or_says_what_is_wrong() {
    let node = Node::new();
    let pod = node.pod();
    let verify = |flags: &[&str]| {
        let output = pod.namespace.init(&[flags, &["--verify", "--format", "json"]].concat());
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        let outcomes = value["proofs"].as_array().unwrap().iter();
        let outcomes: Vec<String> = outcomes
            .map(|one| format!("{}: {}", one["what"].as_str().unwrap(), one["outcome"].as_str().unwrap()))
            .collect();
        (code(&output), outcomes.join(", "), value.to_string())
    };
    let (status, outcomes, _) = verify(&[]);
    assert_eq!((status, outcomes.as_str()), (6, "rules: failed"));
    pod.namespace.must_init(&[]);
    let all = "outbound IPv4: proved, outbound IPv6: proved, inbound IPv4: proved, inbound IPv6: proved";
    let (status, outcomes, said) = verify(&[]);
    assert_eq!((status, outcomes.as_str()), (0, all), "{said}");
    let left = pod.namespace.run(0, tool("ss").args(["-Htan"])).unwrap();
    assert_eq!(left, "", "nothing is left on the listeners' ports");
    // Other rules than those asked for.
    let (status, outcomes, said) = verify(&["--outbound-listener", "16001"]);
    assert!(status == 6 && outcomes.contains("outbound IPv4: failed"), "{said}");
    // A rule that is missing: as if somebody had flushed a chain.
    pod.namespace.run(0, tool("nft").args(["flush", "chain", "inet", "outrigger", "inbound_ports"])).unwrap();
    let (status, outcomes, said) = verify(&[]);
    assert!(status == 6 && outcomes.contains("outbound IPv6: proved, inbound IPv4: failed"), "{said}");
    // Limits of the settings are kept to.
    let flags = ["--include-outbound-ports=9000-9100", "--exclude-outbound-cidrs=::/0", "--include-inbound-ports=7000"];
    pod.namespace.must_init(&flags);
    let (status, outcomes, said) = verify(&flags);
    let expected = "outbound IPv4: proved, outbound IPv6: skipped, inbound IPv4: proved, inbound IPv6: proved";
    assert_eq!((status, outcomes.as_str()), (0, expected), "{said}");
    // While something listens on the port, nothing is proved.
    let taken = pod.namespace.enter(0, || TcpListener::bind("0.0.0.0:15001").unwrap());
    let (status, _, said) = verify(&flags);
    assert!(status == 6 && said.contains("before Outrigger starts"), "{said}");
    drop(taken);
}

#[test]
fn an_application_reaches_its_peer_through_both_sidecars() {
    let mesh = Mesh::new();
    let app = serve(&mesh.backend, 8080);
    let frontend = mesh.mesh(&mesh.frontend, "frontend", FRONTEND, "", "");
    let backend = mesh.mesh(&mesh.backend, "backend", BACKEND, "", ", tls: { mode: strict }");

    for (what, flags, url, version) in [
        ("HTTP/1.1", &["--http1.1"][..], format!("http://{SERVICE}/orders"), "1.1"),
        ("IPv6", &["--http1.1"], format!("http://[{SERVICE_V6}]/orders"), "1.1"),
        ("by its address", &["--http1.1"], format!("http://{}:8080/orders", mesh.backend.v4), "1.1"),
    ] {
        let said = curl(&mesh.frontend, &[flags, &[&url]].concat()).unwrap();
        assert!(said.starts_with(ANSWER) && said.ends_with(&format!("200 HTTP/{version}")), "{what}: {said}");
        assert!(said.contains(&format!(";URI={FRONTEND}\n")), "{what}: {said}");
    }
    assert_eq!(app.seen().len(), 3);
    let series = |direction: &str, listener: &str, route: &str, cluster: &str, peer: &str| {
        format!(
            "outrigger_http_requests_total{{direction=\"{direction}\",listener=\"{listener}\",route=\"{route}\",cluster=\"{cluster}\",code=\"200\",peer=\"{peer}\"}}"
        )
    };
    eventually("the callers' identity in the backend's metrics", || {
        let count = backend.metric(&series("inbound", "in", "passthrough", "passthrough", FRONTEND))?;
        ensure!((count - 3.0).abs() < 0.1, "{count} requests");
        Ok(())
    });
    eventually("the calls in the frontend's metrics", || {
        let count = frontend.metric(&series("outbound", "out", "orders", "orders", BACKEND))?;
        ensure!((count - 2.0).abs() < 0.1, "{count} requests");
        Ok(())
    });
    // HTTP/2 stays HTTP/2 for a server that knows nothing else, and a client's own word about it is not believed.
    let mut nghttpd = tool("nghttpd");
    nghttpd.args(["--no-tls", "-d"]).arg(mesh.folder.path()).arg("8082");
    let mut nghttpd = Process::start("nghttpd", &mut mesh.backend.namespace.command(0, &nghttpd), mesh.folder.path());
    eventually("a page over HTTP/2", || {
        nghttpd.still_runs()?;
        let said = curl(&mesh.frontend, &["--http2-prior-knowledge", &format!("http://{SERVICE}:82/none")])?;
        ensure!(said.ends_with("404 HTTP/2") && said.contains("nghttpd"), "{said}");
        Ok(())
    });
    let claim = ["-H", "Outrigger-Protocol: HTTP/2"];
    let said =
        curl(&mesh.frontend, &[&claim[..], &["--http1.1", &format!("http://{SERVICE}/orders")]].concat()).unwrap();
    assert!(said.starts_with(ANSWER) && !said.contains("rotocol: "), "{said}");
    eventually("the lines of the access log", || {
        let log = mesh.access_log("backend");
        ensure!(log.contains(r#""route":"passthrough","cluster":"passthrough""#), "{log}");
        Ok(())
    });

    // The peer may not be called without its sidecar's consent: strict means mTLS only.
    assert!(curl(&mesh.outside, &[&format!("http://{}:8080/orders", mesh.backend.v4)]).is_err());
    assert_eq!(app.seen().len(), 4, "strangers do not reach the application");
    drop(frontend);
    let said = curl(&mesh.frontend, &[&format!("http://{SERVICE}/orders")]);
    assert!(said.is_err(), "the way goes through Outrigger: {said:?}");
    mesh.frontend.namespace.must_init(&["--undo"]);
    let said = curl(&mesh.frontend, &["--connect-timeout", "1", &format!("http://{SERVICE}/orders")]);
    assert!(said.is_err(), "without rules nobody has the Service's address: {said:?}");
}

#[test]
fn a_call_to_an_endpoints_own_address_goes_there_by_its_clusters_rules() {
    let mesh = Mesh::new();
    let shards = [&mesh.backend, &mesh.outside];
    let apps = shards.map(|pod| serve(pod, 9000));
    let frontend = mesh.mesh(&mesh.frontend, "frontend", FRONTEND, ", unknownDestinations: deny", "");
    let strict = ", tls: { mode: strict }";
    let _backend = mesh.mesh(shards[0], "backend", BACKEND, "", strict);
    let other = mesh.mesh(shards[1], "other", BACKEND, "", strict);
    // As a client of a StatefulSet, or of a headless Service, that chose for itself.
    for (pod, app) in shards.iter().zip(&apps) {
        for _ in 0..4 {
            let said = curl(&mesh.frontend, &[&format!("http://{}:9000/orders", pod.v4)]).unwrap();
            assert!(said.starts_with(ANSWER) && said.contains(&format!(";URI={FRONTEND}\n")), "{said}");
        }
        assert_eq!(app.seen().len(), 4, "none of them went to the other one");
    }
    let said = curl(&mesh.frontend, &[&format!("http://[{}]:9000/orders", mesh.backend.v6)]).unwrap();
    assert!(said.starts_with(ANSWER), "{said}");
    assert!(curl(&mesh.frontend, &[&format!("http://{}:9001/", mesh.backend.v4)]).unwrap().ends_with("502 HTTP/1.1"));
    let series = format!(
        "outrigger_http_requests_total{{direction=\"outbound\",listener=\"out\",route=\"shards\",cluster=\"shards\",code=\"200\",peer=\"{BACKEND}\"}}"
    );
    eventually("the calls in the metrics", || {
        let count = frontend.metric(&series)?;
        ensure!((count - 9.0).abs() < 0.1, "{count}");
        Ok(())
    });
    // One that is not there is not replaced by another.
    drop(other);
    let said = curl(&mesh.frontend, &[&format!("http://{}:9000/orders", mesh.outside.v4)]).unwrap();
    assert!(said.ends_with("503 HTTP/1.1"), "{said}");
    // Bytes, and a server that speaks first.
    server(&mesh.backend, 2525, |mut stream| {
        let _ = stream.write_all(b"220 ready\r\n");
        let _ = stream.read(&mut [0; 64]);
    });
    let mail = format!("{}:2525", mesh.backend.v4);
    assert_eq!(greeting(&mesh.frontend.namespace, APPLICATION, &mail).unwrap(), "220 ready\r\n");
    eventually("the connection in the metrics", || {
        let ended = frontend.metric(&format!(
            "outrigger_tcp_connections_closed_total{{direction=\"outbound\",listener=\"out\",route=\"mail\",cluster=\"mail\",peer=\"{BACKEND}\"}}"
        ))?;
        ensure!(ended > 0.5, "{ended}");
        Ok(())
    });
}

#[test]
fn what_is_not_http_is_carried_through_both_sidecars() {
    let mesh = Mesh::new();
    let frontend = mesh.mesh(&mesh.frontend, "frontend", FRONTEND, "", "");
    let _backend = mesh.mesh(&mesh.backend, "backend", BACKEND, "", ", tls: { mode: strict }");

    // The server speaks first.
    server(&mesh.backend, 2525, |mut stream| {
        let _ = stream.write_all(b"220 ready\r\n");
        let _ = stream.read(&mut [0; 64]);
    });
    for _ in 0..2 {
        assert_eq!(greeting(&mesh.frontend.namespace, APPLICATION, &format!("{SERVICE}:25")).unwrap(), "220 ready\r\n");
    }
    eventually("the connections in the metrics", || {
        let ended = frontend.metric(&format!(
            "outrigger_tcp_connections_closed_total{{direction=\"outbound\",listener=\"out\",route=\"mail\",cluster=\"mail\",peer=\"{BACKEND}\"}}"
        ))?;
        ensure!(ended > 0.5, "{ended}");
        Ok(())
    });
    // That it was remembered for the mail server is not held against others at the same time.
    let app = serve(&mesh.backend, 8080);
    let said = curl(&mesh.frontend, &[&format!("http://{SERVICE}/orders")]).unwrap();
    assert!(said.starts_with(ANSWER), "{said}");
    assert_eq!(app.seen().len(), 1);

    // An upgrade, as WebSocket does it.
    server(&mesh.backend, 8082, |mut stream| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).unwrap_or(0) == 0 {
                return;
            }
            head.push(byte[0]);
        }
        let _ =
            stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\nhello");
        let mut word = [0; 5];
        if stream.read_exact(&mut word).is_ok() {
            let _ = stream.write_all(&word);
        }
    });
    let mut stream = connect(&mesh.frontend.namespace, APPLICATION, &format!("{SERVICE}:82")).unwrap();
    stream.write_all(b"GET /chat HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n").unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"hello") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the upgrade is agreed to");
        said.push(byte[0]);
    }
    assert!(said.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&said));
    stream.write_all(b"again").unwrap();
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"again");

    // The application's own TLS goes through undecrypted.
    let authority = Authority::new(&mesh.folder.path().join("web"));
    let leaf = authority.issue("web", "spiffe://web.example/web");
    let mut openssl = tool("openssl");
    openssl
        .args(["s_server", "-4", "-accept", "8443", "-www", "-cert"])
        .arg(&leaf.certificate)
        .arg("-key")
        .arg(&leaf.key);
    let mut openssl = Process::start("s_server", &mut mesh.backend.namespace.command(0, &openssl), mesh.folder.path());
    eventually("openssl to serve its page", || {
        openssl.still_runs()?;
        let page = curl(&mesh.frontend, &["-k", "-v", &format!("https://{SERVICE}/")])?;
        ensure!(page.contains("s_server") && page.contains("200 HTTP/1"), "{page}");
        Ok(())
    });
}

#[test]
fn what_is_not_the_proxys_business_is_left_alone() {
    let mesh = Mesh::new();
    let (pod, outside) = (&mesh.frontend, &mesh.outside);
    let _elsewhere = serve(outside, 8080);
    let own = serve(pod, 7070);
    let _dns = outside.namespace.enter(0, || Application::start_on((Ipv6Addr::UNSPECIFIED, 53).into()));
    let _frontend = mesh.mesh(pod, "frontend", FRONTEND, ", unknownDestinations: deny", "");
    let ask = |uid: u32, address: IpAddr, port: u16| {
        let url = format!("http://{}/orders", SocketAddr::new(address, port));
        pod.namespace.enter(uid, || request("GET", &url, &[], ""))
    };
    let elsewhere = || ask(APPLICATION, outside.v4.into(), 8080);
    let is_direct = |what: &str, outcome: Result<outrigger_e2e::Response>| {
        let body = outcome
            .unwrap_or_else(|error| panic!("{what}: {error:#}"))
            .ok()
            .unwrap_or_else(|error| panic!("{what}: {error:#}"));
        assert!(body.starts_with(ANSWER), "{what}: {body}");
    };
    let is_denied = |what: &str| {
        let answer = elsewhere().unwrap();
        assert_eq!(answer.status, 502, "{what}: {}", answer.body);
    };

    is_denied("the rules hold, and what is denied tells that the proxy was asked");
    is_direct("the pod's own localhost", ask(APPLICATION, Ipv4Addr::LOCALHOST.into(), 7070));
    is_direct("the pod's own localhost, IPv6", ask(APPLICATION, Ipv6Addr::LOCALHOST.into(), 7070));
    is_direct("the pod's own address", ask(APPLICATION, pod.v4.into(), 7070));
    is_direct("the pod's own address, IPv6", ask(APPLICATION, pod.v6.into(), 7070));
    assert!(own.seen().iter().all(|seen| !seen.headers.iter().any(|(name, _)| name.starts_with("x-forwarded"))));
    is_direct("the proxy itself", ask(PROXY, outside.v4.into(), 8080));
    is_direct("DNS over TCP", ask(APPLICATION, outside.v4.into(), 53));
    // UDP, to the port of DNS and to another.
    for port in [53, 8080] {
        let server = outside.namespace.enter(0, || UdpSocket::bind((outside.v4, port)).unwrap());
        let client = pod.namespace.enter(APPLICATION, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        server.set_read_timeout(Some(TIMEOUT)).unwrap();
        client.send_to(b"question", (outside.v4, port)).unwrap();
        let mut buffer = [0; 16];
        let (_, from) = server.recv_from(&mut buffer).expect("UDP passes");
        server.send_to(b"answer", from).unwrap();
        let (count, from) = client.recv_from(&mut buffer).expect("and its answer");
        assert_eq!((&buffer[..count], from.port()), (&b"answer"[..], port));
    }
    for address in [IpAddr::from(outside.v4), IpAddr::from(outside.v6)] {
        pod.namespace.run(0, tool("ping").args(["-c1", "-W5", &address.to_string()])).expect("ICMP passes");
    }
    // The kubelet's probe comes from the node.
    for address in [IpAddr::from(pod.v4), IpAddr::from(pod.v6)] {
        let url = format!("http://{}/readyz", SocketAddr::new(address, 15021));
        let answer = mesh.node.namespace.enter(0, || request("GET", &url, &[], "")).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    // Nobody from outside gets into the listeners themselves.
    for port in [15_001, 15_006] {
        let to = SocketAddr::new(pod.v4.into(), port).to_string();
        let mut stream = connect(&outside.namespace, APPLICATION, &to).unwrap();
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        assert!(all.is_empty(), "{}", String::from_utf8_lossy(&all));
    }

    // What is left out by its port, network, interface or user; and what is included.
    let outside_v4 = outside.v4.to_string();
    for (flags, leaves_out) in [
        (["--exclude-outbound-ports=8000-8100"], true),
        (["--exclude-outbound-ports=8081"], false),
        (["--include-outbound-ports=80"], true),
        (["--include-outbound-ports=80,8080"], false),
        (["--exclude-outbound-cidrs=10.77.0.0/24"], true),
        (["--exclude-outbound-cidrs=10.78.0.0/24,fd77::/64"], false),
        (["--include-outbound-cidrs=10.96.0.0/16"], true),
        (["--include-outbound-cidrs=10.77.0.0/16"], false),
        (["--exclude-outbound-interfaces=eth*"], true),
        (["--exclude-outbound-interfaces=eth1"], false),
        (["--include-outbound-interfaces=net1"], true),
        (["--exclude-outbound-uids=1000"], true),
        (["--include-outbound-uids=1001"], true),
        (["--include-outbound-uids=1000"], false),
        (["--direction=inbound"], true),
        (["--proxy-gid=1000"], true),
    ] {
        pod.namespace.must_init(&flags);
        if leaves_out {
            is_direct(&format!("{flags:?} to {outside_v4}"), elsewhere());
        } else {
            is_denied(flags[0]);
        }
    }
    // The same for what comes in: through the listener `in`, the application sees a connection of the pod itself.
    let came = |flags: &str| {
        pod.namespace.must_init(&[flags]);
        let before = own.seen().len();
        let url = format!("http://{}/orders", SocketAddr::new(pod.v4.into(), 7070));
        outside.namespace.enter(APPLICATION, || request("GET", &url, &[], "")).unwrap().ok().unwrap();
        assert_eq!(own.seen().len(), before + 1);
        let text =
            pod.namespace.run(0, tool("nft").args(["list", "chain", "inet", "outrigger", "inbound_ports"])).unwrap();
        !text.contains("packets 0 ")
    };
    for (flags, redirected) in [
        ("--exclude-inbound-ports=1", true),
        ("--exclude-inbound-ports=7000-7100", false),
        ("--include-inbound-ports=80", false),
        ("--include-inbound-ports=7070", true),
        ("--exclude-inbound-cidrs=10.77.0.0/24", false),
        ("--include-inbound-cidrs=10.77.0.0/24", true),
        ("--include-inbound-cidrs=10.78.0.0/24", false),
        ("--exclude-inbound-interfaces=eth0", false),
        ("--include-inbound-interfaces=eth*", true),
    ] {
        assert_eq!(came(flags), redirected, "{flags}");
    }
    pod.namespace.must_init(&["--undo"]);
    is_direct("after the rules are gone", elsewhere());
}

#[test]
fn unknown_destinations_pass_unchanged() {
    let mesh = Mesh::new();
    let app = serve(&mesh.outside, 8080);
    let frontend = mesh.mesh(&mesh.frontend, "frontend", FRONTEND, "", "");
    for address in [IpAddr::from(mesh.outside.v4), IpAddr::from(mesh.outside.v6)] {
        let url = format!("http://{}/orders", SocketAddr::new(address, 8080));
        let said = curl(&mesh.frontend, &["-H", "Host: elsewhere.example", &url]).unwrap();
        assert!(said.starts_with(ANSWER) && said.contains("host: elsewhere.example\n"), "{said}");
    }
    assert_eq!(app.seen().len(), 2);
    let series = "outrigger_http_requests_total{direction=\"outbound\",listener=\"out\",route=\"passthrough\",cluster=\"passthrough\",code=\"200\"}";
    eventually("the requests in the metrics", || {
        let count = frontend.metric(series)?;
        ensure!((count - 2.0).abs() < 0.1, "{count}");
        Ok(())
    });
    // A server that knows HTTP/2 only is spoken to as its client chose.
    let mut nghttpd = tool("nghttpd");
    nghttpd.args(["--no-tls", "-d"]).arg(mesh.folder.path()).arg("8081");
    let mut nghttpd = Process::start("nghttpd", &mut mesh.outside.namespace.command(0, &nghttpd), mesh.folder.path());
    eventually("a page over HTTP/2", || {
        nghttpd.still_runs()?;
        let url = format!("http://{}:8081/none", mesh.outside.v4);
        let said = curl(&mesh.frontend, &["--http2-prior-knowledge", &url])?;
        ensure!(said.ends_with("404 HTTP/2") && said.contains("nghttpd"), "{said}");
        Ok(())
    });
    // One that speaks first, and one that is not there.
    server(&mesh.outside, 2525, |mut stream| drop(stream.write_all(b"220 ready\r\n")));
    assert_eq!(
        greeting(&mesh.frontend.namespace, APPLICATION, &format!("{}:2525", mesh.outside.v4)).unwrap(),
        "220 ready\r\n"
    );
    let said = curl(&mesh.frontend, &[&format!("http://{}:9/", mesh.outside.v4)]).unwrap();
    assert!(said.ends_with("503 HTTP/1.1"), "{said}");
}

#[test]
fn unknown_destinations_are_refused_where_the_config_says_so() {
    let mesh = Mesh::new();
    let app = serve(&mesh.outside, 8080);
    let known = serve(&mesh.backend, 8080);
    let frontend = mesh.mesh(&mesh.frontend, "frontend", FRONTEND, ", unknownDestinations: deny", "");
    let _backend = mesh.mesh(&mesh.backend, "backend", BACKEND, "", ", tls: { mode: permissive }");
    let said = curl(&mesh.frontend, &[&format!("http://{}:8080/orders", mesh.outside.v4)]).unwrap();
    assert!(said.contains("unknownDestinations: deny") && said.ends_with("502 HTTP/1.1"), "{said}");
    let refused =
        greeting(&mesh.frontend.namespace, APPLICATION, &SocketAddr::new(mesh.outside.v6.into(), 8080).to_string());
    assert!(refused.is_err(), "{refused:?}");
    eventually("the refused connection in the metrics", || {
        let count = frontend
            .metric("outrigger_tcp_connections_closed_total{direction=\"outbound\",listener=\"out\",flags=\"NR\"}")?;
        ensure!(count > 0.5, "{count}");
        Ok(())
    });
    assert_eq!(app.seen(), []);
    // What is known still goes.
    let said = curl(&mesh.frontend, &[&format!("http://{SERVICE}/orders")]).unwrap();
    assert!(said.starts_with(ANSWER), "{said}");
    // A permissive listener takes plain text from those who have no sidecar.
    let said = curl(&mesh.outside, &[&format!("http://{}:8080/orders", mesh.backend.v4)]).unwrap();
    assert!(said.starts_with(ANSWER) && !said.contains("x-forwarded-client-cert"), "{said}");
    assert_eq!(known.seen().len(), 2);
}

#[test]
fn while_rules_are_replaced_no_connection_goes_around_them() {
    let mesh = Mesh::new();
    let app = serve(&mesh.outside, 8080);
    let _frontend = mesh.mesh(&mesh.frontend, "frontend", FRONTEND, ", unknownDestinations: deny", "");
    let url = format!("http://{}:8080/orders", mesh.outside.v4);
    let asked = thread::scope(|scope| {
        // Two at once, which have to give way to one another.
        let replacing: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| (0..10).for_each(|_| drop(mesh.frontend.namespace.must_init(&[])))))
            .collect();
        let mut asked = 0;
        while replacing.iter().any(|one| !one.is_finished()) {
            let answer = mesh.frontend.namespace.enter(APPLICATION, || request("GET", &url, &[], "")).unwrap();
            assert_eq!(answer.status, 502, "{}", answer.body);
            asked += 1;
        }
        asked
    });
    assert!(asked > 0, "no request met the replacements");
    assert_eq!(app.seen(), []);
}

#[test]
fn a_pod_that_calls_its_own_service_comes_in_by_its_front_door() {
    let mesh = Mesh::new();
    let app = serve(&mesh.backend, 8080);
    let backend = mesh.mesh(&mesh.backend, "backend", BACKEND, "", ", tls: { mode: strict }");
    for url in [format!("http://{SERVICE}/orders"), format!("http://[{SERVICE_V6}]/orders")] {
        let said = curl(&mesh.backend, &[&url]).unwrap();
        assert!(said.starts_with(ANSWER) && said.contains(&format!(";URI={BACKEND}\n")), "{said}");
    }
    assert_eq!(app.seen().len(), 2);
    eventually("its own identity in the metrics", || {
        let count = backend.metric(&format!("outrigger_http_requests_total{{direction=\"inbound\",listener=\"in\",route=\"passthrough\",cluster=\"passthrough\",code=\"200\",peer=\"{BACKEND}\"}}"))?;
        ensure!((count - 2.0).abs() < 0.1, "{count}");
        Ok(())
    });
}

#[test]
fn a_proxy_that_the_rules_do_not_know_does_not_call_itself_for_ever() {
    let mesh = Mesh::new();
    mesh.frontend.namespace.must_init(&["--proxy-uid", "4242"]);
    let mut frontend = mesh.outrigger(&mesh.frontend, "frontend", FRONTEND, PROXY, "", "");
    let _app = serve(&mesh.outside, 8080);
    let said = curl(&mesh.frontend, &[&format!("http://{}:8080/orders", mesh.outside.v4)]).unwrap();
    assert!(said.contains("--proxy-uid") && said.ends_with("508 HTTP/1.1"), "{said}");
    // A Service's address first becomes an endpoint's.
    let said = curl(&mesh.frontend, &[&format!("http://{SERVICE}/orders")]).unwrap();
    assert!(said.ends_with("503 HTTP/1.1"), "{said}");
    frontend.process.still_runs().unwrap();
    eventually("all its connections to end", || {
        let open = frontend.metric("outrigger_downstream_connections_active{listener=\"out\"}")?;
        ensure!(open < 20.0, "{open} connections");
        Ok(())
    });
    assert!(frontend.process.log().contains("--proxy-uid"), "{}", frontend.process.log());
}

/// What the kernel says of a process.
fn status(id: u32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn outrigger_makes_the_rules_itself_and_keeps_no_privilege() {
    let node = Node::new();
    let pod = node.pod();
    let folder = tempfile::tempdir().unwrap();
    run(tool("chmod").arg("755").arg(folder.path())).unwrap();
    let config = folder.path().join("outrigger.yaml");
    std::fs::write(&config, "proxy: { listeners: [{ name: out, direction: outbound, address: \"0.0.0.0:15001\", redirected: true, protocol: auto }] }\n").unwrap();
    let mut outrigger = outrigger_command();
    outrigger.args(["init", "--direction", "outbound", "--", "run", "--config"]).arg(&config);
    // As a container's runtime starts it: root with few capabilities, and the group of --proxy-uid.
    let started = |capabilities: &str, group: &str| {
        let mut command = tool("ip");
        command.args(["netns", "exec", &pod.namespace.name, "setpriv", "--regid", group, "--clear-groups"]);
        command.args([
            "--inh-caps",
            &format!("-all,{capabilities}"),
            "--bounding-set",
            &format!("-all,{capabilities}"),
        ]);
        command.arg("--").arg(outrigger.get_program()).args(outrigger.get_args());
        command
    };
    for (capabilities, group, says) in [
        ("+net_admin,+setuid,+setpcap", "0", "runAsGroup"),
        ("+net_admin,+setpcap", "65532", "SETUID"),
        ("+net_admin,+setuid", "65532", "SETPCAP"),
        ("+setuid,+setpcap", "65532", "NET_ADMIN"),
    ] {
        let output = started(capabilities, group).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), error.contains(says)), (Some(3), true), "{capabilities} {group}: {error}");
    }
    let process = Process::start("outrigger", &mut started("+net_admin,+setuid,+setpcap", "65532"), folder.path());
    pod.namespace.enter(PROXY, || {
        eventually("Outrigger to become ready", || request("GET", "http://127.0.0.1:15021/readyz", &[], "")?.ok())
    });
    for set in ["CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb"] {
        assert_eq!(status(process.id(), set), "0000000000000000", "{set}");
    }
    for id in ["Uid", "Gid"] {
        assert_eq!(status(process.id(), id), [PROXY.to_string().as_str(); 4].join(" "));
    }
    assert_eq!(status(process.id(), "NoNewPrivs"), "1");
    assert!(!rules(&pod.namespace).is_empty(), "the rules are there");
}
