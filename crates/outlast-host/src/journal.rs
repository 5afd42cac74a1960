//! What happened on this node, one JSON object a line, in files that only grow.
//!
//! A line is `{"v":1,"seq":…,"at":…,"node":…,"event":…,"subject":…,"severity":…,"message":…,…}` with the event's own
//! fields behind. The newest file is `journal.jsonl`; a full one is renamed to `journal-SEQ.jsonl` after its first
//! line's number, so that names sort as time does. An agent that dies in the middle of a line leaves it torn; the next
//! one cuts it off, keeps the rest and says so.

mod follow;
mod line;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use outlast_core::event::{Event, Fact};
use outlast_core::time::Timestamp;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

pub use follow::Follow;
pub use line::{Line, Malformed};

/// Bytes of a file before a new one is begun.
pub const FILE_MAX: u64 = 64 << 20;
/// Files that are kept, the newest included.
pub const FILES_MAX: usize = 16;
/// Bytes of a line. A longer one is not written by us, and not read.
pub const LINE_MAX: usize = 1 << 20;

const NEWEST: &str = "journal.jsonl";

/// The journal of one node, open for writing. One process at a time.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    node: String,
    file: File,
    size: u64,
    /// The number of the next line.
    next_seq: u64,
    /// The number of the newest file's first line.
    first_seq: u64,
    /// Bytes of a file before a new one is begun.
    file_max: u64,
}

/// What opening a journal found and mended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Bytes of a torn last line that were cut off.
    pub cut: u64,
}

impl Journal {
    /// Opens the journal in `dir`, or begins one. Cuts off a torn last line.
    pub fn open(dir: &Path, node: &str) -> io::Result<(Journal, Recovery)> {
        fs::create_dir_all(dir)?;
        let path = dir.join(NEWEST);
        let file =
            OpenOptions::new().create(true).append(true).read(true).mode(0o640).open(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                let text = format!("{} is in use by another process", path.display());
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
            locked => locked?,
        }
        let whole = whole_len(&file)?;
        let cut = file.metadata()?.len() - whole;
        if cut > 0 {
            file.set_len(whole)?;
            tracing::warn!(file = %path.display(), bytes = cut, "cut a torn line off the journal");
        }
        let next_seq = last_seq(dir)?.map_or(1, |seq| seq + 1);
        let first_seq = first_line(&path)?.map_or(next_seq, |line| line.seq);
        let (dir, node) = (dir.to_owned(), node.to_owned());
        let journal =
            Journal { dir, node, file, size: whole, next_seq, first_seq, file_max: FILE_MAX };
        Ok((journal, Recovery { cut }))
    }

    /// The number that the next event gets.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Makes an event of a fact and appends it.
    pub fn record(&mut self, at: Timestamp, fact: Fact) -> io::Result<Event> {
        let event = Event { seq: self.next_seq, at, node: self.node.clone(), fact };
        self.append(&event)?;
        Ok(event)
    }

