//! The wire between the nodes of outlast: one verified connection per pair of nodes, many channels.
//!
//! [`Links::start`] listens for and dials the other nodes of a topology, by mutual TLS 1.3 with certificates of the
//! cluster's own CA. Messages go by [`Channel`]: what consensus says is never behind a snapshot. A node that is slow,
//! silent, or not what it says it is costs the others nothing: every queue has a bound for each node and channel, and
//! whoever has not shown who it is gets little room and little time.
//!
//! Nothing here decides what messages mean.

mod connection;
mod event;
mod handshake;
mod identity;
pub mod inflow;
pub mod limits;
mod links;
mod outbox;
mod peer;
mod requests;
pub mod wire;

pub use event::{LinkEvent, PeerHello, Refusal, RefusalKind};
pub use identity::{Identity, IdentityError, IdentityFiles, NODE_SUFFIX, Pem, certificate_name};
pub use links::{
    Channel, Config, Inbox, Inboxes, Incoming, Links, Requests, Security, StartError, Timing,
};
pub use peer::{ConnectionStatus, PeerStatus};
pub use requests::{Reply, Request, RequestError, SendError};
