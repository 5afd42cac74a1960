//! The smallest state machine that tells two pasts apart: a chain of hashes over everything that was applied.

use outlast_core::codec::{Code, Malformed, Reader};
use outlast_raft::{Entry, Index, Payload};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) applied: Index,
    pub(crate) digest: u64,
}

impl Machine {
    pub(crate) fn apply(&mut self, entry: &Entry) {
        self.applied = entry.index;
        self.digest = mix(self.digest, hash(entry));
    }
}

/// FNV-1a, 64 bits.
pub(crate) fn hash(entry: &Entry) -> u64 {
    let bytes: &[u8] = match &entry.payload {
        Payload::Command(bytes) => bytes,
        Payload::Blank => b"blank",
        Payload::Members(members) => return mix(entry.term, members.voters.len() as u64),
    };
    let seed = 0xcbf2_9ce4_8422_2325 ^ entry.term;
    bytes.iter().fold(seed, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn mix(a: u64, b: u64) -> u64 {
    (a.rotate_left(5) ^ b).wrapping_mul(0x517c_c1b7_2722_0a95)
}

impl Code for Machine {
    fn encode(&self, to: &mut Vec<u8>) {
        self.applied.encode(to);
        self.digest.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Machine, Malformed> {
        Ok(Machine { applied: u64::decode(from)?, digest: u64::decode(from)? })
    }
}
