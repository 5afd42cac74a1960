//! What the kernel says about processes: their state, their children, their CPU time, their memory.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};

/// One line of /proc/PID/stat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: i32,
    /// R, S, D, T (stopped), Z (dead, not yet waited for)
    pub(crate) state: char,
    pub(crate) parent: i32,
    cpu_ticks: u64,
    reaped_ticks: u64,
    /// Tells a process from a later one with the same number.
    pub(crate) started: u64,
}

impl Stat {
    /// User and system time of its own.
    pub(crate) fn cpu(&self) -> Duration {
        ticks(self.cpu_ticks)
    }

    /// Its own time and that of children that have ended.
    pub(crate) fn cpu_with_ended(&self) -> Duration {
        ticks(self.cpu_ticks + self.reaped_ticks)
    }
}

/// `None` when there is no such process.
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The process and all that descend from it.
pub(crate) fn tree(root: i32) -> Vec<Stat> {
    let all: Vec<Stat> = pids().into_iter().filter_map(stat).collect();
    let mut members = BTreeSet::from([root]);
    loop {
        let before = members.len();
        members.extend(
            all.iter().filter(|s| members.contains(&s.parent)).map(|s| s.pid).collect::<Vec<_>>(),
        );
        if members.len() == before {
            return all.into_iter().filter(|s| members.contains(&s.pid)).collect();
        }
    }
}

fn pids() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The words that the process was started with.
pub(crate) fn command_line(pid: i32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Forgets the highest memory use so far.
pub(crate) fn reset_peak_memory(pid: i32) -> Result<()> {
    // proc(5): 5 resets the peak resident set size.
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("reset peak memory")
}

/// The highest resident set since the start or the last reset, in bytes.
pub(crate) fn peak_memory(pid: i32) -> Result<u64> {
    status_bytes(pid, "VmHWM:")
}

/// The resident set, in bytes.
pub(crate) fn memory(pid: i32) -> Result<u64> {
    status_bytes(pid, "VmRSS:")
}

fn status_bytes(pid: i32, name: &str) -> Result<u64> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).context("read memory use")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let line = line.with_context(|| format!("no {name}"))?.trim().trim_end_matches(" kB");
    let kib: u64 = line.parse().with_context(|| format!("read {name}"))?;
    Ok(kib << 10)
}

/// What a thread has used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Thread {
    pub(crate) name: String,
    pub(crate) cpu: Duration,
    /// The same by the clock's ticks, coarser.
    pub(crate) user: Duration,
    pub(crate) system: Duration,
}

/// All threads of a process.
pub(crate) fn threads(pid: i32) -> Vec<Thread> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let read = |entry: std::fs::DirEntry| {
        let file = |name: &str| std::fs::read_to_string(entry.path().join(name)).ok();
        parse_thread(&file("comm")?, &file("schedstat")?, &file("stat")?)
    };
    entries.flatten().filter_map(read).collect()
}

fn parse_thread(comm: &str, schedstat: &str, stat: &str) -> Option<Thread> {
    let nanos = schedstat.split_whitespace().next()?.parse().ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Thread {
        name: comm.trim_end().to_owned(),
        cpu: Duration::from_nanos(nanos),
        user: ticks(number(11)?),
        system: ticks(number(12)?),
    })
}

/// Time that all cores together spent on anybody's work, and time that the hypervisor took away.
pub(crate) fn machine_cpu() -> Result<(Duration, Duration)> {
    let stat = std::fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let first = stat.lines().next().context("empty /proc/stat")?;
    let fields: Vec<u64> =
        first.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = fields[..] else {
        anyhow::bail!("/proc/stat has too few fields");
    };
    Ok((ticks(user + nice + system + irq + softirq), ticks(steal)))
}

/// How long, since the machine began, some task waited for a core: the noise of a machine that is shared.
pub(crate) fn cpu_stall() -> Option<Duration> {
    parse_stall(&std::fs::read_to_string("/proc/pressure/cpu").ok()?)
}

fn parse_stall(text: &str) -> Option<Duration> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    let total = some.split_whitespace().find_map(|field| field.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

fn ticks(count: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_millis(count * 1000 / per_second)
}

fn parse_stat(line: &str) -> Option<Stat> {
    let pid = line.split_once(' ')?.0.parse().ok()?;
    // The name stands in brackets and may contain any of them.
    let fields: Vec<&str> = line.rsplit_once(") ")?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat {
        pid,
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        cpu_ticks: number(11)? + number(12)?,
        reaped_ticks: number(13)? + number(14)?,
        started: number(19)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let line = "42 (a) b (c) T 7 42 42 0 -1 0 0 0 0 0 10 20 3 4 20 0 1 0 9999 1 2";
        let expected =
            Stat { pid: 42, state: 'T', parent: 7, cpu_ticks: 30, reaped_ticks: 7, started: 9999 };
        assert_eq!(parse_stat(line), Some(expected));
        assert_eq!(parse_stat("42 (a)"), None);
    }

    #[test]
    fn what_a_thread_has_used_is_read() {
        let stat = "42 (dns-0) S 7 42 42 0 -1 0 0 0 0 0 100 200 3 4 20 0 1 0 9999 1 2";
        let thread = parse_thread("dns-0\n", "5000000 1 2\n", stat).unwrap();
        assert_eq!((thread.name.as_str(), thread.cpu), ("dns-0", Duration::from_millis(5)));
        assert_eq!(thread.system, 2 * thread.user);
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(!threads(own).is_empty() && memory(own).unwrap() > 0);
    }

    #[test]
    fn the_wait_for_a_core_is_read() {
        let text =
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0.00 total=7\n";
        assert_eq!(parse_stall(text), Some(Duration::from_millis(1500)));
        assert_eq!(parse_stall(""), None);
    }

    #[test]
    fn this_process_is_found_in_the_tree_of_its_parent() {
        let own = i32::try_from(std::process::id()).unwrap();
        let parent = stat(own).unwrap().parent;
        assert!(tree(parent).iter().any(|s| s.pid == own));
        assert!(peak_memory(own).unwrap() > 0);
    }
}
