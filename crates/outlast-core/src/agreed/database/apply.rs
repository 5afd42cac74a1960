//! What each command does.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::{
    ANCESTORS_KEPT, Ancestor, Confirm, DATABASE_LEASE, Database, DatabaseCommand, Databases,
    Election, Position, Recruit, Reign, Scheduled, Step, Switchover, Unscheduled, database_role,
};
use crate::agreed::Stamp;
use crate::agreed::history::History;
use crate::agreed::lease::Leases;
use crate::agreed::limits::Limit;
use crate::agreed::registry::Registry;
use crate::agreed::reply::{Refusal, Reply};
#[cfg(test)]
use crate::sim;

impl Databases {
    pub(in crate::agreed) fn apply(
        &mut self,
        at: Stamp,
        command: &DatabaseCommand,
        leases: &mut Leases,
        registry: &Registry,
        history: &mut History,
    ) -> Result<Reply, Refusal> {
        let name = command.database();
        let role = database_role(name);
        let mut say = |node: &str, text: &str| {
            let node = registry.id_of(node).unwrap_or_default();
            history.add(at, node, &format!("postgres.{name}: {text}"));
        };
        if let DatabaseCommand::Create { node, .. } = command {
            let id = registry.id_of(node).ok_or(Refusal::NotRegistered { id: 0 })?;
            if let Some(known) = self.all.get(name) {
                return Err(Refusal::OtherEpoch { current: known.epoch() });
            }
            Limit::Databases.holds(self.all.len() + 1)?;
            leases.appoint(at, &role, id, DATABASE_LEASE)?;
            let reign =
                Reign { primary: node.clone(), epoch: at.index, begun: at, ..Reign::default() };
            self.all.insert(String::from(name), Database { reign, ..Database::default() });
            say(node, &format!("is made here, epoch {}", at.index));
            return Ok(Reply::Granted { epoch: at.index });
        }
        let database = self.all.get_mut(name).ok_or(Refusal::NotHeld)?;
        match command {
            DatabaseCommand::Create { .. } => Err(Refusal::OutOfTurn),
            DatabaseCommand::Made { epoch, system, .. } => {
                database.reigns(*epoch)?;
                if database.system.is_some_and(|known| known != *system) {
                    return Err(Refusal::OutOfTurn);
                }
                database.system = Some(*system);
                Ok(Reply::Done)
            }
            DatabaseCommand::Open { epoch, timeline, .. } => {
                database.reigns(*epoch)?;
                let primary = database.reign.primary.clone();
                let id = registry.id_of(&primary).ok_or(Refusal::NotRegistered { id: 0 })?;
                if leases.get(&role).is_none_or(|lease| lease.holder != id) {
                    // Refused while the lease of the old primary lasts.
                    leases.appoint(at, &role, id, DATABASE_LEASE)?;
                }
                database.open(*timeline);
                say(&primary, &format!("is primary, epoch {epoch}, timeline {timeline}"));
                Ok(Reply::Done)
            }
            DatabaseCommand::Elect { epoch, why, region, .. } => {
                match region {
                    // A person may want another region than before.
                    Some(_) => database.is_at(*epoch)?,
                    None => database.reigns(*epoch)?,
                }
                let (why, region) = (why.clone(), region.clone());
                if let Some(switchover) = database.switchover.take() {
                    database.end_switchover(at, switchover, Some(format!("failed over: {why}")));
                }
                database.keep_what_there_is(at, &why);
                let wanted = region.iter().map(|region| format!(", into region {region}"));
                let wanted: String = wanted.collect();
                say(&database.reign.primary, &format!("is primary no more{wanted}: {why}"));
                database.election = Some(Election { epoch: at.index, why, region, begun: at });
                Ok(Reply::Granted { epoch: at.index })
            }
            DatabaseCommand::Appoint { epoch, node, recruits, next, losing, .. } => {
                database.may_appoint(*epoch, node, recruits, *losing)?;
                let id = registry.id_of(node).ok_or(Refusal::NotRegistered { id: 0 })?;
                let planned = database.election.is_none();
                if planned || database.leaves_no_quorum(node, recruits) {
                    leases.end(&role);
                }
                // Where the old primary may still acknowledge, the end of its lease is waited for.
                if leases.get(&role).is_none_or(|lease| lease.holder == id) {
                    leases.appoint(at, &role, id, DATABASE_LEASE)?;
                }
                database.appoint(at, node, recruits, next);
                let how = if planned { "planned" } else { "after an election" };
                let loss = if *losing { ", accepting a loss" } else { "" };
                say(node, &format!("is appointed, epoch {}, {how}{loss}", at.index));
                Ok(Reply::Granted { epoch: at.index })
            }
            DatabaseCommand::Regain { epoch, .. } => {
                database.reigns(*epoch)?;
                let primary = &database.reign.primary;
                let id = registry.id_of(primary).ok_or(Refusal::NotRegistered { id: 0 })?;
                leases.appoint(at, &role, id, DATABASE_LEASE)?;
                Ok(Reply::Granted { epoch: at.index })
            }
            DatabaseCommand::Widen { epoch, to, .. } => {
                database.reigns(*epoch)?;
                if database.confirms.last().is_some_and(|last| last.is_like(to)) {
                    return Ok(Reply::Done);
                }
                let mut confirms = database.confirms.clone();
                if confirms.is_empty() && database.reign.open {
                    // Until now the primary alone acknowledged. Before it serves it acknowledges nothing, and what it does
                    // afterwards must not count as promised to nobody.
                    confirms.push(Confirm::default());
                }
                Limit::Confirms.holds(confirms.len() + 1)?;
                if to.of.iter().any(|name| database.is_in_remake(name)) {
                    return Err(Refusal::OutOfTurn);
                }
                confirms.push(Confirm { since: at.index, ..to.clone() });
                database.confirms = confirms;
                Ok(Reply::Done)
            }
            DatabaseCommand::Settle { epoch, to, .. } => {
                database.reigns(*epoch)?;
                let last = database.rule();
                if last != *to {
                    return Err(Refusal::OutOfTurn);
                }
                database.confirms = Vec::from([last]);
                say(&database.reign.primary, &format!("writes are acknowledged by {to}"));
                Ok(Reply::Done)
            }
            DatabaseCommand::Switch { epoch, to, who, pause_max, .. } => {
                database.may_switch(*epoch, to)?;
                database.begin_switchover(at, to, who, *pause_max);
                say(to, &format!("is to become primary, asked for by {who}"));
                Ok(Reply::Begun { id: at.index })
            }
            DatabaseCommand::SwitchScheduled { epoch, asked, .. } => {
                let to = database.scheduled.as_ref().map(|scheduled| scheduled.to.clone());
                database.may_switch(*epoch, &to.ok_or(Refusal::NoProcedure)?)?;
                let Scheduled { to, who, pause_max, .. } = database.take_scheduled(*asked)?;
                database.begin_switchover(at, &to, &who, pause_max);
                say(&to, &format!("is to become primary, scheduled by {who}"));
                Ok(Reply::Begun { id: at.index })
            }
            DatabaseCommand::Schedule { to, who, pause_max, when, .. } => {
                let (to, who, pause_max, when) = (to.clone(), who.clone(), *pause_max, *when);
                let text = format!("is to become primary at {when}, asked for by {who}");
                let scheduled = Scheduled { to: to.clone(), who, pause_max, when, asked: at };
                let reply = database.schedule(scheduled)?;
                say(&to, &text);
                Ok(reply)
            }
            DatabaseCommand::Unschedule { asked, why, .. } => {
                let scheduled = database.take_scheduled(*asked)?;
                say(
                    &scheduled.to,
                    &format!("does not become primary at {}: {why}", scheduled.when),
                );
                let why = why.clone();
                database.last_unscheduled = Some(Unscheduled { scheduled, why, at });
                Ok(Reply::Done)
            }
            DatabaseCommand::Upkeep { epoch, plan, .. } => {
                database.reigns(*epoch)?;
                let reply = database.begin_upkeep(at, plan)?;
                let names: Vec<&str> = plan.nodes.iter().map(String::as_str).collect();
                let (word, who) = (plan.kind.word(), &plan.who);
                say("", &format!("{word} of {} asked for by {who}", names.join(", ")));
                Ok(reply)
            }
            DatabaseCommand::Turn { begun, node, .. } => database.begin_turn(at, *begun, node),
            DatabaseCommand::TurnDone { turn, evidence, .. } => {
                let reply = database.end_turn(at, *turn, evidence)?;
                let upkeep = database.upkeep.as_ref();
                if let Some((upkeep, done)) = upkeep.and_then(|u| Some((u, u.done.last()?))) {
                    say(&done.node, &format!("{} done: {evidence}", upkeep.plan.kind.word()));
                }
                Ok(reply)
            }
            DatabaseCommand::UpkeepDone { begun, failed, .. } => {
                let reply = database.end_upkeep(at, *begun, failed.as_ref())?;
                let word =
                    database.last_upkeep.as_ref().map_or("", |end| end.upkeep.plan.kind.word());
                match failed {
                    Some(why) => say("", &format!("{word} given up: {why}")),
                    None => say("", &format!("{word} of all that were asked for is done")),
                }
                Ok(reply)
            }
            DatabaseCommand::Step { begun, step, evidence, .. } => {
                let switchover = database.switching(*begun)?;
                if switchover.step != *step || *step == Step::PIVOT && database.reigns_from() {
                    return Err(Refusal::OutOfTurn);
                }
                if *step == Step::LastLog {
                    // From here on the standby can be told from any other: by the database, and by where it ended.
                    let to = database.switchover.as_ref().map(|switchover| switchover.to.clone());
                    say(&to.unwrap_or_default(), evidence);
                }
                database.step_done(at, evidence);
                Ok(Reply::Done)
            }
            DatabaseCommand::Relay { epoch, upstreams, .. } => {
                database.reigns(*epoch)?;
                database.may_relay(upstreams)?;
                database.upstreams.clone_from(upstreams);
                Ok(Reply::Done)
            }
            DatabaseCommand::Unwind { begun, why, .. } => {
                let switchover = database.switching(*begun)?;
                if switchover.from != database.reign.primary {
                    return Err(Refusal::PastPivot);
                }
                let switchover = switchover.clone();
                database.switchover = None;
                say(&switchover.from, &format!("stays primary: {why}"));
                database.end_switchover(at, switchover, Some(why.clone()));
                Ok(Reply::Done)
            }
        }
    }
}

