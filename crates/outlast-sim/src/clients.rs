//! Who uses the cluster: each client asks for one thing at a time, elsewhere if there is no answer.

use std::sync::Arc;

use outlast_core::agreed::{LeaseClock, Reply};
use outlast_core::codec::Code as _;
use outlast_core::linear::{self, Call, Start, TRIES_MAX, Verdict};
use outlast_raft::{NodeId, Position, Refusal};

use crate::clock::Nanos;
use crate::holders::{Holder, Slip};
use crate::plan::MILLI;
use crate::users::{User, Wish, nobody};
use crate::world::{Event, World};

/// A client that has no answer asks again, elsewhere.
const PATIENCE: Nanos = 400 * MILLI;

/// What a client is about.
#[derive(Debug)]
pub(crate) enum Work {
    /// Bytes that say who wrote them.
    Noise,
    User(Box<User>),
    Holder(Box<Holder>),
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) work: Work,
    operation: u64,
    busy: bool,
    begun: Nanos,
    believes: Option<NodeId>,
    pub(crate) done_in_calm: u64,
}

impl Client {
    pub(crate) fn new(work: Work) -> Client {
        // Holders may have to wait for the end of a lease.
        let done_in_calm = if matches!(work, Work::Holder(_)) { u64::MAX } else { 0 };
        Client { work, operation: 0, busy: false, begun: 0, believes: None, done_in_calm }
    }
}

/// What a client asks a node for.
enum Ask {
    Read,
    Write(Vec<u8>),
    /// Nothing for now.
    Wait,
}

impl World {
    fn wish(&mut self, client: usize, operation: u64) -> Ask {
        let random = &mut self.random;
        match &mut self.clients[client].work {
            Work::Noise if random.chance(300_000) => Ask::Read,
            Work::Noise => {
                let mut command = (client as u64).to_bytes();
                operation.encode(&mut command);
                command.resize(8 + random.index(40), 7);
                Ask::Write(command)
            }
            Work::User(user) => match user.wish(self.now, random) {
                Wish::Look => Ask::Read,
                Wish::Write(entry) => Ask::Write(entry.to_bytes()),
            },
            Work::Holder(holder) => {
                let peer = &self.peers[holder.place];
                let Some(agreed) = peer.machine.agreed.as_ref().filter(|_| peer.runs()) else {
                    return Ask::Wait;
                };
                let local = peer.clock.local(self.now);
                let entry = holder.wish(local, agreed, random);
                entry.map_or(Ask::Wait, |entry| Ask::Write(entry.to_bytes()))
            }
        }
    }

    pub(crate) fn ask(&mut self, client: usize) -> Result<(), String> {
        if self.clients[client].busy {
            return Ok(());
        }
        let alive: Vec<usize> = (0..self.peers.len())
            .filter(|&at| !self.absent(at) && !self.peers[at].paused)
            .collect();
        let believed = self.clients[client].believes.map(|id| self.place(id));
        let at = believed.filter(|at| alive.contains(at)).or(self.random.pick(&alive).copied());
        let Some(at) = at else {
            self.after(10 * MILLI, Event::Ask { client });
            return Ok(());
        };
        let operation = self.clients[client].operation + 1;
        let wish = self.wish(client, operation);
        let local = self.peers[at].clock.local(self.now);
        let floor = self.checker.known;
        let mut out = Vec::new();
        let peer = &mut self.peers[at];
        let Some(node) = &mut peer.node else { return Ok(()) };
        let result = match wish {
            Ask::Wait => {
                let wait = self.random.within(MILLI..20 * MILLI);
                self.after(wait, Event::Ask { client });
                return Ok(());
            }
            Ask::Read => {
                self.reads += 1;
                let read = self.reads;
                // The answer may come at once.
                peer.reads.insert(read, (floor, client, operation));
                let asked = node.read(local, read, &mut out);
                if asked.is_err() {
                    peer.reads.remove(&read);
                }
                asked
            }
            Ask::Write(command) => {
                node.propose(local, vec![Arc::from(command)], &mut out).map(|position| {
                    peer.writes.insert(position.index, (position, client, operation));
                })
            }
        };
        let id = peer.id;
        let state = &mut self.clients[client];
        match result {
            Ok(()) => {
                state.operation = operation;
                state.busy = true;
                state.begun = self.now;
                state.believes = Some(id);
                self.after(PATIENCE, Event::GiveUp { client, operation });
            }
            Err(refusal) => {
                state.believes = match refusal {
                    Refusal::NotLeader { leader } => leader,
                    Refusal::Busy
                    | Refusal::ChangeUnderWay
                    | Refusal::Behind
                    | Refusal::NoChange
                    | Refusal::LastVoter => Some(id),
                };
                let wait = self.random.within(MILLI..20 * MILLI);
                self.after(wait, Event::Ask { client });
            }
        }
        self.act(at, out)
    }

    /// Something was applied where somebody waits for it.
    pub(crate) fn answer_write(
        &mut self,
        at: usize,
        position: Position,
        reply: Option<Reply>,
    ) -> Result<(), String> {
        let Some((wanted, client, operation)) = self.peers[at].writes.remove(&position.index)
        else {
            return Ok(());
        };
        // Another leader's entry stands there: this one never took effect.
        if wanted.term != position.term {
            self.done(client, operation);
            return Ok(());
        }
        self.checker.acknowledged(position)?;
        self.outcome.writes += 1;
        let this = &mut self.clients[client];
        if !this.busy || this.operation != operation {
            return Ok(());
        }
        match (&mut this.work, reply) {
            (Work::User(user), Some(reply)) => user.told(self.now, reply)?,
            (Work::Holder(holder), Some(reply)) => {
                // It runs elsewhere: the answer takes its time.
                let life = self.peers[holder.place].life;
                let long = self.random.chance(300_000);
                let wait = self.random.within(0..if long { 300 * MILLI } else { MILLI });
                self.after(wait, Event::Told { client, operation, life, reply });
                return Ok(());
            }
            (Work::Noise, _) | (_, None) => {}
        }
        self.done(client, operation);
        Ok(())
    }

