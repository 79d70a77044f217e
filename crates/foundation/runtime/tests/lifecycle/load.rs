//! Clients that count what fails: some keep their connection, some take a new one each time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(15);

/// Clients under way.
pub(crate) struct Load {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Result<Duration, String>>>,
}

impl Load {
    pub(crate) fn start(address: SocketAddr, keeping: usize, renewing: usize) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let clients = (0..keeping + renewing).map(|index| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            std::thread::spawn(move || client(address, index < keeping, &stop, &answered))
        });
        Self { address, clients: clients.collect(), stop, answered }
    }

    /// Waits until `more` further requests were answered.
    pub(crate) fn goes_on(&self, more: u64) {
        let (until, deadline) = (self.answered.load(Ordering::Relaxed) + more, Instant::now() + PATIENCE);
        while self.answered.load(Ordering::Relaxed) < until {
            assert!(!self.clients.iter().any(JoinHandle::is_finished), "a client of {} gave up", self.address);
            assert!(Instant::now() < deadline, "the load on {} does not go on", self.address);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it; the number of answers, and the slowest. Fails with the first failure there was.
    pub(crate) fn end(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let slowest = self.clients.into_iter().map(|client| client.join().unwrap().expect("no request fails")).max();
        (self.answered.load(Ordering::Relaxed), slowest.unwrap_or_default())
    }
}

fn client(address: SocketAddr, keeps: bool, stop: &AtomicBool, answered: &AtomicU64) -> Result<Duration, String> {
    let mut connection = None;
    let mut slowest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let mut stream = match connection.take() {
            Some(stream) => stream,
            None => connect(address).map_err(|error| format!("refused: {error}"))?,
        };
        let close = get(&mut stream).map_err(|error| format!("failed: {error}"))?;
        connection = (keeps && !close).then_some(stream);
        slowest = slowest.max(begun.elapsed());
        answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(slowest)
}

fn connect(address: SocketAddr) -> std::io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

/// One request; whether the server closes the connection after its answer.
fn get(stream: &mut BufReader<TcpStream>) -> std::io::Result<bool> {
    stream.get_mut().write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
    let (mut head, mut line) = (String::new(), String::new());
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        head.push_str(&line);
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(head.contains("connection: close"))
}
