//! Processes as `/proc` shows them: who is there, whose child, where it works, and how all of them are ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long to wait between two looks at a dying tree.
const LOOK: Duration = Duration::from_millis(2);

/// Bytes of a path below `/proc`, and of a line of `stat`.
pub(crate) const PATH: usize = 32;
const LINE: usize = 2 << 10;

/// The fields of `/proc/PID/stat` that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: char,
    pub(crate) parent: u32,
    /// Clock ticks from the machine's start to the process's.
    pub(crate) began_ticks: u64,
}

impl Stat {
    /// Allocates nothing: the fence asks, too.
    pub(crate) fn read(pid: u32) -> Option<Stat> {
        let mut name = [0; PATH];
        let mut bytes = [0; LINE];
        let mut file = File::open(path_of(pid, "stat", &mut name)?).ok()?;
        let count = file.read(&mut bytes).ok()?;
        Stat::parse(&bytes[..count])
    }

    /// Reads proc(5)'s fields 3, 4 and 22; the name before them may hold anything.
    fn parse(line: &[u8]) -> Option<Stat> {
        let name_end = line.iter().rposition(|byte| *byte == b')')?;
        let mut fields = std::str::from_utf8(&line[name_end + 1..]).ok()?.split_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let began_ticks = fields.nth(17)?.parse().ok()?;
        Some(Stat { state, parent, began_ticks })
    }

    pub(crate) fn is_alive(self) -> bool {
        !['Z', 'X'].contains(&self.state)
    }
}

/// `/proc/PID/WHAT`, in memory that is there already.
pub(crate) fn path_of<'a>(pid: u32, what: &str, name: &'a mut [u8; PATH]) -> Option<&'a str> {
    let mut rest = &mut name[..];
    write!(rest, "/proc/{pid}/{what}").ok()?;
    let length = PATH - rest.len();
    std::str::from_utf8(&name[..length]).ok()
}

/// A process, held by number and start: a recycled number is another process (trap 43).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) began_ticks: u64,
}

impl Process {
    pub(crate) fn find(pid: u32) -> Option<Process> {
        let stat = Stat::read(pid)?;
        Some(Process { pid, began_ticks: stat.began_ticks })
    }

    /// As it is now; `None` if it is gone or its number means another.
    pub(crate) fn stat(self) -> Option<Stat> {
        Stat::read(self.pid).filter(|stat| stat.began_ticks == self.began_ticks)
    }

    /// Sends a signal; to one that is gone it is no error.
    pub(crate) fn signal(self, signal: Signal) {
        if let Err(error) = self.send(signal)
            && error != Errno::SRCH
        {
            tracing::warn!(pid = self.pid, %error, "cannot signal a process");
        }
    }

    /// The same without a word in the log. Holds the process before it looks again, so that the number cannot come to mean
    /// another one in between.
    pub(crate) fn send(self, signal: Signal) -> Result<(), Errno> {
        let raw = i32::try_from(self.pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        let fd = pidfd_open(raw, PidfdFlags::empty())?;
        self.stat().ok_or(Errno::SRCH)?;
        pidfd_send_signal(&fd, signal)
    }
}

/// All that belongs to an instance: what descends from its root, and what works in its data directory.
///
/// A backend whose postmaster was killed is found by either.
#[derive(Clone, Debug)]
pub(crate) struct Tree<'a> {
    /// The keeper or the postmaster. The root of a keeper's tree is itself not killed.
    pub(crate) root: Option<u32>,
    pub(crate) with_root: bool,
    pub(crate) data_dir: &'a Path,
}

impl Tree<'_> {
    /// The living ones, the postmaster's own children behind it.
    pub(crate) fn alive(&self) -> Vec<Process> {
        let all = all();
        let mut members: BTreeSet<u32> = self.root.into_iter().collect();
        // Children may have lower numbers than their parents: look until nothing is added.
        loop {
            let before = members.len();
            members.extend(
                all.iter()
                    .filter(|(_, stat)| members.contains(&stat.parent))
                    .map(|(pid, _)| *pid)
                    .collect::<Vec<_>>(),
            );
            if members.len() == before {
                break;
            }
        }
        members.extend(all.keys().filter(|pid| works_in(**pid, self.data_dir)));
        if let Some(root) = self.root.filter(|_| !self.with_root) {
            members.remove(&root);
        }
        members.remove(&std::process::id());
        let found = members.into_iter().filter_map(|pid| {
            let stat = all.get(&pid).filter(|stat| stat.is_alive())?;
            Some((stat.parent, Process { pid, began_ticks: stat.began_ticks }))
        });
        let mut found: Vec<_> = found.collect();
        // Whoever can still fork goes first.
        found.sort_by_key(|(parent, process)| (found_depth(&all, *parent), process.pid));
        found.into_iter().map(|(_, process)| process).collect()
    }

    /// Sends SIGKILL to all, again and again, until none is left; whether that was so within the limit. Blocks.
    pub(crate) fn kill(&self, limit: Duration) -> bool {
        let began = Instant::now();
        loop {
            let alive = self.alive();
            if alive.is_empty() {
                return true;
            }
            for process in alive {
                process.signal(Signal::KILL);
            }
            if began.elapsed() >= limit {
                return false;
            }
            std::thread::park_timeout(LOOK);
        }
    }
}

/// How far below the first process; a wrong answer only costs the order.
fn found_depth(all: &BTreeMap<u32, Stat>, mut pid: u32) -> usize {
    let mut depth = 0;
    while let Some(stat) = all.get(&pid)
        && depth < all.len()
    {
        (pid, depth) = (stat.parent, depth + 1);
    }
    depth
}

fn all() -> BTreeMap<u32, Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, Stat::read(pid)?))).collect()
}

/// Whether the process works in this directory. The kernel answers from memory: no disk is asked.
pub(crate) fn works_in(pid: u32, dir: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir)
}

/// The children of a process, with what each calls itself.
pub(crate) fn children(parent: u32) -> Vec<(Process, String)> {
    let children = all().into_iter().filter(|(_, stat)| stat.parent == parent && stat.is_alive());
    children
        .map(|(pid, stat)| (Process { pid, began_ticks: stat.began_ticks }, title(pid)))
        .collect()
}

fn title(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_program_calls_itself() {
        let line = "42 (a) b (c)) S 7 40 40 0 -1 4227084 75 0 1 0 0 0 0 0 20 0 1 0 135693 0 0";
        let stat = Stat { state: 'S', parent: 7, began_ticks: 135_693 };
        assert_eq!(Stat::parse(line.as_bytes()), Some(stat));
        assert_eq!(Stat::parse(b"42 (\xff) S 7"), None);
        assert_eq!(Stat::parse(b"42 (a"), None);
    }

    #[test]
    fn a_recycled_number_is_another_process() {
        let this = Process::find(std::process::id()).unwrap();
        assert!(this.stat().is_some());
        let other = Process { began_ticks: this.began_ticks + 1, ..this };
        assert_eq!(other.stat(), None);
        // It would end this test.
        other.signal(Signal::KILL);
    }
}
