//! A node's own copy of the log, and how much of it is on disk.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::entry::{Entry, Index, Members, Payload, Saved, Snapshot, Term};
use crate::node::Ticket;

#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) snapshot: Snapshot,
    /// What stands before the first entry that is kept.
    base: (Index, Term),
    entries: VecDeque<Entry>,
    /// Every set of members that the kept part of the log knows, oldest first; never empty, the last one is in force.
    members: Vec<(Index, Members)>,
    pub(crate) commit: Index,
    pub(crate) applied: Index,
    durable: Index,
    /// Bytes of entries that are not committed.
    uncommitted_bytes: usize,
    /// Bytes of entries that are applied and not yet in the snapshot.
    uncompacted_bytes: usize,
    /// Writes under way: what the log's durable end is once they are done.
    pending: VecDeque<(Ticket, Index)>,
}

impl Log {
    pub(crate) fn restore(saved: Saved) -> Log {
        let snapshot = saved.snapshot;
        let mut entries: VecDeque<Entry> = saved.log.into_values().collect();
        let gap = entries
            .iter()
            .zip(entries.iter().skip(1))
            .any(|(entry, next)| entry.index + 1 != next.index);
        assert!(!gap, "a log without gaps comes from the disk");
        // What does not reach the snapshot is not needed for it.
        if entries.back().is_none_or(|last| last.index < snapshot.index) {
            entries.clear();
        }
        let base = match entries.front() {
            // An unknown term: nobody is sent entries from before the first one that is kept.
            Some(first) if first.index <= snapshot.index => (first.index - 1, Term::MAX),
            Some(first) => {
                assert_eq!(
                    first.index,
                    snapshot.index + 1,
                    "the log goes on where the snapshot ends"
                );
                (snapshot.index, snapshot.term)
            }
            None => (snapshot.index, snapshot.term),
        };
        let mut log = Log {
            commit: snapshot.index,
            applied: snapshot.index,
            durable: 0,
            uncommitted_bytes: 0,
            uncompacted_bytes: 0,
            members: Vec::from([(snapshot.index, snapshot.members.clone())]),
            snapshot,
            base,
            entries: VecDeque::new(),
            pending: VecDeque::new(),
        };
        for entry in entries {
            log.push(entry);
        }
        log.durable = log.last_index();
        log
    }

    pub(crate) fn last_index(&self) -> Index {
        self.entries.back().map_or(self.base.0, |entry| entry.index)
    }

    pub(crate) fn last_term(&self) -> Term {
        self.entries.back().map_or(self.base.1, |entry| entry.term)
    }

    /// `None`: no longer here, or not yet.
    pub(crate) fn term(&self, index: Index) -> Option<Term> {
        if index == self.snapshot.index {
            return Some(self.snapshot.term);
        }
        if index == self.base.0 {
            return Some(self.base.1).filter(|&term| term != Term::MAX);
        }
        self.get(index).map(|entry| entry.term)
    }

