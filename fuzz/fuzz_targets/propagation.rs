//! Fields that carry a trace: read without harm, and written back as they were read.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|value: &[u8]| outrigger_telemetry::trace::fuzz_propagation(value));
