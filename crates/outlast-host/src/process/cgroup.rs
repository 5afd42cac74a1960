//! Limits on what a program uses, by cgroup v2: the one way that counts children and does not break address space.
//!
//! The agent needs a part of the tree for itself (systemd: `Delegate=yes`). Where it has none, limits are not enforced,
//! and that is said.

#![expect(
    unsafe_code,
    reason = "a program must join its cgroup between fork and exec, or its first child may not"
)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::text::show_io;

const MOUNT: &str = "/sys/fs/cgroup";
/// The agent's own leaf: a cgroup whose children have limits may not hold processes itself.
const AGENT: &str = "agent";
/// cpu.max counts time per period; this is the kernel's default.
const CPU_PERIOD_US: f64 = 100_000.0;

/// The part of the tree that the agent may shape.
#[derive(Clone, Debug)]
pub struct Cgroups {
    base: Result<PathBuf, String>,
}

impl Cgroups {
    /// Finds the agent's part and makes it ready; moves the agent into a leaf of it. Changes nothing if it cannot.
    pub fn open() -> Cgroups {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Cgroups { base: prepare(Path::new(MOUNT), &own) }
    }

    /// No limits, for this reason.
    pub fn none(why: &str) -> Cgroups {
        Cgroups { base: Err(why.to_owned()) }
    }

    /// Whether limits are enforced, and if not, why not.
    pub fn enforced(&self) -> Result<(), &str> {
        self.base.as_ref().map(|_base| ()).map_err(String::as_str)
    }

    /// Makes the cgroup of a program, or takes the one that is there, and sets its limits.
    pub(super) fn group(&self, name: &str, limits: Limits) -> Result<Cgroup, String> {
        let group = Cgroup { dir: self.base.clone()?.join(format!("process-{name}")) };
        group
            .set(limits)
            .map_err(|error| format!("{}: {}", group.dir.display(), show_io(&error)))?;
        Ok(group)
    }
}

/// How much a program may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limits {
    pub(super) memory: Option<u64>,
    /// Cores.
    pub(super) cpu: Option<f64>,
}

impl Limits {
    pub(super) fn any(self) -> bool {
        self.memory.is_some() || self.cpu.is_some()
    }
}

/// The cgroup of one program.
#[derive(Debug)]
pub(super) struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    fn set(&self, limits: Limits) -> io::Result<()> {
        match fs::create_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let max = |limit: Option<String>| limit.unwrap_or_else(|| "max".to_owned());
        put(&self.dir.join("memory.max"), &max(limits.memory.map(|bytes| bytes.to_string())))?;
        // Half of a program is worse than none: all of it goes, and is started again.
        put(&self.dir.join("memory.oom.group"), "1")?;
        let quota = |cores: f64| format!("{:.0} {CPU_PERIOD_US:.0}", cores * CPU_PERIOD_US);
        put(&self.dir.join("cpu.max"), &max(limits.cpu.map(quota)))
    }

    /// Has the command's process join before its program runs.
    pub(super) fn take(&self, command: &mut Command) -> io::Result<()> {
        let procs = open(&self.dir.join("cgroup.procs"))?;
        // SAFETY: between fork and exec the closure does nothing but write(2) to a descriptor that is open already:
        // no allocation, no lock. An error becomes an `io::Error` of a number, which does not allocate either.
        unsafe { command.pre_exec(move || (&procs).write(b"0").map(|_written| ())) };
        Ok(())
    }

    /// Kills all that is in it (Linux 5.14).
    pub(super) fn kill(&self) -> io::Result<()> {
        put(&self.dir.join("cgroup.kill"), "1")
    }

    /// How often the kernel has killed here because the memory limit was reached.
    pub(super) fn oom_kills(&self) -> u64 {
        let events = fs::read_to_string(self.dir.join("memory.events")).unwrap_or_default();
        let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }
}

