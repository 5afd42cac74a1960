//! What this node remembers of etcd on its own disk: which cluster it was, and how far the log had come.
//!
//! An etcd that was restored from a copy has lost what was agreed on since. Tokens would be given out twice; so a node that
//! has seen more, or that finds another log where it left off, refuses to go on.

use std::io;
use std::path::{Path, PathBuf};

use outlast_consensus::Index;
use outlast_core::agreed::Hash;
use serde::{Deserialize, Serialize};

use crate::form::Place;

/// `etcd.json` in the data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) v: u32,
    /// The name that the cluster has in the topology.
    pub(crate) name: String,
    /// The id that etcd has given to itself.
    pub(crate) etcd: u64,
    pub(crate) index: Index,
    /// The hash of all up to there, in hexadecimal; older binaries have not written it.
    #[serde(default)]
    pub(crate) chain: Option<String>,
}

impl Mark {
    pub(crate) fn of(name: String, etcd: u64, place: Place) -> Mark {
        Mark { v: 1, name, etcd, index: place.index, chain: Some(place.chain.to_string()) }
    }

    /// Whether it was there that the log had this hash. `None`: it does not say.
    pub(crate) fn is_at(&self, chain: Hash) -> Option<bool> {
        self.chain.as_ref().map(|ours| *ours == chain.to_string())
    }

    /// Whether what stands in etcd now goes on from it; `next`: the first batch behind it that is still there. `None`:
    /// that part of the log has given way to a snapshot, and nothing tells.
    pub(crate) fn leads_to(
        &self,
        base: Place,
        head: Place,
        next: Option<(Index, Hash)>,
    ) -> Option<bool> {
        if let Some(at) = [base, head].into_iter().find(|at| at.index == self.index) {
            return self.is_at(at.chain);
        }
        match next {
            Some((first, before)) if first == self.index + 1 => self.is_at(before),
            // Behind the snapshot nothing is left out: a log of ours would have gone on from there.
            Some(_) | None if base.index < self.index => Some(false),
            Some(_) | None => None,
        }
    }
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
        let mark = Mark::of("shop".to_owned(), u64::MAX, place(7, "seven"));
        save(&at, &mark).unwrap();
        assert_eq!(load(&at, "shop").unwrap(), Some(mark.clone()));
        assert_eq!(load(&at, "other").unwrap(), None);
        save(&at, &Mark { v: 2, ..mark }).unwrap();
        assert!(load(&at, "shop").unwrap_err().to_string().contains("version 2"));
        // As it was written before.
        std::fs::write(&at, r#"{"v":1,"name":"shop","etcd":5,"index":7}"#).unwrap();
        let old = load(&at, "shop").unwrap().unwrap();
        assert_eq!((old.index, old.is_at(Hash::of(b"seven"))), (7, None));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    fn place(index: Index, what: &str) -> Place {
        Place { index, chain: Hash::of(what.as_bytes()) }
    }

    #[test]
    fn another_log_is_told_from_ours_unless_that_part_of_it_is_gone() {
        let mark = Mark::of("shop".to_owned(), 5, place(7, "ours"));
        let check = |base, head, next: Option<(Index, &str)>, expected| {
            let next = next.map(|(first, before)| (first, Hash::of(before.as_bytes())));
            assert_eq!(mark.leads_to(base, head, next), expected, "{base:?} {head:?} {next:?}");
        };
        let (start, end) = (place(1, "start"), place(9, "end"));
        check(start, place(7, "ours"), None, Some(true));
        check(start, place(7, "theirs"), None, Some(false));
        check(start, end, Some((8, "ours")), Some(true));
        check(start, end, Some((8, "theirs")), Some(false));
        // No batch begins there, so ours did not end there.
        check(start, end, Some((9, "theirs")), Some(false));
        check(start, end, None, Some(false));
        check(place(7, "ours"), end, Some((8, "ours")), Some(true));
        check(place(7, "theirs"), end, None, Some(false));
        // The log of one generation stays behind a snapshot.
        check(place(8, "later"), end, Some((8, "ours")), Some(true));
        check(place(8, "later"), end, Some((8, "theirs")), Some(false));
        check(place(8, "later"), end, Some((9, "later")), None);
        check(place(9, "end"), end, None, None);
    }
}
