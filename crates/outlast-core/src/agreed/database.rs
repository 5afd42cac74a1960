//! Who is primary of each database, and on which members an acknowledged write must be.
//!
//! A *reign* is the time of one primary; its epoch is the log index at which it was appointed, and fences every order of it.
//! A reign ends by an *election*: from then on no member receives anything from the old primary, and each reports how far
//! its log reaches. The next primary is appointed once the members that have reported (the *recruits*) intersect every set
//! of members that could have acknowledged a write. A planned switchover goes from one reign to the next without an
//! election, because the old primary has been closed first.
//!
//! Which sets those are is agreed on, too ([`Confirm`]). It changes in two steps: first both the old and the new one count,
//! and the old one goes only once what it has acknowledged is also on the new one.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use super::Stamp;
#[cfg(test)]
use super::bugs::{Bug, instead};
use super::form::{coded_enum, coded_list, coded_struct};
use super::history::History;
use super::lease::Leases;
use super::limits::Limit;
use super::registry::Registry;
use super::reply::{Refusal, Reply};
#[cfg(test)]
use crate::sim;

/// How long a primary may serve after it last asked a majority.
pub const DATABASE_LEASE: Duration = Duration::from_secs(5);

const ROLE: &str = "postgres/";

/// The role under which the primary of a database serves.
pub fn database_role(database: &str) -> String {
    format!("{ROLE}{database}")
}

/// The database whose primary has this role.
pub fn database_of_role(role: &str) -> Option<&str> {
    role.strip_prefix(ROLE)
}

/// How far a member's log reaches: first by timeline, then by byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub timeline: u32,
    pub lsn: u64,
}

coded_struct!(Position { timeline, lsn });

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X} on timeline {}", self.lsn >> 32, self.lsn & 0xffff_ffff, self.timeline)
    }
}

/// A rule for acknowledgements: a write is acknowledged once it is on the primary and on `acks` of these members.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Confirm {
    /// The log index from which on it counts; 0: it is proposed. The same rule again is another one: what was said of the
    /// first does not hold for it.
    pub since: u64,
    /// 0: the primary alone acknowledges.
    pub acks: u32,
    pub of: BTreeSet<String>,
}

coded_struct!(Confirm { since, acks, of });

impl Confirm {
    pub fn is_async(&self) -> bool {
        self.acks == 0
    }

    /// Whether both ask for the same, whenever they were agreed on.
    pub fn is_like(&self, other: &Confirm) -> bool {
        (self.acks, &self.of) == (other.acks, &other.of)
    }

    /// Whether these members, stopped, leave no set that can acknowledge, and have seen all that was acknowledged.
    pub fn is_covered(&self, recruits: &BTreeSet<&str>, primary: &str) -> bool {
        let among = self.of.iter().filter(|name| recruits.contains(name.as_str())).count();
        self.is_async()
            || recruits.contains(primary)
            || among + usize::try_from(self.acks).unwrap_or(usize::MAX) > self.of.len() && among > 0
    }
}

impl fmt::Display for Confirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_async() {
            return f.write_str("the primary alone");
        }
        let names: Vec<&str> = self.of.iter().map(String::as_str).collect();
        write!(f, "the primary and {} of {}", self.acks, names.join(", "))
    }
}

/// A member that receives nothing any more, and how far its log reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recruit {
    pub node: String,
    pub reaches: Position,
}

coded_struct!(Recruit { node, reaches });

coded_list!(Confirm, Recruit, StepDone, Ancestor);

/// What can happen to a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseCommand {
    /// The first primary makes it, or takes over what lies on its disk.
    Create { database: String, node: String },
    /// It is there, under this identifier of PostgreSQL's.
    Made { database: String, epoch: u64, system: u64 },
    /// The primary of this reign serves, on this timeline.
    Open { database: String, epoch: u64, timeline: u32 },
    /// Ends the reign.
    Elect { database: String, epoch: u64, why: String },
    /// `epoch` is that of the election, or of the reign that a switchover ends. `next` is the rule that the new primary
    /// follows. `losing`: a person accepts that acknowledged writes may be lost.
    Appoint {
        database: String,
        epoch: u64,
        node: String,
        recruits: Vec<Recruit>,
        next: Confirm,
        losing: bool,
    },
    /// A primary whose lease has run out goes on with its reign, which nobody has ended.
    Regain { database: String, epoch: u64 },
    /// Both this rule and the present one count from now on.
    Widen { database: String, epoch: u64, to: Confirm },
    /// What was acknowledged under older rules is also acknowledged under this one, which alone counts from now on.
    Settle { database: String, epoch: u64, to: Confirm },
    /// A person has the primary move. `pause_max` is how long writes may be paused.
    Switch { database: String, epoch: u64, to: String, who: String, pause_max: Duration },
    /// A step of the switchover that began at this index is done.
    Step { database: String, begun: u64, step: Step, evidence: String },
    /// The switchover is given up and everything undone.
    Unwind { database: String, begun: u64, why: String },
}

