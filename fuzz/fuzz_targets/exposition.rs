//! Exposition text that another process serves; what is accepted is small and finite in size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_telemetry::parse;

fuzz_target!(|text: &[u8]| {
    if let Ok(exposition) = parse::parse(text) {
        for family in &exposition.families {
            for sample in &family.samples {
                sample.label("le");
            }
        }
    }
});
