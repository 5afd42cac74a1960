//! One node's hands on addresses that move between nodes.
//!
//! Nothing here decides who has an address. In the mode `lease` somebody else knows until when this node may have it, and
//! [`Guard`] sees to it that the kernel holds to that by itself, also when this process is dead, stopped or late:
//!
//! - nftables drops what is meant for an address, asks for it or comes from it, unless the address is in a set whose
//!   elements the kernel forgets at the end of the lease, to a few milliseconds;
//! - the address itself has a lifetime of seconds, so that nothing is left for long.
//!
//! A [`Guardian`] is a small process that ends both at once when this one dies. [`Rivals`] hears others who claim an
//! address, and sees links go up and down. [`vrrp`] has the sockets of the mode without a quorum.
//!
//! Moments are of the clock that goes on while the machine is suspended ([`boottime`]). The kernel's own ends do not count
//! that time: a machine that was suspended comes back with the rest of its lease, until somebody looks at the clock.

mod address;
mod announce;
mod clock;
mod error;
mod guard;
mod guardian;
mod rivals;
mod tables;
pub mod vrrp;

pub use address::{ADDRESSES_MAX, Place};
pub use announce::{ANNOUNCE_AT, ANNOUNCE_EVERY, QUIET_MIN, Timetable};
pub use clock::boottime;
pub use error::Error;
pub use guard::{GRANT_MAX, Guard};
pub use guardian::{Ended, GOODBYE_MAX, Guardian, READY_MAX, guardian};
pub use rivals::{Event, RIVAL_QUIET, Rivals};
