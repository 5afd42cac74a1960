//! A replicated database: what its members tell, what each of them does, and what the leader decides for all.
//!
//! Three parties, none of which asks another: [`Lead`] looks at what the members report and proposes the next
//! [`DatabaseCommand`](crate::agreed::DatabaseCommand); each [`Member`] looks at what is agreed and at its own PostgreSQL and
//! gives the next order to the driver; the driver carries it out and tells what it sees. What is agreed is in
//! [`agreed::Database`](crate::agreed::Database). All of it is plain functions of what was seen, so that a simulator can lead
//! it through any sequence of faults.

mod changes;
mod judge;
mod lead;
mod member;
#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use core::time::Duration;

pub use changes::changes;
pub use judge::{Proof, Pulse, Readable, Sender, readable, why_unfit};
pub use lead::{Lead, Scene, Seen, cannot_lead, cannot_switch};
pub use member::{Descent, Disk, Duty, Local, Member, Order, Part, Server, State, order_of};

use crate::agreed::form::{coded_enum, coded_struct};
use crate::agreed::{Confirm, Position};
use crate::health::Health;
use crate::topology::{Durability, Postgres, RegionFailover, Topology};

/// A member that is silent for this long may be gone.
pub const SILENT_AFTER: Duration = Duration::from_secs(2);

/// What a node says of a database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatabaseSight {
    /// Of its own member, if it is one.
    pub member: Option<MemberSight>,
    /// Whether it reaches PostgreSQL on each other member's node, by a new connection.
    pub ports: BTreeMap<String, Health>,
    /// Why nothing is done although something is wrong, if this node leads.
    pub stuck: Option<String>,
}

coded_struct!(DatabaseSight { member, ports, stuck });

impl DatabaseSight {
    /// Whether anything differs that others act on.
    pub fn differs(&self, other: &DatabaseSight) -> bool {
        let members = match (&self.member, &other.member) {
            (Some(one), Some(other)) => one.differs(other),
            (one, other) => one.is_some() != other.is_some(),
        };
        members || self.ports != other.ports || self.stuck != other.stuck
    }
}

/// What a node says of its member of a database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberSight {
    pub state: MemberState,
    pub system: Option<u64>,
    /// How far its log reaches: what is flushed here, be it written or received.
    pub reaches: Position,
    /// The reign of whose primary's log this one is a part.
    pub lineage: Option<u64>,
    /// It receives nothing any more because of this election, and `reaches` is the end.
    pub stopped: Option<u64>,
    /// It receives from this node.
    pub follows: Option<String>,
    /// The reign under which it is primary, and a write went through here a moment ago.
    pub serves: Option<u64>,
    /// [`Confirm::since`] of the rule for acknowledgements that is in force.
    pub rule: Option<u64>,
    /// The rule for acknowledgements that is in force, and under which all older writes would be acknowledged, too.
    pub confirmed: Option<Confirm>,
    /// A write was acknowledged by others under this reign.
    pub verified: Option<u64>,
    /// It accepts no writes because of the switchover that began at this index, and `reaches` is the end.
    pub closed: Option<u64>,
    /// Members that receive from it.
    pub streams_to: BTreeSet<String>,
    /// How long ago it wrote what each of them has not replayed yet.
    pub lags: BTreeMap<String, Duration>,
    /// Others can be made like it: its timeline is on disk.
    pub is_source: bool,
    /// Members for which it keeps log until they have it.
    pub slots: BTreeSet<String>,
    /// What lies before is no longer in its log.
    pub keeps_from: u64,
    /// Why it must not be chosen as primary.
    pub unfit: Option<String>,
    /// It is primary and asks for another one.
    pub gives_up: Option<String>,
    /// The turn of an upkeep that it has carried out last.
    pub turned: Option<u64>,
    /// Settings that take effect with a restart.
    pub needs_restart: BTreeSet<String>,
    /// One of them gets lower which no standby may have lower than its primary: the primary has to be first.
    pub lowers: bool,
    /// What is wrong, for people.
    pub trouble: String,
    /// Since when it is in this state.
    pub since: Duration,
    pub free_bytes: u64,
}

