//! What a leader does: bring every member's log up to its own, commit, confirm reads, hand over, step down in time.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use outlast_core::time::Instant;

use crate::entry::{Index, Members, NodeId, Payload, Snapshot};
use crate::message::{Append, AppendReply, Body, SnapshotChunk};
use crate::node::{Action, Node, Refusal, State};
use crate::plant::Bug;

/// Messages with entries that one member has not acknowledged.
const IN_FLIGHT_MAX: usize = 64;

/// Rounds whose beginning is remembered; an answer to an older one proves nothing.
const ROUNDS_KEPT: usize = 64;

/// Proposals that are not committed yet.
const UNCOMMITTED_MAX: u64 = 65_536;

/// Reads that wait for a majority's answer.
const READS_MAX: usize = 65_536;

/// Snapshots that are no longer the newest and are still being sent.
const OLD_SNAPSHOTS_MAX: usize = 2;

/// A learner that lacks more entries than this is not ready to vote.
const PROMOTE_LAG_MAX: u64 = 1_000;

/// A leader whose disk has been silent for this many election times lets another one lead.
const DISK_PATIENCE: u32 = 4;

/// A change of members, one at a time (Ongaro's thesis, 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    AddLearner(NodeId),
    Promote(NodeId),
    Demote(NodeId),
    Remove(NodeId),
}

/// What the leader knows of one member.
#[derive(Debug)]
struct Progress {
    /// Known to be durable there.
    matched: Index,
    next: Index,
    flow: Flow,
    /// The newest round that it has answered, and when that round began.
    round: u64,
    asked: Option<Instant>,
}

#[derive(Debug)]
enum Flow {
    /// Looking for where the logs agree: one message at a time, whose end is known.
    Probe { waits: bool, end: Index },
    /// Sending ahead; the last index of each message that is not acknowledged.
    Stream { in_flight: VecDeque<Index> },
    /// Sending a snapshot piece by piece: until this many bytes have arrived, an answer asks for nothing more. Otherwise
    /// each answer that comes twice would begin a conversation of its own.
    Snapshot { snapshot: Snapshot, waits: Option<u64> },
}

#[derive(Debug)]
pub(crate) struct Leader {
    since: Instant,
    /// Our first entry: until it is committed, we do not know what is.
    first: Index,
    progress: BTreeMap<NodeId, Progress>,
    heartbeat_at: Instant,
    round: u64,
    /// When the last rounds began.
    rounds: VecDeque<(u64, Instant)>,
    /// Reads that wait for a round, oldest first.
    reads: VecDeque<(u64, u64)>,
    /// Reads that wait for a round to begin.
    fresh_reads: Vec<u64>,
    transfer: Option<(NodeId, Instant)>,
}

impl Leader {
    pub(crate) fn deadline(&self) -> Instant {
        self.heartbeat_at
    }

