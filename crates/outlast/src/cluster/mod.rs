//! This node among the others: links, the agreement, and what other parts of the agent may ask of both.
//!
//! All of it runs on threads of its own. The agent's loop and the traffic can be as busy as they like: heartbeats and votes
//! go out in time.

mod addresses;
mod agree;
mod answer;
mod ask;
mod databases;
pub mod door;
mod draw;
mod duties;
mod etcd;
mod found;
mod heartbeat;
pub(crate) mod identity;
mod lease;
mod names;
mod place;
mod replica;
mod share;
mod thread;
pub mod topology;
mod view;

pub use addresses::{Asked as AskedOfLeader, OfAddresses};
pub use databases::{AllHeard, Databases, HeardDatabases, PrimaryLease, PrimaryLeases, Secrets};
pub use heartbeat::HeartbeatKey;
pub use lease::LeaseWish;
pub use names::{NameSecrets, OfNames, Wanted, cookie_secret, new_secret, secrets_of, zone_key};
pub use share::{Answering, Asked, News, StandbyOrder};
pub use thread::{Cluster, OfDatabases, Settings};
pub use view::{ClusterView, PeerView, Phase};

/// Where, in its data directory, a node of a lab finds certificates that its file does not name.
pub const LAB_CERTS: &str = "lab-certs";

/// Whether the nodes of this topology agree with each other: one node has nobody to agree with.
pub fn wanted(topology: &outlast_core::topology::Topology) -> bool {
    topology.nodes.len() > 1
}
