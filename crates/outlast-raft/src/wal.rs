//! The log on disk, as bytes: frames that end in a checksum, in segments that begin with a header.
//!
//! ```text
//! segment  "outlast\0" version:u8 0:u8*7  number:u64  first_frame:u64  salt:u64  crc:u32 0:u32      48 bytes
//! frame    length:u32  crc:u32  frame_number^salt:u64  payload, then zeros up to a multiple of eight
//! payload  records: 1 term, vote · 2 entry · 3 index and term of a snapshot that is on disk
//! ```
//!
//! Fixed numbers are little-endian, what is inside records is in the form of [`outlast_core::codec`]. One frame is one
//! sync, so that at most one frame can be torn. A segment is zeros until it is written; after it comes the next one.
//!
//! A torn end is cut off: nobody was told of it. A bad frame that a good one follows is damage to what others rely on, and
//! is never passed over. The salt keeps bytes that users store from looking like a frame, so that to look for one costs
//! little, whatever they store.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use outlast_core::codec::{Code, Malformed, Reader};

use crate::crc::crc32c;
use crate::entry::{Entry, HardState, Index, Saved, Snapshot, Term};
use crate::node::Write;

const MAGIC: &[u8; 8] = b"outlast\0";
const VERSION: u8 = 1;
const HEADER: usize = 48;
const FRAME_HEADER: usize = 16;

/// Bytes of one frame; a longer one is not ours.
const FRAME_MAX: usize = 64 << 20;

/// A frame that has this many bytes is followed by another one; the last entry in it may go beyond.
const FRAME_FULL: usize = 8 << 20;

const SNAPSHOT_MAGIC: &[u8; 8] = b"outlsnap";

/// One thing to do to the disk, in this order; each is complete before the next begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Write it beside the old one, sync, rename, sync the directory.
    SaveSnapshot {
        index: Index,
        bytes: Vec<u8>,
    },
    /// Make a segment of zeros, whatever was there, with this at its beginning; sync it and the directory.
    BeginSegment {
        number: u64,
        header: Vec<u8>,
    },
    /// Write and sync. Only when this is done is anything durable.
    Append {
        number: u64,
        offset: usize,
        bytes: Vec<u8>,
    },
    /// No longer needed; need not be synced.
    DeleteSegment {
        number: u64,
    },
    DeleteSnapshotsBefore {
        index: Index,
    },
}

/// Decides what goes where; whoever owns the disk does it.
#[derive(Clone, Debug)]
pub struct Wal {
    /// A segment that has this many bytes is followed by another one.
    segment_bytes: usize,
    /// Of the segment that is written to; zero before the first.
    number: u64,
    offset: usize,
    frame: u64,
    salt: u64,
    hard: HardState,
    snapshot: (Index, Term),
    /// The greatest index of an entry in each segment.
    reach: BTreeMap<u64, Index>,
}

impl Wal {
    /// Goes on behind what was recovered, in a segment of its own, and from the newest snapshot on disk: the log may not know
    /// of it yet, and what is written from now on follows it.
    pub fn new(segment_bytes: usize, recovered: &Recovered, snapshot: (Index, Term)) -> Wal {
        let number = recovered.last_segment;
        Wal {
            segment_bytes,
            number,
            // No room: the next write begins a segment.
            offset: usize::MAX,
            frame: recovered.frame,
            salt: 0,
            hard: recovered.hard,
            snapshot: snapshot.max(recovered.snapshot),
            reach: recovered.reach.clone(),
        }
    }

