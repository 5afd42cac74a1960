//! Whether the disk under a data directory still takes writes, asked on a thread of its own.

use std::path::Path;
use std::time::Duration;

/// What is known of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    pub health: Health,
    /// Bytes that PostgreSQL's account may still use.
    pub free: Option<u64>,
}

/// How the disk takes writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nothing has been tried.
    Unknown,
    Ok {
        took: Duration,
    },
    Slow {
        took: Duration,
    },
    /// A write has been under way for this long.
    Stuck {
        since: Duration,
    },
    Failed(String),
}

/// Writes, syncs and reads a small file in a directory, again and again. Dropping it ends it.
#[derive(Debug)]
pub struct Probe {}

impl Probe {
    pub fn start(data_dir: &Path, every: Duration, slow: Duration) -> Probe {
        let _unfinished = (data_dir, every, slow);
        Probe {}
    }

    /// What is known now. Waits for nothing.
    pub fn storage(&self) -> Storage {
        Storage { health: Health::Unknown, free: None }
    }
}
