//! A prober that runs beside us, and what it has seen so far.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::attempts::{Flow, Log};
use super::monotonic;
use crate::children::{Child, Spec};

/// Between two looks at the log.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How a prober writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    pub(crate) pool: usize,
    pub(crate) outstanding: usize,
    pub(crate) id_base: i64,
}

/// What a client with a pool sees.
pub(crate) const CLIENT: Pace = Pace {
    interval: Duration::from_millis(10),
    timeout: Duration::from_secs(1),
    pool: 8,
    outstanding: 128,
    id_base: 0,
};

/// What one sees that hangs on to one server: new connections, and patience beyond any fault.
pub(crate) const STALE: Pace = Pace {
    interval: Duration::from_millis(200),
    timeout: Duration::from_secs(120),
    pool: 0,
    outstanding: 250,
    id_base: 1_000_000_000,
};

#[derive(Debug)]
pub(crate) struct Probe {
    /// Until it has finished.
    child: Option<Child>,
    path: PathBuf,
    /// How much of it is in the log.
    read: u64,
    log: Log,
}

impl Probe {
    pub(crate) fn start(
        name: &str,
        at: &[SocketAddr],
        table: &str,
        pace: Pace,
        dir: &Path,
    ) -> Result<Probe> {
        let path = dir.join(format!("{name}.csv"));
        let at: Vec<String> = at.iter().map(ToString::to_string).collect();
        let args = [
            "pgprobe".to_owned(),
            "--at".to_owned(),
            at.join(","),
            "--table".to_owned(),
            table.to_owned(),
            "--log".to_owned(),
            path.to_str().context("the temporary directory's name is not text")?.to_owned(),
            "--interval-ms".to_owned(),
            pace.interval.as_millis().to_string(),
            "--timeout-ms".to_owned(),
            pace.timeout.as_millis().to_string(),
            "--pool".to_owned(),
            pace.pool.to_string(),
            "--outstanding".to_owned(),
            pace.outstanding.to_string(),
            "--id-base".to_owned(),
            pace.id_base.to_string(),
        ];
        let program = std::env::current_exe().context("find ourselves")?;
        let spec =
            Spec { name, program: &program, args: &args, dir, core: None, has_children: true };
        Ok(Probe { child: Some(Child::start(&spec)?), path, read: 0, log: Log::default() })
    }

    pub(crate) fn check_running(&mut self) -> Result<()> {
        self.child.as_mut().context("it runs")?.check_running()
    }

    /// What it has seen so far.
    pub(crate) fn look(&mut self) -> Result<&Log> {
        let mut fresh = String::new();
        // It is not there before the prober runs.
        if let Ok(mut file) = File::open(&self.path) {
            file.seek(SeekFrom::Start(self.read)).context("read on in the prober's log")?;
            file.read_to_string(&mut fresh).context("read the prober's log")?;
        }
        self.read += u64::try_from(self.log.take(&fresh))?;
        Ok(&self.log)
    }

    /// Looks again and again until what it has seen is enough; false if it is not within the limit.
    pub(crate) async fn wait_until(
        &mut self,
        limit: Duration,
        mut enough: impl FnMut(&Log) -> bool,
    ) -> Result<bool> {
        let end = monotonic() + u64::try_from(limit.as_nanos())?;
        loop {
            self.check_running()?;
            if enough(self.look()?) {
                return Ok(true);
            }
            if end <= monotonic() {
                return Ok(false);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether writes that begin after a moment flow within the limit.
    pub(crate) async fn flows(&mut self, since: u64, limit: Duration, want: Flow) -> Result<bool> {
        self.wait_until(limit, |log| log.flows(since, monotonic(), &want)).await
    }

    /// Ends it, and hands over everything that it saw.
    pub(crate) async fn finish(mut self) -> Result<Log> {
        ensure!(self.child.take().context("it runs")?.stop().await, "the prober does not end");
        self.look()?;
        Ok(self.log)
    }
}
