//! More requests than an application can answer, and an application that can answer so many and no more.
//!
//! `app PORT SLOTS MILLISECONDS` is the application: each request takes so long, and so many are worked on at once;
//! the others wait, as in a pool of threads or of database connections. Who has gone meanwhile is worked for in vain.
//!
//! `load ADDRESS RATE CONNECTIONS SECONDS` asks, whatever the answers do, and prints `sent good refused lost p99`:
//! good is a 200 within a second of the moment its request was due, refused any other status, and lost what a client
//! gave up after that second, or could not send. p99 of the good, in microseconds. RATE 0 is a closed loop.
//!
//! It needs only the standard library, so `rustc` alone builds it.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::time::{Duration, Instant};
use std::{env, thread};

/// A client's patience.
const PATIENCE: Duration = Duration::from_secs(1);

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let number = |text: &String| text.parse::<f64>().expect("a number");
    match &arguments[..] {
        [mode, port, slots, millis] if mode == "app" => app(number(port) as u16, number(slots) as u32, number(millis)),
        [mode, address, rate, connections, seconds] if mode == "load" => {
            load(address, number(rate), number(connections) as usize, number(seconds));
        }
        _ => panic!("usage: overload app PORT SLOTS MILLISECONDS | load ADDRESS RATE CONNECTIONS SECONDS"),
    }
}

fn app(port: u16, slots: u32, millis: f64) {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    // The next ticket, and how many have been worked on: whoever came first is first.
    let line = Arc::new((Mutex::new((0_u64, u64::from(slots))), Condvar::new()));
    for mut stream in listener.incoming().flatten() {
        let line = Arc::clone(&line);
        let serve = move || {
            let mut bytes = [0; 4096];
            let mut next = 0;
            while stream.read(&mut bytes).is_ok_and(|read| read > 0) {
                let (state, turn) = &*line;
                {
                    let mut state = state.lock().expect("no panic");
                    let ticket = state.0;
                    state.0 += 1;
                    while ticket >= state.1 {
                        state = turn.wait(state).expect("no panic");
                    }
                }
                thread::sleep(Duration::from_secs_f64(millis / 1000.0));
                state.lock().expect("no panic").1 += 1;
                turn.notify_all();
                next += 1;
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{next:08}");
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        };
        let _ = thread::Builder::new().stack_size(64 * 1024).spawn(serve);
    }
}

#[derive(Default)]
struct Seen {
    sent: u32,
    refused: u32,
    lost: u32,
    good: Vec<u64>,
}

fn load(address: &str, rate: f64, connections: usize, seconds: f64) {
    let barrier = Arc::new(Barrier::new(connections));
    let threads: Vec<_> = (0..connections)
        .map(|index| {
            let (address, barrier) = (address.to_owned(), Arc::clone(&barrier));
            let run = move || {
                barrier.wait();
                client(&address, rate, index, connections, seconds)
            };
            thread::Builder::new().stack_size(64 * 1024).spawn(run).expect("a thread starts")
        })
        .collect();
    let mut all = Seen::default();
    for thread in threads {
        let one = thread.join().expect("a thread ends");
        all.sent += one.sent;
        all.refused += one.refused;
        all.lost += one.lost;
        all.good.extend(one.good);
    }
    all.good.sort_unstable();
    let p99 = all.good.get(all.good.len() * 99 / 100).copied().unwrap_or(0);
    println!("{} {} {} {} {p99}", all.sent, all.good.len(), all.refused, all.lost);
}

fn client(address: &str, rate: f64, index: usize, connections: usize, seconds: f64) -> Seen {
    let mut seen = Seen::default();
    let begin = Instant::now() + Duration::from_millis(20);
    let end = begin + Duration::from_secs_f64(seconds);
    let mut connection = None;
    for number in 0_u32.. {
        let due = if rate > 0.0 {
            begin + Duration::from_secs_f64((index as f64 + f64::from(number) * connections as f64) / rate)
        } else {
            Instant::now()
        };
        if due >= end {
            break;
        }
        thread::sleep(due.saturating_duration_since(Instant::now()));
        seen.sent += 1;
        match ask(address, &mut connection, due) {
            Ok(200) => seen.good.push(due.elapsed().as_micros() as u64),
            Ok(_) => seen.refused += 1,
            Err(_) => {
                seen.lost += 1;
                connection = None;
            }
        }
    }
    seen
}

/// The status of an answer that comes within the client's patience.
fn ask(address: &str, connection: &mut Option<TcpStream>, due: Instant) -> Result<u16> {
    let left = |due: Instant| PATIENCE.checked_sub(due.elapsed()).filter(|left| !left.is_zero());
    let timed_out = || Error::from(ErrorKind::TimedOut);
    if connection.is_none() {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        *connection = Some(stream);
    }
    let Some(stream) = connection else { return Err(timed_out()) };
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
    let (mut bytes, mut have) = ([0; 4096], 0);
    loop {
        stream.set_read_timeout(Some(left(due).ok_or_else(timed_out)?))?;
        let read = stream.read(&mut bytes[have..])?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        have += read;
        let text = String::from_utf8_lossy(&bytes[..have]).to_ascii_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
            if body.len() >= length.unwrap_or(0) {
                let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
                return status.ok_or_else(|| ErrorKind::InvalidData.into());
            }
        }
    }
}
