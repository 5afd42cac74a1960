//! The loop: one event after another, in the order of true time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use outlast_core::agreed::{LeaseClock, Reply};
use outlast_core::codec::Code as _;
use outlast_raft::{
    Action, Config, Index, Input, Members, Message, Node, NodeId, Position, Role, Snapshot,
};

use crate::check::Checker;
use crate::clients::{Client, Work};
use crate::clock::{Clock, Nanos};
use crate::disk::Disk;
use crate::holders::{Holder, Slip};
use crate::machine::Machine;
use crate::network::Network;
use crate::plan::{MICRO, MILLI, Plan, SECOND};
use crate::random::Random;
use crate::users::User;

/// How often faults may begin or end.
const LOOK_EVERY: Nanos = 5 * MILLI;

/// How long messages and syncs take after the storm.
const CALM_WAITS: (Nanos, Nanos) = (100 * MICRO, 2 * MILLI);

/// What every client must get done after the storm.
const CALM_OPERATIONS: u64 = 3;

/// A run that has more events than this turns in a circle.
const EVENTS_MAX: u64 = 3_000_000;

/// Entries after which a node takes a snapshot by itself.
const COMPACT_AFTER: u64 = 400;

/// How a run ended, and what came to pass in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub events: u64,
    pub elections: u64,
    pub writes: u64,
    pub reads: u64,
    pub crashes: u64,
    pub torn: u64,
    pub changes: u64,
    pub transfers: u64,
    pub snapshots: u64,
    /// Of the whole log, line by line.
    pub digest: u64,
    pub log: String,
}

/// Something that must never be, and when it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub seed: u64,
    pub at: Nanos,
    pub what: String,
    pub events: u64,
    pub log: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ms, us) = (self.at / 1_000_000, self.at / 1_000 % 1_000);
        write!(f, "seed {} at {ms}.{us:03} ms: {}", self.seed, self.what)
    }
}

/// Leads one seed to its end.
pub fn run(plan: &Plan) -> Result<Outcome, Box<Violation>> {
    let mut world = World::new(plan.clone());
    match world.live() {
        Ok(()) => Ok(world.outcome),
        Err(what) => Err(Box::new(Violation {
            seed: plan.seed,
            at: world.now,
            what,
            events: world.outcome.events,
            log: world.outcome.log,
        })),
    }
}

#[derive(Debug)]
pub(crate) enum Event {
    Deliver(Message),
    Synced {
        node: NodeId,
        life: u64,
    },
    Tick {
        node: NodeId,
        life: u64,
    },
    Ask {
        client: usize,
    },
    GiveUp {
        client: usize,
        operation: u64,
    },
    Restart {
        node: NodeId,
        life: u64,
    },
    Resume {
        node: NodeId,
        life: u64,
    },
    /// An answer reaches a holder.
    Told {
        client: usize,
        operation: u64,
        life: u64,
        reply: Reply,
    },
    /// An order reaches whoever carries it out.
    Order {
        epoch: u64,
    },
    Look,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: NodeId,
    pub(crate) clock: Clock,
    pub(crate) disk: Disk,
    /// `None`: dead.
    pub(crate) node: Option<Node>,
    /// Counts starts, so that what was meant for an earlier life is known.
    pub(crate) life: u64,
    pub(crate) paused: bool,
    /// What came while it was paused.
    pub(crate) missed: Vec<Input>,
    pub(crate) machine: Machine,
    pub(crate) writes: BTreeMap<Index, (Position, usize, u64)>,
    pub(crate) reads: BTreeMap<u64, (Index, usize, u64)>,
    pub(crate) tick_at: Nanos,
    /// Of a leader: when leases are over.
    pub(crate) watch: Option<LeaseClock>,
}

