//! What content codings cost: memory of one encoder, time per MiB, and what remains of a page of JSON.
//!
//! `cargo run --release -p outrigger-wire --example coding_cost`; figures of it stand in ADR 26.

use std::time::Instant;

use outrigger_wire::coding::{Coding, Encoder, Op};

const COUNT: usize = 40;

fn main() {
    let page = page();
    for (coding, levels) in [(Coding::Gzip, [1, 4, 6, 9]), (Coding::Br, [2, 3, 4, 5]), (Coding::Zstd, [1, 3, 5, 6])] {
        for level in levels {
            let before = resident();
            let began = Instant::now();
            let mut output = vec![0; 64 * 1024];
            let mut left = 0;
            let all: Vec<Encoder> = (0..COUNT)
                .map(|_| {
                    let mut encoder = Encoder::new(coding, level);
                    left = pass(&mut encoder, &page, &mut output);
                    encoder
                })
                .collect();
            let took = began.elapsed().as_secs_f64() * 1000.0 / COUNT as f64;
            let each = resident().saturating_sub(before) / COUNT;
            println!(
                "{:<5} {level:>2}  {:>5} KiB each  {:>6.2} ms per MiB  {:>5.1} % remain",
                coding.as_str(),
                each / 1024,
                took * 1024.0 * 1024.0 / page.len() as f64,
                left as f64 * 100.0 / page.len() as f64,
            );
            drop(all);
        }
    }
}

/// Compresses all of it but for the end, so that the encoder holds what it needs.
fn pass(encoder: &mut Encoder, mut input: &[u8], output: &mut [u8]) -> usize {
    let mut written = 0;
    loop {
        let op = if input.is_empty() { Op::Flush } else { Op::Go };
        let step = encoder.step(&input[..input.len().min(16 * 1024)], output, op).expect("it compresses");
        input = &input[step.read..];
        written += step.written;
        if step.done {
            return written;
        }
    }
}

/// A list as an API gives it.
fn page() -> Vec<u8> {
    let mut seed = 7_u32;
    let mut random = move || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed >> 8
    };
    let mut text = String::from("[");
    while text.len() < 1 << 20 {
        let (id, price, stock) = (random(), random() % 100_000, random() % 50);
        text += &format!(
            "{{\"id\":\"{id:x}\",\"name\":\"article {}\",\"price\":{price},\"stock\":{stock},\"tags\":[\"new\",\"t{}\"]}},",
            id % 977,
            stock
        );
    }
    text.into_bytes()
}

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or_default() * 4096
}
