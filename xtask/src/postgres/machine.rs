//! A node on this machine: its agent, its PostgreSQL and whatever else they have started, as one thing that can break.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};

use crate::children::{Child, Spec, wait_until};
use crate::procs;

/// For a signal to take effect on all that it is sent to.
const EFFECT_LIMIT: Duration = Duration::from_secs(5);
/// For an agent to end by itself.
const END_LIMIT: Duration = Duration::from_secs(30);
const START_LIMIT: Duration = Duration::from_secs(10);

/// Which processes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All: as if the host were gone.
    All,
    Agent,
    /// The server process that all others of PostgreSQL descend from.
    Postmaster,
    /// The postmaster and all that descend from it.
    Postgres,
}

/// How the agent is started.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) user: Option<&'static str>,
}

#[derive(Debug)]
pub(crate) struct Machine {
    name: String,
    program: Program,
    dir: PathBuf,
    /// Of PostgreSQL.
    data_dir: PathBuf,
    /// The last one is the parent of the agent; earlier ones may still have what outlived theirs.
    reapers: Vec<Child>,
    agent: Pid,
}

impl Machine {
    pub(crate) async fn start(
        name: &str,
        program: Program,
        data_dir: PathBuf,
        dir: &Path,
    ) -> Result<Machine> {
        let (reaper, agent) = start(name, &program, dir).await?;
        let (name, dir, reapers) = (name.to_owned(), dir.to_owned(), vec![reaper]);
        Ok(Machine { name, program, dir, data_dir, reapers, agent })
    }

    /// Starts the agent again after it was killed; what outlived it lives on.
    pub(crate) async fn start_again(&mut self) -> Result<()> {
        ensure!(self.pids(Part::Agent).is_empty(), "the agent of {} still runs", self.name);
        self.reapers.retain_mut(Child::is_running);
        let (reaper, agent) = start(&self.name, &self.program, &self.dir).await?;
        self.reapers.push(reaper);
        self.agent = agent;
        Ok(())
    }

    /// Those that live, a postmaster first.
    pub(crate) fn pids(&self, part: Part) -> Vec<i32> {
        let own: Vec<i32> = self.reapers.iter().map(Child::pid).collect();
        let all: Vec<i32> = own
            .iter()
            .flat_map(|&reaper| living(reaper))
            .filter(|pid| !own.contains(pid))
            .collect();
        let agent = self.agent.as_raw_pid();
        let postmaster = || {
            let named = postmaster(&self.data_dir).filter(|pid| all.contains(pid));
            named.or_else(|| all.iter().copied().find(|pid| is_postmaster(*pid)))
        };
        match part {
            Part::All => all,
            Part::Agent => all.into_iter().filter(|pid| *pid == agent).collect(),
            Part::Postmaster => postmaster().into_iter().collect(),
            Part::Postgres => {
                let Some(first) = postmaster() else { return Vec::new() };
                let rest = living(first).into_iter().filter(|pid| *pid != first);
                std::iter::once(first).chain(rest).collect()
            }
        }
    }

    /// Whether its agent stands still.
    pub(crate) fn is_frozen(&self) -> bool {
        procs::stat(self.agent.as_raw_pid()).is_some_and(|stat| stat.state == 'T')
    }

    /// All but PostgreSQL: what it costs to be looked after.
    pub(crate) fn keepers(&self) -> Vec<i32> {
        let postgres = self.pids(Part::Postgres);
        self.pids(Part::All).into_iter().filter(|pid| !postgres.contains(pid)).collect()
    }

    /// SIGKILL; returns when they are gone.
    pub(crate) async fn kill(&self, part: Part) -> Result<()> {
        self.inflict(part, Signal::KILL, |_| false).await
    }

    /// SIGSTOP; returns when all have stopped. What must go on again is returned.
    pub(crate) async fn freeze(&self, part: Part) -> Result<Frozen> {
        let frozen = Frozen { pids: self.pids(part) };
        self.inflict(part, Signal::STOP, |state| state == 'T').await?;
        Ok(frozen)
    }

