//! Who may be voted for, and when a node stands: nobody who lacks entries, and nobody while a leader is heard.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::time::Duration;

use outlast_core::time::Instant;

use super::{Action, Node, State};
use crate::entry::{HardState, Index, NodeId, Term};
use crate::message::Body;
use crate::plant::Bug;

impl Node {
    pub(super) fn tick(&mut self, now: Instant, out: &mut Vec<Action>) {
        match self.state {
            State::Leader(_) => self.lead(now, out),
            State::Follower | State::PreCandidate { .. } | State::Candidate { .. } => {
                if self.election_at <= now && self.votes() {
                    self.leader = None;
                    self.ask_before_standing(now, out);
                }
            }
        }
    }

    /// Asks who would vote for us, without disturbing anybody.
    pub(super) fn ask_before_standing(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.wait_for_leader(now);
        self.state = State::PreCandidate { votes: BTreeSet::from([self.config.id]) };
        let (last_index, last_term) = (self.log.last_index(), self.log.last_term());
        for peer in self.peers() {
            let mut message = self.message(peer, Body::PreVote { last_index, last_term });
            message.term += 1;
            out.push(Action::Send(message));
        }
        self.count_votes(now, out);
    }

    pub(super) fn stand(&mut self, now: Instant, transfer: bool, out: &mut Vec<Action>) {
        self.hard = HardState { term: self.hard.term + 1, voted_for: Some(self.config.id) };
        self.dirty.hard = true;
        self.leader = None;
        self.handed = transfer;
        self.wait_for_leader(now);
        self.state = State::Candidate { votes: BTreeSet::from([self.config.id]) };
        let (last_index, last_term) = (self.log.last_index(), self.log.last_term());
        for peer in self.peers() {
            let body = Body::Vote { last_index, last_term, transfer };
            self.send_when(self.hard_needs(), peer, body, out);
        }
    }

    pub(super) fn count_votes(&mut self, now: Instant, out: &mut Vec<Action>) {
        let (State::PreCandidate { votes } | State::Candidate { votes }) = &self.state else {
            return;
        };
        let members = self.log.members();
        if votes.intersection(&members.voters).count() < members.majority() {
            return;
        }
        if matches!(self.state, State::PreCandidate { .. }) {
            self.stand(now, false, out);
        } else if !self.dirty.hard && self.hard_ticket <= self.written {
            // Our own vote counts only once it cannot be forgotten.
            self.begin_to_lead(now, out);
        }
    }

    /// Whether this node may have to lead. Who is about to be removed must be able to see it through: its log may be the
    /// only one that has the removal, and then nobody else can be elected (Ongaro's thesis, 4.2.2).
    pub(super) fn votes(&self) -> bool {
        let log = &self.log;
        log.members().voters.contains(&self.config.id)
            || (log.commit < log.members_index()
                && log.members_at(log.commit).voters.contains(&self.config.id))
    }

    pub(super) fn wait_for_leader(&mut self, now: Instant) {
        let span = self.config.election_max - self.config.election_min;
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX).max(1);
        let wait = Duration::from_nanos(self.draw() % nanos);
        self.election_at = now + self.config.election_min + wait;
    }

    /// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014): SplitMix64.
    pub(super) fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Whether a leader may still believe that nobody else is elected.
    pub(super) fn leader_is_heard(&self, now: Instant) -> bool {
        if self.planted(Bug::NoStickiness) {
            return false;
        }
        matches!(self.state, State::Leader(_)) || now.since(self.heard) < self.config.election_min
    }

    pub(super) fn on_pre_vote(
        &self,
        now: Instant,
        from: NodeId,
        term: Term,
        last_index: Index,
        last_term: Term,
        out: &mut Vec<Action>,
    ) {
        let granted = self.hard.term < term
            && !self.leader_is_heard(now)
            && self.would_lose_nothing(last_index, last_term);
        let mut message = self.message(from, Body::PreVoteReply { granted });
        if granted {
            message.term = term;
        }
        out.push(Action::Send(message));
    }

    /// Whether a candidate whose log ends so has everything that may be committed here.
    pub(super) fn would_lose_nothing(&self, last_index: Index, last_term: Term) -> bool {
        self.log.is_covered_by(last_index, last_term) || self.planted(Bug::VoteForShorterLog)
    }

    pub(super) fn on_pre_vote_granted(
        &mut self,
        now: Instant,
        from: NodeId,
        term: Term,
        out: &mut Vec<Action>,
    ) {
        if let State::PreCandidate { votes } = &mut self.state
            && term == self.hard.term + 1
        {
            votes.insert(from);
            self.count_votes(now, out);
        }
    }

    pub(super) fn on_vote(
        &mut self,
        now: Instant,
        from: NodeId,
        (last_index, last_term): (Index, Term),
        may: bool,
        out: &mut Vec<Action>,
    ) {
        let free = self.hard.voted_for.is_none_or(|voted| voted == from);
        let covered = self.would_lose_nothing(last_index, last_term);
        let granted = may && free && covered && matches!(self.state, State::Follower);
        if granted && self.hard.voted_for.is_none() {
            self.hard.voted_for = Some(from);
            self.dirty.hard = true;
        }
        if granted {
            self.wait_for_leader(now);
        }
        let needs = if self.planted(Bug::VoteBeforeDisk) { 0 } else { self.hard_needs() };
        self.send_when(needs, from, Body::VoteReply { granted }, out);
    }
}
