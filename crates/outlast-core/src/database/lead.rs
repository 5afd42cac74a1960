//! What the leader decides for all members of a database.

use alloc::borrow::ToOwned as _;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::{MemberSight, MemberState, SILENT_AFTER, Wish};
use crate::agreed::{
    Confirm, Database, DatabaseCommand, Position, Recruit, Switchover, SwitchoverStep as Step,
};
use crate::health::Health;
#[cfg(test)]
use crate::sim::{Bug, instead};
use crate::time::Instant;

/// Where nothing is promised, an election waits this long for members that are there and have not reported.
const REPORTS_WAIT: Duration = Duration::from_secs(1);

/// The old primary is chosen again only if nobody else can be for this long.
const OLD_PRIMARY_AFTER: Duration = Duration::from_secs(3);

/// Others do not reach the primary, although its node is heard and says that all is well: for this long.
const UNREACHED_AFTER: Duration = Duration::from_secs(2);

/// A primary that is heard but holds no lease gets this long to ask for it again.
const WITHOUT_LEASE: Duration = Duration::from_secs(3);

/// A standby counts for acknowledgements once it has received for this long, and no more once it has not for that long.
const JOINS_AFTER: Duration = Duration::from_millis(500);
const LEAVES_AFTER: Duration = Duration::from_secs(2);

/// A switchover waits this long for a standby that lacks more than it may.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);
const CATCH_UP_BYTES: u64 = 1 << 20;

/// How long an appointed primary may take to be promoted, and how long without a sign of life to be made.
const PROMOTE_MAX: Duration = Duration::from_secs(30);

/// A leader that did not look for this long has seen nothing in between: silence begins anew.
const LOOK_GAP: Duration = Duration::from_secs(1);

/// What is known of one member.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// What its node said last.
    pub sight: Option<MemberSight>,
    /// How long ago that was.
    pub heard_ago: Duration,
    /// Whether most nodes reach its PostgreSQL.
    pub port: Health,
}

/// Everything that a decision is founded on.
#[derive(Clone, Debug)]
pub struct Scene<'a> {
    pub name: &'a str,
    pub wish: &'a Wish,
    /// `None`: it was never made.
    pub agreed: Option<&'a Database>,
    /// Somebody holds the lease of the primary.
    pub leased: bool,
    pub members: BTreeMap<String, Seen>,
    /// People want no automatic failover now.
    pub paused: bool,
}

/// What the leader remembers of one database between two looks.
#[derive(Clone, Debug, Default)]
pub struct Lead {
    looked: Option<Instant>,
    /// Since when something has been so, under a name.
    since: BTreeMap<String, Instant>,
    /// Until then nobody counts as silent.
    blind_until: Instant,
    /// Why nothing is done although something is wrong.
    pub stuck: Option<String>,
}

impl Seen {
    fn fresh(&self) -> Option<&MemberSight> {
        self.sight.as_ref().filter(|_| self.heard_ago <= SILENT_AFTER)
    }
}

impl Lead {
    /// This node leads no more, or not yet.
    pub fn rest(&mut self) {
        *self = Lead::default();
    }

    /// What to have agreed on next.
    pub fn decide(&mut self, now: Instant, scene: &Scene<'_>) -> Option<DatabaseCommand> {
        if self.looked.is_some_and(|looked| LOOK_GAP < now.since(looked)) {
            self.since.clear();
            self.blind_until = now + SILENT_AFTER;
        }
        self.looked = Some(now);
        self.stuck = None;
        let Some(agreed) = scene.agreed else { return self.create(scene) };
        if agreed.election.is_some() {
            return self.choose(now, scene, agreed);
        }
        let ends = self.why_end(now, scene, agreed);
        if let Some(command) = self.begin_reign(scene, agreed) {
            return Some(command);
        }
        if let Some(why) = ends
            && let Some(command) = self.elect(scene, agreed, why)
        {
            return Some(command);
        }
        // Nobody can come after this primary now: it is not to stay closed, either.
        self.switch(now, scene, agreed).or_else(|| self.plan_confirm(now, scene, agreed))
    }

    /// For how long this has been so without a break.
    fn lasts(&mut self, now: Instant, what: &str, is_so: bool) -> Duration {
        if !is_so {
            self.since.remove(what);
            return Duration::ZERO;
        }
        let since = *self.since.entry(what.to_owned()).or_insert(now);
        now.since(since)
    }

