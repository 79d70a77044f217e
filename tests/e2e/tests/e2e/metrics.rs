//! The exporter: StatsD in, `/metrics` out, judged by promtool and a real Prometheus.

use std::io::Write;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Result, ensure};
use outrigger_e2e::{Outrigger, Prometheus, eventually, free_port, free_udp_port, request, run, start_outrigger, tool};

/// An Outrigger with the exporter on, and where it listens.
struct Exporter {
    outrigger: Outrigger,
    scrape: u16,
    statsd: u16,
}

impl Exporter {
    fn start(folder: &Path) -> Self {
        let (scrape, statsd) = (free_port(), free_udp_port());
        let outrigger = start_outrigger(folder, &config(scrape, statsd, "0s"));
        Self { outrigger, scrape, statsd }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/metrics", self.scrape)
    }

    fn text(&self) -> Result<String> {
        request("GET", &self.url(), &[], "")?.ok()
    }

    /// Waits until a scrape has this line.
    #[track_caller]
    fn wait_for(&self, line: &str) {
        eventually(line, || {
            let text = self.text()?;
            ensure!(text.lines().any(|found| found == line), "not in:\n{text}");
            Ok(())
        });
    }
}

fn config(scrape: u16, statsd: u16, ttl: &str) -> String {
    format!(
        "metrics:\n  listen: 127.0.0.1:{scrape}\n  statsd: {{ listen: \"127.0.0.1:{statsd}\", prefix: \"shop.\", buckets: [0.1, 0.5, 1], ttl: {ttl} }}\n"
    )
}

fn send(port: u16, datagram: &str) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port can be bound");
    socket.send_to(datagram.as_bytes(), ("127.0.0.1", port)).expect("a datagram can be sent");
}

