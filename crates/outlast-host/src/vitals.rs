//! How full this machine is: a disk and the memory, as a share and as a level.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::statvfs;

/// How much of something there is, and how much of it is used, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub used: u64,
    pub total: u64,
}

impl Usage {
    /// 0 to 1. Of nothing, nothing is used.
    pub fn share(self) -> f64 {
        if self.total == 0 { 0.0 } else { self.used as f64 / self.total as f64 }
    }
}

/// How worrying a share is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Pass,
    Warn,
    Fail,
}

/// From which shares on a usage is worrying; `None`: never.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    pub warn: f64,
    pub fail: Option<f64>,
}

/// PostgreSQL stops when it cannot write WAL, so a nearly full disk is a failure before it is one.
pub const DISK: Limits = Limits { warn: 0.90, fail: Some(0.95) };
/// A machine may live with little memory for years.
pub const MEMORY: Limits = Limits { warn: 0.80, fail: None };

impl Limits {
    pub fn level(self, share: f64) -> Level {
        if self.fail.is_some_and(|fail| share >= fail) {
            Level::Fail
        } else if share >= self.warn {
            Level::Warn
        } else {
            Level::Pass
        }
    }
}

/// The usage of the file system that holds `path`, as df(1) counts it: what only root may use is not there to be used.
pub fn disk(path: &Path) -> io::Result<Usage> {
    let stat = statvfs(path)?;
    Ok(disk_usage(stat.f_blocks, stat.f_bfree, stat.f_bavail, stat.f_frsize))
}

fn disk_usage(blocks: u64, free: u64, available: u64, block: u64) -> Usage {
    let used = blocks.saturating_sub(free);
    Usage { used: used.saturating_mul(block), total: (used + available).saturating_mul(block) }
}

/// The memory of this machine, or of the tightest cgroup that this process is in, whichever is fuller.
pub fn memory() -> io::Result<Usage> {
    let machine = meminfo(&fs::read_to_string("/proc/meminfo")?)
        .ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal or MemAvailable"))?;
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = cgroup_usages(Path::new("/sys/fs/cgroup"), &own);
    // A limit above what the machine has is none.
    let binding = limits.into_iter().filter(|usage| usage.total < machine.total);
    Ok(binding.fold(machine, |a, b| if b.share() > a.share() { b } else { a }))
}

fn meminfo(text: &str) -> Option<Usage> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let total = bytes("MemTotal")?;
    Some(Usage { used: total.saturating_sub(bytes("MemAvailable")?), total })
}

/// The usages of this process's cgroup and of all above it that have a limit.
fn cgroup_usages(mount: &Path, own: &str) -> Vec<Usage> {
    let v2 = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let v1 = own.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(":/")?;
        controllers.split(',').any(|name| name == "memory").then_some(path)
    });
    let mut usages = Vec::new();
    for (root, path, names) in [
        (mount.to_owned(), v2, ["memory.max", "memory.current", "inactive_file "]),
        (
            mount.join("memory"),
            v1,
            ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "],
        ),
    ] {
        let Some(path) = path else { continue };
        let dir = root.join(path);
        let up = dir.ancestors().take_while(|dir| dir.starts_with(&root));
        usages.extend(up.filter_map(|dir| cgroup_usage(dir, names)));
    }
    usages
}

/// File pages that nobody has used for a while count as free: the kernel takes them before it kills.
fn cgroup_usage(dir: &Path, [limit, current, reclaimable]: [&str; 3]) -> Option<Usage> {
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let total = number(limit)?;
    let stat = read("memory.stat").unwrap_or_default();
    let reclaimable = stat.lines().find_map(|line| line.strip_prefix(reclaimable)?.parse().ok());
    Some(Usage { used: number(current)?.saturating_sub(reclaimable.unwrap_or(0)), total })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn shares_are_judged_from_the_limit_on() {
        use Level::{Fail, Pass, Warn};
        for (limits, share, level) in [
            (DISK, 0.0, Pass),
            (DISK, 0.8999, Pass),
            (DISK, 0.90, Warn),
            (DISK, 0.9499, Warn),
            (DISK, 0.95, Fail),
            (DISK, 1.0, Fail),
            (MEMORY, 0.79, Pass),
            (MEMORY, 0.80, Warn),
            (MEMORY, 1.0, Warn),
        ] {
            assert_eq!(limits.level(share), level, "{share}");
        }
    }

    #[test]
    fn a_disk_is_full_when_nothing_is_left_for_ordinary_users() {
        // 1000 blocks, 50 free, all of them reserved for root.
        let full = disk_usage(1000, 50, 0, 4096);
        assert_eq!(full, Usage { used: 950 * 4096, total: 950 * 4096 });
        assert_eq!(disk_usage(1000, 550, 450, 1).share(), 0.5);
        assert_eq!(disk_usage(0, 0, 0, 4096).share(), 0.0);
    }

    #[test]
    fn this_machine_has_a_disk_and_memory() {
        let disk = disk(Path::new("/")).unwrap();
        assert!(disk.used > 0 && disk.used <= disk.total);
        let memory = memory().unwrap();
        assert!(memory.used > 0 && memory.used <= memory.total);
        assert!(super::disk(Path::new("/no/such/path")).is_err());
    }

    #[test]
    fn meminfo_counts_what_is_available_as_free() {
        let text = "MemTotal:        8000 kB\nMemFree:          100 kB\nMemAvailable:    2000 kB\n";
        assert_eq!(meminfo(text), Some(Usage { used: 6000 * 1024, total: 8000 * 1024 }));
        assert_eq!(meminfo("MemTotal: 8000 kB\n"), None);
        assert_eq!(meminfo("MemTotal: many kB\nMemAvailable: 1 kB\n"), None);
    }

    #[test]
    fn every_limit_above_a_process_counts() {
        let scratch = Scratch::new();
        let put = |dir: &str, files: &[(&str, &str)]| {
            fs::create_dir_all(scratch.path(dir)).unwrap();
            for (name, text) in files {
                fs::write(scratch.path(dir).join(name), text).unwrap();
            }
        };
        put("a/b", &[("memory.max", "max\n"), ("memory.current", "5\n")]);
        put(
            "a",
            &[
                ("memory.max", "1000\n"),
                ("memory.current", "900\n"),
                ("memory.stat", "anon 600\ninactive_file 300\n"),
            ],
        );
        put(
            "memory/old",
            &[("memory.limit_in_bytes", "500\n"), ("memory.usage_in_bytes", "400\n")],
        );
        let v2 = Usage { used: 600, total: 1000 };
        let v1 = Usage { used: 400, total: 500 };
        let usages = |own| cgroup_usages(scratch.dir(), own);
        assert_eq!(usages("0::/a/b\n"), [v2]);
        assert_eq!(usages("9:cpu,memory:/old\n0::/\n"), [v1]);
        assert_eq!(usages("9:cpu:/old\n"), []);
        assert_eq!(usages(""), []);
    }
}
