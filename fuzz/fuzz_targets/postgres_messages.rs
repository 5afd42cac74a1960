//! What client and server of PostgreSQL say: no panic, and it does not matter in which pieces it arrives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outlast_proxy::postgres::params::Parameters;
use outlast_proxy::postgres::talk::{Heard, Talk};
use outlast_proxy::postgres::words::{Words, binds};

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, rest)) = bytes.split_first() else { return };
    let at = usize::from(first).min(rest.len());
    let mut words = Words::default();
    words.read(&rest[..at]);
    words.read(&rest[at..]);
    assert_eq!(words.end(), binds(rest));
    // Both sides take turns, each with a piece as long as its first byte says.
    let (mut whole, mut pieces) = (Talk::new(Parameters::default()), Talk::new(Parameters::default()));
    let (mut left, mut front) = (rest, true);
    while let Some((&length, after)) = left.split_first() {
        let (said, later) = after.split_at(usize::from(length).min(after.len()));
        if front {
            let one = whole.front(said);
            let other = said.chunks(3).try_for_each(|piece| pieces.front(piece));
            assert_eq!(one.is_ok(), other.is_ok());
            if one.is_err() {
                return;
            }
        } else {
            let one = whole.back(said);
            let mut other = Ok(Heard::All);
            for piece in said.chunks(3) {
                other = pieces.back(piece);
                if other != Ok(Heard::All) {
                    break;
                }
            }
            // Whether a server leaves is seen from as much of its error as has come.
            if one != Ok(Heard::All) || other != Ok(Heard::All) {
                return;
            }
        }
        assert_eq!((whole.at_rest(), whole.quiet(), whole.bound()), (pieces.at_rest(), pieces.quiet(), pieces.bound()));
        (left, front) = (later, !front);
    }
});
