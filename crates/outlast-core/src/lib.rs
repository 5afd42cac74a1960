//! The words and the decisions of outlast.
//!
//! Everything here is plain data and pure functions: no clock, no I/O, no randomness, no async. Time comes in as an
//! argument, so that a simulator can drive a decision through millions of faults.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod address;
pub mod agent;
pub mod agreed;
pub mod codec;
pub mod container;
pub mod database;
pub mod event;
pub mod health;
pub mod heartbeat;
pub mod linear;
pub mod names;
pub mod observers;
pub mod pair;
pub mod proxies;
#[cfg(test)]
mod sim;
pub mod time;
pub mod topology;
pub mod units;
pub mod view;
pub mod vrrp;
