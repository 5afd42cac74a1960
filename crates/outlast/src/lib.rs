//! The binary and the agent loop.