/// The directory under which programs get cgroups of their own.
fn prepare(mount: &Path, own: &str) -> Result<PathBuf, String> {
    if !mount.join("cgroup.controllers").exists() {
        return Err(format!("cgroup v2 is not mounted at {}", mount.display()));
    }
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = path.ok_or("this process is in no cgroup of v2")?;
    let mut base = mount.join(path);
    let has_leaf = base.file_name().is_some_and(|name| name == AGENT);
    if has_leaf {
        base.pop();
    }
    let said = |what: &Path, error: &io::Error| format!("{}: {}", what.display(), show_io(error));
    let offered = base.join("cgroup.controllers");
    let controllers = fs::read_to_string(&offered).map_err(|error| said(&offered, &error))?;
    for needed in ["memory", "cpu"] {
        if !controllers.split_whitespace().any(|controller| controller == needed) {
            return Err(format!("{}: no {needed} controller here", base.display()));
        }
    }
    let is_root = base == mount;
    if !has_leaf && !is_root {
        let leaf = base.join(AGENT);
        match fs::create_dir(&leaf) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(said(&leaf, &error));
            }
            Ok(()) | Err(_) => {}
        }
        put(&leaf.join("cgroup.procs"), "0").map_err(|error| said(&leaf, &error))?;
    }
    let control = base.join("cgroup.subtree_control");
    put(&control, "+memory +cpu").map_err(|error| said(&control, &error))?;
    Ok(base)
}

/// Writes a value to a file of the cgroup file system, which must exist.
fn put(path: &Path, value: &str) -> io::Result<()> {
    open(path)?.write_all(value.as_bytes())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    /// A directory with the files that the kernel would make.
    fn tree(scratch: &Scratch, dir: &str, controllers: &str) -> PathBuf {
        let dir = scratch.path(dir);
        fs::create_dir_all(&dir).unwrap();
        for (name, text) in [
            ("cgroup.controllers", controllers),
            ("cgroup.procs", ""),
            ("cgroup.subtree_control", ""),
            ("memory.max", "max"),
            ("memory.oom.group", "0"),
            ("cpu.max", "max 100000"),
            ("memory.events", "low 0\noom 2\noom_kill 3\n"),
            ("cgroup.kill", ""),
        ] {
            fs::write(dir.join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn a_delegated_part_is_made_ready() {
        let scratch = Scratch::new();
        tree(&scratch, "", "cpu memory");
        let base = tree(&scratch, "system.slice/outlast.service", "cpu memory pids");
        let leaf = tree(&scratch, "system.slice/outlast.service/agent", "");
        for own in
            ["0::/system.slice/outlast.service\n", "0::/system.slice/outlast.service/agent\n"]
        {
            assert_eq!(prepare(scratch.dir(), own).as_ref(), Ok(&base));
        }
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert_eq!(read(base.join("cgroup.subtree_control")), "+memory +cpu");
        assert_eq!(read(leaf.join("cgroup.procs")), "0");
    }

    #[test]
    fn why_limits_are_not_enforced_is_said() {
        let scratch = Scratch::new();
        let none = prepare(scratch.dir(), "0::/x\n").unwrap_err();
        assert!(none.starts_with("cgroup v2 is not mounted at "), "{none}");
        tree(&scratch, "", "cpu memory");
        tree(&scratch, "user.slice", "memory");
        for (own, says) in [
            ("4:memory:/x\n", "this process is in no cgroup of v2"),
            ("0::/gone\n", "no such file or directory"),
            ("0::/user.slice\n", "no cpu controller here"),
        ] {
            let why = prepare(scratch.dir(), own).unwrap_err();
            assert!(why.ends_with(says), "{why}");
        }
        assert_eq!(Cgroups::none("not asked for").enforced(), Err("not asked for"));
    }

    #[test]
    fn limits_are_written_as_the_kernel_reads_them() {
        let scratch = Scratch::new();
        let dir = tree(&scratch, "process-api", "");
        let cgroups = Cgroups { base: Ok(scratch.dir().to_owned()) };
        let limits = Limits { memory: Some(512 << 20), cpu: Some(0.5) };
        let group = cgroups.group("api", limits).unwrap();
        let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
        // A plain file keeps the tail of what it held; the kernel's do not.
        assert_eq!(read("memory.max"), "536870912");
        assert_eq!(read("memory.oom.group"), "1");
        assert!(read("cpu.max").starts_with("50000 100000"));
        assert_eq!(group.oom_kills(), 3);
        group.kill().unwrap();
        assert_eq!(read("cgroup.kill"), "1");

        let mut command = Command::new("true");
        group.take(&mut command).unwrap();
        assert!(command.status().unwrap().success());
        assert_eq!(read("cgroup.procs"), "0");
    }
}
