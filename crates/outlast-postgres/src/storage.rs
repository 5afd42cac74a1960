//! Whether the disk under a data directory still takes writes, asked on a thread of its own.
//!
//! A stuck disk holds that thread, and nothing else (trap 11).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The suffix of the file, which lies beside the directory: what lies in it would be copied, and rewound.
const FILE: &str = "probe";
/// What is written: one block of the disk.
const BLOCK: [u8; 4096] = [b'.'; 4096];

/// What is known of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    pub health: Health,
    /// Bytes that PostgreSQL's account may still use, when that was last seen.
    pub free: Option<u64>,
}

/// How the disk takes writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nothing has been tried yet.
    Unknown,
    Ok {
        took: Duration,
    },
    Slow {
        took: Duration,
    },
    /// A write has been under way for this long, which is more than slow.
    Stuck {
        since: Duration,
    },
    Failed(String),
}

#[derive(Debug, Default)]
struct Known {
    began: Option<Instant>,
    last: Option<Result<Duration, String>>,
    free: Option<u64>,
}

/// Writes, syncs and reads a small file in a directory, again and again. Dropping it ends that; a thread that is held by
/// a stuck disk ends when the disk lets it go.
#[derive(Debug)]
pub struct Probe {
    known: Arc<Mutex<Known>>,
    slow: Duration,
    /// Its other end is gone once this is dropped.
    _ends: SyncSender<()>,
}

impl Probe {
    /// Begins to probe. A write that takes longer than `slow` makes the disk slow, and stuck while it lasts.
    pub fn start(data_dir: &Path, every: Duration, slow: Duration) -> io::Result<Probe> {
        let known = Arc::new(Mutex::new(Known::default()));
        let (ends, ended) = mpsc::sync_channel(0);
        let (path, shared) = (crate::settings::beside(data_dir, FILE), Arc::clone(&known));
        thread::Builder::new().name("storage".to_owned()).spawn(move || {
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                round(&path, &shared);
            }
            fs::remove_file(&path).ok();
        })?;
        Ok(Probe { known, slow, _ends: ends })
    }

    /// What is known now. Waits for nothing.
    pub fn storage(&self) -> Storage {
        let known = self.known.lock().expect("nobody panics while holding it");
        Storage { health: health(&known, self.slow), free: known.free }
    }
}

fn health(known: &Known, slow: Duration) -> Health {
    let since = known.began.map(|began| began.elapsed());
    match (since, &known.last) {
        (Some(since), _) if since > slow => Health::Stuck { since },
        (_, None) => Health::Unknown,
        (_, Some(Ok(took))) if *took > slow => Health::Slow { took: *took },
        (_, Some(Ok(took))) => Health::Ok { took: *took },
        (_, Some(Err(why))) => Health::Failed(why.clone()),
    }
}

fn round(path: &PathBuf, shared: &Mutex<Known>) {
    let began = Instant::now();
    shared.lock().expect("nobody panics while holding it").began = Some(began);
    let done = try_disk(path);
    let mut known = shared.lock().expect("nobody panics while holding it");
    known.began = None;
    known.last = Some(match done {
        Ok(free) => {
            known.free = Some(free);
            Ok(began.elapsed())
        }
        Err(error) => Err(error.to_string()),
    });
}

fn try_disk(path: &PathBuf) -> io::Result<u64> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&BLOCK)?;
    file.sync_all()?;
    if fs::read(path)? != BLOCK {
        return Err(io::Error::other("what was written is not what is read"));
    }
    let space = rustix::fs::statvfs(path)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_ok_slow_stuck_or_failed_and_unknown_before() {
        let slow = Duration::from_secs(1);
        let check = |known: &Known, expected: &str| {
            let health = format!("{:?}", health(known, slow));
            assert!(health.starts_with(expected), "{health}");
        };
        let ago = Instant::now().checked_sub(Duration::from_secs(5)).unwrap();
        let last = |seconds| Some(Ok(Duration::from_secs(seconds)));
        check(&Known::default(), "Unknown");
        check(&Known { last: last(0), ..Known::default() }, "Ok");
        check(&Known { last: last(2), ..Known::default() }, "Slow");
        check(&Known { last: last(0), began: Some(Instant::now()), free: None }, "Ok");
        check(&Known { last: last(0), began: Some(ago), free: None }, "Stuck");
        check(&Known { began: Some(ago), ..Known::default() }, "Stuck");
        check(&Known { last: Some(Err("full".to_owned())), ..Known::default() }, "Failed");
    }

    #[test]
    fn this_disk_takes_writes_and_the_file_goes_with_the_probe() {
        let dir =
            std::env::temp_dir().join(format!("outlast-postgres-disk-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let millis = Duration::from_millis;
        let probe = Probe::start(&dir, millis(1), Duration::from_secs(30)).unwrap();
        let wait = |done: &dyn Fn() -> bool| {
            let end = Instant::now() + Duration::from_secs(20);
            while !done() {
                assert!(Instant::now() < end, "not in time");
                thread::park_timeout(millis(2));
            }
        };
        wait(&|| matches!(probe.storage().health, Health::Ok { .. }));
        assert!(probe.storage().free.is_some_and(|free| free > 0));
        drop(probe);
        wait(&|| !dir.join(FILE).exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
