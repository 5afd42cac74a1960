//! A laboratory: many machines on one, made of namespaces, with a network between them that can be broken.
//!
//! What holds it together is the kernel. The keeper of a lab is the first process of a process namespace, and every machine
//! is a process namespace inside that one: when the keeper dies, however, all in it is killed. Network and mounts belong to
//! those processes and go with them. The host's own network and mounts are never touched.
//!
//! Without root all of it lies in a user namespace.

mod cable;
mod carrier;
mod machine;
mod mounts;
mod rules;
mod spaces;

pub use cable::{Bridge, dress};
pub use carrier::{Carrier, Way};
pub use machine::{Reaped, reap, signal_all};
pub use mounts::{Private, furnish, lay_over, on_its_own};
pub use rules::{RULES_MAX, Rule, Rules, What};
pub use spaces::{
    Ground, HostPids, Join, Keeper, Refused, die_with_parent, enter_ground, join, spawn_machine,
};
