//! What the log is fed to: a chain of hashes, the smallest thing that tells two pasts apart, and in some runs everything
//! that nodes really agree on.

use outlast_core::agreed::{self, Agreed, Reply, Watched};
use outlast_core::codec::{Code, Malformed, Reader};
use outlast_raft::{Entry, Index, Payload};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) applied: Index,
    pub(crate) digest: u64,
    pub(crate) agreed: Option<Box<Agreed>>,
}

impl Machine {
    /// Before the first entry.
    pub(crate) fn new(agreed: bool) -> Machine {
        Machine { agreed: agreed.then(Box::default), ..Machine::default() }
    }

    pub(crate) fn apply(&mut self, entry: &Entry) -> Option<Reply> {
        self.applied = entry.index;
        self.digest = mix(self.digest, hash(entry));
        let agreed = self.agreed.as_mut()?;
        match &entry.payload {
            Payload::Command(bytes) => {
                let command = agreed::Entry::from_bytes(bytes).expect("only entries are proposed");
                Some(agreed.apply(entry.index, &command))
            }
            Payload::Blank | Payload::Members(_) => None,
        }
    }

    /// Whether what was applied last has written or deleted a key.
    pub(crate) fn has_changed_keys(&self) -> bool {
        let Some(agreed) = &self.agreed else { return false };
        match agreed.changes(self.applied, b"", 1) {
            Watched::Changes { changes, .. } => !changes.is_empty(),
            Watched::Compacted { .. } => false,
        }
    }
}

pub(crate) fn hash(entry: &Entry) -> u64 {
    let bytes: &[u8] = match &entry.payload {
        Payload::Command(bytes) => bytes,
        Payload::Blank => b"blank",
        Payload::Members(members) => return mix(entry.term, members.voters.len() as u64),
    };
    hash_bytes(entry.term, bytes)
}

/// FNV-1a, 64 bits.
pub(crate) fn hash_bytes(seed: u64, bytes: &[u8]) -> u64 {
    let seed = 0xcbf2_9ce4_8422_2325 ^ seed;
    bytes.iter().fold(seed, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn mix(a: u64, b: u64) -> u64 {
    (a.rotate_left(5) ^ b).wrapping_mul(0x517c_c1b7_2722_0a95)
}

impl Code for Machine {
    fn encode(&self, to: &mut Vec<u8>) {
        self.applied.encode(to);
        self.digest.encode(to);
        self.agreed.is_some().encode(to);
        if let Some(agreed) = &self.agreed {
            to.extend(agreed.snapshot());
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Machine, Malformed> {
        let (applied, digest) = (u64::decode(from)?, u64::decode(from)?);
        let agreed =
            if bool::decode(from)? { Some(Box::new(Agreed::restore(from.rest())?)) } else { None };
        Ok(Machine { applied, digest, agreed })
    }
}
