//! What a rate limit service answers: read without harm, bounded, and told in fields that can be sent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_traffic::x_ratelimit_headers;
use outrigger_wire::h1::is_field_value;
use outrigger_wire::rate_limit_service::read_response;

fuzz_target!(|message: &[u8]| {
    let Some(answer) = read_response(message) else { return };
    assert!(answer.statuses.len() <= 32 && answer.request_headers.len() + answer.response_headers.len() <= 64);
    for (_, value) in x_ratelimit_headers(&answer.statuses).into_iter().flatten() {
        assert!(is_field_value(value.as_bytes()), "{value:?}");
    }
});
