//! Who uses the cluster: each client asks for one thing at a time, elsewhere if there is no answer.

use std::sync::Arc;

use outlast_core::codec::Code as _;
use outlast_raft::{NodeId, Position, Refusal};

use crate::clock::Nanos;
use crate::plan::MILLI;
use crate::world::{Event, World};

/// A client that has no answer asks again, elsewhere.
const PATIENCE: Nanos = 400 * MILLI;

#[derive(Debug, Default)]
pub(crate) struct Client {
    operation: u64,
    busy: bool,
    begun: Nanos,
    believes: Option<NodeId>,
    pub(crate) done_in_calm: u64,
}

impl World {
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
        let reads = self.random.chance(300_000);
        let local = self.peers[at].clock.local(self.now);
        let floor = self.checker.known;
        let mut out = Vec::new();
        let peer = &mut self.peers[at];
        let Some(node) = &mut peer.node else { return Ok(()) };
        let result = if reads {
            self.reads += 1;
            let read = self.reads;
            // The answer may come at once.
            peer.reads.insert(read, (floor, client, operation));
            let asked = node.read(local, read, &mut out);
            if asked.is_err() {
                peer.reads.remove(&read);
            }
            asked
        } else {
            let mut command = (client as u64).to_bytes();
            operation.encode(&mut command);
            command.resize(8 + self.random.index(40), 7);
            node.propose(local, vec![Arc::from(command)], &mut out).map(|position| {
                peer.writes.insert(position.index, (position, client, operation));
            })
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
    pub(crate) fn answer_write(&mut self, at: usize, position: Position) -> Result<(), String> {
        let Some((wanted, client, operation)) = self.peers[at].writes.remove(&position.index)
        else {
            return Ok(());
        };
        // Another leader's entry stands there: this one never took effect.
        if wanted.term == position.term {
            self.checker.acknowledged(position)?;
            self.outcome.writes += 1;
        }
        self.done(client, operation);
        Ok(())
    }

    pub(crate) fn done(&mut self, client: usize, operation: u64) {
        let state = &mut self.clients[client];
        if !state.busy || state.operation != operation {
            return;
        }
        state.busy = false;
        if self.calm && self.plan.storm <= state.begun {
            state.done_in_calm += 1;
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
