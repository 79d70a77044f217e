//! Sessions as curl's cookie jar keeps them, hedges and mirrors between plain servers, and bodies as a tap shows them.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use anyhow::ensure;
use outrigger_e2e::{Application, eventually, free_port, outrigger_command, request, run, start_outrigger, tool};

fn outrigger(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = outrigger_command().args(arguments).output().unwrap();
    (status.code(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

#[test]
fn a_cookie_jar_stays_with_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let mut applications: Vec<_> = (0..3).map(|_| Application::start()).collect();
    let endpoints: Vec<_> = applications.iter().map(|one| format!("\"{}\"", one.address)).collect();
    let port = free_port();
    let config = format!(
        "proxy:\n  sessionKeys: [\"a secret that all replicas have\"]\n  listeners:\n    - name: in\n      direction: inbound\n      \
         address: 127.0.0.1:{port}\n      routes:\n        - name: shop\n          \
         sessionPersistence: {{ sessionName: shop, absoluteTimeout: 1h, cookieConfig: {{ lifetimeType: Permanent }} }}\n          \
         backendRefs: [{{ name: app }}]\n  clusters:\n    - {{ name: app, endpoints: [{}], pool: {{ maxIdle: 0 }} }}\n\
         tests:\n  - {{ name: stays, request: {{ url: \"http://h/\" }}, expect: {{ route: shop, sessionName: shop }} }}\n",
        endpoints.join(", ")
    );
    let proxy = start_outrigger(folder.path(), &config);
    let jar = folder.path().join("jar");
    let curl = |path: &str| {
        let url = format!("http://127.0.0.1:{port}{path}");
        let mut command = tool("curl");
        command
            .args(["-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}", "-b"])
            .arg(&jar)
            .arg("-c")
            .arg(&jar);
        assert_eq!(run(command.arg(url)).unwrap(), "200");
    };
    let kept = || {
        let jar = fs::read_to_string(&jar).unwrap();
        jar.lines().find_map(|line| line.split_once("\tshop\t")).map(|(_, value)| value.to_owned()).unwrap()
    };
    (0..12).for_each(|_| curl("/cart"));
    let counts: Vec<_> = applications.iter().map(|one| one.seen().len()).collect();
    let chosen = counts.iter().position(|count| *count > 0).unwrap();
    assert_eq!(counts[chosen], 12, "{counts:?}");
    let session = kept();
    let first = applications[chosen].address;

    let header = format!("cookie: shop={session}");
    let ask = ["explain", "--live", "--admin", &proxy.admin, "--url", "http://h/", "--header"];
    let (code, text) = outrigger(&[&ask[..], &[&header]].concat());
    let wanted = format!("session    Cookie `shop`, ends 1h after it began; brought, of {first}\n");
    assert!(code == Some(0) && text.contains(&wanted), "{text}");
    let (_, text) = outrigger(&[&ask[..], &["cookie: shop=made-up"]].concat());
    assert!(text.contains("brought, but it counts no more"), "{text}");
    let file = folder.path().join("explained.yaml");
    fs::write(&file, &config).unwrap();
    let (code, text) = outrigger(&["test", "-c", file.to_str().unwrap()]);
    assert!(code == Some(0) && text.contains("1 passed"), "{text}");

    // The server goes; another takes the session over, and keeps it.
    drop(applications.remove(chosen));
    (0..12).for_each(|_| curl("/cart"));
    assert_ne!(kept(), session);
    let counts: Vec<_> = applications.iter().map(|one| one.seen().len()).collect();
    assert!(counts.contains(&12) && counts.contains(&0), "{counts:?}");
}

#[test]
fn a_slow_server_is_outrun_and_another_gets_copies() {
    let folder = tempfile::tempdir().unwrap();
    // It takes requests and never answers.
    let slow = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = slow.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in slow.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut bytes = [0; 1024];
                while stream.read(&mut bytes).is_ok_and(|count| count > 0) {}
                let _ = stream.flush();
            });
        }
    });
    let (fast, copied, port) = (Application::start(), Application::start(), free_port());
    let proxy = start_outrigger(
        folder.path(),
        &format!(
            "proxy:\n  listeners:\n    - name: out\n      direction: outbound\n      address: 127.0.0.1:{port}\n      routes:\n        \
             - name: all\n          hedge: {{ after: 30ms }}\n          filters: [{{ type: RequestMirror, requestMirror: {{ backendRef: \
             {{ name: next }} }} }}]\n          backendRefs: [{{ name: app }}]\n  clusters:\n    - {{ name: app, endpoints: [\"{silent}\", \
             \"{}\"], loadBalancing: {{ policy: RoundRobin }}, retryConstraint: {{ minRetryRate: {{ count: 1000 }} }} }}\n    \
             - {{ name: next, endpoints: [\"{}\"] }}\n",
            fast.address, copied.address
        ),
    );
    let url = format!("http://127.0.0.1:{port}/item");
    for _ in 0..8 {
        assert_eq!(request("PUT", &url, &[("x-tenant", "blue")], "{\"count\":1}").unwrap().status, 200);
    }
    let won = proxy.metric("outrigger_hedges_total{cluster=\"app\",result=\"won\"}").unwrap();
    assert!(won >= 2.0, "{won} of 8 began at the silent one");
    assert!(fast.seen().iter().all(|seen| seen.body == "{\"count\":1}"));
    assert_eq!(fast.seen().len(), 8);
    let copies = eventually("the copies", || {
        let copies = copied.seen();
        ensure!(copies.len() == 8, "{} of 8", copies.len());
        Ok(copies)
    });
    let tenant = ("x-tenant".to_owned(), "blue".to_owned());
    assert!(copies.iter().all(|copy| copy.body == "{\"count\":1}" && copy.headers.contains(&tenant)));
}

