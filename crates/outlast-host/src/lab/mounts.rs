//! What a machine sees of the file system: all of the host's, but its own data, its own /tmp, /run and /dev/shm, its own
//! processes.
//!
//! Every mount here lies in a mount namespace of the lab. Nothing is made on the host's own file systems, but for one case:
//! a directory beside the topology file, which its owner removes again.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change};

/// Entries of a directory that is laid out anew.
const ENTRIES_MAX: usize = 4096;

/// A directory that each machine has for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Private {
    /// Where the machine sees it.
    pub at: PathBuf,
    /// Where it really lies.
    pub from: PathBuf,
}

/// Keeps our mounts from the host; the host's later ones still come in.
pub fn on_its_own() -> io::Result<()> {
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(mount_change("/", flags)?)
}

/// Lays one file over another.
pub fn lay_over(from: &Path, at: &Path) -> io::Result<()> {
    Ok(mount_bind_recursive(from, at)?)
}

/// Sets up the mounts of a machine, from inside. What leads to the topology `file` and to `visible` stays visible.
pub fn furnish(private: &[Private], file: &Path, visible: &[PathBuf]) -> Result<(), String> {
    let said =
        |doing: &str, at: &Path, error: io::Error| format!("{doing} {}: {error}", at.display());
    on_its_own().map_err(|error| said("keep the mounts of", Path::new("/"), error))?;
    let proc = Path::new("/proc");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", proc, "proc", flags, None)
        .map_err(|errno| said("mount the machine's own", proc, errno.into()))?;
    hide_cgroups()
        .map_err(|error| said("hide the host's cgroups below", Path::new("/sys"), error))?;
    // Taken hold of before /tmp is covered: it may lie there.
    let mut held = Vec::new();
    for Private { at, from } in private {
        let dir = File::open(from).map_err(|error| said("open", from, error))?;
        held.push((at, dir));
    }
    let own = private.iter().map(|private| private.at.as_path());
    let kept: Vec<&Path> = own.chain(visible.iter().map(PathBuf::as_path)).chain([file]).collect();
    for shared in ["/tmp", "/run"].map(Path::new) {
        if shared.is_dir() && !fs::symlink_metadata(shared).is_ok_and(|m| m.is_symlink()) {
            let keep = |entry: &Path| kept.iter().any(|kept| kept.starts_with(entry));
            lay_out(shared, keep)
                .map_err(|error| said("give the machine its own", shared, error))?;
        }
    }
    // What a killed program leaves in shared memory is to go with the machine.
    let shared_memory = Path::new("/dev/shm");
    if shared_memory.is_dir() {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("tmpfs", shared_memory, "tmpfs", flags, None)
            .map_err(|errno| said("give the machine its own", shared_memory, errno.into()))?;
    }
    for (at, dir) in held {
        make_place(at, file)?;
        let from = format!("/proc/self/fd/{}", dir.as_raw_fd());
        mount_bind_recursive(from, at.as_path())
            .map_err(|errno| said("give the machine its own", at, errno.into()))?;
    }
    Ok(())
}

/// An agent that may shape cgroups would shape the host's: they are not the lab's to give, and would outlast it.
fn hide_cgroups() -> io::Result<()> {
    let (sys, cgroups) = (Path::new("/sys"), Path::new("/sys/fs/cgroup"));
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if mount("sysfs", sys, "sysfs", flags, None).is_ok() || !cgroups.exists() {
        return Ok(());
    }
    Ok(mount("tmpfs", cgroups, "tmpfs", flags | MountFlags::RDONLY, None)?)
}

/// Makes the directory `at` if it is not there, without touching the host: what is above it is laid out anew.
fn make_place(at: &Path, file: &Path) -> Result<(), String> {
    if at.is_dir() {
        return Ok(());
    }
    let above = at.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let above =
        above.canonicalize().map_err(|error| format!("look up {}: {error}", above.display()))?;
    if above.parent().is_none() {
        return Err(format!(
            "{} does not exist, and a lab makes nothing in /; make that directory, or choose another one in the file",
            at.display()
        ));
    }
    // Beside the topology file it is really made: an editor replaces the file, and a new layout would show the old one.
    let laid_out = if file.parent() == Some(&*above) { Ok(()) } else { lay_out(&above, |_| true) };
    laid_out.and_then(|()| fs::create_dir_all(at)).map_err(|error| {
        format!("make a place for {} below {}: {error}", at.display(), above.display())
    })
}

/// Covers a directory with an empty one that can be written, and puts back in it what is to be kept.
fn lay_out(dir: &Path, keep: impl Fn(&Path) -> bool) -> io::Result<()> {
    let old = File::open(dir)?;
    let mode = old.metadata()?.mode() & 0o7777;
    mount("tmpfs", dir, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))?;
    // The covered directory is still there, behind its descriptor.
    let old_dir = PathBuf::from(format!("/proc/self/fd/{}", old.as_raw_fd()));
    for (count, entry) in fs::read_dir(&old_dir)?.enumerate() {
        if ENTRIES_MAX <= count {
            return Err(io::Error::other(format!("it has more than {ENTRIES_MAX} entries")));
        }
        let entry = entry?;
        let new = dir.join(entry.file_name());
        if !keep(&new) {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, &new)?;
            continue;
        }
        if kind.is_dir() {
            fs::create_dir(&new)?;
        } else if kind.is_file() || kind.is_socket() || kind.is_fifo() {
            drop(File::create(&new)?);
        } else {
            continue;
        }
        mount_bind_recursive(entry.path(), new.as_path())?;
    }
    Ok(())
}
