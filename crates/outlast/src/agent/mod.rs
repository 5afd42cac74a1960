//! The agent: one per node. It reads what happens, calls the core, and does what the core says.
//!
//! Everything that happens comes in through one bounded inbox and is handled by one task, so that there is one order of events.

pub mod admin;
pub mod face;
pub mod shared;
pub mod table;

mod ports;
mod probes;
mod processes;
mod proxy;
mod run;
mod standby;
mod start;
mod state;

pub use run::run;
pub use start::Options;
