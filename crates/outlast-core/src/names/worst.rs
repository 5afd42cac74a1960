//! How long a client can be wrong, at worst.

use core::time::Duration;

use super::checks_of;
use crate::topology::{
    Address, AddressMode, HealthCheck, PRIORITY_MAX, PartKind, PartRef, Pool, Probe, Record,
    Topology, Tracked,
};

/// To agree on what was noticed: two rounds to a majority, each with a write to its disks.
pub const AGREEMENT: Duration = Duration::from_millis(100);

/// The parts of the time between a failure and the moment when the last client has left what failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorstCase {
    /// Until it is noticed.
    pub detection: Duration,
    /// Until it is agreed on, by all name servers or by the next holder.
    pub agreement: Duration,
    /// Until the last one forgets the old answer: a TTL, or nothing where clients are told.
    pub memory: Duration,
}

impl WorstCase {
    pub fn total(self) -> Duration {
        self.detection.saturating_add(self.agreement).saturating_add(self.memory)
    }
}

/// `every × fall + timeout`: what fails just after it has answered is asked again `every` later; the last of `fall`
/// failures in a row begins `every × fall` after that answer, and ends by its timeout.
pub fn of_probe(probe: &Probe) -> Duration {
    let fall = u32::from(probe.thresholds.fall.get());
    probe.every.saturating_mul(fall).saturating_add(probe.timeout)
}

/// `every × fall + timeout + commit + TTL`, with the slowest of the record's probes. `None`: its answer never changes by
/// itself, or depends on parts that have no probe of their own.
///
/// `commit`: from a vantage point's belief to new answers at all name servers.
/// Caches that hold an answer for longer than its TTL are not counted, and what a client keeps open stays as it is.
pub fn of_record(topology: &Topology, record: &Record, commit: Duration) -> Option<WorstCase> {
    let probes = |check: &HealthCheck| -> Option<Duration> {
        match check {
            HealthCheck::Value(probe) => Some(of_probe(&probe.probe)),
            HealthCheck::Part(part) => probe_of(topology, part).map(of_probe),
            HealthCheck::Calculated { of, .. } => {
                of.iter().filter_map(|part| probe_of(topology, part)).map(of_probe).max()
            }
        }
    };
    let detection = checks_of(record).into_iter().filter_map(probes).max()?;
    Some(WorstCase { detection, agreement: commit, memory: record.ttl })
}

/// The probe that decides on a part.
fn probe_of<'a>(topology: &'a Topology, part: &PartRef) -> Option<&'a Probe> {
    match part.kind {
        PartKind::Service => topology.services.get(&part.name).map(|service| &service.probe),
        PartKind::Process => topology.processes.get(&part.name)?.readiness.as_ref(),
        PartKind::External => topology.externals.get(&part.name)?.probe.as_ref(),
        PartKind::Postgres | PartKind::Redis | PartKind::Store | PartKind::Address => None,
    }
}

/// How long an address can be with nobody, or at a node that is not well.
///
/// - mode lease: the node's death is seen by the end of its `lease`, then the next holder is agreed on within `commit`.
///   What the address follows (a pair, say) is noticed by its probe, if that takes longer. Where two nodes do without
///   agreement, the silence and the questions after it count, if they take longer.
/// - mode vrrp: `3 × advert + (256 - priority) × advert / 256` of the lowest priority (RFC 9568 6.1: Active_Down_Interval
///   and Skew_Time); nobody needs to agree.
///
/// A failed track is noticed within `every × fall + timeout`, if that takes longer. Neighbours are told by gratuitous ARP
/// (RFC 5227 3) at once, so that none of them remembers anything.
pub fn of_address(
    topology: &Topology,
    address: &Address,
    lease: Duration,
    commit: Duration,
) -> WorstCase {
    let scripts = address.track.iter().filter_map(|track| match &track.what {
        Tracked::Script { every, timeout, thresholds, .. } => {
            let fall = u32::from(thresholds.fall.get());
            Some(every.saturating_mul(fall).saturating_add(*timeout))
        }
        Tracked::Part(part) => probe_of(topology, part).map(of_probe),
        Tracked::Interface(_) => None,
    });
    let tracked = scripts.max().unwrap_or_default();
    match &address.mode {
        AddressMode::Vrrp(vrrp) => {
            let lowest = address.priorities.values().min().copied().unwrap_or(PRIORITY_MAX);
            let advert = vrrp.advert.duration();
            let skew = advert * (256 - u32::from(lowest.get())) / 256;
            let silence = advert.saturating_mul(3).saturating_add(skew);
            WorstCase { detection: silence.max(tracked), ..WorstCase::default() }
        }
        AddressMode::Lease { follows, .. } => {
            let followed = follows.as_ref().and_then(|part| followed_probe(topology, part));
            let followed = followed.map(of_probe).unwrap_or_default();
            // Where one of two nodes is gone, heartbeats say so, and nobody has to agree.
            let gone = address.pair().map(|pace| pace.gone_after()).unwrap_or_default();
            let detection = lease.max(tracked).max(followed).max(gone);
            WorstCase { detection, agreement: commit, memory: Duration::ZERO }
        }
    }
}

/// What decides that the leading side of a part moves, where that is a probe and not a lease.
fn followed_probe<'a>(topology: &'a Topology, part: &PartRef) -> Option<&'a Probe> {
    let is_pair = |pool: &Pool| matches!(pool, Pool::Pair(_));
    let service = topology.services.get(&part.name).filter(|service| is_pair(&service.pool));
    service.filter(|_| part.kind == PartKind::Service).map(|service| &service.probe)
}
