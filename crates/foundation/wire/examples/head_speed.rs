//! Prints how long a request's head takes, for profiling:
//! `cargo run --release -p outrigger-wire --example head_speed [ROUNDS]`.

use std::hint::black_box;
use std::time::Instant;

use outrigger_wire::h1::{self, Limits, Parsed};
use outrigger_wire::head::Head;
use outrigger_wire::path::{PathPolicy, normalise};

/// What a browser sends: 10 fields, some 600 bytes.
const REQUEST: &str = "GET /api/v1/catalogue/items?page=2&sort=price HTTP/1.1\r\n\
    Host: shop.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Referer: https://shop.example.com/catalogue\r\n\
    Cookie: session=8f14e45fceea167a5a36dedd4bea2543; theme=dark; consent=yes\r\n\
    X-Request-Id: 7b0e7c1e-6f0a-4c39-9a25-0a7c3f1d2b11\r\n\
    traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\
    Connection: keep-alive\r\n\r\n";

const LIMITS: Limits = Limits { max_bytes: 16 * 1024, max_fields: 100 };

fn main() {
    let rounds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2_000_000_u32);
    let (mut head, mut out, mut path) = (Head::default(), Vec::new(), String::new());
    println!("a head of {} bytes, {rounds} rounds each", REQUEST.len());
    measure("read", rounds, || {
        let parsed = h1::parse_request(black_box(REQUEST.as_bytes()), 0, LIMITS, &mut head);
        assert_eq!(parsed, Ok(Parsed::Complete(REQUEST.len())));
    });
    measure("judge", rounds, || {
        black_box((h1::request_framing(&head), h1::persists(&head), h1::authority(&head))).0.ok();
    });
    measure("path", rounds, || {
        black_box(normalise(&PathPolicy::default(), black_box(head.target()), &mut path)).ok();
    });
    measure("write", rounds, || {
        out.clear();
        h1::write_request_head(black_box(&head), &mut out);
    });
    assert_eq!(out, REQUEST.as_bytes());
}

fn measure(what: &str, rounds: u32, mut step: impl FnMut()) {
    (0..rounds / 10).for_each(|_| step());
    let started = Instant::now();
    (0..rounds).for_each(|_| step());
    println!("{what:>6}: {:.0} ns", started.elapsed().as_secs_f64() * 1e9 / f64::from(rounds));
}