    /// All members have to be there: one that is silent may have the data.
    fn create(&mut self, scene: &Scene<'_>) -> Option<DatabaseCommand> {
        let mut sights = BTreeMap::new();
        for name in &scene.wish.members {
            let sight = scene.members.get(name).and_then(Seen::fresh);
            let known = sight.filter(|sight| sight.state != MemberState::Unknown);
            let Some(sight) = known else {
                self.stuck = Some(format!("waits for node `{name}` before the database is made"));
                return None;
            };
            sights.insert(name, sight);
        }
        let data = sights.iter().filter(|(_, sight)| sight.system.is_some());
        let systems: BTreeSet<u64> = data.clone().filter_map(|(_, sight)| sight.system).collect();
        if systems.len() > 1 {
            self.stuck = Some(
                "the nodes have data of different databases: move away what is not to be used"
                    .to_owned(),
            );
            return None;
        }
        let furthest = data.max_by_key(|(name, sight)| {
            (sight.state == MemberState::Primary, sight.reaches, scene.wish.priority(name))
        });
        let empty = sights.iter().filter(|(_, sight)| sight.state == MemberState::Empty);
        let empty = empty
            .max_by_key(|(name, _)| (scene.wish.priority(name), core::cmp::Reverse(name.as_str())));
        let (node, _) = furthest.or(empty)?;
        let (database, node) = (scene.name.to_owned(), (*node).clone());
        Some(DatabaseCommand::Create { database, node })
    }

    /// What follows from the primary being there.
    fn begin_reign(&self, scene: &Scene<'_>, agreed: &Database) -> Option<DatabaseCommand> {
        let reign = &agreed.reign;
        let primary = scene.members.get(&reign.primary)?.fresh()?;
        let (database, epoch) = (scene.name.to_owned(), reign.epoch);
        if let (None, Some(system)) = (agreed.system, primary.system) {
            return Some(DatabaseCommand::Made { database, epoch, system });
        }
        if agreed.system.is_some() && agreed.confirms.is_empty() && scene.wish.acks > 0 {
            // Nothing is acknowledged before there is somebody to have it, too.
            let of = acknowledgers(scene, &reign.primary);
            let to = Confirm { acks: scene.wish.acks, of, ..Confirm::default() };
            return Some(DatabaseCommand::Widen { database, epoch, to });
        }
        // What it acknowledges before it follows the rule would not count.
        let ruled = primary.rule == Some(agreed.rule().since);
        let serves =
            !reign.open && primary.serves == Some(epoch) && ruled && agreed.system.is_some();
        let timeline = primary.reaches.timeline;
        serves.then_some(DatabaseCommand::Open { database, epoch, timeline })
    }

    /// Why the reign has to end now.
    fn why_end(&mut self, now: Instant, scene: &Scene<'_>, agreed: &Database) -> Option<String> {
        let primary = &agreed.reign.primary;
        let seen = scene.members.get(primary).cloned().unwrap_or_default();
        let silent = seen.fresh().is_none() && self.blind_until <= now;
        let unleased = self.lasts(now, "unleased", !scene.leased);
        let down = seen.port == Health::Down;
        let serves = seen.fresh().is_some_and(|sight| sight.serves == Some(agreed.reign.epoch));
        let unreached = self.lasts(now, "unreached", down && serves && agreed.reign.open);
        let waits = !silent && !agreed.reign.open && agreed.system.is_some();
        let unpromoted = self.lasts(now, "unpromoted", waits);
        if silent && !scene.leased {
            return Some(format!("node `{primary}` is silent and its lease is over"));
        }
        if silent && down {
            return Some(format!("node `{primary}` is silent and its PostgreSQL does not answer"));
        }
        if let Some(why) = seen.fresh().and_then(|sight| sight.gives_up.clone()) {
            return Some(why);
        }
        if unreached >= UNREACHED_AFTER {
            return Some(format!("other nodes do not reach PostgreSQL on node `{primary}`"));
        }
        if unleased >= WITHOUT_LEASE && !silent {
            return Some(format!("node `{primary}` does not get its lease back"));
        }
        (unpromoted >= PROMOTE_MAX).then(|| format!("node `{primary}` was not promoted in time"))
    }

