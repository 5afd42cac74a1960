//! The agent's own fence: a thread that kills PostgreSQL at its deadline, whatever else of the agent hangs.
//!
//! It sleeps on a clock that counts suspension and does nothing but this. Once it runs it allocates nothing, asks no data
//! disk and writes no log; the one lock that it takes is held by others only while they exchange two words.

use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, RawDir, open, readlinkat_raw};
use rustix::process::Signal;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::cgroup::Cgroup;
use crate::clock::Moment;
use crate::error::{Doing, Error};
use crate::proc::{self, Process, Stat};

/// Between two rounds of killing: what waits for a stuck disk does not die, and others have to run.
const PAUSE: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// How far below the keeper a process may be: PostgreSQL starts a shell at most, which starts a program.
const DEPTH_MAX: usize = 16;

/// Bytes of the thread's stack; all of it is small enough to be kept in memory.
const STACK: usize = 256 << 10;
/// Bytes of a directory's entries that are read at once, and of a path.
const ENTRIES: usize = 8 << 10;
const PATH_MAX: usize = 4 << 10;

/// What there is to kill.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) keeper: Option<Process>,
    pub(crate) postmaster: Option<Process>,
    /// The data directory as the kernel shows it.
    pub(crate) data_dir: PathBuf,
    pub(crate) cgroup: Option<Arc<Cgroup>>,
}

/// The fence of one instance; its thread begins with the first deadline, and ends when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Fence {
    watched: OnceLock<Option<Arc<Watched>>>,
    /// What the thread does first, so that it runs when the machine is short of memory or of time.
    pub(crate) steady: OnceLock<fn()>,
}

/// What agent and thread share.
#[derive(Debug)]
struct Watched {
    /// Nanoseconds of the boottime clock; 0: there is no deadline.
    until: AtomicU64,
    target: Mutex<Option<Arc<Target>>>,
    alarm: std::os::fd::OwnedFd,
    ends: AtomicBool,
}

impl Fence {
    /// Kills this at that moment, and no more what was named before.
    pub(crate) fn set(&self, target: Target, at: Moment) {
        let Some(watched) = self.watched.get_or_init(|| self.begin()) else { return };
        let target = Arc::new(target);
        let before = watched.target.lock().expect("nobody panics while holding it").replace(target);
        drop(before);
        watched.ring_at(at.nanos.max(1));
    }

    /// Nothing is to be killed any more.
    pub(crate) fn take_away(&self) {
        if let Some(watched) = self.watched.get().and_then(Option::as_ref) {
            watched.until.store(0, SeqCst);
        }
    }

    fn begin(&self) -> Option<Arc<Watched>> {
        let steady = self.steady.get().copied();
        Watched::begin(steady)
            .inspect_err(|error| {
                tracing::warn!(%error, "PostgreSQL is ended in time by its keeper only");
            })
            .ok()
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        if let Some(watched) = self.watched.get().and_then(Option::as_ref) {
            watched.ends.store(true, SeqCst);
            watched.ring_at(1);
        }
    }
}

