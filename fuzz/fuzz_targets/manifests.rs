//! Manifests of any bytes: whatever comes out is read again, injecting it again changes nothing, and what was put in can be
//! taken out.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_inject::{Action, Settings, process};

fuzz_target!(|text: &str| {
    let settings = Settings::default();
    let Ok(once) = process("fuzz", text, "shop", Action::Inject(&settings, &[])) else { return };
    let twice =
        process("fuzz", &once.text, "shop", Action::Inject(&settings, &[])).expect("what comes out can be read");
    assert_eq!(twice.text, once.text);
    let back = process("fuzz", &once.text, "shop", Action::Uninject).expect("what was put in can be taken out");
    let again =
        process("fuzz", &back.text, "shop", Action::Inject(&settings, &[])).expect("what comes out can be read");
    assert_eq!(again.text, once.text);
});
