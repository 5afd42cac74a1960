//! How an instance ends: by itself, on request, at once.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::adopt::KEEPER_LIMIT;
use crate::clock::Moment;
use crate::control::Control;
use crate::error::{Doing, Error};
use crate::keeper::{self, Ask, Exit, Exited, ask};
use crate::postgres::{Held, Postgres, ProcessState};
use crate::proc::{Process, Tree};

/// How long a tree may take to die of SIGKILL: processes that wait for a stuck disk do not.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long a dead postmaster may stay uncollected.
const COLLECTION_LIMIT: Duration = Duration::from_secs(5);
/// How often a dying postmaster is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopHow {
    /// Sessions are ended, all is written down; what is left at the deadline is killed.
    Fast { deadline: Duration },
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It shut down by itself.
    Clean,
    /// It was killed.
    Killed,
    /// The postmaster ended by itself.
    Exited(Exit),
    /// The keeper is gone; the postmaster may live on without a fuse.
    KeeperGone,
}

impl Postgres {
    /// Moves the fuse, or takes it out: at once here, and with the keeper. An error means that there it stands where it stood.
    pub async fn set_fuse(&self, fuse: Option<Moment>) -> Result<(), Error> {
        self.set_fence(fuse);
        let set = ask(&self.settings.run_dir, &Ask::Fuse(fuse), KEEPER_LIMIT).await;
        set.map(drop).doing("set the fuse")
    }

    /// Waits until the postmaster is gone, or its keeper.
    pub async fn exited(&self) -> Ended {
        match keeper::exited(&self.settings.run_dir).await {
            Exited::Postmaster(exit) => Ended::Exited(exit),
            Exited::Keeper => Ended::KeeperGone,
        }
    }

    /// Stops the instance; when this returns without an error, no process of it is left.
    pub async fn stop(&self, how: StopHow) -> Result<Ended, Error> {
        let StopHow::Fast { deadline } = how;
        let Some(postmaster) = self.held().postmaster else {
            self.kill().await?;
            return Ok(Ended::Clean);
        };
        postmaster.signal(Signal::INT);
        let end = Instant::now() + deadline;
        while self.process_state() == ProcessState::Running && Instant::now() < end {
            sleep(LOOK).await;
        }
        let clean = self.process_state() == ProcessState::Gone
            || self.process_state() == ProcessState::Zombie;
        self.kill().await.doing("stop PostgreSQL")?;
        Ok(if clean { Ended::Clean } else { Ended::Killed })
    }

    /// Kills the whole tree at once, frozen or not; when this returns without an error, no process of it is left, and
    /// no session of it commits any more (traps 4, 5).
    pub async fn kill(&self) -> Result<(), Error> {
        let held = self.held();
        let this = self.clone();
        let (tell, told) = tokio::sync::oneshot::channel();
        // A thread of its own: those for files may all wait for a stuck disk. This one reads nothing but /proc.
        let work = move || drop(tell.send(this.kill_now(&held)));
        let spawned = std::thread::Builder::new().name("kill".to_owned()).spawn(work);
        spawned.doing("kill PostgreSQL")?;
        told.await.doing("kill PostgreSQL")?.doing("kill PostgreSQL")?;
        self.set_fence(None);
        self.dismiss().await;
        if let Some(group) = self.held().cgroup {
            group.remove();
        }
        self.hold(Held { keeper: None, postmaster: None, cgroup: None, ..self.held() });
        Ok(())
    }

    fn kill_now(&self, held: &Held) -> Result<(), Error> {
        let cwd = held.cwd.clone().unwrap_or_else(|| self.settings.data_dir.clone());
        let keeper = held.keeper.filter(|keeper| keeper.stat().is_some());
        let postmaster = held.postmaster.filter(|postmaster| postmaster.stat().is_some());
        if let Some(group) = &held.cgroup {
            group.kill();
        }
        let root = keeper.or(postmaster).map(|process| process.pid);
        let tree = Tree { root, with_root: keeper.is_none(), data_dir: &cwd };
        if !tree.kill(KILL_LIMIT) {
            return Err(Error::new("a process does not die of SIGKILL"));
        }
        if let Some(postmaster) = postmaster {
            await_collection(postmaster);
        }
        Ok(())
    }

    /// Lets the keeper go; one that does not go by itself is killed.
    async fn dismiss(&self) {
        let Some(keeper) = self.held().keeper else {
            ask(&self.settings.run_dir, &Ask::Leave, KEEPER_LIMIT).await.ok();
            return;
        };
        let end = Instant::now() + KEEPER_LIMIT;
        // It has to see the end of its postmaster first.
        while gone(keeper).is_none() && Instant::now() < end {
            if ask(&self.settings.run_dir, &Ask::Leave, KEEPER_LIMIT).await.is_err() {
                sleep(LOOK).await;
            }
        }
        keeper.signal(Signal::KILL);
    }

    /// The control file after a stop: where the log ends, if it was a clean one.
    pub async fn stopped_at(&self) -> Result<Control, Error> {
        self.refuse_running("read where the log ends")?;
        self.control().await
    }
}

/// Waits until whoever is its parent has collected a dead postmaster: while its number is taken, no other one starts in
/// its directory. Blocks.
fn await_collection(postmaster: Process) {
    let end = std::time::Instant::now() + COLLECTION_LIMIT;
    while postmaster.stat().is_some() && std::time::Instant::now() < end {
        std::thread::park_timeout(LOOK);
    }
}

fn gone(process: Process) -> Option<()> {
    process.stat().filter(|stat| stat.is_alive()).is_none().then_some(())
}
