//! Agreement as a running thing: a node's share of the replicated log, on its own threads and its own files.
//!
//! [`Agreement`] is what the rest of the agent holds: propose a command and hear what it did, make sure that what is read
//! is newest, see who leads, change who takes part. [`Consensus`] is the engine that needs no other server. What is decided stands in `outlast-raft`, which has neither clock nor
//! files; here are the two threads around it. The one that steps never waits for a disk, the one that writes never waits
//! for a message, so neither traffic nor a slow sync can delay a heartbeat. A third one writes a snapshot down, now and
//! then, because a big state takes longer than that.

mod agreement;
mod clock;
mod disk;
mod engine;
mod standing;

pub use agreement::{Agreement, Answering};
pub use clock::boottime;
pub use disk::{DiskError, Home};
pub use engine::{
    Applied, Consensus, Machine, Outgoing, ProposeError, ReadError, Running, Settings,
};
pub use outlast_raft::{Change, Index, Members, NodeId, Position, Refusal, Role, Snapshot, Term};
pub use standing::Standing;