    /// Sends to all at once, then waits until each is gone or in a state that will do.
    async fn inflict(&self, part: Part, signal: Signal, will_do: fn(char) -> bool) -> Result<()> {
        let victims = self.pids(part);
        ensure!(!victims.is_empty(), "{} has no process that could be hit: {part:?}", self.name);
        for pid in &victims {
            send(*pid, signal);
        }
        let hit = wait_until(EFFECT_LIMIT, async || {
            let states = victims.iter().filter_map(|pid| procs::stat(*pid));
            states.filter(|stat| stat.state != 'Z').all(|stat| will_do(stat.state))
        });
        ensure!(hit.await, "{signal:?} had no effect on {part:?} of {}", self.name);
        Ok(())
    }

    /// SIGTERM for the agent, as a restart of its service does; returns when it is gone.
    pub(crate) async fn end_agent(&self) -> Result<()> {
        for pid in self.pids(Part::Agent) {
            send(pid, Signal::TERM);
        }
        let gone = wait_until(END_LIMIT, async || self.pids(Part::Agent).is_empty());
        ensure!(gone.await, "the agent of {} does not end within {END_LIMIT:?}", self.name);
        Ok(())
    }

    /// An error, with the end of its log, if the agent has ended.
    pub(crate) fn check(&self) -> Result<()> {
        if self.pids(Part::Agent).is_empty() {
            bail!("the agent of {} has ended{}", self.name, self.log_tail());
        }
        Ok(())
    }

    pub(crate) fn log_tail(&self) -> String {
        let tail = self.reapers.last().map(Child::log_tail).unwrap_or_default();
        format!("\nthe last that {} wrote{tail}", self.name)
    }

    /// Ends the agent, which ends PostgreSQL.
    pub(crate) async fn stop(self) {
        for pid in self.pids(Part::All) {
            send(pid, Signal::CONT);
        }
        for reaper in self.reapers.into_iter().rev() {
            reaper.stop().await;
        }
    }
}

/// Processes that stand still until this is dropped.
#[derive(Debug)]
pub(crate) struct Frozen {
    pids: Vec<i32>,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.pids {
            send(*pid, Signal::CONT);
        }
    }
}

async fn start(name: &str, program: &Program, dir: &Path) -> Result<(Child, Pid)> {
    let pid_file = dir.join(format!("{name}.pid"));
    let _first_time = std::fs::remove_file(&pid_file).is_err();
    let text = |path: &Path| {
        Ok::<_, anyhow::Error>(path.to_str().context("a name that is not text")?.to_owned())
    };
    let mut args = vec!["reaper".to_owned(), "--pid-file".to_owned(), text(&pid_file)?];
    if let Some(user) = program.user {
        args.extend(["--user".to_owned(), user.to_owned()]);
    }
    args.extend(["--".to_owned(), text(&program.path)?]);
    args.extend(program.args.iter().cloned());
    let own = std::env::current_exe().context("find ourselves")?;
    let spec = Spec { name, program: &own, args: &args, dir, core: None, has_children: true };
    let mut reaper = Child::start(&spec)?;
    let mut agent = None;
    let started = wait_until(START_LIMIT, async || {
        let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
        agent = text.parse().ok().and_then(Pid::from_raw);
        agent.is_some() || !reaper.is_running()
    });
    let started = started.await;
    reaper.check_running()?;
    let agent = agent.filter(|_| started).with_context(|| format!("{name} does not start"))?;
    Ok((reaper, agent))
}

/// A process and all that descend from it, dead ones aside.
fn living(root: i32) -> Vec<i32> {
    procs::tree(root).into_iter().filter(|stat| stat.state != 'Z').map(|stat| stat.pid).collect()
}

/// The process that a data directory says it belongs to.
fn postmaster(data_dir: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok()
}

/// Its children have said on their command lines what they do.
fn is_postmaster(pid: i32) -> bool {
    let words = procs::command_line(pid);
    words.first().is_some_and(|word| word == "postgres" || word.ends_with("/postgres"))
}

/// Whoever is gone already need not be hit.
fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _gone = rustix::process::kill_process(pid, signal).is_err();
    }
}
