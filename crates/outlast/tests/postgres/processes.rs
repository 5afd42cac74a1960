//! The processes of one node, found by where they run and what they were started with.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").expect("this is Linux").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The processes of the PostgreSQL server whose data lies in this directory.
pub(crate) fn of_server(data: &Path) -> Vec<i32> {
    let here = |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data);
    all().filter(here).collect()
}

/// Those that were started with this word somewhere in it.
pub(crate) fn with_words(word: &str) -> Vec<i32> {
    let has = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(word)
    };
    let me = i32::try_from(std::process::id()).expect("the kernel's number fits");
    all().filter(|pid| *pid != me && has(pid)).collect()
}

/// Its first process, as it wrote down itself.
pub(crate) fn postmaster(data: &Path) -> Option<i32> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid = text.lines().next()?.parse().ok()?;
    let here = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data);
    here.then_some(pid)
}

/// Whether it has ended, be it collected or not.
pub(crate) fn is_dead(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

pub(crate) fn signal(pids: &[i32], signal: Signal) {
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        // It may have ended meanwhile.
        kill_process(pid, signal).ok();
    }
}

/// Those of a server that have this in their title.
pub(crate) fn of_kind(data: &Path, title: &str) -> Vec<i32> {
    let all = with_words(title);
    of_server(data).into_iter().filter(|pid| all.contains(pid)).collect()
}
