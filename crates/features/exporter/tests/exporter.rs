//! The component as a whole, over real sockets: start, reload, trouble, stop.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::{Config, Metrics, ScrapeTarget, Statsd};
use outrigger_exporter::MetricsComponent;
use outrigger_http::Resolver;
use outrigger_runtime::{BoxError, Component, Context, Standalone};
use outrigger_telemetry::{Format, Registry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, LocalSet};

/// A running component.
struct Exporter {
    outside: Standalone,
    registry: Registry,
    config: Config,
    task: JoinHandle<Result<(), BoxError>>,
}

impl Exporter {
    async fn start() -> Self {
        let config = Config {
            metrics: Some(Metrics {
                listen: free_tcp(),
                statsd: Some(Statsd { listen: free_udp(), ..Statsd::default() }),
                scrape: Vec::new(),
            }),
            ..Config::default()
        };
        let (context, outside) = Context::standalone(config.clone(), 0);
        let registry = context.registry.clone();
        let task =
            tokio::task::spawn_local(async move { MetricsComponent::new(Resolver::from_system()).run(context).await });
        let mut exporter = Self { outside, registry, config, task };
        exporter.outside.ready().await;
        exporter
    }

    fn metrics(&mut self) -> &mut Metrics {
        self.config.metrics.as_mut().expect("the test's config has them")
    }

    fn statsd(&mut self) -> &mut Statsd {
        self.metrics().statsd.as_mut().expect("the test's config has it")
    }

    fn reload(&self) {
        self.outside.config.send(Arc::new(self.config.clone())).expect("the component follows the config");
    }

    fn send(&mut self, datagram: &str) {
        let to = self.statsd().listen;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        socket.send_to(datagram.as_bytes(), to).expect("a datagram can be sent");
    }

