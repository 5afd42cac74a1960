//! What the leader decides for all members of a database.

mod election;
mod region;
mod relay;
mod rule;
mod schedule;
mod switchover;
mod upkeep;

use alloc::borrow::ToOwned as _;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use self::rule::acknowledgers;
use self::switchover::why_not_switch;
use super::{MemberSight, MemberState, SILENT_AFTER, Wish};
use crate::agreed::{Confirm, Database, DatabaseCommand};
use crate::health::Health;
use crate::time::{Instant, Timestamp};

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
    /// Nodes on which people work: their members are counted on for nothing.
    pub resting: BTreeSet<String>,
    /// By this node's wall clock, for what people have asked for at a time.
    pub wall: Timestamp,
}

/// What the leader remembers of one database between two looks.
#[derive(Clone, Debug, Default)]
pub struct Lead {
    looked: Option<Instant>,
    /// The reign or election that `since` is about.
    epoch: u64,
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
        if self.epoch != agreed.epoch() {
            self.epoch = agreed.epoch();
            self.since.clear();
        }
        if agreed.election.is_some() {
            return self.choose(now, scene, agreed);
        }
        let ends = self.why_end(now, scene, agreed);
        if let Some(command) = self.begin_reign(scene, agreed) {
            return Some(command);
        }
        if let Some(why) = ends
            && let Some(command) = self.elect(now, scene, agreed, why)
        {
            return Some(command);
        }
        // Nobody can come after this primary now: it is not to stay closed, either.
        self.switch(now, scene, agreed)
            .or_else(|| self.begin_scheduled(scene, agreed))
            .or_else(|| self.keep_up(now, scene, agreed))
            .or_else(|| self.plan_confirm(now, scene, agreed))
            .or_else(|| self.plan_relays(now, scene, agreed))
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
            let Some(known) = known else {
                let why = sight.filter(|sight| !sight.trouble.is_empty());
                let why = why.map_or(String::new(), |sight| format!(": {}", sight.trouble));
                self.stuck =
                    Some(format!("waits for node `{name}` before the database is made{why}"));
                return None;
            };
            sights.insert(name, known);
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
        let empty = empty.max_by_key(|(name, _)| {
            let at_home = scene.wish.home.as_ref() == scene.wish.regions.get(**name);
            (at_home, scene.wish.priority(name), core::cmp::Reverse(name.as_str()))
        });
        let Some((node, _)) = furthest.or(empty) else {
            self.stuck = Some(format!(
                "no member has an empty directory, or data of PostgreSQL, to make the database from: {}",
                troubles(&sights)
            ));
            return None;
        };
        let (database, node) = (scene.name.to_owned(), (*node).clone());
        Some(DatabaseCommand::Create { database, node })
    }

    /// What follows from the primary being there.
    fn begin_reign(&self, scene: &Scene<'_>, agreed: &Database) -> Option<DatabaseCommand> {
        let reign = &agreed.reign;
        let primary = scene.members.get(&reign.primary)?.fresh()?;
        let (database, epoch) = (scene.name.to_owned(), reign.epoch);
        // Who makes it knows how to take over data that lies there: until it serves, it is the maker.
        if let (None, Some(system), Some(_)) = (agreed.system, primary.system, primary.serves) {
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
}

/// What is wrong with each member, in one line.
fn troubles(sights: &BTreeMap<&String, &MemberSight>) -> String {
    let each = sights.iter().map(|(name, sight)| match sight.trouble.as_str() {
        "" => format!("node `{name}`: it is {}", sight.state.word()),
        trouble => format!("node `{name}`: {trouble}"),
    });
    each.collect::<Vec<String>>().join("; ")
}

/// Why a member is not chosen as long as people want nothing else.
fn never(scene: &Scene<'_>, node: &str) -> Option<String> {
    if !scene.wish.members.contains(node) {
        return Some("it is no member".to_owned());
    }
    if scene.resting.contains(node) {
        return Some("it is paused".to_owned());
    }
    (scene.wish.priority(node) == 0).then(|| "its priority is 0".to_owned())
}

/// Whether this member is to be counted on for nothing.
fn is_aside(scene: &Scene<'_>, node: &str) -> bool {
    scene.resting.contains(node) || scene.agreed.is_some_and(|agreed| agreed.is_remade(node))
}

/// Why no election chooses this member now.
pub fn cannot_lead(scene: &Scene<'_>, node: &str) -> Option<String> {
    scene.agreed.and_then(|_| unfit(scene, node))
}

/// Why no switchover makes this member primary now; one that is primary needs none.
pub fn cannot_switch(scene: &Scene<'_>, node: &str) -> Option<String> {
    let agreed = scene.agreed?;
    let primary = &agreed.reign.primary;
    if agreed.election.is_some() {
        return Some("there is no primary that could hand over".to_owned());
    }
    if node == primary { None } else { why_not_switch(scene, primary, node) }
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
