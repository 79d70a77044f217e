//! Datagrams that any process of the pod may send.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_exporter::{Value, parse_datagram};

fuzz_target!(|datagram: &[u8]| {
    parse_datagram(datagram, |result| {
        let Ok(sample) = result else { return };
        assert!(sample.rate > 0.0 && sample.rate <= 1.0 && !sample.name.is_empty());
        let (Value::Counter(value)
        | Value::Gauge(value)
        | Value::GaugeDelta(value)
        | Value::Timer(value)
        | Value::Distribution(value)) = sample.value;
        assert!(value.is_finite());
        sample.tags.iter().for_each(drop);
    });
});