    /// Numbers of all reads that are not answered.
    pub(crate) fn reads(&self) -> impl Iterator<Item = u64> + '_ {
        self.reads.iter().map(|&(_, id)| id).chain(self.fresh_reads.iter().copied())
    }

    /// When the newest thing was asked that a majority has answered.
    pub(crate) fn quorum_asked(&self, node: &Node) -> Option<Instant> {
        let members = node.log.members();
        if members.voters.len() == 1 && members.voters.contains(&node.config.id) {
            return Some(Instant::from_start(Duration::MAX));
        }
        members.reached_by_majority(|id| {
            if id == node.config.id {
                // As new as anybody's.
                Some(Instant::from_start(Duration::MAX))
            } else {
                self.progress.get(&id).and_then(|progress| progress.asked)
            }
        })
    }

    fn quorum_round(&self, node: &Node) -> Option<u64> {
        node.log.members().reached_by_majority(|id| {
            if id == node.config.id {
                Some(self.round)
            } else {
                self.progress.get(&id).map(|progress| progress.round)
            }
        })
    }

    fn quorum_match(&self, node: &Node) -> Option<Index> {
        node.log.members().reached_by_majority(|id| {
            if id == node.config.id {
                Some(node.log.durable())
            } else {
                self.progress.get(&id).map(|progress| progress.matched)
            }
        })
    }

    /// A newer snapshot takes the place of the one that members are being sent. They get to its end, so that one that is
    /// slow gets it at all; but of the old ones only so many are kept.
    pub(crate) fn keep_snapshots(&mut self, newest: Index) {
        let mut kept = BTreeSet::new();
        let mut sending: Vec<(Index, &mut Progress)> = self
            .progress
            .values_mut()
            .filter_map(|progress| match &progress.flow {
                Flow::Snapshot { snapshot, .. } => Some((snapshot.index, progress)),
                Flow::Probe { .. } | Flow::Stream { .. } => None,
            })
            .filter(|(index, _)| *index < newest)
            .collect();
        // The oldest have come furthest.
        sending.sort_unstable_by_key(|(index, _)| *index);
        for (index, progress) in sending {
            if kept.len() < OLD_SNAPSHOTS_MAX || kept.contains(&index) {
                kept.insert(index);
            } else {
                progress.flow = Flow::Probe { waits: false, end: Index::MAX };
            }
        }
    }

    /// Keeps progress for exactly the members that there are.
    fn follow_members(&mut self, members: &Members, own: NodeId, next: Index) {
        self.progress.retain(|id, _| members.contains(*id));
        for id in members.all().filter(|&id| id != own) {
            self.progress.entry(id).or_insert(Progress {
                matched: 0,
                next,
                flow: Flow::Probe { waits: false, end: Index::MAX },
                round: 0,
                asked: None,
            });
        }
    }

    fn heard(&mut self, from: NodeId, round: u64, from_answer: Option<Instant>) {
        // A round that never began was never asked.
        if self.round < round {
            return;
        }
        let began = self.rounds.iter().find(|&&(known, _)| known == round).map(|&(_, at)| at);
        let Some(progress) = self.progress.get_mut(&from) else { return };
        progress.round = progress.round.max(round);
        progress.asked = progress.asked.max(began).max(from_answer);
    }
}

impl Node {
    fn leading(&self) -> Option<&Leader> {
        match &self.state {
            State::Leader(leader) => Some(leader),
            State::Follower | State::PreCandidate { .. } | State::Candidate { .. } => None,
        }
    }

    fn leading_mut(&mut self) -> Option<&mut Leader> {
        match &mut self.state {
            State::Leader(leader) => Some(leader),
            State::Follower | State::PreCandidate { .. } | State::Candidate { .. } => None,
        }
    }

    /// A leader whom a majority has answered so lately that nobody else can have been elected.
    pub(crate) fn may_act(&self, now: Instant) -> bool {
        self.acts_until().is_some_and(|until| now < until)
    }

    /// Until when this node may do what only a leader does, by its own clock; later answers put it off.
    pub fn acts_until(&self) -> Option<Instant> {
        let leader = self.leading().filter(|leader| leader.first <= self.log.commit)?;
        if self.planted(Bug::NoQuorumGate) {
            return Some(Instant::from_start(Duration::MAX));
        }
        let lease = self.config.election_min;
        let margin = if self.planted(Bug::NoDriftMargin) {
            Duration::ZERO
        } else {
            lease * self.config.drift_ppm / 1_000_000
        };
        leader.quorum_asked(self).map(|asked| asked + (lease - margin))
    }

    /// Every leader-only act asks here first.
    pub(crate) fn ready_to_lead(&self, now: Instant) -> Result<(), Refusal> {
        let Some(leader) = self.leading() else {
            return Err(Refusal::NotLeader { leader: self.leader });
        };
        if self.log.commit < leader.first || leader.transfer.is_some() {
            return Err(Refusal::Busy);
        }
        if self.may_act(now) { Ok(()) } else { Err(Refusal::NotLeader { leader: None }) }
    }

    /// Whether what others write has to wait until more of what is under way is done.
    pub(crate) fn full_of_writes(&self) -> bool {
        self.log.last_index() - self.log.commit > UNCOMMITTED_MAX
            || self.log.uncommitted_bytes() > self.config.uncommitted_bytes_max
            || self.unwritten_bytes > self.config.unwritten_bytes_max
    }

