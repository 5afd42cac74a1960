//! What a name server answers, given what is agreed on: the policies of a zone and the health of what they lead to.
//!
//! ```text
//!   votes ──verdict──▶ health ─┐
//!                              ├─▶ answers: of each record a tree of choices, a TTL, and why
//!   decide ──▶ Sticky ─────────┘
//! ```
//!
//! The leader commits health and [`Sticky`]; every name server makes its answers of these two alone, without a clock, so
//! that all answer the same. Something that was never judged is unknown, and that is never taken for down.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use core::time::Duration;

use crate::health::Health;
use crate::time::Instant;
use crate::topology::{
    Branch, Endpoint, Entry, Failback, HealthCheck, MULTIVALUE_MAX, Network, POLICY_DEPTH_MAX,
    PartRef, Policy, Record, RecordKind, RecordValue, ValueProbe, VerdictRule, WhenAllDown, Zone,
};

mod lead;
mod places;
mod quorum;
mod worst;

#[cfg(test)]
mod tests;

pub use lead::{
    Known, Lead, Look, Sights, agreed_answers, changes, digest, key, lowered, policy_key, sights,
    sticky, wanted, wanted_by,
};
pub use places::{places, places_alone};
pub use quorum::{Verdicts, Votes, verdict};
pub use worst::{AGREEMENT, WorstCase, of_address, of_probe, of_record};

/// What a name server is to answer, with all that depends on the client or on chance left open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// All of these values.
    One(Vec<RecordValue>),
    /// One of these, each as often as its weight says. No weight is zero.
    Weighted(Vec<(u16, Choice)>),
    /// By the client's network, the longest prefix first; `otherwise` for all other clients.
    ByClient { networks: Vec<(Network, Choice)>, otherwise: Box<Choice> },
    /// No value: the name is there and has none of this type.
    Empty,
}

impl Choice {
    /// What a client at this address gets: no choice by client is left in it.
    pub fn for_client(&self, client: IpAddr) -> Choice {
        match self {
            Choice::ByClient { networks, otherwise } => {
                let inside = networks.iter().filter(|(network, _)| network.contains(client));
                let narrowest = inside.max_by_key(|(network, _)| network.prefix);
                narrowest.map_or(&**otherwise, |(_, choice)| choice).for_client(client)
            }
            Choice::Weighted(list) => Choice::Weighted(
                list.iter().map(|(weight, choice)| (*weight, choice.for_client(client))).collect(),
            ),
            Choice::One(_) | Choice::Empty => self.clone(),
        }
    }

    /// Everything that some client may get.
    pub fn values(&self) -> BTreeSet<&RecordValue> {
        match self {
            Choice::One(values) => values.iter().collect(),
            Choice::Weighted(list) => list.iter().flat_map(|(_, choice)| choice.values()).collect(),
            Choice::ByClient { networks, otherwise } => {
                let inner = networks.iter().flat_map(|(_, choice)| choice.values());
                inner.chain(otherwise.values()).collect()
            }
            Choice::Empty => BTreeSet::new(),
        }
    }
}

/// Whose health is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    Part(&'a PartRef),
    Value(&'a ValueProbe),
}

/// What is agreed on of one thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// `Unknown` only if it was never judged: what was agreed on once is kept.
    pub health: Health,
    /// Since when it has been so, by the clock of who decides.
    pub since: Instant,
    /// Somebody has planned to move it away, soon.
    pub moves_soon: bool,
}

/// Where parts are that policies follow: which of their sides, in the order of the file.
pub type Places = BTreeMap<String, usize>;

/// Says what is agreed on.
pub type Sight<'a> = dyn Fn(Asked<'_>) -> Seen + 'a;

/// A policy of kind failover, wherever it lies in a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FailoverId {
    pub name: String,
    pub kind: RecordKind,
    /// The way to it from the record: of each policy the count of the entry.
    pub path: Vec<u16>,
}

/// What is remembered of failover policies, by their entries' labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sticky {
    /// Who serves; the first entry where nothing is remembered.
    pub chosen: BTreeMap<FailoverId, String>,
    /// Whom a person wants to serve, as long as that one is not down.
    pub pins: BTreeMap<FailoverId, Pin>,
    /// Records that a person wants to be remembered for less long, and until when; their paths are empty.
    pub lowered: BTreeMap<FailoverId, Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    pub label: String,
    /// `None`: until the person takes it out.
    pub until: Option<Instant>,
}

