//! How an instance begins: a new cluster, and a start.

use crate::clock::Moment;
use crate::conf::Mode;
use crate::error::Error;
use crate::postgres::{Postgres, Starting};

impl Postgres {
    /// Makes a new cluster in an empty place.
    pub async fn create(&self) -> Result<(), Error> {
        self.refuse_running("create the cluster")
    }

    /// Makes our roles in a cluster that was shut down cleanly and is not a standby.
    pub async fn install_roles(&self) -> Result<(), Error> {
        self.refuse_running("install the roles")
    }

    /// Starts the instance, and waits until it lets us in. It ends when the fuse burns down.
    pub async fn start(
        &self,
        mode: Mode,
        fuse: Option<Moment>,
        progress: &mut (dyn FnMut(Starting) + Send),
    ) -> Result<(), Error> {
        let _unfinished = (mode, fuse, progress);
        Err(Error::new("start PostgreSQL"))
    }
}
