//! What goes wrong, and that it ends.

use super::{FAULTS_END, Kind, NAMES, ORDERS, REGIONS, World};
use crate::database::Descent;
use crate::sim::Rng;
use crate::sim::database::postgres::{Disk, Mode};
use std::borrow::ToOwned as _;
use std::vec::Vec;

/// When the next fault comes, and how many nodes may be in trouble at the same time.
#[derive(Debug)]
pub(super) struct Faults {
    next: u64,
    pace: u64,
    healed: bool,
    /// Orders come to nothing now and then.
    pub(super) orders_fail: bool,
}

impl Faults {
    pub(super) fn new(rng: &mut Rng) -> Faults {
        let pace = rng.pick(&[800, 2_500, 6_000]);
        Faults { next: 8_000, pace, healed: false, orders_fail: true }
    }
}

impl World {
    pub(super) fn fault(&mut self) {
        if FAULTS_END <= self.now {
            if !self.faults.healed {
                self.faults.healed = true;
                self.heal();
            }
            let late = FAULTS_END + 20_000 < self.now && self.now.is_multiple_of(15_000);
            if late && self.kind.has_regions() && self.nobody_serves() {
                self.ask_for_region();
            }
            return;
        }
        self.disturb_switchover();
        self.accept_loss();
        if self.now < self.faults.next {
            return;
        }
        self.faults.next = self.now + self.rng.between(200, self.faults.pace);
        let node = usize::try_from(self.rng.between(0, self.size as u64)).unwrap();
        // Half of all faults hit the primary.
        let primary = (0..self.size).find(|&n| self.nodes[n].postgres.mode == Mode::Primary);
        let node = primary.filter(|_| self.rng.per_mille(400)).unwrap_or(node);
        let lasts = self.rng.pick(&[100, 700, 2_500, 6_000, 12_000]);
        let until = self.now + lasts;
        let share = if self.kind == Kind::Crossing { 400 } else { 250 };
        if self.kind.has_regions() && self.rng.per_mille(share) {
            return self.disturb_region();
        }
        let what = self.rng.between(0, 23);
        self.note(node, &std::format!("fault {what} until {until}"));
        let promised = self.is_promised();
        let this = &mut self.nodes[node];
        match what {
            0 | 1 => self.lose_power(node, until),
            2 => self.kill_agent(node, until),
            3 => this.postgres.die(),
            4 => this.postgres.hung_until = until,
            // A machine that wakes up acknowledges before anything could stop it (trap 49).
            5 if promised && self.kind != Kind::Crossing => this.frozen_until = until,
            6 | 7 => self.cut_node(node, until, true, true),
            8 => self.cut_node(node, until, true, false),
            9 => self.cut_node(node, until, false, true),
            10 => {
                let other = usize::try_from(self.rng.between(0, self.size as u64)).unwrap();
                self.cut[node][other] = until;
                if self.rng.per_mille(500) {
                    self.cut[other][node] = until;
                }
            }
            11 => this.postgres.stalled_until = until,
            12 => this.slow_reports_until = until,
            13 | 14 => self.ask_switchover(),
            // One disk at a time: all that was acknowledged is on another, and it stays so.
            15 if self.what_is_wrong().is_none() && self.may_lose_disk(node) => {
                self.lose_disk(node);
            }
            16 | 17 => self.ask_upkeep(),
            18 => self.ask_schedule(),
            19 => self.rest(node),
            // More was written than is kept for those that are away.
            20 => {
                let pg = &mut self.nodes[node].postgres;
                pg.keeps_from = pg.flushed;
            }
            _ => self.change_wish(),
        }
    }

    /// A whole region is cut off or without power, or a person wants the primary elsewhere.
    fn disturb_region(&mut self) {
        let region = self.rng.pick(&REGIONS);
        let inside = |node: &usize| self.wish.regions[NAMES[*node]] == *region;
        let (inside, outside): (Vec<usize>, Vec<usize>) = (0..self.size).partition(inside);
        let until = self.now + self.rng.pick(&[2_500, 9_000, 16_000, 25_000]);
        self.note(inside[0], &std::format!("region {region} is disturbed until {until}"));
        match self.rng.between(0, 5) {
            0 => self.ask_for_region(),
            1 => inside.iter().for_each(|&node| self.lose_power(node, until)),
            way => {
                for (&one, &other) in
                    inside.iter().flat_map(|one| outside.iter().map(move |other| (one, other)))
                {
                    if way != 2 {
                        self.cut[one][other] = until;
                    }
                    if way != 3 {
                        self.cut[other][one] = until;
                    }
                }
            }
        }
    }

