//! The log's directory: does what [`outlast_raft::wal`] says, each operation whole before the next begins.
//!
//! ```text
//! consensus/  log-000000000000000a   segments, zeros where nothing was written yet
//!             snapshot-00000000000003e8
//!             spare                  the next segment, made ahead
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use outlast_raft::wal::{self, Damaged, Op, Wal};
use outlast_raft::{Index, Members, Saved, Snapshot, Write};

/// Bytes of a segment: written as zeros ahead of time, so that a sync of a record has no metadata to write.
const SEGMENT_BYTES: usize = 16 << 20;

/// Why a directory cannot be used.
#[derive(Debug)]
pub enum DiskError {
    Io { doing: String, error: io::Error },
    Damaged(Damaged),
    Snapshot { path: PathBuf, what: &'static str },
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = "take this node out of the cluster, empty its data directory and join it anew";
        match self {
            DiskError::Io { doing, error } => write!(f, "{doing}: {error}"),
            DiskError::Damaged(damaged) => write!(f, "{damaged}; {advice}"),
            DiskError::Snapshot { path, what } => {
                write!(f, "the snapshot {} is damaged: {what}; {advice}", path.display())
            }
        }
    }
}

impl std::error::Error for DiskError {}

fn doing<T>(what: &str, path: &Path, result: io::Result<T>) -> Result<T, DiskError> {
    result.map_err(|error| DiskError::Io { doing: format!("{what} {}", path.display()), error })
}

/// Where a node keeps its share of the log.
#[derive(Debug)]
pub struct Home {
    dir: PathBuf,
    /// What the disk gave back.
    pub(crate) saved: Saved,
    wal: Wal,
    /// Bytes of a torn end that nobody was told of.
    pub torn: usize,
}

impl Home {
    /// Opens the directory; `None`: this node has never taken part.
    pub fn open(dir: &Path) -> Result<Option<Home>, DiskError> {
        let snapshots = numbered(dir, "snapshot-")?;
        let Some((_, newest)) = snapshots.last_key_value() else {
            return Ok(None);
        };
        let bytes = doing("read", newest, std::fs::read(newest))?;
        let snapshot = wal::decode_snapshot(&bytes)
            .map_err(|error| DiskError::Snapshot { path: newest.clone(), what: error.0 })?;
        let mut segments = BTreeMap::new();
        for (number, path) in numbered(dir, "log-")? {
            segments.insert(number, doing("read", &path, std::fs::read(&path))?);
        }
        let recovered = wal::recover(&segments).map_err(DiskError::Damaged)?;
        let newest = (snapshot.index, snapshot.term);
        let (wal, torn) = (Wal::new(SEGMENT_BYTES, &recovered, newest), recovered.torn);
        let saved = recovered.with(snapshot).map_err(DiskError::Damaged)?;
        Ok(Some(Home { dir: dir.to_owned(), saved, wal, torn }))
    }

    /// Makes the directory of a node that has never taken part: of the first nodes with all of them as members, of one that
    /// joins later without any.
    pub fn create(dir: &Path, members: Members) -> Result<Home, DiskError> {
        doing("make", dir, std::fs::create_dir_all(dir))?;
        let snapshot = Snapshot::begin(members);
        save_snapshot(dir, 0, &wal::encode_snapshot(&snapshot))?;
        if let Some(parent) = dir.parent() {
            doing("sync", parent, File::open(parent).and_then(|parent| parent.sync_all()))?;
        }
        let nothing = wal::recover(&BTreeMap::new()).map_err(DiskError::Damaged)?;
        Ok(Home {
            dir: dir.to_owned(),
            saved: Saved { snapshot, ..Saved::begin(Members::default()) },
            wal: Wal::new(SEGMENT_BYTES, &nothing, (0, 0)),
            torn: 0,
        })
    }

    /// Parts into what the log was, and the one who goes on with it.
    pub(crate) fn split(self) -> (Saved, Files) {
        (self.saved, Files { dir: self.dir, wal: self.wal, segment: None, spare: None })
    }
}

