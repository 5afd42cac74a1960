//! PROXY headers of both versions: no panic, and a header that is read is complete.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outlast_proxy::proxy_protocol::{read, write_v1, write_v2};

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(header)) = read(bytes) else { return };
    assert!(header.length <= bytes.len());
    assert_eq!(read(&bytes[..header.length]), Ok(Some(header)));
    assert!(!matches!(read(&bytes[..header.length - 1]), Ok(Some(_))));
    if let Some((from, to)) = header.addresses {
        for wire in [write_v1(from, to), write_v2(from, to)] {
            let again = read(&wire).expect("our own header").expect("a whole header");
            assert_eq!(again.addresses.map(|(f, _)| f.port()), Some(from.port()));
        }
    }
});
