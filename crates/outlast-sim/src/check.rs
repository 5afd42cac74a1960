//! What must hold always, whatever happens.

use std::collections::BTreeMap;

use outlast_core::agreed::ClientId;
use outlast_core::codec::Code as _;
use outlast_raft::{Entry, Index, NodeId, Payload, Position, Term};

use crate::machine::{self, Machine};

/// The one past that everybody shares.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    leaders: BTreeMap<Term, NodeId>,
    /// Term and hash of what was applied at each index by whoever was first.
    past: Vec<(Term, u64)>,
    digests: BTreeMap<Index, u64>,
    snapshots: BTreeMap<Index, u64>,
    /// Where each client's command took effect.
    effects: BTreeMap<(ClientId, u64), Index>,
    /// The newest entry that any client knows of: by its own write, or by a read.
    pub(crate) known: Index,
}

impl Checker {
    pub(crate) fn leads(&mut self, node: NodeId, term: Term) -> Result<(), String> {
        let leader = *self.leaders.entry(term).or_insert(node);
        if leader == node {
            Ok(())
        } else {
            Err(format!("term {term} has two leaders, {leader} and {node}"))
        }
    }

    pub(crate) fn applied(&mut self, node: NodeId, entry: &Entry) -> Result<(), String> {
        let at = usize::try_from(entry.index).expect("small") - 1;
        let this = (entry.term, machine::hash(entry));
        match self.past.get(at) {
            None if at == self.past.len() => self.past.push(this),
            None => return Err(format!("node {node} applies {} after a gap", entry.index)),
            Some(&first) if first == this => {}
            Some(first) => {
                return Err(format!(
                    "node {node} applies another entry at {}: {this:?}, before it was {first:?}",
                    entry.index
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn state(&mut self, node: NodeId, machine: &Machine) -> Result<(), String> {
        let first = *self.digests.entry(machine.applied).or_insert(machine.digest);
        if first == machine.digest {
            Ok(())
        } else {
            Err(format!("node {node} has another state at {}", machine.applied))
        }
    }

    /// Everybody's snapshot of an index is the same, byte for byte.
    pub(crate) fn snapshot(
        &mut self,
        node: NodeId,
        index: Index,
        bytes: &[u8],
    ) -> Result<(), String> {
        let hash = machine::hash_bytes(0, bytes);
        if *self.snapshots.entry(index).or_insert(hash) == hash {
            Ok(())
        } else {
            Err(format!("node {node} has another snapshot of {index}"))
        }
    }

    /// A write of a client changes something once, wherever in the log it stands a second time.
    pub(crate) fn took_effect(&mut self, entry: &Entry, changed: bool) -> Result<(), String> {
        let (Payload::Command(bytes), true) = (&entry.payload, changed) else { return Ok(()) };
        let Ok(command) = outlast_core::agreed::Entry::from_bytes(bytes) else { return Ok(()) };
        let key = (command.origin, command.sequence);
        let first = *self.effects.entry(key).or_insert(entry.index);
        if first == entry.index {
            Ok(())
        } else {
            Err(format!("{command:?} takes effect at {first} and again at {}", entry.index))
        }
    }

    /// A client was told that its command has taken effect.
    pub(crate) fn acknowledged(&mut self, position: Position) -> Result<(), String> {
        let at = usize::try_from(position.index).expect("small") - 1;
        if self.past.get(at).is_none_or(|&(term, _)| term != position.term) {
            return Err(format!("{position:?} was acknowledged and is not what was applied"));
        }
        self.known = self.known.max(position.index);
        Ok(())
    }

    /// A read that began when `floor` was known has been answered from a state as of `index`.
    pub(crate) fn read(&mut self, index: Index, floor: Index) -> Result<(), String> {
        if index < floor {
            return Err(format!("a read shows {index} after {floor} was known"));
        }
        self.known = self.known.max(index);
        Ok(())
    }
}
