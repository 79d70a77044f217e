//! Endpoints of which some never answer: nobody waits for them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::thread;

use crate::OK;
use crate::harness::{Client, Proxy, read_request};
use crate::multiplex::http2_server;
use crate::stale::BlackHole;

/// Answers on this address.
fn serve(address: SocketAddr) -> std::io::Result<u16> {
    let listener = TcpListener::bind(address)?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || {
                let mut stream = stream.unwrap();
                while read_request(&mut stream).is_some() && stream.write_all(OK.as_bytes()).is_ok() {}
            });
        }
    });
    Ok(port)
}

/// Nothing but the race saves a request from this connect timeout.
fn config(endpoints: &str, more: &str) -> String {
    format!(
        r#"
proxy:
  listeners:
    - {{ name: in, direction: inbound, address: "127.0.0.1:PORT", routes: [{{ name: all, backendRefs: [{{ name: app }}], timeouts: {{ request: 20s }} }}] }}
  clusters:
    - {{ name: app, endpoints: [{endpoints}], connectTimeout: 60s{more} }}
"#
    )
}

/// Asks from so many clients at once, each on a connection of its own.
async fn all_are_answered(port: u16, count: usize) {
    let asking = tokio::task::spawn_blocking(move || {
        let ask = move || Client::connect(port).ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let threads: Vec<_> = (0..count).map(|_| thread::spawn(ask)).collect();
        for thread in threads {
            let answer = thread.join().unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    });
    asking.await.unwrap();
}

#[tokio::test]
async fn a_family_of_addresses_that_is_broken_costs_no_request() {
    for (good, bad) in [("[::1]", "127.0.0.1"), ("127.0.0.1", "[::1]")] {
        // What a name with addresses of both families resolves to.
        let port = serve(format!("{good}:0").parse().unwrap()).unwrap();
        let _hole = BlackHole::at(format!("{bad}:{port}").parse().unwrap());
        let proxy = Proxy::start_on(&config(&format!("\"{good}:{port}\", \"{bad}:{port}\""), ""), 1).await;
        for count in [1, 8, 1, 8] {
            all_are_answered(proxy.port, count).await;
        }
        proxy.stop().await;
    }
}

#[tokio::test]
async fn connections_that_are_shared_go_to_who_answers_first_too() {
    let port = http2_server(
        |_, _, mut respond| {
            respond.send_response(http::Response::new(()), true).unwrap();
        },
        h2::server::Builder::new,
    );
    let holes = [BlackHole::new(), BlackHole::new()];
    let endpoints =
        format!("\"127.0.0.1:{}\", \"127.0.0.1:{}\", \"127.0.0.1:{port}\"", holes[0].port(), holes[1].port());
    let proxy = Proxy::start_on(&config(&endpoints, ", protocol: http2"), 1).await;
    for count in [1, 20, 20] {
        all_are_answered(proxy.port, count).await;
    }
    proxy.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_not_waited_for_either() {
    let port = serve("127.0.0.1:0".parse().unwrap()).unwrap();
    let hole = BlackHole::new();
    let dead = crate::harness::free_port();
    let endpoints = format!("\"127.0.0.1:{dead}\", \"127.0.0.1:{}\", \"127.0.0.1:{port}\"", hole.port());
    let proxy = Proxy::start_on(&config(&endpoints, ""), 1).await;
    for count in [1, 8, 8] {
        all_are_answered(proxy.port, count).await;
    }
    proxy.stop().await;
}
