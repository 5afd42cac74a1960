//! Agreement through an etcd cluster that is there already: the same commands in the same order on every node, with no log
//! of our own.
//!
//! The log is a row of keys. A batch of entries is appended by a transaction that names the end of the log as this node
//! has applied it (its index, and the hash of all before it), so that no index is given twice and none is left out. Nodes
//! hear of it by a watch, which may miss or repeat what it likes: what counts is that each batch names the hash before it.
//! The newest is what a linearizable read of the log's end says. Who leads stands in a key of its own (`chair.rs`).

mod chair;
mod client;
mod engine;
mod form;
mod mark;
mod message;
mod news;
mod part;
mod queue;
mod store;
mod wire;

pub use client::{Endpoint, Tls};
pub use mark::path as mark_path;
pub use part::{Etcd, Roll, SNAPSHOT_AFTER, SNAPSHOT_AFTER_BYTES, Settings};
