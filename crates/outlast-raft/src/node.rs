//! One node: what it is asked, what it hears, what it wants done; `voting` and `following` say how it decides.

mod following;
mod voting;

use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use outlast_core::time::Instant;

use crate::entry::{Entry, HardState, Index, Members, NodeId, Payload, Saved, Snapshot, Term};
use crate::leader::{Change, Leader};
use crate::log::Log;
use crate::message::{AppendReply, Body, Message};
use crate::plant::Bug;
use following::Incoming;

/// Numbers the writes of a node; they are done in this order.
pub type Ticket = u64;

/// Who a node is and how patient. The three durations are the same on all nodes.
#[derive(Clone, Debug)]
pub struct Config {
    pub id: NodeId,
    /// A leader speaks at least this often.
    pub heartbeat: Duration,
    /// A follower that has not heard from a leader for a random time between these two stands for election.
    pub election_min: Duration,
    pub election_max: Duration,
    /// How far the rates of two clocks may lie apart, in millionths.
    pub drift_ppm: u32,
    /// Bytes of entries in one message, at least one entry.
    pub append_bytes_max: usize,
    /// Bytes of a snapshot in one message.
    pub chunk_bytes_max: usize,
    /// Entries and bytes of them that are kept before a snapshot, at most, so that a member that was away for a moment
    /// needs no snapshot.
    pub tail_entries: u64,
    pub tail_bytes: usize,
    /// Bytes of entries that are not committed; a leader that has more takes none. What comes at once may go beyond it.
    pub uncommitted_bytes_max: usize,
    /// The same of entries that wait for the leader's own disk, while those of others commit them. What waits for a
    /// follower's disk is bounded by what its leader has in flight.
    pub unwritten_bytes_max: usize,
    /// Where the random part of the waiting comes from; different on every node.
    pub seed: u64,
    #[cfg(feature = "plant")]
    pub bug: Option<Bug>,
}

impl Config {
    /// Times for one network: writes go on half a second after a leader has died. A heartbeat wakes every thread that takes
    /// part on every node, so twice as many cost an idle node twice as much; an election begins only after two are missing.
    pub fn new(id: NodeId, seed: u64) -> Config {
        Config {
            id,
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(250),
            election_max: Duration::from_millis(400),
            // Crystals differ by 200 at most, time daemons adjust by up to 500 (ntpd); this leaves room for bad machines.
            drift_ppm: 10_000,
            append_bytes_max: 256 << 10,
            chunk_bytes_max: 256 << 10,
            tail_entries: 4096,
            tail_bytes: 8 << 20,
            uncommitted_bytes_max: 64 << 20,
            unwritten_bytes_max: 64 << 20,
            seed,
            #[cfg(feature = "plant")]
            bug: None,
        }
    }
}

/// Everything that reaches a node from outside, besides what its own people ask of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Message(Message),
    /// All writes up to this one are on disk.
    Written(Ticket),
    Tick,
}

/// What a node wants, in the order of doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make it durable, then say so with [`Input::Written`]. Writes are done in their order; several may share one sync.
    /// A write that fails ends the process: nobody knows what is on the disk then.
    Write(Write),
    /// Send it if you can; it may be lost, late or twice.
    Send(Message),
    /// Committed: give it to the state machine.
    Apply(Vec<Entry>),
    /// Replace the state machine by this.
    Restore(Snapshot),
    /// What has been applied by now is no older than the read with this number.
    ReadReady { id: u64 },
    /// The read cannot be answered here any more.
    ReadFailed { id: u64 },
}

/// What must be on disk before anybody may rely on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub ticket: Ticket,
    pub hard: Option<HardState>,
    /// Entries take the place of whatever the log had from the first one's index on.
    pub entries: Vec<Entry>,
    /// Takes the place of the log up to its index, and of all of it if the log does not reach that far.
    pub snapshot: Option<Snapshot>,
}

impl Write {
    /// Bytes of the entries in it.
    pub fn weight(&self) -> usize {
        self.entries.iter().map(|entry| entry.payload.weight()).sum()
    }
}

/// A write that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    ticket: Ticket,
    pub(crate) since: Instant,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Follower,
    PreCandidate,
    Candidate,
    Leader,
}

/// Where a proposal stands in the log. If another term's entry is committed there, it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub index: Index,
    pub term: Term,
}

