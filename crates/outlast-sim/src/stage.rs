//! A cluster that a test leads by hand: who may lose patience, which messages wait, when a disk is done.
//!
//! Clocks are equal, messages take a millisecond and syncs none, unless the test says otherwise. What must hold always is
//! checked at every step, as in a storm.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use outlast_core::codec::Code as _;
use outlast_core::time::Instant;
use outlast_raft::{
    Action, Bug, Change, Config, Entry, Index, Input, Members, Message, Node, NodeId, Payload,
    Position, Refusal, Role, Snapshot, Status,
};

use crate::check::Checker;
use crate::clock::{Clock, Nanos};
use crate::disk::Disk;
use crate::machine::Machine;
use crate::network::Network;
use crate::plan::MILLI;
use crate::random::Random;

/// How long a message takes.
const TRAVEL: Nanos = MILLI;

/// More steps than this are a hot loop.
const STEPS_MAX: u64 = 1_000_000;

type Wish = Box<dyn Fn(&Message) -> bool>;

/// The cluster and its true time.
pub struct Stage {
    pub now: Nanos,
    bug: Option<Bug>,
    tail_entries: u64,
    /// Bytes of entries that a leader takes beyond what is committed, or on its disk.
    room: usize,
    actors: BTreeMap<u64, Actor>,
    network: Network,
    /// By when they arrive, and in the order in which they were sent.
    wire: BTreeMap<(Nanos, u64), Message>,
    sent: u64,
    hold: Option<Wish>,
    /// Every message arrives twice.
    pub doubles: bool,
    held: Vec<Message>,
    checker: Checker,
    /// What must never be, and was; the first of its kind.
    pub violation: Option<String>,
    /// Messages that were sent by each node.
    pub spoken: BTreeMap<u64, u64>,
    /// Reads that were answered, with the index that they show.
    pub reads: BTreeMap<u64, Index>,
}

struct Actor {
    node: Option<Node>,
    disk: Disk,
    machine: Machine,
    /// What users wrote, in the order of the log.
    texts: Vec<String>,
    /// May lose patience, and beat.
    ticks: bool,
    /// Its disk is never done.
    hangs: bool,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "at {} ms, {} messages under way", self.now / MILLI, self.wire.len())?;
        for (id, actor) in &self.actors {
            match &actor.node {
                Some(node) => writeln!(f, "  {:?}", node.status(at(self.now)))?,
                None => writeln!(f, "  {id} is dead")?,
            }
        }
        Ok(())
    }
}

fn at(now: Nanos) -> Instant {
    Clock { offset: 0, rate_ppm: 0 }.local(now)
}

impl Stage {
    /// So many voters with the ids from 1, and after them so many nodes that nobody has added yet.
    pub fn new(voters: u64, spares: u64, bug: Option<Bug>) -> Stage {
        let mut stage = Stage {
            now: 0,
            bug,
            tail_entries: 4096,
            room: 64 << 20,
            actors: BTreeMap::new(),
            network: Network::default(),
            wire: BTreeMap::new(),
            sent: 0,
            hold: None,
            doubles: false,
            held: Vec::new(),
            checker: Checker::default(),
            violation: None,
            spoken: BTreeMap::new(),
            reads: BTreeMap::new(),
        };
        for id in 1..=voters + spares {
            let members =
                if id <= voters { Members::voters(1..=voters) } else { Members::default() };
            let mut disk = Disk::new(false);
            disk.begin(members);
            let actor = Actor {
                node: None,
                disk,
                machine: Machine::default(),
                texts: Vec::new(),
                ticks: true,
                hangs: false,
            };
            stage.actors.insert(id, actor);
            stage.start(id);
        }
        stage
    }

    /// Keeps no entry that a snapshot has, on nodes that start from now on.
    pub fn without_tail(mut self) -> Stage {
        self.tail_entries = 0;
        for id in self.ids() {
            self.start(id);
        }
        self
    }

    /// A leader takes so many bytes beyond what is committed or on its disk, on nodes that start from now on.
    pub fn with_room(mut self, bytes: usize) -> Stage {
        self.room = bytes;
        for id in self.ids() {
            self.start(id);
        }
        self
    }

    pub fn ids(&self) -> Vec<u64> {
        self.actors.keys().copied().collect()
    }

    fn actor(&mut self, id: u64) -> &mut Actor {
        self.actors.get_mut(&id).expect("a node of this stage")
    }

    /// Starts a node from its disk, or again.
    pub fn start(&mut self, id: u64) {
        let (now, bug, tail, room) = (at(self.now), self.bug, self.tail_entries, self.room);
        let actor = self.actor(id);
        let (saved, _) = actor.disk.recover().expect("the disk is whole");
        actor.machine = match &*saved.snapshot.data {
            [] => Machine::default(),
            data => Machine::from_bytes(data).expect("written by a machine"),
        };
        actor.texts.clear();
        let mut config = Config::new(NodeId(id), id.wrapping_mul(0x9e37_79b9));
        config.bug = bug;
        config.chunk_bytes_max = 1;
        config.tail_entries = tail;
        (config.uncommitted_bytes_max, config.unwritten_bytes_max) = (room, room);
        actor.node = Some(Node::start(config, saved, now));
    }