impl Database {
    /// Refuses what was meant for another reign, or for one that is over.
    fn reigns(&self, epoch: u64) -> Result<(), Refusal> {
        self.is_at(epoch)?;
        if self.election.is_none() { Ok(()) } else { Err(Refusal::OutOfTurn) }
    }

    /// Refuses what was meant for another reign or election.
    fn is_at(&self, epoch: u64) -> Result<(), Refusal> {
        let current = self.epoch();
        if current == epoch { Ok(()) } else { Err(Refusal::OtherEpoch { current }) }
    }

    /// A relay follows the primary itself: then nobody can follow in a circle.
    fn may_relay(&self, upstreams: &BTreeMap<String, String>) -> Result<(), Refusal> {
        let primary = &self.reign.primary;
        let straight = upstreams.iter().all(|(node, relay)| {
            node != primary && relay != primary && !upstreams.contains_key(relay)
        });
        if straight { Ok(()) } else { Err(Refusal::OutOfTurn) }
    }

    fn may_switch(&self, epoch: u64, to: &str) -> Result<(), Refusal> {
        self.reigns(epoch)?;
        if let Some(switchover) = &self.switchover {
            return Err(Refusal::Busy { id: switchover.begun.index });
        }
        let may = self.reign.open && to != self.reign.primary;
        if may { Ok(()) } else { Err(Refusal::OutOfTurn) }
    }