/// What [`decide`] has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// To be committed where it differs.
    pub sticky: Sticky,
    /// When time alone can change it.
    pub look_again: Option<Instant>,
}

/// What a name server says to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    pub name: String,
    pub kind: RecordKind,
    pub choice: Choice,
    pub ttl: Duration,
    /// Down: nothing of it is healthy. Unknown: nothing of it is known to be up, and something not known to be down.
    pub health: Health,
    /// Something of it is down, about to be moved, or not where it belongs.
    pub degraded: bool,
    pub why: Explained,
}

/// A line and what it rests on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explained {
    pub line: String,
    pub inner: Vec<Explained>,
}

impl Explained {
    fn new(line: impl Into<String>, inner: Vec<Explained>) -> Explained {
        Explained { line: line.into(), inner }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        writeln!(f, "{:1$}{2}", "", depth * 2, self.line)?;
        self.inner.iter().try_for_each(|inner| inner.write(f, depth + 1))
    }
}

impl fmt::Display for Explained {
    /// One line each, two blanks further in at each level.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}

/// What to answer for each record of a zone.
pub fn answers(zone: &Zone, sight: &Sight<'_>, sticky: &Sticky) -> Vec<Answers> {
    let evaluation = Evaluation { zone, sight, sticky };
    zone.records.iter().map(|record| evaluation.answers(record)).collect()
}

/// Who is to serve of each failover policy from now on.
///
/// Who serves goes on until it is down; then the first that is not down takes over. Back it goes to one further in front
/// once that has been up for as long as `failback` says. Where all are down, nothing changes.
///
/// A policy that follows a part chooses where that is by `places`, whatever its values' health; where nobody knows, nothing
/// changes.
pub fn decide(
    zone: &Zone,
    sight: &Sight<'_>,
    sticky: &Sticky,
    places: &Places,
    now: Instant,
) -> Decision {
    let evaluation = Evaluation { zone, sight, sticky };
    let pins = sticky.pins.iter().filter(|(_, pin)| pin.until.is_none_or(|until| now < until));
    let pins: BTreeMap<FailoverId, Pin> = pins.map(|(id, pin)| (id.clone(), pin.clone())).collect();
    let lowered = sticky.lowered.iter().filter(|(_, until)| now < **until);
    let lowered: BTreeMap<FailoverId, Instant> =
        lowered.map(|(id, until)| (id.clone(), *until)).collect();
    let ends = pins.values().filter_map(|pin| pin.until).chain(lowered.values().copied()).min();
    let mut decision =
        Decision { sticky: Sticky { chosen: BTreeMap::new(), pins, lowered }, look_again: ends };
    for record in &zone.records {
        evaluation.decide_below(
            &FailoverId::of(record),
            &record.policy,
            (places, now),
            &mut decision,
        );
    }
    decision
}

/// Why a record is answered as it is; what a client at `from` gets, where one is named.
pub fn explain(answers: &Answers, from: Option<IpAddr>) -> Explained {
    let mut why = answers.why.clone();
    if let Some(client) = from {
        let gets = answers.choice.for_client(client);
        let values: Vec<String> = gets.values().iter().map(ToString::to_string).collect();
        let line = match (&gets, values.len()) {
            (_, 0) => format!("a client at {client} gets no value"),
            (Choice::Weighted(_), 2..) => {
                format!("a client at {client} gets some of {}", values.join(", "))
            }
            _ => format!("a client at {client} gets {}", values.join(", ")),
        };
        why.inner.push(Explained::new(line, Vec::new()));
    }
    why
}

/// The probes of values that a zone's records ask for, each once.
pub fn value_probes(zone: &Zone) -> BTreeMap<&str, &ValueProbe> {
    let mut probes = BTreeMap::new();
    for check in checks(zone) {
        if let HealthCheck::Value(probe) = check {
            probes.insert(probe.id.as_str(), &**probe);
        }
    }
    probes
}

/// The parts whose health a zone's answers depend on.
pub fn parts(zone: &Zone) -> BTreeSet<&PartRef> {
    let mut parts = BTreeSet::new();
    for check in checks(zone) {
        match check {
            HealthCheck::Part(part) => parts.extend([part]),
            HealthCheck::Calculated { of, .. } => parts.extend(of),
            HealthCheck::Value(_) => {}
        }
    }
    parts
}

/// What each check of a zone says; what stands there several times comes as often.
pub fn checked<'z>(zone: &'z Zone, sight: &Sight<'_>) -> Vec<(&'z HealthCheck, Health)> {
    let evaluation = Evaluation { zone, sight, sticky: &Sticky::default() };
    checks(zone).into_iter().map(|check| (check, evaluation.judge(check).health)).collect()
}