    /// Appends an event. Its number must be the next one or later; a gap tells readers that lines are missing.
    ///
    /// The line is handed to the kernel, which keeps it if this process dies. Call [`Journal::sync`] to have it survive
    /// the machine.
    pub fn append(&mut self, event: &Event) -> io::Result<()> {
        if event.seq < self.next_seq {
            let text = format!("event {} comes after event {}", event.seq, self.next_seq - 1);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut text = Line::of(event).to_json();
        if text.len() > LINE_MAX {
            let text = format!(
                "event {} takes {} bytes, more than a line may have",
                event.seq,
                text.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        text.push('\n');
        if self.size > 0 && self.size + text.len() as u64 > self.file_max {
            self.rotate()?;
        }
        if self.size == 0 {
            self.first_seq = event.seq;
        }
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            // Half a line must not come before the next one.
            self.file.set_len(self.size)?;
            return Err(error);
        }
        self.size += text.len() as u64;
        self.next_seq = event.seq + 1;
        Ok(())
    }

    /// Has the disk keep what was appended.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Begins a new file and removes the oldest beyond [`FILES_MAX`].
    fn rotate(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        let newest = self.dir.join(NEWEST);
        fs::rename(&newest, self.dir.join(full_name(self.first_seq)))?;
        self.file =
            OpenOptions::new().create(true).append(true).read(true).mode(0o640).open(&newest)?;
        flock(&self.file, FlockOperation::NonBlockingLockExclusive)?;
        self.size = 0;
        let files = files(&self.dir)?;
        for old in files.iter().take(files.len().saturating_sub(FILES_MAX)) {
            fs::remove_file(old)?;
        }
        Ok(())
    }
}

/// The last `n` lines of the journal in `dir`, oldest first. Lines that cannot be read are left out.
pub fn read_last(dir: &Path, n: usize) -> io::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for path in files(dir)?.iter().rev() {
        if lines.len() >= n {
            break;
        }
        let mut file_lines = last_lines(path, n - lines.len())?;
        file_lines.append(&mut lines);
        lines = file_lines;
    }
    Ok(lines)
}

/// The journal's files, oldest first. A journal that was never written has none.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut full = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if let Some(seq) = seq_of(&path) {
            full.push((seq, path));
        }
    }
    full.sort();
    let newest = dir.join(NEWEST);
    let newest = newest.exists().then_some(newest);
    Ok(full.into_iter().map(|(_seq, path)| path).chain(newest).collect())
}

fn full_name(first_seq: u64) -> String {
    format!("journal-{first_seq:020}.jsonl")
}

/// The number in a full file's name.
fn seq_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix("journal-")?.strip_suffix(".jsonl")?.parse().ok()
}

/// Bytes up to and including the last line end. An unfinished line is torn, whatever it says.
fn whole_len(file: &File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut block = [0; 4096];
    while end > 0 {
        let from = end.saturating_sub(block.len() as u64);
        let len = usize::try_from(end - from).expect("at most a block");
        file.read_exact_at(&mut block[..len], from)?;
        if let Some(at) = block[..len].iter().rposition(|&byte| byte == b'\n') {
            return Ok(from + at as u64 + 1);
        }
        end = from;
    }
    Ok(0)
}

/// The highest number written so far.
fn last_seq(dir: &Path) -> io::Result<Option<u64>> {
    for path in files(dir)?.iter().rev() {
        if let Some(line) = last_lines(path, 1)?.pop() {
            return Ok(Some(line.seq));
        }
    }
    Ok(None)
}

fn first_line(path: &Path) -> io::Result<Option<Line>> {
    let mut text = Vec::new();
    let reader = BufReader::new(File::open(path)?);
    reader.take(LINE_MAX as u64).read_until(b'\n', &mut text)?;
    Ok(Line::parse(&text).ok())
}

/// The last `n` lines of one file that can be read, oldest first. Reads backwards, no more than it needs.
fn last_lines(path: &Path, n: usize) -> io::Result<Vec<Line>> {
    const STEP: u64 = 64 << 10;
    let mut file = match File::open(path) {
        Ok(file) => file,
        // Removed by a rotation since it was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let end = whole_len(&file)?;
    let mut reach = STEP.max(n as u64 * 256);
    loop {
        let from = end.saturating_sub(reach);
        file.seek(SeekFrom::Start(from))?;
        let mut text = Vec::new();
        (&mut file).take(end - from).read_to_end(&mut text)?;
        // Unless it begins the file, the first line is likely a part of one.
        let skip = if from == 0 {
            0
        } else {
            text.iter().position(|&b| b == b'\n').map_or(0, |at| at + 1)
        };
        let mut lines: Vec<Line> = text[skip..]
            .split(|&byte| byte == b'\n')
            .filter_map(|line| Line::parse(line).ok())
            .collect();
        if from == 0 || lines.len() >= n {
            let surplus = lines.len().saturating_sub(n);
            lines.drain(..surplus);
            return Ok(lines);
        }
        reach *= 2;
    }
}
