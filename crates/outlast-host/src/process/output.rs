//! What a program writes to stdout and stderr, in a file of bounded size.
//!
//! The program writes to the file itself, so that its output outlives the agent. The agent keeps the file small while
//! the program runs: it copies the full part to `.1` and cuts it off the front. Where the file system can take a range
//! out of a file (ext4, XFS) nothing is lost; elsewhere the file is truncated, and what is written between copy and cut
//! is lost. While no agent runs the file grows.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// Bytes of the file before it is rotated.
pub const OUTPUT_MAX: u64 = 16 << 20;
/// Full files that are kept.
pub const OUTPUT_KEPT: u32 = 2;
/// File systems take whole blocks out of a file; none in use here has larger ones.
const BLOCK: u64 = 64 << 10;

/// The output file of one program.
#[derive(Clone, Debug)]
pub struct Output {
    path: PathBuf,
}

impl Output {
    pub fn at(path: PathBuf) -> Output {
        Output { path }
    }

    /// A handle for the program to write to; appending, so that a cut does not leave a hole.
    pub fn open(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).mode(0o640).open(&self.path)
    }

    /// Rotates if the file is full: more than [`OUTPUT_MAX`]. [`OUTPUT_KEPT`] full ones are kept.
    pub fn rotate(&self) -> io::Result<()> {
        self.rotate_at(OUTPUT_MAX)
    }

    fn rotate_at(&self, max: u64) -> io::Result<()> {
        let file = match OpenOptions::new().read(true).write(true).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let size = file.metadata()?.len();
        if size < max {
            return Ok(());
        }
        for n in (1..OUTPUT_KEPT).rev() {
            ignore_missing(fs::rename(self.kept(n), self.kept(n + 1)))?;
        }
        // A range that reaches the end of the file cannot be taken out.
        let cut = (size - 1) / BLOCK * BLOCK;
        if cut > 0 {
            copy(&file, cut, &self.kept(1))?;
            match fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, cut) {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        copy(&file, file.metadata()?.len(), &self.kept(1))?;
        file.set_len(0)
    }

    fn kept(&self, n: u32) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    }
}

/// Copies the first `len` bytes.
fn copy(from: &File, len: u64, to: &Path) -> io::Result<()> {
    let mut to = OpenOptions::new().create(true).truncate(true).write(true).mode(0o640).open(to)?;
    let mut reader = At { file: from, offset: 0 }.take(len);
    io::copy(&mut reader, &mut to).map(|_copied| ())
}

/// Reads a file from an offset of its own.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read_at(bytes, self.offset)?;
        self.offset += len as u64;
        Ok(len)
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(()) | Err(_) => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::io::Write;

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn rotation_loses_nothing_and_keeps_what_it_says() {
        let scratch = Scratch::new();
        let output = Output::at(scratch.path("output.log"));
        let mut program = output.open().unwrap();
        let mut written = String::new();
        // 300,000 bytes between rotations: more than four blocks.
        for round in 0..2 {
            for n in 0..30_000 {
                let line = format!("{round:04}{n:05}\n");
                program.write_all(line.as_bytes()).unwrap();
                written += &line;
            }
            output.rotate_at(300_000).unwrap();
            assert!(fs::metadata(&output.path).unwrap().len() < BLOCK);
        }
        program.write_all(b"last\n").unwrap();
        written += "last\n";
        let (newest, older, live) =
            (read(&output.kept(1)), read(&output.kept(2)), read(&output.path));
        assert_eq!(older + &newest + &live, written);

        for _ in 0..3 {
            program.write_all(&vec![b'x'; 300_000]).unwrap();
            output.rotate_at(300_000).unwrap();
        }
        assert!(!output.kept(OUTPUT_KEPT + 1).exists());
    }

    #[test]
    fn a_small_or_missing_file_is_left_alone() {
        let scratch = Scratch::new();
        let output = Output::at(scratch.path("output.log"));
        output.rotate_at(10).unwrap();
        output.open().unwrap().write_all(b"123456789").unwrap();
        output.rotate_at(10).unwrap();
        assert_eq!(read(&output.path), "123456789");
        output.open().unwrap().write_all(b"0").unwrap();
        output.rotate_at(10).unwrap();
        assert_eq!(
            (read(&output.path).as_str(), read(&output.kept(1)).as_str()),
            ("", "1234567890")
        );
    }
}
