//! Zones of the name system and what decides their answers: `[dns."ZONE"]`.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use core::num::{NonZeroU16, NonZeroU32};
use core::time::Duration;

use super::{Failback, Network, PartRef, Probe};

/// Zones that the nodes of one cluster can agree on.
pub const ZONES_MAX: usize = 256;

/// Values in one answer of policy multivalue (Route 53: up to eight healthy records).
pub const MULTIVALUE_MAX: usize = 8;

/// How deep policies may lie in each other, aliases counted.
pub const POLICY_DEPTH_MAX: usize = 8;

/// Values and inner policies of one policy.
pub const ENTRIES_MAX: usize = 100;

/// The highest weight.
pub const WEIGHT_MAX: u16 = 1000;

/// A shorter TTL is not made out of a longer one while something is down.
pub const TTL_DEGRADED_MIN: Duration = Duration::from_secs(5);

/// `[dns."ZONE"]`
#[derive(Clone, Debug, PartialEq)]
pub struct Zone {
    pub listen: Option<SocketAddr>,
    pub records: Vec<Record>,
    /// Names of the zone's name servers, absolute without a dot at the end. Empty: the zone's own name.
    pub ns: Vec<String>,
    pub soa: Soa,
    /// Who is told of changes and may fetch the zone.
    pub secondaries: Vec<SocketAddr>,
    /// The file that holds the TSIG keys.
    pub keys: Option<String>,
    /// Names of keys whose holders may change the zone (RFC 2136).
    pub update: Vec<String>,
    /// Other name servers that the same records are kept in. Each once.
    pub elsewhere: Vec<Elsewhere>,
    pub dnssec: bool,
    /// Answers a second to one network of clients; `None`: as many as are asked for.
    pub rate_limit: Option<NonZeroU32>,
    /// DNS cookies (RFC 7873).
    pub cookies: bool,
    pub rule: VerdictRule,
    /// Where clients are, by their networks. Each network once.
    pub regions: BTreeMap<String, Vec<Network>>,
    /// From the region of a client to that of a value.
    pub latencies: BTreeMap<(String, String), Duration>,
}

/// Another name server that a zone's records are kept in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Elsewhere {
    /// Takes updates (RFC 2136) that are signed with a key of the file of keys.
    Rfc2136 { server: SocketAddr, key: String },
    /// The hosted zone of this id in AWS Route 53.
    Route53(String),
}

impl fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Elsewhere::Rfc2136 { server, .. } => server.fmt(f),
            Elsewhere::Route53(zone) => write!(f, "Route 53 zone {zone}"),
        }
    }
}

/// The start of authority (RFC 1035 3.3.13), but for the serial number, which counts changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Soa {
    /// The first name server; `None`: the first of `ns`.
    pub mname: Option<String>,
    /// The mail address of who is responsible; `None`: hostmaster of the zone.
    pub rname: Option<String>,
    pub refresh: Duration,
    pub retry: Duration,
    pub expire: Duration,
    /// How long it is remembered that a name is not there (RFC 2308).
    pub minimum: Duration,
}

/// When the vantage points together say that something is up or down.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum VerdictRule {
    /// More than half say so.
    #[default]
    Majority,
    /// Up if more than this share say up, else down. Route 53: 0.18.
    Above(f64),
}

/// One name and type, and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Within the zone: `@` is the zone itself, `*` in front stands for every name.
    pub name: String,
    pub kind: RecordKind,
    pub policy: Policy,
    /// Of the whole record, on top of what its values have. `None`: it counts as up.
    pub check: Option<HealthCheck>,
    pub ttl: Duration,
    /// While something of it is down or is about to be moved; not above `ttl`.
    pub ttl_degraded: Duration,
    pub when_all_down: WhenAllDown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    A,
    Aaaa,
    Cname,
    Txt,
}

impl RecordKind {
    pub const ALL: [RecordKind; 4] =
        [RecordKind::A, RecordKind::Aaaa, RecordKind::Cname, RecordKind::Txt];

    /// As in a zone file and in `type`.
    pub fn word(self) -> &'static str {
        match self {
            RecordKind::A => "A",
            RecordKind::Aaaa => "AAAA",
            RecordKind::Cname => "CNAME",
            RecordKind::Txt => "TXT",
        }
    }
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordValue {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    /// A name, absolute whether it has a dot at the end or not.
    Cname(String),
    /// One character-string, at most 255 bytes.
    Txt(String),
}