    pub(crate) fn get(&self, index: Index) -> Option<&Entry> {
        let at = index.checked_sub(self.base.0 + 1)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    /// Entries from `index` on, at most `weight_max` bytes of them but at least one.
    pub(crate) fn batch(&self, index: Index, weight_max: usize) -> Vec<Entry> {
        let mut weight = 0;
        let from = usize::try_from(index.saturating_sub(self.base.0 + 1)).unwrap_or(usize::MAX);
        let mut batch = Vec::new();
        for entry in self.entries.range(from.min(self.entries.len())..) {
            weight += entry.payload.weight();
            if !batch.is_empty() && weight_max < weight {
                break;
            }
            batch.push(entry.clone());
        }
        batch
    }

    pub(crate) fn uncommitted_bytes(&self) -> usize {
        self.uncommitted_bytes
    }

    pub(crate) fn uncompacted_bytes(&self) -> usize {
        self.uncompacted_bytes
    }

    /// Bytes of the entries behind `from` up to `to`.
    fn weight(&self, from: Index, to: Index) -> usize {
        let entries = (from + 1..=to).filter_map(|index| self.get(index));
        entries.map(|entry| entry.payload.weight()).sum()
    }

    pub(crate) fn members(&self) -> &Members {
        &self.members.last().expect("never empty").1
    }

    /// Where the members in force come from.
    pub(crate) fn members_index(&self) -> Index {
        self.members.last().expect("never empty").0
    }

    /// The members at an index that is still here.
    pub(crate) fn members_at(&self, index: Index) -> &Members {
        let known = self.members.iter().rev().find(|(since, _)| *since <= index);
        &known.unwrap_or(self.members.first().expect("never empty")).1
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        assert_eq!(entry.index, self.last_index() + 1, "entries follow each other");
        if let Payload::Members(members) = &entry.payload
            && self.snapshot.index < entry.index
        {
            self.members.push((entry.index, members.clone()));
        }
        if self.commit < entry.index {
            self.uncommitted_bytes += entry.payload.weight();
        }
        self.entries.push_back(entry);
    }

    /// Takes away `from` and everything after it.
    pub(crate) fn truncate(&mut self, from: Index) {
        assert!(self.commit < from, "what is committed stays");
        self.uncommitted_bytes -= self.weight(from - 1, self.last_index());
        let keep = usize::try_from(from.saturating_sub(self.base.0 + 1)).unwrap_or(usize::MAX);
        self.entries.truncate(keep);
        self.members.retain(|&(index, _)| index < from);
        // Whatever was written of it no longer counts, though the write goes on.
        self.durable = self.durable.min(from - 1);
        for (_, durable) in &mut self.pending {
            *durable = (*durable).min(from - 1);
        }
    }

    pub(crate) fn durable(&self) -> Index {
        self.durable
    }

    /// A write is under way that makes the present end durable.
    pub(crate) fn writing(&mut self, ticket: Ticket) {
        self.pending.push_back((ticket, self.last_index()));
    }

    /// Writes up to `ticket` are done.
    pub(crate) fn written(&mut self, ticket: Ticket) {
        while let Some(&(pending, durable)) = self.pending.front()
            && pending <= ticket
        {
            self.durable = self.durable.max(durable);
            self.pending.pop_front();
        }
    }

    /// Takes a snapshot of what is applied in place of entries before it, but for the last ones: `tail` of them at most,
    /// and so many bytes.
    pub(crate) fn compact(&mut self, snapshot: Snapshot, tail: u64, tail_bytes: usize) {
        assert!(snapshot.index <= self.applied, "a snapshot holds what is applied");
        assert!(self.snapshot.index <= snapshot.index, "snapshots go forward");
        self.uncompacted_bytes -= self.weight(self.snapshot.index, snapshot.index);
        let base = self.tail_begin(snapshot.index, tail, tail_bytes);
        self.members = core::mem::take(&mut self.members)
            .into_iter()
            .filter(|&(index, _)| snapshot.index < index)
            .collect();
        self.members.insert(0, (snapshot.index, snapshot.members.clone()));
        while let Some(first) = self.entries.front()
            && first.index <= base
        {
            self.base = (first.index, first.term);
            self.entries.pop_front();
        }
        self.snapshot = snapshot;
    }

    /// Behind which entry the tail of a snapshot begins.
    fn tail_begin(&self, snapshot: Index, tail: u64, tail_bytes: usize) -> Index {
        let earliest = snapshot.saturating_sub(tail);
        let (mut begin, mut bytes) = (snapshot, 0);
        while earliest < begin
            && let Some(entry) = self.get(begin)
        {
            bytes += entry.payload.weight();
            if tail_bytes < bytes {
                break;
            }
            begin -= 1;
        }
        begin
    }

    /// Replaces everything by a snapshot that the leader sent.
    pub(crate) fn install(&mut self, snapshot: Snapshot) {
        assert!(self.commit < snapshot.index, "a snapshot from the leader goes forward");
        self.base = (snapshot.index, snapshot.term);
        self.entries.clear();
        (self.uncommitted_bytes, self.uncompacted_bytes) = (0, 0);
        self.members = Vec::from([(snapshot.index, snapshot.members.clone())]);
        self.commit = snapshot.index;
        self.applied = snapshot.index;
        // Not durable yet: the snapshot itself is being written.
        self.durable = self.durable.min(snapshot.index.saturating_sub(1));
        for (_, durable) in &mut self.pending {
            *durable = (*durable).min(snapshot.index.saturating_sub(1));
        }
        self.snapshot = snapshot;
    }

    /// Whether a candidate whose log ends so has everything that may be committed here.
    pub(crate) fn is_covered_by(&self, last_index: Index, last_term: Term) -> bool {
        (self.last_term(), self.last_index()) <= (last_term, last_index)
    }

    /// Committed entries that are still to be applied.
    pub(crate) fn take_committed(&mut self) -> Vec<Entry> {
        let from = self.applied;
        self.applied = self.commit;
        let bytes = self.weight(from, self.commit);
        self.uncommitted_bytes -= bytes;
        self.uncompacted_bytes += bytes;
        (from + 1..=self.commit)
            .map(|index| self.get(index).expect("what is committed is here until applied").clone())
            .collect()
    }
}