fn checks(zone: &Zone) -> Vec<&HealthCheck> {
    let mut checks = Vec::new();
    for record in &zone.records {
        checks.extend(&record.check);
        checks_below(&record.policy, &mut checks);
    }
    checks
}

/// All checks of a record, also those of inner policies; not those of what it is an alias of.
pub(crate) fn checks_of(record: &Record) -> Vec<&HealthCheck> {
    let mut checks: Vec<&HealthCheck> = record.check.iter().collect();
    checks_below(&record.policy, &mut checks);
    checks
}

fn checks_below<'a>(policy: &'a Policy, checks: &mut Vec<&'a HealthCheck>) {
    if let Policy::Simple(endpoints) | Policy::Multivalue(endpoints) = policy {
        checks.extend(endpoints.iter().filter_map(|endpoint| endpoint.check.as_ref()));
    }
    for entry in policy.entries() {
        checks.extend(&entry.check);
        if let Branch::Policy(inner) = &entry.what {
            checks_below(inner, checks);
        }
    }
}

impl Policy {
    /// What it chooses among; the default of a geo policy comes last.
    pub(crate) fn entries(&self) -> Vec<&Entry> {
        match self {
            Policy::Simple(_) | Policy::Multivalue(_) | Policy::Alias { .. } => Vec::new(),
            Policy::Failover { entries, .. } => entries.iter().collect(),
            Policy::Weighted(entries) => entries.iter().map(|(_, entry)| entry).collect(),
            Policy::Latency(entries) => entries.iter().map(|(_, entry)| entry).collect(),
            Policy::Geo { entries, default } => {
                entries.iter().map(|(_, entry)| entry).chain([&**default]).collect()
            }
        }
    }
}

impl FailoverId {
    /// The policy of the record itself.
    pub fn of(record: &Record) -> FailoverId {
        FailoverId { name: record.name.clone(), kind: record.kind, path: Vec::new() }
    }

    fn inner(&self, nth: usize) -> FailoverId {
        let mut inner = self.clone();
        inner.path.push(u16::try_from(nth).unwrap_or(u16::MAX));
        inner
    }
}

/// What has been found out about one entry.
#[derive(Clone, Debug)]
struct Found {
    health: Health,
    /// Up at least since then.
    since: Instant,
    /// What to answer, of healthy things alone; `None`: nothing is healthy.
    healthy: Option<Choice>,
    /// What to answer as if everything were healthy.
    open: Choice,
    degraded: bool,
    why: Explained,
}

impl Found {
    /// Without a check: always up.
    fn of_value(value: &RecordValue) -> Found {
        let open = Choice::One(alloc::vec![value.clone()]);
        Found {
            health: Health::Up,
            since: Instant::default(),
            healthy: Some(open.clone()),
            open,
            degraded: false,
            why: Explained::new(format!("{value}"), Vec::new()),
        }
    }

    fn choice(&self, open: bool) -> Option<&Choice> {
        if open { Some(&self.open) } else { self.healthy.as_ref() }
    }

    fn is_down(&self) -> bool {
        self.health == Health::Down
    }

    /// Also depends on this check.
    fn under(mut self, seen: &Judged) -> Found {
        self.degraded |= seen.health == Health::Down || seen.moves_soon;
        self.health = worse(self.health, seen.health);
        self.since = self.since.max(seen.since);
        if self.health == Health::Down {
            self.healthy = None;
        }
        self.why.line = format!("{}: {}", self.why.line, seen.why);
        self
    }
}

/// Of two that are both needed.
fn worse(a: Health, b: Health) -> Health {
    match (a, b) {
        (Health::Down, _) | (_, Health::Down) => Health::Down,
        (Health::Unknown, _) | (_, Health::Unknown) => Health::Unknown,
        (Health::Up, Health::Up) => Health::Up,
    }
}

