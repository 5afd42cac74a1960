//! Zones whose records are kept elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use outlast_core::health::Health;
use outlast_core::names::{Asked, Seen, Sticky};
use outlast_core::topology::{
    Branch, Endpoint, Entry, Failback, HealthCheck, PartKind, PartRef, Policy,
    Record as TopologyRecord, RecordKind, RecordValue, Soa, VerdictRule, WhenAllDown, Zone,
};
use outlast_dns::elsewhere::Wanted;

pub(crate) fn value(last: u8) -> RecordValue {
    RecordValue::A([192, 0, 2, last].into())
}

pub(crate) fn entry(last: u8) -> Entry {
    let part = PartRef { kind: PartKind::Service, name: last.to_string() };
    Entry { what: Branch::Value(value(last)), check: Some(HealthCheck::Part(part)) }
}

pub(crate) fn record(name: &str, kind: RecordKind, policy: Policy) -> TopologyRecord {
    TopologyRecord {
        name: name.to_owned(),
        kind,
        policy,
        check: None,
        ttl: Duration::from_secs(60),
        ttl_degraded: Duration::from_secs(30),
        when_all_down: WhenAllDown::Open,
    }
}

pub(crate) fn simple(values: Vec<RecordValue>) -> Policy {
    Policy::Simple(values.into_iter().map(|value| Endpoint { value, check: None }).collect())
}

pub(crate) fn api() -> TopologyRecord {
    let entries = vec![entry(1), entry(2)];
    let failback = Failback::After(Duration::from_secs(30));
    record("api", RecordKind::A, Policy::Failover { entries, failback, follows: None })
}

/// What is wanted while these services are down.
pub(crate) fn wanted(records: Vec<TopologyRecord>, down: &[&str]) -> Wanted {
    wanted_with(records, down, &Sticky::default())
}

/// The same where it was decided before who serves.
pub(crate) fn wanted_with(records: Vec<TopologyRecord>, down: &[&str], sticky: &Sticky) -> Wanted {
    let zone = Zone {
        listen: None,
        records,
        ns: Vec::new(),
        soa: Soa {
            mname: None,
            rname: None,
            refresh: Duration::ZERO,
            retry: Duration::ZERO,
            expire: Duration::ZERO,
            minimum: Duration::ZERO,
        },
        secondaries: Vec::new(),
        keys: None,
        update: Vec::new(),
        elsewhere: Vec::new(),
        dnssec: false,
        rate_limit: None,
        cookies: true,
        rule: VerdictRule::Majority,
        regions: BTreeMap::new(),
        latencies: BTreeMap::new(),
    };
    let sight = |asked: Asked<'_>| {
        let is_down = matches!(asked, Asked::Part(part) if down.contains(&part.name.as_str()));
        let health = if is_down { Health::Down } else { Health::Up };
        Seen { health, ..Seen::default() }
    };
    Wanted::new("example.com", &zone, &sight, sticky).expect("names")
}