    pub(crate) fn full_of_reads(&self) -> bool {
        self.leading().is_some_and(|leader| leader.reads.len() > READS_MAX)
    }

    pub(crate) fn begin_to_lead(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.leader = Some(self.config.id);
        let first = self.log.last_index() + 1;
        let mut leader = Leader {
            since: now,
            first,
            progress: BTreeMap::new(),
            heartbeat_at: now,
            round: 0,
            rounds: VecDeque::new(),
            reads: VecDeque::new(),
            fresh_reads: Vec::new(),
            transfer: None,
        };
        leader.follow_members(self.log.members(), self.config.id, first);
        self.state = State::Leader(alloc::boxed::Box::new(leader));
        self.append(Payload::Blank);
        self.begin_round(now, out);
    }

    /// The leader's clock has struck.
    pub(crate) fn lead(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(leader) = self.leading() else { return };
        // Never before we led: a new leader has a whole patience to be answered.
        let answered = leader.quorum_asked(self).map_or(leader.since, |at| at.max(leader.since));
        let alone = self.config.election_max < now.since(answered);
        if alone && !self.planted(Bug::NoQuorumGate) {
            return self.follow(now, self.hard.term, None, out);
        }
        if leader.transfer.is_some_and(|(_, until)| until <= now) {
            // It was never told, so we may go on.
            if let Some(leader) = self.leading_mut() {
                leader.transfer = None;
            }
        }
        self.leave_a_silent_disk(now, out);
        if self.leading().is_some_and(|leader| leader.heartbeat_at <= now) {
            self.begin_round(now, out);
        }
    }

    /// Others can write where this node's disk hangs.
    fn leave_a_silent_disk(&mut self, now: Instant, out: &mut Vec<Action>) {
        let patience = self.config.election_max * DISK_PATIENCE;
        let silent = self.writes.front().is_some_and(|write| patience < now.since(write.since));
        let Some(leader) = self.leading().filter(|leader| silent && leader.transfer.is_none())
        else {
            return;
        };
        let voters = &self.log.members().voters;
        let best = leader
            .progress
            .iter()
            .filter(|(id, progress)| voters.contains(id) && self.log.commit <= progress.matched)
            .max_by_key(|(_, progress)| progress.matched)
            .map(|(&id, _)| id);
        if let Some(best) = best {
            self.begin_transfer(now, best, out);
        }
    }

    /// Asks everybody whether we still lead; confirms all reads that have come so far once a majority has answered.
    fn begin_round(&mut self, now: Instant, out: &mut Vec<Action>) {
        // Here too: with steady reads, no tick may come.
        self.leave_a_silent_disk(now, out);
        let heartbeat = self.config.heartbeat;
        let Some(leader) = self.leading_mut() else { return };
        leader.heartbeat_at = now + heartbeat;
        leader.round += 1;
        let round = leader.round;
        leader.rounds.push_back((round, now));
        if leader.rounds.len() > ROUNDS_KEPT {
            leader.rounds.pop_front();
        }
        let fresh = core::mem::take(&mut leader.fresh_reads);
        leader.reads.extend(fresh.into_iter().map(|id| (round, id)));
        for peer in self.peers() {
            self.beat(peer, out);
            self.feed(peer, out);
        }
        self.advance(now, out);
    }

    /// A message without entries: it asks for an answer, and finds out whether something was lost.
    fn beat(&mut self, peer: NodeId, out: &mut Vec<Action>) {
        let Some(leader) = self.leading_mut() else { return };
        let Some(progress) = leader.progress.get_mut(&peer) else { return };
        let next = progress.next;
        match &mut progress.flow {
            // The last piece may be lost: whatever the answer says has arrived is where it goes on.
            Flow::Snapshot { waits, .. } => {
                *waits = None;
                // Pieces of a snapshot travel behind everything else; what keeps an election away must not.
                self.send_append(peer, next, Vec::new(), out);
                self.send_chunk(peer, None, out);
            }
            // What is sent to look for the place asks as well.
            Flow::Probe { waits, .. } => *waits = false,
            Flow::Stream { .. } => self.send_append(peer, next, Vec::new(), out),
        }
    }