    fn begin_switchover(&mut self, at: Stamp, to: &str, who: &str, pause_max: Duration) {
        self.switchover = Some(Switchover {
            from: self.reign.primary.clone(),
            to: String::from(to),
            who: String::from(who),
            pause_max,
            begun: at,
            step: Step::CatchUp,
            done: Vec::new(),
        });
    }

    fn open(&mut self, timeline: u32) {
        (self.reign.open, self.reign.timeline) = (true, timeline);
        for ancestor in &mut self.ancestors {
            ancestor.timeline = ancestor.timeline.filter(|earlier| *earlier < timeline);
        }
    }

    fn may_appoint(
        &self,
        epoch: u64,
        node: &str,
        recruits: &[Recruit],
        losing: bool,
    ) -> Result<(), Refusal> {
        self.is_at(epoch)?;
        let own = recruits.iter().find(|recruit| recruit.node == node);
        let own = own.ok_or(Refusal::OutOfTurn)?;
        if self.election.is_none() {
            let planned = self.switchover.as_ref();
            let planned = planned.is_some_and(|s| s.step == Step::PIVOT && s.to == node);
            #[cfg(test)]
            let planned = sim::instead(sim::Bug::NoElection, planned, true);
            return if planned { Ok(()) } else { Err(Refusal::OutOfTurn) };
        }
        let covered = self.is_covered(recruits, own.reaches);
        if covered || losing { Ok(()) } else { Err(Refusal::NotCovered) }
    }