    /// What makes these writes durable, all at once. `salt` is any number that users cannot guess.
    pub fn plan(&mut self, writes: &[Write], salt: u64) -> Vec<Op> {
        let mut ops = Vec::new();
        let newest = writes.iter().rev().find_map(|write| write.snapshot.as_ref());
        if let Some(snapshot) = newest {
            let bytes = encode_snapshot(snapshot);
            ops.push(Op::SaveSnapshot { index: snapshot.index, bytes });
        }
        let mut payload = Vec::new();
        if self.segment_bytes <= self.offset {
            self.number += 1;
            self.salt = salt;
            let header = self.header();
            self.offset = header.len();
            ops.push(Op::BeginSegment { number: self.number, header });
            // Everything before it has led to this: so it can be deleted.
            encode_hard(self.hard, &mut payload);
            encode_mark(self.snapshot, &mut payload);
        }
        let mut reach = self.reach.get(&self.number).copied().unwrap_or(0);
        for write in writes {
            if let Some(hard) = write.hard {
                self.hard = hard;
                encode_hard(hard, &mut payload);
            }
            // Entries of one write follow its snapshot.
            if let Some(snapshot) = &write.snapshot {
                self.snapshot = (snapshot.index, snapshot.term);
                encode_mark(self.snapshot, &mut payload);
            }
            for entry in &write.entries {
                reach = entry.index.max(reach);
                payload.push(2);
                entry.encode(&mut payload);
                if FRAME_FULL <= payload.len() {
                    ops.push(self.frame_of(&payload));
                    payload.clear();
                }
            }
        }
        self.reach.insert(self.number, reach);
        if !payload.is_empty() {
            ops.push(self.frame_of(&payload));
        }
        let number = self.number;
        if let Some(snapshot) = newest {
            let index = snapshot.index;
            let old = self.reach.range(..number).take_while(|&(_, &reach)| reach <= index);
            let old: Vec<u64> = old.map(|(&number, _)| number).collect();
            for number in old {
                self.reach.remove(&number);
                ops.push(Op::DeleteSegment { number });
            }
            ops.push(Op::DeleteSnapshotsBefore { index });
        }
        ops
    }

    fn header(&self) -> Vec<u8> {
        let mut bytes = Vec::from(*MAGIC);
        bytes.extend([VERSION, 0, 0, 0, 0, 0, 0, 0]);
        for field in [self.number, self.frame, self.salt] {
            bytes.extend(field.to_le_bytes());
        }
        let crc = crc32c(&[&bytes]);
        bytes.extend(crc.to_le_bytes());
        bytes.extend([0; 4]);
        bytes
    }

    /// The next frame, in its place.
    fn frame_of(&mut self, payload: &[u8]) -> Op {
        let bytes = self.seal(payload);
        let (number, offset) = (self.number, self.offset);
        self.offset += bytes.len();
        Op::Append { number, offset, bytes }
    }

    fn seal(&mut self, payload: &[u8]) -> Vec<u8> {
        // What could not be read again must not be acknowledged.
        assert!(payload.len() <= FRAME_MAX, "an entry is far smaller than the longest frame");
        let length = u32::try_from(payload.len()).expect("far below 4 GiB");
        let number = (self.frame ^ self.salt).to_le_bytes();
        self.frame += 1;
        let mut bytes = Vec::with_capacity(FRAME_HEADER + payload.len() + 8);
        bytes.extend(length.to_le_bytes());
        bytes.extend(checksum(self.salt, number, payload).to_le_bytes());
        bytes.extend(number);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }
}

fn checksum(salt: u64, number: [u8; 8], payload: &[u8]) -> u32 {
    let length = payload.len() as u64;
    crc32c(&[&salt.to_le_bytes(), &number, &length.to_le_bytes(), payload])
}

fn encode_hard(hard: HardState, to: &mut Vec<u8>) {
    to.push(1);
    hard.encode(to);
}

fn encode_mark((index, term): (Index, Term), to: &mut Vec<u8>) {
    to.push(3);
    index.encode(to);
    term.encode(to);
}

/// Why a log cannot be used: the node must be taken out of the cluster and joined anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    pub segment: u64,
    pub offset: usize,
    pub what: String,
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damaged { segment, offset, what } = self;
        write!(f, "the log is damaged in segment {segment} at byte {offset}: {what}")
    }
}

impl core::error::Error for Damaged {}

/// What a log gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    pub hard: HardState,
    pub log: BTreeMap<Index, Entry>,
    /// The newest snapshot that the log knows of.
    pub snapshot: (Index, Term),
    /// Number of the next frame.
    pub frame: u64,
    /// Bytes of a torn end that were passed over.
    pub torn: usize,
    /// The greatest index of an entry in each segment: what a snapshot has to reach before the segment may go.
    pub reach: BTreeMap<u64, Index>,
    /// The newest with a header; zero if there is none.
    pub last_segment: u64,
}