    /// Ends a node; what was not synced is in pieces, as the seed decides.
    pub fn crash(&mut self, id: u64, seed: u64) {
        let actor = self.actor(id);
        actor.node = None;
        actor.hangs = false;
        actor.disk.crash(&mut Random::new(seed));
    }

    /// The disk of a dead node comes back as it was long ago, or as somebody else's.
    pub fn swap_disk(&mut self, id: u64, disk: Disk) {
        self.actor(id).disk = disk;
    }

    /// The disk of a dead node is replaced by an empty one that says it is the same voter.
    pub fn wipe(&mut self, id: u64, voters: u64) {
        let mut disk = Disk::new(false);
        disk.begin(Members::voters(1..=voters));
        self.swap_disk(id, disk);
    }

    pub fn disk(&self, id: u64) -> Disk {
        self.actors[&id].disk.clone()
    }

    pub fn cut(&mut self, one: u64, other: u64) {
        self.network.cut(NodeId(one), NodeId(other));
        self.network.cut(NodeId(other), NodeId(one));
    }

    /// Cuts a node off from all others.
    pub fn isolate(&mut self, id: u64) {
        for other in self.ids().into_iter().filter(|&other| other != id) {
            self.cut(id, other);
        }
    }

    /// Everybody reaches only the hub.
    pub fn star(&mut self, hub: u64) {
        let ids: Vec<NodeId> = self.ids().into_iter().map(NodeId).collect();
        self.network.star(&ids, NodeId(hub));
    }

    pub fn heal(&mut self) {
        self.network.heal();
    }

    /// Only these lose patience or beat; everybody else answers only.
    pub fn let_tick(&mut self, ids: &[u64]) {
        for (id, actor) in &mut self.actors {
            actor.ticks = ids.contains(id);
        }
    }

    pub fn let_all_tick(&mut self) {
        let ids = self.ids();
        self.let_tick(&ids);
    }

    /// Messages like these wait until they are released.
    pub fn hold(&mut self, wish: impl Fn(&Message) -> bool + 'static) {
        self.hold = Some(Box::new(wish));
    }

    /// Lets everything pass again and forgets what waited.
    pub fn drop_held(&mut self) -> Vec<Message> {
        self.hold = None;
        std::mem::take(&mut self.held)
    }

    /// Puts a message on the wire that was held, or never sent.
    pub fn carry(&mut self, message: Message) {
        self.sent += 1;
        self.wire.insert((self.now + TRAVEL, self.sent), message);
    }

    /// The disk of this node is never done with its next sync.
    pub fn hang_disk(&mut self, id: u64) {
        self.actor(id).hangs = true;
    }

    pub fn lives(&self, id: u64) -> bool {
        self.actors[&id].node.is_some()
    }

    pub fn status(&self, id: u64) -> Status {
        self.actors[&id].node.as_ref().expect("it lives").status(at(self.now))
    }

    /// What this node has applied of what users wrote, since it was started.
    pub fn texts(&self, id: u64) -> Vec<&str> {
        self.actors[&id].texts.iter().map(String::as_str).collect()
    }

    /// Who may act as leader.
    pub fn leader(&self) -> Option<u64> {
        self.actors.iter().find(|(_, actor)| self.may_act(actor)).map(|(&id, _)| id)
    }

    fn may_act(&self, actor: &Actor) -> bool {
        actor.node.as_ref().is_some_and(|node| node.status(at(self.now)).may_act)
    }

    /// Lets time go by.
    pub fn run(&mut self, milliseconds: u64) {
        let end = self.now + milliseconds * MILLI;
        self.run_until(end, |_| false);
    }

    /// Lets time go by until something is so; false: it was not so in time.
    pub fn wait(&mut self, milliseconds: u64, is_so: impl Fn(&Stage) -> bool) -> bool {
        let end = self.now + milliseconds * MILLI;
        self.run_until(end, is_so)
    }

    fn run_until(&mut self, end: Nanos, is_so: impl Fn(&Stage) -> bool) -> bool {
        for _ in 0..STEPS_MAX {
            if is_so(self) {
                return true;
            }
            let arrives = self.wire.first_key_value().map(|(&(at, _), _)| at);
            let due = self.next_tick();
            let tick_at = due.map(|(at, _)| at);
            let Some(next) = arrives.into_iter().chain(tick_at).min().filter(|&at| at <= end)
            else {
                self.now = end;
                return is_so(self);
            };
            self.now = self.now.max(next);
            if let Some((at, id)) = due
                && Some(next) == tick_at
                && at <= self.now
            {
                self.step(id, Input::Tick);
            } else if let Some((_, message)) = self.wire.pop_first() {
                self.step(message.to.0, Input::Message(message));
            }
        }
        panic!("a hot loop: {self:?}");
    }

