//! What is answered to a command: what became of it, or in a sentence why nothing did.

use core::fmt;

use super::form::coded_enum;
use super::limits::Limit;

/// The answer to an entry. It holds numbers only, so that the answers that are remembered stay small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done, and there is nothing to say about it.
    Done,
    /// The client's id for all later entries.
    Introduced {
        client: u64,
    },
    /// The node's id, for as long as its disk lives.
    Joined {
        id: u64,
    },
    /// The number under which nodes vote.
    Proposed {
        version: u64,
    },
    /// This topology is in force.
    Applied {
        version: u64,
    },
    /// The fencing token of every order under this lease.
    Granted {
        epoch: u64,
    },
    Posted {
        id: u64,
    },
    Begun {
        id: u64,
    },
    /// The step was started, for this many times now.
    Started {
        attempt: u32,
    },
    Written {
        version: u64,
    },
    Deleted {
        existed: bool,
    },
    SessionOpened {
        id: u64,
    },
    /// The fencing token of every order under this lock.
    Locked {
        token: u64,
    },
    /// Others come first; the first in the queue has position 1.
    Queued {
        position: u64,
    },
    Refused {
        why: Refusal,
    },
}

/// Why a command changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The log went backwards.
    Outdated {
        applied: u64,
    },
    NotIntroduced,
    Forgotten,
    Superseded,
    Over {
        limit: Limit,
    },
    Unfit {
        limit: Limit,
    },
    Duration,
    HasJoined {
        id: u64,
    },
    NotRegistered {
        id: u64,
    },
    WasRemoved {
        id: u64,
    },
    OtherName {
        id: u64,
    },
    EmptyDisk {
        id: u64,
    },
    LastVoter,
    ProposalOpen {
        version: u64,
    },
    OtherBase {
        current: u64,
    },
    NoProposal,
    NoNodes,
    VotesMissing {
        silent: u64,
        against: u64,
    },
    Held {
        holder: u64,
        epoch: u64,
    },
    NotHeld,
    OtherEpoch {
        current: u64,
    },
    OtherHolder {
        holder: u64,
    },
    RenewedSince {
        renewed_index: u64,
    },
    AlreadyPaused {
        id: u64,
    },
    NoNotice,
    Busy {
        id: u64,
    },
    NoProcedure,
    ProcedureOver,
    OutOfTurn,
    PastPivot,
    BadPivot,
    NoSession {
        id: u64,
    },
    /// The key's version and index now; both 0 if it is absent.
    Conflict {
        version: u64,
        modified: u64,
    },
    NotLocked,
    NotCovered,
}

coded_enum!(Reply version 1, "a reply that is not known here", {
    1 = Done, 2 = Introduced { client }, 3 = Joined { id }, 4 = Proposed { version }, 5 = Applied { version },
    6 = Granted { epoch }, 7 = Posted { id }, 8 = Begun { id }, 9 = Started { attempt }, 10 = Written { version },
    11 = Deleted { existed }, 12 = SessionOpened { id }, 13 = Locked { token }, 14 = Queued { position },
    15 = Refused { why },
});

coded_enum!(Refusal, "a refusal that is not known here", {
    1 = Outdated { applied }, 2 = NotIntroduced, 3 = Forgotten, 4 = Superseded, 5 = Over { limit },
    6 = Unfit { limit }, 7 = Duration, 8 = HasJoined { id }, 9 = NotRegistered { id }, 10 = WasRemoved { id },
    11 = OtherName { id }, 12 = EmptyDisk { id }, 13 = LastVoter, 14 = ProposalOpen { version },
    15 = OtherBase { current }, 16 = NoProposal, 17 = VotesMissing { silent, against },
    18 = Held { holder, epoch }, 19 = NotHeld, 20 = OtherEpoch { current }, 21 = OtherHolder { holder },
    22 = RenewedSince { renewed_index }, 23 = AlreadyPaused { id }, 24 = NoNotice, 25 = Busy { id },
    26 = NoProcedure, 27 = ProcedureOver, 28 = OutOfTurn, 29 = PastPivot, 30 = BadPivot, 31 = NoSession { id },
    32 = Conflict { version, modified }, 33 = NotLocked, 34 = NoNodes, 35 = NotCovered,
});

impl From<Refusal> for Reply {
    fn from(why: Refusal) -> Reply {
        Reply::Refused { why }
    }
}

impl From<Result<Reply, Refusal>> for Reply {
    fn from(result: Result<Reply, Refusal>) -> Reply {
        result.unwrap_or_else(|why| Reply::Refused { why })
    }
}