/// Of several of which one is enough.
fn best(healths: impl Iterator<Item = Health>) -> Health {
    healths.fold(Health::Down, |a, b| match (a, b) {
        (Health::Up, _) | (_, Health::Up) => Health::Up,
        (Health::Unknown, _) | (_, Health::Unknown) => Health::Unknown,
        (Health::Down, Health::Down) => Health::Down,
    })
}

/// What a check says.
struct Judged {
    health: Health,
    since: Instant,
    moves_soon: bool,
    why: String,
}

struct Evaluation<'a> {
    zone: &'a Zone,
    sight: &'a Sight<'a>,
    sticky: &'a Sticky,
}

impl Evaluation<'_> {
    fn answers(&self, record: &Record) -> Answers {
        let found = self.record(record, 0);
        let all_down = found.healthy.is_none();
        let (choice, instead) = match (found.healthy, &record.when_all_down) {
            (Some(choice), _) => (choice, ""),
            (None, WhenAllDown::Open) => {
                (found.open, ": all is down, answered as if all were healthy")
            }
            (None, WhenAllDown::Closed) => (Choice::Empty, ": all is down, answered with nothing"),
            (None, WhenAllDown::Sorry(values)) => {
                (Choice::One(values.clone()), ": all is down, answered with `sorry`")
            }
        };
        let degraded = found.degraded || all_down;
        let lowered = self.sticky.lowered.contains_key(&FailoverId::of(record));
        let ttl = if degraded || lowered { record.ttl_degraded } else { record.ttl };
        let asked = if lowered { " as a person asked" } else { "" };
        let line =
            format!("{} {}, ttl {}s{asked}{instead}", record.name, record.kind, ttl.as_secs());
        Answers {
            name: record.name.clone(),
            kind: record.kind,
            choice,
            ttl,
            health: found.health,
            degraded,
            why: Explained::new(line, alloc::vec![found.why]),
        }
    }

    fn record(&self, record: &Record, depth: usize) -> Found {
        let found = self.policy(&FailoverId::of(record), &record.policy, depth);
        match &record.check {
            Some(check) => found.under(&self.judge(check)),
            None => found,
        }
    }

    fn entry(&self, id: &FailoverId, entry: &Entry, depth: usize) -> Found {
        let found = match &entry.what {
            Branch::Value(value) => Found::of_value(value),
            Branch::Policy(policy) => self.policy(id, policy, depth + 1),
        };
        match (&entry.check, &entry.what) {
            (Some(check), _) => found.under(&self.judge(check)),
            (None, Branch::Value(_)) => unchecked(found),
            (None, Branch::Policy(_)) => found,
        }
    }

    fn endpoint(&self, endpoint: &Endpoint) -> Found {
        let found = Found::of_value(&endpoint.value);
        match &endpoint.check {
            Some(check) => found.under(&self.judge(check)),
            None => unchecked(found),
        }
    }

    fn policy(&self, id: &FailoverId, policy: &Policy, depth: usize) -> Found {
        if let Policy::Alias { target, evaluate } = policy {
            return self.alias(target, *evaluate, id.kind, depth);
        }
        let found: Vec<Found> = match policy {
            Policy::Simple(list) | Policy::Multivalue(list) => {
                list.iter().map(|endpoint| self.endpoint(endpoint)).collect()
            }
            Policy::Failover { .. }
            | Policy::Weighted(_)
            | Policy::Latency(_)
            | Policy::Geo { .. }
            | Policy::Alias { .. } => {
                let entries = policy.entries().into_iter().enumerate();
                entries.map(|(nth, entry)| self.entry(&id.inner(nth), entry, depth)).collect()
            }
        };
        let up = found.iter().filter(|found| found.health == Health::Up);
        let since = up.map(|found| found.since).min().unwrap_or_default();
        let health = best(found.iter().map(|found| found.health));
        let (line, moved) = self.said(id, policy, &found);
        let usable = health != Health::Down;
        Found {
            health,
            since,
            healthy: self.choice(id, policy, &found, false).filter(|_| usable),
            open: self.choice(id, policy, &found, true).unwrap_or(Choice::Empty),
            degraded: moved || found.iter().any(|found| found.degraded),
            why: Explained::new(line, found.into_iter().map(|found| found.why).collect()),
        }
    }

    /// What a policy chooses: of what is healthy, or of all where it is to be `open`.
    fn choice(
        &self,
        id: &FailoverId,
        policy: &Policy,
        found: &[Found],
        open: bool,
    ) -> Option<Choice> {
        match policy {
            Policy::Simple(list) => {
                Some(Choice::One(list.iter().map(|endpoint| endpoint.value.clone()).collect()))
            }
            Policy::Multivalue(list) => multivalue(list, found, open),
            Policy::Failover { entries, follows: Some(_), .. } => {
                found.get(self.kept(id, entries))?.choice(true).cloned()
            }
            Policy::Failover { entries, .. } => {
                found.get(self.chosen(id, entries, found))?.choice(open).cloned()
            }
            Policy::Weighted(entries) => weighted(entries, found, open),
            Policy::Latency(entries) => self.latency(entries, found, open),
            Policy::Geo { entries, .. } => geo(entries, found, open),
            Policy::Alias { .. } => None,
        }
    }

    fn alias(&self, target: &str, evaluate: bool, kind: RecordKind, depth: usize) -> Found {
        let same =
            |record: &&Record| record.kind == kind && record.name.eq_ignore_ascii_case(target);
        let record = self.zone.records.iter().find(same);
        let Some(record) = record.filter(|_| depth < POLICY_DEPTH_MAX) else {
            return Found {
                health: Health::Down,
                since: Instant::default(),
                healthy: None,
                open: Choice::Empty,
                degraded: true,
                why: Explained::new(format!("alias: {target} leads nowhere"), Vec::new()),
            };
        };
        let mut found = self.record(record, depth + 1);
        let mut line = format!("alias: as {target}, which is {}", found.health);
        if !evaluate && found.is_down() {
            line.push_str("; counts as up");
            found.health = Health::Up;
            found.healthy = Some(found.open.clone());
        }
        Found { why: Explained::new(line, alloc::vec![found.why]), ..found }
    }

    /// Which entry of a failover policy serves.
    fn chosen(&self, id: &FailoverId, entries: &[Entry], found: &[Found]) -> usize {
        let kept = self.kept(id, entries);
        if found.get(kept).is_some_and(|found| !found.is_down()) {
            return kept;
        }
        // The next decision will say so, too.
        found.iter().position(|found| !found.is_down()).unwrap_or(kept)
    }

    /// Which one it is agreed that serves.
    fn kept(&self, id: &FailoverId, entries: &[Entry]) -> usize {
        let kept = self.sticky.chosen.get(id);
        entries.iter().position(|entry| Some(&entry.label()) == kept).unwrap_or(0)
    }

    fn latency(&self, entries: &[(String, Entry)], found: &[Found], open: bool) -> Option<Choice> {
        let first_of =
            |order: &[usize]| order.iter().find_map(|&nth| found.get(nth)?.choice(open).cloned());
        let written: Vec<usize> = (0..entries.len()).collect();
        let otherwise = first_of(&written)?;
        let mut networks = Vec::new();
        for (region, of_region) in &self.zone.regions {
            let mut order = written.clone();
            order.sort_by_key(|&nth| self.distance(region, &entries[nth].0));
            let Some(choice) = first_of(&order) else { continue };
            networks.extend(of_region.iter().map(|&network| (network, choice.clone())));
        }
        Some(by_client(networks, otherwise))
    }

    /// How far a client of one region is from a value in another; what is not known is farthest.
    fn distance(&self, from: &str, to: &str) -> Duration {
        if from == to {
            return Duration::ZERO;
        }
        let given = |from: &str, to: &str| {
            self.zone.latencies.get(&(String::from(from), String::from(to))).copied()
        };
        given(from, to).or_else(|| given(to, from)).unwrap_or(Duration::MAX)
    }

    /// What a policy has done, and whether that is not what it does while all is well.
    fn said(&self, id: &FailoverId, policy: &Policy, found: &[Found]) -> (String, bool) {
        let word = policy.word();
        let healthy = found.iter().filter(|found| !found.is_down()).count();
        let count = format!("{healthy} of {} healthy", found.len());
        match policy {
            Policy::Failover { entries, follows: Some(part), .. } => {
                let nth = self.kept(id, entries);
                let label = entries.get(nth).map(Entry::label).unwrap_or_default();
                (format!("{word}: {label} serves, where {part} was last known to be"), false)
            }
            Policy::Failover { entries, .. } => {
                let nth = self.chosen(id, entries, found);
                let label = entries.get(nth).map(Entry::label).unwrap_or_default();
                let role = match nth {
                    0 => "the primary",
                    1 => "the secondary",
                    _ => "further behind",
                };
                let pinned = match self.sticky.pins.get(id) {
                    Some(pin) if pin.label == label => ", pinned",
                    Some(_) | None => "",
                };
                (format!("{word}: {label} serves, {role}{pinned}; {count}"), nth != 0)
            }
            Policy::Weighted(entries) => {
                let weights = |weight: &dyn Fn(u16) -> bool| {
                    let mut both = entries.iter().zip(found);
                    both.any(|((w, _), found)| weight(*w) && !found.is_down())
                };
                let last = !weights(&|w| 0 < w) && weights(&|w| w == 0);
                let of_zero = entries.iter().any(|(w, _)| 0 < *w) && last;
                let line = if of_zero { "; those of weight 0 serve" } else { "" };
                (format!("{word}: {count}{line}"), of_zero)
            }
            Policy::Multivalue(_) if MULTIVALUE_MAX < healthy => {
                (format!("{word}: {count}, {MULTIVALUE_MAX} in each answer"), false)
            }
            Policy::Simple(_)
            | Policy::Multivalue(_)
            | Policy::Latency(_)
            | Policy::Geo { .. }
            | Policy::Alias { .. } => (format!("{word}: {count}"), false),
        }
    }

    fn judge(&self, check: &HealthCheck) -> Judged {
        match check {
            HealthCheck::Part(part) => {
                let seen = (self.sight)(Asked::Part(part));
                judged(seen, format!("{part}"))
            }
            HealthCheck::Value(probe) => {
                let seen = (self.sight)(Asked::Value(probe));
                judged(seen, format!("its probe at port {}", probe.port))
            }
            HealthCheck::Calculated { at_least, of, invert } => {
                let seen = of.iter().map(|part| (self.sight)(Asked::Part(part))).collect();
                calculated(seen, usize::from(at_least.get()), *invert)
            }
        }
    }

    fn decide_below(
        &self,
        id: &FailoverId,
        policy: &Policy,
        (places, now): (&Places, Instant),
        decision: &mut Decision,
    ) {
        let entries = policy.entries();
        for (nth, entry) in entries.iter().enumerate() {
            if let Branch::Policy(inner) = &entry.what {
                self.decide_below(&id.inner(nth), inner, (places, now), decision);
            }
        }
        if let Policy::Failover { entries, follows: Some(part), .. } = policy {
            let kept = self.kept(id, entries);
            let place = places.get(&part.to_string()).copied();
            let place = place.filter(|nth| *nth < entries.len()).unwrap_or(kept);
            if place != 0
                && let Some(entry) = entries.get(place)
            {
                decision.sticky.chosen.insert(id.clone(), entry.label());
            }
        } else if let Policy::Failover { entries, failback, .. } = policy {
            let found: Vec<Found> = (entries.iter().enumerate())
                .map(|(nth, entry)| self.entry(&id.inner(nth), entry, 0))
                .collect();
            let pin = decision.sticky.pins.get(id).map(|pin| pin.label.clone());
            let pinned = entries.iter().position(|entry| Some(entry.label()) == pin);
            let at = self.chosen(id, entries, &found);
            let next = next(at, pinned, *failback, &found, now, &mut decision.look_again);
            if next != 0
                && let Some(entry) = entries.get(next)
            {
                decision.sticky.chosen.insert(id.clone(), entry.label());
            }
        }
    }
}

