//! The instance of this node: how it is started, found again, watched and ended.

mod adopt;
mod begin;
mod end;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::timeout;

use crate::account::Account;
use crate::cgroup::{self, Cgroup};
use crate::clock::Moment;
use crate::conf::Shape;
use crate::error::{Doing, Error};
use crate::fence::{Fence, Target};
use crate::lsn::Lsn;
use crate::proc::Process;
use crate::settings::Settings;
use crate::sql::{Connection, SqlError, TOO_MANY};

pub use adopt::Adoption;
pub use begin::STUCK_AFTER;
pub(crate) use begin::remove_signals;
pub use end::{Ended, StopHow};

/// How long a file operation in the data directory may take before the disk counts as stuck.
pub(crate) const DISK_LIMIT: Duration = Duration::from_secs(20);

/// One node's instance. A clone is the same instance.
#[derive(Clone, Debug)]
pub struct Postgres {
    pub(crate) settings: Arc<Settings>,
    pub(crate) account: Account,
    held: Arc<Mutex<Held>>,
    fence: Arc<Fence>,
    /// What the last look came through: the way in when clients have taken all others.
    spare: Arc<Mutex<Option<Connection>>>,
    /// One change of the configuration at a time.
    pub(crate) shaping: Arc<tokio::sync::Mutex<()>>,
}

/// What is known of the running processes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    pub(crate) keeper: Option<Process>,
    pub(crate) postmaster: Option<Process>,
    /// The data directory as the kernel shows it.
    pub(crate) cwd: Option<PathBuf>,
    /// The control group in which it runs, where it has one.
    pub(crate) cgroup: Option<Arc<Cgroup>>,
}

/// How far a start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Starting {
    /// Where the recovery is, as its process says: while it moves, the start is not stuck (trap 39).
    pub replayed: Option<Lsn>,
    pub since: Duration,
}

/// What the kernel says of the postmaster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    Running,
    /// Frozen by a signal or a debugger: open sessions go on, nobody new is let in (trap 5).
    Stopped,
    /// It has exited and is not collected.
    Zombie,
    Gone,
}

impl Postgres {
    /// The instance with these settings. Touches nothing.
    pub fn new(settings: Settings) -> Result<Postgres, Error> {
        let account = Account::find(settings.os_user.as_deref())?;
        let length = settings.socket().as_os_str().len();
        if length > crate::settings::SOCKET_PATH_MAX {
            let what =
                format!("the path of the socket is too long: {}", settings.socket().display());
            return Err(Error::new(what));
        }
        if !settings.data_dir.is_absolute() || !settings.run_dir.is_absolute() {
            return Err(Error::new("data_dir and run_dir must be absolute paths"));
        }
        let (held, fence, spare) = (Arc::default(), Arc::default(), Arc::default());
        let (settings, shaping) = (Arc::new(settings), Arc::default());
        Ok(Postgres { settings, account, held, fence, spare, shaping })
    }

    /// What the thread that ends it in time does first, so that it runs when the machine is short of memory or of time.
    #[must_use]
    pub fn with_steady_fence(self, steady: fn()) -> Postgres {
        self.fence.steady.set(steady).ok();
        self
    }