/// Why something was not begun; nothing has happened then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Ask this node, if one is named.
    NotLeader { leader: Option<NodeId> },
    /// A leader that hands over, has just been elected, or has too much under way.
    Busy,
    /// An earlier change of members is not committed yet.
    ChangeUnderWay,
    /// A learner that lacks entries.
    Behind,
    /// The members are so already.
    NoChange,
    /// It would leave nobody who votes.
    LastVoter,
}

/// How a node stands, for people and for whoever drives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub id: NodeId,
    pub role: Role,
    pub term: Term,
    pub leader: Option<NodeId>,
    pub members: Members,
    pub commit: Index,
    pub last: Index,
    pub durable: Index,
    pub snapshot: Index,
    /// Of a leader: how long ago it asked what a majority has answered.
    pub quorum_age: Option<Duration>,
    /// A leader whom a majority has answered within its lease: it may do what only a leader does.
    pub may_act: bool,
    /// A leader to whom the one before it handed over: that one's lease may not be over yet.
    pub handed: bool,
}

#[derive(Debug)]
pub(crate) enum State {
    Follower,
    PreCandidate { votes: BTreeSet<NodeId> },
    Candidate { votes: BTreeSet<NodeId> },
    Leader(Box<Leader>),
}

/// What this step has changed and is still to be written.
#[derive(Debug, Default)]
struct Dirty {
    hard: bool,
    entries_from: Option<Index>,
    snapshot: Option<Snapshot>,
}

#[derive(Debug)]
pub struct Node {
    pub(crate) config: Config,
    random: u64,
    pub(crate) hard: HardState,
    pub(crate) log: Log,
    pub(crate) state: State,
    pub(crate) leader: Option<NodeId>,
    /// When a leader was last heard, or we started: until its lease is over, nobody gets our vote.
    heard: Instant,
    /// We stood, or lead, because the leader before us asked for it.
    pub(crate) handed: bool,
    election_at: Instant,
    dirty: Dirty,
    next_ticket: Ticket,
    hard_ticket: Ticket,
    log_ticket: Ticket,
    written: Ticket,
    /// Writes under way, in their order.
    pub(crate) writes: VecDeque<Pending>,
    /// Bytes of their entries.
    pub(crate) unwritten_bytes: usize,
    /// Messages that promise what is not on disk yet.
    held: VecDeque<(Ticket, Message)>,
    incoming: Option<Incoming>,
}

impl Node {
    /// Begins with what the disk has; write [`Saved::begin`] there first where there is nothing.
    pub fn start(config: Config, saved: Saved, now: Instant) -> Node {
        assert!(
            config.heartbeat < config.election_min && config.election_min < config.election_max,
            "a leader speaks more often than followers lose patience"
        );
        let mut node = Node {
            random: config.seed,
            hard: saved.hard,
            log: Log::restore(saved),
            state: State::Follower,
            leader: None,
            heard: now,
            handed: false,
            election_at: now,
            dirty: Dirty::default(),
            next_ticket: 1,
            hard_ticket: 0,
            log_ticket: 0,
            written: 0,
            writes: VecDeque::new(),
            unwritten_bytes: 0,
            held: VecDeque::new(),
            incoming: None,
            config,
        };
        node.wait_for_leader(now);
        node
    }

    pub fn status(&self, now: Instant) -> Status {
        let quorum_age = match &self.state {
            State::Leader(leader) => leader.quorum_asked(self).map(|at| now.since(at)),
            State::Follower | State::PreCandidate { .. } | State::Candidate { .. } => None,
        };
        Status {
            id: self.config.id,
            role: self.role(),
            term: self.hard.term,
            leader: self.leader,
            members: self.log.members().clone(),
            commit: self.log.commit,
            last: self.log.last_index(),
            durable: self.log.durable(),
            snapshot: self.log.snapshot.index,
            quorum_age,
            may_act: self.may_act(now),
            handed: self.handed && matches!(self.state, State::Leader(_)),
        }
    }

    pub fn role(&self) -> Role {
        match self.state {
            State::Follower => Role::Follower,
            State::PreCandidate { .. } => Role::PreCandidate,
            State::Candidate { .. } => Role::Candidate,
            State::Leader(_) => Role::Leader,
        }
    }

