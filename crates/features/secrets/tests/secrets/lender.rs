//! A server of a few lines that lends what OpenBao lends only with a database beside it.
//!
//! In: a mood. Out: leases of a second (when patient, of an hour), renewed in full twice and
//! then refused; or the answers of a Vault that is not well. Promise: it remembers every request.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

/// A server of a few lines that lends what OpenBao lends only with a database beside it.
pub(crate) struct Lender {
    pub(crate) address: String,
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
    pub(crate) mood: Arc<Mutex<&'static str>>,
}

impl Lender {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (seen, mood) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(Mutex::new("well")));
        let (log, state) = (seen.clone(), mood.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                let (log, state) = (log.clone(), state.clone());
                // A thread each: one that is opened and not used yet must not hold up the others.
                std::thread::spawn(move || answer(stream, &log, &state));
            }
        });
        Self { address, seen, mood }
    }

    pub(crate) fn count(&self, what: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|line| line.contains(what)).count()
    }
}

fn answer(mut stream: TcpStream, seen: &Mutex<Vec<String>>, mood: &Mutex<&'static str>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut buffer = Vec::new();
    let mut chunk = [0; 4096];
    let text = loop {
        let read = stream.read(&mut chunk)?;
        buffer.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&buffer).into_owned();
        let length =
            text.to_lowercase().split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
        let whole = text.find("\r\n\r\n").is_some_and(|head| text.len() >= head + 4 + length.unwrap_or(0));
        if whole || read == 0 {
            break text;
        }
    };
    let line = text.lines().next().unwrap_or_default().to_owned();
    // Only now, and let go at once: the test that changes it runs on the client's own thread.
    let mood = *mood.lock().unwrap();
    let mut seen = seen.lock().unwrap();
    let reads = seen.iter().filter(|line| line.starts_with("GET /v1/database")).count();
    let (status, body) = match mood {
        "uninitialised" => (501, "{}".to_owned()),
        "standby" => {
            (if line.contains("sys/health") { 429 } else { 500 }, r#"{"errors":["local node not active"]}"#.to_owned())
        }
        "busy" => (429, r#"{"errors":["rate limit quota exceeded"]}"#.to_owned()),
        "html" => (200, "<html>portal</html>".to_owned()),
        _ if line.contains("sys/leases/renew") => {
            // Renewed in full twice, then near its end.
            let renewed = seen.iter().filter(|line| line.contains("renew ")).count();
            let duration = if renewed % 3 == 2 { 0 } else { 1 };
            (
                200,
                json!({ "lease_id": format!("lease-s3cret-{reads}"), "lease_duration": duration, "renewable": true })
                    .to_string(),
            )
        }
        _ if line.starts_with("GET /v1/database") => (
            200,
            json!({ "lease_id": format!("lease-s3cret-{}", reads + 1),
                "lease_duration": if mood == "patient" { 3600 } else { 1 }, "renewable": true,
                "data": { "username": format!("user-{}", reads + 1) } })
            .to_string(),
        ),
        _ if line.contains("lookup-self") => (200, json!({ "data": { "ttl": 0, "renewable": false } }).to_string()),
        _ => (204, String::new()),
    };
    let lease = text.split("\"lease_id\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
    seen.push(format!("{line} {lease}"));
    drop(seen);
    write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}
