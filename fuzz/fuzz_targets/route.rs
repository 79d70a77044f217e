//! The host and path of a request, as any client may write them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (host, path) = text.split_once('\n').unwrap_or(("", text));
    outrigger_proxy::fuzz_match(host, path);
});
