//! What nodes say to each other so that they agree.

use alloc::sync::Arc;
use alloc::vec::Vec;

use outlast_core::codec::{Code, Malformed, Reader, decode_list, encode_bytes, encode_list};

use crate::entry::{Entry, Index, Members, NodeId, Term};

/// The first byte of every message; another one is another form.
const VERSION: u8 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub from: NodeId,
    pub to: NodeId,
    /// The sender's term; of a pre-vote the term that it would begin.
    pub term: Term,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Would I get your vote?
    PreVote {
        last_index: Index,
        last_term: Term,
    },
    PreVoteReply {
        granted: bool,
    },
    /// `transfer`: the leader asked for it, so that its lease does not count.
    Vote {
        last_index: Index,
        last_term: Term,
        transfer: bool,
    },
    VoteReply {
        granted: bool,
    },
    Append(Append),
    AppendReply {
        round: u64,
        reply: AppendReply,
    },
    Snapshot(SnapshotChunk),
    /// Bytes of the snapshot at `index` that have arrived.
    SnapshotReply {
        index: Index,
        have: u64,
        round: u64,
    },
    /// Stand for election now: the leader has stepped back for you.
    TimeoutNow,
}

/// Entries that follow `prev_index`; without any, a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    pub prev_index: Index,
    pub prev_term: Term,
    pub commit: Index,
    /// Echoed, so that the leader knows when what was answered had been asked.
    pub round: u64,
    pub entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendReply {
    /// Everything up to here is on disk and equal to the leader's log.
    Accepted { durable: Index },
    /// What should go before, at `prev`, is missing or different; try after `hint`.
    Rejected { prev: Index, hint: Index },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotChunk {
    pub index: Index,
    pub term: Term,
    pub members: Members,
    pub offset: u64,
    /// Of the whole snapshot.
    pub length: u64,
    pub round: u64,
    pub bytes: Arc<[u8]>,
}

impl Code for Message {
    fn encode(&self, to: &mut Vec<u8>) {
        to.push(VERSION);
        self.from.encode(to);
        self.to.encode(to);
        self.term.encode(to);
        self.body.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Message, Malformed> {
        if from.byte()? != VERSION {
            return Err(Malformed("a message of another version"));
        }
        Ok(Message {
            from: NodeId::decode(from)?,
            to: NodeId::decode(from)?,
            term: bounded(from)?,
            body: Body::decode(from)?,
        })
    }
}

impl Code for Body {
    fn encode(&self, to: &mut Vec<u8>) {
        match self {
            Body::PreVote { last_index, last_term } => {
                to.push(0);
                last_index.encode(to);
                last_term.encode(to);
            }
            Body::PreVoteReply { granted } => {
                to.push(1);
                granted.encode(to);
            }
            Body::Vote { last_index, last_term, transfer } => {
                to.push(2);
                last_index.encode(to);
                last_term.encode(to);
                transfer.encode(to);
            }
            Body::VoteReply { granted } => {
                to.push(3);
                granted.encode(to);
            }
            Body::Append(Append { prev_index, prev_term, commit, round, entries }) => {
                to.push(4);
                prev_index.encode(to);
                prev_term.encode(to);
                commit.encode(to);
                round.encode(to);
                encode_list(entries.iter(), to);
            }
            Body::AppendReply { round, reply } => match reply {
                AppendReply::Accepted { durable } => {
                    to.push(5);
                    round.encode(to);
                    durable.encode(to);
                }
                AppendReply::Rejected { prev, hint } => {
                    to.push(6);
                    round.encode(to);
                    prev.encode(to);
                    hint.encode(to);
                }
            },
            Body::Snapshot(chunk) => {
                to.push(7);
                chunk.index.encode(to);
                chunk.term.encode(to);
                chunk.members.encode(to);
                chunk.offset.encode(to);
                chunk.length.encode(to);
                chunk.round.encode(to);
                encode_bytes(&chunk.bytes, to);
            }
            Body::SnapshotReply { index, have, round } => {
                to.push(8);
                index.encode(to);
                have.encode(to);
                round.encode(to);
            }
            Body::TimeoutNow => to.push(9),
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Body, Malformed> {
        Ok(match from.byte()? {
            0 => Body::PreVote { last_index: u64::decode(from)?, last_term: u64::decode(from)? },
            1 => Body::PreVoteReply { granted: bool::decode(from)? },
            2 => Body::Vote {
                last_index: u64::decode(from)?,
                last_term: u64::decode(from)?,
                transfer: bool::decode(from)?,
            },
            3 => Body::VoteReply { granted: bool::decode(from)? },
            4 => Body::Append(decode_append(from)?),
            5 => Body::AppendReply {
                round: u64::decode(from)?,
                reply: AppendReply::Accepted { durable: u64::decode(from)? },
            },
            6 => Body::AppendReply {
                round: u64::decode(from)?,
                reply: AppendReply::Rejected { prev: u64::decode(from)?, hint: u64::decode(from)? },
            },
            7 => Body::Snapshot(SnapshotChunk {
                index: bounded(from)?,
                term: bounded(from)?,
                members: Members::decode(from)?,
                offset: u64::decode(from)?,
                length: u64::decode(from)?,
                round: u64::decode(from)?,
                bytes: Arc::from(Vec::<u8>::decode(from)?),
            }),
            8 => Body::SnapshotReply {
                index: u64::decode(from)?,
                have: u64::decode(from)?,
                round: u64::decode(from)?,
            },
            9 => Body::TimeoutNow,
            _ => return Err(Malformed("a message of an unknown kind")),
        })
    }
}

/// Terms and indices that count up from here would overflow; nobody gets there honestly.
const COUNT_MAX: u64 = 1 << 62;

fn bounded(from: &mut Reader<'_>) -> Result<u64, Malformed> {
    let count = u64::decode(from)?;
    if count <= COUNT_MAX { Ok(count) } else { Err(Malformed("a term or index beyond all reason")) }
}

/// The entries of a message follow each other; nothing behind this line checks that again.
fn decode_append(from: &mut Reader<'_>) -> Result<Append, Malformed> {
    let append = Append {
        prev_index: bounded(from)?,
        prev_term: bounded(from)?,
        commit: u64::decode(from)?,
        round: u64::decode(from)?,
        entries: decode_list(from)?,
    };
    let mut before = (append.prev_index, append.prev_term);
    for entry in &append.entries {
        let follows = Some(entry.index) == before.0.checked_add(1) && before.1 <= entry.term;
        if !follows || COUNT_MAX < entry.term {
            return Err(Malformed("entries that do not follow each other"));
        }
        before = (entry.index, entry.term);
    }
    Ok(append)
}