impl Watched {
    fn begin(steady: Option<fn()>) -> Result<Arc<Watched>, Error> {
        let alarm = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)
            .doing("make the timer of the fence")?;
        let watched = Arc::new(Watched {
            until: AtomicU64::new(0),
            target: Mutex::new(None),
            alarm,
            ends: AtomicBool::new(false),
        });
        let thread = watched.clone();
        let watch = move || thread.watch(steady);
        let spawned =
            std::thread::Builder::new().name("fence".to_owned()).stack_size(STACK).spawn(watch);
        spawned.doing("start the thread of the fence")?;
        Ok(watched)
    }

    fn ring_at(&self, nanos: u64) {
        self.until.store(nanos, SeqCst);
        let tv_sec = i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX);
        let tv_nsec = i64::try_from(nanos % 1_000_000_000).unwrap_or(0);
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timer = Itimerspec { it_interval, it_value: Timespec { tv_sec, tv_nsec } };
        timerfd_settime(&self.alarm, TimerfdTimerFlags::ABSTIME, &timer)
            .expect("an open timer takes every moment");
    }

    fn watch(&self, steady: Option<fn()>) {
        if let Some(steady) = steady {
            steady();
        }
        // Walks once, so that all that it needs is in memory.
        let nobody =
            Target { keeper: None, postmaster: None, data_dir: PathBuf::new(), cgroup: None };
        end_all(&nobody);
        loop {
            while rustix::io::read(&self.alarm, &mut [0; 8]) == Err(rustix::io::Errno::INTR) {}
            if self.ends.load(SeqCst) {
                return;
            }
            self.burn();
        }
    }

    /// Kills until nothing is left. A deadline that is moved meanwhile is that of somebody who has the right to go on.
    fn burn(&self) {
        let mut pause = PAUSE;
        while let Some(until) = self.over() {
            let target = self.target.lock().expect("nobody panics while holding it").clone();
            if target.is_none_or(|target| end_all(&target) == Some(0)) {
                // What is started later has a deadline of its own, or none.
                self.until.compare_exchange(until, 0, SeqCst, SeqCst).ok();
                return;
            }
            std::thread::park_timeout(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// The deadline, if it is over.
    fn over(&self) -> Option<u64> {
        let until = self.until.load(SeqCst);
        (until != 0 && until <= Moment::now().nanos && !self.ends.load(SeqCst)).then_some(until)
    }
}

/// Sends SIGKILL to all that is left of it; how many that were, `None` if nobody could be asked.
fn end_all(target: &Target) -> Option<usize> {
    if let Some(group) = &target.cgroup {
        group.kill();
    }
    let postmaster = target.postmaster.filter(|postmaster| is_alive(*postmaster));
    if let Some(postmaster) = postmaster {
        // It starts no others, and stays the parent of those that it has.
        postmaster.send(Signal::STOP).ok();
    }
    let keeper = target.keeper.filter(|keeper| is_alive(*keeper)).map(|keeper| keeper.pid);
    let root = keeper.or(postmaster.map(|postmaster| postmaster.pid));
    let proc = open("/proc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let mut bytes = [MaybeUninit::uninit(); ENTRIES];
    let mut entries = RawDir::new(proc.ok()?, &mut bytes);
    let spared = [Some(std::process::id()), keeper, postmaster.map(|postmaster| postmaster.pid)];
    let mut found = 0;
    while let Some(entry) = entries.next() {
        let Ok(entry) = entry else { return None };
        let pid = entry.file_name().to_str().ok().and_then(|name| name.parse().ok());
        let Some(pid) = pid.filter(|pid| !spared.contains(&Some(*pid))) else { continue };
        let Some(stat) = Stat::read(pid).filter(|stat| stat.is_alive()) else { continue };
        if works_in(pid, &target.data_dir) || root.is_some_and(|root| descends(stat, root)) {
            Process { pid, began_ticks: stat.began_ticks }.send(Signal::KILL).ok();
            found += 1;
        }
    }
    if let Some(postmaster) = postmaster {
        postmaster.send(Signal::KILL).ok();
        found += 1;
    }
    Some(found)
}

fn is_alive(process: Process) -> bool {
    process.stat().is_some_and(Stat::is_alive)
}

fn descends(mut stat: Stat, root: u32) -> bool {
    for _ in 0..DEPTH_MAX {
        if stat.parent == root {
            return true;
        }
        match Stat::read(stat.parent) {
            Some(parent) => stat = parent,
            None => return false,
        }
    }
    false
}

/// The same as [`crate::proc::works_in`], in memory that is there already.
fn works_in(pid: u32, dir: &Path) -> bool {
    let (mut name, mut bytes) = ([0; proc::PATH], [0_u8; PATH_MAX]);
    let Some(path) = proc::path_of(pid, "cwd", &mut name) else { return false };
    let count = readlinkat_raw(CWD, path, &mut bytes[..]);
    count.is_ok_and(|count| bytes[..count] == *dir.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A shell that works in a directory, with a program below it that works elsewhere.
    fn tree(dir: &Path) -> Child {
        let mut shell = Command::new("sh");
        shell.args(["-c", "cd /; sleep 600 & cd -; wait"]).current_dir(dir);
        shell.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
    }

    fn children(pid: u32) -> Vec<Process> {
        proc::children(pid).into_iter().map(|(process, _)| process).collect()
    }

    fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(found) = found() {
                return found;
            }
            assert!(Instant::now() < end, "not in time: {what}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    struct Scene {
        dir: PathBuf,
        shell: Child,
        below: Process,
    }

    impl Scene {
        fn new(name: &str) -> Scene {
            let name = format!("outlast-fence-{name}-{}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&dir).unwrap();
            let dir = dir.canonicalize().unwrap();
            let shell = tree(&dir);
            let below = until("a program runs", || children(shell.id()).first().copied());
            Scene { dir, shell, below }
        }

        fn target(&self) -> Target {
            let postmaster = Process::find(self.shell.id());
            Target { keeper: None, postmaster, data_dir: self.dir.clone(), cgroup: None }
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            self.below.signal(Signal::KILL);
            self.shell.kill().ok();
            self.shell.wait().ok();
            std::fs::remove_dir_all(&self.dir).ok();
        }
    }

    #[test]
    fn at_its_deadline_it_kills_the_whole_tree_frozen_or_not_and_nothing_before() {
        let scene = Scene::new("deadline");
        let fence = Fence::default();
        scene.below.signal(Signal::STOP);
        fence.set(scene.target(), Moment::after(LIMIT * 6));
        let at = Moment::after(Duration::from_millis(200));
        fence.set(scene.target(), at);
        let shell = Process::find(scene.shell.id()).unwrap();
        until("both are dead", || (!is_alive(shell) && !is_alive(scene.below)).then_some(()));
        assert!(at <= Moment::now(), "too early");
    }

    #[test]
    fn what_is_left_of_a_dead_postmaster_is_found_by_where_it_works() {
        let mut scene = Scene::new("orphan");
        let orphan = Command::new("sh")
            .args(["-c", "sleep 600"])
            .current_dir(&scene.dir)
            .spawn()
            .map(|child| Process::find(child.id()).unwrap());
        let (orphan, target) = (orphan.unwrap(), scene.target());
        scene.shell.kill().unwrap();
        scene.shell.wait().unwrap();
        let fence = Fence::default();
        fence.set(target, Moment::now());
        until("it is dead", || (!is_alive(orphan)).then_some(()));
        // The other one works elsewhere, and whose it was nobody can tell any more.
        assert!(is_alive(scene.below));
    }

    #[test]
    fn a_deadline_that_was_moved_or_taken_away_kills_nobody() {
        let (moved, taken) = (Scene::new("moved"), Scene::new("taken"));
        let marker = Scene::new("marker");
        let [one, two, three] = [(); 3].map(|()| Fence::default());
        let soon = Moment::after(Duration::from_millis(100));
        one.set(moved.target(), soon);
        one.set(moved.target(), Moment::after(LIMIT * 6));
        two.set(taken.target(), soon);
        two.take_away();
        // Once a third one has done its work, theirs would have been done, too.
        three.set(marker.target(), Moment { nanos: soon.nanos + 100_000_000 });
        until("the marker is dead", || (!is_alive(marker.below)).then_some(()));
        for scene in [&moved, &taken] {
            assert!(is_alive(scene.below) && is_alive(Process::find(scene.shell.id()).unwrap()));
        }
    }
}
