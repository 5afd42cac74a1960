//! A response head from a backend: no panic, and the rewritten head is read back with the same framing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outlast_proxy::head::{Method, read_response};

fuzz_target!(|bytes: &[u8]| {
    for (method, dechunk) in [(Method::Get, false), (Method::Head, false), (Method::Get, true)] {
        let mut wire = Vec::new();
        let Ok(Some((length, response))) = read_response(bytes, method, dechunk, &mut wire) else { continue };
        assert!(length <= bytes.len());
        if dechunk || response.status < 200 {
            continue;
        }
        wire.extend_from_slice(b"\r\n");
        let mut again = Vec::new();
        let (length, second) =
            read_response(&wire, method, false, &mut again).expect("our own head").expect("a whole head");
        assert_eq!(length, wire.len());
        assert_eq!((second.status, second.framing), (response.status, response.framing));
    }
});