/// Who serves after `at`, which is not down unless all are.
fn next(
    at: usize,
    pinned: Option<usize>,
    failback: Failback,
    found: &[Found],
    now: Instant,
    look_again: &mut Option<Instant>,
) -> usize {
    if let Some(pinned) = pinned
        && found.get(pinned).is_some_and(|found| !found.is_down())
    {
        return pinned;
    }
    let Failback::After(after) = failback else { return at };
    // Where all are down, nothing in front is up.
    for (nth, found) in found.iter().enumerate().take(at) {
        if found.health != Health::Up {
            continue;
        }
        let ripe = found.since + after;
        if ripe <= now {
            return nth;
        }
        *look_again = Some(look_again.map_or(ripe, |other| other.min(ripe)));
    }
    at
}

fn unchecked(mut found: Found) -> Found {
    found.why.line.push_str(": no check, always healthy");
    found
}

fn judged(seen: Seen, what: String) -> Judged {
    let soon = if seen.moves_soon { ", a move is planned" } else { "" };
    let why = match seen.health {
        Health::Unknown => format!("{what} was not judged yet, counts as healthy{soon}"),
        Health::Up | Health::Down => format!("{what} is {}{soon}", seen.health),
    };
    Judged { health: seen.health, since: seen.since, moves_soon: seen.moves_soon, why }
}