    pub(crate) fn told(
        &mut self,
        client: usize,
        operation: u64,
        life: u64,
        reply: Reply,
    ) -> Result<(), String> {
        let this = &mut self.clients[client];
        let Work::Holder(holder) = &mut this.work else { return Ok(()) };
        let peer = &self.peers[holder.place];
        if this.busy && this.operation == operation && peer.life == life && peer.runs() {
            holder.told(peer.clock.local(self.now), reply)?;
            self.done(client, operation);
            self.one_holds()?;
        }
        Ok(())
    }

    /// A read is answered by what this node has applied.
    pub(crate) fn answer_read(&mut self, at: usize, client: usize, operation: u64) {
        let this = &mut self.clients[client];
        if this.busy
            && this.operation == operation
            && let Work::User(user) = &mut this.work
            && let Some(agreed) = &self.peers[at].machine.agreed
        {
            user.saw(self.now, agreed);
        }
        self.done(client, operation);
    }

    /// At no instant of true time may two nodes act under a role's lease.
    pub(crate) fn one_holds(&self) -> Result<(), String> {
        let mut acting = self.clients.iter().filter_map(|client| {
            let Work::Holder(holder) = &client.work else { return None };
            let peer = &self.peers[holder.place];
            let local = peer.clock.local(self.now);
            holder.acts(local).filter(|_| peer.runs()).map(|epoch| (peer.id, epoch))
        });
        match (acting.next(), acting.next()) {
            (Some((one, first)), Some((other, second))) => {
                Err(format!("{one} acts under epoch {first} and {other} under {second}"))
            }
            (Some(_) | None, _) => Ok(()),
        }
    }

    /// Whoever holds the role gives an order; it may take its time.
    pub(crate) fn give_orders(&mut self) {
        for at in 0..self.clients.len() {
            let Work::Holder(holder) = &mut self.clients[at].work else { continue };
            let peer = &self.peers[holder.place];
            let local = peer.clock.local(self.now);
            let Some(epoch) = holder.order(local).filter(|_| peer.runs()) else { continue };
            let long = self.random.chance(20_000);
            let wait = self.random.within(0..if long { 2_000 * MILLI } else { MILLI });
            self.after(wait, Event::Order { epoch });
        }
    }

    /// What carries out orders has got one.
    pub(crate) fn carry_out(&mut self, epoch: u64) -> Result<(), String> {
        if epoch < self.fence && self.plan.slip != Some(Slip::AnyEpoch) {
            return Ok(());
        }
        if epoch < self.fence {
            return Err(format!("an order of epoch {epoch} is obeyed after one of {}", self.fence));
        }
        self.fence = epoch;
        Ok(())
    }

    /// Whoever leads watches what ends by time.
    pub(crate) fn watch(&mut self, at: usize) {
        let acts = self.may_act(&self.peers[at]);
        let peer = &mut self.peers[at];
        let Some(agreed) = &peer.machine.agreed else { return };
        let local = peer.clock.local(self.now);
        match (acts, &mut peer.watch) {
            (true, Some(watch)) => watch.observe(local, agreed),
            (true, none) => none.insert(LeaseClock::default()).took_over(local, agreed),
            (false, watch) => *watch = None,
        }
    }

    pub(crate) fn end_leases(&mut self, at: usize) -> Result<(), String> {
        self.watch(at);
        let peer = &mut self.peers[at];
        let Some(watch) = &peer.watch else { return Ok(()) };
        let local = peer.clock.local(self.now);
        let over = watch.over(local).into_iter();
        let commands: Vec<Arc<[u8]>> = over.map(|c| Arc::from(nobody(c).to_bytes())).collect();
        let Some(node) = &mut peer.node else { return Ok(()) };
        let mut out = Vec::new();
        if !commands.is_empty() {
            // Refused: it does not lead, and another one will see to it.
            node.propose(local, commands, &mut out).ok();
        }
        self.act(at, out)
    }

    /// Whether one order of all calls explains what users were told.
    pub(crate) fn judge_calls(&self) -> Result<(), String> {
        let users = self.clients.iter().filter_map(|client| match &client.work {
            Work::User(user) => Some(&user.calls),
            Work::Noise | Work::Holder(_) => None,
        });
        let calls: Vec<Call> = users.flatten().cloned().collect();
        match linear::check(&calls, Start::Empty, TRIES_MAX) {
            Verdict::Linearizable | Verdict::Undecided { .. } => Ok(()),
            Verdict::Violated(violation) => Err(violation.to_string()),
        }
    }

    pub(crate) fn done(&mut self, client: usize, operation: u64) {
        let state = &mut self.clients[client];
        if !state.busy || state.operation != operation {
            return;
        }
        state.busy = false;
        if self.calm && self.plan.storm <= state.begun {
            state.done_in_calm = state.done_in_calm.saturating_add(1);
        }
        let wait = self.random.within(0..5 * MILLI);
        self.after(wait, Event::Ask { client });
    }

    pub(crate) fn give_up(&mut self, client: usize, operation: u64) {
        let state = &mut self.clients[client];
        if state.busy && state.operation == operation {
            state.busy = false;
            state.believes = None;
            self.after(0, Event::Ask { client });
        }
    }
}
