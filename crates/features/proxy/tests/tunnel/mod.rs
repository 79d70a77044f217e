//! Bytes that are carried as they come: upgrades, TCP, TLS by name, and who is behind a proxy.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::OK;
use crate::harness::{App, Client, Proxy, Shop, free_port, until};

/// A server that does with each connection what `serve` says.
fn server(serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    port
}

/// Says everything back, and ends when the other side has ended.
fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 || stream.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn read(stream: &mut TcpStream, count: usize) -> String {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn config(listener: &str, cluster_port: u16, cluster: &str) -> String {
    format!(
        r#"
proxy:
  listeners:
    - {{ name: in, direction: inbound, address: "127.0.0.1:PORT", {listener} }}
  clusters:
    - {{ name: app, endpoints: ["127.0.0.1:{cluster_port}"]{cluster} }}
"#
    )
}

const HTTP: &str = "routes: [{ name: all, backendRefs: [{ name: app }] }]";
const TCP: &str = "tcpRoute: { name: bytes, backendRefs: [{ name: app }] }";

/// Reads a head, byte by byte, so that nothing behind it is taken.
fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn an_upgrade_is_a_tunnel_once_the_endpoint_agrees() {
    let port = server(|mut stream| {
        let head = read_head(&mut stream).to_lowercase();
        assert!(head.contains("upgrade: chat\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
        if head.starts_with("get /no") {
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").unwrap();
            return;
        }
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\nwelcome")
            .unwrap();
        echo(stream);
    });
    let proxy = Proxy::start_on(&config(HTTP, port, ""), 1).await;
    let at = proxy.port;
    let talk = tokio::task::spawn_blocking(move || {
        let mut client = connect(at);
        let ask =
            |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n");
        client.write_all(ask("/no").as_bytes()).unwrap();
        assert!(read_head(&mut client).starts_with("HTTP/1.1 403"));
        assert_eq!(read(&mut client, 2), "no");
        // The connection is none the worse for it.
        client.write_all(ask("/yes").as_bytes()).unwrap();
        let head = read_head(&mut client);
        assert!(head.starts_with("HTTP/1.1 101") && head.to_lowercase().contains("upgrade: chat"), "{head}");
        assert_eq!(read(&mut client, 7), "welcome");
        for text in ["GET / HTTP/1.1\r\n\r\n", "\0\r\n0\r\n\r\n"] {
            client.write_all(text.as_bytes()).unwrap();
            assert_eq!(read(&mut client, text.len()), text, "bytes, not requests");
        }
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "and the end comes back");
    });
    talk.await.unwrap();
    proxy.metrics_have(r#"cluster="app",code="101"} 1"#).await;
    proxy.stop().await;
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    // Answers only when the client has ended its direction.
    let port = server(|mut stream| {
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        stream.write_all(format!("got {}", all.len()).as_bytes()).unwrap();
    });
    let proxy = Proxy::start_on(&config(&format!("protocol: tcp, {TCP}"), port, ""), 1).await;
    let at = proxy.port;
    let answer = tokio::task::spawn_blocking(move || {
        let mut client = connect(at);
        client.write_all(&[b'x'; 300_000]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    });
    assert_eq!(answer.await.unwrap(), "got 300000");
    proxy.metrics_have(r#"outrigger_tcp_received_bytes_total{direction="inbound",listener="in",route="bytes",cluster="app"} 300000"#).await;
    proxy.stop().await;
}

/// Bytes that differ from place to place.
fn pattern(count: usize) -> Vec<u8> {
    (0..count as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

#[tokio::test]
async fn many_bytes_pass_whole_both_ways_at_the_pace_of_the_slower() {
    const MANY: usize = 24 * 1024 * 1024;
    // Sends all it has while it takes what comes, and says at the end what that was.
    let port = server(|mut stream| {
        let mut sending = stream.try_clone().unwrap();
        let sent = thread::spawn(move || sending.write_all(&pattern(MANY)).unwrap());
        let mut came = Vec::new();
        let mut part = vec![0; 1024 * 1024];
        while let Ok(count) = stream.read(&mut part) {
            if count == 0 {
                break;
            }
            came.extend_from_slice(&part[..count]);
            if came.len() < MANY / 4 {
                // The sender finds windows and pipes full for a while.
                thread::sleep(Duration::from_millis(2));
            }
        }
        sent.join().unwrap();
        stream.write_all(if came == pattern(MANY) { b"whole" } else { b"wrong" }).unwrap();
    });
    let proxy = Proxy::start_on(&config(&format!("protocol: tcp, {TCP}"), port, ""), 1).await;
    let at = proxy.port;
    let talk = tokio::task::spawn_blocking(move || {
        let mut client = connect(at);
        let mut sending = client.try_clone().unwrap();
        let sent = thread::spawn(move || {
            sending.write_all(&pattern(MANY)).unwrap();
            sending.shutdown(Shutdown::Write).unwrap();
        });
        let mut came = Vec::new();
        client.read_to_end(&mut came).unwrap();
        sent.join().unwrap();
        assert_eq!(String::from_utf8_lossy(&came[MANY..]), "whole");
        assert!(came[..MANY] == pattern(MANY));
    });
    talk.await.unwrap();
    // The kernel moved them, and has its pipes back.
    let kept = [r#"outrigger_proxy_pipes{state="kept"} 1"#, r#"outrigger_proxy_pipes{state="kept"} 2"#];
    proxy.metrics_have_one_of(&kept).await;
    proxy.metrics_have(r#"outrigger_proxy_pipes{state="lent"} 0"#).await;
    proxy.metrics_have(&format!("outrigger_tcp_received_bytes_total{{direction=\"inbound\",listener=\"in\",route=\"bytes\",cluster=\"app\"}} {MANY}")).await;
    proxy.stop().await;
}

#[tokio::test]
async fn what_breaks_off_is_seen_as_broken_off() {
    let port = server(|mut stream| {
        // Not before the connection is surely made: one that is reset at once could not be made.
        let _ = stream.read(&mut [0; 1]);
        stream.write_all(b"half").unwrap();
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let proxy = Proxy::start_on(&config(&format!("protocol: tcp, {TCP}"), port, ""), 1).await;
    let at = proxy.port;
    let outcome = tokio::task::spawn_blocking(move || {
        let mut client = connect(at);
        client.write_all(b"x").unwrap();
        client.read_to_string(&mut String::new())
    });
    assert!(outcome.await.unwrap().is_err(), "a reset, not an end");
    proxy.metrics_have(r#"flags="UC""#).await;
    proxy.stop().await;
}

#[tokio::test]
async fn on_one_port_http_is_found_and_a_silent_client_hears_the_server() {
    let greeter = server(|mut stream| {
        stream.write_all(b"220 ready\r\n").unwrap();
        echo(stream);
    });
    let app = App::answering(OK);
    let listener = r#"protocol: auto, detectTimeout: 50ms, routes: [{ name: web, backendRefs: [{ name: web }] }],
      tcpRoute: { name: bytes, backendRefs: [{ name: app }] }"#;
    let web = format!("\n    - {{ name: web, endpoints: [\"127.0.0.1:{}\"] }}\n", app.port);
    let proxy = Proxy::start_on(&(config(listener, greeter, "") + &web), 1).await;
    let at = proxy.port;
    let talk = tokio::task::spawn_blocking(move || {
        assert!(Client::connect(at).ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 200"));
        // Speaks first, in no protocol of ours.
        let mut client = connect(at);
        client.write_all(b"*1\r\n$4\r\nPING\r\n").unwrap();
        assert_eq!(read(&mut client, 25), "220 ready\r\n*1\r\n$4\r\nPING\r\n");
        for _ in 0..2 {
            let mut client = connect(at);
            assert_eq!(read(&mut client, 11), "220 ready\r\n", "the client said nothing");
        }
    });
    talk.await.unwrap();
    proxy.stop().await;
}

#[tokio::test]
async fn a_proxys_header_tells_the_client_and_is_told_on() {
    let port = server(|mut stream| {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
            line.push(byte[0]);
        }
        let head = read_head(&mut stream);
        let body = format!("{}{}", String::from_utf8_lossy(&line), head.lines().next().unwrap_or_default());
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let proxy = Proxy::start_on(&config(&format!("proxyProtocol: true, {HTTP}"), port, ", proxyProtocol: v1"), 1).await;
    let at = proxy.port;
    let talk = tokio::task::spawn_blocking(move || {
        for client in ["192.0.2.1", "192.0.2.7"] {
            let request = format!("PROXY TCP4 {client} 192.0.2.2 5000 80\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n");
            let answer = Client::connect(at).ask(&request);
            assert!(answer.ends_with(&format!("PROXY TCP4 {client} 192.0.2.2 5000 80\r\nGET /x HTTP/1.1")), "{answer}");
        }
        let mut liar = connect(at);
        liar.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(liar.read(&mut [0]).unwrap_or(0), 0, "without the header nothing is served");
    });
    talk.await.unwrap();
    proxy.metrics_have(r#"outrigger_downstream_connections_cut_total{listener="in",reason="proxy_protocol"} 1"#).await;
    proxy.stop().await;
}

#[tokio::test]
async fn undecrypted_tls_goes_where_its_client_asks() {
    let port = server(echo);
    let listener = r#"protocol: tls, tlsRoutes: [{ name: one, hostnames: ["one.test", "*.two.test"], backendRefs: [{ name: app }] }]"#;
    let proxy = Proxy::start_on(&config(listener, port, ""), 1).await;
    let at = proxy.port;
    let talk = tokio::task::spawn_blocking(move || {
        for (name, taken) in [("one.test", true), ("x.two.test", true), ("two.test", false), ("other.test", false)] {
            let hello = client_hello(name);
            let mut client = connect(at);
            client.write_all(&hello[..7]).unwrap();
            client.write_all(&hello[7..]).unwrap();
            let mut back = vec![0; hello.len()];
            let whole = client.read_exact(&mut back).is_ok();
            assert_eq!(whole, taken, "{name}");
            assert!(!taken || back == hello, "{name}: byte for byte");
        }
    });
    talk.await.unwrap();
    proxy.stop().await;
}

#[tokio::test]
async fn a_server_that_spoke_first_is_remembered() {
    let port = server(|mut stream| {
        stream.write_all(b"220 ready\r\n").unwrap();
        let _ = stream.read(&mut [0; 16]);
    });
    let listener =
        |timeout: &str| config(&format!("protocol: auto, detectTimeout: {timeout}, {TCP}, {HTTP}"), port, "");
    let proxy = Proxy::start_on(&listener("20ms"), 1).await;
    let at = proxy.port;
    let hear = move || {
        let mut client = connect(at);
        assert_eq!(read(&mut client, 11), "220 ready\r\n");
    };
    tokio::task::spawn_blocking(hear).await.unwrap();
    // From now on nobody would hear anything in time who had to wait for it to be found out again. The other listener
    // shows when the new config holds.
    let fresh = free_port();
    let other =
        format!("    - {{ name: fresh, direction: inbound, address: \"127.0.0.1:{fresh}\", {HTTP} }}\n  clusters:");
    proxy.reload(&listener("1h").replace("  clusters:", &other));
    until("the new config holds", || TcpStream::connect(("127.0.0.1", fresh)).is_ok()).await;
    tokio::task::spawn_blocking(hear).await.unwrap();
    proxy.stop().await;
}

#[tokio::test]
async fn a_slow_client_does_not_make_its_server_one_that_speaks_first() {
    let (accepted, was_accepted) = std::sync::mpsc::sync_channel(4);
    let port = server(move |mut stream| {
        accepted.send(()).unwrap();
        while !read_head(&mut stream).is_empty() {
            stream.write_all(OK.as_bytes()).unwrap();
        }
    });
    let proxy =
        Proxy::start_on(&config(&format!("protocol: auto, detectTimeout: 20ms, {TCP}, {HTTP}"), port, ""), 1).await;
    let at = proxy.port;
    let talk = tokio::task::spawn_blocking(move || {
        let ask = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut slow = Client::connect(at);
        // It was taken for one that waits for its server.
        was_accepted.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(slow.ask(ask).starts_with("HTTP/1.1 200"), "and is carried all the same");
        assert!(Client::connect(at).ask(ask).starts_with("HTTP/1.1 200"));
    });
    talk.await.unwrap();
    proxy.metrics_have(r#"outrigger_http_requests_total{direction="inbound",listener="in",route="all",cluster="app",code="200"} 1"#).await;
    proxy.stop().await;
}

/// What a client of TLS sends first when it asks for this name.
fn client_hello(name: &str) -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test]
async fn permissive_takes_plain_text_beside_mtls_and_strict_does_not() {
    let app = App::answering(OK);
    let shop = Shop::start(&app, "spiffe://shop.example/ns/shop/sa/backend").await;
    let (strict, outbound) = (shop.backend.port, shop.outbound());
    let ask =
        |port: u16| tokio::task::spawn_blocking(move || Client::connect(port).ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert!(!ask(strict).await.unwrap().starts_with("HTTP/1.1 200"), "strict");
    assert!(ask(outbound).await.unwrap().starts_with("HTTP/1.1 200"));
    shop.stop().await;

    let shop = Shop::start_permissive(&app, "spiffe://shop.example/ns/shop/sa/backend").await;
    let (permissive, outbound) = (shop.backend.port, shop.outbound());
    assert!(ask(permissive).await.unwrap().starts_with("HTTP/1.1 200"), "plain");
    assert!(ask(outbound).await.unwrap().starts_with("HTTP/1.1 200"), "mTLS");
    let seen = app.seen();
    assert!(!seen[1].contains("x-forwarded-client-cert"), "{seen:?}");
    let told = "x-forwarded-client-cert: By=spiffe://shop.example/ns/shop/sa/backend;Hash=";
    assert!(seen[2].contains(told) && seen[2].contains(";URI=spiffe://shop.example/ns/shop/sa/frontend"), "{seen:?}");
    shop.stop().await;
}
