//! What servers do all the time: write, send, receive, acknowledge.

use std::vec::Vec;

use super::laws::law_is;
use super::postgres::{Flushed, Mode, Sent};
use super::{NAMES, World};
use crate::sim::check::Law;

impl World {
    pub(super) fn serve(&mut self, node: usize) -> Law {
        if !self.nodes[node].postgres.runs(self.now) {
            return Ok(());
        }
        match self.nodes[node].postgres.mode {
            Mode::Standby => self.receive(node),
            Mode::Primary => self.acknowledge(node),
            Mode::Down | Mode::Starting => Ok(()),
        }
    }

    fn receive(&mut self, node: usize) -> Law {
        self.connect(node)?;
        let now = self.now;
        let pg = &mut self.nodes[node].postgres;
        while pg.coming.front().is_some_and(|sent| sent.due <= now) {
            let Some(sent) = pg.coming.pop_front() else { break };
            pg.log.0.extend(sent.records);
        }
        pg.flush(now);
        let (flushed, said) = (pg.flushed, pg.said);
        let (Some((life, _)), Some(upstream)) = (pg.connection, pg.upstream) else { return Ok(()) };
        if said < flushed && self.reach(node, upstream) {
            let due = now + self.rng.between(2, 60);
            self.nodes[node].postgres.said = flushed;
            let flushes = &mut self.nodes[upstream].postgres.flushes;
            flushes.push(Flushed { due, life, node, length: flushed });
        }
        Ok(())
    }

    /// Keeps the connection to the upstream, and has it send what is new.
    fn connect(&mut self, node: usize) -> Law {
        let now = self.now;
        let Some(upstream) = self.nodes[node].postgres.upstream else { return Ok(()) };
        let sends = self.is_up(upstream) && self.reach(upstream, node);
        let [own, other] = self
            .nodes
            .get_disjoint_mut([node, upstream])
            .map_or([None, None], |[own, other]| [Some(own), Some(other)]);
        let (Some(own), Some(other)) = (own, other) else { return Ok(()) };
        let (pg, from) = (&mut own.postgres, &mut other.postgres);
        if let Some((life, _)) = pg.connection
            && life != from.life
        {
            pg.cut_off();
        }
        if !sends || !from.runs(now) {
            // A receiver that hears nothing begins anew.
            if self.rng.per_mille(4) {
                pg.cut_off();
            }
            return Ok(());
        }
        let under = pg.follows_under;
        let relays = self.ledger.appointed.get(&under) != Some(&upstream);
        // A relay lets in who knows its lineage, and cuts them off before that changes.
        if relays && other.kept.descent.lineage != Some(under) {
            pg.cut_off();
            return Ok(());
        }
        let flushed = from.flushed;
        let mut begins = false;
        let next = match pg.connection {
            Some((_, next)) => next,
            None => {
                let both = self.cut[node][upstream] <= now;
                if !both || pg.flushed < pg.log.len() || !self.rng.per_mille(200) {
                    return Ok(());
                }
                if !from.log.would_send(from.keeps_from, flushed, &pg.log) {
                    return Ok(());
                }
                let fits = pg.log.is_prefix_of(&from.log);
                // Whom it was told to follow may follow somebody else by now: then what it has must count for nothing.
                let same = own.kept.descent.lineage == other.kept.descent.lineage;
                self.ledger.strays += u64::from(!fits);
                law_is(fits || !same, "it receives on top of another log")?;
                pg.cut_off();
                from.acked.remove(&node);
                from.flushes.retain(|flushed| flushed.node != node);
                begins = true;
                pg.log.len()
            }
        };
        if next < flushed && self.rng.per_mille(700) {
            let last = pg.coming.back().map_or(0, |sent| sent.due);
            let due = (now + self.rng.between(2, 80)).max(last);
            let records = from.log.0[next..flushed].to_vec();
            pg.coming.push_back(Sent { due, records });
            pg.connection = Some((from.life, flushed));
        } else {
            pg.connection = Some((from.life, next));
        }
        law_is(!begins || !self.relays_in_a_circle(node), "members follow each other in a circle")
    }

    /// Two can follow each other for a moment if the second has been appointed and is not promoted yet: it still has the address
    /// of the first, which follows it already. So can orders of two reigns, of which the appointed one has not heard. Within one
    /// reign no relay is ever part of a circle.
    fn relays_in_a_circle(&self, node: usize) -> bool {
        let receives_from = |node: usize| {
            let pg = &self.nodes[node].postgres;
            pg.upstream.filter(|_| pg.connection.is_some() && pg.mode == Mode::Standby)
        };
        let relays = |node: usize, upstream: usize| {
            self.ledger.appointed.get(&self.nodes[node].postgres.follows_under) != Some(&upstream)
        };
        let under = |node: usize| self.nodes[node].postgres.follows_under;
        let (mut at, mut relayed, mut mixed) = (node, false, false);
        for _ in 0..self.size {
            let Some(upstream) = receives_from(at) else { return false };
            relayed |= relays(at, upstream);
            mixed |= under(at) != under(node);
            if upstream == node {
                return relayed && !mixed;
            }
            at = upstream;
        }
        false
    }

    fn acknowledge(&mut self, node: usize) -> Law {
        let (now, id) = (self.now, self.new_id());
        let writes = self.rng.per_mille(150);
        let pg = &mut self.nodes[node].postgres;
        if writes && pg.closed.is_none() && pg.pending.len() < 50 {
            let lsn = pg.append(id);
            pg.pending.push_back((lsn, id));
        }
        pg.flush(now);
        let life = pg.life;
        let mut heard = Vec::new();
        pg.flushes.retain(|flushed| {
            let due = flushed.due <= now;
            if due && flushed.life == life {
                heard.push((flushed.node, flushed.length));
            }
            !due
        });
        for (standby, length) in heard {
            let acked = pg.acked.entry(standby).or_default();
            *acked = (*acked).max(length);
        }
        if let Some((lsn, epoch)) = pg.verifying
            && pg.is_acked(lsn, &NAMES[..self.size])
        {
            pg.verifying = None;
            pg.verified = Some(epoch);
        }
        while let Some(&(lsn, id)) = self.nodes[node].postgres.pending.front()
            && self.nodes[node].postgres.is_acked(lsn, &NAMES[..self.size])
        {
            self.nodes[node].postgres.pending.pop_front();
            self.acknowledged(node, id)?;
        }
        Ok(())
    }
}
