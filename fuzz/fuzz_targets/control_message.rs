//! Messages between agent and proxy: a broken one is an error, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outlast::dataplane::wire::{FromProxy, ToProxy, receive};
use std::io::Write as _;
use std::os::unix::net::UnixStream;

fuzz_target!(|bytes: &[u8]| {
    if bytes.len() > 64 << 10 {
        return;
    }
    for agent in [true, false] {
        let (mut near, far) = UnixStream::pair().expect("a pair of sockets");
        near.write_all(bytes).expect("fits the socket's buffer");
        drop(near);
        if agent {
            while let Ok(Some(_)) = receive::<ToProxy>(&far) {}
        } else {
            while let Ok(Some(_)) = receive::<FromProxy>(&far) {}
        }
    }
});