coded_enum!(DatabaseCommand, "a command about databases that is not known here", {
    1 = Create { database, node }, 2 = Made { database, epoch, system }, 3 = Open { database, epoch, timeline },
    4 = Elect { database, epoch, why }, 5 = Appoint { database, epoch, node, recruits, next, losing },
    6 = Regain { database, epoch }, 7 = Widen { database, epoch, to }, 8 = Settle { database, epoch, to },
    9 = Switch { database, epoch, to, who, pause_max }, 10 = Step { database, begun, step, evidence },
    11 = Unwind { database, begun, why },
});

impl DatabaseCommand {
    pub fn database(&self) -> &str {
        match self {
            DatabaseCommand::Create { database, .. }
            | DatabaseCommand::Made { database, .. }
            | DatabaseCommand::Open { database, .. }
            | DatabaseCommand::Elect { database, .. }
            | DatabaseCommand::Appoint { database, .. }
            | DatabaseCommand::Regain { database, .. }
            | DatabaseCommand::Widen { database, .. }
            | DatabaseCommand::Settle { database, .. }
            | DatabaseCommand::Switch { database, .. }
            | DatabaseCommand::Step { database, .. }
            | DatabaseCommand::Unwind { database, .. } => database,
        }
    }

    pub(super) fn check(&self) -> Result<(), Refusal> {
        Limit::SubjectBytes.name(self.database())?;
        match self {
            DatabaseCommand::Create { node, .. } => Limit::NameBytes.name(node),
            DatabaseCommand::Elect { why, .. } | DatabaseCommand::Unwind { why, .. } => {
                Limit::ReasonBytes.text(why)
            }
            DatabaseCommand::Appoint { node, recruits, next, .. } => {
                Limit::NameBytes.name(node)?;
                Limit::Nodes.holds(recruits.len())?;
                Limit::Nodes.holds(next.of.len())?;
                recruits.iter().try_for_each(|recruit| Limit::NameBytes.name(&recruit.node))?;
                next.of.iter().try_for_each(|name| Limit::NameBytes.name(name))
            }
            DatabaseCommand::Widen { to, .. } | DatabaseCommand::Settle { to, .. } => {
                Limit::Nodes.holds(to.of.len())?;
                to.of.iter().try_for_each(|name| Limit::NameBytes.name(name))
            }
            DatabaseCommand::Switch { to, who, .. } => {
                Limit::NameBytes.name(to)?;
                Limit::WhoBytes.name(who)
            }
            DatabaseCommand::Step { evidence, .. } => Limit::EvidenceBytes.text(evidence),
            DatabaseCommand::Made { .. }
            | DatabaseCommand::Open { .. }
            | DatabaseCommand::Regain { .. } => Ok(()),
        }
    }

    /// An epoch is given once, and each names the state that it was meant for.
    pub(super) fn repeatable(&self) -> bool {
        true
    }
}

/// A step of a planned switchover, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The standby has caught up.
    CatchUp,
    /// The primary accepts no more writes.
    Close,
    /// The last of its log is on the standby.
    LastLog,
    /// The standby is fit to be primary.
    Examine,
    /// The point of no return: the standby is promoted.
    Promote,
    /// Clients are led to it.
    Route,
    /// A write goes through.
    Verify,
    /// The old primary is a standby.
    Demote,
}

coded_enum!(Step, "a step that is not known here", {
    1 = CatchUp, 2 = Close, 3 = LastLog, 4 = Examine, 5 = Promote, 6 = Route, 7 = Verify, 8 = Demote,
});

impl Step {
    pub const ALL: [Step; 8] = [
        Step::CatchUp,
        Step::Close,
        Step::LastLog,
        Step::Examine,
        Step::Promote,
        Step::Route,
        Step::Verify,
        Step::Demote,
    ];

    /// From here on there is no way back.
    pub const PIVOT: Step = Step::Promote;

    fn next(self) -> Option<Step> {
        Step::ALL.iter().copied().find(|step| self < *step)
    }

    pub fn words(self) -> &'static str {
        match self {
            Step::CatchUp => "check that the standby has caught up",
            Step::Close => "make the primary read-only",
            Step::LastLog => "wait until the last of its log is on the standby",
            Step::Examine => "check the standby's health",
            Step::Promote => "promote the standby",
            Step::Route => "point clients at it",
            Step::Verify => "verify that a write goes through",
            Step::Demote => "make the old primary a standby",
        }
    }
}