    /// The term, and who leads in it.
    pub fn reign(&self) -> (Term, Option<NodeId>) {
        (self.hard.term, self.leader)
    }

    /// Entries that the log holds beyond its snapshot: when there are many, it is time to [`Node::compact`].
    pub fn uncompacted(&self) -> u64 {
        self.log.applied.saturating_sub(self.log.snapshot.index)
    }

    /// Bytes of these entries.
    pub fn uncompacted_bytes(&self) -> usize {
        self.log.uncompacted_bytes()
    }

    /// What a snapshot of the state machine as it is now would stand for; its data is the caller's to add.
    pub fn applied(&self) -> (Index, Term, Members) {
        let index = self.log.applied;
        let term = self.log.term(index).expect("what was applied last is still here");
        (index, term, self.log.members_at(index).clone())
    }

    /// Feeds one input; pushes what must be done.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Action>) {
        match input {
            Input::Message(message) if message.to == self.config.id => {
                self.hear(now, message, out);
            }
            // A stray.
            Input::Message(_) => {}
            Input::Written(ticket) => self.on_written(now, ticket, out),
            Input::Tick => self.tick(now, out),
        }
        self.flush(now, out);
    }

    /// When `step` wants to be called with a tick even if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Leader(leader) => Some(leader.deadline()),
            State::Follower | State::PreCandidate { .. } | State::Candidate { .. } => {
                self.votes().then_some(self.election_at)
            }
        }
    }

    /// Puts commands into the log, in their order. Several at once share messages and a write.
    pub fn propose(
        &mut self,
        now: Instant,
        commands: Vec<Arc<[u8]>>,
        out: &mut Vec<Action>,
    ) -> Result<Position, Refusal> {
        self.ready_to_lead(now)?;
        if self.full_of_writes() {
            return Err(Refusal::Busy);
        }
        let first = Position { index: self.log.last_index() + 1, term: self.hard.term };
        for command in commands {
            self.append(Payload::Command(command));
        }
        self.replicate(now, out);
        self.flush(now, out);
        Ok(first)
    }

    /// Asks that what is applied here be confirmed as newest; the answer carries `id`.
    pub fn read(&mut self, now: Instant, id: u64, out: &mut Vec<Action>) -> Result<(), Refusal> {
        if self.planted(Bug::ReadWithoutRound) && matches!(self.state, State::Leader(_)) {
            out.push(Action::ReadReady { id });
            return Ok(());
        }
        self.ready_to_lead(now)?;
        if self.full_of_reads() {
            return Err(Refusal::Busy);
        }
        self.begin_read(now, id, out);
        self.flush(now, out);
        Ok(())
    }

    /// Changes one member. It is in force at once, and done when its position is committed.
    pub fn change(
        &mut self,
        now: Instant,
        change: Change,
        out: &mut Vec<Action>,
    ) -> Result<Position, Refusal> {
        self.ready_to_lead(now)?;
        let under_way = self.log.commit < self.log.members_index();
        if under_way && !self.planted(Bug::ChangeTooEarly) {
            return Err(Refusal::ChangeUnderWay);
        }
        let members = self.changed(change)?;
        let position = Position { index: self.log.last_index() + 1, term: self.hard.term };
        self.append(Payload::Members(members));
        self.replicate(now, out);
        self.flush(now, out);
        Ok(position)
    }

    /// Hands the lead to a voter: catches it up, then steps back and lets it stand at once.
    pub fn transfer(
        &mut self,
        now: Instant,
        to: NodeId,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        self.ready_to_lead(now)?;
        if to == self.config.id || !self.log.members().voters.contains(&to) {
            return Err(Refusal::NoChange);
        }
        self.begin_transfer(now, to, out);
        self.flush(now, out);
        Ok(())
    }

    /// Takes a snapshot of the state machine, as of [`Node::applied`] or earlier, in place of old entries.
    pub fn compact(&mut self, now: Instant, snapshot: Snapshot, out: &mut Vec<Action>) {
        // A newer one came from the leader meanwhile.
        if snapshot.index <= self.log.snapshot.index {
            return;
        }
        let Config { tail_entries, tail_bytes, .. } = self.config;
        self.log.compact(snapshot.clone(), tail_entries, tail_bytes);
        if let State::Leader(leader) = &mut self.state {
            leader.keep_snapshots(snapshot.index);
        }
        self.dirty.snapshot = Some(snapshot);
        self.flush(now, out);
    }

    #[cfg(feature = "plant")]
    pub(crate) fn planted(&self, bug: Bug) -> bool {
        self.config.bug == Some(bug)
    }

    #[cfg(not(feature = "plant"))]
    #[expect(clippy::unused_self, reason = "the other form looks into the configuration")]
    pub(crate) fn planted(&self, _bug: Bug) -> bool {
        false
    }

    pub(crate) fn append(&mut self, payload: Payload) {
        let entry = Entry { index: self.log.last_index() + 1, term: self.hard.term, payload };
        self.dirty.entries_from.get_or_insert(entry.index);
        self.log.push(entry);
    }

    fn message(&self, to: NodeId, body: Body) -> Message {
        Message { from: self.config.id, to, term: self.hard.term, body }
    }

    pub(crate) fn send(&self, to: NodeId, body: Body, out: &mut Vec<Action>) {
        out.push(Action::Send(self.message(to, body)));
    }

    /// Sends once everything up to `ticket` is on disk.
    fn send_when(&mut self, ticket: Ticket, to: NodeId, body: Body, out: &mut Vec<Action>) {
        let message = self.message(to, body);
        if ticket <= self.written {
            out.push(Action::Send(message));
        } else {
            self.held.push_back((ticket, message));
        }
    }

    /// The write that makes term and vote durable.
    fn hard_needs(&self) -> Ticket {
        if self.dirty.hard { self.next_ticket } else { self.hard_ticket }
    }

    /// The write that makes the log durable.
    fn log_needs(&self) -> Ticket {
        let dirty = self.dirty.entries_from.is_some() || self.dirty.snapshot.is_some();
        if dirty { self.next_ticket } else { self.log_ticket }
    }

    /// Hands over everything that this step has changed as one write.
    fn flush(&mut self, now: Instant, out: &mut Vec<Action>) {
        let dirty = core::mem::take(&mut self.dirty);
        let touches_log = dirty.entries_from.is_some() || dirty.snapshot.is_some();
        if !dirty.hard && !touches_log {
            return;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        if dirty.hard {
            self.hard_ticket = ticket;
        }
        if touches_log {
            self.log_ticket = ticket;
            self.log.writing(ticket);
        }
        let entries = dirty.entries_from.map(|from| self.log.batch(from, usize::MAX));
        let write = Write {
            ticket,
            hard: dirty.hard.then_some(self.hard),
            entries: entries.unwrap_or_default(),
            snapshot: dirty.snapshot,
        };
        let bytes = write.weight();
        self.unwritten_bytes += bytes;
        self.writes.push_back(Pending { ticket, since: now, bytes });
        out.push(Action::Write(write));
    }

    fn on_written(&mut self, now: Instant, ticket: Ticket, out: &mut Vec<Action>) {
        if ticket <= self.written {
            return;
        }
        self.written = ticket;
        self.log.written(ticket);
        while let Some(write) = self.writes.pop_front_if(|write| write.ticket <= ticket) {
            self.unwritten_bytes -= write.bytes;
        }
        while let Some((needs, _)) = self.held.front()
            && *needs <= ticket
        {
            let (_, message) = self.held.pop_front().expect("just seen");
            out.push(Action::Send(message));
        }
        match self.state {
            State::Candidate { .. } => self.count_votes(now, out),
            State::Leader(_) => self.advance(now, out),
            State::Follower | State::PreCandidate { .. } => {}
        }
    }

    pub(crate) fn peers(&self) -> Vec<NodeId> {
        self.log.members().all().filter(|&id| id != self.config.id).collect()
    }

    /// Follows in `term`; a leader that we led or waited for is forgotten unless it is named.
    pub(crate) fn follow(
        &mut self,
        now: Instant,
        term: Term,
        leader: Option<NodeId>,
        out: &mut Vec<Action>,
    ) {
        assert!(self.hard.term <= term, "terms go forward");
        if self.hard.term < term {
            self.hard = HardState { term, voted_for: None };
            self.dirty.hard = true;
        }
        self.keep_the_promise(now);
        if let State::Leader(leader) = core::mem::replace(&mut self.state, State::Follower) {
            out.extend(leader.reads().map(|id| Action::ReadFailed { id }));
            self.wait_for_leader(now);
        }
        self.leader = leader;
    }

    /// What a leader gave out for the rest of its lease stays true when it steps down early: until then it does not vote
    /// for anybody to whom it has not handed over.
    fn keep_the_promise(&mut self, now: Instant) {
        if let State::Leader(leader) = &self.state
            && let Some(asked) = leader.quorum_asked(self)
        {
            self.heard = self.heard.max(asked.min(now));
        }
    }

    fn hear(&mut self, now: Instant, message: Message, out: &mut Vec<Action>) {
        let Message { from, term, body, .. } = message;
        match &body {
            Body::PreVote { last_index, last_term } => {
                return self.on_pre_vote(now, from, term, *last_index, *last_term, out);
            }
            // It would be a promise for a term that nobody has begun.
            Body::PreVoteReply { granted: true } => {
                return self.on_pre_vote_granted(now, from, term, out);
            }
            // Disturbing a leader that a majority hears helps nobody.
            Body::Vote { transfer: false, .. }
                if self.hard.term < term && self.leader_is_heard(now) =>
            {
                return;
            }
            Body::PreVoteReply { .. }
            | Body::Vote { .. }
            | Body::VoteReply { .. }
            | Body::Append(_)
            | Body::AppendReply { .. }
            | Body::Snapshot(_)
            | Body::SnapshotReply { .. }
            | Body::TimeoutNow => {}
        }
        if term < self.hard.term {
            let stale_leader = matches!(body, Body::Append(_) | Body::Snapshot(_));
            if !(stale_leader && self.planted(Bug::NoTermCheck)) {
                return self.on_stale(from, &body, out);
            }
        }
        if self.hard.term < term {
            self.follow(now, term, None, out);
        }
        match body {
            // A term has one leader. Whoever says otherwise is broken, and not obeyed.
            Body::Append(_) | Body::Snapshot(_)
                if matches!(self.state, State::Leader(_)) && !self.planted_any() => {}
            Body::Vote { last_index, last_term, transfer } => {
                // In a term that we have learned of from somebody else, the leader whom we hear counts as much: it may
                // act because we have just answered it.
                let may =
                    transfer || !self.leader_is_heard(now) || self.planted(Bug::NoStickinessInTerm);
                self.on_vote(now, from, (last_index, last_term), may, out);
            }
            Body::VoteReply { granted } => {
                if granted && let State::Candidate { votes } = &mut self.state {
                    votes.insert(from);
                    self.count_votes(now, out);
                }
            }
            Body::Append(append) => self.on_append(now, from, append, out),
            Body::Snapshot(chunk) => self.on_snapshot(now, from, chunk, out),
            Body::AppendReply { round, reply } => {
                self.on_append_reply(now, from, round, reply, out);
            }
            Body::SnapshotReply { index, have, round } => {
                self.on_snapshot_reply(now, from, index, have, round, out);
            }
            Body::TimeoutNow => {
                // Only whom this term's leader steps back for.
                if self.votes() && self.leader == Some(from) {
                    self.stand(now, true, out);
                }
            }
            // Refused, and its term is known now.
            Body::PreVoteReply { .. } | Body::PreVote { .. } => {}
        }
    }

    /// Tells a leader or candidate of an earlier term that its time is over.
    fn on_stale(&mut self, from: NodeId, body: &Body, out: &mut Vec<Action>) {
        let reply = match body {
            Body::Append(_) | Body::Snapshot(_) => {
                Body::AppendReply { round: 0, reply: AppendReply::Rejected { prev: 0, hint: 0 } }
            }
            Body::Vote { .. } => Body::VoteReply { granted: false },
            Body::PreVote { .. }
            | Body::PreVoteReply { .. }
            | Body::VoteReply { .. }
            | Body::AppendReply { .. }
            | Body::SnapshotReply { .. }
            | Body::TimeoutNow => return,
        };
        self.send_when(self.hard_needs(), from, reply, out);
    }

    /// Everything up to `index` is committed.
    pub(crate) fn commit_to(&mut self, index: Index, out: &mut Vec<Action>) {
        if index <= self.log.commit {
            return;
        }
        self.log.commit = index;
        let entries = self.log.take_committed();
        out.push(Action::Apply(entries));
    }
}
