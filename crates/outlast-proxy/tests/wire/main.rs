//! The data plane as its neighbours see it: real sockets before it and behind it, scripted byte by byte.
//!
//! One binary, so that it is linked once and its tests share the machine's cores.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside the test functions themselves")]
#![expect(clippy::cast_possible_truncation, reason = "patterns of bytes made from counters")]

mod drain;
mod fence;
mod gone;
mod h2;
mod harness;
mod http;
mod lack;
mod malformed;
mod postgres;
mod retry;
mod tcp;
mod tls;
mod vouch;
