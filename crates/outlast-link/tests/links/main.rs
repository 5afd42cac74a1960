//! Links over real sockets: who is let in, what arrives, what waits, what ends.

mod certificates;
mod harness;
mod life;
mod refusals;
mod traffic;