    /// Ends the reign if somebody can come after it.
    fn elect(
        &mut self,
        scene: &Scene<'_>,
        agreed: &Database,
        why: String,
    ) -> Option<DatabaseCommand> {
        if scene.paused {
            self.stuck = Some(format!("{why}, but failover is paused"));
            return None;
        }
        let likely: Vec<Recruit> = scene
            .members
            .iter()
            .filter_map(|(name, seen)| {
                let sight = seen.fresh().filter(|sight| sight.state == MemberState::Standby)?;
                recruit(agreed, name, sight)
            })
            .collect();
        let fit = likely.iter().any(|recruit| unfit(scene, &recruit.node).is_none());
        let end = likely.iter().map(|recruit| recruit.reaches).max().unwrap_or_default();
        if !fit || !agreed.is_covered(&likely, end) {
            self.stuck = Some(format!("{why}, but no other member could take over without a loss"));
            return None;
        }
        if agreed.is_async()
            && let Some(short) = lacks_too_much(scene, agreed, &likely)
        {
            self.stuck = Some(format!("{why}, but {short}"));
            return None;
        }
        let (database, epoch) = (scene.name.to_owned(), agreed.reign.epoch);
        let elect = DatabaseCommand::Elect { database, epoch, why };
        #[cfg(test)]
        let elect = instead(Bug::NoElection, elect, self.at_once(scene, agreed, likely)?);
        Some(elect)
    }

    #[cfg(test)]
    fn at_once(
        &self,
        scene: &Scene<'_>,
        agreed: &Database,
        recruits: Vec<Recruit>,
    ) -> Option<DatabaseCommand> {
        let node = recruits.iter().max_by_key(|recruit| recruit.reaches)?.node.clone();
        let next = self.next_rule(scene, &node, &recruits);
        let (database, epoch) = (scene.name.to_owned(), agreed.reign.epoch);
        Some(DatabaseCommand::Appoint { database, epoch, node, recruits, next, losing: false })
    }

    /// Appoints the next primary once the recruits are enough.
    fn choose(
        &mut self,
        now: Instant,
        scene: &Scene<'_>,
        agreed: &Database,
    ) -> Option<DatabaseCommand> {
        let election = agreed.election.as_ref()?;
        let lasts = self.lasts(now, &format!("election {}", election.epoch), true);
        let recruits = recruits(scene, agreed, election.epoch);
        let all_there = scene.members.iter().all(|(name, seen)| {
            let alive = seen.fresh().is_some_and(|sight| {
                sight.state == MemberState::Standby && recruit(agreed, name, sight).is_some()
            });
            !alive || recruits.iter().any(|recruit| recruit.node == *name)
        });
        if agreed.is_async() && !all_there && lasts < REPORTS_WAIT {
            return None;
        }
        if agreed.is_async()
            && let Some(short) = lacks_too_much(scene, agreed, &recruits)
        {
            self.stuck = Some(short);
            return None;
        }
        let candidates = recruits.iter().filter(|recruit| {
            let old = recruit.node == agreed.reign.primary;
            unfit(scene, &recruit.node).is_none()
                && agreed.is_covered(&recruits, recruit.reaches)
                && (!old || OLD_PRIMARY_AFTER <= lasts)
        });
        let best = candidates.max_by_key(|recruit| {
            let free = scene.members.get(&recruit.node).and_then(Seen::fresh);
            let free = free.map(|sight| sight.free_bytes).unwrap_or_default();
            (
                recruit.reaches,
                scene.wish.priority(&recruit.node),
                free >> 30,
                core::cmp::Reverse(&recruit.node),
            )
        });
        let Some(best) = best else {
            self.stuck = Some(missing(scene, agreed, &recruits));
            return None;
        };
        let (node, next) = (best.node.clone(), self.next_rule(scene, &best.node, &recruits));
        let (database, epoch) = (scene.name.to_owned(), election.epoch);
        Some(DatabaseCommand::Appoint { database, epoch, node, recruits, next, losing: false })
    }

    /// Who acknowledges for a new primary: those that can follow it.
    fn next_rule(&self, scene: &Scene<'_>, primary: &str, recruits: &[Recruit]) -> Confirm {
        let acks = scene.wish.acks;
        if acks == 0 {
            return Confirm::default();
        }
        let others = recruits.iter().map(|recruit| &recruit.node);
        let of: BTreeSet<String> = others
            .filter(|name| *name != primary && scene.wish.members.contains(*name))
            .cloned()
            .collect();
        filled(scene, primary, acks, best_of(scene, of))
    }