impl Peer {
    pub(crate) fn runs(&self) -> bool {
        self.node.is_some() && !self.paused
    }
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) random: Random,
    pub(crate) now: Nanos,
    pub(crate) order: u64,
    pub(crate) queue: BinaryHeap<Reverse<(Nanos, u64)>>,
    pub(crate) events: BTreeMap<u64, Event>,
    pub(crate) network: Network,
    pub(crate) peers: Vec<Peer>,
    pub(crate) clients: Vec<Client>,
    pub(crate) checker: Checker,
    pub(crate) calm: bool,
    pub(crate) reads: u64,
    /// The highest epoch that was obeyed.
    pub(crate) fence: u64,
    pub(crate) outcome: Outcome,
}

impl World {
    fn new(plan: Plan) -> World {
        let mut random = Random::new(plan.seed.rotate_left(17) ^ 0x5eed);
        let voters = Members::voters(1..=plan.voters);
        let peers = (1..=plan.voters + plan.spares).map(NodeId).map(|id| {
            let drift = plan.faults.drift_ppm;
            let mut disk = Disk::new(plan.lying_disks);
            disk.begin(if voters.contains(id) { voters.clone() } else { Members::default() });
            let span = u64::try_from(2 * drift + 1).expect("positive");
            let rate = i64::try_from(random.within(0..span)).expect("small") - drift;
            Peer {
                id,
                clock: Clock { offset: random.within(0..100 * SECOND), rate_ppm: rate },
                disk,
                node: None,
                life: 0,
                paused: false,
                missed: Vec::new(),
                machine: Machine::new(plan.agreed),
                watch: None,
                writes: BTreeMap::new(),
                reads: BTreeMap::new(),
                tick_at: Nanos::MAX,
            }
        });
        let peers = peers.collect();
        let repeats = plan.slip == Some(Slip::RepeatsAsNew);
        let users = (0..plan.clients).map(|number| match plan.agreed {
            true => Work::User(Box::new(User::new(number, repeats))),
            false => Work::Noise,
        });
        let holders =
            if plan.agreed { 0..usize::try_from(plan.voters).expect("small") } else { 0..0 };
        let ttl = Duration::from_nanos(plan.ttl);
        let holders =
            holders.map(|place| Work::Holder(Box::new(Holder::new(place, ttl, plan.slip))));
        let clients = users.chain(holders).map(Client::new).collect();
        World {
            random,
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            network: Network::default(),
            peers,
            clients,
            checker: Checker::default(),
            calm: false,
            reads: 0,
            fence: 0,
            outcome: Outcome::default(),
            plan,
        }
    }

    pub(crate) fn live(&mut self) -> Result<(), String> {
        for at in 0..self.peers.len() {
            self.start(at)?;
        }
        for client in 0..self.clients.len() {
            let wait = self.random.within(0..10 * MILLI);
            self.after(wait, Event::Ask { client });
        }
        self.after(LOOK_EVERY, Event::Look);
        while let Some(Reverse((at, order))) = self.queue.pop() {
            let event = self.events.remove(&order).expect("queued once");
            self.now = at;
            self.outcome.events += 1;
            if self.outcome.events > EVENTS_MAX {
                return Err("too many events".to_owned());
            }
            if !self.calm && self.plan.storm <= self.now {
                self.heal_all()?;
            }
            if self.calm && self.clients.iter().all(|c| c.done_in_calm >= CALM_OPERATIONS) {
                return self.end();
            }
            if self.plan.storm + self.plan.calm <= self.now {
                return Err(self.stuck());
            }
            self.happen(event)?;
        }
        Err("nothing happens any more".to_owned())
    }

    /// Every voter has caught up, or will: nothing that a client knows is missing where it counts.
    pub(crate) fn end(&self) -> Result<(), String> {
        self.judge_calls()?;
        let known = self.checker.known;
        let leader = self.peers.iter().filter(|p| self.may_act(p)).map(|p| p.machine.applied).max();
        match leader {
            Some(applied) if applied < known => {
                Err(format!("the leader has applied {applied}, but {known} is known"))
            }
            Some(_) | None => Ok(()),
        }
    }

    pub(crate) fn stuck(&self) -> String {
        let mut text = "after the storm, clients get nothing done:".to_owned();
        for peer in &self.peers {
            match &peer.node {
                Some(node) => text += &format!("\n  {:?}", node.status(peer.clock.local(self.now))),
                None => text += &format!("\n  {} is dead", peer.id),
            }
        }
        text
    }

