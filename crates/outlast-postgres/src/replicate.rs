//! Whom a standby follows, and whom a primary waits for.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::conf::{Quorum, conninfo};
use crate::error::{Doing, Error};
use crate::files;
use crate::look::LOOK_LIMIT;
use crate::lsn::Lsn;
use crate::postgres::Postgres;
use crate::proc::{self, Process};
use crate::settings::Upstream;
use crate::slots::slot_at;

/// How long the server may take to have read its configuration.
const RELOAD_LIMIT: Duration = Duration::from_secs(10);
/// How long a receiver may take to end.
const RECEIVER_LIMIT: Duration = Duration::from_secs(10);
/// How long the log on this disk may take to be read. Whoever asked may ask again.
const READ_LIMIT: Duration = Duration::from_secs(60);
/// No standby has this name: a node's has no spaces.
const NOBODY: &str = "nobody yet";
/// The setting that says whom commits wait for.
const SYNC: &str = "synchronous_standby_names";
/// What the server does not take of its files, in one line.
const REFUSED: &str = "SELECT string_agg(fault, '; ') FROM (
    SELECT CASE WHEN f.error = 'setting could not be applied'
        THEN format('PostgreSQL does not take the setting %s = %s', f.name, f.setting)
        ELSE concat('PostgreSQL says of its settings: ', f.error, ' \"' || f.name || '\"') END
        || format(' (%s line %s)', regexp_replace(f.sourcefile, '.*/', ''), f.sourceline) AS fault
    FROM pg_file_settings f WHERE f.error IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_settings s WHERE lower(s.name) = lower(f.name) AND s.pending_restart)
    UNION ALL
    SELECT format('PostgreSQL does not take line %s of pg_hba.conf: %s', line_number, error)
    FROM pg_hba_file_rules WHERE error IS NOT NULL
    LIMIT 10) faults";
