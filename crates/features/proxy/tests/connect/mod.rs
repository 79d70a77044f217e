//! CONNECT, ended here or passed on to a proxy, from clients of both versions.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::harness::{App, Client, Proxy, free_port};
use crate::multiplex::{echo_stream, http2_server, read_head};

fn config(port: u16, route: &str, cluster: &str) -> String {
    format!(
        r#"
proxy:
  listeners:
    - name: in
      direction: inbound
      address: 127.0.0.1:PORT
      connectRoutes: [{{ name: tunnels, backendRefs: [{{ name: app }}], {route} }}]
  clusters:
    - {{ name: app, endpoints: ["127.0.0.1:{port}"]{cluster} }}
    - {{ name: anything, originalDestination: true }}
"#
    )
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 512];
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 || stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// Asks for a tunnel; the answer's head.
fn connect(port: u16, authority: &str) -> (TcpStream, String) {
    let mut client = Client::connect(port);
    client.send(&format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"));
    let stream = client.into_socket();
    let mut reading = stream.try_clone().unwrap();
    let head = read_head(&mut reading);
    (stream, head)
}

/// What is said comes back, and so does the end.
fn is_tunnel(mut stream: TcpStream) {
    for text in ["hello", "GET / HTTP/1.1\r\n\r\n", "\0\r\n0\r\n\r\n"] {
        stream.write_all(text.as_bytes()).unwrap();
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, text.as_bytes());
    }
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn a_connect_is_a_tunnel_where_a_route_says_so() {
    let app = App::talking(echo);
    let proxy = Proxy::start_on(&config(app.port, "hostnames: [db.example], ports: [5432]", ""), 1).await;
    let at = proxy.port;
    let talk = tokio::task::spawn_blocking(move || {
        let (stream, head) = connect(at, "DB.example:5432");
        assert_eq!(head, "HTTP/1.1 200 OK\r\n\r\n", "no framing, for what follows is the tunnel");
        is_tunnel(stream);
        for (request, status) in [
            ("CONNECT db.example:80 HTTP/1.1\r\nHost: db.example:80\r\n\r\n", "404"),
            ("CONNECT other:5432 HTTP/1.1\r\nHost: db.example:5432\r\n\r\n", "404"),
            ("CONNECT db.example HTTP/1.1\r\nHost: db.example\r\n\r\n", "400"),
            ("CONNECT db.example:0 HTTP/1.1\r\nHost: db.example:0\r\n\r\n", "400"),
            ("CONNECT u@db.example:5432 HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
            ("CONNECT db.example:5432 HTTP/1.1\r\n\r\n", "400"),
            ("CONNECT db.example:5432 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", "400"),
            ("CONNECT db.example:5432 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"),
        ] {
            let mut client = Client::connect(at);
            // What was sent ahead for a tunnel that is refused must not be taken for a request.
            client.send(&format!("{request}GET /inside HTTP/1.1\r\nHost: db.example\r\n\r\n"));
            let all = client.read_to_end();
            assert!(all.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {all}");
            assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "{request}: {all}");
        }
    });
    talk.await.unwrap();
    proxy.metrics_have(r#"route="tunnels",cluster="app",code="200"} 1"#).await;
    proxy.stop().await;
}

#[tokio::test]
async fn addresses_asked_for_are_connected_to_only_where_they_may_be() {
    let app = App::talking(echo);
    for (hostnames, host, status) in [
        ("[127.0.0.1]", "127.0.0.1", "200"),
        ("[]", "127.0.0.1", "403"),
        ("[]", "[::1]", "403"),
        ("[]", "[::ffff:127.0.0.1]", "403"),
        ("[]", "localhost", "403"),
        ("[127.0.0.1]", "127.0.0.2", "404"),
    ] {
        let route = format!("hostnames: {hostnames}");
        let config =
            config(app.port, &route, "").replace("backendRefs: [{ name: app }]", "backendRefs: [{ name: anything }]");
        let proxy = Proxy::start_on(&config, 1).await;
        let (at, port) = (proxy.port, app.port);
        let talk = tokio::task::spawn_blocking(move || {
            let (stream, head) = connect(at, &format!("{host}:{port}"));
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{hostnames} {host}: {head}");
            if status == "200" {
                is_tunnel(stream);
            }
        });
        talk.await.unwrap();
        proxy.stop().await;
    }
}

#[tokio::test]
async fn a_tunnel_that_cannot_be_or_breaks_off_is_told() {
    let proxy = Proxy::start_on(&config(free_port(), "ports: [80]", ""), 1).await;
    let at = proxy.port;
    let refused = tokio::task::spawn_blocking(move || connect(at, "a:80").1);
    assert!(refused.await.unwrap().starts_with("HTTP/1.1 503"));
    proxy.stop().await;

    let app = App::talking(|mut stream| {
        stream.read_exact(&mut [0; 4]).unwrap();
        stream.write_all(b"half").unwrap();
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let proxy = Proxy::start_on(&config(app.port, "ports: [80]", ""), 1).await;
    let at = proxy.port;
    let talk = tokio::task::spawn_blocking(move || {
        let (mut stream, head) = connect(at, "a:80");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        stream.write_all(b"more").unwrap();
        let error = stream.read_to_end(&mut Vec::new()).expect_err("a reset, not an end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
    talk.await.unwrap();
    proxy.stop().await;
}

#[tokio::test]
async fn a_proxy_behind_us_gets_the_connect_and_may_refuse_it() {
    let app = App::talking(|mut stream| {
        let head = read_head(&mut stream);
        assert!(head.starts_with("CONNECT far.example:443 HTTP/1.1\r\n"), "{head}");
        assert!(head.to_lowercase().contains("host: far.example:443\r\n"), "{head}");
        if head.contains("Proxy-Authorization: let me") {
            stream.write_all(b"HTTP/1.1 200 Connection established\r\nX-Via: a\r\n\r\n").unwrap();
            echo(stream);
        } else {
            let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 2\r\n\r\nno";
            stream.write_all(refusal.as_bytes()).unwrap();
        }
    });
    let proxy = Proxy::start_on(&config(app.port, "mode: forward", ""), 1).await;
    let at = proxy.port;
    let talk = tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(at);
        client
            .send("CONNECT far.example:443 HTTP/1.1\r\nHost: far.example:443\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let all = client.read_to_end();
        assert!(all.starts_with("HTTP/1.1 407") && all.contains("Proxy-Authenticate: Basic"), "{all}");
        assert!(all.ends_with("\r\n\r\nno"), "and the connection ends: {all}");
        let mut client = Client::connect(at);
        client.send("CONNECT far.example:443 HTTP/1.1\r\nHost: far.example:443\r\nProxy-Authorization: let me\r\n\r\n");
        let mut stream = client.into_socket();
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("X-Via: a"), "{head}");
        is_tunnel(stream);
    });
    talk.await.unwrap();
    proxy.stop().await;
}

/// Asks by HTTP/2 for a tunnel; the status, and what came back of `hello` and the end.
async fn connect_by_http2(port: u16, authority: &str) -> (u16, Vec<u8>) {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let mut driving = JoinSet::new();
    driving.spawn(async move { drop(connection.await) });
    let mut client = client.ready().await.unwrap();
    let request = http::Request::builder().method("CONNECT").uri(authority).version(http::Version::HTTP_2);
    let (response, mut send) = client.send_request(request.body(()).unwrap(), false).unwrap();
    let response = response.await.unwrap();
    let status = response.status().as_u16();
    if status == 200 {
        assert!(!response.headers().contains_key("content-length"));
        send.send_data("hello".into(), true).unwrap();
    }
    let mut body = response.into_body();
    let mut back = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        back.extend_from_slice(&data);
    }
    (status, back)
}

#[tokio::test]
async fn a_stream_of_http2_becomes_a_tunnel() {
    let app = App::talking(echo);
    let proxy = Proxy::start_on(&config(app.port, "ports: [5432]", ""), 1).await;
    assert_eq!(connect_by_http2(proxy.port, "db:5432").await, (200, b"hello".to_vec()));
    assert_eq!(connect_by_http2(proxy.port, "db:80").await.0, 404);
    proxy.stop().await;

    let port = http2_server(
        |_, request, respond| {
            assert_eq!((request.method().as_str(), request.uri().to_string().as_str()), ("CONNECT", "far:443"));
            assert!(request.extensions().get::<h2::ext::Protocol>().is_none());
            echo_stream(request, respond);
        },
        h2::server::Builder::new,
    );
    let proxy = Proxy::start_on(&config(port, "mode: forward", ", protocol: http2"), 1).await;
    assert_eq!(connect_by_http2(proxy.port, "far:443").await, (200, b"hello".to_vec()));
    let at = proxy.port;
    let talk = tokio::task::spawn_blocking(move || {
        let (stream, head) = connect(at, "far:443");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        is_tunnel(stream);
    });
    talk.await.unwrap();
    proxy.stop().await;
}