impl Recovered {
    /// Puts the log together with the newest snapshot on disk.
    pub fn with(self, snapshot: Snapshot) -> Result<Saved, Damaged> {
        if snapshot.index < self.snapshot.0 {
            let what = alloc::format!(
                "it says that there is a snapshot of entry {}, but the newest on disk is of {}",
                self.snapshot.0,
                snapshot.index
            );
            return Err(Damaged { segment: 0, offset: 0, what });
        }
        let mut log = self.log;
        // A snapshot whose mark never reached the disk: the log behind it may be of another past.
        if log.get(&snapshot.index).is_some_and(|entry| entry.term != snapshot.term) {
            log.clear();
        }
        if log.first_key_value().is_some_and(|(&first, _)| snapshot.index + 1 < first) {
            let what = alloc::format!("entries before {} are missing", snapshot.index + 1);
            return Err(Damaged { segment: 0, offset: 0, what });
        }
        Ok(Saved { hard: self.hard, snapshot, log })
    }
}

/// Reads the segments of a log, by number. The last one may have a torn end.
pub fn recover(segments: &BTreeMap<u64, Vec<u8>>) -> Result<Recovered, Damaged> {
    let mut found = Recovered {
        hard: HardState::default(),
        log: BTreeMap::new(),
        snapshot: (0, 0),
        frame: 0,
        torn: 0,
        reach: BTreeMap::new(),
        last_segment: 0,
    };
    let mut begun = false;
    for (&number, bytes) in segments {
        let damaged = |offset: usize, what: &str| Damaged {
            segment: number,
            offset,
            what: String::from(what),
        };
        let next = segments.range(number + 1..).next().map(|(_, bytes)| bytes);
        let Some((first, salt)) = header(bytes, number) else {
            // Its header is synced before its first frame is written: without one, there is nothing in it.
            if next.is_none() && bytes.iter().skip(HEADER).all(|&byte| byte == 0) {
                found.torn += bytes.iter().filter(|&&byte| byte != 0).count();
                continue;
            }
            return Err(damaged(0, "its header is not one of ours"));
        };
        if begun && first != found.frame {
            return Err(damaged(0, "frames between it and the segment before are missing"));
        }
        begun = true;
        found.last_segment = number;
        found.reach.insert(number, 0);
        found.frame = first;
        let mut at = HEADER;
        while let Some((payload, end)) = frame(bytes, at, salt, found.frame) {
            let reach = found.reach.entry(number).or_default();
            replay(payload, &mut found.hard, &mut found.log, &mut found.snapshot, reach)
                .map_err(|error| damaged(at, error.0))?;
            found.frame += 1;
            at = end;
        }
        match next {
            // What the next segment goes on from was whole.
            Some(next) if header_first(next) == Some(found.frame) => {}
            Some(next) if header_first(next).is_some() => {
                return Err(damaged(at, "a frame is broken, and the log goes on after it"));
            }
            Some(_) | None => {
                if holds_a_frame(bytes, at, salt, found.frame) {
                    return Err(damaged(at, "a frame is broken, and a good one follows it"));
                }
                found.torn += bytes[at..].iter().filter(|&&byte| byte != 0).count();
            }
        }
    }
    Ok(found)
}

/// The first frame's number and the salt.
fn header(bytes: &[u8], number: u64) -> Option<(u64, u64)> {
    let header = bytes.get(..HEADER)?;
    let field = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    let crc = u32::from_le_bytes(header[40..44].try_into().expect("four bytes"));
    let ours = &header[..8] == MAGIC
        && header[8] == VERSION
        && field(16) == number
        && crc == crc32c(&[&header[..40]]);
    ours.then(|| (field(24), field(32)))
}

fn header_first(bytes: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(bytes.get(16..24)?.try_into().expect("eight bytes"));
    header(bytes, number).map(|(first, _)| first)
}

