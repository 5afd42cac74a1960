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

mod apply;
mod command;
mod confirm;
mod schedule;
mod switchover;
mod upkeep;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

pub use command::DatabaseCommand;
pub use confirm::{Confirm, Recruit};
pub use schedule::{Scheduled, Unscheduled};
pub use switchover::{Step, StepDone, Switchover, SwitchoverEnd};
pub(crate) use upkeep::TURNS_MAX;
pub use upkeep::{Turn, TurnDone, Upkeep, UpkeepEnd, UpkeepKind, UpkeepPlan};

use super::Stamp;
#[cfg(test)]
use super::bugs::{Bug, instead};
use super::form::{coded_list, coded_struct};
use super::reply::Refusal;
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

coded_list!(Confirm, Recruit, StepDone, Ancestor, TurnDone);

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
    /// A person wants a primary in this region.
    pub region: Option<String>,
    pub begun: Stamp,
}

coded_struct!(Election { epoch, why, region, begun });

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
    /// Members that follow a relay, which itself follows the primary; all others follow the primary.
    pub upstreams: BTreeMap<String, String>,
    pub switchover: Option<Switchover>,
    pub last_switchover: Option<SwitchoverEnd>,
    pub scheduled: Option<Scheduled>,
    pub last_unscheduled: Option<Unscheduled>,
    pub upkeep: Option<Upkeep>,
    pub last_upkeep: Option<UpkeepEnd>,
}

coded_struct!(Database {
    system,
    reign,
    ancestors,
    election,
    confirms,
    upstreams,
    switchover,
    last_switchover,
    scheduled,
    last_unscheduled,
    upkeep,
    last_upkeep
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

    /// The primary, while clients may be led to it.
    pub fn serving(&self) -> Option<&String> {
        (self.reign.open && self.election.is_none()).then_some(&self.reign.primary)
    }

    /// Whom this member follows, by what is agreed.
    pub fn upstream(&self, node: &str) -> &str {
        self.upstreams.get(node).unwrap_or(&self.reign.primary)
    }

    /// Members that follow this one.
    pub fn followers<'a>(&'a self, relay: &'a str) -> impl Iterator<Item = &'a str> {
        let following = self.upstreams.iter().filter(move |(_, upstream)| *upstream == relay);
        following.map(|(node, _)| node.as_str())
    }

    /// Whether a write could be acknowledged by the primary alone.
    pub fn is_async(&self) -> bool {
        self.confirms.iter().any(Confirm::is_async) || self.confirms.is_empty()
    }

    /// Whether these recruits have everything that was acknowledged, if one with a log as long as `at` goes on.
    pub fn is_covered(&self, recruits: &[Recruit], at: Position) -> bool {
        let behind = recruits.iter().filter(|recruit| recruit.reaches <= at);
        let behind: BTreeSet<&str> = behind.map(|recruit| recruit.node.as_str()).collect();
        let covered = |confirm: &Confirm| confirm.is_covered(&behind, &self.reign.primary);
        let covered =
            self.confirms.iter().all(covered) && self.mixed().as_ref().is_none_or(covered);
        #[cfg(test)]
        let covered = instead(Bug::Uncovered, covered, true);
        covered
    }

    /// While the rule changes, PostgreSQL's senders go by it one after the other, and some count who counts under another one: as
    /// few acknowledge as any rule asks for, of the members of all. What an old reign has acknowledged does not mix.
    fn mixed(&self) -> Option<Confirm> {
        let old = |at: usize| self.confirms.get(at + 1).map(|next| next.since);
        let (_, rules): (Vec<_>, Vec<_>) = self
            .confirms
            .iter()
            .enumerate()
            .filter(|(_, confirm)| confirm.acks > 0)
            .partition(|(at, confirm)| old(*at) == Some(confirm.since));
        let acks = rules.iter().map(|(_, confirm)| confirm.acks).min()?;
        let of = rules.iter().flat_map(|(_, confirm)| confirm.of.iter().cloned()).collect();
        Some(Confirm { acks, of, ..Confirm::default() })
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
    /// both tell them apart. One that has got on to a later timeline got there from a server that had begun to follow
    /// somebody else, and whose log it has is not known.
    pub fn can_rewind(&self, lineage: Option<u64>, reaches: Position) -> bool {
        let ancestor = || self.ancestor(lineage).and_then(|ancestor| ancestor.timeline);
        lineage == Some(self.reign.epoch)
            || ancestor().is_some_and(|timeline| reaches.timeline <= timeline)
    }

    fn ancestor(&self, lineage: Option<u64>) -> Option<&Ancestor> {
        self.ancestors.iter().find(|ancestor| Some(ancestor.epoch) == lineage)
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

    /// Whether somebody may renew a lease of this role that has this epoch. None is asked for by the commands of leases. One that
    /// is older than the reign is that of a primary before, and runs out.
    pub(super) fn admits_renewal(&self, role: &str, epoch: Option<u64>) -> Result<(), Refusal> {
        let Some(database) = database_of_role(role) else { return Ok(()) };
        let database = self.all.get(database).ok_or(Refusal::NotHeld)?;
        let old = epoch.is_none_or(|epoch| epoch < database.reign.epoch);
        let over = old || database.election.is_some();
        #[cfg(test)]
        let over = instead(Bug::RenewedAfterElection, over, epoch.is_none());
        if over { Err(Refusal::OtherEpoch { current: database.epoch() }) } else { Ok(()) }
    }
}
