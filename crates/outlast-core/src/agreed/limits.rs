//! How much may be agreed: every bound on what nodes keep in common, in one table.

use core::time::Duration;

use super::form::coded_enum;
use super::reply::Refusal;
use crate::topology::ZONES_MAX;

/// A bound. What would go over it is refused, and nothing changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    NameBytes,
    AddressBytes,
    Nodes,
    TopologyBytes,
    ReasonBytes,
    RoleBytes,
    Leases,
    SubjectBytes,
    WhoBytes,
    Maintenance,
    Silences,
    Procedures,
    Steps,
    EvidenceBytes,
    KeyBytes,
    ValueBytes,
    Keys,
    SpaceBytes,
    Sessions,
    SessionKeys,
    Locks,
    Waiting,
    FactBytes,
    Pairs,
    Databases,
    Confirms,
    Addresses,
    Zones,
    NameChanges,
    NamedThings,
    ZoneRecords,
    ZoneBytes,
}

coded_enum!(Limit, "a limit that is not known here", {
    1 = NameBytes, 2 = AddressBytes, 3 = Nodes, 4 = TopologyBytes, 5 = ReasonBytes, 6 = RoleBytes, 7 = Leases,
    8 = SubjectBytes, 9 = WhoBytes, 10 = Maintenance, 11 = Silences, 12 = Procedures, 13 = Steps,
    14 = EvidenceBytes, 15 = KeyBytes, 16 = ValueBytes, 17 = Keys, 18 = SpaceBytes, 19 = Sessions,
    20 = SessionKeys, 21 = Locks, 22 = Waiting, 23 = FactBytes, 24 = Pairs, 25 = Databases, 26 = Confirms,
    27 = Addresses, 28 = Zones, 29 = NameChanges, 30 = NamedThings, 31 = ZoneRecords, 32 = ZoneBytes,
});

impl Limit {
    pub const ALL: [Limit; 32] = [
        Limit::NameBytes,
        Limit::AddressBytes,
        Limit::Nodes,
        Limit::TopologyBytes,
        Limit::ReasonBytes,
        Limit::RoleBytes,
        Limit::Leases,
        Limit::SubjectBytes,
        Limit::WhoBytes,
        Limit::Maintenance,
        Limit::Silences,
        Limit::Procedures,
        Limit::Steps,
        Limit::EvidenceBytes,
        Limit::KeyBytes,
        Limit::ValueBytes,
        Limit::Keys,
        Limit::SpaceBytes,
        Limit::Sessions,
        Limit::SessionKeys,
        Limit::Locks,
        Limit::Waiting,
        Limit::FactBytes,
        Limit::Pairs,
        Limit::Databases,
        Limit::Confirms,
        Limit::Addresses,
        Limit::Zones,
        Limit::NameChanges,
        Limit::NamedThings,
        Limit::ZoneRecords,
        Limit::ZoneBytes,
    ];

    pub const fn most(self) -> usize {
        match self {
            Limit::NameBytes => 64,
            Limit::AddressBytes => 256,
            Limit::Nodes => 128,
            Limit::TopologyBytes => 256 << 10,
            Limit::ReasonBytes => 1024,
            Limit::RoleBytes => 128,
            Limit::Leases => 1024,
            Limit::SubjectBytes => 512,
            Limit::WhoBytes => 128,
            Limit::Maintenance => 256,
            Limit::Silences => 1024,
            Limit::Procedures => 64,
            Limit::Steps => 32,
            Limit::EvidenceBytes => 1024,
            Limit::KeyBytes => 512,
            Limit::ValueBytes => 64 << 10,
            Limit::Keys => 100_000,
            Limit::SpaceBytes => 64 << 20,
            Limit::Sessions => 4096,
            Limit::SessionKeys => 1024,
            Limit::Locks => 10_000,
            Limit::Waiting => 10_000,
            Limit::FactBytes => 1024,
            Limit::Pairs => 1024,
            Limit::Databases => 64,
            Limit::Confirms => 8,
            Limit::Addresses => 256,
            Limit::Zones => ZONES_MAX,
            Limit::NameChanges => 1024,
            Limit::NamedThings => 4096,
            Limit::ZoneRecords => 4096,
            Limit::ZoneBytes => 1 << 20,
        }
    }

