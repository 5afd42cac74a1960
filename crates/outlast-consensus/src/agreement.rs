//! What the rest of the agent holds of an agreement, whichever engine is behind it: our own log, or an etcd cluster.

use std::fmt;
use std::pin::Pin;

use outlast_core::codec::Malformed;
use outlast_core::time::Instant;
use outlast_raft::{Change, Index, NodeId, Position, Refusal, Term};
use tokio::sync::watch;

use crate::boottime;
use crate::engine::{Applied, Consensus, ProposeError, ReadError};
use crate::standing::Standing;

/// What an engine will say.
pub type Answering<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A node's part in the agreement. What has been applied is watched through the [`Machine`](crate::Machine) that the
/// engine was started with.
pub trait Agreement: fmt::Debug + Send + Sync {
    /// Has a command agreed on; returns once it has been applied here.
    fn propose(&self, command: Vec<u8>) -> Answering<'_, Result<Applied, ProposeError>>;

    /// The same for what this node has decided as the leader of this term: it is refused if this node does not lead in it
    /// any more once it is its turn.
    fn propose_as_leader(
        &self,
        term: Term,
        command: Vec<u8>,
    ) -> Answering<'_, Result<Applied, ProposeError>>;

    /// Returns once everything that anybody knew of when it was called has been applied here.
    fn read(&self) -> Answering<'_, Result<Index, ReadError>>;

    /// Changes one member; returns once the change is on its way.
    fn change(&self, change: Change) -> Answering<'_, Result<Position, Refusal>>;

    /// Hands the lead to another node.
    fn transfer(&self, to: NodeId) -> Answering<'_, Result<(), Refusal>>;

    /// Who takes part, who leads, and how fresh that is; changes can be waited for.
    fn standing(&self) -> watch::Receiver<Standing>;

    /// Until when this node may do what only the leader does. Unless its lead is handed over (see [`Standing::handed`]),
    /// nobody else leads before that, even if this node dies.
    fn acts_until(&self) -> Instant;

    /// Whether this node may do, right now, what only the leader does.
    fn may_act(&self) -> bool {
        boottime() < self.acts_until()
    }

    /// What another node's part has to say, if `honest` says that its sender is who it says.
    fn deliver(
        &self,
        bytes: &[u8],
        honest: &mut dyn FnMut(NodeId) -> bool,
    ) -> Result<(), Malformed>;
}

impl Agreement for Consensus {
    fn propose(&self, command: Vec<u8>) -> Answering<'_, Result<Applied, ProposeError>> {
        Box::pin(Consensus::propose(self, command))
    }

    /// Our own log takes in nothing from a node that does not lead.
    fn propose_as_leader(
        &self,
        term: Term,
        command: Vec<u8>,
    ) -> Answering<'_, Result<Applied, ProposeError>> {
        Box::pin(Consensus::propose_in(self, Some(term), command))
    }

    fn read(&self) -> Answering<'_, Result<Index, ReadError>> {
        Box::pin(Consensus::read(self))
    }

    fn change(&self, change: Change) -> Answering<'_, Result<Position, Refusal>> {
        Box::pin(Consensus::change(self, change))
    }

    fn transfer(&self, to: NodeId) -> Answering<'_, Result<(), Refusal>> {
        Box::pin(Consensus::transfer(self, to))
    }

    fn standing(&self) -> watch::Receiver<Standing> {
        Consensus::standing(self)
    }

    fn acts_until(&self) -> Instant {
        Consensus::acts_until(self)
    }

    fn deliver(
        &self,
        bytes: &[u8],
        honest: &mut dyn FnMut(NodeId) -> bool,
    ) -> Result<(), Malformed> {
        Consensus::deliver(self, bytes, honest)
    }
}
