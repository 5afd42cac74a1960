//! The data directory: what lies in it, what was being done to it, and where the old one goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::control::Control;
use crate::error::{Doing, Error};
use crate::files;
use crate::postgres::Postgres;
use crate::tool::Tool;

/// Old directories that are kept.
pub const ASIDE_MAX: usize = 2;
/// `pg_controldata` reads one small file.
const CONTROL_LIMIT: Duration = Duration::from_secs(10);
/// What begins the suffix of a directory that was set aside.
const ASIDE: &str = "aside-";
/// The suffix of the file that stands beside a directory while it is unfit to be started.
const UNFIT: &str = "unfit";

/// What lies in the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disk {
    Missing,
    Empty,
    /// No cluster of ours, and not to be touched.
    Foreign(String),
    /// A rewind or a clone was interrupted: never to be started.
    Broken(String),
    Cluster(Control),
}

impl Postgres {
    /// Looks at the data directory.
    pub async fn inspect(&self) -> Result<Disk, Error> {
        let this = self.clone();
        let found =
            self.on_disk(move || this.lies()).await.doing("look into the data directory")?;
        match found {
            Lies::Cluster(version) => Ok(Disk::Cluster(self.control_of(version).await?)),
            Lies::Other(disk) => Ok(disk),
        }
    }

    /// What the control file says.
    pub async fn control(&self) -> Result<Control, Error> {
        match self.inspect().await? {
            Disk::Cluster(control) => Ok(control),
            Disk::Missing | Disk::Empty => Err(Error::new("there is no cluster")),
            Disk::Foreign(why) | Disk::Broken(why) => Err(Error::new(why)),
        }
    }

    pub(crate) async fn control_of(&self, version: u32) -> Result<Control, Error> {
        let program = self.settings.program("pg_controldata");
        let tool = Tool::new(program, &self.account, CONTROL_LIMIT);
        let text = tool.args([self.settings.data_dir.as_os_str()]).run(&mut |_| {}).await?;
        Control::parse(version, &text)
    }

    fn lies(&self) -> Result<Lies, Error> {
        let dir = &self.settings.data_dir;
        if let Some(why) = self.unfit()? {
            return Ok(Lies::Other(Disk::Broken(why)));
        }
        let known = self.settings.run_dir.join("known").exists();
        let gone = || {
            let why = format!("there was a cluster at {}, and there is none now", dir.display());
            Lies::Other(Disk::Foreign(why))
        };
        let mut entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(if known { gone() } else { Lies::Other(Disk::Missing) });
            }
            Err(error) => return Err(error).doing(format!("read {}", dir.display())),
        };
        let version = files::read_or_empty(&dir.join("PG_VERSION"))?;
        match version.trim().parse() {
            Ok(version) if dir.join("global/pg_control").exists() => Ok(Lies::Cluster(version)),
            // An empty mount must not be taken for a new node (trap 44).
            _ if entries.next().is_none() && known => Ok(gone()),
            _ if entries.next().is_none() && is_empty(dir)? => Ok(Lies::Other(Disk::Empty)),
            _ => Ok(Lies::Other(Disk::Foreign(format!("{} holds no cluster", dir.display())))),
        }
    }

    /// Remembers, for as long as the run directory lasts, that there is a cluster here.
    pub(crate) fn know(&self) -> Result<(), Error> {
        let path = self.settings.run_dir.join("known");
        fs::write(&path, "1\n").doing(format!("write {}", path.display()))
    }

    /// Forgets that there was a cluster here: the caller knows that it is gone for good.
    pub fn forget(&self) -> Result<(), Error> {
        files::remove(&self.settings.run_dir.join("known"))
    }

    /// Whether a rewind or a clone has left the directory unfit to be started.
    pub fn is_unfit(&self) -> bool {
        self.unfit().is_ok_and(|why| why.is_some())
    }

    fn unfit(&self) -> Result<Option<String>, Error> {
        let why = files::read_or_empty(&self.settings.beside(UNFIT))?;
        Ok((!why.is_empty()).then(|| why.trim().to_owned()))
    }

    /// Marks the directory as unfit to be started, before it becomes so. The mark lies beside it: what rewinds a
    /// directory removes from it what it does not know.
    pub(crate) fn mark_unfit(&self, why: &str) -> Result<(), Error> {
        files::replace(&self.settings.beside(UNFIT), &format!("{why}\n"), &self.account)
    }

    pub(crate) fn unmark(&self) -> Result<(), Error> {
        files::remove(&self.settings.beside(UNFIT))
    }

    /// Puts the directory aside, whatever is in it, and keeps at most [`ASIDE_MAX`] such. Its new place; `None` if
    /// there was none. The server must not run.
    pub async fn set_aside(&self) -> Result<Option<PathBuf>, Error> {
        self.refuse_running("set the data directory aside")?;
        let this = self.clone();
        self.on_disk(move || this.set_aside_now()).await.doing("set the data directory aside")
    }

    pub(crate) fn set_aside_now(&self) -> Result<Option<PathBuf>, Error> {
        let dir = &self.settings.data_dir;
        if !dir.exists() {
            return Ok(None);
        }
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let aside = self.settings.beside(&format!("{ASIDE}{wall:018}"));
        fs::rename(dir, &aside).doing(format!("rename {}", dir.display()))?;
        files::sync_parent(dir)?;
        // What was broken is no longer what would be started.
        self.unmark()?;
        let kept = self.asides()?;
        for old in kept.iter().rev().skip(ASIDE_MAX) {
            fs::remove_dir_all(old).doing(format!("remove {}", old.display()))?;
        }
        Ok(Some(aside))
    }

    /// The directories that were set aside, oldest first.
    fn asides(&self) -> Result<Vec<PathBuf>, Error> {
        let dir = &self.settings.data_dir;
        let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
            return Err(Error::new(format!("{} has nothing beside it", dir.display())));
        };
        let prefix = format!("{}.{ASIDE}", name.to_string_lossy());
        let entries = fs::read_dir(parent).doing(format!("read {}", parent.display()))?;
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        let mut found: Vec<PathBuf> = names
            .filter(|name| name.to_string_lossy().strip_prefix(&prefix).is_some_and(is_digits))
            .map(|name| parent.join(name))
            .collect();
        found.sort();
        Ok(found)
    }
}

enum Lies {
    Cluster(u32),
    Other(Disk),
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_empty(dir: &Path) -> Result<bool, Error> {
    let mut entries = fs::read_dir(dir).doing(format!("read {}", dir.display()))?;
    Ok(entries.next().is_none())
}
