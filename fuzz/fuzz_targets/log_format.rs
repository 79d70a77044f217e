//! Formats of access log lines: read or refused, and written back as they were.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_config::LogFormat;

fuzz_target!(|text: &str| {
    if let Ok(format) = text.parse::<LogFormat>() {
        assert_eq!(format.to_string(), text);
        for name in format.request_fields().chain(format.response_fields()) {
            assert!(!name.is_empty() && !name.bytes().any(|byte| byte.is_ascii_uppercase() || byte.is_ascii_control()));
        }
    }
});
