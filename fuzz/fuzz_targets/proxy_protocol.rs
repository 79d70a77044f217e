//! A header of the PROXY protocol; what is known early stays so, and what we write of it says the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_wire::preamble::{self, Extras, Origin, Parsed};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let whole = preamble::parse(bytes);
    let cut = usize::from(cut).min(bytes.len());
    match preamble::parse(&bytes[..cut]) {
        Ok(Parsed::Partial) => {}
        decided => assert_eq!(decided, whole),
    }
    let Ok(Parsed::Complete(told)) = whole else { return };
    assert!(told.consumed <= bytes.len());
    (told.ssl(), told.alpn(), told.tlvs().for_each(drop)).2;
    let Origin::Proxied { source, destination } = told.origin else { return };
    let extras = Extras { authority: told.authority(), unique_id: told.unique_id(), checksum: true };
    let (mut first, mut second) = (Vec::new(), Vec::new());
    preamble::encode_v1(source, destination, &mut first);
    let fits = preamble::encode_v2(source, destination, extras, &mut second).is_ok();
    assert_eq!(fits, told.authority().is_none_or(|name| name.len() <= 255));
    if fits {
        let Ok(Parsed::Complete(again)) = preamble::parse(&second) else { panic!("our own header is refused") };
        assert_eq!((again.authority(), again.unique_id()), (told.authority(), told.unique_id()));
        same(again.origin, told.origin);
    }
    let Ok(Parsed::Complete(again)) = preamble::parse(&first) else { panic!("our own line is refused") };
    same(again.origin, told.origin);
});

/// The same addresses, be IPv4 mapped into IPv6 or not.
fn same(one: Origin, other: Origin) {
    let parts = |origin| match origin {
        Origin::Proxied { source, destination } => {
            [source, destination].map(|address| (address.ip().to_canonical(), address.port()))
        }
        _ => panic!("no addresses"),
    };
    assert_eq!(parts(one), parts(other));
}
