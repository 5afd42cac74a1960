//! What must hold, whatever happens.

use std::borrow::ToOwned as _;
use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;
use std::vec::Vec;

use super::driver::node_of;
use super::postgres::Mode;
use super::{FAULTS_END, Kind, NAMES, ORDERS, World};
use crate::agreed::{Command, Database, DatabaseCommand};
use crate::database::Order;
use crate::sim::check::Law;

/// What was seen, kept apart from those that decide.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Who was appointed under which epoch.
    pub(super) appointed: BTreeMap<u64, usize>,
    pub(super) opened: bool,
    /// Writes that were acknowledged, and under which reign.
    acknowledged: Vec<(u32, u64)>,
    /// The highest reign that has acknowledged.
    newest: u64,
    last_at: u64,
    pub(super) failovers: u64,
    pub(super) switchovers: u64,
    /// Rewinds and clones.
    pub(super) copies: u64,
    /// Appointments to another region although something could be lost.
    pub(super) crossings: u64,
    /// The reign that began with the last of these.
    losing: u64,
    /// Under which reigns the log of each was known to be a part.
    pub(super) lineages: BTreeSet<(usize, u64)>,
    /// The election under way, and since when.
    pub(super) election: Option<(u64, u64)>,
    /// Appointments for which a person accepted a loss.
    pub(super) losses: u64,
    /// Standbys that received on top of a log that was not theirs.
    pub(super) strays: u64,
    pub(super) broken: Option<String>,
}

pub(super) fn law_is(holds: bool, words: &str) -> Law {
    if holds { Ok(()) } else { Err(words.to_owned()) }
}

impl World {
    pub(super) fn is_promised(&self) -> bool {
        matches!(self.kind, Kind::Quorum | Kind::Drifting | Kind::Regions | Kind::Crossing)
    }

    /// Where the primary alone acknowledges, two never take writes at the same time: leases see to it.
    pub(super) fn one_takes_writes(&self) -> Law {
        let takes = |node: &usize| {
            let pg = &self.nodes[*node].postgres;
            let up = self.is_up(*node) && pg.runs(self.now);
            up && pg.mode == Mode::Primary && pg.closed.is_none()
        };
        let count = (0..self.size).filter(takes).count();
        law_is(self.kind != Kind::Async || count < 2, "two primaries take writes")
    }

    /// A client was told that its write is safe.
    pub(super) fn acknowledged(&mut self, node: usize, id: u32) -> Law {
        if !self.ledger.opened {
            return Ok(());
        }
        let epoch = self.nodes[node].postgres.epoch;
        let newest = self.ledger.newest;
        if epoch < newest && !self.is_promised() {
            let who = NAMES[node];
            return Err(format!("{who} acknowledges under {epoch} although {newest} has begun"));
        }
        if epoch < self.ledger.losing {
            let (who, losing) = (NAMES[node], self.ledger.losing);
            return Err(format!("{who} acknowledges under {epoch} although {losing} gave it up"));
        }
        self.ledger.newest = epoch.max(newest);
        self.ledger.last_at = self.now;
        self.ledger.acknowledged.push((id, epoch));
        for other in (0..self.size).filter(|_| self.is_promised()) {
            let pg = &self.nodes[other].postgres;
            let later = pg.mode == Mode::Primary && epoch < pg.epoch;
            // What had been received before that may be told to a client late.
            let has = !later || pg.log.0.iter().any(|record| record.id == id);
            law_is(has, "an old primary acknowledges what the next one does not have")?;
        }
        Ok(())
    }

    /// Who comes next, and from where. What a losing appointment gives up is not promised any more.
    pub(super) fn judge_appointment(
        &mut self,
        before: &Database,
        command: &Command,
        node: usize,
    ) -> Law {
        let Command::Database(DatabaseCommand::Appoint { losing, .. }) = command else {
            return Ok(());
        };
        let near = self.wish.are_near(&before.reign.primary, NAMES[node]);
        let asked = before.election.as_ref().is_none_or(|election| election.region.is_some());
        let crosses = self.kind == Kind::Crossing;
        law_is(near || asked || crosses, "another region took over by itself")?;
        if *losing && self.kind != Kind::Losing {
            law_is(crosses && !near, "an appointment that loses although nobody asked for it")?;
            let log = &self.nodes[node].postgres.log;
            let has: BTreeSet<u32> = log.0.iter().map(|record| record.id).collect();
            self.ledger.acknowledged.retain(|(id, _)| has.contains(id));
            self.ledger.losing = self.log.len() as u64;
            self.ledger.crossings += 1;
        }
        Ok(())
    }

    /// Whom a member is told to follow.
    pub(super) fn judge_upstream(&mut self, node: usize, order: &Order, epoch: u64) {
        self.note_lineage(node);
        let upstream = match order {
            Order::StartStandby { follow } => follow.as_deref(),
            Order::Follow { node } => Some(node.as_str()),
            Order::Create
            | Order::StartPrimary { .. }
            | Order::Promote { .. }
            | Order::StopReceiving { .. }
            | Order::SetRule { .. }
            | Order::Close { .. }
            | Order::Open
            | Order::MakeSource
            | Order::Verify { .. }
            | Order::Rewind { .. }
            | Order::Clone { .. }
            | Order::Flush { .. }
            | Order::Stop { .. }
            | Order::Kill { .. } => None,
        };
        let Some(upstream) = upstream.map(node_of) else { return };
        let known = self.ledger.appointed.get(&epoch) == Some(&upstream)
            || self.ledger.lineages.contains(&(upstream, epoch));
        if !known {
            let words = "it follows a relay whose log is not known to be a part";
            self.ledger.broken.get_or_insert_with(|| words.to_owned());
        }
    }