    pub(crate) fn after(&mut self, wait: Nanos, event: Event) {
        self.at(self.now + wait, event);
    }

    pub(crate) fn at(&mut self, at: Nanos, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((at, self.order)));
        self.events.insert(self.order, event);
    }

    pub(crate) fn say(&mut self, line: impl FnOnce() -> String) {
        if self.plan.trace {
            let line = format!("{:>13} {}\n", self.now, line());
            for byte in line.bytes() {
                self.outcome.digest =
                    (self.outcome.digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
            self.outcome.log += &line;
        }
    }

    pub(crate) fn place(&self, id: NodeId) -> usize {
        usize::try_from(id.0).expect("small") - 1
    }

    pub(crate) fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Deliver(message) => {
                let at = self.place(message.to);
                if self.absent(at) || self.network.loses(message.from) {
                    return Ok(());
                }
                if self.peers[at].paused {
                    self.peers[at].missed.push(Input::Message(message));
                    return Ok(());
                }
                self.say(|| format!("{} hears {message:?}", message.to));
                self.step(at, Input::Message(message))
            }
            Event::Synced { node, life } => {
                let at = self.place(node);
                if self.peers[at].life != life || self.absent(at) {
                    return Ok(());
                }
                if self.plan.faults.failed_sync_ppm > 0
                    && !self.calm
                    && self.random.chance(self.plan.faults.failed_sync_ppm)
                {
                    self.say(|| format!("{node} cannot sync"));
                    self.crash(at);
                    return Ok(());
                }
                let ticket = self.peers[at].disk.end_sync();
                self.sync(at);
                if self.peers[at].paused {
                    // The kernel syncs on; the process learns of it later.
                    self.peers[at].missed.extend(ticket.map(Input::Written));
                    return Ok(());
                }
                match ticket {
                    Some(ticket) => self.step(at, Input::Written(ticket)),
                    None => Ok(()),
                }
            }
            Event::Tick { node, life } => {
                let at = self.place(node);
                if self.peers[at].life != life || self.absent(at) {
                    return Ok(());
                }
                if self.peers[at].tick_at == self.now {
                    self.peers[at].tick_at = Nanos::MAX;
                }
                if self.peers[at].paused {
                    return Ok(());
                }
                self.step(at, Input::Tick)
            }
            Event::Ask { client } => self.ask(client),
            Event::GiveUp { client, operation } => {
                self.give_up(client, operation);
                Ok(())
            }
            Event::Restart { node, life } => {
                let at = self.place(node);
                if self.peers[at].life == life && self.absent(at) { self.start(at) } else { Ok(()) }
            }
            Event::Resume { node, life } => {
                let at = self.place(node);
                if self.peers[at].life == life { self.resume(at) } else { Ok(()) }
            }
            Event::Told { client, operation, life, reply } => {
                self.told(client, operation, life, reply)
            }
            Event::Order { epoch } => self.carry_out(epoch),
            Event::Look => {
                if self.plan.agreed {
                    self.give_orders();
                    self.one_holds()?;
                    for at in 0..self.peers.len() {
                        self.end_leases(at)?;
                    }
                }
                if !self.calm {
                    self.faults()?;
                    self.after(LOOK_EVERY, Event::Look);
                }
                Ok(())
            }
        }
    }

    pub(crate) fn absent(&self, at: usize) -> bool {
        self.peers[at].node.is_none()
    }

    pub(crate) fn step(&mut self, at: usize, input: Input) -> Result<(), String> {
        let mut out = Vec::new();
        let local = self.peers[at].clock.local(self.now);
        let id = self.peers[at].id;
        let Some(node) = &mut self.peers[at].node else { return Ok(()) };
        let before = node.role();
        node.step(local, input, &mut out);
        let (role, term) = (node.role(), node.status(local).term);
        if role == Role::Leader && before != Role::Leader {
            self.outcome.elections += 1;
            self.say(|| format!("{id} leads term {term}"));
            self.checker.leads(id, term)?;
        }
        self.act(at, out)
    }

    pub(crate) fn act(&mut self, at: usize, out: Vec<Action>) -> Result<(), String> {
        let id = self.peers[at].id;
        for action in out {
            match action {
                Action::Write(write) => self.peers[at].disk.take(write),
                Action::Send(message) => self.send(message),
                Action::Apply(entries) => {
                    for entry in entries {
                        self.checker.applied(id, &entry)?;
                        let reply = self.peers[at].machine.apply(&entry);
                        self.checker.state(id, &self.peers[at].machine)?;
                        self.checker
                            .took_effect(&entry, self.peers[at].machine.has_changed_keys())?;
                        let position = Position { index: entry.index, term: entry.term };
                        self.answer_write(at, position, reply)?;
                    }
                }
                Action::Restore(snapshot) => {
                    self.say(|| format!("{id} restores {snapshot:?}"));
                    let machine = Machine::from_bytes(&snapshot.data).map_err(|e| e.to_string())?;
                    self.checker.state(id, &machine)?;
                    self.peers[at].machine = machine;
                    // Whether they took effect, this node will never know.
                    self.peers[at].writes.retain(|&index, _| snapshot.index < index);
                }
                Action::ReadReady { id: read } => {
                    let applied = self.peers[at].machine.applied;
                    if let Some((floor, client, operation)) = self.peers[at].reads.remove(&read) {
                        self.checker.read(applied, floor).map_err(|e| format!("node {id}: {e}"))?;
                        self.outcome.reads += 1;
                        self.answer_read(at, client, operation);
                    }
                }
                Action::ReadFailed { id: read } => {
                    self.peers[at].reads.remove(&read);
                }
            }
        }
        self.watch(at);
        self.sync(at);
        self.wind(at);
        self.compact_when_long(at)?;
        self.one_may_act(at)
    }

    /// At no instant may two nodes do what only a leader does.
    pub(crate) fn one_may_act(&self, at: usize) -> Result<(), String> {
        let this = &self.peers[at];
        if !self.may_act(this) {
            return Ok(());
        }
        match self.peers.iter().find(|peer| peer.id != this.id && self.may_act(peer)) {
            Some(other) => Err(format!("{} and {} may both act as leader", this.id, other.id)),
            None => Ok(()),
        }
    }

    pub(crate) fn may_act(&self, peer: &Peer) -> bool {
        let local = peer.clock.local(self.now);
        peer.node
            .as_ref()
            .is_some_and(|node| node.role() == Role::Leader && node.status(local).may_act)
    }

    pub(crate) fn send(&mut self, message: Message) {
        let faults = &self.plan.faults;
        let (loss, twice, late) = (faults.loss_ppm, faults.twice_ppm, faults.late_ppm);
        let delay = if self.calm { CALM_WAITS } else { faults.delay };
        let lateness = faults.late;
        if !self.network.passes(message.from, message.to) {
            return;
        }
        if !self.calm && self.random.chance(loss) {
            return;
        }
        let mut copies = 1;
        if !self.calm && self.random.chance(twice) {
            copies = 2;
        }
        if self.random.chance(60_000) {
            let again = Message::from_bytes(&message.to_bytes());
            assert_eq!(again.as_ref(), Ok(&message), "what is sent is what arrives");
        }
        for _ in 0..copies {
            let mut wait = self.random.within(delay.0..delay.1);
            if !self.calm && self.random.chance(late) {
                wait += self.random.within(0..lateness);
            }
            self.after(wait, Event::Deliver(message.clone()));
        }
    }

    /// Begins the next sync.
    pub(crate) fn sync(&mut self, at: usize) {
        let salt = self.random.next();
        if !self.peers[at].disk.begin_sync(salt) {
            return;
        }
        let faults = &self.plan.faults;
        let (slow, slow_sync) = (faults.slow_sync_ppm, faults.slow_sync);
        let sync = if self.calm { CALM_WAITS } else { faults.sync };
        let mut wait = self.random.within(sync.0..sync.1);
        if !self.calm && self.random.chance(slow) {
            wait += self.random.within(0..slow_sync);
        }
        let (node, life) = (self.peers[at].id, self.peers[at].life);
        self.after(wait, Event::Synced { node, life });
    }

    /// Sets the alarm for the node's next deadline.
    pub(crate) fn wind(&mut self, at: usize) {
        let peer = &self.peers[at];
        let Some(deadline) = peer.node.as_ref().and_then(Node::deadline) else { return };
        let due = peer.clock.when(deadline).max(self.now + 1);
        if due < peer.tick_at {
            let (node, life) = (peer.id, peer.life);
            self.peers[at].tick_at = due;
            self.at(due, Event::Tick { node, life });
        }
    }

    pub(crate) fn start(&mut self, at: usize) -> Result<(), String> {
        let (saved, torn) = self.peers[at].disk.recover().map_err(|e| e.to_string())?;
        let local = self.peers[at].clock.local(self.now);
        let mut config = Config::new(self.peers[at].id, self.random.next());
        config.drift_ppm = u32::try_from(2 * self.plan.faults.drift_ppm + 1_000).expect("small");
        config.append_bytes_max = self.plan.append_bytes_max;
        config.chunk_bytes_max = 7;
        config.tail_entries = self.plan.tail_entries;
        config.bug = self.plan.bug;
        self.outcome.torn += u64::from(torn > 0);
        let peer = &mut self.peers[at];
        peer.life += 1;
        peer.paused = false;
        peer.missed.clear();
        peer.tick_at = Nanos::MAX;
        peer.machine = match &*saved.snapshot.data {
            [] => Machine::new(self.plan.agreed),
            data => Machine::from_bytes(data).map_err(|e| e.to_string())?,
        };
        let id = peer.id;
        let (last, snapshot) = (saved.log.last_key_value().map(|(&i, _)| i), saved.snapshot.index);
        peer.node = Some(Node::start(config, saved, local));
        self.say(|| format!("{id} starts with {last:?}, snapshot {snapshot}, torn {torn}"));
        self.wind(at);
        Ok(())
    }

    pub(crate) fn crash(&mut self, at: usize) {
        let random = &mut self.random;
        let peer = &mut self.peers[at];
        if peer.node.take().is_none() {
            return;
        }
        peer.disk.crash(random);
        peer.writes.clear();
        peer.reads.clear();
        peer.missed.clear();
        peer.watch = None;
        let id = peer.id;
        for client in &mut self.clients {
            if let Work::Holder(holder) = &mut client.work
                && holder.place == at
            {
                holder.die();
            }
        }
        self.outcome.crashes += 1;
        self.say(|| format!("{id} crashes"));
    }

    pub(crate) fn resume(&mut self, at: usize) -> Result<(), String> {
        if !self.peers[at].paused || self.absent(at) {
            return Ok(());
        }
        self.peers[at].paused = false;
        let id = self.peers[at].id;
        self.say(|| format!("{id} goes on"));
        for input in std::mem::take(&mut self.peers[at].missed) {
            self.step(at, input)?;
        }
        self.step(at, Input::Tick)
    }

    pub(crate) fn compact_when_long(&mut self, at: usize) -> Result<(), String> {
        let long = self.peers[at].node.as_ref().is_some_and(|n| n.uncompacted() > COMPACT_AFTER);
        if long { self.compact(at) } else { Ok(()) }
    }

    pub(crate) fn compact(&mut self, at: usize) -> Result<(), String> {
        let peer = &mut self.peers[at];
        let Some(node) = &mut peer.node else { return Ok(()) };
        if node.uncompacted() == 0 {
            return Ok(());
        }
        let (index, term, members) = node.applied();
        let data: Arc<[u8]> = Arc::from(peer.machine.to_bytes());
        self.checker.snapshot(peer.id, index, &data)?;
        let mut out = Vec::new();
        node.compact(peer.clock.local(self.now), Snapshot { index, term, members, data }, &mut out);
        let id = peer.id;
        self.outcome.snapshots += 1;
        self.say(|| format!("{id} takes a snapshot of {index}"));
        self.act(at, out)
    }
}
