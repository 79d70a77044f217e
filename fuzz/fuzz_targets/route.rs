//! A table of routes, and a request as any client may write it: the table and a look at each route agree.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| outrigger_traffic::route::fuzz(text));
