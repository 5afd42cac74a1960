//! How a cluster begins: the first of its voters founds it once all of them are there, and the others join it.
//!
//! One founder, so that there cannot be two beginnings. Each voter's disk is named in the first state: a voter that comes
//! later with another disk is known, and refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outlast_consensus::{Members, NodeId, Snapshot};
use outlast_core::agreed::{
    Agreed, ClientId, Command, Entry, Expected, Hash, KvCommand, NodeCommand, NodeRole, Reply,
};
use outlast_core::time::Timestamp;
use outlast_core::topology::{ConsensusKind, Topology};

/// Keys below this are ours; people's commands do not reach them.
pub(super) const OWN_KEYS: &[u8] = b"outlast/";

/// Who has taken an id: the token of a disk.
pub(super) fn claim_key(id: u64) -> Vec<u8> {
    [OWN_KEYS, b"claim/", id.to_string().as_bytes()].concat()
}

/// How a cluster of this topology begins.
#[derive(Clone, Debug)]
pub(super) struct Founding {
    /// Who has to be there, by name.
    pub(super) voters: BTreeSet<String>,
    /// All nodes, and where they are reached.
    nodes: BTreeMap<String, String>,
    /// Stands for all of it: who would found another cluster has another.
    pub(super) plan: u64,
}

impl Founding {
    pub(super) fn of(topology: &Topology) -> Founding {
        let named: BTreeSet<String> = topology.consensus.voters.iter().cloned().collect();
        let voters =
            if named.is_empty() { topology.nodes.keys().cloned().collect() } else { named };
        let nodes = topology.link_addresses().into_iter();
        let nodes: BTreeMap<String, String> =
            nodes.map(|(name, address)| (name, address.to_string())).collect();
        let through = match topology.consensus.kind {
            ConsensusKind::Embedded => "",
            ConsensusKind::Etcd { .. } => " etcd",
        };
        let Hash(hash) = Hash::of(format!("{voters:?} {nodes:?}{through}").as_bytes());
        let plan = u64::from_le_bytes(*hash.first_chunk().expect("a hash is longer than that"));
        Founding { voters, nodes, plan }
    }

    /// The voter that founds.
    pub(super) fn founder(&self) -> Option<&str> {
        self.voters.first().map(String::as_str)
    }

    /// The first state, and the id of each node in it. `tokens` stand for the voters' disks.
    pub(super) fn begin(
        &self,
        tokens: &BTreeMap<String, u64>,
    ) -> (Snapshot, BTreeMap<String, u64>) {
        let mut agreed = Agreed::default();
        let mut index = 0;
        let mut apply = |agreed: &mut Agreed, origin, sequence, command| {
            index += 1;
            // No clock: it would differ.
            let entry = Entry { origin, sequence, wall: Timestamp(0), command };
            (index, agreed.apply(index, &entry))
        };
        let (_, introduced) = apply(&mut agreed, ClientId::NOBODY, 0, Command::Introduce);
        let Reply::Introduced { client } = introduced else {
            unreachable!("an empty machine introduces whoever asks")
        };
        let client = ClientId(client);
        let mut ids = BTreeMap::new();
        let mut members = Members::default();
        let mut sequence = 0;
        for (name, address) in &self.nodes {
            let votes = self.voters.contains(name);
            let role = if votes { NodeRole::Voter } else { NodeRole::Learner };
            sequence += 1;
            let join = NodeCommand::Join {
                name: name.clone(),
                role,
                address: address.clone(),
                replaces: None,
            };
            let (id, _) = apply(&mut agreed, client, sequence, Command::Node(join));
            if votes { &mut members.voters } else { &mut members.learners }.insert(NodeId(id));
            ids.insert(name.clone(), id);
        }
        for (name, id) in &ids {
            if let Some(token) = tokens.get(name) {
                sequence += 1;
                let claim = KvCommand::Cas {
                    key: claim_key(*id),
                    expected: Expected::Absent,
                    value: token.to_string().into_bytes(),
                    session: None,
                };
                apply(&mut agreed, client, sequence, Command::Kv(claim));
            }
        }
        let data = Arc::from(agreed.snapshot());
        (Snapshot { index, term: 0, members, data }, ids)
    }
}
