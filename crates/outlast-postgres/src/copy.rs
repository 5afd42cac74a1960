//! How a node gets the state of another: by rewinding what it has, or by a whole copy.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::conf::{Shape, conninfo};
use crate::control::{Control, State};
use crate::error::{Doing, Error};
use crate::files;
use crate::postgres::{Postgres, remove_signals};
use crate::settings::{Address, Upstream};
use crate::tool::Tool;

/// A copy that has not said a word for so long is broken. Syncing all of it to disk is silent, too.
const COPY_SILENCE: Duration = Duration::from_secs(600);
/// A server that does not answer within this time is not reached.
const REACH_LIMIT: Duration = Duration::from_secs(2);
/// Length 8, then the number that stands for "would you speak TLS".
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// The suffix of a copy that is not finished.
const UNFINISHED: &str = "clone";

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
    /// Whether a PostgreSQL answers there, without saying who asks.
    pub async fn reaches(&self, source: &Upstream) -> Result<(), Error> {
        let Address { host, port } = &source.address;
        let ask = async {
            let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.write_all(&SSL_REQUEST).await?;
            stream.read_u8().await
        };
        let answer = timeout(REACH_LIMIT, ask).await;
        let answer =
            answer.map_err(|_elapsed| Error::new("no answer")).and_then(|said| said.doing("ask"));
        answer.map(drop).doing(format!("reach {}", source.node))
    }

    /// Rewinds this node to where its log and the source's part. The server must not run; the source must have written
    /// a checkpoint since its promotion (trap 32). If it breaks midway, the directory is [`crate::Disk::Broken`].
    pub async fn rewind(
        &self,
        source: &Upstream,
        progress: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<(), Error> {
        let what = format!("rewind to {}", source.node);
        self.refuse_running(&what)?;
        self.rewind_inner(source, progress).await.doing(what)
    }

    async fn rewind_inner(
        &self,
        source: &Upstream,
        progress: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<(), Error> {
        let control = self.control().await?;
        if !control.data_checksums && !control.wal_log_hints {
            return Err(Error::new("it has neither checksums nor wal_log_hints"));
        }
        if control.state == State::InArchiveRecovery {
            // To recover it alone would write into its log, on the timeline of its primary, and no rewind would see that.
            return Err(Error::new("it was killed as a standby"));
        }
        self.set_key(true)?;
        if !control.state.is_clean() {
            self.recover().await.doing("recover from the crash")?;
        }
        // Most of what can go wrong does so before anything is changed.
        self.pg_rewind(source, true, &mut |_| {}).await.doing("try it")?;
        let this = self.clone();
        self.on_disk(move || this.mark_unfit("a rewind was interrupted")).await?;
        self.pg_rewind(source, false, progress).await?;
        self.settle(&control, source).await
    }

    /// Crash recovery without a server: nobody connects, nothing is sent or archived.
    async fn recover(&self) -> Result<(), Error> {
        let (dir, account) = (self.settings.data_dir.clone(), self.account.clone());
        let at = dir.clone();
        self.on_disk(move || remove_signals(&dir)).await?;
        let recovered = self.single_user(&[]).await;
        // Whoever starts it by hand is not to get a primary.
        self.on_disk(move || files::replace(&at.join("standby.signal"), "", &account)).await?;
        recovered
    }

    async fn pg_rewind(
        &self,
        source: &Upstream,
        dry_run: bool,
        progress: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<(), Error> {
        let tool = Tool::new(self.settings.program("pg_rewind"), &self.account, COPY_SILENCE);
        let from = conninfo(
            &self.settings,
            source,
            &[("dbname", "postgres"), ("application_name", "outlast_rewind")],
        );
        let mut tool = tool
            .args(["--no-ensure-shutdown", "--progress", "--source-server"])
            .args([from])
            .args(["--target-pgdata".as_ref(), self.settings.data_dir.as_os_str()]);
        if dry_run {
            tool = tool.args(["--dry-run"]);
        }
        if self.settings.parameters.keys().any(|name| name.eq_ignore_ascii_case("restore_command"))
        {
            tool = tool.args(["--restore-target-wal"]);
        }
        tool.run(&mut |text| said(text, progress)).await.map(drop)
    }

    /// Copies the source into a new directory, and takes it in place of the old one, which is set aside.
    pub async fn clone_from(
        &self,
        source: &Upstream,
        progress: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<Copied, Error> {
        let what = format!("clone {}", source.node);
        self.refuse_running(&what)?;
        self.clone_inner(source, progress).await.doing(what)
    }

    async fn clone_inner(
        &self,
        source: &Upstream,
        progress: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<Copied, Error> {
        let new = self.settings.beside(UNFINISHED);
        let (this, dir) = (self.clone(), new.clone());
        self.on_disk(move || {
            this.prepare_run_dir()?;
            if dir.exists() {
                fs::remove_dir_all(&dir).doing(format!("remove {}", dir.display()))?;
            }
            this.make_data_dir(&dir)
        })
        .await?;
        self.set_key(true)?;
        let tool = Tool::new(self.settings.program("pg_basebackup"), &self.account, COPY_SILENCE);
        let from = conninfo(&self.settings, source, &[("application_name", "outlast_clone")]);
        tool.args([
            "--wal-method=stream",
            "--checkpoint=fast",
            "--progress",
            "--no-password",
            "-d",
        ])
        .args([from])
        .args(["-D".as_ref(), new.as_os_str()])
        .run(&mut |text| said(text, progress))
        .await?;
        let this = self.clone();
        let aside = self.on_disk(move || this.swap(&new)).await?;
        let version = self.version().await?;
        let control = self.control_of(version).await?;
        self.settle(&control, source).await?;
        Ok(Copied { aside })
    }

    /// Takes the finished copy in place of the old directory. Until it is settled it is not to be started.
    fn swap(&self, new: &std::path::Path) -> Result<Option<PathBuf>, Error> {
        let aside = self.set_aside_now()?;
        self.mark_unfit("a clone was not finished")?;
        fs::rename(new, &self.settings.data_dir).doing(format!("rename {}", new.display()))?;
        files::sync_parent(&self.settings.data_dir)?;
        Ok(aside)
    }

    async fn version(&self) -> Result<u32, Error> {
        let path = self.settings.data_dir.join("PG_VERSION");
        self.on_disk(move || files::read_or_empty(&path)?.trim().parse().doing("read PG_VERSION"))
            .await
    }

    /// A copy has the source's configuration: gives it ours, as a standby of the source, and only then lets it be
    /// started.
    async fn settle(&self, control: &Control, source: &Upstream) -> Result<(), Error> {
        let shape = Shape { upstream: Some(source.clone()), ..Shape::default() };
        let (this, demands) = (self.clone(), self.control_of(control.version).await?.demands);
        self.on_disk(move || {
            let dir = &this.settings.data_dir;
            crate::conf::write(&this.settings, &this.account, &shape, Some(demands))?;
            files::remove(&dir.join("recovery.signal"))?;
            files::replace(&dir.join("standby.signal"), "", &this.account)?;
            this.unmark()?;
            this.know()
        })
        .await
    }
}

/// Hears how far a program has come: `12345/67890 kB (18%)`.
fn said(text: &str, progress: &mut (dyn FnMut(Bytes) + Send)) {
    if let Some(bytes) = text.split(['\r', '\n']).rev().find_map(bytes) {
        progress(bytes);
    }
}

fn bytes(line: &str) -> Option<Bytes> {
    let (before, _) = line.split_once(" kB")?;
    let (done, total) = before.rsplit(' ').next()?.split_once('/')?;
    let kilobytes = |text: &str| Some(text.parse::<u64>().ok()?.saturating_mul(1024));
    Some(Bytes { done: kilobytes(done)?, total: kilobytes(total)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_a_program_has_come_is_read_from_what_it_says() {
        let mut heard = Vec::new();
        for text in [
            "pg_rewind: connected to server\n",
            "      0/30000 kB (0%), 0/1 tablespace\r  15000/30000 kB (50%), 0/1 tablespace\r",
            " 4096/ 4096 kB (100%) copied\n",
        ] {
            said(text, &mut |bytes| heard.push((bytes.done >> 10, bytes.total >> 10)));
        }
        assert_eq!(heard, [(15_000, 30_000)]);
    }
}
