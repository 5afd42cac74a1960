//! Whom a standby follows, and whom a primary waits for.

use crate::conf::Quorum;
use crate::error::Error;
use crate::history::History;
use crate::lsn::Lsn;
use crate::postgres::Postgres;
use crate::settings::Upstream;

/// Where a standby's log ends, once it receives nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    pub timeline: u32,
    /// On disk: no primary has an acknowledgement from here for anything behind it.
    pub lsn: Lsn,
}

impl Postgres {
    /// Follows another node from now on, without a restart.
    pub async fn follow(&self, upstream: Upstream) -> Result<(), Error> {
        let _unfinished = upstream;
        Err(Error::new("follow"))
    }

    /// Follows nobody any more. After it has returned, this node can acknowledge nothing to anybody until `follow`.
    pub async fn stop_receiving(&self) -> Result<Stopped, Error> {
        Err(Error::new("stop receiving"))
    }

    /// Sets which standbys commits wait for; returns once new sessions wait for them.
    pub async fn set_sync(&self, sync: Option<Quorum>) -> Result<(), Error> {
        let _unfinished = sync;
        Err(Error::new("set the synchronous standbys"))
    }

    /// The way to this server's timeline, for those who are to follow it.
    pub async fn history(&self) -> Result<History, Error> {
        Err(Error::new("read the history"))
    }
}
