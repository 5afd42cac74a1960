//! The keeper: a small process between the agent and the postmaster, which ends PostgreSQL when its time is over.
//!
//! It is the postmaster's parent, and the adopter of what that leaves behind. It holds a *fuse*: a moment at which it
//! kills all of it, unless the agent has moved the moment before. The agent may die and come back meanwhile; if it does
//! not come back in time, PostgreSQL does not outlive the right under which it was started.
//!
//! After the start it touches no data disk, so that a stuck disk cannot keep it from its work, and it stays in memory
//! where the system allows that. It listens at `keeper.sock` in the run directory; each connection brings one question,
//! a line of JSON, and gets one line back.

mod ask;
mod run;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::clock::Moment;

pub(crate) use ask::ask;
pub(crate) use ask::exited;
pub(crate) use ask::{AskError, Exited};
pub use run::run;

/// Bytes of a line.
const LINE_MAX: usize = 64 << 10;
/// How long the keeper stays after its postmaster is gone, for an agent to hear how it ended.
const LINGER: Duration = Duration::from_secs(60);
/// How long the tree may take to die of SIGKILL before the keeper says that it cannot end it, and goes on trying.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// Version of the messages: the keeper may be of an older build than the agent.
const VERSION: u32 = 1;

/// Where a keeper listens.
pub(crate) fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("keeper.sock")
}

/// What the agent asks of the keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Start the postmaster.
    Start(Box<Start>),
    /// Kill all of it at this moment; `None` takes the fuse out.
    Fuse(Option<Moment>),
    How,
    /// Answered once the postmaster is gone.
    Wait,
    /// Leave, if the postmaster is gone.
    Leave,
}

/// How to start the postmaster.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) program: OsString,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(String, OsString)>,
    pub(crate) account: Account,
    /// Its data directory, as the kernel shows it.
    pub(crate) data_dir: PathBuf,
    pub(crate) fuse: Option<Moment>,
    /// The control group in which it is to run.
    #[serde(default)]
    pub(crate) cgroup: Option<PathBuf>,
}

/// How it stands with the keeper and its postmaster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    pub(crate) v: u32,
    pub(crate) keeper: u32,
    pub(crate) postmaster: Option<u32>,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) fuse: Option<Moment>,
    /// How the postmaster ended.
    pub(crate) exit: Option<Exit>,
    /// Whether the keeper stays in memory.
    pub(crate) locked: bool,
}

/// How a postmaster ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The fuse burnt down.
    pub burnt: bool,
}

/// What the keeper answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Standing(Standing),
    Refused(String),
}