    fn lose_power(&mut self, node: usize, until: u64) {
        self.kill_agent(node, until);
        let this = &mut self.nodes[node];
        this.powered = false;
        this.power_back_at = until;
        this.postgres.lose_power();
        // What watches over the primary is gone with it, and so is the primary.
        this.keeper_until = None;
        this.keeper_kills_at = None;
    }

    /// The primary dies while it is closed.
    fn disturb_switchover(&mut self) {
        let database = self.truth.databases().get(ORDERS);
        let closed = database.filter(|database| database.is_closed());
        let Some(closed) = closed else { return };
        let node = NAMES.iter().position(|name| *name == closed.reign.primary);
        if let Some(node) = node.filter(|_| self.rng.per_mille(20)) {
            self.note(node, "dies while it is closed");
            self.nodes[node].postgres.die();
        }
    }

    /// A primary that may be about to go on alone, as was wished, has what nobody else has.
    fn may_lose_disk(&self, node: usize) -> bool {
        self.wish.acks == 0
            || 0 < self.wish.acks_min.min(self.wish.acks)
            || self.nodes[node].postgres.mode != Mode::Primary
    }

    fn lose_disk(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        this.postgres.die();
        this.postgres.disk = Disk::Empty;
        this.postgres.log.0.clear();
        (this.postgres.flushed, this.postgres.keeps_from) = (0, 0);
        this.kept.descent = Descent::default();
    }

    fn kill_agent(&mut self, node: usize, until: u64) {
        let this = &mut self.nodes[node];
        this.mind = None;
        this.life += 1;
        this.agent_back_at = until;
        self.forget(node);
    }

    fn cut_node(&mut self, node: usize, until: u64, from: bool, to: bool) {
        for other in (0..self.size).filter(|&other| other != node) {
            if from {
                self.cut[node][other] = until;
            }
            if to {
                self.cut[other][node] = until;
            }
        }
    }

    fn change_wish(&mut self) {
        match self.rng.between(0, 4) {
            0 => self.paused = !self.paused,
            1 if self.kind != Kind::Async => {
                let most = (self.wish.members.len() as u64).min(3);
                self.wish.acks = u32::try_from(self.rng.between(1, most)).unwrap();
                let least = self.rng.between(0, u64::from(self.wish.acks) + 1);
                self.wish.acks_min = u32::try_from(least).unwrap();
            }
            2 => {
                let node = usize::try_from(self.rng.between(0, self.size as u64)).unwrap();
                let priority = self.rng.pick(&[50, 100, 200]);
                self.wish.priorities.insert(NAMES[node].to_owned(), priority);
            }
            _ => {}
        }
    }

    /// People begin to work on a standby, or are done with another one.
    fn rest(&mut self, node: usize) {
        let reigns = self.truth.databases().get(ORDERS).map(|d| d.reign.primary.clone());
        let is_member = self.members().contains(&node);
        let begins = self.resting.is_empty() && is_member;
        self.resting.clear();
        if begins && reigns.is_some_and(|primary| primary != NAMES[node]) {
            self.note(node, "is worked on");
            self.resting.insert(NAMES[node].to_owned());
        }
    }

    fn heal(&mut self) {
        self.note(0, "all is healed");
        self.resting.clear();
        self.cut = Default::default();
        self.paused = false;
        for this in &mut self.nodes {
            this.frozen_until = this.frozen_until.min(self.now);
            this.power_back_at = this.power_back_at.min(self.now);
            this.agent_back_at = this.agent_back_at.min(self.now);
            this.slow_reports_until = 0;
            let pg = &mut this.postgres;
            pg.hung_until = pg.hung_until.min(self.now);
            pg.stalled_until = pg.stalled_until.min(self.now);
        }
    }
}
