//! A config file of any bytes: what is made and said of it is the same whether its long lists of endpoints are read apart or the
//! YAML library reads all of it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let environment = |name: &str| (name == "HOME").then(|| "/root".to_owned());
    let quick = outrigger_config::parse("fuzz.yaml", text, &environment);
    match (quick, outrigger_config::parse_whole("fuzz.yaml", text, &environment)) {
        (Ok(quick), Ok(whole)) => {
            assert_eq!(quick.config, whole.config);
            assert_eq!(quick.warnings.render(false), whole.warnings.render(false));
        }
        (Err(quick), Err(whole)) => assert_eq!(quick.render(false), whole.render(false)),
        (quick, whole) => panic!("{quick:?} {whole:?}"),
    }
});
