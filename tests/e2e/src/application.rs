//! The application beside an Outrigger: plain HTTP, and it tells what it saw.
//!
//! In: requests. Out: `200`, with the request's line and headers as the body. Promise:
//! keeps every request for the test to look at; ends with its guard.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// One request as the application saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `GET /path HTTP/1.1`.
    pub line: String,
    /// Header names in lower case, and their values.
    pub headers: Vec<(String, String)>,
    /// The body as text.
    pub body: String,
}

/// A sample application that listens on a port of its own.
#[derive(Debug)]
pub struct Application {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    stopping: Arc<AtomicBool>,
    listener: TcpListener,
    acceptor: Option<JoinHandle<()>>,
}

impl Application {
    /// Starts it on a free port.
    ///
    /// # Panics
    /// When no port can be bound.
    pub fn start() -> Self {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// Starts it on a given address.
    ///
    /// # Panics
    /// When it cannot be bound.
    pub fn start_on(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("a port can be bound");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (seen, stopping) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let own = listener.try_clone().expect("a socket can be cloned");
        let acceptor = std::thread::spawn({
            let (seen, stopping) = (Arc::clone(&seen), Arc::clone(&stopping));
            move || accept(&listener, &seen, &stopping)
        });
        Self { address, seen, stopping, listener: own, acceptor: Some(acceptor) }
    }

    /// All requests so far.
    ///
    /// # Panics
    /// When the application itself panicked.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("the application did not panic").clone()
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Wakes the acceptor, in whatever network namespace it is; when this fails it has ended already.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, seen: &Arc<Mutex<Vec<Seen>>>, stopping: &AtomicBool) {
    for stream in listener.incoming() {
        if stopping.load(Ordering::Relaxed) {
            return;
        }
        let (Ok(stream), seen) = (stream, Arc::clone(seen)) else { continue };
        // Ends when its peer closes the connection, or is silent for a minute.
        std::thread::spawn(move || {
            let _ = serve(&stream, &seen);
        });
    }
}

fn serve(stream: &TcpStream, seen: &Mutex<Vec<Seen>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        let mut body = format!("{}\n", request.line);
        for (name, value) in &request.headers {
            body.push_str(&format!("{name}: {value}\n"));
        }
        let close = request.headers.iter().any(|(name, value)| name == "connection" && value == "close");
        seen.lock().expect("no test panics with the lock").push(request);
        let mut writer = stream;
        write!(writer, "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
        if close {
            break;
        }
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Seen>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        match header.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    Ok(Some(Seen { line: line.trim_end().to_owned(), headers, body: String::from_utf8_lossy(&body).into_owned() }))
}
