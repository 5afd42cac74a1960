//! Bodies: the result does not depend on how the bytes arrive.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outlast_proxy::body::{Decoder, Framing};

fn run(wire: &[u8], step: usize) -> Option<(Vec<u8>, usize, bool)> {
    let mut decoder = Decoder::new(Framing::Chunked);
    let mut payload = Vec::new();
    let mut taken = 0;
    for piece in wire.chunks(step) {
        let count = decoder.decode(piece, &mut payload).ok()?;
        taken += count;
        if count < piece.len() {
            break;
        }
    }
    Some((payload, taken, decoder.done()))
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&step, wire)) = bytes.split_first() else { return };
    assert_eq!(run(wire, wire.len().max(1)), run(wire, usize::from(step).max(1)));
});