    /// Sends as much of the log as the member may have now.
    fn feed(&mut self, peer: NodeId, out: &mut Vec<Action>) {
        loop {
            let (last, Some(leader)) = (self.log.last_index(), self.leading()) else { return };
            let Some(progress) = leader.progress.get(&peer) else { return };
            let next = progress.next;
            match &progress.flow {
                Flow::Snapshot { .. } | Flow::Probe { waits: true, .. } => return,
                Flow::Stream { in_flight } if last < next || in_flight.len() >= IN_FLIGHT_MAX => {
                    return;
                }
                Flow::Stream { .. } | Flow::Probe { waits: false, .. } => {}
            }
            if self.log.term(next - 1).is_none() {
                return self.begin_snapshot(peer, out);
            }
            let entries = self.log.batch(next, self.config.append_bytes_max);
            let sent = next + entries.len() as u64 - 1;
            self.send_append(peer, next, entries, out);
            let Some(leader) = self.leading_mut() else { return };
            let Some(progress) = leader.progress.get_mut(&peer) else { return };
            match &mut progress.flow {
                Flow::Probe { waits, end } => (*waits, *end) = (true, sent),
                Flow::Stream { in_flight } => {
                    in_flight.push_back(sent);
                    progress.next = sent + 1;
                }
                Flow::Snapshot { .. } => {}
            }
        }
    }

    fn send_append(
        &self,
        peer: NodeId,
        next: Index,
        entries: Vec<crate::Entry>,
        out: &mut Vec<Action>,
    ) {
        let Some(leader) = self.leading() else { return };
        let prev_index = next - 1;
        // Compacted away meanwhile: the member will say that it lacks what goes before, and get a snapshot.
        let prev_term = self.log.term(prev_index).unwrap_or(0);
        let commit = self.log.commit;
        let append = Append { prev_index, prev_term, commit, round: leader.round, entries };
        self.send(peer, Body::Append(append), out);
    }

    fn begin_snapshot(&mut self, peer: NodeId, out: &mut Vec<Action>) {
        // Kept to its end, whatever is compacted meanwhile: who is slower than that would never have one.
        let snapshot = self.log.snapshot.clone();
        if let Some(leader) = self.leading_mut()
            && let Some(progress) = leader.progress.get_mut(&peer)
        {
            progress.flow = Flow::Snapshot { snapshot, waits: None };
        }
        self.send_piece(peer, 0, out);
    }

    fn send_piece(&mut self, peer: NodeId, offset: u64, out: &mut Vec<Action>) {
        let end = offset.saturating_add(self.config.chunk_bytes_max.max(1) as u64);
        if let Some(leader) = self.leading_mut()
            && let Some(progress) = leader.progress.get_mut(&peer)
            && let Flow::Snapshot { snapshot, waits } = &mut progress.flow
        {
            *waits = Some(end.min(snapshot.data.len() as u64));
        }
        self.send_chunk(peer, Some(offset), out);
    }

    /// Sends the part of the snapshot at `offset`; without one, a question how much has arrived.
    fn send_chunk(&self, peer: NodeId, offset: Option<u64>, out: &mut Vec<Action>) {
        let Some(leader) = self.leading() else { return };
        let Some(Flow::Snapshot { snapshot, .. }) = leader.progress.get(&peer).map(|p| &p.flow)
        else {
            return;
        };
        let from = offset.and_then(|offset| usize::try_from(offset).ok()).unwrap_or(usize::MAX);
        let from = from.min(snapshot.data.len());
        let to = from.saturating_add(self.config.chunk_bytes_max.max(1)).min(snapshot.data.len());
        let chunk = SnapshotChunk {
            index: snapshot.index,
            term: snapshot.term,
            members: snapshot.members.clone(),
            offset: offset.unwrap_or(u64::MAX),
            length: snapshot.data.len() as u64,
            round: leader.round,
            bytes: Arc::from(&snapshot.data[from..to]),
        };
        self.send(peer, Body::Snapshot(chunk), out);
    }

