//! A receiver of log batches that can be as bad as real ones.
//!
//! In: POSTs of JSON lines. Out: the status it was told to give, and all lines of batches
//! that it took. Promise: it takes a batch whole or not at all; what it refused or what
//! broke off is not counted.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What it does with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Takes it: 200.
    Takes,
    /// Refuses it with this status.
    Refuses(u16),
    /// Takes it, and hangs up instead of saying so.
    TakesInSilence,
}

/// A log receiver on a port of this machine.
#[derive(Debug)]
pub struct Collector {
    shared: Arc<Shared>,
    port: u16,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    mood: Mutex<Mood>,
    lines: Mutex<Vec<String>>,
    requests: Mutex<u64>,
    stopping: AtomicBool,
}

impl Collector {
    /// Listens on `port`.
    ///
    /// # Panics
    /// When the port is taken.
    #[track_caller]
    pub fn start_on(port: u16, mood: Mood) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the collector's port is free");
        let shared = Arc::new(Shared {
            mood: Mutex::new(mood),
            lines: Mutex::new(Vec::new()),
            requests: Mutex::new(0),
            stopping: AtomicBool::new(false),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self { shared, port, acceptor: Some(acceptor) }
    }

    /// Changes what it does with the next batches.
    ///
    /// # Panics
    /// When the collector itself panicked.
    pub fn set_mood(&self, mood: Mood) {
        *self.shared.mood.lock().expect("the collector did not panic") = mood;
    }

    /// All lines it took, in the order they came.
    ///
    /// # Panics
    /// When the collector itself panicked.
    pub fn lines(&self) -> Vec<String> {
        self.shared.lines.lock().expect("the collector did not panic").clone()
    }

    /// All requests, taken or not.
    ///
    /// # Panics
    /// When the collector itself panicked.
    pub fn requests(&self) -> u64 {
        *self.shared.requests.lock().expect("the collector did not panic")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        // Wakes the acceptor; when this fails it has ended already.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopping.load(Ordering::Relaxed) {
            return;
        }
        let (Ok(stream), shared) = (stream, Arc::clone(shared)) else { continue };
        // Ends when its peer closes the connection, or the collector stops.
        std::thread::spawn(move || {
            let _ = serve(&stream, &shared);
        });
    }
}

fn serve(stream: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = None;
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok();
            }
        }
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body)?;
        if shared.stopping.load(Ordering::Relaxed) {
            return Ok(());
        }
        *shared.requests.lock().expect("no test panics with the lock") += 1;
        let mood = *shared.mood.lock().expect("no test panics with the lock");
        let status = match mood {
            Mood::Refuses(status) => status,
            Mood::Takes | Mood::TakesInSilence => {
                let text = String::from_utf8_lossy(&body);
                shared.lines.lock().expect("no test panics with the lock").extend(text.lines().map(str::to_owned));
                200
            }
        };
        if mood == Mood::TakesInSilence {
            return Ok(());
        }
        let mut writer = stream;
        write!(writer, "HTTP/1.1 {status} As told\r\ncontent-length: 0\r\n\r\n")?;
    }
}
