//! Processes that we start: each has an owner, its own process group and log, and ends when its owner does.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Gid, Pid, Signal, Uid, WaitOptions};

use crate::args::Args;
use crate::{Verdict, procs};

/// Between a polite signal and SIGKILL.
const STOP_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
/// No process that we start has a longer line of descendants.
const GENERATIONS_MAX: usize = 20;
const LOG_TAIL_LINES: usize = 20;

/// What to start.
#[derive(Debug)]
pub(crate) struct Spec<'a> {
    pub(crate) name: &'a str,
    pub(crate) program: &'a Path,
    pub(crate) args: &'a [String],
    /// Receives the log.
    pub(crate) dir: &'a Path,
    /// The only core to run on.
    pub(crate) core: Option<usize>,
    /// Starts processes itself, which it must be given the chance to end.
    pub(crate) has_children: bool,
}

/// A running process that is ours. Dropping it kills the whole group.
#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    child: std::process::Child,
    log: PathBuf,
}

impl Child {
    /// Must be called on the main thread: the child dies with the thread that started it.
    pub(crate) fn start(spec: &Spec<'_>) -> Result<Child> {
        let log = spec.dir.join(format!("{}.log", spec.name));
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("open {}", log.display()))?;
        let mut command = Command::new(std::env::current_exe().context("find ourselves")?);
        command.args(["leash", "--parent", &std::process::id().to_string()]);
        if let Some(core) = spec.core {
            command.args(["--core", &core.to_string()]);
        }
        if spec.has_children {
            command.arg("--gently");
        }
        command.arg("--").arg(spec.program).args(spec.args);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().with_context(|| format!("start {}", spec.name))?;
        Ok(Child { name: spec.name.to_owned(), child, log })
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("the kernel's process numbers fit")
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        rustix::process::kill_process(self.handle(), signal)
            .with_context(|| format!("signal {}", self.name))
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// An error with the end of its log, if it has ended.
    pub(crate) fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait().with_context(|| format!("look at {}", self.name))? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}){}", self.name, self.log_tail()),
        }
    }

    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        if tail.is_empty() { String::new() } else { format!(":\n{}", tail.join("\n")) }
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        Ok(())
    }

    /// SIGTERM, SIGKILL after a limit; true if it ended by itself and left no process behind.
    pub(crate) async fn stop(mut self) -> bool {
        let family = procs::tree(self.pid());
        let asked = !self.is_running() || self.signal(Signal::TERM).is_ok();
        let limit = Instant::now() + STOP_LIMIT;
        while self.is_running() && Instant::now() < limit {
            tokio::time::sleep(POLL).await;
        }
        let ended = !self.is_running();
        let left: Vec<_> = family.iter().filter(|member| still_there(member)).collect();
        for member in &left {
            kill_if_there(member.pid);
        }
        asked && ended && left.is_empty()
    }

    fn handle(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Nothing more can be done when the group is gone already.
        let _gone = rustix::process::kill_process_group(self.handle(), Signal::KILL).is_err();
        let _reaped = self.child.wait().is_ok();
    }
}

/// The same process, and not one that only waits to be reaped.
fn still_there(member: &procs::Stat) -> bool {
    procs::stat(member.pid).is_some_and(|now| now.started == member.started && now.state != 'Z')
}

fn kill_if_there(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _gone = rustix::process::kill_process(pid, Signal::KILL).is_err();
    }
}

/// All processes that descend from this one, also those whose parent was killed. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Household;

impl Household {
    /// From now on, a process that loses its parent becomes our child instead of nobody's.
    pub(crate) fn found() -> Result<Household> {
        let own = rustix::process::getpid();
        rustix::process::set_child_subreaper(Some(own)).context("adopt orphans")?;
        Ok(Household)
    }

    /// Who is left, dead ones aside.
    #[expect(clippy::unused_self, reason = "there is nobody to look for before it is founded")]
    pub(crate) fn members(&self) -> Vec<i32> {
        let own = rustix::process::getpid().as_raw_pid();
        let all = procs::tree(own).into_iter().filter(|stat| stat.pid != own && stat.state != 'Z');
        all.map(|stat| stat.pid).collect()
    }
}

