//! Reviews at a fixed rate for the bench: `reviews PORT CA FOLDER RATE CONNECTIONS SECONDS SHARE`.
//!
//! In: FOLDER/small.json and FOLDER/large.json; every SHARE-th is a large one, 0 is none. Out: `sent failed p50 p99 slowest large-p99` in
//! milliseconds. Promise: an open loop: each review is due at its moment whatever the answers do, and timed from that moment until the last byte of an
//! answer is there that holds a patch. A thread per connection that blocks, so that nothing of ours stands between a moment and its review.

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};

use outrigger_identity::client_config_with_roots;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

type Failure = Box<dyn Error + Send + Sync>;
type Connection = StreamOwned<ClientConnection, TcpStream>;

/// What is sent when, by all connections together.
struct Load {
    port: u16,
    tls: Arc<ClientConfig>,
    small: Vec<u8>,
    large: Vec<u8>,
    rate: f64,
    connections: usize,
    reviews: usize,
    share: usize,
    together: Barrier,
    begun: OnceLock<Instant>,
}

/// A review's time; `None` when it was not answered. And whether it was a large one.
type Taken = (Option<Duration>, bool);

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, ca, folder, rate, connections, seconds, share] = arguments.as_slice() else {
        return Err("usage: reviews PORT CA FOLDER RATE CONNECTIONS SECONDS SHARE".into());
    };
    let review = |name: &str| Ok::<_, Failure>(request(&std::fs::read(Path::new(folder).join(name))?));
    let (rate, connections): (f64, usize) = (rate.parse()?, connections.parse()?);
    let load = Load {
        port: port.parse()?,
        tls: client_config_with_roots(Some(Path::new(ca)))?,
        small: review("small.json")?,
        large: review("large.json")?,
        rate,
        connections,
        reviews: (rate * seconds.parse::<f64>()?) as usize,
        share: share.parse()?,
        together: Barrier::new(connections),
        begun: OnceLock::new(),
    };
    let shared = &load;
    let all: Vec<Taken> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|index| scope.spawn(move || shared.client(index))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    });
    let sorted = |of: &dyn Fn(&Taken) -> bool| {
        let mut times: Vec<Duration> = all.iter().filter(|one| of(one)).filter_map(|(time, _)| *time).collect();
        times.sort_unstable();
        times
    };
    let at = |times: &[Duration], part: f64| {
        let index = ((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1));
        times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    let (every, big) = (sorted(&|_| true), sorted(&|(_, large)| *large));
    let failed = load.reviews - every.len();
    let (p50, p99, most, of_big) = (at(&every, 0.5), at(&every, 0.99), at(&every, 1.0), at(&big, 0.99));
    println!("{} {failed} {p50:.3} {p99:.3} {most:.3} {of_big:.3}", load.reviews);
    Ok(())
}

/// As an API server sends it.
fn request(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /inject?timeout=10s HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: kube-apiserver-admission\r\nAccept: application/json, */*\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

impl Load {
    /// Each `connections`-th review, over a connection of its own.
    fn client(&self, index: usize) -> Vec<Taken> {
        // One before all others, so that no handshake is timed; what goes wrong in it, each of those to come will tell.
        let mut connection = self.connect().and_then(|mut it| ask(&mut it, &self.small).map(|()| it)).ok();
        self.together.wait();
        let begun = *self.begun.get_or_init(|| Instant::now() + Duration::from_millis(100));
        let mine = (index..self.reviews).step_by(self.connections);
        let timed = mine.map(|number| {
            let due = begun + Duration::from_secs_f64(number as f64 / self.rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let is_large = self.share > 0 && number % self.share == self.share - 1;
            let review = if is_large { &self.large } else { &self.small };
            let mut asked = || {
                let mut there = connection.take().map_or_else(|| self.connect(), Ok)?;
                ask(&mut there, review)?;
                connection = Some(there);
                Ok::<_, Failure>(due.elapsed())
            };
            (asked().inspect_err(|error| eprintln!("review {number}: {error}")).ok(), is_large)
        });
        timed.collect()
    }

    fn connect(&self) -> Result<Connection, Failure> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let tls = ClientConnection::new(Arc::clone(&self.tls), "127.0.0.1".try_into()?)?;
        Ok(StreamOwned::new(tls, stream))
    }
}

/// Sends a review, and reads its answer to the end.
fn ask(connection: &mut Connection, review: &[u8]) -> Result<(), Failure> {
    connection.write_all(review)?;
    connection.flush()?;
    let (mut read, mut whole) = (Vec::with_capacity(32 << 10), None);
    let mut piece = [0; 16 << 10];
    while whole.is_none_or(|whole| read.len() < whole) {
        let length = connection.read(&mut piece)?;
        if length == 0 {
            return Err("the answer broke off".into());
        }
        read.extend_from_slice(&piece[..length]);
        if whole.is_none() {
            whole = answer_length(&read)?;
        }
    }
    let patched = read.windows(8).any(|bytes| bytes == b"\"patch\":");
    if patched { Ok(()) } else { Err("no patch".into()) }
}

/// Bytes of an answer, head and all, when its head is there.
fn answer_length(read: &[u8]) -> Result<Option<usize>, Failure> {
    let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(None) };
    let head = str::from_utf8(&read[..end])?.to_ascii_lowercase();
    if !head.starts_with("http/1.1 200") {
        return Err(head.into());
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")).ok_or("no content-length")?;
    Ok(Some(end + 4 + length.trim().parse::<usize>()?))
}
