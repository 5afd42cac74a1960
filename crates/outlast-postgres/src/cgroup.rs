//! A control group of the kernel's for one instance, where one can be had: what PostgreSQL starts stays in it wherever it goes,
//! and one word kills all of it, whatever it forks meanwhile.
//!
//! No limit is set on it. Where the unified hierarchy is not mounted, or this account may make no groups below its own, the
//! walk over the processes does alone.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Doing, Error};

/// A group. Whoever has this can kill what is in it without opening a file.
#[derive(Debug)]
pub(crate) struct Cgroup {
    dir: PathBuf,
    switch: File,
}

impl Cgroup {
    /// Makes the group below that of this process, or finds it.
    pub(crate) fn make(name: &str) -> Result<Cgroup, Error> {
        let dir = home().doing("find the own control group")?.join(name);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
        .doing(format!("make {}", dir.display()))?;
        Cgroup::at(&dir).inspect_err(|_| drop(fs::remove_dir(&dir)))
    }

    /// The group in this directory. Linux before 5.14 has groups that cannot be killed.
    pub(crate) fn at(dir: &Path) -> Result<Cgroup, Error> {
        let switch = File::options().write(true).open(dir.join("cgroup.kill"));
        let switch = switch.doing(format!("open cgroup.kill of {}", dir.display()))?;
        Ok(Cgroup { dir: dir.to_owned(), switch })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Kills all that is in it.
    pub(crate) fn kill(&self) {
        // If it is gone, nobody is in it.
        rustix::io::pwrite(&self.switch, b"1", 0).ok();
    }

    /// Does something in the group: what is started meanwhile stays in it. `Err` if this process could not enter, or not
    /// leave again; then the group must not be killed.
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> T) -> (T, Result<(), Error>) {
        let home = home().doing("find the own control group");
        let entered = home.and_then(|home| {
            enter(&self.dir).doing("enter the control group")?;
            Ok(home)
        });
        let done = work();
        let left = entered.and_then(|home| enter(&home).doing("leave the control group"));
        (done, left)
    }

    /// Takes it away, if nobody is in it any more.
    pub(crate) fn remove(&self) {
        fs::remove_dir(&self.dir).ok();
    }
}

fn enter(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("cgroup.procs"), "0")
}

/// The directory of this process's own group.
fn home() -> Result<PathBuf, Error> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").doing("read what is mounted")?;
    let groups = fs::read_to_string("/proc/self/cgroup").doing("read the groups")?;
    home_of(&mounts, &groups).ok_or_else(|| Error::new("the unified hierarchy is not mounted"))
}

/// proc_pid_mountinfo(5): fields 4 and 5 are the root within the file system and where that is; behind the dash stands its type.
fn home_of(mounts: &str, groups: &str) -> Option<PathBuf> {
    let own = Path::new(groups.lines().find_map(|line| line.strip_prefix("0::"))?);
    mounts.lines().find_map(|line| {
        let (before, behind) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        let unified = behind.starts_with("cgroup2 ") && !at.contains('\\');
        Some(Path::new(at).join(own.strip_prefix(root).ok().filter(|_| unified)?))
    })
}

/// A name that no other instance of this machine has: of the database, and of the run directory.
pub(crate) fn name_of(database: &str, run_dir: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    // FNV-1a.
    let hash =
        run_dir.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    format!("outlast-{database}-{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_where_the_unified_hierarchy_is_mounted() {
        let unified = "\
24 1 8:1 / / rw,relatime - ext4 /dev/vda rw
31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
";
        let home = |mounts, groups| home_of(mounts, groups).map(|dir| dir.display().to_string());
        let service = "0::/system.slice/outlast.service\n";
        let dir = "/sys/fs/cgroup/system.slice/outlast.service";
        assert_eq!(home(unified, service).as_deref(), Some(dir));
        assert_eq!(home(unified, "0::/\n").as_deref(), Some("/sys/fs/cgroup/"));
        // Hybrid: the old hierarchies beside it.
        let hybrid = "\
40 35 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
45 35 0:34 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
        let groups = "4:memory:/app\n1:name=systemd:/\n0::/app\n";
        assert_eq!(home(hybrid, groups).as_deref(), Some("/sys/fs/cgroup/unified/app"));
        // A container that sees a part of it: its own group may lie outside of that.
        let part = "31 24 0:27 /pod/a /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(home(part, "0::/pod/a/b\n").as_deref(), Some("/sys/fs/cgroup/b"));
        assert_eq!(home(part, "0::/pod/c\n"), None);
        let old = hybrid.lines().next().unwrap();
        assert_eq!(home(old, groups), None);
        assert_eq!(home(unified, "4:memory:/app\n"), None);
        assert_eq!(home("nonsense\n - \n", "0::/\n"), None);
    }

    #[test]
    fn names_of_groups_differ_by_run_directory() {
        let name = |dir: &str| name_of("orders", Path::new(dir));
        assert_ne!(name("/run/outlast/a/orders"), name("/run/outlast/b/orders"));
        assert!(name("/run").starts_with("outlast-orders-"));
    }
}
