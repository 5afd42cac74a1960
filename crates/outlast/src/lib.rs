//! The binary and the agent loop.

pub mod file;
