//! Connections that are there before a request is.

use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use crate::OK;
use crate::harness::{App, Client, Proxy, Shop, free_port, until};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Keeps the connections it gets, and says nothing.
fn collecting() -> (App, Arc<Mutex<Vec<TcpStream>>>) {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeping = Arc::clone(&kept);
    (App::talking(move |stream| keeping.lock().expect("no test has panicked").push(stream)), kept)
}

#[tokio::test]
async fn connections_are_made_ahead_and_again_when_they_go_or_endpoints_come() {
    let (first, kept) = collecting();
    let config = first.plain_config("").trim_end().to_owned() + "\n      pool: { minIdle: 2 }\n";
    let proxy = Proxy::start_on(&config, 1).await;
    let count = || kept.lock().expect("no test has panicked").len();
    until("two are there without any request", || count() == 2).await;
    proxy.metrics_have(r#"outrigger_upstream_connections_ahead_total{cluster="app"} 2"#).await;
    kept.lock().expect("no test has panicked").clear();
    until("two are there again", || count() == 2).await;
    let (second, others) = collecting();
    proxy.reload(&config.replace(&format!(":{}\"]", first.port), &format!(":{}\"]", second.port)));
    until("the new endpoint has two", || others.lock().expect("no test has panicked").len() == 2).await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_request_takes_one_that_was_made_ahead() {
    let made = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&made);
    let app = App::talking(move |mut stream| {
        counting.fetch_add(1, SeqCst);
        while crate::harness::read_request(&mut stream).is_some() {
            let _ = std::io::Write::write_all(&mut stream, OK.as_bytes());
        }
    });
    let config = app.plain_config("").trim_end().to_owned() + "\n      pool: { minIdle: 1 }\n";
    let proxy = Proxy::start_on(&config, 1).await;
    proxy.metrics_have(r#"outrigger_upstream_connections_ahead_total{cluster="app"} 1"#).await;
    let mut client = Client::connect(proxy.port);
    for _ in 0..20 {
        assert!(client.ask(GET).starts_with("HTTP/1.1 200"));
    }
    let ahead = proxy.metric(r#"outrigger_upstream_connections_ahead_total{cluster="app"}"#);
    let all = proxy.metric(r#"outrigger_upstream_connections_total{cluster="app",result="ok"}"#);
    assert_eq!(ahead, all, "no request had to make one");
    assert_eq!(all as usize, made.load(SeqCst));
    proxy.stop().await;
}

#[tokio::test]
async fn they_are_made_anew_with_a_new_certificate() {
    let app = App::answering(OK);
    for cluster in ["pool: { minIdle: 1 }", "protocol: http2\n      pool: { minIdle: 1 }"] {
        let shop = Shop::start_toward(&app, cluster, 1).await;
        let ahead = r#"outrigger_upstream_connections_ahead_total{cluster="backend"}"#;
        shop.frontend.metrics_have(&format!("{ahead} 1")).await;
        shop.rotate_frontend("renewed");
        shop.frontend.metrics_have(&format!("{ahead} 2")).await;
        assert!(Client::connect(shop.outbound()).ask(GET).starts_with("HTTP/1.1 200"));
        shop.stop().await;
    }
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_not_pestered() {
    let app = App::answering(OK);
    let config = app.plain_config("").replace(&format!(":{}\"]", app.port), &format!(":{}\"]", free_port()));
    let config = config.trim_end().to_owned() + "\n      pool: { minIdle: 50 }\n";
    let proxy = Proxy::start_on(&config, 1).await;
    proxy.metrics_have(r#"outrigger_upstream_connections_total{cluster="app",result="failed"} 3"#).await;
    let ahead = proxy.metric(r#"outrigger_upstream_connections_ahead_total{cluster="app"}"#);
    assert_eq!(ahead, 0.0, "fifty are wanted, and one at a time was tried");
    proxy.stop().await;
}
