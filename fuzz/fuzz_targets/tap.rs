//! The query of a tap, and a request that it may want.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_traffic::tap::{TapQuery, Told};

fuzz_target!(|text: &str| {
    let (query, text) = text.split_once('\n').unwrap_or((text, ""));
    if let Ok(tap) = TapQuery::parse(query) {
        let told = Told { path: text, peer: text, reason: text, ..Told::default() };
        assert!(tap.share > 0.0 && tap.share <= 1.0);
        let _ = tap.filter.wants(&told);
    }
});