    pub(crate) fn on_snapshot_reply(
        &mut self,
        now: Instant,
        from: NodeId,
        index: Index,
        have: u64,
        round: u64,
        out: &mut Vec<Action>,
    ) {
        self.heard(now, from, round);
        let Some(leader) = self.leading_mut() else { return };
        let Some(progress) = leader.progress.get_mut(&from) else { return };
        let Flow::Snapshot { snapshot, waits } = &progress.flow else { return };
        let (sending, length) = (snapshot.index, snapshot.data.len() as u64);
        if index == sending && have == length {
            progress.matched = progress.matched.max(index);
            progress.next = index + 1;
            progress.flow = Flow::Stream { in_flight: VecDeque::new() };
            self.feed(from, out);
        } else if index == sending && waits.is_none_or(|waits| waits <= have) {
            self.send_piece(from, have, out);
        }
        self.advance(now, out);
    }

    fn heard(&mut self, now: Instant, from: NodeId, round: u64) {
        let from_answer = self.planted(Bug::LeaseFromAnswer).then_some(now);
        if let Some(leader) = self.leading_mut() {
            leader.heard(from, round, from_answer);
        }
    }

    pub(crate) fn on_append_reply(
        &mut self,
        now: Instant,
        from: NodeId,
        round: u64,
        reply: AppendReply,
        out: &mut Vec<Action>,
    ) {
        self.heard(now, from, round);
        let last = self.log.last_index();
        let Some(leader) = self.leading_mut() else { return };
        let Some(progress) = leader.progress.get_mut(&from) else { return };
        match reply {
            AppendReply::Accepted { durable } => {
                // More than we have: it speaks of another log, or lies.
                if last < durable {
                    return;
                }
                progress.matched = progress.matched.max(durable);
                progress.next = progress.next.max(progress.matched + 1);
                match &mut progress.flow {
                    Flow::Stream { in_flight } => {
                        while in_flight.front().is_some_and(|&end| end <= progress.matched) {
                            in_flight.pop_front();
                        }
                    }
                    // The place is found when the question itself is answered, not when older answers come in.
                    Flow::Probe { end, .. } if *end <= progress.matched => {
                        progress.flow = Flow::Stream { in_flight: VecDeque::new() };
                    }
                    Flow::Probe { .. } => {}
                    Flow::Snapshot { snapshot, .. } if snapshot.index <= progress.matched => {
                        progress.flow = Flow::Stream { in_flight: VecDeque::new() };
                    }
                    Flow::Snapshot { .. } => {}
                }
            }
            AppendReply::Rejected { prev, hint } => {
                // Answers to older questions would begin everything anew, each of them.
                let current = match progress.flow {
                    Flow::Probe { .. } => prev == progress.next - 1,
                    Flow::Stream { .. } => progress.matched <= prev,
                    Flow::Snapshot { .. } => false,
                };
                if current {
                    let next = progress.next.min(hint.saturating_add(1));
                    progress.next = next.max(progress.matched + 1);
                    // It lacks what it has acknowledged: an old answer, or a disk that has lost something. Not at once
                    // again, or the two would talk for ever.
                    let waits = next <= progress.matched;
                    progress.flow = Flow::Probe { waits, end: Index::MAX };
                }
            }
        }
        self.feed(from, out);
        self.advance(now, out);
        self.hand_over_if_ready(now, out);
    }

    /// Sends new entries to everybody.
    pub(crate) fn replicate(&mut self, now: Instant, out: &mut Vec<Action>) {
        let own = self.config.id;
        let members = self.log.members().clone();
        let next = self.log.last_index();
        if let Some(leader) = self.leading_mut() {
            leader.follow_members(&members, own, next);
        }
        for peer in self.peers() {
            self.feed(peer, out);
        }
        self.advance(now, out);
    }

    /// Lets the others know at once how far everything is committed, and not with the next heartbeat: whatever is agreed on
    /// is done everywhere at the same time. Under load, the next entries say it.
    fn say_commit(&self, out: &mut Vec<Action>) {
        if self.log.commit < self.log.last_index() {
            return;
        }
        let Some(leader) = self.leading() else { return };
        for (&peer, progress) in &leader.progress {
            if matches!(progress.flow, Flow::Stream { .. }) && self.log.last_index() < progress.next
            {
                self.send_append(peer, progress.next, Vec::new(), out);
            }
        }
    }

