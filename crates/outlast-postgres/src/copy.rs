//! How a node gets the state of another: by rewinding what it has, or by a whole copy.

use std::path::PathBuf;

use crate::error::Error;
use crate::postgres::Postgres;
use crate::settings::Upstream;

/// How far a copy has come, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    pub done: u64,
    pub total: u64,
}

/// A copy that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Where the old directory is.
    pub aside: Option<PathBuf>,
}

impl Postgres {
    /// Rewinds this node to where its log and the source's part. The server must not run; the source must have written
    /// a checkpoint since its promotion (trap 32). If it breaks, the directory is [`crate::Disk::Broken`].
    pub async fn rewind(
        &self,
        source: &Upstream,
        progress: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<(), Error> {
        let _unfinished = (source, progress);
        Err(Error::new("rewind"))
    }

    /// Copies the source into a new directory, and takes it in place of the old one, which is set aside.
    pub async fn clone_from(
        &self,
        source: &Upstream,
        progress: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<Copied, Error> {
        let _unfinished = (source, progress);
        Err(Error::new("clone"))
    }
}