coded_struct!(MemberSight {
    state,
    system,
    reaches,
    lineage,
    stopped,
    follows,
    serves,
    rule,
    confirmed,
    verified,
    closed,
    streams_to,
    lags,
    is_source,
    slots,
    keeps_from,
    unfit,
    gives_up,
    turned,
    needs_restart,
    lowers,
    trouble,
    since,
    free_bytes,
});

impl MemberSight {
    /// Whether anything differs that others act on; a position that moves does not, unless it is the end.
    pub fn differs(&self, other: &MemberSight) -> bool {
        let steady = |sight: &MemberSight| {
            let ends = sight.stopped.is_some() || sight.closed.is_some();
            MemberSight {
                reaches: if ends { sight.reaches } else { Position::default() },
                keeps_from: 0,
                since: Duration::ZERO,
                free_bytes: 0,
                lags: BTreeMap::new(),
                trouble: String::new(),
                ..sight.clone()
            }
        };
        steady(self) != steady(other)
    }
}

/// What a member is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberState {
    #[default]
    Unknown,
    /// There is no data here.
    Empty,
    /// There is something else in its place, or data that cannot be used.
    Broken,
    Down,
    Starting,
    Standby,
    Primary,
    /// It does not answer.
    Hung,
    /// It is being made like the primary: what differs, or everything.
    Rewinding,
    Cloning,
    /// It ends because people have asked for a restart.
    Restarting,
}

coded_enum!(MemberState, "a state of a member that is not known here", {
    1 = Unknown, 2 = Empty, 3 = Broken, 4 = Down, 5 = Starting, 6 = Standby, 7 = Primary, 8 = Hung, 9 = Rewinding,
    10 = Cloning, 11 = Restarting,
});

impl MemberState {
    pub fn word(self) -> &'static str {
        match self {
            MemberState::Unknown => "unknown",
            MemberState::Empty => "empty",
            MemberState::Broken => "broken",
            MemberState::Down => "down",
            MemberState::Starting => "starting",
            MemberState::Standby => "standby",
            MemberState::Primary => "primary",
            MemberState::Hung => "hung",
            MemberState::Rewinding => "rewinding",
            MemberState::Cloning => "cloning",
            MemberState::Restarting => "restarting",
        }
    }
}

/// What people ask of a database, as far as decisions need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    pub members: BTreeSet<String>,
    /// On how many other members an acknowledged write is; 0: none.
    pub acks: u32,
    /// With so many of them writes go on while there are too few.
    pub acks_min: u32,
    /// Bytes that a standby may lack and still be chosen where nothing is promised.
    pub lag_max: u64,
    /// Who is chosen among equals: the highest. 0 never is.
    pub priorities: BTreeMap<String, u32>,
    /// Where the database is made; `None`: regions play no part.
    pub home: Option<String>,
    /// Where each node stands; empty without a home.
    pub regions: BTreeMap<String, String>,
    pub region_failover: RegionFailover,
}

/// The priority of a member of which the file says nothing.
pub const PRIORITY: u32 = 100;

impl Wish {
    pub fn of(topology: &Topology, postgres: &Postgres) -> Wish {
        let (acks, acks_min) = match postgres.durability {
            Durability::Async => (0, 0),
            Durability::Quorum { acks, acks_min } => (acks.get().into(), acks_min.into()),
        };
        let regions = topology.nodes.iter().filter(|_| postgres.home.is_some());
        let regions = regions.filter_map(|(name, node)| Some((name.clone(), node.region.clone()?)));
        Wish {
            members: postgres.nodes.iter().cloned().collect(),
            acks,
            acks_min,
            lag_max: postgres.lag_limit,
            priorities: postgres.priorities.clone(),
            home: postgres.home.clone(),
            regions: regions.collect(),
            region_failover: postgres.region_failover,
        }
    }

    pub(crate) fn priority(&self, node: &str) -> u32 {
        self.priorities.get(node).copied().unwrap_or(PRIORITY)
    }

    /// Whether both stand in the same region, or regions play no part.
    pub(crate) fn are_near(&self, one: &str, other: &str) -> bool {
        self.regions.get(one) == self.regions.get(other)
    }
}
