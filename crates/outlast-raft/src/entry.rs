//! What the log holds, and what of it must be on disk.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use outlast_core::codec::{Code, Malformed, Reader, encode_bytes};

/// A member of the cluster: given out once, never again, also not to the same machine with an empty disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts leaders: at most one in each term.
pub type Term = u64;

/// A place in the log; the first entry has 1.
pub type Index = u64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub index: Index,
    pub term: Term,
    pub payload: Payload,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The first entry of each leader: only entries of its own term tell it what is committed.
    Blank,
    Command(Arc<[u8]>),
    Members(Members),
}

impl Payload {
    /// Bytes that count towards a message.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Payload::Blank => 16,
            Payload::Command(bytes) => bytes.len() + 16,
            Payload::Members(members) => 16 + 10 * (members.voters.len() + members.learners.len()),
        }
    }
}

/// Who holds the log. Voters decide; learners only follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    pub voters: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
}

impl Members {
    pub fn voters(voters: impl IntoIterator<Item = u64>) -> Members {
        Members { voters: voters.into_iter().map(NodeId).collect(), learners: BTreeSet::new() }
    }

    pub fn contains(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.learners.contains(&node)
    }

    pub fn all(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.voters.iter().chain(&self.learners).copied()
    }

    /// How many voters are a majority.
    pub fn majority(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// The greatest value that a majority of the voters has reached; `None`: too few have any.
    pub(crate) fn reached_by_majority<T: Ord + Copy>(
        &self,
        value: impl Fn(NodeId) -> Option<T>,
    ) -> Option<T> {
        let mut values: Vec<T> = self.voters.iter().filter_map(|&id| value(id)).collect();
        values.sort_unstable_by(|a, b| b.cmp(a));
        values.get(self.majority() - 1).copied()
    }
}

/// What a node may never forget: without it on disk it could vote twice in a term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: Term,
    pub voted_for: Option<NodeId>,
}

/// The state machine at an index, in place of the entries up to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub index: Index,
    pub term: Term,
    pub members: Members,
    pub data: Arc<[u8]>,
}

impl Snapshot {
    /// Before the first entry: who begins.
    pub fn begin(members: Members) -> Snapshot {
        Snapshot { index: 0, term: 0, members, data: Arc::from([]) }
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Snapshot { index, term, data, .. } = self;
        write!(f, "snapshot {index} of term {term}, {} bytes", data.len())
    }
}

/// What a disk gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    pub hard: HardState,
    pub snapshot: Snapshot,
    /// By index; they may begin before the snapshot's index.
    pub log: BTreeMap<Index, Entry>,
}

impl Saved {
    /// The disk of a node that has never run, in a cluster that begins with `members`.
    pub fn begin(members: Members) -> Saved {
        Saved {
            hard: HardState::default(),
            snapshot: Snapshot::begin(members),
            log: BTreeMap::new(),
        }
    }
}

impl Code for NodeId {
    fn encode(&self, to: &mut Vec<u8>) {
        self.0.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<NodeId, Malformed> {
        u64::decode(from).map(NodeId)
    }
}

impl Code for Members {
    fn encode(&self, to: &mut Vec<u8>) {
        outlast_core::codec::encode_list(self.voters.iter(), to);
        outlast_core::codec::encode_list(self.learners.iter(), to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Members, Malformed> {
        Ok(Members { voters: decode_set(from)?, learners: decode_set(from)? })
    }
}

fn decode_set(from: &mut Reader<'_>) -> Result<BTreeSet<NodeId>, Malformed> {
    let list = outlast_core::codec::decode_list::<NodeId>(from)?;
    if list.is_sorted_by(|a, b| a < b) {
        Ok(list.into_iter().collect())
    } else {
        Err(Malformed("members out of order"))
    }
}

impl Code for Entry {
    fn encode(&self, to: &mut Vec<u8>) {
        self.index.encode(to);
        self.term.encode(to);
        match &self.payload {
            Payload::Blank => to.push(0),
            Payload::Command(bytes) => {
                to.push(1);
                encode_bytes(bytes, to);
            }
            Payload::Members(members) => {
                to.push(2);
                members.encode(to);
            }
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Entry, Malformed> {
        let (index, term) = (u64::decode(from)?, u64::decode(from)?);
        let payload = match from.byte()? {
            0 => Payload::Blank,
            1 => {
                let count = from.count()?;
                Payload::Command(Arc::from(from.take(count)?))
            }
            2 => Payload::Members(Members::decode(from)?),
            _ => return Err(Malformed("an entry of an unknown kind")),
        };
        Ok(Entry { index, term, payload })
    }
}

impl Code for HardState {
    fn encode(&self, to: &mut Vec<u8>) {
        self.term.encode(to);
        self.voted_for.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<HardState, Malformed> {
        Ok(HardState { term: u64::decode(from)?, voted_for: Option::decode(from)? })
    }
}

impl Code for Snapshot {
    fn encode(&self, to: &mut Vec<u8>) {
        self.index.encode(to);
        self.term.encode(to);
        self.members.encode(to);
        encode_bytes(&self.data, to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Snapshot, Malformed> {
        let (index, term) = (u64::decode(from)?, u64::decode(from)?);
        let members = Members::decode(from)?;
        let count = from.count()?;
        Ok(Snapshot { index, term, members, data: Arc::from(from.take(count)?) })
    }
}