/// Files whose names end in a number, by it.
fn numbered(dir: &Path, prefix: &str) -> Result<BTreeMap<u64, PathBuf>, DiskError> {
    let mut found = BTreeMap::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return doing("list", dir, Err(error)),
    };
    for entry in entries {
        let path = doing("list", dir, entry)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix(prefix).filter(|digits| digits.len() == 16);
        if let Some(number) = number.and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
            found.insert(number, path);
        }
    }
    Ok(found)
}

fn save_snapshot(dir: &Path, index: Index, bytes: &[u8]) -> Result<(), DiskError> {
    let path = dir.join(format!("snapshot-{index:016x}"));
    let beside = dir.join("snapshot.new");
    let write = || -> io::Result<()> {
        let file = File::create(&beside)?;
        file.write_all_at(bytes, 0)?;
        file.sync_all()?;
        std::fs::rename(&beside, &path)?;
        File::open(dir)?.sync_all()
    };
    doing("write", &path, write())
}

/// Writes what it is told, in a thread of its own.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    wal: Wal,
    segment: Option<(u64, File)>,
    /// Makes the next segment ahead.
    spare: Option<JoinHandle<io::Result<()>>>,
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Some(spare) = self.spare.take() {
            spare.join().ok();
        }
    }
}

impl Files {
    /// Makes these writes durable. After an error, nobody knows what is on the disk.
    pub(crate) fn write(&mut self, writes: &[Write]) -> Result<(), DiskError> {
        let salt = salt()?;
        for op in self.wal.plan(writes, salt) {
            self.carry_out(op)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, op: Op) -> Result<(), DiskError> {
        match op {
            Op::SaveSnapshot { index, bytes } => save_snapshot(&self.dir, index, &bytes),
            Op::BeginSegment { number, header } => {
                let path = self.segment_path(number);
                let file = doing("begin", &path, self.begin_segment(&path, &header))?;
                self.segment = Some((number, file));
                Ok(())
            }
            Op::Append { number, offset, bytes } => {
                let path = self.segment_path(number);
                let file = self.segment.as_ref().filter(|(open, _)| *open == number);
                let (_, file) = file.expect("a segment is begun before it is written to");
                let write = || {
                    file.write_all_at(&bytes, offset as u64)?;
                    file.sync_data()
                };
                doing("write", &path, write())
            }
            Op::DeleteSegment { number } => {
                let path = self.segment_path(number);
                doing("delete", &path, gone(std::fs::remove_file(&path)))
            }
            Op::DeleteSnapshotsBefore { index } => {
                for (_, path) in numbered(&self.dir, "snapshot-")?.range(..index) {
                    doing("delete", path, gone(std::fs::remove_file(path)))?;
                }
                Ok(())
            }
        }
    }

    fn segment_path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("log-{number:016x}"))
    }

    fn begin_segment(&mut self, path: &Path, header: &[u8]) -> io::Result<File> {
        if let Some(spare) = self.spare.take() {
            // What went wrong ahead of time goes wrong again below, or does not matter.
            spare.join().ok();
        }
        let spare = self.dir.join("spare");
        let ready = std::fs::metadata(&spare).is_ok_and(|meta| meta.len() == SEGMENT_BYTES as u64);
        if !ready {
            make_spare(&spare)?;
        }
        let file = OpenOptions::new().write(true).open(&spare)?;
        file.write_all_at(header, 0)?;
        file.sync_all()?;
        std::fs::rename(&spare, path)?;
        File::open(&self.dir)?.sync_all()?;
        let thread = std::thread::Builder::new().name("segment".to_owned());
        self.spare = thread.spawn(move || make_spare(&spare)).ok();
        Ok(file)
    }
}

fn make_spare(spare: &Path) -> io::Result<()> {
    let beside = spare.with_extension("new");
    let file = File::create(&beside)?;
    let zeros = vec![0; 1 << 20];
    for at in (0..SEGMENT_BYTES).step_by(zeros.len()) {
        file.write_all_at(&zeros, at as u64)?;
    }
    file.sync_all()?;
    std::fs::rename(&beside, spare)
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn salt() -> Result<u64, DiskError> {
    let mut bytes = [0; 8];
    let path = Path::new("/dev/urandom");
    doing("read", path, File::open(path).and_then(|mut file| file.read_exact(&mut bytes)))?;
    Ok(u64::from_le_bytes(bytes))
}
