//! Any bytes are read as the kernel's replies without a panic, and come to an end.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| outrigger_intercept::fuzz_replies(bytes));
