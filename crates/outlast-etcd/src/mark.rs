//! What this node remembers of etcd on its own disk: which cluster it was, and how far the log had come.
//!
//! An etcd that was restored from a copy has lost what was agreed on since. Tokens would be given out twice; so a node that
//! has seen more refuses to go on.

use std::io;
use std::path::{Path, PathBuf};

use outlast_consensus::Index;
use serde::{Deserialize, Serialize};

/// `etcd.json` in the data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) v: u32,
    /// The name that the cluster has in the topology.
    pub(crate) name: String,
    /// The id that etcd has given to itself.
    pub(crate) etcd: u64,
    pub(crate) index: Index,
}

/// Where it lies in a data directory.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("etcd.json")
}

/// `None`: this node has never seen an etcd.
pub(crate) fn load(path: &Path, name: &str) -> io::Result<Option<Mark>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mark: Mark = serde_json::from_slice(&text)?;
    if mark.v != 1 {
        let why = format!("it is of version {}, and this binary knows 1", mark.v);
        return Err(io::Error::other(why));
    }
    // Another cluster's name begins anew.
    Ok(Some(mark).filter(|mark| mark.name == name))
}

pub(crate) fn save(path: &Path, mark: &Mark) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = std::fs::File::create(&beside)?;
    serde_json::to_writer(&mut file, mark)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    match path.parent() {
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_remembered_is_there_again_and_of_another_version_refused() {
        let dir = std::env::temp_dir().join(format!("outlast-mark-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let at = path(&dir);
        assert_eq!(load(&at, "shop").unwrap(), None);
        let mark = Mark { v: 1, name: "shop".to_owned(), etcd: u64::MAX, index: 7 };
        save(&at, &mark).unwrap();
        assert_eq!(load(&at, "shop").unwrap(), Some(mark.clone()));
        assert_eq!(load(&at, "other").unwrap(), None);
        save(&at, &Mark { v: 2, ..mark }).unwrap();
        assert!(load(&at, "shop").unwrap_err().to_string().contains("version 2"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
