//! Requests at a fixed rate from one thread, cheap enough to ask for far more than a proxy can carry.
//!
//! In: ADDRESS RATE CONNECTIONS SECONDS. Out: one line `sent good refused lost p50 p99`, times of the good in
//! microseconds. Promise: requests are due evenly whatever the answers do; each of the connections is a client that has one
//! request under way, and turns to the next when that is answered or given up: a second after it was due, and then the
//! connection is closed, too. A request that finds all clients waiting is not sent, and lost.
//!
//! RATE 0 is a closed loop: each client asks again at once. It needs only the standard library, so `rustc` alone builds it.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use std::env;

/// A client's patience.
const PATIENCE: Duration = Duration::from_secs(1);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
/// Events taken at once.
const EVENTS: usize = 512;

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Event {
    events: u32,
    data: u64,
}

unsafe extern "C" {
    fn epoll_create1(flags: i32) -> i32;
    fn epoll_ctl(epoll: i32, operation: i32, fd: i32, event: *mut Event) -> i32;
    fn epoll_wait(epoll: i32, events: *mut Event, most: i32, timeout: i32) -> i32;
}
const ADD: i32 = 1;
const READABLE: u32 = 1;

struct Client {
    stream: Option<TcpStream>,
    /// When the request under way was due.
    due: Option<Instant>,
    have: Vec<u8>,
}

struct Load {
    address: String,
    epoll: i32,
    clients: Vec<Client>,
    free: VecDeque<usize>,
    /// Who was sent when: the first in line is the first to lose patience.
    under_way: VecDeque<(Instant, usize)>,
    good: Vec<u32>,
    sent: u64,
    refused: u64,
    lost: u64,
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, rate, connections, seconds] = &arguments[..] else {
        panic!("usage: flood ADDRESS RATE CONNECTIONS SECONDS");
    };
    let rate: f64 = rate.parse().expect("RATE is a number");
    let connections: usize = connections.parse().expect("CONNECTIONS is a number");
    let seconds: f64 = seconds.parse().expect("SECONDS is a number");
    // SAFETY: it takes no memory of ours.
    let epoll = unsafe { epoll_create1(0) };
    assert!(epoll >= 0, "epoll is there");
    let clients = (0..connections).map(|_| Client { stream: None, due: None, have: Vec::new() }).collect();
    let (free, under_way) = ((0..connections).collect(), VecDeque::new());
    let load = Load { address: address.clone(), epoll, clients, free, under_way, good: Vec::new(), sent: 0, refused: 0, lost: 0 };
    load.run(rate, Duration::from_secs_f64(seconds));
}

impl Load {
    fn run(mut self, rate: f64, length: Duration) {
        for client in 0..self.clients.len() {
            self.connect(client);
        }
        let begin = Instant::now();
        // Requests whose moment has come, and how many have.
        let (mut due, mut count) = (VecDeque::<Instant>::new(), 0_u64);
        let mut events = [Event { events: 0, data: 0 }; EVENTS];
        loop {
            let now = Instant::now();
            let passed = now - begin;
            if passed >= length {
                break;
            }
            if rate > 0.0 {
                while (count as f64) < passed.as_secs_f64() * rate {
                    due.push_back(begin + Duration::from_secs_f64(count as f64 / rate));
                    count += 1;
                }
            }
            while let Some(&(since, client)) = self.under_way.front() {
                match self.clients[client].due {
                    Some(due) if due == since && now - due > PATIENCE => {
                        self.lost += 1;
                        self.again(client);
                    }
                    Some(due) if due == since => break,
                    _ => {}
                }
                self.under_way.pop_front();
            }
            if rate > 0.0 {
                while let Some(due) = due.pop_front() {
                    match self.free.pop_front() {
                        Some(client) => self.ask(client, due),
                        None => self.lost += 1,
                    }
                }
            } else {
                while let Some(client) = self.free.pop_front() {
                    self.ask(client, now);
                }
            }
            // SAFETY: the kernel writes at most so many events.
            let ready = unsafe { epoll_wait(self.epoll, events.as_mut_ptr(), EVENTS as i32, 1) };
            for event in events.iter().take(ready.max(0) as usize) {
                self.read(event.data as usize);
            }
        }
        self.good.sort_unstable();
        let quantile = |share: f64| self.good.get((self.good.len() as f64 * share) as usize).copied().unwrap_or(0);
        println!("{} {} {} {} {} {}", self.sent, self.good.len(), self.refused, self.lost, quantile(0.5), quantile(0.99));
    }

    fn connect(&mut self, client: usize) {
        let stream = TcpStream::connect(&self.address).and_then(|stream| {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        let Ok(stream) = stream else { return };
        let mut event = Event { events: READABLE, data: client as u64 };
        // SAFETY: the event is read before it returns.
        unsafe { epoll_ctl(self.epoll, ADD, stream.as_raw_fd(), &mut event) };
        self.clients[client].stream = Some(stream);
    }

    fn ask(&mut self, client: usize, due: Instant) {
        if self.clients[client].stream.is_none() {
            self.connect(client);
        }
        self.sent += 1;
        let one = &mut self.clients[client];
        one.have.clear();
        if one.stream.as_mut().is_some_and(|stream| stream.write_all(REQUEST).is_ok()) {
            one.due = Some(due);
            self.under_way.push_back((due, client));
        } else {
            self.lost += 1;
            self.again(client);
        }
    }

    /// Gives the connection up.
    fn again(&mut self, client: usize) {
        self.clients[client].stream = None;
        self.clients[client].due = None;
        self.free.push_back(client);
    }

    fn read(&mut self, client: usize) {
        let one = &mut self.clients[client];
        let Some(stream) = &mut one.stream else { return };
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes) {
            Ok(0) => {}
            Ok(count) => {
                one.have.extend_from_slice(&bytes[..count]);
                let Some(status) = status_if_whole(&one.have) else { return };
                if let Some(due) = one.due.take() {
                    if status == 200 {
                        self.good.push(due.elapsed().as_micros() as u32);
                    } else {
                        self.refused += 1;
                    }
                    self.free.push_back(client);
                }
                return;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => {}
        }
        // It was closed, perhaps between two requests, which is its right.
        if one.due.is_some() {
            self.lost += 1;
            self.again(client);
        } else {
            one.stream = None;
        }
    }
}

/// The status of an answer, once it is whole.
fn status_if_whole(bytes: &[u8]) -> Option<u16> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = &bytes[..end];
    let name = b"content-length:";
    let at = head.windows(name.len()).position(|part| part.eq_ignore_ascii_case(name));
    let length = at.map_or(0, |at| {
        head[at + name.len()..].iter().skip_while(|byte| **byte == b' ').take_while(|byte| byte.is_ascii_digit())
            .fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'))
    });
    (bytes.len() >= end + 4 + length).then(|| head[9..12].iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0')))
}
