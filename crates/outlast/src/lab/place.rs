//! Where labs lie: a directory for each, with a lock that says whether it runs, and how to find one by its name.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;

use super::args::Which;

/// Says that a directory is a lab's: it may be emptied.
const MARK: &str = "lab.lock";
/// Names in the directory of labs that are looked at.
const LABS_MAX: usize = 1024;

pub(super) fn socket(dir: &Path) -> PathBuf {
    dir.join("lab.sock")
}

pub(super) fn log(dir: &Path) -> PathBuf {
    dir.join("lab.log")
}

/// The directory of a lab, taken for as long as the lock is held.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) lock: File,
    /// The name in the directory of labs, if the lab lies elsewhere.
    link: Option<PathBuf>,
}

impl Place {
    /// Takes the place of a new lab; what a lab of that name left there is removed, unless it is to be kept.
    pub(super) fn take(name: &str, dir: Option<&Path>, keep: bool) -> anyhow::Result<Place> {
        let entry = labs()?.join(name);
        let dir = match dir {
            Some(dir) => std::path::absolute(dir)?,
            None => entry.clone(),
        };
        // A name may stand for a directory elsewhere.
        let known = fs::read_link(&entry).unwrap_or_else(|_none| entry.clone());
        if known != dir && answers(&known) {
            bail!(
                "a lab named {name} runs already, in {}; end it with `outlast lab down --name {name}`, or choose another --name",
                known.display()
            );
        }
        if dir.is_dir() && !dir.join(MARK).exists() && fs::read_dir(&dir)?.next().is_some() {
            bail!("{} is not empty and was not made by a lab; choose another --dir", dir.display());
        }
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        if dir == entry && entry.is_symlink() {
            fs::remove_file(&entry).context("forget where an older lab was")?;
        }
        builder.create(&dir).with_context(|| format!("make {}", dir.display()))?;
        let lock = File::options().create(true).truncate(false).write(true).open(dir.join(MARK));
        let lock = lock.with_context(|| format!("open {} in {}", MARK, dir.display()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => bail!(
                "a lab runs already in {}; end it with `outlast lab down --dir {0}`, or choose another --name",
                dir.display()
            ),
            Err(errno) => return Err(errno).context("lock the lab's directory"),
        }
        fs::remove_file(socket(&dir)).ok();
        if !keep {
            for left in ["nodes", "certs"] {
                remove_if_there(&dir.join(left)).context("remove what an older lab left")?;
            }
            fs::remove_file(log(&dir)).ok();
        }
        let mut link = None;
        if dir != entry {
            if entry.is_symlink() {
                fs::remove_file(&entry).context("forget where an older lab was")?;
            } else if entry.exists() {
                bail!(
                    "another lab named {name} has left its data in {}; choose another --name",
                    entry.display()
                );
            }
            symlink(&dir, &entry)
                .with_context(|| format!("note the lab at {}", entry.display()))?;
            link = Some(entry);
        }
        Ok(Place { dir, lock, link })
    }

    /// Gives it up when the lab has ended; with all that is in it, unless that is to be kept.
    pub(super) fn leave(self, keep: bool) -> anyhow::Result<()> {
        fs::remove_file(socket(&self.dir)).ok();
        if let Some(link) = &self.link {
            fs::remove_file(link).ok();
        }
        if keep {
            return Ok(());
        }
        fs::remove_dir_all(&self.dir)
            .with_context(|| format!("remove what lies in {}", self.dir.display()))
    }
}

fn remove_if_there(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The directory of the lab that is meant.
pub(super) fn find(which: &Which) -> anyhow::Result<PathBuf> {
    if let Some(dir) = &which.dir {
        return Ok(std::path::absolute(dir)?);
    }
    let labs = labs()?;
    if let Some(name) = &which.name {
        check_name(name)?;
        return Ok(labs.join(name));
    }
    let mut running = Vec::new();
    for entry in fs::read_dir(&labs).context("look for labs")?.take(LABS_MAX) {
        let entry = entry.context("look for labs")?;
        if answers(&entry.path()) {
            running.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    running.sort();
    match running.as_slice() {
        [one] => Ok(labs.join(one)),
        [] => bail!("no lab runs; start one with `outlast lab up FILE`"),
        several => bail!("several labs run: {}; say which one with --name", several.join(", ")),
    }
}

fn answers(dir: &Path) -> bool {
    UnixStream::connect(socket(dir)).is_ok()
}

/// A name is part of a path.
pub(super) fn check_name(name: &str) -> anyhow::Result<()> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if name.is_empty() || 40 < name.len() || !name.bytes().all(is_good) {
        bail!("`{name}` cannot be a lab's name; use 1 to 40 letters, digits, _ and -");
    }
    Ok(())
}

/// The directory of labs: in the user's state directory, or in /tmp if there is none. Nobody else may write to it.
fn labs() -> anyhow::Result<PathBuf> {
    let user = geteuid().as_raw();
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
    let in_state = state.map(|state| state.join("outlast/labs"));
    let in_tmp = std::env::temp_dir().join(format!("outlast-labs-{user}"));
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    let made = |dir: &PathBuf| builder.create(dir).is_ok();
    let dir = in_state.filter(made).unwrap_or_else(|| in_tmp.clone());
    if dir == in_tmp {
        builder.create(&dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let found = fs::symlink_metadata(&dir).with_context(|| format!("look at {}", dir.display()))?;
    if !found.is_dir() || found.uid() != user {
        bail!(
            "{} belongs to someone else; set XDG_STATE_HOME to a directory of yours",
            dir.display()
        );
    }
    Ok(dir)
}