    /// Whether the old primary can acknowledge nothing any more, because too few are left that could receive from it.
    fn leaves_no_quorum(&self, node: &str, recruits: &[Recruit]) -> bool {
        let own = recruits.iter().find(|recruit| recruit.node == node);
        !self.is_async() && own.is_some_and(|own| self.is_covered(recruits, own.reaches))
    }

    fn appoint(&mut self, at: Stamp, node: &str, recruits: &[Recruit], next: &Confirm) {
        let from = recruits.iter().find(|recruit| recruit.node == node);
        let from = from.map(|recruit| recruit.reaches).unwrap_or_default();
        let others = || recruits.iter().filter(|recruit| recruit.node != node);
        let promised = !self.is_async();
        self.confirms.clear();
        if promised && !next.is_async() {
            // What the old reign has acknowledged is on the new primary and on whoever has as long a log.
            let same = others().filter(|recruit| recruit.reaches == from);
            let of: BTreeSet<String> = same.map(|recruit| recruit.node.clone()).collect();
            let acks = u32::try_from(of.len().max(1)).unwrap_or(u32::MAX);
            self.confirms.push(Confirm { since: at.index, acks, of });
        }
        self.confirms.push(Confirm { since: at.index, ..next.clone() });
        self.remember_reign(from);
        let follow = others().filter(|recruit| recruit.reaches <= from);
        self.reign = Reign {
            primary: String::from(node),
            epoch: at.index,
            open: false,
            timeline: 0,
            from,
            recruits: follow.map(|recruit| recruit.node.clone()).collect(),
            begun: at,
        };
        self.election = None;
        self.upstreams.clear();
    }

    /// Its log goes on in that of the next primary, from here on.
    fn remember_reign(&mut self, from: Position) {
        let Reign { epoch, open, timeline, .. } = self.reign;
        for ancestor in &mut self.ancestors {
            ancestor.until = ancestor.until.min(from);
            // One that was never open may have made a timeline of any number.
            ancestor.timeline = ancestor.timeline.filter(|_| open);
        }
        let timeline = open.then_some(timeline);
        self.ancestors.push(Ancestor { epoch, until: from, timeline });
        let kept = self.ancestors.len().saturating_sub(ANCESTORS_KEPT);
        self.ancestors.drain(..kept);
    }
}
