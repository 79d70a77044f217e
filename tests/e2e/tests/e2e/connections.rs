//! `outrigger connections` beside traffic.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, ensure};
use outrigger_e2e::{Application, Connection, eventually, free_port, outrigger_command, start_outrigger};
use serde_json::Value;

#[test]
fn what_is_open_is_told_with_what_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let (application, echo) = (Application::start(), TcpListener::bind("127.0.0.1:0").unwrap());
    let [web, raw] = [(); 2].map(|()| free_port());
    let config = format!(
        r#"proxy:
  listeners:
    - {{ name: web, direction: inbound, address: "127.0.0.1:{web}", routes: [{{ name: all, backendRefs: [{{ name: app }}] }}] }}
    - {{ name: raw, direction: outbound, address: "127.0.0.1:{raw}", protocol: tcp, tcpRoute: {{ name: bytes, backendRefs: [{{ name: echo }}] }} }}
  clusters:
    - {{ name: app, endpoints: ["{}"] }}
    - {{ name: echo, endpoints: ["{}"] }}
"#,
        application.address,
        echo.local_addr().unwrap()
    );
    let outrigger = start_outrigger(folder.path(), &config);
    let run = |arguments: &[&str]| {
        let output = outrigger_command().args(arguments).args(["--admin", &outrigger.admin]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let json = |arguments: &[&str]| -> Value {
        serde_json::from_str(&run(&[arguments, &["--format", "json"]].concat())).unwrap()
    };

    let mut kept = Connection::open(web).unwrap();
    for _ in 0..3 {
        assert_eq!(kept.get("/").unwrap().status, 200);
    }
    let mut tunnel = TcpStream::connect(("127.0.0.1", raw)).unwrap();
    tunnel.write_all(b"ping").unwrap();
    let (mut far, _) = echo.accept().unwrap();
    far.read_exact(&mut [0; 4]).unwrap();
    let own = tunnel.local_addr().unwrap().to_string();

    let told = eventually("the request's end to be noted", || {
        let told = json(&["connections"]);
        let idle = told["connections"].as_array().unwrap().iter().any(|one| one["state"] == "idle");
        ensure!(idle, "{told:#}");
        Ok(told)
    });
    assert_eq!((&told["total"], &told["silentWorkers"]), (&2.into(), &Value::Array(Vec::new())), "{told:#}");
    let of = |told: &Value, listener: &str| {
        let all = told["connections"].as_array().unwrap();
        all.iter().find(|one| one["listener"] == listener).unwrap_or_else(|| panic!("{listener}: {told:#}")).clone()
    };
    let one = of(&told, "web");
    assert_eq!((&one["protocol"], &one["requests"], &one["state"]), (&"HTTP/1".into(), &3.into(), &"idle".into()));
    assert!(one["ageSeconds"].as_f64().unwrap() > 0.0 && one["tls"] == false, "{one}");
    let one = of(&told, "raw");
    assert_eq!((&one["client"], &one["protocol"], &one["state"]), (&own.into(), &"TCP".into(), &"tunnel".into()));
    let upstream = told["upstream"].as_array().unwrap();
    let app = upstream.iter().find(|one| one["cluster"] == "app").context("no pool").unwrap();
    assert_eq!((&app["open"], &app["idle"]), (&1.into(), &1.into()), "{told:#}");

    let told = json(&["connections", "--listener", "raw"]);
    assert_eq!(told["total"], 1, "{told:#}");
    let text = run(&["connections", "--limit", "1"]);
    assert!(text.contains("LISTENER") && text.contains("… and 1 more") && text.contains("web "), "the oldest: {text}");

    drop((kept, tunnel, far));
    eventually("both to be gone", || {
        let told = json(&["connections"]);
        ensure!(told["total"] == 0, "{told:#}");
        Ok(())
    });
}
