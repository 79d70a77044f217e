//! Filters of the access log: read or refused; one that is read can be asked, and says the opposite of its opposite.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_config::LogFilter;
use outrigger_config::log_line::{Attribute, Fact, Facts};

struct Request;

impl Facts for Request {
    fn fact(&self, attribute: &Attribute) -> Fact<'_> {
        match attribute {
            Attribute::Code | Attribute::Duration => Fact::Number(503),
            Attribute::Path | Attribute::RequestHeader(_) => Fact::Text(b"/a"),
            _ => Fact::Unknown,
        }
    }
    fn chance(&self) -> f64 {
        0.5
    }
}

fuzz_target!(|text: &str| {
    if let Ok(filter) = text.parse::<LogFilter>() {
        assert_eq!(filter.to_string(), text);
        let opposite = format!("!({text})");
        // One that is as long or as deep as may be has no room for more.
        if let Ok(opposite) = opposite.parse::<LogFilter>() {
            assert_ne!(opposite.holds(&Request), filter.holds(&Request));
        }
    }
});