impl Drop for Household {
    fn drop(&mut self) {
        // Whoever is killed leaves us its own children: a generation in each turn.
        for _ in 0..GENERATIONS_MAX {
            let members: Vec<Pid> = self.members().into_iter().filter_map(Pid::from_raw).collect();
            for member in &members {
                let _gone = rustix::process::kill_process(*member, Signal::KILL).is_err();
            }
            for member in &members {
                let _not_ours =
                    rustix::process::waitpid(Some(*member), WaitOptions::empty()).is_err();
            }
            if members.is_empty() {
                return;
            }
        }
    }
}

/// `leash --parent PID [--core N] [--gently] [--user NAME] -- PROGRAM ARGS`: becomes PROGRAM, tied to the life of PID.
pub(crate) fn leash(mut args: Args) -> Result<Verdict> {
    let parent: i32 = args.option("--parent")?.context("--parent is missing")?;
    let core = args.option("--core")?;
    let signal = if args.flag("--gently") { Signal::TERM } else { Signal::KILL };
    let user: Option<String> = args.option("--user")?;
    let words = args.rest()?;
    // Before the tie below, which a change of user would undo.
    user.as_deref().map_or(Ok(()), become_user)?;
    rustix::process::set_parent_process_death_signal(Some(signal))?;
    if rustix::process::getppid().map(Pid::as_raw_pid) != Some(parent) {
        bail!("the parent is gone");
    }
    if let Some(core) = core {
        pin_to(core)?;
    }
    let (program, rest) = words.split_first().context("no program")?;
    Err(Command::new(program).args(rest).exec()).with_context(|| format!("become {program}"))
}

/// Ties the calling thread, and what it starts, to one core.
pub(crate) fn pin_to(core: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("pin to core {core}"))
}

/// Gives up the rights of root for those of a user, for good.
fn become_user(name: &str) -> Result<()> {
    let user = User::find(name)?;
    rustix::thread::set_thread_groups(&[user.gid]).context("leave the groups of root")?;
    rustix::thread::set_thread_gid(user.gid).context("take on the group")?;
    rustix::thread::set_thread_uid(user.uid).with_context(|| format!("become {name}"))
}

/// A user of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
}

impl User {
    pub(crate) fn find(name: &str) -> Result<User> {
        let users = std::fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
        User::among(&users, name).with_context(|| format!("there is no user {name}"))
    }

    fn among(users: &str, name: &str) -> Option<User> {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2).map_while(|field| field.parse().ok());
        Some(User { uid: Uid::from_raw(numbers.next()?), gid: Gid::from_raw(numbers.next()?) })
    }

    /// Gives a file or directory to the user.
    pub(crate) fn give(self, path: &Path) -> Result<()> {
        std::os::unix::fs::chown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
            .with_context(|| format!("give away {}", path.display()))
    }
}

/// A directory for one run, removed with everything in it.
#[derive(Debug)]
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new(purpose: &str) -> Result<TempDir> {
        let path = std::env::temp_dir().join(format!("outlast-{purpose}-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(TempDir(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _left = std::fs::remove_dir_all(&self.0).is_err();
    }
}

/// Runs the work until it ends or someone asks us to stop (Ctrl-C, SIGTERM, a closed terminal): then `None`.
pub(crate) async fn unless_interrupted<T>(work: impl Future<Output = T>) -> Result<Option<T>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut hang_up = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    tokio::select! {
        done = work => Ok(Some(done)),
        pressed = tokio::signal::ctrl_c() => pressed.map(|()| None).context("listen for Ctrl-C"),
        _ = terminate.recv() => Ok(None),
        _ = hang_up.recv() => Ok(None),
    }
}

/// Looks again and again until the condition holds; false if it does not within the limit.
pub(crate) async fn wait_until(limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !condition().await {
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_the_whole_name() {
        let users =
            "post:x:1:2::/:\npostgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\nbad:x:y:1::/:\n";
        let found = User::among(users, "postgres");
        assert_eq!(found, Some(User { uid: Uid::from_raw(101), gid: Gid::from_raw(104) }));
        assert_eq!(User::among(users, "bad"), None);
        assert_eq!(User::among(users, "postgre"), None);
    }
}
