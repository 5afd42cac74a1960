//! Sessions: what a client holds in the key-value space goes when the client goes.

use core::time::Duration;

use super::Stamp;
use super::form::{coded_enum, coded_struct};
use super::limits;
use super::reply::Refusal;

/// What can happen to sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionCommand {
    Open {
        ttl: Duration,
    },
    Renew {
        id: u64,
    },
    /// Deletes the session's keys, gives its locks to the next in the queue, and leaves the queues it waits in.
    Close {
        id: u64,
    },
    /// The session is over, judged from its renewal at this index; then as with `Close`.
    Expire {
        id: u64,
        renewed_index: u64,
    },
}

coded_enum!(SessionCommand, "a command about sessions that is not known here", {
    1 = Open { ttl }, 2 = Renew { id }, 3 = Close { id }, 4 = Expire { id, renewed_index },
});

impl SessionCommand {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self {
            SessionCommand::Open { ttl } => limits::ttl(*ttl),
            SessionCommand::Renew { .. }
            | SessionCommand::Close { .. }
            | SessionCommand::Expire { .. } => Ok(()),
        }
    }

    pub(super) fn repeatable(&self) -> bool {
        match self {
            SessionCommand::Open { .. } => false,
            SessionCommand::Renew { .. }
            | SessionCommand::Close { .. }
            | SessionCommand::Expire { .. } => true,
        }
    }
}

/// A session that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    pub ttl: Duration,
    pub opened: Stamp,
    /// The log index of the opening or of the last renewal.
    pub renewed_index: u64,
}

coded_struct!(Session { ttl, opened, renewed_index });