    /// The same instance under other settings, of the same place. They count when the configuration is next written.
    pub fn with_settings(&self, settings: Settings) -> Postgres {
        Postgres { settings: Arc::new(settings), ..self.clone() }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn held(&self) -> Held {
        self.held.lock().expect("nobody panics while holding it").clone()
    }

    pub(crate) fn hold(&self, held: Held) {
        *self.held.lock().expect("nobody panics while holding it") = held;
    }

    /// Opens a connection; where clients have taken all that there are, the one that the last look came through. The answer to
    /// whom no place is left shows that the postmaster lives, and the old session whether the rest does (trap 45).
    pub(crate) async fn enter(&self, limit: Duration) -> Result<Connection, SqlError> {
        match Connection::open(&self.settings, limit, &[]).await {
            Err(error) if error.sqlstate() == Some(TOO_MANY) => {
                let spare = self.spare.lock().expect("nobody panics while holding it").take();
                spare.ok_or(error)
            }
            entered => entered,
        }
    }

    /// Keeps the connection as the spare one, in place of the one before.
    pub(crate) async fn keep_spare(&self, connection: Connection) {
        let before = self.spare.lock().expect("nobody panics while holding it").replace(connection);
        if let Some(before) = before {
            before.close().await;
        }
    }

    /// Has this agent's own thread kill at that moment what is held, or nothing. Waits for nobody.
    pub fn set_fence(&self, fuse: Option<Moment>) {
        let Held { keeper, postmaster, cwd, cgroup } = self.held();
        match (fuse, postmaster) {
            (Some(at), Some(_)) => {
                let data_dir = cwd.unwrap_or_else(|| self.settings.data_dir.clone());
                self.fence.set(Target { keeper, postmaster, data_dir, cgroup }, at);
            }
            (None, _) | (_, None) => self.fence.take_away(),
        }
    }

    /// The control group in which this instance is to run, or why there is none, which is said once.
    pub(crate) fn make_cgroup(&self) -> Option<Arc<Cgroup>> {
        static SAID: std::sync::Once = std::sync::Once::new();
        let name = cgroup::name_of(&self.settings.database, &self.settings.run_dir);
        let made = Cgroup::make(&name).inspect_err(|error| {
            SAID.call_once(|| {
                tracing::info!(%error, "PostgreSQL has no control group of its own; it is ended process by process");
            });
        });
        made.map(Arc::new).ok()
    }

    /// The control group that an earlier life has made.
    pub(crate) fn find_cgroup(&self) -> Option<Arc<Cgroup>> {
        let dir = std::fs::read_to_string(self.cgroup_file()).ok()?;
        Cgroup::at(dir.trim().as_ref()).map(Arc::new).ok()
    }

    pub(crate) fn cgroup_file(&self) -> PathBuf {
        self.settings.run_dir.join("cgroup")
    }

    /// The postmaster's number, if one is held.
    pub fn pid(&self) -> Option<u32> {
        self.held().postmaster.map(|process| process.pid)
    }

    /// What the kernel says of the postmaster. Asks no disk.
    pub fn process_state(&self) -> ProcessState {
        match self.held().postmaster.and_then(Process::stat).map(|stat| stat.state) {
            None | Some('X') => ProcessState::Gone,
            Some('Z') => ProcessState::Zombie,
            Some('T' | 't') => ProcessState::Stopped,
            Some(_) => ProcessState::Running,
        }
    }

    pub(crate) fn refuse_running(&self, what: &str) -> Result<(), Error> {
        match self.process_state() {
            ProcessState::Gone => Ok(()),
            ProcessState::Running | ProcessState::Stopped | ProcessState::Zombie => {
                Err(Error::new(format!("{what}: PostgreSQL runs")))
            }
        }
    }

    /// Does something that waits for the disk, on a thread for that, for [`DISK_LIMIT`] at most.
    pub(crate) async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let done = timeout(DISK_LIMIT, tokio::task::spawn_blocking(work)).await;
        let done = done.map_err(|_elapsed| {
            Error::new(format!("the disk has not answered for {} s", DISK_LIMIT.as_secs()))
        })?;
        done.doing("wait for the disk")?
    }

    /// Writes our configuration anew, whatever it was. The server is not told.
    pub(crate) async fn reshape(&self, shape: Shape) -> Result<(), Error> {
        let this = self.clone();
        let write = move || crate::conf::write(&this.settings, &this.account, &shape, None);
        self.on_disk(write).await.doing("write the configuration")
    }

    /// Changes our configuration on disk. The server is not told.
    pub(crate) async fn shape(
        &self,
        change: impl FnOnce(&mut Shape) + Send + 'static,
    ) -> Result<(), Error> {
        let _one = self.shaping.lock().await;
        let demands = self.control().await.doing("read the control file")?.demands;
        let this = self.clone();
        self.on_disk(move || {
            let mut shape = Shape::read(&this.settings.data_dir)?;
            change(&mut shape);
            crate::conf::write(&this.settings, &this.account, &shape, Some(demands))
        })
        .await
        .doing("write the configuration")
    }
}
