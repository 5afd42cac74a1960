//! From standby to primary, and what a primary must prove.

use std::time::Duration;

use crate::error::Error;
use crate::look::LookError;
use crate::postgres::Postgres;

/// Which commit is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// On this node's disk.
    Local,
    /// On as many nodes as are waited for.
    Synchronous,
}

impl Postgres {
    /// Commits a message in the log, through a new connection.
    pub async fn write_probe(&self, write: Write, limit: Duration) -> Result<(), LookError> {
        let _unfinished = (write, limit);
        self.look().await.map(drop)
    }

    /// Makes the standby a primary. Returns its new timeline once it takes writes.
    pub async fn promote(&self, limit: Duration) -> Result<u32, Error> {
        let _unfinished = limit;
        Err(Error::new("promote"))
    }

    /// Writes a checkpoint and waits until the control file is on the timeline of the log (trap 32). From then on
    /// others can rewind from here. Returns the timeline.
    pub async fn checkpoint(&self, limit: Duration) -> Result<u32, Error> {
        let _unfinished = limit;
        Err(Error::new("checkpoint"))
    }

    /// Makes or refreshes our roles on a primary.
    pub async fn ensure_roles(&self) -> Result<(), Error> {
        Err(Error::new("ensure the roles"))
    }
}
