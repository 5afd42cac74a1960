//! How this node stands among the others.

use std::time::Duration;

use outlast_raft::{Index, Members, NodeId, Role, Status, Term};

/// A picture of a node's part in the agreement, at most a fifth of a second old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub id: NodeId,
    pub role: Role,
    pub term: Term,
    pub leader: Option<NodeId>,
    pub members: Members,
    /// A majority has this much of the log.
    pub commit: Index,
    pub last: Index,
    /// Of the log, on this node's disk.
    pub durable: Index,
    pub snapshot: Index,
    /// How old the question is that a majority has answered last, where this node knows: of our own log, the leader.
    pub quorum_age: Option<Duration>,
    /// A leader that may do what only a leader does, at the time of the picture.
    pub may_act: bool,
    /// What a leader before this one gave out for the rest of its lease may still count: it ended before that.
    pub handed: bool,
    /// Whether commands are proposed and the newest is asked for at this node itself; else at the leader.
    pub serves: bool,
    /// What keeps this node from a majority, as far as it can tell.
    pub trouble: Option<String>,
    /// Why this node takes no part any more.
    pub failed: Option<String>,
}

impl Standing {
    /// Whether the next picture is worth waking whoever waits for one.
    pub(crate) fn is_news(&self, next: &Standing) -> bool {
        let known = (self.role, self.term, self.leader, self.may_act);
        known != (next.role, next.term, next.leader, next.may_act)
            || self.members != next.members
            || self.failed != next.failed
    }

    pub(crate) fn of(status: Status) -> Standing {
        let Status {
            id,
            role,
            term,
            leader,
            members,
            commit,
            last,
            durable,
            snapshot,
            quorum_age,
            may_act,
            handed,
        } = status;
        Standing {
            id,
            role,
            term,
            leader,
            members,
            commit,
            last,
            durable,
            snapshot,
            quorum_age,
            may_act,
            handed,
            serves: role == Role::Leader,
            trouble: None,
            failed: None,
        }
    }
}