impl fmt::Display for RecordValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordValue::A(ip) => ip.fmt(f),
            RecordValue::Aaaa(ip) => ip.fmt(f),
            RecordValue::Cname(name) => f.write_str(name),
            RecordValue::Txt(text) => write!(f, "\"{text}\""),
        }
    }
}

/// What is answered when nothing of a record is healthy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WhenAllDown {
    /// As if everything were healthy: a wrong answer can be tried again, no answer is remembered.
    #[default]
    Open,
    /// Nothing.
    Closed,
    /// These values.
    Sorry(Vec<RecordValue>),
}

/// How one of several answers is chosen (the words are those of Route 53). No list is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policy {
    /// All values, whatever their health.
    Simple(Vec<Endpoint>),
    /// The first one that is healthy, and that one until another is to be chosen.
    Failover {
        entries: Vec<Entry>,
        failback: Failback,
        /// Instead of health: where this part is. The entries are in the order of its sides or nodes.
        follows: Option<PartRef>,
    },
    /// One of the healthy ones, each as often as its weight says. 0: only while no other is healthy.
    Weighted(Vec<(u16, Entry)>),
    /// All healthy values, at most [`MULTIVALUE_MAX`].
    Multivalue(Vec<Endpoint>),
    /// The healthy one in the region that is nearest to the client's. Each region once.
    Latency(Vec<(String, Entry)>),
    /// By the client's network, the narrowest one first; else the default. Each network once.
    Geo { entries: Vec<(Vec<Network>, Entry)>, default: Box<Entry> },
    /// What another record of the zone, of the same type, answers.
    Alias {
        target: String,
        /// Its health is that of the target; otherwise it is always healthy.
        evaluate: bool,
    },
}

impl Policy {
    /// As it is written in `policy`.
    pub fn word(&self) -> &'static str {
        match self {
            Policy::Simple(_) => "simple",
            Policy::Failover { .. } => "failover",
            Policy::Weighted(_) => "weighted",
            Policy::Multivalue(_) => "multivalue",
            Policy::Latency(_) => "latency",
            Policy::Geo { .. } => "geo",
            Policy::Alias { .. } => "alias",
        }
    }
}

/// One of several things among which a policy chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub what: Branch,
    /// `None`: it is as healthy as what is in it, and a value is always healthy.
    pub check: Option<HealthCheck>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Branch {
    Value(RecordValue),
    Policy(Policy),
}

/// A value and what says how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub value: RecordValue,
    /// `None`: it is always healthy.
    pub check: Option<HealthCheck>,
}

/// What decides whether a value is healthy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthCheck {
    Part(PartRef),
    /// The value itself is asked.
    Value(Box<ValueProbe>),
    /// So many of these are healthy; the contrary if `invert`.
    Calculated {
        at_least: NonZeroU16,
        of: Vec<PartRef>,
        invert: bool,
    },
}

/// A probe of a record's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueProbe {
    /// Unique in the file: `api.example.com A 192.0.2.1:80`.
    pub id: String,
    /// The value: an address, or a name.
    pub host: String,
    pub port: NonZeroU16,
    pub probe: Probe,
}

impl Entry {
    /// What it is called among the entries of its policy: its value, or a policy and the first that it leads to.
    pub fn label(&self) -> String {
        match &self.what {
            Branch::Value(value) => alloc::format!("{value}"),
            Branch::Policy(policy) => policy.label(),
        }
    }
}

impl Policy {
    fn label(&self) -> String {
        let first = match self {
            Policy::Simple(list) | Policy::Multivalue(list) => {
                list.first().map(|endpoint| alloc::format!("{}", endpoint.value))
            }
            Policy::Failover { entries, .. } => entries.first().map(Entry::label),
            Policy::Weighted(entries) => entries.first().map(|(_, entry)| entry.label()),
            Policy::Latency(entries) => entries.first().map(|(_, entry)| entry.label()),
            Policy::Geo { default, .. } => Some(default.label()),
            Policy::Alias { target, .. } => Some(target.clone()),
        };
        alloc::format!("{} {}", self.word(), first.unwrap_or_default())
    }
}
