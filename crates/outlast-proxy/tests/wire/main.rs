//! The data plane as its neighbours see it: real sockets before it and behind it, scripted byte by byte.
//!
//! One binary, so that it is linked once and its tests share the machine's cores.

mod drain;
mod h2;
mod harness;
mod http;
mod malformed;
mod retry;
mod tcp;
mod tls;