#[test]
fn statsd_becomes_prometheus() {
    let folder = tempfile::tempdir().unwrap();
    let exporter = Exporter::start(folder.path());
    send(
        exporter.statsd,
        "orders:1|c|#kind:book\norders:4|c|@0.5|#kind:book\norders:7|c|#kind:music,gift:yes\n\
         carts.open:5|g\ncarts.open:+2|g\ncarts.open:-3|g\nquery:320|ms|@0.5\nquery:50:900|ms\n\
         users:42|s\nno-colon\nload:-1|c",
    );
    exporter.wait_for("shop_orders_total{kind=\"book\"} 9");
    let text = exporter.text().unwrap();
    for line in [
        "# TYPE shop_orders_total counter",
        "shop_carts_open 4",
        "# TYPE shop_query_seconds histogram",
        "shop_query_seconds_bucket{le=\"0.1\"} 1",
        "shop_query_seconds_bucket{le=\"0.5\"} 3",
        "shop_query_seconds_bucket{le=\"1\"} 4",
        "shop_query_seconds_bucket{le=\"+Inf\"} 4",
        "shop_query_seconds_count 4",
        "outrigger_statsd_errors_total{reason=\"unsupported_type\"} 1",
        "outrigger_statsd_errors_total{reason=\"malformed_line\"} 1",
        "outrigger_statsd_errors_total{reason=\"negative_counter\"} 1",
        "outrigger_statsd_datagrams_total 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
    assert!(text.contains("gift=\"yes\"") && text.contains("} 7\n"), "a datagram with other tags was lost:\n{text}");
}

#[test]
fn promtool_finds_nothing_to_complain_about() {
    let folder = tempfile::tempdir().unwrap();
    let exporter = Exporter::start(folder.path());
    send(exporter.statsd, "orders:1|c|#kind:book\nquery:320|ms\ncarts.open:5|g");
    exporter.wait_for("shop_carts_open 5");
    for url in [exporter.url(), format!("{}/metrics", exporter.outrigger.admin)] {
        let text = request("GET", &url, &[], "").unwrap().ok().unwrap();
        let mut promtool =
            tool("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && complaints.is_empty(), "{url}:\n{complaints}\n{text}");
    }
}

#[test]
fn a_real_prometheus_scrapes_it() {
    let folder = tempfile::tempdir().unwrap();
    let exporter = Exporter::start(folder.path());
    send(exporter.statsd, "orders:3|c|#kind:book");
    exporter.wait_for("shop_orders_total{kind=\"book\"} 3");
    let prometheus = Prometheus::start(folder.path(), &format!("127.0.0.1:{}", exporter.scrape));
    let up = eventually("a first scrape", || {
        let up = prometheus.query("up")?;
        ensure!(up == 1.0, "{}", prometheus.last_error()?);
        Ok(up)
    });
    assert_eq!(up, 1.0);
    // Prometheus asks for OpenMetrics first, so this proves that format as well.
    assert_eq!(prometheus.query("shop_orders_total{kind=\"book\"}").unwrap(), 3.0);
    assert!(prometheus.query("process_resident_memory_bytes").unwrap() > 0.0);
    assert_eq!(prometheus.last_error().unwrap(), "");
}

#[test]
fn curl_gets_the_format_it_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    let exporter = Exporter::start(folder.path());
    let curl = |arguments: &[&str]| run(tool("curl").args(["-sSi", "--max-time", "10"]).args(arguments)).unwrap();
    let url = exporter.url();
    let text = curl(&[&url]);
    assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
    assert!(!text.contains("# EOF"), "{text}");
    let open = curl(&["-H", "accept: application/openmetrics-text; version=1.0.0", &url]);
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0"), "{open}");
    assert!(open.ends_with("# EOF\n"), "{open}");
    let head = curl(&["--head", &url]);
    assert!(
        head.starts_with("HTTP/1.1 200 OK") && head.trim_end().lines().all(|line| !line.starts_with('#')),
        "{head}"
    );
    assert!(curl(&["-X", "POST", &url]).starts_with("HTTP/1.1 405 "));
    assert!(curl(&[&format!("{url}/nothing")]).starts_with("HTTP/1.1 404 "));
}

#[test]
fn a_reload_moves_the_listeners_and_keeps_the_series() {
    let folder = tempfile::tempdir().unwrap();
    let mut exporter = Exporter::start(folder.path());
    send(exporter.statsd, "orders:3|c");
    exporter.wait_for("shop_orders_total 3");
    (exporter.scrape, exporter.statsd) = (free_port(), free_udp_port());
    exporter.outrigger.write_config(&config(exporter.scrape, exporter.statsd, "0s"));
    exporter.wait_for("shop_orders_total 3");
    eventually("the new StatsD address", || {
        send(exporter.statsd, "orders:1|c");
        let text = exporter.text()?;
        ensure!(!text.lines().any(|line| line == "shop_orders_total 3"), "nothing arrived");
        Ok(())
    });
}

#[test]
fn a_series_that_nobody_sends_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let (scrape, statsd) = (free_port(), free_udp_port());
    let outrigger = start_outrigger(folder.path(), &config(scrape, statsd, "1s"));
    let exporter = Exporter { outrigger, scrape, statsd };
    send(statsd, "orders:3|c");
    exporter.wait_for("shop_orders_total 3");
    eventually("the series to go", || {
        let text = exporter.text()?;
        ensure!(!text.contains("shop_orders_total"), "it is still there");
        Ok(())
    });
}

#[test]
fn a_port_in_use_is_named_with_its_holder() {
    let folder = tempfile::tempdir().unwrap();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let outrigger = outrigger_e2e::start_outrigger_with(folder.path(), &config(port, free_udp_port(), "0s"), &[]);
    eventually("the reason on /readyz?verbose", || {
        let response = outrigger.get("/readyz?verbose")?;
        ensure!(response.status == 503, "status {}", response.status);
        for part in [format!("127.0.0.1:{port}"), format!("process {}", std::process::id()), "metrics".to_owned()] {
            ensure!(response.body.contains(&part), "no {part} in {}", response.body);
        }
        Ok(())
    });
    drop(holder);
    eventually("readiness once the port is free", || outrigger.get("/readyz")?.ok());
}
