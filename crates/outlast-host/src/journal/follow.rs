//! Reads a journal as it grows, in whatever process.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{LINE_MAX, Line, NEWEST, files};

/// How often the size of the newest file is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Bytes read at a time.
const READ_MAX: usize = 64 << 10;

/// A reader at some place of a journal. Lines come once and in order, across rotations.
#[derive(Debug)]
pub struct Follow {
    dir: PathBuf,
    /// Lines up to this number have been seen.
    seen: u64,
    open: Option<Open>,
}

/// A file under way.
#[derive(Debug)]
struct Open {
    file: File,
    inode: u64,
    /// The beginning of the first line that has not been read. A line without its end is read again: it may be torn,
    /// and be cut off and written over.
    read_to: u64,
}

impl Follow {
    /// Starts behind line number `seen`: 0 for all that is kept.
    pub fn after(dir: &Path, seen: u64) -> Follow {
        Follow { dir: dir.to_owned(), seen, open: None }
    }

    /// Waits for lines and returns them, oldest first; never none. Cancel-safe: lines are returned or not yet taken.
    pub async fn next(&mut self) -> io::Result<Vec<Line>> {
        loop {
            let lines = self.poll()?;
            if !lines.is_empty() {
                return Ok(lines);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The lines that have been written since, without waiting; at most what one read takes.
    pub fn poll(&mut self) -> io::Result<Vec<Line>> {
        loop {
            let Some(open) = &mut self.open else {
                match self.open_file()? {
                    Some(open) => self.open = Some(open),
                    None => return Ok(Vec::new()),
                }
                continue;
            };
            // Looked at before the read: what is read after a rotation is the end of the file.
            let rotated =
                fs::metadata(self.dir.join(NEWEST)).map_or(true, |m| m.ino() != open.inode);
            let (at_end, lines) = open.read()?;
            if at_end && lines.is_empty() && rotated {
                self.open = self.file_after()?;
                if self.open.is_none() {
                    return Ok(Vec::new());
                }
                continue;
            }
            let lines: Vec<Line> = lines.into_iter().filter(|line| line.seq > self.seen).collect();
            if let Some(last) = lines.last() {
                self.seen = last.seq;
            }
            if !lines.is_empty() || at_end {
                return Ok(lines);
            }
        }
    }

    /// The file in which the first unseen line is.
    fn open_file(&self) -> io::Result<Option<Open>> {
        let files = files(&self.dir)?;
        // The last file that begins at or before the line; failing that, the oldest there is.
        let begins = |path: &PathBuf| super::first_line(path).ok().flatten().map(|line| line.seq);
        let place =
            files.iter().rposition(|path| begins(path).is_some_and(|seq| seq <= self.seen + 1));
        files.get(place.unwrap_or(0)).map_or(Ok(None), |path| Open::file(path))
    }

    /// The file behind the one that was read to its end.
    fn file_after(&self) -> io::Result<Option<Open>> {
        let Some(open) = &self.open else { return Ok(None) };
        let files = files(&self.dir)?;
        let inode = |path: &PathBuf| fs::metadata(path).map(|m| m.ino()).ok();
        match files.iter().position(|path| inode(path) == Some(open.inode)) {
            Some(place) => files.get(place + 1).map_or(Ok(None), |path| Open::file(path)),
            // It has been removed: we are far behind.
            None => self.open_file(),
        }
    }
}

impl Open {
    fn file(path: &Path) -> io::Result<Option<Open>> {
        match File::open(path) {
            Ok(file) => {
                let inode = file.metadata()?.ino();
                Ok(Some(Open { file, inode, read_to: 0 }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads on: whether the end was reached, and the lines that are whole now.
    fn read(&mut self) -> io::Result<(bool, Vec<Line>)> {
        let mut bytes = vec![0; READ_MAX];
        loop {
            let len = self.file.read_at(&mut bytes, self.read_to)?;
            let at_end = len < bytes.len();
            let whole = bytes[..len].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            if whole == 0 && !at_end && bytes.len() <= LINE_MAX {
                bytes.resize(bytes.len() * 2, 0);
                continue;
            }
            // More than a line may have and no end in sight: not ours, and not to be waited for.
            let skip = if whole == 0 && !at_end { len } else { whole };
            self.read_to += skip as u64;
            let lines = bytes[..whole].split(|&byte| byte == b'\n');
            return Ok((at_end, lines.filter_map(|line| Line::parse(line).ok()).collect()));
        }
    }
}
