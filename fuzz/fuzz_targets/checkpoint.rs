//! A checkpoint's file after whatever happened to the disk.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    outrigger_logs::fuzz_checkpoint(bytes);
});