/// Up if so many are up; down if not even the unknown ones could make it so many.
fn calculated(mut seen: Vec<Seen>, at_least: usize, invert: bool) -> Judged {
    let count = |health| seen.iter().filter(|seen| seen.health == health).count();
    let (up, down, all) = (count(Health::Up), count(Health::Down), seen.len());
    let health = if at_least <= up {
        Health::Up
    } else if all.saturating_sub(down) < at_least {
        Health::Down
    } else {
        Health::Unknown
    };
    seen.sort_by_key(|seen| seen.since);
    // It has been so since enough of them have been.
    let enough = if health == Health::Up { at_least } else { (all + 1).saturating_sub(at_least) };
    let same = seen.iter().filter(|seen| seen.health == health);
    let since = same.take(enough).last().map(|seen| seen.since).unwrap_or_default();
    let inverted = match health {
        Health::Up if invert => Health::Down,
        Health::Down if invert => Health::Up,
        Health::Up | Health::Down | Health::Unknown => health,
    };
    let contrary = if invert { ", inverted" } else { "" };
    Judged {
        health: inverted,
        since,
        moves_soon: seen.iter().any(|seen| seen.moves_soon),
        why: format!("{inverted}: {up} of {all} are up, {at_least} wanted{contrary}"),
    }
}

