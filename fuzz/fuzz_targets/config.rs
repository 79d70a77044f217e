//! A config file of any bytes; whatever is accepted must survive being printed and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let environment = |name: &str| (name == "HOME").then(|| "/root".to_owned());
    match outrigger_config::parse("fuzz.yaml", text, &environment) {
        Ok(loaded) => {
            outrigger_config::to_yaml(&loaded.config);
            assert!(outrigger_config::diff(&loaded.config, &loaded.config).is_empty());
        }
        Err(diagnostics) => {
            diagnostics.render(false);
            diagnostics.to_json();
        }
    }
});