    /// What is counted: "bytes in a key".
    pub const fn words(self) -> &'static str {
        match self {
            Limit::NameBytes => "bytes in a node's name",
            Limit::AddressBytes => "bytes in a node's address",
            Limit::Nodes => "nodes",
            Limit::TopologyBytes => "bytes in a topology",
            Limit::ReasonBytes => "bytes in a reason",
            Limit::RoleBytes => "bytes in the name of a role or a kind",
            Limit::Leases => "leases",
            Limit::SubjectBytes => "bytes in a subject or a matcher",
            Limit::WhoBytes => "bytes in who it was",
            Limit::Maintenance => "maintenance windows",
            Limit::Silences => "silences",
            Limit::Procedures => "procedures in progress",
            Limit::Steps => "steps of a procedure",
            Limit::EvidenceBytes => "bytes in a step's evidence",
            Limit::KeyBytes => "bytes in a key",
            Limit::ValueBytes => "bytes in a value",
            Limit::Keys => "keys",
            Limit::SpaceBytes => "bytes in all keys and values together",
            Limit::Sessions => "sessions",
            Limit::SessionKeys => "keys of one session",
            Limit::Locks => "locks",
            Limit::Waiting => "sessions waiting for locks",
            Limit::FactBytes => "bytes in a line of history",
            Limit::Pairs => "pairs that have changed sides",
            Limit::Databases => "databases",
            Limit::Confirms => "rules for acknowledgements that count at the same time",
            Limit::Addresses => "addresses, or groups of them, that move",
            Limit::Zones => "zones of the name system",
            Limit::NameChanges => "changes of names in one entry",
            Limit::NamedThings => "things that answers of name servers depend on",
            Limit::ZoneRecords => "records that updates have added to a zone",
            Limit::ZoneBytes => "bytes in the records that updates have added to a zone",
        }
    }

    /// Refuses a count that is above this limit.
    pub(super) fn holds(self, count: usize) -> Result<(), Refusal> {
        if count > self.most() { Err(Refusal::Over { limit: self }) } else { Ok(()) }
    }

    /// A text that may be empty and may have several lines.
    pub(super) fn text(self, text: &str) -> Result<(), Refusal> {
        self.holds(text.len())
    }

    /// A text that names something: not empty, and nothing in it that a terminal would obey.
    pub(super) fn name(self, text: &str) -> Result<(), Refusal> {
        self.holds(text.len())?;
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(Refusal::Unfit { limit: self });
        }
        Ok(())
    }
}

/// The shortest and the longest lease or session.
pub const TTL_MIN: Duration = Duration::from_millis(100);
pub const TTL_MAX: Duration = Duration::from_secs(24 * 3600);

/// The longest time that nodes may be given to answer a proposed topology.
pub const PROPOSAL_MAX: Duration = Duration::from_secs(600);

/// The longest pause, maintenance window or silence.
pub const NOTICE_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// The longest time for which a person can have records remembered for less long: what is forgotten ends by itself.
pub const LOWERED_MAX: Duration = Duration::from_secs(24 * 3600);

/// Clients whose last answers are remembered, and how many answers of each.
pub const CLIENTS_KEPT: usize = 4096;
pub const ANSWERS_KEPT: usize = 16;

/// Ids of removed nodes that are kept one by one; lower ones are covered by a floor.
pub const REMOVED_KEPT: usize = 65_536;

/// Procedures that have ended and are still shown.
pub const ENDED_KEPT: usize = 32;

/// Changes of keys that a watcher can still ask for.
pub const CHANGES_KEPT: usize = 8192;

/// Lines of history; older ones are in each node's journal.
pub const HISTORY_KEPT: usize = 10_000;

/// Keys and bytes of one page of a reading.
pub const PAGE_KEYS_MAX: usize = 1000;
pub const PAGE_BYTES_MAX: usize = 1 << 20;

/// Refuses a lease or session that is too short to be renewed in time, or long enough to be forgotten.
pub(super) fn ttl(ttl: Duration) -> Result<(), Refusal> {
    if (TTL_MIN..=TTL_MAX).contains(&ttl) { Ok(()) } else { Err(Refusal::Duration) }
}