/// All usable values; where they are too many, equally often each run of [`MULTIVALUE_MAX`] of them.
fn multivalue(list: &[Endpoint], found: &[Found], open: bool) -> Option<Choice> {
    let both = list.iter().zip(found);
    let usable = both.filter(|(_, found)| found.choice(open).is_some());
    let values: Vec<&RecordValue> = usable.map(|(endpoint, _)| &endpoint.value).collect();
    let run = |start: usize| {
        let run = values.iter().cycle().skip(start).take(MULTIVALUE_MAX.min(values.len()));
        Choice::One(run.map(|&value| value.clone()).collect())
    };
    match values.len() {
        0 => None,
        1..=MULTIVALUE_MAX => Some(run(0)),
        count => Some(Choice::Weighted((0..count).map(|start| (1, run(start))).collect())),
    }
}

/// Route 53: those of weight 0 only while no other is healthy; all alike if all weights are 0.
fn weighted(entries: &[(u16, Entry)], found: &[Found], open: bool) -> Option<Choice> {
    let usable = |wanted: &dyn Fn(u16) -> bool| -> Vec<(u16, Choice)> {
        let both = entries.iter().zip(found).filter(|((weight, _), _)| wanted(*weight));
        both.filter_map(|((weight, _), found)| {
            Some(((*weight).max(1), found.choice(open)?.clone()))
        })
        .collect()
    };
    let mut list = usable(&|weight| 0 < weight);
    if list.is_empty() {
        list = usable(&|weight| weight == 0);
    }
    match list.len() {
        0 | 1 => list.pop().map(|(_, choice)| choice),
        _ => Some(Choice::Weighted(list)),
    }
}

/// A client whose entry is down gets that of the next wider network, then the default, then any.
fn geo(entries: &[(Vec<Network>, Entry)], found: &[Found], open: bool) -> Option<Choice> {
    let default = found.last().and_then(|found| found.choice(open));
    let any = found.iter().find_map(|found| found.choice(open));
    let otherwise = default.or(any)?.clone();
    let mut networks = Vec::new();
    for ((of_entry, _), found) in entries.iter().zip(found) {
        if let Some(choice) = found.choice(open) {
            networks.extend(of_entry.iter().map(|&network| (network, choice.clone())));
        }
    }
    Some(by_client(networks, otherwise))
}

/// The longest prefixes first. No choice where all clients get the same.
fn by_client(mut networks: Vec<(Network, Choice)>, otherwise: Choice) -> Choice {
    if networks.iter().all(|(_, choice)| *choice == otherwise) {
        return otherwise;
    }
    networks.sort_by_key(|(network, _)| (u8::MAX - network.prefix, network.address));
    Choice::ByClient { networks, otherwise: Box::new(otherwise) }
}
