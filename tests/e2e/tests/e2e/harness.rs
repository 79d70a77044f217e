//! The harness's own servers: when these fail, the fault is not Outrigger's.

use outrigger_e2e::{Application, Bao, Nginx, Prometheus, eventually, request};
use serde_json::json;

#[test]
fn openbao_keeps_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let bao = Bao::start(folder.path());
    bao.put_secret("db", &json!({ "password": "p4ss" }));
    let read = bao.call("GET", "secret/data/db", &json!(null)).unwrap();
    assert_eq!(read["data"]["data"]["password"], "p4ss");
}

#[test]
fn prometheus_scrapes_nginx() {
    let folder = tempfile::tempdir().unwrap();
    let nginx =
        Nginx::start(folder.path(), "location = /metrics { default_type text/plain; return 200 'answer 42\n'; }");
    let prometheus = Prometheus::start(folder.path(), &format!("127.0.0.1:{}", nginx.port));
    let answer = eventually("a scraped series", || prometheus.query("answer{job=\"outrigger\"}"));
    assert_eq!(answer, 42.0);
    assert_eq!(prometheus.last_error().unwrap(), "");
}

#[test]
fn the_application_tells_what_it_saw() {
    let application = Application::start();
    let url = format!("http://{}/orders?id=7", application.address);
    let response = request("POST", &url, &[("x-test", "yes")], "body").unwrap();
    assert_eq!(response.status, 200);
    assert!(response.body.contains("x-test: yes"), "{}", response.body);
    let seen = application.seen();
    assert_eq!((seen.len(), seen[0].line.as_str(), seen[0].body.as_str()), (1, "POST /orders?id=7 HTTP/1.1", "body"));
}
