//! A cluster in one thread: nodes that agree, on clocks that drift, over a network that loses, doubles and delays, with
//! disks that tear and hang, under crashes, pauses and changes of members. A seed decides everything.
//!
//! [`run`] leads one seed through a time of faults, checking after every event what must hold always, then heals the
//! cluster and demands that it serves. The same seed gives the same log, byte for byte.

mod check;
mod clients;
mod clock;
mod disk;
mod faults;
mod holders;
mod machine;
mod network;
mod plan;
mod random;
mod stage;
mod users;
mod world;

pub use disk::Disk;
pub use holders::Slip;
pub use plan::{Faults, Plan};
pub use stage::Stage;
pub use world::{Outcome, Violation, run};
