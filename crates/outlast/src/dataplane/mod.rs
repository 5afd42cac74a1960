//! The data plane's process and the agent's link to it.
//!
//! The proxy runs as a process of its own, from the same binary. The agent opens the listening sockets and passes them on; the
//! proxy keeps the last table and goes on serving when its agent dies. A new agent finds it by its control socket
//! (`proxy-PID.sock` in the data directory), and either adopts it or, if the binary has changed, starts a successor with the
//! same sockets and lets the old one drain.

pub mod link;
pub mod process;
pub mod wire;
