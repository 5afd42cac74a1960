//! A journal line from a disk that lies: no panic, and what is read is written back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outlast_host::journal::Line;

fuzz_target!(|bytes: &[u8]| {
    let Ok(line) = Line::parse(bytes) else { return };
    let again = Line::parse(line.to_json().as_bytes()).expect("our own line");
    assert_eq!(line.to_json(), again.to_json());
});
