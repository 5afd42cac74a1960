//! What the log gives back after a crash or damage: everything that was acknowledged, or the word that it is damaged.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use crate::wal::{self, Damaged, Op, Wal};
use crate::{Entry, HardState, Index, Members, NodeId, Payload, Saved, Snapshot, Write};

/// So small that a few writes fill it.
const SEGMENT: usize = 400;

#[derive(Clone, Debug, Default)]
struct Files {
    segments: BTreeMap<u64, Vec<u8>>,
    snapshots: BTreeMap<Index, Vec<u8>>,
}

impl Files {
    fn carry_out(&mut self, op: &Op) {
        match op {
            Op::SaveSnapshot { index, bytes } => {
                self.snapshots.insert(*index, bytes.clone());
            }
            Op::BeginSegment { number, header } => {
                let mut bytes = header.clone();
                bytes.resize(SEGMENT, 0);
                self.segments.insert(*number, bytes);
            }
            Op::Append { number, offset, bytes } => {
                let segment = self.segments.get_mut(number).expect("begun");
                if segment.len() < offset + bytes.len() {
                    segment.resize(offset + bytes.len(), 0);
                }
                segment[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            Op::DeleteSegment { number } => {
                self.segments.remove(number);
            }
            Op::DeleteSnapshotsBefore { index } => self.snapshots.retain(|of, _| index <= of),
        }
    }

    fn recover(&self) -> Result<Saved, Damaged> {
        let (_, newest) = self.snapshots.last_key_value().expect("there is always one");
        let snapshot = wal::decode_snapshot(newest).expect("renamed when whole");
        wal::recover(&self.segments)?.with(snapshot)
    }
}

/// What must not be forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    hard: HardState,
    snapshot: Snapshot,
    /// Behind the snapshot.
    log: Vec<Entry>,
}

impl State {
    fn of(saved: &Saved) -> State {
        let behind = saved.log.range(saved.snapshot.index + 1..);
        State {
            hard: saved.hard,
            snapshot: saved.snapshot.clone(),
            log: behind.map(|(_, entry)| entry.clone()).collect(),
        }
    }

    fn last(&self) -> Index {
        self.log.last().map_or(self.snapshot.index, |entry| entry.index)
    }