    /// Keeps the rule for acknowledgements to those that receive.
    fn plan_confirm(
        &mut self,
        now: Instant,
        scene: &Scene<'_>,
        agreed: &Database,
    ) -> Option<DatabaseCommand> {
        let reign = &agreed.reign;
        let primary = scene.members.get(&reign.primary)?.fresh()?.clone();
        if primary.serves != Some(reign.epoch) || !reign.open || agreed.is_closed() {
            return None;
        }
        let (database, epoch, rule) = (scene.name.to_owned(), reign.epoch, agreed.rule());
        if primary.confirmed.as_ref() == Some(&rule) && agreed.confirms.len() > 1 {
            return Some(DatabaseCommand::Settle { database, epoch, to: rule });
        }
        let mut of = BTreeSet::new();
        for name in scene.wish.members.iter().filter(|name| **name != reign.primary) {
            let heard = scene.members.get(name).and_then(Seen::fresh);
            let receives = primary.streams_to.contains(name) && heard.is_some();
            let joined = JOINS_AFTER <= self.lasts(now, &format!("receives {name}"), receives);
            let left = LEAVES_AFTER <= self.lasts(now, &format!("is away {name}"), !receives);
            if joined || rule.of.contains(name) && !left {
                of.insert(name.clone());
            }
        }
        let acks = scene.wish.acks;
        let of = best_of(scene, of);
        let few = of.len() < usize::try_from(acks).unwrap_or(usize::MAX);
        let stays = few && rule.acks == acks && rule.of.is_subset(&scene.wish.members);
        let to = match acks {
            0 => Confirm::default(),
            // Whoever comes first of those that count is as good as any other.
            _ if stays => rule.clone(),
            acks => filled(scene, &reign.primary, acks, of),
        };
        // One change at a time, unless the last one cannot come true.
        let settled = agreed.confirms.len() <= 1;
        let hangs = LEAVES_AFTER <= self.lasts(now, "unsettled", !settled);
        let room = agreed.confirms.len() < crate::agreed::Limit::Confirms.most();
        let may = settled || hangs && room;
        (!to.is_like(&rule) && may).then_some(DatabaseCommand::Widen { database, epoch, to })
    }

    /// The next step of a planned switchover.
    fn switch(
        &mut self,
        now: Instant,
        scene: &Scene<'_>,
        agreed: &Database,
    ) -> Option<DatabaseCommand> {
        let switchover = agreed.switchover.as_ref()?;
        let name = format!("switchover {} {:?}", switchover.begun.index, switchover.step);
        let lasts = self.lasts(now, &name, true);
        let paused = (Step::Close..=Step::PIVOT).contains(&switchover.step);
        let paused = self.lasts(now, &format!("pause {}", switchover.begun.index), paused);
        let still = switchover.from == agreed.reign.primary;
        let (database, begun) = (scene.name.to_owned(), switchover.begun.index);
        let overdue = if switchover.step == Step::CatchUp {
            CATCH_UP_MAX < lasts
        } else {
            switchover.pause_max < paused
        };
        let overdue = overdue || never(scene, &switchover.to).is_some();
        match judge_step(scene, agreed, switchover) {
            Ok(_) if switchover.step == Step::PIVOT && still => {
                self.appoint_planned(scene, agreed, switchover)
            }
            Ok(evidence) => {
                Some(DatabaseCommand::Step { database, begun, step: switchover.step, evidence })
            }
            Err(why) if still && overdue => {
                let why = format!("{}: {why}", switchover.step.words());
                Some(DatabaseCommand::Unwind { database, begun, why })
            }
            Err(why) => {
                self.stuck = Some(why);
                None
            }
        }
    }

