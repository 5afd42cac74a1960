//! What a follower takes from its leader: entries, and a snapshot in their place.

use alloc::sync::Arc;
use alloc::vec::Vec;

use outlast_core::time::Instant;

use super::{Action, Dirty, Node, State};
use crate::entry::{Index, Members, NodeId, Snapshot, Term};
use crate::message::{Append, AppendReply, Body, SnapshotChunk};
use crate::plant::Bug;

/// A snapshot that a leader sends may have this many bytes.
const SNAPSHOT_MAX: u64 = 256 << 20;

/// A snapshot that is coming in.
#[derive(Debug)]
pub(super) struct Incoming {
    index: Index,
    term: Term,
    /// The term of the leader that sends it.
    reign: Term,
    members: Members,
    length: u64,
    bytes: Vec<u8>,
}

impl Incoming {
    fn is_of(&self, other: &Incoming) -> bool {
        (self.index, self.term, self.reign, self.length)
            == (other.index, other.term, other.reign, other.length)
    }
}

impl Node {
    /// Somebody leads in our term.
    pub(super) fn hear_leader(&mut self, now: Instant, from: NodeId, out: &mut Vec<Action>) {
        let we_lead = matches!(self.state, State::Leader(_));
        assert!(!we_lead || self.planted_any(), "a term has one leader");
        self.follow(now, self.hard.term, Some(from), out);
        self.heard = now;
        self.wait_for_leader(now);
    }

    /// Broken on purpose, a node may see what it otherwise never sees.
    pub(super) fn planted_any(&self) -> bool {
        #[cfg(feature = "plant")]
        let planted = self.config.bug.is_some();
        #[cfg(not(feature = "plant"))]
        let planted = false;
        planted
    }

    pub(super) fn on_append(
        &mut self,
        now: Instant,
        from: NodeId,
        append: Append,
        out: &mut Vec<Action>,
    ) {
        self.hear_leader(now, from, out);
        let Append { prev_index, prev_term, commit, round, entries } = append;
        // What is committed here is in every later leader's log.
        let follows = prev_index <= self.log.commit || self.log.term(prev_index) == Some(prev_term);
        if !follows {
            let reply = AppendReply::Rejected { prev: prev_index, hint: self.hint(prev_index) };
            let body = Body::AppendReply { round, reply };
            return self.send_when(self.hard_needs(), from, body, out);
        }
        let covered = prev_index + entries.len() as u64;
        for entry in entries {
            if entry.index <= self.log.commit || self.log.term(entry.index) == Some(entry.term) {
                continue;
            }
            if entry.index <= self.log.last_index() {
                self.log.truncate(entry.index);
                let first = self.dirty.entries_from.unwrap_or(entry.index);
                self.dirty.entries_from = Some(first.min(entry.index));
            }
            self.dirty.entries_from.get_or_insert(entry.index);
            self.log.push(entry);
        }
        self.commit_to(commit.min(covered), out);
        let written = self.dirty.entries_from.is_none() || self.planted(Bug::AckBeforeDisk);
        let (needs, durable) = if self.planted(Bug::AckBeforeDisk) {
            (0, covered)
        } else if written {
            (self.hard_needs(), covered.min(self.log.durable()))
        } else {
            (self.hard_needs().max(self.log_needs()), covered)
        };
        let reply = AppendReply::Accepted { durable };
        self.send_when(needs, from, Body::AppendReply { round, reply }, out);
    }

    /// Where a leader may try next: before everything of the term that does not fit.
    pub(super) fn hint(&self, prev_index: Index) -> Index {
        let last = self.log.last_index();
        if last < prev_index {
            return last;
        }
        let wrong = self.log.term(prev_index);
        let mut hint = prev_index - 1;
        while self.log.commit < hint && self.log.term(hint) == wrong {
            hint -= 1;
        }
        hint.max(self.log.commit)
    }

    pub(super) fn on_snapshot(
        &mut self,
        now: Instant,
        from: NodeId,
        chunk: SnapshotChunk,
        out: &mut Vec<Action>,
    ) {
        self.hear_leader(now, from, out);
        let SnapshotChunk { index, term, members, offset, length, round, bytes } = chunk;
        // What it stands for may be here already. Then it must not take the place of anything: entries that follow may be
        // committed because we have acknowledged them.
        let here = self.log.term(index) == Some(term);
        if self.log.commit < index && here && !self.planted(Bug::SnapshotTakesAll) {
            self.incoming = None;
            self.commit_to(index, out);
        }
        if index <= self.log.commit {
            let reply = AppendReply::Accepted { durable: index.min(self.log.durable()) };
            let body = Body::AppendReply { round, reply };
            return self.send_when(self.hard_needs(), from, body, out);
        }
        if length > SNAPSHOT_MAX {
            return;
        }
        // Pieces of two leaders' snapshots do not fit together, even of the same entry.
        let (reign, bytes_before) = (self.hard.term, Vec::new());
        let begun = Incoming { index, term, reign, members, length, bytes: bytes_before };
        let incoming = self.incoming.take().filter(|i| i.is_of(&begun));
        let mut incoming = incoming.unwrap_or(begun);
        if offset == incoming.bytes.len() as u64 {
            incoming.bytes.extend_from_slice(&bytes);
        }
        let have = incoming.bytes.len() as u64;
        if incoming.length < have {
            // Not what was announced: from the beginning.
            return;
        }
        if have < incoming.length {
            self.incoming = Some(incoming);
            return self.send_when(
                self.hard_needs(),
                from,
                Body::SnapshotReply { index, have, round },
                out,
            );
        }
        let Incoming { index, term, reign: _, members, length: _, bytes } = incoming;
        let snapshot = Snapshot { index, term, members, data: Arc::from(bytes) };
        self.log.install(snapshot.clone());
        self.dirty =
            Dirty { snapshot: Some(snapshot.clone()), entries_from: None, ..self.dirty_hard() };
        out.push(Action::Restore(snapshot));
        let needs = self.hard_needs().max(self.log_needs());
        self.send_when(needs, from, Body::SnapshotReply { index, have, round }, out);
    }

    pub(super) fn dirty_hard(&self) -> Dirty {
        Dirty { hard: self.dirty.hard, ..Dirty::default() }
    }
}
