//! The quiet state of a planned switchover: nobody writes, nobody new comes in, standbys receive the rest.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::{Doing, Error};
use crate::look::LOOK_LIMIT;
use crate::lsn::Lsn;
use crate::postgres::Postgres;
use crate::role::Write;

/// How long a session may take to end once it is told to.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How often the sessions are counted.
const LOOK: Duration = Duration::from_millis(20);
/// Sessions that are not ours.
const CLIENTS: &str = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename IS DISTINCT FROM 'outlast'";

impl Postgres {
    /// Lets nobody in, ends the sessions that are left after `grace`, and returns the end of the log: no client has
    /// written, or will write, behind it. Idempotent.
    pub async fn close(&self, grace: Duration) -> Result<Lsn, Error> {
        self.close_inner(grace).await.doing("close the server")
    }

    async fn close_inner(&self, grace: Duration) -> Result<Lsn, Error> {
        self.shape(|shape| shape.closed = true).await?;
        // The postmaster reads the rules for connections in the same stroke, after this: a new session that has the
        // value was let in by the new rules.
        self.reload_until("default_transaction_read_only", "on").await?;
        if !self.clients_left_within(grace).await? {
            let sql = format!("SELECT pg_terminate_backend(pid) {CLIENTS}");
            self.ask(&sql, LOOK_LIMIT).await.doing("end the sessions")?;
            if !self.clients_left_within(END_LIMIT).await? {
                return Err(Error::new("a session does not end"));
            }
        }
        // What was committed without waiting for the disk is on it once a later commit is.
        self.write_probe(Write::Local, LOOK_LIMIT).await.doing("flush the log")?;
        let lsn = self.value("SELECT pg_current_wal_flush_lsn()", LOOK_LIMIT).await;
        lsn.doing("see where the log ends")?.parse().doing("see where the log ends")
    }

    async fn clients_left_within(&self, limit: Duration) -> Result<bool, Error> {
        let end = Instant::now() + limit;
        let sql = format!("SELECT count(*) {CLIENTS}");
        loop {
            if self.value(&sql, LOOK_LIMIT).await.doing("count the sessions")? == "0" {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            sleep(LOOK).await;
        }
    }

    /// Undoes `close`. Idempotent.
    pub async fn open(&self) -> Result<(), Error> {
        self.shape(|shape| shape.closed = false).await.doing("open the server")?;
        self.reload_until("default_transaction_read_only", "off").await.doing("open the server")
    }

    /// Whether it is closed, or would start so.
    pub async fn is_closed(&self) -> Result<bool, Error> {
        let dir = self.settings.data_dir.clone();
        let shape = self.on_disk(move || crate::conf::Shape::read(&dir)).await;
        Ok(shape.doing("see whether it is closed")?.closed)
    }

    /// Closes or opens a server that does not run: how it is when it starts.
    pub async fn set_closed(&self, closed: bool) -> Result<(), Error> {
        self.refuse_running("set whether it starts closed")?;
        self.shape(move |shape| shape.closed = closed).await
    }
}