    fn appoint_planned(
        &self,
        scene: &Scene<'_>,
        agreed: &Database,
        switchover: &Switchover,
    ) -> Option<DatabaseCommand> {
        // It has all of the old primary's log; who reaches as far as it does has all of it, too.
        let end = scene.members.get(&switchover.to).and_then(Seen::fresh)?.reaches;
        let reached = scene.members.iter().filter_map(|(name, seen)| {
            // What the standby has came from the old primary, be it written after that was closed.
            let has = |sight: &&MemberSight| *name == switchover.from || sight.reaches >= end;
            let sight = seen.fresh().filter(has)?;
            let same = sight.lineage == Some(agreed.reign.epoch);
            same.then(|| Recruit { node: name.clone(), reaches: end })
        });
        let recruits: Vec<Recruit> = reached.collect();
        let next = self.next_rule(scene, &switchover.to, &recruits);
        Some(DatabaseCommand::Appoint {
            database: scene.name.to_owned(),
            epoch: agreed.reign.epoch,
            node: switchover.to.clone(),
            recruits,
            next,
            losing: false,
        })
    }
}

fn end_of(scene: &Scene<'_>, node: &str) -> Position {
    let sight = scene.members.get(node).and_then(Seen::fresh);
    sight.map(|sight| sight.reaches).unwrap_or_default()
}

/// What shows that a step is done, or what is missing.
fn judge_step(
    scene: &Scene<'_>,
    agreed: &Database,
    switchover: &Switchover,
) -> Result<String, String> {
    let sight = |node: &str| {
        let sight = scene.members.get(node).and_then(Seen::fresh);
        sight.ok_or_else(|| format!("node `{node}` is silent"))
    };
    let (from, to) = (sight(&switchover.from), sight(&switchover.to));
    let epoch = agreed.reign.epoch;
    match switchover.step {
        Step::CatchUp => {
            let (from, to) = (from?, to?);
            fit_to_follow(scene, switchover)?;
            let lag = from.reaches.lsn.saturating_sub(to.reaches.lsn);
            if lag > CATCH_UP_BYTES {
                return Err(format!("node `{}` lacks {lag} bytes", switchover.to));
            }
            Ok(format!("lacks {lag} bytes"))
        }
        Step::Close => {
            let closed = from?.closed == Some(switchover.begun.index);
            let end = end_of(scene, &switchover.from);
            if closed { Ok(format!("ends at {end}")) } else { Err("open transactions".to_owned()) }
        }
        Step::LastLog => {
            let from = from?;
            if from.closed != Some(switchover.begun.index) {
                return Err(format!("node `{}` is not known to be closed", switchover.from));
            }
            let end = from.reaches;
            for name in &agreed.rule().of {
                let reaches = scene.members.get(name).and_then(Seen::fresh).map(|s| s.reaches);
                if reaches.is_some_and(|reaches| reaches < end) {
                    return Err(format!("node `{name}` has not received all of it"));
                }
            }
            if to?.reaches < end {
                return Err(format!("node `{}` has not received all of it", switchover.to));
            }
            Ok(format!("has {end}"))
        }
        Step::Examine => fit_to_follow(scene, switchover).map(|()| "fit".to_owned()),
        Step::Promote if switchover.from == agreed.reign.primary => {
            let to = to?;
            // It may have died or lost its data since.
            match to.state == MemberState::Standby && to.lineage == Some(epoch) {
                true => Ok(String::new()),
                false => Err(format!("node `{}` is {}", switchover.to, to.state.word())),
            }
        }
        Step::Promote => match to?.serves == Some(epoch) {
            true => {
                Ok(format!("epoch {epoch}, timeline {}", end_of(scene, &switchover.to).timeline))
            }
            false => Err(format!("node `{}` is being promoted", switchover.to)),
        },
        Step::Route => match agreed.reign.open {
            true => Ok("every node has been told".to_owned()),
            false => Err("it does not serve yet".to_owned()),
        },
        Step::Verify => match to?.verified == Some(epoch) {
            true => Ok("a write was acknowledged".to_owned()),
            false => Err("no write has been acknowledged yet".to_owned()),
        },
        Step::Demote => {
            let from = from?;
            let follows = from.follows.as_ref() == Some(&switchover.to);
            match from.state == MemberState::Standby && follows {
                true => Ok(format!("follows {}", switchover.to)),
                false => Err(format!("node `{}` is {}", switchover.from, from.state.word())),
            }
        }
    }
}

/// Whether the one that is to become primary could.
fn fit_to_follow(scene: &Scene<'_>, switchover: &Switchover) -> Result<(), String> {
    let to = &switchover.to;
    if let Some(why) = unfit(scene, to) {
        return Err(format!("node `{to}`: {why}"));
    }
    let sight = scene.members.get(to).and_then(Seen::fresh);
    let follows = sight.is_some_and(|sight| {
        sight.state == MemberState::Standby && sight.follows.as_ref() == Some(&switchover.from)
    });
    if follows { Ok(()) } else { Err(format!("node `{to}` does not follow `{}`", switchover.from)) }
}