    async fn get(&mut self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.metrics().listen).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Scrapes until a line is there.
    async fn wait_for(&mut self, line: &str) {
        let begun = Instant::now();
        loop {
            let answer = self.get("/metrics").await.unwrap_or_else(|error| error.to_string());
            if answer.lines().any(|found| found == line) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "{line}\nis not in\n{answer}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn wait_status(&self, wanted: &str) -> String {
        let begun = Instant::now();
        loop {
            let (state, reason) = self.outside.status();
            if state == wanted {
                return reason;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "it is {state} ({reason}), not {wanted}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(self) -> Registry {
        self.outside.stop.request(tokio::time::Instant::now() + Duration::from_secs(5));
        self.task.await.expect("it does not panic").expect("it stops well");
        self.registry
    }
}

fn free_tcp() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("a port is free")
}

fn free_udp() -> SocketAddr {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("a port is free")
}

async fn local<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

#[tokio::test]
async fn statsd_comes_out_at_metrics() {
    local(async {
        let mut exporter = Exporter::start().await;
        exporter.send("orders:3|c|#kind:book\nquery:20|ms\nopen:7|g");
        exporter.wait_for("orders_total{kind=\"book\"} 3").await;
        exporter.wait_for("query_seconds_count 1").await;
        exporter.wait_for("open 7").await;
        assert!(exporter.get("/").await.unwrap().starts_with("HTTP/1.1 200 OK"));
        assert!(exporter.get("/other").await.unwrap().starts_with("HTTP/1.1 404 "));
        exporter.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_reload_moves_what_changed_and_keeps_the_rest() {
    local(async {
        let mut exporter = Exporter::start().await;
        exporter.send("a:1|c");
        exporter.wait_for("a_total 1").await;
        // A connection that is open stays open while the listener moves.
        let mut open = TcpStream::connect(exporter.metrics().listen).await.unwrap();
        exporter.metrics().listen = free_tcp();
        exporter.reload();
        exporter.wait_for("a_total 1").await;
        open.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        open.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("\na_total 1\n"), "{answer}");
        // What waits in the old StatsD socket is not lost when it moves.
        exporter.send("a:1|c");
        exporter.statsd().listen = free_udp();
        exporter.reload();
        exporter.wait_for("a_total 2").await;
        exporter.wait_status("ready").await;
        exporter.send("a:1|c");
        exporter.wait_for("a_total 3").await;
        // An address that covers the old one is in its way; both are ours.
        exporter.metrics().listen.set_ip(Ipv4Addr::UNSPECIFIED.into());
        exporter.statsd().listen.set_ip(Ipv4Addr::UNSPECIFIED.into());
        exporter.statsd().prefix = "wide.".to_owned();
        exporter.reload();
        let begun = Instant::now();
        while !exporter.get("/metrics").await.is_ok_and(|text| text.contains("\nwide_a_total")) {
            assert!(begun.elapsed() < Duration::from_secs(10), "it does not listen on all addresses");
            exporter.send("a:1|c");
        }
        exporter.wait_status("ready").await;
        exporter.statsd().prefix = String::new();
        // Off: its series go; on again: it works again.
        let statsd = exporter.metrics().statsd.take();
        exporter.reload();
        let begun = Instant::now();
        while exporter.get("/metrics").await.unwrap().contains("\na_total") {
            assert!(begun.elapsed() < Duration::from_secs(10), "its series are still there");
        }
        exporter.metrics().statsd = statsd;
        exporter.reload();
        let begun = Instant::now();
        while !exporter.get("/metrics").await.unwrap().contains("\na_total") {
            assert!(begun.elapsed() < Duration::from_secs(10), "it does not listen again");
            exporter.send("a:1|c");
        }
        exporter.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_address_in_use_leaves_the_old_one_serving_until_it_is_free() {
    local(async {
        let mut exporter = Exporter::start().await;
        let old = exporter.metrics().listen;
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let wanted = holder.local_addr().unwrap();
        exporter.metrics().listen = wanted;
        exporter.reload();
        let reason = exporter.wait_status("degraded").await;
        assert!(reason.contains(&wanted.to_string()), "{reason}");
        exporter.metrics().listen = old;
        assert!(exporter.get("/metrics").await.unwrap().starts_with("HTTP/1.1 200 OK"));
        exporter.metrics().listen = wanted;
        drop(holder);
        exporter.wait_status("ready").await;
        assert!(exporter.get("/metrics").await.unwrap().starts_with("HTTP/1.1 200 OK"));
        exporter.stop().await;
    })
    .await;
}

#[tokio::test]
async fn everything_that_has_arrived_is_counted_at_the_stop() {
    local(async {
        let mut exporter = Exporter::start().await;
        for _ in 0..200 {
            exporter.send("a:1|c");
        }
        let registry = exporter.stop().await;
        let mut text = Vec::new();
        registry.encode(Format::Text, &mut text);
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("\na_total 200\n"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_the_stop() {
    local(async {
        let mut exporter = Exporter::start().await;
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push(TcpStream::connect(exporter.metrics().listen).await.unwrap());
        }
        open[0].write_all(b"GET /met").await.unwrap();
        exporter.get("/metrics").await.unwrap();
        let begun = Instant::now();
        exporter.stop().await;
        assert!(begun.elapsed() < Duration::from_secs(3), "it took {:?}", begun.elapsed());
    })
    .await;
}

/// An application that answers each request with what `text` holds at that time.
async fn application(listener: tokio::net::TcpListener, text: Arc<std::sync::Mutex<&'static str>>) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { return };
        let mut head = [0; 2048];
        let _ = stream.read(&mut head).await;
        let body = *text.lock().expect("nobody panicked");
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

#[tokio::test]
async fn metrics_of_the_application_are_served_with_ours() {
    LocalSet::new()
        .run_until(async {
            let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
            let address = listener.local_addr().expect("it is bound");
            let text = Arc::new(std::sync::Mutex::new("# TYPE orders_total counter\norders_total{kind=\"a\"} 7\n"));
            let application = tokio::task::spawn_local(application(listener, Arc::clone(&text)));
            let mut exporter = Exporter::start().await;
            exporter.metrics().scrape = vec![ScrapeTarget {
                name: "app".parse().expect("a name"),
                url: format!("http://{address}/metrics"),
                timeout: outrigger_config::Duration::from_secs(10),
                max_bytes: outrigger_config::ByteSize::mib(1),
            }];
            exporter.reload();
            exporter.wait_for("orders_total{kind=\"a\"} 7").await;
            exporter.wait_for("outrigger_scrape_target_up{target=\"app\"} 1").await;
            // What is no exposition text is left out, and ours stays.
            *text.lock().expect("nobody panicked") = "<html>";
            exporter.wait_for("outrigger_scrape_target_up{target=\"app\"} 0").await;
            assert!(!exporter.get("/metrics").await.expect("it answers").contains("<html>"));
            *text.lock().expect("nobody panicked") = "back 1\n";
            exporter.wait_for("back 1").await;
            application.abort();
        })
        .await;
}
