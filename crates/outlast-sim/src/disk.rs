//! A node's disk: what was synced stays, what was not may stay, be gone, or be there in pieces.

use std::collections::{BTreeMap, VecDeque};

use outlast_raft::wal::{self, Damaged, Op, Recovered, Wal};
use outlast_raft::{Index, Members, Saved, Snapshot, Ticket, Write};

use crate::random::Random;

/// So small that a run fills many.
const SEGMENT: usize = 4 << 10;
const SECTOR: usize = 512;

/// Operations that a disk that lies has not done yet.
const LIAR_KEEPS: usize = 30;

/// What survives a crash.
#[derive(Clone, Debug, Default)]
struct Platter {
    segments: BTreeMap<u64, Vec<u8>>,
    snapshots: BTreeMap<Index, Vec<u8>>,
}

impl Platter {
    fn carry_out(&mut self, op: Op) {
        match op {
            Op::SaveSnapshot { index, bytes } => {
                self.snapshots.insert(index, bytes);
            }
            Op::BeginSegment { number, header } => {
                let mut segment = vec![0; SEGMENT];
                put(&mut segment, 0, &header);
                self.segments.insert(number, segment);
            }
            Op::Append { number, offset, bytes } => {
                // Only a disk that lies has lost the beginning.
                if let Some(segment) = self.segments.get_mut(&number) {
                    put(segment, offset, &bytes);
                }
            }
            Op::DeleteSegment { number } => {
                self.segments.remove(&number);
            }
            Op::DeleteSnapshotsBefore { index } => self.snapshots.retain(|&of, _| index <= of),
        }
    }

    /// A write that was cut short by a crash: any of its sectors may have been written.
    fn tear(&mut self, op: Op, random: &mut Random) {
        match op {
            // Not renamed yet.
            Op::SaveSnapshot { .. } => {}
            // Behind what a disk that lies has lost.
            Op::Append { number, .. } if !self.segments.contains_key(&number) => {}
            Op::BeginSegment { number, header } => {
                if random.chance(500_000) {
                    let mut segment = vec![0; SEGMENT];
                    let part = random.index(header.len() + 1);
                    put(&mut segment, 0, &header[..part]);
                    self.segments.insert(number, segment);
                }
            }
            Op::Append { number, offset, bytes } => {
                let segment = self.segments.get_mut(&number).expect("begun before");
                let mut at = 0;
                while at < bytes.len() {
                    let end = bytes.len().min((offset + at) / SECTOR * SECTOR + SECTOR - offset);
                    match random.within(0..4) {
                        0 | 1 => put(segment, offset + at, &bytes[at..end]),
                        2 => {
                            let part = at + random.index(end - at);
                            put(segment, offset + at, &bytes[at..part]);
                        }
                        _ => {}
                    }
                    at = end;
                }
                // Whoever extends a file may find it long and empty, or as long as it was.
                if random.chance(500_000) && segment.len() < offset + bytes.len() {
                    segment.resize(offset + bytes.len(), 0);
                }
            }
            Op::DeleteSegment { .. } | Op::DeleteSnapshotsBefore { .. } => {
                if random.chance(500_000) {
                    self.carry_out(op);
                }
            }
        }
    }
}

fn put(segment: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if segment.len() < offset + bytes.len() {
        segment.resize(offset + bytes.len(), 0);
    }
    segment[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// What a node has written, and what of it would survive a crash.
#[derive(Clone, Debug)]
pub struct Disk {
    platter: Platter,
    wal: Wal,
    /// Waiting for the sync that is under way.
    waiting: Vec<Write>,
    /// Being written, and what it makes durable.
    under_way: Option<(VecDeque<Op>, Ticket)>,
    /// Says done before it is.
    lies: bool,
    /// What a disk that lies has not written yet.
    cached: VecDeque<Op>,
}

impl Disk {
    pub(crate) fn new(lies: bool) -> Disk {
        let nothing = wal::recover(&BTreeMap::new()).expect("nothing is not damaged");
        Disk {
            platter: Platter::default(),
            wal: Wal::new(SEGMENT, &nothing, (0, 0)),
            waiting: Vec::new(),
            under_way: None,
            lies,
            cached: VecDeque::new(),
        }
    }

    /// Writes the beginning of a cluster.
    pub(crate) fn begin(&mut self, members: Members) {
        let snapshot = Snapshot::begin(members);
        let bytes = wal::encode_snapshot(&snapshot);
        self.platter.snapshots.insert(0, bytes);
    }

    pub(crate) fn take(&mut self, write: Write) {
        self.waiting.push(write);
    }

    /// Begins the next sync if none is under way. True: it is to be ended some time later.
    pub(crate) fn begin_sync(&mut self, salt: u64) -> bool {
        if self.under_way.is_some() || self.waiting.is_empty() {
            return false;
        }
        let writes = std::mem::take(&mut self.waiting);
        let ticket = writes.last().expect("not empty").ticket;
        self.under_way = Some((self.wal.plan(&writes, salt).into(), ticket));
        true
    }

    pub(crate) fn end_sync(&mut self) -> Option<Ticket> {
        let (ops, ticket) = self.under_way.take()?;
        self.cached.extend(ops);
        let kept = if self.lies { LIAR_KEEPS } else { 0 };
        while kept < self.cached.len() {
            let op = self.cached.pop_front().expect("longer than what is kept");
            self.platter.carry_out(op);
        }
        Some(ticket)
    }

    /// The power goes: some of the operations under way are done, one is in pieces, the others never began.
    pub(crate) fn crash(&mut self, random: &mut Random) {
        self.waiting.clear();
        self.cached.clear();
        let Some((ops, _)) = self.under_way.take() else { return };
        let done = random.index(ops.len() + 1);
        for (at, op) in ops.into_iter().enumerate() {
            if at < done {
                self.platter.carry_out(op);
            } else {
                self.platter.tear(op, random);
                break;
            }
        }
    }

    pub(crate) fn recover(&mut self) -> Result<(Saved, usize), Damaged> {
        let recovered: Recovered = wal::recover(&self.platter.segments)?;
        let torn = recovered.torn;
        let newest = self.platter.snapshots.last_key_value().map(|(_, bytes)| bytes);
        let snapshot = newest.map(|bytes| wal::decode_snapshot(bytes).expect("renamed when whole"));
        let snapshot = snapshot.unwrap_or(Snapshot::begin(Members::default()));
        self.wal = Wal::new(SEGMENT, &recovered, (snapshot.index, snapshot.term));
        Ok((recovered.with(snapshot)?, torn))
    }
}
