//! Links over real sockets: who is let in, what arrives, what waits, what ends.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::cast_possible_truncation, reason = "patterns of bytes made from counters")]

mod certificates;
mod harness;
mod life;
mod refusals;
mod traffic;
