//! What nodes ask each other besides what the log itself needs.

use outlast_core::address::{Grants, Question};
use outlast_core::agreed::{Entry, Reply};
use outlast_core::codec::{Code, Malformed, Reader};

use super::share::StandbyOrder;

/// The first byte of every question and answer.
const VERSION: u8 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// A node without a log asks whether there is a cluster yet. `plan` stands for how it would be founded.
    WhoAreYou { plan: u64 },
    /// For the leader: agree on this.
    Propose { entry: Entry },
    /// For the leader: which index has everything that anybody knows of now?
    ReadIndex,
    /// A node without a log takes the id that it was given; `token` stands for its disk.
    Claim { id: u64, token: u64 },
    /// For the leader: let a pair return to its primary.
    Failback { service: String },
    /// For the node on which a backup runs: obey this, and answer when it is done.
    Standby(StandbyOrder),
    /// For the leader: which addresses may this node answer on, and how long?
    Address(Question),
    /// For a node that may hold an address: ask that now.
    Hurry,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Who(Who),
    Done {
        index: u64,
        reply: Reply,
    },
    Index {
        index: u64,
    },
    /// Nothing was done.
    NotLeader {
        leader: Option<u64>,
    },
    Busy,
    /// It may have been done.
    Unknown,
    Refused {
        reason: String,
    },
    /// It was done, and this is what there is to say.
    Told {
        text: String,
    },
    Grants(Grants),
}

/// Who a node is, to one that has no place yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    /// It has a log.
    pub(super) joined: bool,
    pub(super) plan: u64,
    /// Stands for its disk.
    pub(super) token: u64,
    /// The id that the asker's name has in the registry, and the token of the disk that has taken it.
    pub(super) your_id: Option<u64>,
    pub(super) your_claim: Option<u64>,
}

impl Code for Ask {
    fn encode(&self, to: &mut Vec<u8>) {
        to.push(VERSION);
        match self {
            Ask::WhoAreYou { plan } => {
                to.push(1);
                plan.encode(to);
            }
            Ask::Propose { entry } => {
                to.push(2);
                entry.encode(to);
            }
            Ask::ReadIndex => to.push(3),
            Ask::Claim { id, token } => {
                to.push(4);
                id.encode(to);
                token.encode(to);
            }
            Ask::Failback { service } => {
                to.push(5);
                service.encode(to);
            }
            Ask::Standby(StandbyOrder { service, epoch, stop }) => {
                to.push(6);
                service.encode(to);
                epoch.encode(to);
                stop.encode(to);
            }
            Ask::Address(question) => {
                to.push(7);
                question.encode(to);
            }
            Ask::Hurry => to.push(8),
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Ask, Malformed> {
        version(from)?;
        Ok(match from.byte()? {
            1 => Ask::WhoAreYou { plan: Code::decode(from)? },
            2 => Ask::Propose { entry: Code::decode(from)? },
            3 => Ask::ReadIndex,
            4 => Ask::Claim { id: Code::decode(from)?, token: Code::decode(from)? },
            5 => Ask::Failback { service: Code::decode(from)? },
            6 => Ask::Standby(StandbyOrder {
                service: Code::decode(from)?,
                epoch: Code::decode(from)?,
                stop: Code::decode(from)?,
            }),
            7 => Ask::Address(Code::decode(from)?),
            8 => Ask::Hurry,
            _ => return Err(Malformed("a question that is not known here")),
        })
    }
}

impl Code for Answer {
    fn encode(&self, to: &mut Vec<u8>) {
        to.push(VERSION);
        match self {
            Answer::Who(Who { joined, plan, token, your_id, your_claim }) => {
                to.push(1);
                joined.encode(to);
                plan.encode(to);
                token.encode(to);
                your_id.encode(to);
                your_claim.encode(to);
            }
            Answer::Done { index, reply } => {
                to.push(2);
                index.encode(to);
                reply.encode(to);
            }
            Answer::Index { index } => {
                to.push(3);
                index.encode(to);
            }
            Answer::NotLeader { leader } => {
                to.push(4);
                leader.encode(to);
            }
            Answer::Busy => to.push(5),
            Answer::Unknown => to.push(6),
            Answer::Refused { reason } => {
                to.push(7);
                reason.encode(to);
            }
            Answer::Told { text } => {
                to.push(8);
                text.encode(to);
            }
            Answer::Grants(grants) => {
                to.push(9);
                grants.encode(to);
            }
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Answer, Malformed> {
        version(from)?;
        Ok(match from.byte()? {
            1 => Answer::Who(Who {
                joined: Code::decode(from)?,
                plan: Code::decode(from)?,
                token: Code::decode(from)?,
                your_id: Code::decode(from)?,
                your_claim: Code::decode(from)?,
            }),
            2 => Answer::Done { index: Code::decode(from)?, reply: Code::decode(from)? },
            3 => Answer::Index { index: Code::decode(from)? },
            4 => Answer::NotLeader { leader: Code::decode(from)? },
            5 => Answer::Busy,
            6 => Answer::Unknown,
            7 => Answer::Refused { reason: Code::decode(from)? },
            8 => Answer::Told { text: Code::decode(from)? },
            9 => Answer::Grants(Code::decode(from)?),
            _ => return Err(Malformed("an answer that is not known here")),
        })
    }
}

pub(super) fn version(from: &mut Reader<'_>) -> Result<(), Malformed> {
    if from.byte()? == VERSION { Ok(()) } else { Err(Malformed("another version")) }
}