    fn take(&mut self, write: &Write) {
        self.hard = write.hard.unwrap_or(self.hard);
        if let Some(snapshot) = &write.snapshot {
            let same = snapshot.index <= self.last();
            self.snapshot = snapshot.clone();
            self.log.retain(|entry| same && snapshot.index < entry.index);
        }
        for entry in &write.entries {
            self.log.retain(|before| before.index < entry.index);
            self.log.push(entry.clone());
        }
    }
}

/// Splitmix64, as the node itself.
fn draw(random: &mut u64) -> u64 {
    *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*random ^ (*random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The next thing that a node might write.
fn write(random: &mut u64, ticket: u64, state: &State) -> Write {
    let mut write = Write { ticket, hard: None, entries: Vec::new(), snapshot: None };
    let term = state.hard.term;
    let snapshot = |index, term| {
        let data = Arc::from(format!("everything up to {index}").as_bytes());
        Snapshot { index, term, members: Members::voters([1, 2, 3]), data }
    };
    let drawn = draw(random);
    match drawn % 10 {
        0 => write.hard = Some(HardState { term: term + 1, voted_for: None }),
        1 => write.hard = Some(HardState { term, voted_for: Some(NodeId(drawn >> 60)) }),
        // Of what is applied, or from a leader, beyond everything that is here.
        2 if !state.log.is_empty() => {
            let at = usize::try_from(drawn >> 32).expect("small") % state.log.len();
            let entry = &state.log[at];
            write.snapshot = Some(snapshot(entry.index, entry.term));
        }
        3 => write.snapshot = Some(snapshot(state.last() + 1 + (drawn >> 60), term)),
        _ => {
            // Sometimes in place of what another leader wrote.
            let back = if drawn >> 61 == 0 { state.log.len().min(3) as u64 } else { 0 };
            let first = state.last() + 1 - back;
            write.entries = (first..=first + (drawn >> 56) % 3)
                .map(|index| {
                    let length = usize::try_from(drawn >> 48 & 63).expect("small");
                    let payload = Payload::Command(Arc::from(vec![7; length]));
                    Entry { index, term, payload }
                })
                .collect();
        }
    }
    write
}

/// What a run of writes leaves: after each of them what must be known, and where its last byte stands.
struct Run {
    files: Files,
    states: Vec<State>,
    ends: Vec<(u64, usize)>,
}

fn record(seed: u64, writes: usize) -> Run {
    let mut random = seed;
    let mut files = Files::default();
    let begin = Snapshot::begin(Members::voters([1, 2, 3]));
    files.snapshots.insert(0, wal::encode_snapshot(&begin));
    let nothing = wal::recover(&BTreeMap::new()).expect("nothing is not damaged");
    let mut wal = Wal::new(SEGMENT, &nothing, (0, 0));
    let mut state = State { hard: HardState::default(), snapshot: begin, log: Vec::new() };
    let (mut states, mut ends) = (vec![state.clone()], vec![(0, 0)]);
    for ticket in 1..=writes as u64 {
        let write = write(&mut random, ticket, &state);
        state.take(&write);
        let ops = wal.plan(&[write], draw(&mut random));
        for op in &ops {
            files.carry_out(op);
            if let Op::Append { number, offset, bytes } = op {
                ends.push((*number, offset + bytes.len()));
            }
        }
        states.push(state.clone());
        if draw(&mut random).is_multiple_of(8) {
            // A restart in between.
            let recovered = wal::recover(&files.segments).expect("nothing is wrong with it");
            let newest = &state.snapshot;
            wal = Wal::new(SEGMENT, &recovered, (newest.index, newest.term));
        }
    }
    Run { files, states, ends }
}

#[test]
fn a_log_gives_back_what_was_written() {
    for seed in 0..500 {
        let run = record(seed, 40);
        let saved = run.files.recover().unwrap();
        assert_eq!(Some(&State::of(&saved)), run.states.last(), "seed {seed}");
        assert!(run.files.segments.len() < 15, "old segments go");
    }
}

/// Judges what a log gives back of which the first `whole` writes are certainly whole.
fn judge(run: &Run, files: &Files, whole: usize, what: &str) {
    if let Ok(saved) = files.recover() {
        let state = State::of(&saved);
        let known = run.states[whole..].contains(&state);
        assert!(known, "{what}: {state:?} has lost something, or made it up");
    }
}

#[test]
fn a_log_that_is_cut_anywhere_gives_back_what_was_acknowledged_before() {
    for seed in 0..6 {
        let run = record(seed, 40);
        let (&last, bytes) = run.files.segments.last_key_value().unwrap();
        for cut in 0..bytes.len() {
            let mut files = run.files.clone();
            // Cut off, or zeros: as a file system leaves it.
            files.segments.get_mut(&last).unwrap().truncate(cut);
            let whole = run.ends.iter().rposition(|&(number, end)| number < last || end <= cut);
            let what = format!("seed {seed}, cut at {cut} of segment {last}");
            // A snapshot of which the log says nothing any more may still be there.
            let newest = files.snapshots.keys().last().copied();
            let marked = run.states[whole.unwrap()].snapshot.index;
            if newest == Some(marked) {
                judge(&run, &files, whole.unwrap(), &what);
                assert!(files.recover().is_ok(), "{what} is a crash, not damage");
            } else {
                files.recover().ok();
            }
            files.segments.get_mut(&last).unwrap().resize(SEGMENT, 0);
            files.recover().ok();
        }
    }
}

#[test]
fn a_log_that_is_cut_before_its_end_is_damaged() {
    for seed in 0..6 {
        let run = record(seed, 40);
        let last = *run.files.segments.last_key_value().unwrap().0;
        for (&number, bytes) in run.files.segments.range(..last) {
            for cut in 0..bytes.len() {
                let mut files = run.files.clone();
                files.segments.get_mut(&number).unwrap().truncate(cut);
                let what = format!("seed {seed}, cut at {cut} of segment {number}");
                judge(&run, &files, run.states.len() - 1, &what);
            }
        }
    }
}

/// In the last frame, damage looks like a write that a crash cut short. Everything before it is safe.
#[test]
fn a_log_with_a_wrong_bit_is_damaged_or_gives_back_everything_but_its_last_write() {
    for seed in 0..4 {
        let run = record(seed, 40);
        let (last, end) = *run.ends.last().unwrap();
        let begin = run.ends.iter().rfind(|&&(number, at)| number == last && at < end);
        let begin = begin.map_or(0, |&(_, at)| at);
        for (&number, bytes) in &run.files.segments {
            for at in 0..bytes.len() {
                for bit in [0, 3, 7] {
                    let mut files = run.files.clone();
                    files.segments.get_mut(&number).unwrap()[at] ^= 1 << bit;
                    let in_last = number == last && (begin..end).contains(&at);
                    let whole = run.states.len() - if in_last { 2 } else { 1 };
                    let what = format!("seed {seed}, bit {bit} of byte {at} of segment {number}");
                    judge(&run, &files, whole, &what);
                }
            }
        }
    }
}

#[test]
fn what_is_too_much_for_one_frame_becomes_several() {
    let mut files = Files::default();
    let begin = Snapshot::begin(Members::voters([1]));
    files.snapshots.insert(0, wal::encode_snapshot(&begin));
    let nothing = wal::recover(&BTreeMap::new()).unwrap();
    let mut wal = Wal::new(SEGMENT, &nothing, (0, 0));
    let payload = Payload::Command(Arc::from(vec![1; 4 << 20]));
    let entries: Vec<Entry> =
        (1..=20).map(|index| Entry { index, term: 1, payload: payload.clone() }).collect();
    let hard = Some(HardState { term: 1, voted_for: None });
    for op in wal.plan(&[Write { ticket: 1, hard, entries, snapshot: None }], 1) {
        files.carry_out(&op);
    }
    let saved = files.recover().unwrap();
    assert_eq!(saved.log.len(), 20);
}

/// Once, the next entry seemed to leave a gap, and the node was taken for damaged.
#[test]
fn a_snapshot_whose_mark_a_crash_cut_off_is_gone_on_from() {
    let mut run = record(3, 20);
    let index = run.states.last().unwrap().last() + 10;
    let recovered = wal::recover(&run.files.segments).unwrap();
    let snapshot =
        |index| Snapshot { index, term: 9, members: Members::voters([1]), data: Arc::from([]) };
    run.files.snapshots.insert(index, wal::encode_snapshot(&snapshot(index)));
    // Nothing of the log was written.
    let saved = run.files.recover().unwrap();
    assert_eq!(State::of(&saved).last(), index);
    let mut wal = Wal::new(SEGMENT, &recovered, (index, 9));
    let entry = Entry { index: index + 1, term: 9, payload: Payload::Blank };
    let entries = vec![entry.clone()];
    for op in wal.plan(&[Write { ticket: 1, hard: None, entries, snapshot: None }], 5) {
        run.files.carry_out(&op);
    }
    assert_eq!(State::of(&run.files.recover().unwrap()).log, [entry]);
}

/// Once, every place in it was taken for a long frame and its checksum was calculated.
#[test]
fn a_torn_frame_of_what_looks_like_frames_is_passed_over_at_once() {
    let mut files = Files::default();
    let nothing = wal::recover(&BTreeMap::new()).unwrap();
    let mut wal = Wal::new(SEGMENT, &nothing, (0, 0));
    let payload = Payload::Command(Arc::from(vec![1; 4 << 20]));
    let entries = vec![Entry { index: 1, term: 1, payload }];
    let begin = Snapshot::begin(Members::voters([1]));
    files.snapshots.insert(0, wal::encode_snapshot(&begin));
    for op in wal.plan(&[Write { ticket: 1, hard: None, entries, snapshot: None }], 1) {
        files.carry_out(&op);
    }
    files.segments.get_mut(&1).unwrap().pop();
    let end = files.segments[&1].len() - 100;
    files.segments.get_mut(&1).unwrap()[end] = 0;
    assert!(files.recover().unwrap().log.is_empty());
}

proptest! {
    #[test]
    fn any_bytes_are_a_log_or_damaged(
        segments in proptest::collection::btree_map(0..5_u64, proptest::collection::vec(any::<u8>(), 0..300), 0..3),
    ) {
        wal::recover(&segments).ok();
    }

    #[test]
    fn a_log_with_wrong_bytes_never_stops_the_reader_and_goes_on(
        seed in 0..50_u64,
        wrong in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut files = record(seed, 30).files;
        for (segment, at, byte) in wrong {
            let number = *files.segments.keys().nth(segment.index(files.segments.len())).unwrap();
            let bytes = files.segments.get_mut(&number).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let Ok(recovered) = wal::recover(&files.segments) else { return Ok(()) };
        let Ok(before) = files.recover() else { return Ok(()) };
        let newest = &before.snapshot;
        let mut wal = Wal::new(SEGMENT, &recovered, (newest.index, newest.term));
        let mut state = State::of(&before);
        let mut random = seed;
        let write = write(&mut random, 1, &state);
        state.take(&write);
        for op in wal.plan(&[write], 99) {
            files.carry_out(&op);
        }
        prop_assert_eq!(State::of(&files.recover().unwrap()), state);
    }
}
