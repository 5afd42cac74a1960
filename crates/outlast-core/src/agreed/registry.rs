//! Which nodes belong to the cluster, under ids that are never given twice.
//!
//! A node's id stands for its disk: what it voted and promised lies there. A node that comes back without its disk must
//! not go on under its old id; it replaces that id by a fresh one, and the old one never comes back.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use core::fmt;

use super::Stamp;
#[cfg(test)]
use super::bugs::{Bug, instead};
use super::form::{coded_enum, coded_struct};
use super::history::History;
use super::limits::{Limit, REMOVED_KEPT};
use super::reply::{Refusal, Reply};

/// What a node does for agreement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeRole {
    /// Holds the log and counts for a majority.
    Voter,
    /// Holds the log and does not count.
    Learner,
    /// Holds the log and counts for a majority, but is not there to work: it hands the lead on to a voter.
    Witness,
}

coded_enum!(NodeRole, "a role of a node that is not known here", {
    1 = Voter, 2 = Learner, 3 = Witness,
});

impl NodeRole {
    pub fn votes(self) -> bool {
        match self {
            NodeRole::Voter | NodeRole::Witness => true,
            NodeRole::Learner => false,
        }
    }
}

impl fmt::Display for NodeRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            NodeRole::Voter => "voter",
            NodeRole::Learner => "learner",
            NodeRole::Witness => "witness",
        })
    }
}

/// A node that belongs to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub role: NodeRole,
    pub address: String,
    pub joined: Stamp,
}

coded_struct!(Node { name, role, address, joined });

/// What can happen to the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeCommand {
    /// A node without an id joins. If its name has joined before, `replaces` names the id that is lost with its disk.
    Join {
        name: String,
        role: NodeRole,
        address: String,
        replaces: Option<u64>,
    },
    /// A node that has an id is back. Its disk must reach back to its joining, else it counts as empty.
    Return {
        id: u64,
        name: String,
        address: String,
        disk_index: u64,
    },
    SetRole {
        id: u64,
        role: NodeRole,
    },
    Remove {
        id: u64,
    },
}

coded_enum!(NodeCommand, "a command about nodes that is not known here", {
    1 = Join { name, role, address, replaces }, 2 = Return { id, name, address, disk_index },
    3 = SetRole { id, role }, 4 = Remove { id },
});

impl NodeCommand {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self {
            NodeCommand::Join { name, address, .. } | NodeCommand::Return { name, address, .. } => {
                Limit::NameBytes.name(name)?;
                Limit::AddressBytes.name(address)
            }
            NodeCommand::SetRole { .. } | NodeCommand::Remove { .. } => Ok(()),
        }
    }

    /// Applied twice, it comes to the same.
    pub(super) fn repeatable(&self) -> bool {
        match self {
            NodeCommand::Remove { .. } => true,
            // An old address or role must not come back.
            NodeCommand::Join { .. } | NodeCommand::Return { .. } | NodeCommand::SetRole { .. } => {
                false
            }
        }
    }
}

/// The nodes of the cluster, and the ids of those that left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registry {
    nodes: BTreeMap<u64, Node>,
    removed: BTreeSet<u64>,
    /// Every id below this that is not registered was removed or never given.
    removed_below: u64,
}

coded_struct!(Registry { nodes, removed, removed_below });

impl Registry {
    pub fn nodes(&self) -> &BTreeMap<u64, Node> {
        &self.nodes
    }

    pub fn id_of(&self, name: &str) -> Option<u64> {
        self.nodes.iter().find(|(_, node)| node.name == name).map(|(&id, _)| id)
    }

    pub fn was_removed(&self, id: u64) -> bool {
        !self.nodes.contains_key(&id) && (id < self.removed_below || self.removed.contains(&id))
    }

    /// The node of this id, or why there is none.
    pub(super) fn known(&self, id: u64) -> Result<&Node, Refusal> {
        self.nodes.get(&id).ok_or(if self.was_removed(id) {
            Refusal::WasRemoved { id }
        } else {
            Refusal::NotRegistered { id }
        })
    }

    pub(super) fn apply(
        &mut self,
        at: Stamp,
        command: &NodeCommand,
        history: &mut History,
    ) -> Result<Reply, Refusal> {
        match command {
            NodeCommand::Join { name, role, address, replaces } => {
                let node =
                    Node { name: name.clone(), role: *role, address: address.clone(), joined: at };
                self.join(at, node, *replaces, history)
            }
            NodeCommand::Return { id, name, address, disk_index } => {
                let known = self.known(*id)?;
                if known.name != *name {
                    return Err(Refusal::OtherName { id: *id });
                }
                // The id is the index of the entry that gave it: a disk that ends before it has never had it.
                if disk_index < id {
                    return Err(Refusal::EmptyDisk { id: *id });
                }
                if let Some(node) = self.nodes.get_mut(id) {
                    node.address.clone_from(address);
                }
                Ok(Reply::Joined { id: *id })
            }
            NodeCommand::SetRole { id, role } => {
                self.known(*id)?;
                if !role.votes() {
                    self.keeps_a_voter_without(*id)?;
                }
                if let Some(node) = self.nodes.get_mut(id) {
                    node.role = *role;
                    history.add(at, *id, &format!("{} is a {role} now", node.name));
                }
                Ok(Reply::Done)
            }
            NodeCommand::Remove { id } => {
                self.known(*id)?;
                self.keeps_a_voter_without(*id)?;
                if let Some(node) = self.remove(*id) {
                    history.add(at, *id, &format!("{} left the cluster", node.name));
                }
                Ok(Reply::Done)
            }
        }
    }

    fn join(
        &mut self,
        at: Stamp,
        node: Node,
        replaces: Option<u64>,
        history: &mut History,
    ) -> Result<Reply, Refusal> {
        let before = self.id_of(&node.name);
        match (before, replaces) {
            (Some(id), replaces) if replaces != Some(id) => return Err(Refusal::HasJoined { id }),
            (None, Some(id)) => {
                return Err(self.known(id).err().unwrap_or(Refusal::OtherName { id }));
            }
            (Some(_) | None, Some(_) | None) => {}
        }
        if let Some(lost) = before {
            if !node.role.votes() {
                self.keeps_a_voter_without(lost)?;
            }
            #[cfg(test)]
            if instead(Bug::WipedDiskKeepsId, false, true) {
                return Ok(Reply::Joined { id: lost });
            }
            self.remove(lost);
        }
        Limit::Nodes.holds(self.nodes.len() + 1)?;
        let text = match before {
            None => format!("{} joined as a {}", node.name, node.role),
            Some(lost) => format!("{} joined anew, {lost} and its disk are lost", node.name),
        };
        history.add(at, at.index, &text);
        self.nodes.insert(at.index, node);
        Ok(Reply::Joined { id: at.index })
    }

    fn keeps_a_voter_without(&self, id: u64) -> Result<(), Refusal> {
        let voted = self.nodes.get(&id).is_some_and(|node| node.role.votes());
        let others = self.nodes.iter().any(|(&other, node)| other != id && node.role.votes());
        if voted && !others { Err(Refusal::LastVoter) } else { Ok(()) }
    }

    fn remove(&mut self, id: u64) -> Option<Node> {
        let node = self.nodes.remove(&id)?;
        self.removed.insert(id);
        while self.removed.len() > REMOVED_KEPT
            && let Some(lowest) = self.removed.pop_first()
        {
            self.removed_below = self.removed_below.max(lowest.saturating_add(1));
        }
        Some(node)
    }
}
