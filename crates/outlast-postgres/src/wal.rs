//! The files of the write-ahead log: what is still there.

use std::fs;
use std::path::Path;

use tokio::sync::Semaphore;

use crate::error::{Doing, Error};
use crate::lsn::Lsn;
use crate::postgres::Postgres;

/// Reads that a disk may hold up at a time, of all databases: each holds a thread.
const READS_MAX: usize = 4;
static READS: Semaphore = Semaphore::const_new(READS_MAX);

impl Postgres {
    /// Where the log begins that is still here: what lies before, no standby gets from this server any more.
    pub async fn keeps_from(&self) -> Result<Lsn, Error> {
        let dir = self.settings().data_dir.join("pg_wal");
        let read = READS.try_acquire().doing("look for the oldest log: earlier reads hang")?;
        let look = move || {
            let found = oldest(&dir);
            drop(read);
            found
        };
        self.on_disk(look).await.doing("look for the oldest log")
    }
}

fn oldest(dir: &Path) -> Result<Lsn, Error> {
    let mut oldest = None;
    for file in fs::read_dir(dir).doing(format!("read {}", dir.display()))? {
        let file = file.doing(format!("read {}", dir.display()))?;
        let Some(at) = number(&file.file_name().to_string_lossy()) else { continue };
        if oldest.as_ref().is_none_or(|(before, _)| at < *before) {
            oldest = Some((at, file.path()));
        }
    }
    let Some(((high, low), path)) = oldest else { return Err(Error::new("there is none")) };
    // All files are as long as a segment.
    let bytes = fs::metadata(&path).doing(format!("look at {}", path.display()))?.len();
    Ok(Lsn((u64::from(high) << 32) + u64::from(low) * bytes))
}

/// The number of a segment by its file's name, which is the timeline and the two halves of the number, in 8 digits each.
fn number(name: &str) -> Option<(u32, u32)> {
    let legal = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
    if name.len() != 24 || !name.bytes().all(legal) {
        return None;
    }
    let half = |from: usize| u32::from_str_radix(&name[from..from + 8], 16).ok();
    Some((half(8)?, half(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_segment_says_where_the_log_begins() {
        let dir = std::env::temp_dir().join(format!("outlast-wal-{}", std::process::id()));
        fs::remove_dir_all(&dir).ok();
        fs::create_dir_all(dir.join("archive_status")).unwrap();
        assert!(oldest(&dir).is_err());
        let names = [
            // By number, and not by timeline.
            "000000020000000100000003",
            "000000010000000100000004",
            "00000002.history",
            "000000010000000100000002.partial",
            "xlogtemp.17",
        ];
        for name in names {
            fs::write(dir.join(name), [0; 64]).unwrap();
        }
        assert_eq!(oldest(&dir).unwrap(), Lsn((1 << 32) + 3 * 64));
        fs::remove_dir_all(&dir).unwrap();
    }
}
