//! Senses and hands on one machine: probes, processes, the journal, vital signs.
//!
//! Everything here reads or does; nothing decides. Decisions live in `outlast-core`.

pub mod capabilities;
pub mod clock;
pub mod command;
pub mod handle;
pub mod journal;
pub mod lab;
mod leader;
pub mod probe;
pub mod process;
#[cfg(test)]
mod scratch;
pub mod steady;
mod text;
pub mod vitals;
