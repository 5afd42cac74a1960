//! What goes wrong, and what people do meanwhile.

use outlast_raft::{Change, NodeId, Role};

use crate::plan::MILLI;
use crate::world::{Event, Peer, World};

impl World {
    pub(crate) fn faults(&mut self) -> Result<(), String> {
        let faults = self.plan.faults.clone();
        let ids: Vec<NodeId> = self.peers.iter().map(|peer| peer.id).collect();
        if self.random.chance(faults.cut_ppm) {
            let from = ids[self.random.index(ids.len())];
            let both = self.random.chance(600_000);
            // From everybody, or from one.
            let others: Vec<NodeId> = if self.random.chance(500_000) {
                ids.clone()
            } else {
                vec![ids[self.random.index(ids.len())]]
            };
            for to in others.into_iter().filter(|&to| to != from) {
                self.network.cut(from, to);
                if both {
                    self.network.cut(to, from);
                }
            }
            self.say(|| format!("cut {from}, both ways: {both}"));
        }
        if self.random.chance(faults.star_ppm) {
            let hub = ids[self.random.index(ids.len())];
            self.network.star(&ids, hub);
            self.say(|| format!("a star around {hub}"));
        }
        if !self.network.is_whole() && self.random.chance(faults.heal_ppm) {
            self.network.heal();
            self.say(|| "heal".to_owned());
        }
        if self.random.chance(faults.crash_all_ppm) {
            for at in 0..self.peers.len() {
                self.crash(at);
            }
        }
        if self.random.chance(faults.topple_ppm) {
            self.topple(&ids);
        }
        for at in 0..self.peers.len() {
            let (node, life) = (self.peers[at].id, self.peers[at].life);
            if self.absent(at) {
                if self.random.chance(faults.restart_ppm) {
                    self.after(0, Event::Restart { node, life });
                }
                continue;
            }
            if self.random.chance(faults.crash_ppm) {
                self.crash(at);
                continue;
            }
            if !self.peers[at].paused && self.random.chance(faults.pause_ppm) {
                self.peers[at].paused = true;
                self.say(|| format!("{node} is paused"));
                let wait = self.random.within(0..800 * MILLI);
                self.after(wait, Event::Resume { node, life });
            }
            if self.peers[at].paused {
                continue;
            }
            if self.random.chance(faults.change_ppm) {
                self.change(at, &ids)?;
            }
            if self.random.chance(faults.transfer_ppm) {
                self.transfer(at, &ids)?;
            }
            if self.random.chance(faults.compact_ppm) {
                self.compact(at)?;
            }
        }
        Ok(())
    }

    /// Cuts off whoever leads: what it has begun reaches some, or nobody.
    pub(crate) fn topple(&mut self, ids: &[NodeId]) {
        let leads = |peer: &&Peer| peer.node.as_ref().is_some_and(|n| n.role() == Role::Leader);
        let newest = |peer: &&Peer| peer.node.as_ref().map(|node| node.reign().0);
        let Some(leader) = self.peers.iter().filter(leads).max_by_key(newest).map(|p| p.id) else {
            return;
        };
        self.network.drown(leader, ids);
        self.say(|| format!("{leader} is toppled"));
    }

    pub(crate) fn change(&mut self, at: usize, ids: &[NodeId]) -> Result<(), String> {
        let whom = ids[self.random.index(ids.len())];
        let change = match self.random.within(0..5) {
            0 => Change::AddLearner(whom),
            1 | 2 => Change::Promote(whom),
            3 => Change::Demote(whom),
            _ => Change::Remove(whom),
        };
        let local = self.peers[at].clock.local(self.now);
        let mut out = Vec::new();
        let Some(node) = &mut self.peers[at].node else { return Ok(()) };
        if node.change(local, change, &mut out).is_ok() {
            self.outcome.changes += 1;
            self.say(|| format!("{change:?}"));
        }
        self.act(at, out)
    }

    pub(crate) fn transfer(&mut self, at: usize, ids: &[NodeId]) -> Result<(), String> {
        let to = ids[self.random.index(ids.len())];
        let local = self.peers[at].clock.local(self.now);
        let mut out = Vec::new();
        let Some(node) = &mut self.peers[at].node else { return Ok(()) };
        if node.transfer(local, to, &mut out).is_ok() {
            self.outcome.transfers += 1;
            self.say(|| format!("transfer to {to}"));
        }
        self.act(at, out)
    }

    /// The storm is over: everybody lives, everybody reaches everybody.
    pub(crate) fn heal_all(&mut self) -> Result<(), String> {
        self.calm = true;
        self.say(|| "calm".to_owned());
        self.network.heal();
        for at in 0..self.peers.len() {
            if self.absent(at) {
                self.start(at)?;
            } else {
                self.resume(at)?;
            }
        }
        Ok(())
    }
}
