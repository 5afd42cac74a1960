//! A gRPC health answer from anybody.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    outlast_host::probe::serving_status(bytes).ok();
});
