//! How nodes agree: a log that a majority holds, in the same order everywhere.
//!
//! This is Raft (Ongaro and Ousterhout 2014; Ongaro's thesis for membership, transfer and reads) as a pure machine:
//! messages, ends of writes and the time go in, messages to send and writes to make come out. Three rules are added because
//! each two of them without the third can livelock: pre-vote, votes that are refused while a leader is heard, and a leader
//! that steps down when no majority has answered it lately.
//!
//! What whoever drives [`Node`] must do is written at [`Action`].
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod crc;
mod entry;
mod leader;
mod log;
mod message;
mod node;
mod plant;
pub mod wal;

pub use entry::{Entry, HardState, Index, Members, NodeId, Payload, Saved, Snapshot, Term};
pub use leader::Change;
pub use message::{Append, AppendReply, Body, Message, SnapshotChunk};
pub use node::{Action, Config, Input, Node, Position, Refusal, Role, Status, Ticket, Write};
#[cfg(feature = "plant")]
pub use plant::Bug;

#[cfg(test)]
mod tests;