    pub(super) fn note_lineage(&mut self, node: usize) {
        let lineage = self.nodes[node].kept.descent.lineage;
        self.ledger.lineages.extend(lineage.map(|lineage| (node, lineage)));
    }

    pub(super) fn became_primary(&mut self, node: usize, epoch: u64) {
        self.note(node, &format!("is primary under {epoch}"));
        let pg = &mut self.nodes[node].postgres;
        pg.epoch = epoch;
        let has: BTreeSet<u32> = pg.log.0.iter().map(|record| record.id).collect();
        let appointed = self.ledger.appointed.get(&epoch) == Some(&node);
        let promised = self.is_promised();
        let lost = self.ledger.acknowledged.iter().find(|(id, under)| {
            (promised || *under == epoch) && *under <= epoch && !has.contains(id)
        });
        let lost = lost.map(|(id, under)| {
            format!("{} is primary under {epoch} without write {id} of {under}", NAMES[node])
        });
        let fault =
            if appointed { lost } else { Some("a primary that nobody appointed".to_owned()) };
        self.ledger.broken = self.ledger.broken.take().or(fault);
    }

    /// Whether all is well and has been for a while.
    pub(super) fn is_well(&mut self) -> bool {
        if self.now < FAULTS_END {
            return false;
        }
        if !self.now.is_multiple_of(200) {
            return false;
        }
        if self.what_is_wrong().is_some() {
            self.well_since = None;
            return false;
        }
        let since = *self.well_since.get_or_insert(self.now);
        since + 2_000 <= self.now
    }

    pub(super) fn epoch(&self) -> u64 {
        self.truth.databases().get(ORDERS).map_or(0, Database::epoch)
    }

    pub(super) fn primary_name(&self) -> Option<&str> {
        let database = self.truth.databases().get(ORDERS);
        database.map(|database| database.reign.primary.as_str())
    }

    /// Whether a person would have to look.
    pub(super) fn nobody_serves(&self) -> bool {
        let Some(database) = self.truth.databases().get(ORDERS) else { return false };
        let pg = &self.nodes[node_of(&database.reign.primary)].postgres;
        let reigns = database.election.is_none() && database.reign.open;
        !reigns || pg.mode != Mode::Primary || pg.epoch != database.reign.epoch
    }

    pub(super) fn what_is_wrong(&self) -> Option<String> {
        let Some(database) = self.truth.databases().get(ORDERS) else {
            return Some("it was never made".to_owned());
        };
        let reign = &database.reign;
        let primary = NAMES.iter().position(|name| *name == reign.primary).expect("a member");
        let pg = &self.nodes[primary].postgres;
        let wrong = |words: &str| Some(format!("{words}: {database:?}"));
        if database.election.is_some() || !reign.open {
            return wrong("nobody reigns");
        }
        if database.switchover.is_some() {
            return Some(format!("a switchover goes on: {:?}", database.switchover));
        }
        if database.upkeep.is_some() || database.scheduled.is_some() {
            return wrong("what people have asked for is not done");
        }
        if pg.mode != Mode::Primary || pg.epoch != reign.epoch {
            return wrong("the primary does not serve");
        }
        if pg.closed.is_some() {
            return wrong("the primary is closed");
        }
        if database.confirms.len() > 1 || database.rule().acks != self.wish.acks {
            return wrong("the rule is not settled");
        }
        for node in self.members().into_iter().filter(|&node| node != primary) {
            let standby = &self.nodes[node].postgres;
            let follows = standby.mode == Mode::Standby
                && standby.upstream == Some(node_of(database.upstream(NAMES[node])))
                && self.nodes[node].kept.descent.lineage == Some(reign.epoch)
                && standby.connection.is_some();
            if !follows || !standby.log.is_prefix_of(&pg.log) {
                return wrong(&format!("{} does not follow", NAMES[node]));
            }
            // Who never becomes primary acknowledges only where others are too few.
            let near = |node: &usize| self.wish.are_near(NAMES[primary], NAMES[*node]);
            let enough = self.members().iter().filter(|node| near(node)).count();
            let counts = self.wish.acks > 0
                && self.wish.priority(NAMES[node]) > 0
                && near(&node)
                && (self.wish.acks as usize) < enough;
            if counts && !database.rule().of.contains(NAMES[node]) {
                return wrong(&format!("{} does not count", NAMES[node]));
            }
        }
        if self.relays_are_wanted(primary) && database.upstreams.is_empty() {
            return wrong("there is no relay");
        }
        if self.ledger.last_at + 2_000 < self.now {
            return wrong("no write goes through");
        }
        None
    }

    /// Whether others of another region could follow one of theirs, and enough would still acknowledge.
    fn relays_are_wanted(&self, primary: usize) -> bool {
        let others = self.members().into_iter().filter(|&node| node != primary);
        let (near, far): (Vec<usize>, Vec<usize>) =
            others.partition(|&node| self.wish.are_near(NAMES[primary], NAMES[node]));
        2 <= far.len() && (self.wish.acks as usize) <= near.len()
    }

    /// At last, nothing that was promised is missing.
    pub(super) fn check_end(&self) -> Law {
        let primary = (0..self.size).find(|&n| self.nodes[n].postgres.mode == Mode::Primary);
        let Some(primary) = primary else { return Err("there is no primary".to_owned()) };
        let log = &self.nodes[primary].postgres.log;
        let has: BTreeSet<u32> = log.0.iter().map(|record| record.id).collect();
        let acknowledged = self.ledger.acknowledged.iter().filter(|_| self.is_promised());
        for (id, under) in acknowledged {
            law_is(has.contains(id), &format!("write {id} of {under} is lost at last"))?;
        }
        Ok(())
    }

    pub(super) fn writes(&self) -> usize {
        self.ledger.acknowledged.len()
    }
}