#[test]
fn a_tap_shows_bodies_when_it_is_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let (application, port) = (Application::start(), free_port());
    let proxy = start_outrigger(
        folder.path(),
        &format!(
            "proxy:\n  listeners:\n    - name: in\n      direction: inbound\n      address: 127.0.0.1:{port}\n      routes:\n        \
             - name: all\n          filters: [{{ type: Compressor, compressor: {{ minContentLength: 1B }} }}]\n          \
             backendRefs: [{{ name: app }}]\n  clusters: [{{ name: app, endpoints: [\"{}\"] }}]\n",
            application.address
        ),
    );
    let tap = |name: &str, flags: &[&str]| {
        let mut command = outrigger_command();
        command.args(["tap", "--admin", &proxy.admin, "--max", "2"]).args(flags);
        outrigger_e2e::Process::start(name, &mut command, folder.path())
    };
    let mut json = tap("json", &["--bodies", "32B", "--format", "json"]);
    let mut text = tap("text", &["--bodies", "1KiB"]);
    let mut none = tap("none", &["--headers", "--format", "json"]);
    eventually("the taps", || {
        ensure!(proxy.metric("outrigger_taps_active")? == 3.0, "not all are there");
        Ok(())
    });
    let url = format!("http://127.0.0.1:{port}/login");
    let body = "{\"user\":\"ann\",\"password\":\"4real\",\"more\":\"and more\"}";
    let headers = [("content-type", "application/json"), ("accept-encoding", "gzip")];
    request("POST", &url, &headers, body).unwrap();
    let data = folder.path().join("data");
    fs::write(&data, [0, 255, 1]).unwrap();
    let at = format!("@{}", data.display());
    run(tool("curl").args(["-sS", "--max-time", "20", "-o", "/dev/null", "--data-binary", &at, &url])).unwrap();
    for tap in [&mut json, &mut text, &mut none] {
        assert!(tap.wait(std::time::Duration::from_secs(20)).success(), "{}", tap.log());
    }
    let log = json.log();
    let told: Vec<serde_json::Value> =
        log.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect();
    let seen = told[0]["request_body"].as_str().unwrap();
    assert!(seen.starts_with("{\"user\":\"ann\",\"password\":\"<masked: "), "{seen}");
    assert_eq!(told[0]["request_body_bytes"], body.len());
    let answer = told[0]["response_body"].as_str().unwrap();
    assert!(
        answer.starts_with("POST /login HTTP/1.1\n") && answer.len() == 32,
        "as the application wrote it: {answer}"
    );
    assert_eq!(told[1]["request_body_base64"], "AP8B");
    let log = text.log();
    assert!(
        log.contains("  > 51 bytes of body\n  >   {\"user\":\"ann\"") && log.contains("  <   POST /login"),
        "{log}"
    );
    assert!(!none.log().contains("body"), "{}", none.log());
    for name in ["json", "text", "none"] {
        assert!(!fs::read_to_string(Path::new(folder.path()).join(format!("{name}.log"))).unwrap().contains("4real"));
    }
    let (code, text) = outrigger(&["tap", "--bodies", "1GiB"]);
    assert!(code == Some(2) && text.contains("--bodies: `1GiB` is not between 1B and 64KiB"), "{text}");
}