impl fmt::Display for Reply {
    /// The answer as a sentence without a full stop.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Done => f.write_str("done"),
            Reply::Introduced { client } => write!(f, "introduced as client {client}"),
            Reply::Joined { id } => write!(f, "joined as node {id}"),
            Reply::Proposed { version } => write!(f, "proposed as version {version}"),
            Reply::Applied { version } => write!(f, "version {version} is in force"),
            Reply::Granted { epoch } => write!(f, "granted under epoch {epoch}"),
            Reply::Posted { id } => write!(f, "posted as {id}"),
            Reply::Begun { id } => write!(f, "begun as procedure {id}"),
            Reply::Started { attempt } => write!(f, "started, attempt {attempt}"),
            Reply::Written { version } => write!(f, "written as version {version}"),
            Reply::Deleted { existed: true } => f.write_str("deleted"),
            Reply::Deleted { existed: false } => f.write_str("there was nothing to delete"),
            Reply::SessionOpened { id } => write!(f, "opened as session {id}"),
            Reply::Locked { token } => write!(f, "locked under token {token}"),
            Reply::Queued { position } => write!(f, "queued at position {position}"),
            Reply::Refused { why } => write!(f, "refused: {why}"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Outdated { applied } => {
                write!(f, "the log went backwards, {applied} is applied already")
            }
            Refusal::NotIntroduced => {
                f.write_str("this command must not be applied twice: its client has to be introduced first")
            }
            Refusal::Forgotten => f.write_str(
                "the client is not known or was forgotten after a long silence: introduce it anew, and look before \
                 repeating what had no answer",
            ),
            Refusal::Superseded => f.write_str(
                "the client has gone on since: look whether this command was applied",
            ),
            Refusal::Over { limit } => {
                write!(f, "more than {} {}", limit.most(), limit.words())
            }
            Refusal::Unfit { limit } => {
                write!(f, "no {}, or some that control a terminal", limit.words())
            }
            Refusal::Duration => f.write_str("the duration is too short or too long"),
            Refusal::HasJoined { id } => write!(
                f,
                "a node of this name has joined as {id}: if its disk is lost, replace {id} by a fresh id"
            ),
            Refusal::NotRegistered { id } => write!(f, "no node has the id {id}"),
            Refusal::WasRemoved { id } => write!(f, "node {id} was removed; its id never comes back"),
            Refusal::OtherName { id } => write!(f, "node {id} has another name"),
            Refusal::EmptyDisk { id } => write!(
                f,
                "node {id} has joined with a disk that this one is not: it needs a fresh id"
            ),
            Refusal::LastVoter => f.write_str("it is the last voter"),
            Refusal::ProposalOpen { version } => {
                write!(f, "version {version} is being voted on")
            }
            Refusal::OtherBase { current } => {
                write!(f, "the topology in force is version {current}: start from that one")
            }
            Refusal::NoProposal => f.write_str("this version is not being voted on"),
            Refusal::NoNodes => f.write_str("no node has joined that could say yes"),
            Refusal::VotesMissing { silent, against } => {
                write!(f, "not every node said yes: {silent} silent, {against} against it")
            }
            Refusal::Held { holder, epoch } => {
                write!(f, "node {holder} holds it under epoch {epoch}")
            }
            Refusal::NotHeld => f.write_str("nobody holds it"),
            Refusal::OtherEpoch { current } => write!(f, "it is held under epoch {current}"),
            Refusal::OtherHolder { holder } => write!(f, "node {holder} holds it"),
            Refusal::RenewedSince { renewed_index } => {
                write!(f, "it was renewed at {renewed_index}, after that was judged")
            }
            Refusal::AlreadyPaused { id } => write!(f, "{id} pauses the cluster already"),
            Refusal::NoNotice => f.write_str("there is no such notice, or it was lifted"),
            Refusal::Busy { id } => write!(f, "procedure {id} is at work on the same subject"),
            Refusal::NoProcedure => f.write_str("there is no such procedure"),
            Refusal::ProcedureOver => f.write_str("the procedure has ended"),
            Refusal::OutOfTurn => f.write_str("it is not this step's turn"),
            Refusal::PastPivot => f.write_str("the point of no return is passed: only forward from here"),
            Refusal::BadPivot => f.write_str("the pivot is no step, or there is no step at all"),
            Refusal::NoSession { id } => write!(f, "session {id} is over or never was"),
            Refusal::Conflict { version: 0, .. } => f.write_str("the key is absent"),
            Refusal::Conflict { version, modified } => {
                write!(f, "the key has version {version}, written at {modified}")
            }
            Refusal::NotCovered => f.write_str(
                "an acknowledged write may be on members that have not reported: it would be lost",
            ),
            Refusal::NotLocked => f.write_str("the session neither holds nor awaits this lock"),
        }
    }
}