/// How often either is looked at.
const LOOK: Duration = Duration::from_millis(10);

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
        let what = format!("follow {}", upstream.node);
        self.follow_inner(upstream).await.doing(what)
    }

    async fn follow_inner(&self, upstream: Upstream) -> Result<(), Error> {
        if self.value("SELECT pg_is_in_recovery()", LOOK_LIMIT).await.doing("look")? != "t" {
            return Err(Error::new("this is a primary"));
        }
        let wanted =
            conninfo(&self.settings, &upstream, &[("application_name", &self.settings.node)]);
        let slot = slot_at(&upstream, &self.settings.node);
        self.set_key(true)?;
        self.shape(move |shape| shape.upstream = Some(upstream)).await?;
        self.reload_until("primary_conninfo", &wanted).await?;
        self.reload_until("primary_slot_name", &slot).await
    }

    /// Follows nobody any more. After it has returned, this node can acknowledge nothing to anybody until `follow`.
    ///
    /// The key to all upstreams is taken away first. A receiver that is there afterwards may have used it before, and
    /// is ended; one that begins later finds no key. So once none is there, none can be let in again, whatever the
    /// server has or has not yet read of its configuration (traps 13, 30).
    pub async fn stop_receiving(&self) -> Result<Stopped, Error> {
        self.set_key(false).doing("stop receiving")?;
        self.shape(|shape| shape.upstream = None).await.doing("stop receiving")?;
        self.reload_until("primary_conninfo", "").await.doing("stop receiving")?;
        self.end_receiver().await.doing("stop receiving")?;
        self.read_to_end().await.doing("read the log to its end")?;
        let seen = self.look().await.doing("see where the log ends")?;
        Ok(Stopped { timeline: seen.timeline, lsn: seen.reach() })
    }

    /// Waits until the server has read all of its log that lies on this disk: after a start nobody knows before how far that
    /// reaches. One that is held up on purpose knows what it has received since its start.
    async fn read_to_end(&self) -> Result<(), Error> {
        let sql = "SELECT CASE
            WHEN wait_event IN ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream') THEN 'end'
            WHEN wait_event IN ('RecoveryPause', 'RecoveryApplyDelay')
              AND pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn() THEN 'end' END
            FROM pg_stat_activity WHERE backend_type = 'startup'";
        let end = Instant::now() + READ_LIMIT;
        while self.value(sql, LOOK_LIMIT).await.doing("look")? != "end" {
            if Instant::now() >= end {
                return Err(Error::new("it is not read to its end yet"));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Ends the receiver as the server itself does. SIGKILL would crash the whole standby.
    async fn end_receiver(&self) -> Result<(), Error> {
        let end = Instant::now() + RECEIVER_LIMIT;
        loop {
            let Some(receiver) = self.receiver() else { return Ok(()) };
            receiver.signal(Signal::TERM);
            if Instant::now() >= end {
                return Err(Error::new("the receiver does not end"));
            }
            sleep(LOOK).await;
        }
    }

    /// The process that receives the log, as the kernel shows it: the server's own view may be late.
    fn receiver(&self) -> Option<Process> {
        let postmaster = self.held().postmaster?.pid;
        let prefix = format!("postgres: {}: walreceiver", self.settings.database);
        let children = proc::children(postmaster).into_iter();
        children.filter(|(_, title)| title.starts_with(&prefix)).map(|(process, _)| process).next()
    }

    /// Gives PostgreSQL the key to its upstreams, or takes it away. The file lies in the run directory.
    pub(crate) fn set_key(&self, given: bool) -> Result<(), Error> {
        self.prepare_run_dir()?;
        let escaped = self.settings.replication_secret.replace('\\', r"\\").replace(':', r"\:");
        let line = format!("*:*:*:*:{escaped}\n");
        files::replace(&self.settings.passfile(), if given { &line } else { "" }, &self.account)
    }

    /// Sets which standbys commits wait for; returns once new sessions wait for them. They are synchronous only once
    /// they have caught up, as `sync_state` of [`crate::Standby`] says.
    pub async fn set_sync(&self, sync: Option<Quorum>) -> Result<(), Error> {
        let value = sync.as_ref().map(Quorum::value).transpose()?.unwrap_or_default();
        self.shape(move |shape| shape.sync = sync).await.doing("set the synchronous standbys")?;
        let reload = self.reload_until(SYNC, &value).await;
        reload.doing("set the synchronous standbys")
    }

    /// Whether commits would have to wait for somebody if this standby were promoted now; counts once it starts or follows.
    /// Sessions are told to wait by the checkpointer: one that a disk holds up could tell them after the promotion.
    pub async fn wait_once_promoted(&self, waits: bool) -> Result<(), Error> {
        let nobody = || Quorum { count: 1, names: vec![NOBODY.to_owned()] };
        let written = self.shape(move |shape| shape.sync = waits.then(nobody)).await;
        written.doing("have commits wait after a promotion").map(drop)
    }

    /// Writes the configuration anew, as the settings now say, and has the server read it. Returns what takes effect
    /// only with a restart.
    pub async fn reload(&self) -> Result<Vec<String>, Error> {
        let loaded = "SELECT pg_conf_load_time()";
        let before = self.value(loaded, LOOK_LIMIT).await.doing("reload the configuration")?;
        let this = self.clone();
        self.on_disk(move || this.prepare_run_dir()).await.doing("reload the configuration")?;
        self.shape(|_| {}).await.doing("reload the configuration")?;
        let postmaster =
            self.held().postmaster.ok_or_else(|| Error::new("PostgreSQL does not run"))?;
        postmaster.signal(Signal::HUP);
        let end = Instant::now() + RELOAD_LIMIT;
        while self.value(loaded, LOOK_LIMIT).await.doing("reload the configuration")? == before {
            if Instant::now() >= end {
                let why = self.refused().await.unwrap_or("the server does not read it".to_owned());
                return Err(Error::new(format!("reload the configuration: {why}")));
            }
            sleep(LOOK).await;
        }
        // It goes on with what it takes of the file, and with the old rules.
        if let Some(why) = self.refused().await {
            return Err(Error::new(format!("reload the configuration: {why}")));
        }
        Ok(self.look().await.doing("reload the configuration")?.pending_restart)
    }

    /// What of its files the server does not take, and why; nothing if it cannot be asked. What takes a restart is taken.
    async fn refused(&self) -> Option<String> {
        match self.value(REFUSED, LOOK_LIMIT).await {
            Ok(refused) => Some(refused).filter(|refused| !refused.is_empty()),
            Err(error) => {
                tracing::warn!(%error, "ask what is wrong with the configuration");
                None
            }
        }
    }

    /// Has the server read its configuration, and waits until new sessions have this value.
    pub(crate) async fn reload_until(&self, name: &str, value: &str) -> Result<(), Error> {
        let postmaster =
            self.held().postmaster.ok_or_else(|| Error::new("PostgreSQL does not run"))?;
        let end = Instant::now() + RELOAD_LIMIT;
        postmaster.signal(Signal::HUP);
        let sql = format!("SELECT current_setting('{name}')");
        loop {
            // A session that is open reads it later than a new one begins with it: also then a new one has it.
            let now = match name {
                SYNC => self.setting(name, LOOK_LIMIT).await,
                _ => self.value(&sql, LOOK_LIMIT).await,
            };
            let now = now.doing("reload the configuration")?;
            if now == value {
                return Ok(());
            }
            if Instant::now() >= end {
                let why = self.refused().await.map(|why| format!(": {why}")).unwrap_or_default();
                let what = format!("reload the configuration: {name} stays `{now}`{why}");
                return Err(Error::new(what));
            }
            sleep(LOOK).await;
        }
    }
}