/// The time of one primary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reign {
    pub primary: String,
    pub epoch: u64,
    /// It serves; until then it is made or promoted.
    pub open: bool,
    /// Known once it is open.
    pub timeline: u32,
    /// How far the primary's log reached when it was appointed.
    pub from: Position,
    /// Members whose log was no longer than that: they can follow at once.
    pub recruits: BTreeSet<String>,
    pub begun: Stamp,
}

coded_struct!(Reign { primary, epoch, open, timeline, from, recruits, begun });

/// An earlier reign, from whose log the present primary's has grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ancestor {
    pub epoch: u64,
    /// A log of that reign that reaches no further is a part of the present primary's.
    pub until: Position,
    /// Its timeline, if nobody else can have made another one of the same number.
    pub timeline: Option<u32>,
}

coded_struct!(Ancestor { epoch, until, timeline });

/// Earlier reigns that are remembered. Who slept longer is cloned.
const ANCESTORS_KEPT: usize = 16;

/// The reign is over; who comes next is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Election {
    pub epoch: u64,
    pub why: String,
    pub begun: Stamp,
}

coded_struct!(Election { epoch, why, begun });

/// A planned change of primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switchover {
    pub from: String,
    pub to: String,
    pub who: String,
    pub pause_max: Duration,
    pub begun: Stamp,
    /// What is being done.
    pub step: Step,
    pub done: Vec<StepDone>,
}

coded_struct!(Switchover { from, to, who, pause_max, begun, step, done });

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepDone {
    pub step: Step,
    pub evidence: String,
    pub at: Stamp,
}

coded_struct!(StepDone { step, evidence, at });

/// How the last switchover ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchoverEnd {
    pub switchover: Switchover,
    /// Why it was given up; `None`: it was carried out.
    pub failed: Option<String>,
    pub at: Stamp,
}

coded_struct!(SwitchoverEnd { switchover, failed, at });

/// What is agreed on of one database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Database {
    /// PostgreSQL's identifier; `None`: it is being made.
    pub system: Option<u64>,
    pub reign: Reign,
    /// The oldest first.
    pub ancestors: Vec<Ancestor>,
    pub election: Option<Election>,
    /// Rules under which writes may have been acknowledged; the primary follows the last one.
    pub confirms: Vec<Confirm>,
    pub switchover: Option<Switchover>,
    pub last_switchover: Option<SwitchoverEnd>,
}

coded_struct!(Database {
    system,
    reign,
    ancestors,
    election,
    confirms,
    switchover,
    last_switchover
});

impl Database {
    /// The highest epoch that was given.
    pub fn epoch(&self) -> u64 {
        self.election.as_ref().map_or(self.reign.epoch, |election| election.epoch)
    }

    /// The rule that the primary follows.
    pub fn rule(&self) -> Confirm {
        self.confirms.last().cloned().unwrap_or_default()
    }

    /// Whether a write could be acknowledged by the primary alone.
    pub fn is_async(&self) -> bool {
        self.confirms.iter().any(Confirm::is_async) || self.confirms.is_empty()
    }

    /// Whether these recruits have everything that was acknowledged, if one with a log as long as `at` goes on.
    pub fn is_covered(&self, recruits: &[Recruit], at: Position) -> bool {
        let behind = recruits.iter().filter(|recruit| recruit.reaches <= at);
        let behind: BTreeSet<&str> = behind.map(|recruit| recruit.node.as_str()).collect();
        let covered =
            self.confirms.iter().all(|confirm| confirm.is_covered(&behind, &self.reign.primary));
        #[cfg(test)]
        let covered = instead(Bug::Uncovered, covered, true);
        covered
    }

    /// Whether a log that was last fed under this reign, and reaches this far, is a part of the present primary's. Two logs of
    /// different reigns can have timelines of the same number, so that positions alone say nothing.
    pub fn is_part(&self, lineage: Option<u64>, reaches: Position) -> bool {
        let is_part = lineage == Some(self.reign.epoch)
            || self.ancestor(lineage).is_some_and(|ancestor| reaches <= ancestor.until);
        #[cfg(test)]
        let is_part = sim::instead(sim::Bug::LineageIgnored, is_part, true);
        is_part
    }

    /// Whether such a log has more than the present primary's, and the place where they part can be found: the timelines of
    /// both tell them apart.
    pub fn can_rewind(&self, lineage: Option<u64>) -> bool {
        lineage == Some(self.reign.epoch)
            || self.ancestor(lineage).is_some_and(|ancestor| ancestor.timeline.is_some())
    }

    fn ancestor(&self, lineage: Option<u64>) -> Option<&Ancestor> {
        self.ancestors.iter().find(|ancestor| Some(ancestor.epoch) == lineage)
    }

    /// Whether the primary is to accept no writes because it is about to hand over.
    pub fn is_closed(&self) -> bool {
        self.switchover.as_ref().is_some_and(|switchover| {
            (Step::Close..=Step::PIVOT).contains(&switchover.step)
                && switchover.from == self.reign.primary
        })
    }
}

