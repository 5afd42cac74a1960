//! Finds what a program has started, by a mark in the environment that children inherit.
//!
//! A process group is killed in one stroke, but a child may leave it (`setsid`). The mark finds those too, unless they
//! clear their environment; a cgroup, where there is one, finds all.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The environment variable that marks an instance and all it starts.
pub(crate) const MARK: &str = "OUTLAST_INSTANCE";
/// Rounds of killing: a marked process may fork while its siblings are killed.
const ROUNDS_MAX: usize = 5;
/// How often, and how far apart, a process without an environment is looked at again.
const EXEC_LOOKS: usize = 20;
const EXEC_LOOK: Duration = Duration::from_millis(1);

/// The lines of `/proc/PID/stat` that tell one process from another of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) state: char,
    pub(super) group: u32,
    /// Clock ticks from the machine's start to the process's.
    pub(super) began_ticks: u64,
    /// A kernel thread has no memory of its own.
    is_kernel: bool,
}

impl Stat {
    pub(super) fn read(pid: u32) -> Option<Stat> {
        Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Reads proc(5)'s fields 3, 5, 22 and 23; the name before them may hold spaces and brackets of its own.
    fn parse(text: &str) -> Option<Stat> {
        let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_whitespace().collect();
        Some(Stat {
            state: fields.first()?.chars().next()?,
            group: fields.get(2)?.parse().ok()?,
            began_ticks: fields.get(19)?.parse().ok()?,
            is_kernel: *fields.get(20)? == "0",
        })
    }

    pub(super) fn is_alive(self) -> bool {
        !['Z', 'X'].contains(&self.state)
    }
}

/// What tells an instance, and all it starts, from the rest of the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark<'a> {
    pub(crate) token: &'a str,
    /// When the instance itself began, if that is known: what is older is not looked at.
    pub(crate) since_ticks: Option<u64>,
}

impl Mark<'_> {
    /// The living processes that bear it.
    pub(super) fn found(self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(|&pid| self.is_on(pid)).collect()
    }

    /// The marked process that leads a group: the instance itself.
    pub(super) fn leader(self) -> Option<u32> {
        self.found().into_iter().find(|&pid| Stat::read(pid).is_some_and(|stat| stat.group == pid))
    }

    /// Kills whatever bears it.
    pub(crate) fn kill(self) {
        for _ in 0..ROUNDS_MAX {
            let pids = self.found();
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                if let Err(error) = self.kill_one(pid) {
                    tracing::warn!(pid, %error, "cannot kill what a program left behind");
                }
            }
        }
    }

    /// Holds the process before it looks again, so that the number cannot come to mean another one in between.
    fn kill_one(self, pid: u32) -> io::Result<()> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
        let Ok(fd) = pidfd_open(raw, PidfdFlags::empty()) else { return Ok(()) };
        if self.is_on(pid) {
            pidfd_send_signal(&fd, Signal::KILL)?;
        }
        Ok(())
    }

    fn is_on(self, pid: u32) -> bool {
        let path = format!("/proc/{pid}/environ");
        let mark = format!("{MARK}={}", self.token);
        for _ in 0..EXEC_LOOKS {
            let Some(stat) = Stat::read(pid) else { return false };
            let old = self.since_ticks.is_some_and(|since| stat.began_ticks < since);
            if old || !stat.is_alive() || stat.is_kernel {
                return false;
            }
            let Ok(environment) = fs::read(&path) else { return false };
            if !environment.is_empty() {
                return environment.split(|&byte| byte == 0).any(|v| v == mark.as_bytes());
            }
            // In the middle of exec a process has no environment yet.
            std::thread::park_timeout(EXEC_LOOK);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_program_calls_itself() {
        let line = "42 (a) b (c)) S 1 40 40 0 -1 4227084 75 0 1 0 0 0 0 0 20 0 1 0 135693 0 0";
        let stat = Stat { state: 'S', group: 40, began_ticks: 135_693, is_kernel: true };
        assert_eq!(Stat::parse(line), Some(stat));
        for len in 0..line.len() - "0 0".len() {
            assert_eq!(Stat::parse(&line[..len]), None, "{len}");
        }
    }

    #[test]
    fn this_process_is_alive_and_unmarked() {
        let stat = Stat::read(std::process::id()).unwrap();
        assert!(stat.is_alive() && stat.began_ticks > 0);
        assert!(!stat.is_kernel);
        let mark = Mark { token: "nobody-bears-this", since_ticks: None };
        assert_eq!(mark.found(), Vec::<u32>::new());
    }
}
