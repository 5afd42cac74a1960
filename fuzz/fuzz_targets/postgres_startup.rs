//! The first packet of a client of PostgreSQL: no panic, what is read is complete, and what is said again is read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outlast_proxy::postgres::scram::Verifier;
use outlast_proxy::postgres::startup::{Opening, read};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        Verifier::parse(text);
    }
    let Ok(Some((opening, length))) = read(bytes) else { return };
    assert!(length <= bytes.len());
    assert_eq!(read(&bytes[..length.max(1)]), Ok(Some((opening.clone(), length))));
    if length > 0 {
        assert_eq!(read(&bytes[..length - 1]), Ok(None));
    }
    if let Opening::Startup(startup) = opening {
        assert_eq!(startup.packet(), &bytes[..length]);
        let again = startup.read_only();
        // A packet that was nearly too long may be too long with one option more.
        if let Ok(read) = read(&again) {
            let Some((Opening::Startup(second), whole)) = read else { panic!("{again:?}") };
            assert_eq!((whole, second.user), (again.len(), startup.user));
        }
    }
});