/// The frame at `at`, if it is whole and has this number, and where it ends.
fn frame(bytes: &[u8], at: usize, salt: u64, number: u64) -> Option<(&[u8], usize)> {
    let head = bytes.get(at..at.checked_add(FRAME_HEADER)?)?;
    let length = u32::from_le_bytes(head[..4].try_into().expect("four bytes"));
    let length = usize::try_from(length).ok().filter(|&l| 0 < l && l <= FRAME_MAX)?;
    let crc = u32::from_le_bytes(head[4..8].try_into().expect("four bytes"));
    let stored: [u8; 8] = head[8..16].try_into().expect("eight bytes");
    if u64::from_le_bytes(stored) ^ salt != number {
        return None;
    }
    let from = at + FRAME_HEADER;
    let payload = bytes.get(from..from.checked_add(length)?)?;
    // The zeros after it may be missing: they say nothing.
    let end = (from + length).next_multiple_of(8).min(bytes.len());
    (crc == checksum(salt, stored, payload)).then_some((payload, end))
}

/// Whether a whole frame from `number` on stands somewhere at or after `from`.
fn holds_a_frame(bytes: &[u8], from: usize, salt: u64, number: u64) -> bool {
    (from.next_multiple_of(8)..bytes.len()).step_by(8).any(|at| {
        let Some(head) = bytes.get(at..at + FRAME_HEADER) else { return false };
        if head[..4] == [0; 4] {
            return false;
        }
        let stored = u64::from_le_bytes(head[8..16].try_into().expect("eight bytes")) ^ salt;
        // A segment has room for so many frames at most; what users stored gives another number.
        let plausible = number..=number.saturating_add((bytes.len() / FRAME_HEADER) as u64);
        plausible.contains(&stored) && frame(bytes, at, salt, stored).is_some()
    })
}

fn replay(
    payload: &[u8],
    hard: &mut HardState,
    log: &mut BTreeMap<Index, Entry>,
    snapshot: &mut (Index, Term),
    reach: &mut Index,
) -> Result<(), Malformed> {
    let mut reader = Reader::new(payload);
    let mut rest = reader.clone();
    while let Ok(kind) = rest.byte() {
        match kind {
            1 => *hard = HardState::decode(&mut rest)?,
            2 => {
                let entry = Entry::decode(&mut rest)?;
                let before = log.last_key_value().map(|(&last, _)| last);
                if before.is_some_and(|last| last + 1 < entry.index) {
                    return Err(Malformed("entries are missing"));
                }
                *reach = entry.index.max(*reach);
                // An entry takes the place of everything from its index on.
                drop(log.split_off(&entry.index));
                log.insert(entry.index, entry);
            }
            3 => {
                let mark = (u64::decode(&mut rest)?, u64::decode(&mut rest)?);
                // The segment's own beginning repeats the newest mark.
                if mark.0 > snapshot.0 {
                    // Entries that all lie behind it go on from it: what was before them has been deleted since.
                    let behind = log.first_key_value().is_some_and(|(&first, _)| mark.0 < first);
                    let same = log.get(&mark.0).is_some_and(|entry| entry.term == mark.1);
                    if !behind && !same {
                        log.clear();
                    }
                    *snapshot = mark;
                }
            }
            _ => return Err(Malformed("a record of an unknown kind")),
        }
        reader = rest.clone();
    }
    reader.end()
}

/// A snapshot as a file.
pub fn encode_snapshot(snapshot: &Snapshot) -> Vec<u8> {
    let mut bytes = Vec::from(*SNAPSHOT_MAGIC);
    bytes.push(VERSION);
    snapshot.encode(&mut bytes);
    let crc = crc32c(&[&bytes]);
    bytes.extend(crc.to_le_bytes());
    bytes
}

pub fn decode_snapshot(bytes: &[u8]) -> Result<Snapshot, Malformed> {
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or(Malformed("it ends too early"))?;
    if crc32c(&[body]) != u32::from_le_bytes(*crc) {
        return Err(Malformed("the checksum is wrong"));
    }
    let body = body.strip_prefix(SNAPSHOT_MAGIC).ok_or(Malformed("it is not a snapshot"))?;
    match body.split_first() {
        Some((&VERSION, body)) => Snapshot::from_bytes(body),
        _ => Err(Malformed("a snapshot of another version")),
    }
}
