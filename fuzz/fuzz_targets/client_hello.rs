//! A ClientHello, or anything that comes in its place; what is known of it early stays so.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_wire::hello::{self, Hello};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let whole = hello::parse(bytes);
    let cut = usize::from(cut).min(bytes.len());
    match hello::parse(&bytes[..cut]) {
        Ok(Hello::Partial) => {}
        decided => assert_eq!(decided, whole),
    }
    match whole {
        Ok(Hello::Complete(hello)) => {
            let name = hello.sni().unwrap_or("a");
            assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'));
            assert!(hello.alpn().all(|protocol| !protocol.is_empty()));
            assert!(hello.versions().count() > 0);
        }
        Ok(Hello::Partial) => assert!(bytes.len() < hello::LONGEST),
        Err(_) => {}
    }
});