/// Why a member is not chosen as long as people want nothing else.
fn never(scene: &Scene<'_>, node: &str) -> Option<String> {
    if !scene.wish.members.contains(node) {
        return Some("it is no member".to_owned());
    }
    (scene.wish.priority(node) == 0).then(|| "its priority is 0".to_owned())
}

/// Why a member must not be chosen.
fn unfit(scene: &Scene<'_>, node: &str) -> Option<String> {
    if let Some(why) = never(scene, node) {
        return Some(why);
    }
    let Some(sight) = scene.members.get(node).and_then(Seen::fresh) else {
        return Some("it is silent".to_owned());
    };
    sight.unfit.clone()
}

fn recruits(scene: &Scene<'_>, agreed: &Database, election: u64) -> Vec<Recruit> {
    let stopped = scene.members.iter().filter_map(|(name, seen)| {
        let sight = seen.fresh().filter(|sight| sight.stopped == Some(election))?;
        recruit(agreed, name, sight)
    });
    stopped.collect()
}

/// Only a log that is a part of the last primary's can be compared with others.
fn recruit(agreed: &Database, name: &str, sight: &MemberSight) -> Option<Recruit> {
    let comparable = sight.system == agreed.system && agreed.is_part(sight.lineage, sight.reaches);
    comparable.then(|| Recruit { node: name.to_owned(), reaches: sight.reaches })
}

/// Whether everybody lacks more than may be lost, as far as the old primary's end is known.
fn lacks_too_much(scene: &Scene<'_>, agreed: &Database, recruits: &[Recruit]) -> Option<String> {
    let last = scene.members.get(&agreed.reign.primary)?.sight.as_ref()?.reaches;
    let best = recruits.iter().map(|recruit| recruit.reaches).max()?;
    let lacks = last.lsn.saturating_sub(best.lsn);
    let too_much = best.timeline == last.timeline && scene.wish.lag_max < lacks;
    too_much
        .then(|| format!("every other member lacks at least {lacks} bytes, more than lag_limit"))
}

/// Who of these acknowledges: who never becomes primary could have a write that nobody else has, and keep it from everybody.
/// Where there are too few others, they acknowledge all the same.
fn best_of(scene: &Scene<'_>, of: BTreeSet<String>) -> BTreeSet<String> {
    let rising: BTreeSet<String> =
        of.iter().filter(|name| scene.wish.priority(name) > 0).cloned().collect();
    let enough = usize::try_from(scene.wish.acks).unwrap_or(usize::MAX) <= rising.len();
    if enough { rising } else { of }
}

fn acknowledgers(scene: &Scene<'_>, primary: &str) -> BTreeSet<String> {
    let others = scene.wish.members.iter().filter(|name| *name != primary);
    best_of(scene, others.cloned().collect())
}

/// Makes up the number of those that acknowledge with members that are away: then writes wait for them.
fn filled(scene: &Scene<'_>, primary: &str, acks: u32, mut of: BTreeSet<String>) -> Confirm {
    for name in acknowledgers(scene, primary) {
        if of.len() >= usize::try_from(acks).unwrap_or(usize::MAX) {
            break;
        }
        of.insert(name);
    }
    Confirm { acks, of, ..Confirm::default() }
}

/// Why nobody can be appointed.
fn missing(scene: &Scene<'_>, agreed: &Database, recruits: &[Recruit]) -> String {
    let silent = |name: &&String| !recruits.iter().any(|recruit| recruit.node == **name);
    let of = agreed.confirms.iter().flat_map(|confirm| &confirm.of);
    let silent: BTreeSet<&String> = of.filter(silent).collect();
    if silent.is_empty() {
        let refusals = recruits.iter().filter_map(|recruit| {
            Some(format!("node `{}`: {}", recruit.node, unfit(scene, &recruit.node)?))
        });
        let refusals: Vec<String> = refusals.collect();
        return format!("waits for a member that can be primary; {}", refusals.join("; "));
    }
    let names: Vec<&str> = silent.into_iter().map(String::as_str).collect();
    format!("an acknowledged write may be on {} only, which has not reported", names.join(", "))
}
