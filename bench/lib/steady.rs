//! Load at a fixed rate, whatever the answers do, for latencies that hide nothing.
//!
//! In: ADDRESS RATE CONNECTIONS SECONDS. Out: one line `requests errors late p50 p99 max`, times in
//! microseconds. Promise: each request has its moment, evenly spread over all connections, and its time
//! counts from that moment on, also when an earlier answer came too late to send it then (as wrk2 does).
//!
//! It needs only the standard library, so `rustc` alone builds it: nothing in Debian keeps an open loop at
//! this precision (h2load's --rps sends in bursts every 10 ms or more, wrk has no rate).

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};
use std::{env, thread};

/// Requests on each connection before the clock starts.
const WARM_UP: usize = 20;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, rate, connections, seconds] = &arguments[..] else {
        panic!("usage: steady ADDRESS RATE CONNECTIONS SECONDS");
    };
    let rate: f64 = rate.parse().expect("RATE is a number");
    let connections: usize = connections.parse().expect("CONNECTIONS is a number");
    let seconds: f64 = seconds.parse().expect("SECONDS is a number");
    let barrier = Arc::new(Barrier::new(connections));
    let begin = Arc::new(OnceLock::new());
    let threads: Vec<_> = (0..connections)
        .map(|index| {
            let (address, barrier, begin) = (address.clone(), barrier.clone(), begin.clone());
            thread::Builder::new()
                .stack_size(64 * 1024)
                .spawn(move || {
                    let mut connection = connect(&address);
                    barrier.wait();
                    let begin = *begin.get_or_init(|| Instant::now() + Duration::from_millis(20));
                    let first = begin + Duration::from_secs_f64(index as f64 / rate);
                    let count = (seconds * rate / connections as f64).round() as u32;
                    run(&address, &mut connection, first, Duration::from_secs_f64(connections as f64 / rate), count)
                })
                .expect("a thread starts")
        })
        .collect();
    let (mut taken, mut errors, mut late) = (Vec::new(), 0, 0);
    for thread in threads {
        let one = thread.join().expect("a thread ends");
        taken.extend(one.taken);
        errors += one.errors;
        late += one.late;
    }
    taken.sort_unstable();
    let quantile = |share: f64| taken.get(((taken.len() as f64 * share) as usize).min(taken.len().saturating_sub(1)));
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| *quantile(share).unwrap_or(&0) as f64 / 1e3);
    println!("{} {errors} {late} {p50:.1} {p99:.1} {max:.1}", taken.len());
}

/// What one connection saw; times in nanoseconds.
#[derive(Default)]
struct Seen {
    taken: Vec<u64>,
    errors: u32,
    /// Requests that went out over a millisecond after their moment.
    late: u32,
}

fn run(address: &str, connection: &mut Option<TcpStream>, first: Instant, every: Duration, count: u32) -> Seen {
    precise_sleep();
    let mut seen = Seen::default();
    for number in 0..count {
        let moment = first + every * number;
        thread::sleep(moment.saturating_duration_since(Instant::now()));
        if moment.elapsed() > Duration::from_millis(1) {
            seen.late += 1;
        }
        if connection.is_none() {
            *connection = connect(address);
        }
        match connection.as_mut().ok_or_else(|| Error::from(ErrorKind::NotConnected)).and_then(exchange) {
            Ok(()) => seen.taken.push(moment.elapsed().as_nanos() as u64),
            Err(_) => {
                seen.errors += 1;
                *connection = None;
            }
        }
    }
    seen
}

fn connect(address: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    (0..WARM_UP).try_for_each(|_| exchange(&mut stream)).ok()?;
    Some(stream)
}

/// One request and its whole response, which must be a 200 with a `content-length`.
fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n")?;
    let (mut buffer, mut have) = ([0; 16384], 0);
    loop {
        let got = stream.read(&mut buffer[have..])?;
        if got == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        have += got;
        if let Some(whole) = length(&buffer[..have])?
            && have >= whole
        {
            return Ok(());
        }
    }
}

/// The length of head and body, once the head is there.
fn length(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let body = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    match body {
        Some(body) if head.starts_with("http/1.1 200") => Ok(Some(end + 4 + body)),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

/// Lets this thread wake when it asked to, not up to 50 µs later (the kernel's default timer slack).
fn precise_sleep() {
    unsafe extern "C" {
        fn prctl(option: i32, value: u64, ...) -> i32;
    }
    const PR_SET_TIMERSLACK: i32 = 29;
    // SAFETY: this option takes a number of nanoseconds and touches no memory of ours.
    unsafe { prctl(PR_SET_TIMERSLACK, 1) };
}
