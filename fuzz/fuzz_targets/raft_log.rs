//! Segments of the log from any bytes: read, or damaged; and what can be read can be gone on with.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use outlast_raft::wal::{self, Op, Wal};
use outlast_raft::{Entry, HardState, NodeId, Payload, Write};

const SEGMENT: usize = 1 << 10;

fn carry_out(segments: &mut BTreeMap<u64, Vec<u8>>, op: Op) {
    match op {
        Op::BeginSegment { number, mut header } => {
            header.resize(SEGMENT, 0);
            segments.insert(number, header);
        }
        Op::Append { number, offset, bytes } => {
            let segment = segments.get_mut(&number).expect("begun");
            segment.resize(segment.len().max(offset + bytes.len()), 0);
            segment[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        Op::DeleteSegment { number } => {
            segments.remove(&number);
        }
        Op::SaveSnapshot { .. } | Op::DeleteSnapshotsBefore { .. } => {}
    }
}

/// A log of our own, with some of its bytes changed: three bytes say which and how.
fn changed(changes: &[u8]) -> BTreeMap<u64, Vec<u8>> {
    let nothing = wal::recover(&BTreeMap::new()).expect("nothing is not damaged");
    let (mut wal, mut segments) = (Wal::new(SEGMENT, &nothing, (0, 0)), BTreeMap::new());
    for index in 1..=40_u64 {
        let payload = Payload::Command(vec![1; usize::try_from(index).expect("small")].into());
        let hard =
            (index % 5 == 0).then_some(HardState { term: index, voted_for: Some(NodeId(1)) });
        let entries = vec![Entry { index, term: index / 5, payload }];
        for op in wal.plan(&[Write { ticket: index, hard, entries, snapshot: None }], index << 9) {
            carry_out(&mut segments, op);
        }
    }
    for change in changes.chunks_exact(4) {
        let number = 1 + u64::from(change[0]) % segments.len() as u64;
        let segment = segments.get_mut(&number).expect("numbered from one");
        let at = usize::from(u16::from_le_bytes([change[1], change[2]])) % segment.len();
        segment[at] = change[3];
    }
    segments
}

fuzz_target!(|bytes: &[u8]| {
    let mut segments = match bytes.split_first() {
        Some((0, bytes)) => BTreeMap::from([(1, bytes.to_vec())]),
        Some((_, changes)) => changed(changes),
        None => return,
    };
    let Ok(before) = wal::recover(&segments) else { return };
    let mut wal = Wal::new(SEGMENT, &before, before.snapshot);
    let index = before.log.last_key_value().map_or(before.snapshot.0, |(&last, _)| last);
    let Some(index) = index.checked_add(1) else { return };
    let entry = Entry { index, term: 9, payload: Payload::Blank };
    let hard = HardState { term: 99, voted_for: None };
    let write = Write { ticket: 1, hard: Some(hard), entries: vec![entry.clone()], snapshot: None };
    for op in wal.plan(&[write], 77) {
        carry_out(&mut segments, op);
    }
    let after = wal::recover(&segments).expect("our own write does no damage");
    let mut log = before.log;
    log.insert(index, entry);
    assert_eq!((after.hard, after.log, after.snapshot), (hard, log, before.snapshot));
});
