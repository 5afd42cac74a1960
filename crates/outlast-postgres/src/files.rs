//! Small files, written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::account::Account;
use crate::error::{Doing, Error};
use crate::settings::beside;

/// Who may read and write: PostgreSQL's account alone.
pub(crate) const PRIVATE: u32 = 0o600;

/// Replaces a file: written beside it, given to the account, synced, renamed. One that is as it should be is left as it
/// is: a change of role is not to wait for a disk without need. Blocks.
pub(crate) fn replace(path: &Path, text: &str, account: &Account) -> Result<(), Error> {
    if fs::read(path).is_ok_and(|now| now == text.as_bytes()) {
        return Ok(());
    }
    let said = |what: &str| format!("{what} {}", path.display());
    let new = beside(path, "new");
    fs::remove_file(&new).ok();
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(PRIVATE)
        .open(&new)
        .doing(said("write"))?;
    file.write_all(text.as_bytes()).doing(said("write"))?;
    account.own(&new)?;
    file.sync_all().doing(said("sync"))?;
    fs::rename(&new, path).doing(said("replace"))?;
    sync_parent(path)
}

/// Makes what was made or removed in a directory last.
pub(crate) fn sync_parent(path: &Path) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let dir = File::open(parent).doing(format!("open {}", parent.display()))?;
    dir.sync_all().doing(format!("sync {}", parent.display()))
}

/// Removes a file; one that is not there is no error.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).doing(format!("remove {}", path.display())),
        Ok(()) => sync_parent(path),
    }
}

/// The text of a file; empty if it is not there.
pub(crate) fn read_or_empty(path: &Path) -> Result<String, Error> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read.doing(format!("read {}", path.display())),
    }
}
