//! The binary and the agent loop.

pub mod export;
pub mod report;
