//! What another node sends: greetings and frames are read or refused, never a panic, and do not depend on how the bytes
//! arrive.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outlast_link::inflow::Inflow;
use outlast_link::wire::{Frame, Greeting};

fn run(wire: &[u8], step: usize) -> (Vec<String>, bool) {
    let mut inflow = Inflow::default();
    let mut buffer = Vec::new();
    let mut seen = Vec::new();
    for piece in wire.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            match Frame::read(&buffer) {
                Ok(None) => break,
                Err(_) => return (seen, false),
                Ok(Some((frame, used))) => {
                    let mut again = Vec::new();
                    frame.write(&mut again);
                    assert!(again.len() <= used, "one form, or a reason that was cut");
                    match inflow.take(frame) {
                        Ok(got) => seen.push(format!("{got:?}")),
                        Err(_) => return (seen, false),
                    }
                    buffer.drain(..used);
                }
            }
        }
    }
    (seen, true)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&step, wire)) = bytes.split_first() else { return };
    assert_eq!(run(wire, wire.len().max(1)), run(wire, usize::from(step).max(1)));
    if let Ok(Some((greeting, used))) = Greeting::read(wire) {
        assert!(used <= wire.len());
        let mut again = Vec::new();
        greeting.write(&mut again);
        let read = Greeting::read(&again).expect("what we write can be read");
        let (read, _) = read.expect("it is whole");
        if !matches!(greeting, Greeting::Refused { .. }) {
            assert_eq!(read, greeting);
        }
    }
});
