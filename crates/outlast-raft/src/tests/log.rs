//! What the log counts is what it holds.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use crate::entry::{Entry, Index, Members, Payload, Saved, Snapshot};
use crate::log::Log;

const BYTES: usize = 100;

fn entry(index: Index, term: u64) -> Entry {
    Entry { index, term, payload: Payload::Command(Arc::from(vec![0; BYTES])) }
}

fn weight() -> usize {
    entry(1, 1).payload.weight()
}

fn snapshot(index: Index) -> Snapshot {
    Snapshot { index, ..Snapshot::begin(Members::voters([1])) }
}

fn with_entries(count: u64) -> Log {
    let mut log = Log::restore(Saved::begin(Members::voters([1])));
    (1..=count).for_each(|index| log.push(entry(index, 1)));
    log
}

fn commit(log: &mut Log, index: Index) {
    log.commit = index;
    let applied = log.take_committed();
    assert_eq!(applied.last().map(|entry| entry.index), Some(index));
}

#[test]
fn bytes_are_counted_from_when_they_come_until_they_are_in_a_snapshot() {
    let mut log = with_entries(10);
    let counts =
        |log: &Log| (log.uncommitted_bytes() / weight(), log.uncompacted_bytes() / weight());
    assert_eq!(counts(&log), (10, 0));
    commit(&mut log, 4);
    assert_eq!(counts(&log), (6, 4));
    log.truncate(8);
    assert_eq!(counts(&log), (3, 4));
    log.push(entry(8, 2));
    commit(&mut log, 8);
    assert_eq!(counts(&log), (0, 8));
    log.compact(snapshot(3), 100, usize::MAX);
    assert_eq!(counts(&log), (0, 5));
    log.push(entry(9, 2));
    log.install(snapshot(20));
    assert_eq!(counts(&log), (0, 0));
    log.push(entry(21, 2));
    assert_eq!(counts(&log), (1, 0));
}

#[test]
fn a_restored_log_counts_what_its_snapshot_lacks() {
    let saved = Saved::begin(Members::voters([1]));
    let log = (1..=9).map(|index| (index, entry(index, 0))).collect();
    let log = Log::restore(Saved { log, snapshot: snapshot(5), ..saved });
    assert_eq!(log.uncommitted_bytes(), 4 * weight());
    assert_eq!(log.uncompacted_bytes(), 0);
}

#[test]
fn the_tail_before_a_snapshot_is_bounded_in_entries_and_in_bytes() {
    let kept = |tail, tail_bytes| {
        let mut log = with_entries(10);
        commit(&mut log, 9);
        log.compact(snapshot(8), tail, tail_bytes);
        let kept: Vec<Index> = (1..=10).filter(|&index| log.get(index).is_some()).collect();
        assert_eq!(kept.last(), Some(&10));
        kept[0]
    };
    assert_eq!(kept(100, usize::MAX), 1);
    assert_eq!(kept(3, usize::MAX), 6);
    assert_eq!(kept(100, 3 * weight()), 6);
    assert_eq!(kept(100, 3 * weight() - 1), 7);
    assert_eq!(kept(100, 0), 9);
    assert_eq!(kept(0, usize::MAX), 9);
}