    fn next_tick(&self) -> Option<(Nanos, u64)> {
        let clock = Clock { offset: 0, rate_ppm: 0 };
        let deadline = |actor: &Actor| actor.node.as_ref().filter(|_| actor.ticks)?.deadline();
        let due = |actor| deadline(actor).map(|deadline| clock.when(deadline));
        self.actors.iter().filter_map(|(&id, actor)| Some((due(actor)?, id))).min()
    }

    /// Makes this node, and no other, stand for election and win it.
    pub fn elect(&mut self, id: u64) {
        self.let_tick(&[id]);
        let won = self.wait(2_000, |stage| {
            let actor = &stage.actors[&id];
            actor.node.as_ref().is_some_and(|node| node.role() == Role::Leader)
        });
        assert!(won, "{id} is not elected: {self:?}");
    }

    pub fn propose(&mut self, id: u64, text: &str) -> Result<Position, Refusal> {
        self.ask(id, |node, now, out| node.propose(now, vec![Arc::from(text.as_bytes())], out))
    }

    pub fn change(&mut self, id: u64, change: Change) -> Result<Position, Refusal> {
        self.ask(id, |node, now, out| node.change(now, change, out))
    }

    pub fn transfer(&mut self, id: u64, to: u64) -> Result<(), Refusal> {
        self.ask(id, |node, now, out| node.transfer(now, NodeId(to), out))
    }

    pub fn read(&mut self, id: u64, read: u64) -> Result<(), Refusal> {
        self.ask(id, |node, now, out| node.read(now, read, out))
    }

    pub fn compact(&mut self, id: u64) {
        let data = Arc::from(self.actor(id).machine.to_bytes());
        self.ask(id, |node, now, out| {
            let (index, term, members) = node.applied();
            node.compact(now, Snapshot { index, term, members, data }, out);
        });
    }

    fn ask<T>(
        &mut self,
        id: u64,
        what: impl FnOnce(&mut Node, Instant, &mut Vec<Action>) -> T,
    ) -> T {
        let now = at(self.now);
        let mut out = Vec::new();
        let node = self.actor(id).node.as_mut().expect("it lives");
        let result = what(node, now, &mut out);
        self.act(id, out);
        result
    }

    fn step(&mut self, id: u64, input: Input) {
        let now = at(self.now);
        let Some(node) = &mut self.actor(id).node else { return };
        let before = node.role();
        let mut out = Vec::new();
        node.step(now, input, &mut out);
        let (role, (term, _)) = (node.role(), node.reign());
        if role == Role::Leader && before != Role::Leader {
            let leads = self.checker.leads(NodeId(id), term);
            self.note(leads);
        }
        self.act(id, out);
    }

    fn act(&mut self, id: u64, out: Vec<Action>) {
        for action in out {
            match action {
                Action::Write(write) => self.actor(id).disk.take(write),
                Action::Send(message) => self.send(message),
                Action::Apply(entries) => entries.iter().for_each(|entry| self.apply(id, entry)),
                Action::Restore(snapshot) => {
                    let machine = Machine::from_bytes(&snapshot.data).expect("sent by a machine");
                    let state = self.checker.state(NodeId(id), &machine);
                    self.note(state);
                    self.actor(id).machine = machine;
                }
                Action::ReadReady { id: read } => {
                    let applied = self.actor(id).machine.applied;
                    self.reads.insert(read, applied);
                }
                Action::ReadFailed { .. } => {}
            }
        }
        self.one_may_act();
        let actor = self.actor(id);
        if !actor.hangs && actor.disk.begin_sync(1) {
            let ticket = actor.disk.end_sync().expect("begun");
            self.step(id, Input::Written(ticket));
        } else if actor.hangs {
            actor.disk.begin_sync(1);
        }
    }

    fn apply(&mut self, id: u64, entry: &Entry) {
        let applied = self.checker.applied(NodeId(id), entry);
        self.note(applied);
        let actor = self.actor(id);
        actor.machine.apply(entry);
        match &entry.payload {
            Payload::Command(bytes) => {
                actor.texts.push(String::from_utf8_lossy(bytes).into_owned());
            }
            Payload::Blank | Payload::Members(_) => {}
        }
    }

    fn send(&mut self, message: Message) {
        *self.spoken.entry(message.from.0).or_default() += 1;
        if !self.network.passes(message.from, message.to) {
            return;
        }
        if self.hold.as_ref().is_some_and(|wish| wish(&message)) {
            self.held.push(message);
        } else {
            if self.doubles {
                self.carry(message.clone());
            }
            self.carry(message);
        }
    }

    fn one_may_act(&mut self) {
        let acting: Vec<u64> =
            self.actors.iter().filter(|(_, a)| self.may_act(a)).map(|(&id, _)| id).collect();
        if acting.len() > 1 {
            self.note(Err(format!("{acting:?} may all act as leader")));
        }
    }

    fn note(&mut self, what: Result<(), String>) {
        if let Err(what) = what {
            self.violation.get_or_insert(what);
        }
    }
}
