//! One node's PostgreSQL: the process, its role, its replication, its copies.
//!
//! Everything here reads or does what it is told; who is to be primary is decided elsewhere. [`Postgres`] is the
//! instance of this node, [`keeper`] the small process between the agent and the postmaster that ends it when its time
//! is over, as a thread of the agent's does, [`storage`] the look at the disk that nothing else waits for.
//!
//! A life, in order: [`Postgres::adopt`] what an earlier agent left running. If nothing does, [`Postgres::inspect`] the
//! disk, and [`Postgres::create`], [`Postgres::clone_from`] or [`Postgres::start`]. Then [`Postgres::look`], again and
//! again, and [`Postgres::set_fuse`] with every lease.
//!
//! - **Failover.** The standby that is chosen: [`Postgres::stop_receiving`], which is the moment from which the old
//!   primary gets no acknowledgement from it; [`Postgres::set_sync`]; [`Postgres::promote`]; [`Postgres::ensure_slots`];
//!   [`Postgres::checkpoint`]. Then the others [`Postgres::follow`].
//! - **Return of an old primary.** Whether its log is a part of the new primary's is decided by reigns, outside of this crate.
//!   Then [`Postgres::start`] as a standby, [`Postgres::rewind`] or [`Postgres::clone_from`].
//! - **Switchover.** [`Postgres::close`] the primary, wait until the standby has replayed to the place that it returned,
//!   [`Postgres::stop`] the primary, and go on as above. To call it off, [`Postgres::open`].
//!
//! Every order may be given twice. After an error nothing is assumed: look again.

mod account;
mod cgroup;
mod clock;
mod conf;
mod control;
mod copy;
mod data;
mod error;
mod fence;
mod files;
mod hba;
pub mod keeper;
mod look;
mod lsn;
mod parameters;
mod postgres;
mod proc;
mod quiet;
mod replicate;
mod role;
mod settings;
mod slots;
mod sql;
pub mod storage;
mod tool;
mod trial;
mod wal;
mod wire;

pub use clock::Moment;
pub use conf::{Mode, Quorum};
pub use control::{Control, State};
pub use copy::{Bytes, Copied};
pub use data::{ASIDE_MAX, Disk};
pub use error::Error;
pub use hba::fault as hba_fault;
pub use look::{Fault, LOOK_LIMIT, LookError, Receiver, Role, Seen, Slot, Standby, WalStatus};
pub use lsn::{Lsn, NoLsn};
pub use parameters::{Demands, Refused, refused};
pub use postgres::{Adoption, Ended, Postgres, ProcessState, STUCK_AFTER, Starting, StopHow};
pub use replicate::Stopped;
pub use role::Write;
pub use settings::{Address, Settings, Tls, Upstream};
pub use slots::{Followers, slot_name};
pub use trial::{Trial, try_parameters};
