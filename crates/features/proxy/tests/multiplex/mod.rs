//! Many HTTP/1 requests on few connections between two proxies, and HTTP/2 towards endpoints.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]
#![expect(clippy::disallowed_methods, reason = "the tasks of a test end with its runtime")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use crate::OK;
use crate::harness::{App, Client, Proxy, Shop, read_request, until};
use crate::http2::{DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PING, RST_STREAM};

const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Established TCP connections of this machine to a port of it.
fn connections_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let wanted = format!(":{port:04X}");
    table
        .lines()
        .filter(|line| {
            let mut fields = line.split_whitespace().skip(2);
            fields.next().is_some_and(|remote| remote.ends_with(&wanted)) && fields.next() == Some("01")
        })
        .count()
}

/// An application that answers, with the request's path, only when so many requests wait for it.
fn gathering(count: usize) -> App {
    let waiting = Arc::new((Mutex::new(0), Condvar::new()));
    App::talking(move |mut stream| {
        while let Some(request) = read_request(&mut stream) {
            let (number, all_there) = &*waiting;
            let mut number = number.lock().unwrap();
            *number += 1;
            all_there.notify_all();
            let patience = Duration::from_secs(20);
            drop(all_there.wait_timeout_while(number, patience, |number| *number < count).unwrap());
            let path = request.split(' ').nth(1).unwrap_or_default();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len());
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

/// Asks for `/0`, `/1` … at once, each on a connection of its own, and checks the answers.
async fn ask_at_once(port: u16, count: usize) {
    let asking = tokio::task::spawn_blocking(move || {
        let threads = (0..count).map(|number| {
            thread::spawn(move || Client::connect(port).ask(&format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n")))
        });
        for (number, thread) in threads.collect::<Vec<_>>().into_iter().enumerate() {
            let answer = thread.join().unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&format!("\r\n\r\n/{number}")), "{answer}");
        }
    });
    asking.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_share_two_connections() {
    let app = gathering(200);
    let shop = Shop::start_toward(&app, "protocol: http2", 1).await;
    ask_at_once(shop.outbound(), 200).await;
    // Each takes the 100 streams that the other side's listener allows, and both are there yet.
    assert_eq!(connections_to(shop.backend.port), 2);
    shop.frontend.counts(r#"outrigger_upstream_http2_connections_active{cluster="backend"}"#, 2.0).await;
    shop.frontend.metrics_have(r#"outrigger_upstream_http2_streams_active{cluster="backend"} 0"#).await;
    shop.frontend.counts(r#"outrigger_upstream_connections_total{cluster="backend",result="ok"}"#, 2.0).await;
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_outriggers_auto_shares_when_there_are_many() {
    // The first request tells that the other side is an Outrigger; then 60 come at once.
    let app = gathering(61);
    let shop = Shop::start_toward(&app, "pool: { multiplexAbove: 4 }", 1).await;
    let first = shop.outbound();
    let first = thread::spawn(move || Client::connect(first).ask("GET /first HTTP/1.1\r\nHost: a\r\n\r\n"));
    shop.backend.metrics_have(r#"outrigger_http_requests_in_flight{listener="in"} 1"#).await;
    ask_at_once(shop.outbound(), 60).await;
    assert!(first.join().unwrap().ends_with("/first"));
    let made = shop.frontend.metric(r#"outrigger_upstream_connections_total{cluster="backend",result="ok"}"#);
    assert_eq!(made, 5.0, "four of their own and one that is shared");
    shop.frontend.counts(r#"outrigger_upstream_http2_connections_active{cluster="backend"}"#, 1.0).await;
    assert_eq!(connections_to(shop.backend.port), 5);
    shop.stop().await;
}

#[tokio::test]
async fn an_application_cannot_tell_that_a_connection_was_shared() {
    let app = App::new(|request| {
        Some(match request.split(' ').nth(1) {
            Some("/none") => "HTTP/1.1 204 No Content\r\nX-Empty: 1\r\n\r\n".to_owned(),
            Some("/same") => "HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 7\r\n\r\n".to_owned(),
            Some("/head") => "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n".to_owned(),
            Some("/hints") => format!("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n{OK}"),
            Some("/chunked") => "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n".to_owned(),
            _ => "HTTP/1.1 200 OK\r\nX-CaSe: 1\r\nSet-Cookie: a\r\nETag: \"x\"\r\nset-cookie: b\r\nContent-Length: 2\r\n\r\nok".to_owned(),
        })
    });
    let shop = Shop::start_toward(&app, "protocol: http2", 1).await;
    let at = shop.outbound();
    let talk = tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(at);
        let answer = client.ask(
            "POST /?a=b HTTP/1.1\r\nX-Before: 1\r\nHOST: Shop\r\nx-lower: 2\r\nX-CaSe: 3\r\nCOOKIE: a=b; c=d\r\nContent-Length: 2\r\n\r\nhi",
        );
        let names: Vec<_> = answer.lines().skip(1).take_while(|line| !line.is_empty()).collect();
        assert_eq!(names[..5], ["X-CaSe: 1", "Set-Cookie: a", "ETag: \"x\"", "set-cookie: b", "Content-Length: 2"]);
        assert!(!answer.to_lowercase().contains("outrigger-field-names"), "{answer}");
        let mut head = |request: &str| {
            client.send(request);
            client.read_some()
        };
        let answer = head("HEAD /head HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("Content-Length: 12345"), "{answer}");
        let answer = head("GET /none HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 204") && !answer.to_lowercase().contains("content-length"), "{answer}");
        let answer = head("GET /same HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 304") && answer.contains("ETag"), "{answer}");
        client.send("GET /hints HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut answer = client.read_some();
        while !answer.ends_with("ok") {
            answer.push_str(&client.read_some());
        }
        assert!(answer.starts_with("HTTP/1.1 103") && answer.contains("Link: </x>\r\n\r\nHTTP/1.1 200"), "{answer}");
        client.send("GET /chunked HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n");
        let answer = client.read_to_end().to_lowercase();
        assert!(answer.contains("trailer: x-sum") && answer.contains("0\r\nx-sum: 7\r\n\r\n"), "{answer}");
        // A client of HTTP/1.0 without a host.
        let mut old = Client::connect(at);
        old.send("GET /chunked HTTP/1.0\r\n\r\n");
        let answer = old.read_to_end();
        assert!(answer.ends_with("\r\n\r\nok") && !answer.to_lowercase().contains("transfer-encoding"), "{answer}");
        let mut waiting = Client::connect(at);
        waiting.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
        assert!(waiting.read_some().starts_with("HTTP/1.1 100"), "the application's own 100");
        assert!(waiting.ask("more").ends_with("ok"));
    });
    talk.await.unwrap();
    let seen = app.seen();
    let lines: Vec<_> = seen[0].lines().collect();
    assert_eq!(
        lines[..6],
        ["POST /?a=b HTTP/1.1", "X-Before: 1", "HOST: Shop", "x-lower: 2", "X-CaSe: 3", "COOKIE: a=b; c=d"]
    );
    assert!(seen.iter().all(|request| !request.to_lowercase().contains("outrigger-field-names")), "{seen:?}");
    shop.frontend.counts(r#"outrigger_upstream_connections_total{cluster="backend",result="ok"}"#, 1.0).await;
    shop.stop().await;
}

#[tokio::test]
async fn a_response_that_breaks_off_on_a_shared_connection_is_an_error() {
    let (break_off, is_to_break) = std::sync::mpsc::sync_channel(1);
    let is_to_break = Mutex::new(is_to_break);
    let app = App::talking(move |mut stream| {
        let Some(_) = read_request(&mut stream) else { return };
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n").unwrap();
        let _ = is_to_break.lock().unwrap().recv_timeout(Duration::from_secs(20));
    });
    let shop = Shop::start_toward(&app, "protocol: http2", 1).await;
    let at = shop.outbound();
    let talk = tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(at);
        client.send(GET);
        let mut all = String::new();
        while !all.contains("part") {
            all.push_str(&client.read_some());
        }
        break_off.send(()).unwrap();
        all.push_str(&client.read_to_end());
        assert!(all.starts_with("HTTP/1.1 200") && !all.ends_with("0\r\n\r\n"), "{all}");
        // An older client knows no end but the connection's; a reset tells it.
        let mut old = Client::connect(at);
        old.send("GET / HTTP/1.0\r\n\r\n");
        let mut all = String::new();
        while !all.contains("part") {
            all.push_str(&old.read_some());
        }
        break_off.send(()).unwrap();
        let error = old.socket().read_to_end(&mut Vec::new()).expect_err("no orderly end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
    talk.await.unwrap();
    shop.stop().await;
}

#[tokio::test]
async fn shared_connections_end_by_age_by_requests_and_by_rest() {
    let app = App::answering(OK);
    let cluster = "cluster=\"backend\"";
    for (name, pool, requests, at_least) in
        [("requests", "maxRequests: 2", 6, 3.0), ("age", "maxAge: 10ms", 1, 1.0), ("rest", "idleTimeout: 10ms", 1, 1.0)]
    {
        let shop = Shop::start_toward(&app, &format!("protocol: http2\n      pool: {{ {pool} }}"), 1).await;
        for _ in 0..requests {
            assert!(Client::connect(shop.outbound()).ask(GET).starts_with("HTTP/1.1 200"), "{name}");
        }
        let made = shop.frontend.metric(&format!("outrigger_upstream_connections_total{{{cluster},result=\"ok\"}}"));
        assert!(made >= at_least, "{name}: {made}");
        // The worker's sweep lets go of it, and the count follows.
        shop.frontend.metrics_have(&format!("outrigger_upstream_http2_connections_active{{{cluster}}} 0")).await;
        shop.frontend.metrics_have(&format!("outrigger_upstream_connections_active{{{cluster}}} 0")).await;
        assert!(Client::connect(shop.outbound()).ask(GET).starts_with("HTTP/1.1 200"), "{name}");
        shop.stop().await;
    }
}

#[tokio::test]
async fn a_failed_try_is_the_failure_of_all_who_waited_for_it() {
    // Takes connections and never says a word, so that the handshake ends by the connect timeout.
    let silent = App::talking(|mut stream| while stream.read(&mut [0; 512]).is_ok_and(|read| read > 0) {});
    let app = App::answering(OK);
    let shop = Shop::start_toward(&app, "protocol: http2\n      connectTimeout: 500ms", 1).await;
    let dead = silent.port;
    let config = shop.frontend_config.replace(&format!(":{}\"]", shop.backend.port), &format!(":{dead}\"]"));
    shop.frontend.reload(&config);
    let port = shop.outbound();
    until("the new endpoint is in force", || !Client::connect(port).ask(GET).starts_with("HTTP/1.1 200")).await;
    let started = Arc::new(AtomicUsize::new(0));
    let at_once = Arc::new(Barrier::new(20));
    let clients = tokio::task::spawn_blocking(move || {
        let threads = (0..20).map(|_| {
            let (at_once, started) = (Arc::clone(&at_once), Arc::clone(&started));
            thread::spawn(move || {
                at_once.wait();
                started.fetch_add(1, SeqCst);
                Client::connect(port).ask(GET)
            })
        });
        threads.collect::<Vec<_>>().into_iter().all(|thread| thread.join().unwrap().starts_with("HTTP/1.1 503"))
    });
    assert!(clients.await.unwrap());
    let failed = shop.frontend.metric(r#"outrigger_upstream_connections_total{cluster="backend",result="failed"}"#);
    assert!(failed < 12.0, "twenty requests made {failed} tries");
    shop.stop().await;
}

/// An endpoint of HTTP/2 in plain text that does with each stream what the test says.
pub(crate) fn http2_server(
    serve: impl Fn(usize, http::Request<h2::RecvStream>, h2::server::SendResponse<bytes::Bytes>) + Send + Sync + 'static,
    builder: impl Fn() -> h2::server::Builder + Send + Sync + 'static,
) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let (serve, builder) = (Arc::new(serve), Arc::new(builder));
            let mut tasks = tokio::task::JoinSet::new();
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (serve, builder) = (Arc::clone(&serve), Arc::clone(&builder));
                tasks.spawn(async move {
                    let Ok(mut connection) = builder().handshake(stream).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        serve(number, request, respond);
                    }
                });
            }
        });
    });
    port
}

/// An endpoint that does with each connection's frames what the test says; pings are answered.
fn frame_server(serve: impl Fn(usize, &mut Frames, u8, u32) -> bool + Send + Sync + 'static) -> u16 {
    let connections = AtomicUsize::new(0);
    App::talking(move |stream| {
        let number = connections.fetch_add(1, SeqCst);
        let Some(mut frames) = Frames::accept(stream) else { return };
        while let Some((kind, flags, stream, payload)) = frames.receive() {
            if kind == PING && flags == 0 {
                frames.send(PING, 1, 0, &payload);
            } else if !serve(number, &mut frames, kind, stream) {
                return;
            }
        }
    })
    .port
}

fn plain_config(port: u16, cluster: &str) -> String {
    format!(
        r#"
proxy:
  listeners:
    - {{ name: in, direction: inbound, address: "127.0.0.1:PORT", routes: [{{ name: all, backendRefs: [{{ name: app }}] }}] }}
  clusters:
    - {{ name: app, endpoints: ["127.0.0.1:{port}"], protocol: http2{cluster} }}
"#
    )
}

#[tokio::test]
async fn a_request_that_was_refused_unseen_goes_again() {
    for (name, frame, on, payload) in [
        ("goaway", GOAWAY, 0, [1_u32.to_be_bytes(), 0_u32.to_be_bytes()].concat()),
        ("refused", RST_STREAM, 3, 7_u32.to_be_bytes().to_vec()),
    ] {
        let port = frame_server(move |connection, frames, kind, stream| {
            if kind != HEADERS {
                return true;
            }
            if connection == 0 && stream == 3 {
                frames.send(frame, 0, on, &payload);
                return true;
            }
            // `:status: 200`, and no body.
            frames.send(HEADERS, END_STREAM | END_HEADERS, stream, b"\x88")
        });
        let proxy = Proxy::start_on(&plain_config(port, ""), 1).await;
        let at = proxy.port;
        let talk = tokio::task::spawn_blocking(move || {
            let mut client = Client::connect(at);
            assert!(client.ask(GET).starts_with("HTTP/1.1 200"));
            // Not even a POST can have had an effect.
            assert!(client.ask(POST).starts_with("HTTP/1.1 200"), "{name}");
            assert!(client.ask(GET).starts_with("HTTP/1.1 200"));
        });
        talk.await.unwrap();
        proxy.metrics_have(r#"outrigger_upstream_retries_total{cluster="app"} 1"#).await;
        proxy.metrics_have(r#"outrigger_upstream_connections_total{cluster="app",result="ok"} 2"#).await;
        proxy.stop().await;
    }
}

/// What an endpoint took for whole messages: on which connection, and how many frames with data each had.
type Messages = Arc<Mutex<Vec<(usize, Vec<u8>, usize)>>>;

/// An endpoint that says of the second request of its first connection, once all of it is there, that it has not
/// looked at it.
fn forgetful(seen: Messages) -> u16 {
    let connections = AtomicUsize::new(0);
    App::talking(move |stream| {
        let number = connections.fetch_add(1, SeqCst);
        let Some(mut frames) = Frames::accept(stream) else { return };
        let (mut message, mut pieces) = (Vec::new(), 0);
        while let Some((kind, flags, stream, payload)) = frames.receive() {
            if kind == PING && flags == 0 {
                frames.send(PING, 1, 0, &payload);
            }
            if kind != DATA {
                continue;
            }
            message.extend(payload);
            pieces += 1;
            if flags & END_STREAM == 0 {
                continue;
            }
            seen.lock().unwrap().push((number, std::mem::take(&mut message), std::mem::take(&mut pieces)));
            if number == 0 && stream == 3 {
                frames.send(GOAWAY, 0, 0, &[1_u32.to_be_bytes(), 0_u32.to_be_bytes()].concat());
            } else {
                frames.send(HEADERS, END_STREAM | END_HEADERS, stream, b"\x88");
            }
        }
    })
    .port
}

#[tokio::test]
async fn a_message_that_was_not_looked_at_goes_again_with_its_request() {
    // `:status: 200`, and 503 by its number in the table and six letters of Huffman's code.
    for (name, second, answer, messages) in [
        ("a small one", b"two".to_vec(), &b"\x88"[..], vec![(0, 3), (0, 3), (1, 3)]),
        ("one that is not kept", vec![b'x'; 9000], &b"\x48"[..], vec![(0, 3), (0, 9000)]),
    ] {
        let seen = Messages::default();
        let proxy = Proxy::start_on(&plain_config(forgetful(Arc::clone(&seen)), ""), 1).await;
        let at = proxy.port;
        let expected = second.clone();
        let got = tokio::task::spawn_blocking(move || {
            let mut client = Frames::connect(at);
            let mut ask = |stream: u32, message: &[u8]| {
                // `POST /` of the host `a`.
                client.send(HEADERS, END_HEADERS, stream, b"\x83\x84\x86\x01\x01a");
                client.send(DATA, END_STREAM, stream, message);
                loop {
                    let (kind, _, of, payload) = client.receive().unwrap();
                    if kind == HEADERS && of == stream {
                        return payload[..1].to_vec();
                    }
                }
            };
            assert_eq!(ask(1, b"one"), b"\x88");
            ask(3, &expected)
        });
        assert_eq!(got.await.unwrap(), answer, "{name}");
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        let came: Vec<_> = seen.iter().map(|(connection, message, _)| (*connection, message.len())).collect();
        assert_eq!(came, messages, "{name}");
        assert!(seen[1..].iter().all(|(_, message, _)| *message == second), "{name}");
        assert!(seen.iter().all(|(.., pieces)| *pieces == 1), "its end is told with its data: {name}");
        proxy.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_gets_as_many_at_once_as_it_allows() {
    let (under_way, most) = (Arc::new(Mutex::new(vec![0; 16])), Arc::new(Mutex::new(0)));
    let seen = Arc::clone(&most);
    let all = Arc::new(tokio::sync::Notify::new());
    let count = Arc::new(AtomicUsize::new(0));
    let port = http2_server(
        move |number, _, mut respond| {
            {
                let mut under_way = under_way.lock().unwrap();
                under_way[number] += 1;
                let mut most = most.lock().unwrap();
                *most = under_way[number].max(*most);
            }
            let (under_way, all, count) = (Arc::clone(&under_way), Arc::clone(&all), Arc::clone(&count));
            tokio::spawn(async move {
                let there = all.notified();
                if count.fetch_add(1, SeqCst) + 1 == 9 {
                    all.notify_waiters();
                } else {
                    there.await;
                }
                under_way.lock().unwrap()[number] -= 1;
                let answer = http::Response::builder().status(200).body(()).unwrap();
                respond.send_response(answer, true).unwrap();
            });
        },
        || {
            let mut builder = h2::server::Builder::new();
            builder.max_concurrent_streams(3);
            builder
        },
    );
    let proxy = Proxy::start_on(&plain_config(port, ""), 1).await;
    let at = proxy.port;
    let clients = tokio::task::spawn_blocking(move || {
        let threads = (0..9).map(|_| thread::spawn(move || Client::connect(at).ask(GET)));
        threads.collect::<Vec<_>>().into_iter().all(|thread| thread.join().unwrap().starts_with("HTTP/1.1 200"))
    });
    assert!(clients.await.unwrap());
    assert_eq!(*seen.lock().unwrap(), 3, "no more at once on one connection");
    proxy.counts(r#"outrigger_upstream_connections_total{cluster="app",result="ok"}"#, 3.0).await;
    proxy.stop().await;
}

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// Reads a head, byte by byte, so that nothing behind it is taken.
pub(crate) fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Upgrades, has something said back, and ends.
fn chat(port: u16) {
    let mut client = Client::connect(port);
    client.send(UPGRADE);
    let stream = client.socket();
    let head = read_head(stream);
    let lower = head.to_lowercase();
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(lower.contains("connection: upgrade\r\n") && lower.contains("upgrade: websocket\r\n"), "{head}");
    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
    assert!(!lower.contains("content-length") && !lower.contains("transfer-encoding"), "{head}");
    for text in ["hello", "GET / HTTP/1.1\r\n\r\n"] {
        stream.write_all(text.as_bytes()).unwrap();
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, text.as_bytes());
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the end comes back");
}

/// Says back what comes on a stream, and ends with it.
pub(crate) fn echo_stream(request: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<bytes::Bytes>) {
    tokio::spawn(async move {
        let mut body = request.into_body();
        let mut back = respond.send_response(http::Response::new(()), false).unwrap();
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            back.send_data(data, false).unwrap();
        }
        back.send_data(bytes::Bytes::new(), true).unwrap();
    });
}

#[tokio::test]
async fn an_upgrade_becomes_an_extended_connect_where_the_endpoint_takes_it() {
    let port = http2_server(
        |_, request, respond| {
            assert_eq!(request.method(), http::Method::CONNECT);
            assert_eq!(request.extensions().get::<h2::ext::Protocol>().unwrap().as_str(), "websocket");
            assert_eq!((request.uri().path(), request.uri().authority().unwrap().as_str()), ("/chat", "shop"));
            // The key is for endpoints that ask others in HTTP/1.
            assert!(request.headers().contains_key("sec-websocket-key") && !request.headers().contains_key("upgrade"));
            assert_eq!(request.headers()["sec-websocket-version"], "13");
            echo_stream(request, respond);
        },
        || {
            let mut builder = h2::server::Builder::new();
            builder.enable_connect_protocol();
            builder
        },
    );
    let proxy = Proxy::start_on(&plain_config(port, ""), 1).await;
    let at = proxy.port;
    // The second finds the connection there already.
    tokio::task::spawn_blocking(move || [at, at].into_iter().for_each(chat)).await.unwrap();
    proxy.metrics_have(r#"cluster="app",code="101"} 2"#).await;
    proxy.metrics_have(r#"outrigger_upstream_connections_total{cluster="app",result="ok"} 1"#).await;
    // The same from a client of HTTP/2, which knows no key and no 101.
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", at)).await.unwrap();
    let builder = h2::client::Builder::new();
    let (mut client, connection) = builder.handshake::<_, bytes::Bytes>(stream).await.unwrap();
    let driver = tokio::spawn(connection);
    until("the proxy has said what it allows", || client.is_extended_connect_protocol_enabled()).await;
    let request = http::Request::builder().method("CONNECT").uri("http://shop/chat").version(http::Version::HTTP_2);
    let mut request = request.header("sec-websocket-version", "13").body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let (response, mut send) = client.send_request(request, false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    send.send_data("hello".into(), true).unwrap();
    let mut body = response.into_body();
    let mut back = Vec::new();
    while let Some(data) = body.data().await {
        back.extend_from_slice(&data.unwrap());
    }
    assert_eq!(back, b"hello");
    drop((client, body, send));
    driver.abort();
    proxy.stop().await;
}

#[tokio::test]
async fn an_upgrade_gets_its_own_connection_where_the_endpoint_knows_no_extended_connect() {
    // Speaks both versions, and HTTP/2 without extended CONNECT.
    let port = App::talking(|mut stream| {
        let mut first = [0; 3];
        while stream.peek(&mut first).unwrap() < 3 {}
        if &first == b"PRI" {
            let Some(mut frames) = Frames::accept(stream) else { return };
            while let Some((kind, flags, _, payload)) = frames.receive() {
                if kind == PING && flags == 0 {
                    frames.send(PING, 1, 0, &payload);
                }
            }
            return;
        }
        read_head(&mut stream);
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        stream.write_all(switch.as_bytes()).unwrap();
        let mut buffer = [0; 512];
        while let Ok(count) = stream.read(&mut buffer) {
            if count == 0 || stream.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    })
    .port;
    let proxy = Proxy::start_on(&plain_config(port, ""), 1).await;
    let at = proxy.port;
    tokio::task::spawn_blocking(move || chat(at)).await.unwrap();
    proxy.stop().await;
}