    /// Commits what a majority holds, and confirms what a majority has answered.
    pub(crate) fn advance(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(leader) = self.leading() else { return };
        let first = leader.first;
        if let Some(held) = leader.quorum_match(self)
            // Raft 5.4.2: an entry of an earlier term may still be replaced, whoever holds it.
            && (first <= held || self.planted(Bug::CommitOldTerm))
            && self.log.commit < held
        {
            self.commit_to(held, out);
            self.say_commit(out);
        }
        self.confirm_reads(now, out);
        // Who was removed leads until the removal is committed.
        let members = self.log.members();
        let removed = !members.voters.contains(&self.config.id);
        if removed && self.log.members_index() <= self.log.commit && self.leading().is_some() {
            for peer in self.peers() {
                if let Some(next) = self.leading().and_then(|l| l.progress.get(&peer)) {
                    // They learn of it now instead of in an election time.
                    self.send_append(peer, next.next, Vec::new(), out);
                }
            }
            self.follow(now, self.hard.term, None, out);
        }
    }

    pub(crate) fn begin_read(&mut self, now: Instant, id: u64, out: &mut Vec<Action>) {
        let Some(leader) = self.leading_mut() else { return };
        leader.fresh_reads.push(id);
        if leader.reads.is_empty() {
            self.begin_round(now, out);
        }
    }

    fn confirm_reads(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(answered) = self.leading().and_then(|leader| leader.quorum_round(self)) else {
            return;
        };
        let first = match self.leading_mut() {
            Some(leader) => leader.first,
            None => return,
        };
        // What is applied is everything that was committed when the round began only once our own term has a commit.
        if self.log.commit < first {
            return;
        }
        let Some(leader) = self.leading_mut() else { return };
        while let Some(&(round, id)) = leader.reads.front()
            && round <= answered
        {
            leader.reads.pop_front();
            out.push(Action::ReadReady { id });
        }
        if leader.reads.is_empty() && !leader.fresh_reads.is_empty() {
            self.begin_round(now, out);
        }
    }

    pub(crate) fn changed(&self, change: Change) -> Result<Members, Refusal> {
        let mut members = self.log.members().clone();
        let last_voter = |id: NodeId| members.voters.contains(&id) && members.voters.len() == 1;
        match change {
            Change::AddLearner(id) if !members.contains(id) => {
                members.learners.insert(id);
            }
            Change::Promote(id) if members.learners.contains(&id) => {
                let matched = self
                    .leading()
                    .and_then(|leader| leader.progress.get(&id))
                    .map_or(0, |progress| progress.matched);
                if matched + PROMOTE_LAG_MAX < self.log.last_index() || matched == 0 {
                    return Err(Refusal::Behind);
                }
                members.learners.remove(&id);
                members.voters.insert(id);
            }
            Change::Demote(id) if members.voters.contains(&id) => {
                if last_voter(id) {
                    return Err(Refusal::LastVoter);
                }
                members.voters.remove(&id);
                members.learners.insert(id);
            }
            Change::Remove(id) if members.contains(id) => {
                if last_voter(id) {
                    return Err(Refusal::LastVoter);
                }
                members.voters.remove(&id);
                members.learners.remove(&id);
            }
            Change::AddLearner(_) | Change::Promote(_) | Change::Demote(_) | Change::Remove(_) => {
                return Err(Refusal::NoChange);
            }
        }
        Ok(members)
    }

    pub(crate) fn begin_transfer(&mut self, now: Instant, to: NodeId, out: &mut Vec<Action>) {
        let until = now + self.config.election_max;
        if let Some(leader) = self.leading_mut() {
            leader.transfer = Some((to, until));
        }
        self.hand_over_if_ready(now, out);
    }

    fn hand_over_if_ready(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(leader) = self.leading() else { return };
        let Some((to, _)) = leader.transfer else { return };
        let last = self.log.last_index();
        if leader.progress.get(&to).is_some_and(|progress| progress.matched == last) {
            self.send(to, Body::TimeoutNow, out);
            // From here on another one may lead at any time: whatever comes of it, this reign is over.
            self.follow(now, self.hard.term, None, out);
        }
    }
}