/// Every database that was ever made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Databases {
    all: BTreeMap<String, Database>,
}

coded_struct!(Databases { all });

impl Databases {
    pub fn get(&self, database: &str) -> Option<&Database> {
        self.all.get(database)
    }

    pub fn all(&self) -> &BTreeMap<String, Database> {
        &self.all
    }

    /// Whether somebody may ask for a lease of this role or renew it by the commands of leases.
    pub(super) fn admits_renewal(&self, role: &str, grant: bool) -> Result<(), Refusal> {
        let Some(database) = database_of_role(role) else { return Ok(()) };
        let database = self.all.get(database).ok_or(Refusal::NotHeld)?;
        let over = grant || database.election.is_some();
        #[cfg(test)]
        let over = instead(Bug::RenewedAfterElection, over, grant);
        if over { Err(Refusal::OtherEpoch { current: database.epoch() }) } else { Ok(()) }
    }

    pub(super) fn apply(
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
                    // Promoted early: the lease of the old primary has to be over first.
                    leases.appoint(at, &role, id, DATABASE_LEASE)?;
                }
                database.open(*timeline);
                say(&primary, &format!("is primary, epoch {epoch}, timeline {timeline}"));
                Ok(Reply::Done)
            }
            DatabaseCommand::Elect { epoch, why, .. } => {
                database.reigns(*epoch)?;
                if !database.is_async() {
                    // Nothing can be acknowledged once the recruits have stopped: its end need not be waited for.
                    leases.end(&role);
                }
                let election = Election { epoch: at.index, why: why.clone(), begun: at };
                database.election = Some(election);
                if let Some(switchover) = database.switchover.take() {
                    database.end_switchover(at, switchover, Some(format!("failed over: {why}")));
                }
                say(&database.reign.primary, &format!("is primary no more: {why}"));
                Ok(Reply::Granted { epoch: at.index })
            }
            DatabaseCommand::Appoint { epoch, node, recruits, next, losing, .. } => {
                database.may_appoint(*epoch, node, recruits, *losing)?;
                let id = registry.id_of(node).ok_or(Refusal::NotRegistered { id: 0 })?;
                let planned = database.election.is_none();
                if planned {
                    leases.end(&role);
                }
                // In asynchronous mode the old lease may still last: then it is granted when it opens.
                if leases.get(&role).is_none() {
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
                if confirms.is_empty() {
                    // Until now the primary alone acknowledged.
                    confirms.push(Confirm::default());
                }
                Limit::Confirms.holds(confirms.len() + 1)?;
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
                database.reigns(*epoch)?;
                if let Some(switchover) = &database.switchover {
                    return Err(Refusal::Busy { id: switchover.begun.index });
                }
                if !database.reign.open || *to == database.reign.primary {
                    return Err(Refusal::OutOfTurn);
                }
                database.switchover = Some(Switchover {
                    from: database.reign.primary.clone(),
                    to: to.clone(),
                    who: who.clone(),
                    pause_max: *pause_max,
                    begun: at,
                    step: Step::CatchUp,
                    done: Vec::new(),
                });
                say(to, &format!("is to become primary, asked for by {who}"));
                Ok(Reply::Begun { id: at.index })
            }
            DatabaseCommand::Step { begun, step, evidence, .. } => {
                let switchover = database.switching(*begun)?;
                if switchover.step != *step || *step == Step::PIVOT && database.reigns_from() {
                    return Err(Refusal::OutOfTurn);
                }
                database.step_done(at, evidence);
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

    fn open(&mut self, timeline: u32) {
        (self.reign.open, self.reign.timeline) = (true, timeline);
        for ancestor in &mut self.ancestors {
            ancestor.timeline = ancestor.timeline.filter(|earlier| *earlier < timeline);
        }
    }

    fn switching(&self, begun: u64) -> Result<&Switchover, Refusal> {
        let switchover = self.switchover.as_ref().filter(|s| s.begun.index == begun);
        switchover.ok_or(Refusal::NoProcedure)
    }

    /// Whether the primary that is to go still reigns.
    fn reigns_from(&self) -> bool {
        self.switchover.as_ref().is_some_and(|s| s.from == self.reign.primary)
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

    fn step_done(&mut self, at: Stamp, evidence: &str) {
        let Some(mut switchover) = self.switchover.take() else { return };
        let evidence = String::from(evidence);
        switchover.done.push(StepDone { step: switchover.step, evidence, at });
        match switchover.step.next() {
            Some(next) => {
                switchover.step = next;
                self.switchover = Some(switchover);
            }
            None => self.end_switchover(at, switchover, None),
        }
    }

    fn end_switchover(&mut self, at: Stamp, switchover: Switchover, failed: Option<String>) {
        self.last_switchover = Some(SwitchoverEnd { switchover, failed, at });
    }
}
