//! Whoever leads: hears what every node sees, and says what is to be agreed on for name servers.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use super::{
    Answers, Asked, FailoverId, Pin, Places, Seen, Sticky, VerdictRule, Verdicts, Zone, answers,
    checks_of, decide, parts, value_probes,
};
use crate::agent::is_between;
use crate::agreed::{
    AgreedNames, AgreedZone, Hash, Limit, NameChange, NamesCommand, lowered_words,
};
use crate::event::{Fact, Target};
use crate::health::Health;
use crate::observers::Report;
use crate::time::{Instant, Timestamp};
use crate::topology::{HealthCheck, POLICY_DEPTH_MAX, Policy, Record, RecordKind, Topology};
use crate::view::ServiceState;

/// How often the serial of a signed zone counts up although nothing has changed: signatures are given to secondaries with at
/// least a third of their 14 days left.
const RESIGN_EVERY: Duration = Duration::from_secs(2 * 86_400);

/// What one node sees of the things that answers depend on, and why.
pub type Sights = BTreeMap<String, (Health, String)>;

/// By what name a thing is agreed on.
pub fn key(asked: Asked<'_>) -> String {
    match asked {
        Asked::Part(part) => part.to_string(),
        Asked::Value(probe) => probe.id.clone(),
    }
}

/// What a node's report says of everything that an answer could depend on.
pub fn sights(report: &Report) -> Sights {
    let targets = report.targets.iter().filter_map(|(target, sight)| {
        let key = match target {
            Target::External { name } => format!("external.{name}"),
            Target::Value { id } => id.clone(),
            Target::Backend { .. } => return None,
        };
        Some((key, (sight.health, sight.reason.clone())))
    });
    let services = report.services.iter().map(|(name, sight)| {
        let health = match sight.state {
            ServiceState::Up | ServiceState::Degraded => Health::Up,
            // A pair that changes sides, or that a node without a lease may not route to, is not what is asked for.
            ServiceState::Down if is_between(&sight.why) => Health::Unknown,
            ServiceState::Down => Health::Down,
            ServiceState::Unknown => Health::Unknown,
        };
        (format!("service.{name}"), (health, sight.why.clone()))
    });
    targets.chain(services).collect()
}

/// Stands for a zone's part of the topology.
pub fn digest(zone: &Zone) -> u64 {
    let Hash(hash) = Hash::of(format!("{zone:?}").as_bytes());
    hash.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Until when a person wants a record of a zone to be remembered for less long.
pub fn lowered(zone: &str, record: &Record, agreed: &AgreedNames) -> Option<Timestamp> {
    agreed.lowered.get(&policy_key(zone, &FailoverId::of(record))).copied()
}

/// What is agreed on of failover policies and records of one zone; `now` and `wall` are the same moment.
pub fn sticky(zone: &str, agreed: &AgreedNames, now: Instant, wall: Timestamp) -> Sticky {
    let chosen = agreed.chosen.iter();
    let chosen = chosen.filter_map(|(key, label)| Some((policy_of(zone, key)?, label.clone())));
    let here = |until: Timestamp| {
        let left = u64::try_from(until.0.saturating_sub(wall.0)).unwrap_or_default();
        now + Duration::from_millis(left)
    };
    let pins = agreed.pins.iter().filter_map(|(key, pin)| {
        Some((policy_of(zone, key)?, Pin { label: pin.label.clone(), until: pin.until.map(here) }))
    });
    let lowered = agreed.lowered.iter();
    let lowered = lowered.filter_map(|(key, until)| Some((policy_of(zone, key)?, here(*until))));
    Sticky { chosen: chosen.collect(), pins: pins.collect(), lowered: lowered.collect() }
}

/// What a name server answers for each record of a zone.
pub fn agreed_answers(name: &str, zone: &Zone, agreed: &AgreedNames) -> Vec<Answers> {
    let since = BTreeMap::new();
    let sticky = sticky(name, agreed, Instant::default(), Timestamp::default());
    answers(zone, &|asked| seen(agreed, &since, asked), &sticky)
}

/// By what name a failover policy is agreed on: `example.com api A 0.1`; no part has a blank in it.
pub fn policy_key(zone: &str, id: &FailoverId) -> String {
    let path: Vec<String> = id.path.iter().map(ToString::to_string).collect();
    let path = if path.is_empty() { String::new() } else { format!(" {}", path.join(".")) };
    format!("{zone} {} {}{path}", id.name, id.kind.word())
}

fn policy_of(zone: &str, key: &str) -> Option<FailoverId> {
    let mut words = key.split(' ');
    words.next().filter(|of| *of == zone)?;
    let name = String::from(words.next()?);
    let kind = match words.next()? {
        "A" => RecordKind::A,
        "AAAA" => RecordKind::Aaaa,
        "CNAME" => RecordKind::Cname,
        "TXT" => RecordKind::Txt,
        _ => return None,
    };
    let path = match words.next() {
        Some(path) => path.split('.').map(|nth| nth.parse().ok()).collect::<Option<Vec<u16>>>()?,
        None => Vec::new(),
    };
    Some(FailoverId { name, kind, path })
}

fn seen(agreed: &AgreedNames, since: &BTreeMap<String, Instant>, asked: Asked<'_>) -> Seen {
    let key = key(asked);
    Seen {
        health: agreed.health.get(&key).map(|agreed| agreed.health).unwrap_or_default(),
        since: since.get(&key).copied().unwrap_or_default(),
        moves_soon: agreed.moves_soon.contains(&key),
    }
}

/// Everything that answers can depend on, and by which rule vantage points judge it: that of the first zone that names it.
pub fn wanted(zones: &BTreeMap<String, Zone>) -> BTreeMap<String, VerdictRule> {
    let mut wanted = BTreeMap::new();
    for zone in zones.values() {
        let values = value_probes(zone).into_keys().map(String::from);
        for key in values.chain(parts(zone).into_iter().map(ToString::to_string)) {
            wanted.entry(key).or_insert(zone.rule);
        }
    }
    wanted
}

/// Everything that the answers of one record can depend on, by way of aliases, too.
pub fn wanted_by(zone: &Zone, record: &Record) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut records = alloc::vec![record];
    // An alias of an alias of itself ends here, too.
    for _ in 0..=POLICY_DEPTH_MAX {
        let Some(record) = records.pop() else { break };
        for check in checks_of(record) {
            match check {
                HealthCheck::Part(part) => drop(keys.insert(part.to_string())),
                HealthCheck::Value(probe) => drop(keys.insert(probe.id.clone())),
                HealthCheck::Calculated { of, .. } => {
                    keys.extend(of.iter().map(ToString::to_string));
                }
            }
        }
        if let Policy::Alias { target, .. } = &record.policy {
            records.extend(zone.records.iter().filter(|other| {
                other.kind == record.kind && other.name.eq_ignore_ascii_case(target)
            }));
        }
    }
    keys
}

/// What is known without asking vantage points.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// What all nodes agree on anyway: whether a database has a primary, an address a holder.
    pub agreed: Sights,
    /// Where the parts are that policies follow.
    pub places: Places,
    /// Things that somebody has planned to move away soon.
    pub soon: BTreeSet<String>,
}

/// What a look has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    pub command: Option<NamesCommand>,
    /// When time alone can change it.
    pub again: Option<Instant>,
}

/// A node that leads, or that is alone.
#[derive(Clone, Debug, Default)]
pub struct Lead {
    verdicts: Verdicts<String>,
    reasons: BTreeMap<String, Sights>,
    /// Since when what is up has been so, by this node's clock.
    up_since: BTreeMap<String, Instant>,
}

impl Lead {
    /// Takes all that a node sees, in place of what it said before.
    pub fn hear(&mut self, node: &str, sights: Sights) {
        let beliefs = sights.iter().map(|(key, (health, _))| (key.clone(), *health)).collect();
        self.verdicts.hear(node, beliefs);
        self.reasons.insert(String::from(node), sights);
    }

    /// A node is not heard of any more: what it said last counts no longer.
    pub fn lose(&mut self, node: &str) {
        self.verdicts.lose(node);
        self.reasons.remove(node);
    }

    /// What is to be agreed on now, so that name servers answer by what nodes see.
    ///
    /// What becomes of failover policies is agreed on together with the health that moves them, so that no name server ever
    /// answers by one without the other.
    pub fn look(
        &mut self,
        now: Instant,
        wall: Timestamp,
        topology: &Topology,
        known: &Known,
        agreed: &AgreedNames,
    ) -> Look {
        let wanted = wanted(&topology.dns);
        self.follow(now, agreed, &wanted);
        let mut after = agreed.clone();
        let mut changes = self.judged(&wanted, known);
        changes.extend(forgotten(&wanted, known, agreed));
        for change in &changes {
            self.take(now, change, &mut after);
        }
        let (mut again, mut zones) = (None, BTreeSet::new());
        let mut resigned = false;
        for (name, zone) in &topology.dns {
            let before = sticky(name, &after, now, wall);
            let sight = |asked: Asked<'_>| seen(&after, &self.up_since, asked);
            let decision = decide(zone, &sight, &before, &known.places, now);
            again = [again, decision.look_again].into_iter().flatten().min();
            let chosen = decided(name, &before, &decision.sticky);
            let new = digest(zone);
            let other = agreed.zones.get(name).is_none_or(|agreed| agreed.digest != new);
            if other {
                changes.push(NameChange::Zone { zone: name.clone(), digest: Some(new) });
            }
            for change in &chosen {
                self.take(now, change, &mut after);
            }
            changes.extend(chosen);
            if ages(zone, agreed.zones.get(name), wall) {
                resigned = true;
                zones.insert(name.clone());
            }
            if other || differs(name, zone, agreed, &after) {
                zones.insert(name.clone());
            }
        }
        for zone in agreed.zones.keys().filter(|zone| !topology.dns.contains_key(*zone)) {
            changes.push(NameChange::Zone { zone: zone.clone(), digest: None });
        }
        changes.extend(orphaned(topology, agreed));
        // What can never be agreed on must not keep everything else from it.
        changes.retain(|change| change.check().is_ok());
        // The rest is found at the next look.
        changes.truncate(Limit::NameChanges.most());
        let command = NamesCommand::Change { from: agreed.epoch, changes: changes.clone(), zones };
        Look { command: (!changes.is_empty() || resigned).then_some(command), again }
    }

    /// Goes on from what is agreed on.
    fn follow(
        &mut self,
        now: Instant,
        agreed: &AgreedNames,
        wanted: &BTreeMap<String, VerdictRule>,
    ) {
        self.verdicts.retain(|key| wanted.contains_key(key));
        for key in wanted.keys() {
            let health = agreed.health.get(key).map(|agreed| agreed.health).unwrap_or_default();
            self.verdicts.commit(key.clone(), health);
        }
        let up = |key: &String| agreed.health.get(key).is_some_and(|it| it.health == Health::Up);
        self.up_since.retain(|key, _| up(key));
        for key in agreed.health.keys().filter(|key| up(key)) {
            self.up_since.entry(key.clone()).or_insert(now);
        }
    }

    /// What vantage points see otherwise than is agreed on.
    fn judged(&self, wanted: &BTreeMap<String, VerdictRule>, known: &Known) -> Vec<NameChange> {
        let rule = |key: &String| wanted.get(key).copied().unwrap_or_default();
        let voted = self.verdicts.changes(rule).into_iter();
        let voted =
            voted.filter(|(key, _)| wanted.contains_key(key) && !known.agreed.contains_key(key));
        let voted = voted.map(|(key, health)| {
            let votes = self.verdicts.votes(&key);
            let count = if health == Health::Up { votes.up } else { votes.down };
            let why =
                format!("{count} of {} nodes say so: {}", votes.live(), self.reason(&key, health));
            (key, health, why)
        });
        let agreed = known.agreed.iter().filter(|(key, (health, _))| {
            wanted.contains_key(*key)
                && *health != Health::Unknown
                && *health != self.verdicts.agreed(key)
        });
        let agreed = agreed.map(|(key, (health, why))| (key.clone(), *health, why.clone()));
        let change = |(of, health, why): (String, Health, String)| {
            let end = why.floor_char_boundary(Limit::ReasonBytes.most());
            NameChange::Health { of, health, why: String::from(&why[..end]) }
        };
        voted.chain(agreed).map(change).collect()
    }

    /// What the first node that sees it so has to say.
    fn reason(&self, key: &str, health: Health) -> &str {
        let said = self.reasons.values().filter_map(|sights| sights.get(key));
        said.filter(|(own, _)| *own == health).map(|(_, why)| why.as_str()).next().unwrap_or("")
    }

    /// As it will be once it is agreed on.
    fn take(&mut self, now: Instant, change: &NameChange, after: &mut AgreedNames) {
        match change {
            NameChange::Health { of, health, .. } => {
                after.health.entry(of.clone()).or_default().health = *health;
                match health {
                    Health::Up => drop(self.up_since.insert(of.clone(), now)),
                    Health::Down | Health::Unknown => drop(self.up_since.remove(of)),
                }
            }
            NameChange::Forget { of } => {
                after.health.remove(of);
                after.moves_soon.remove(of);
            }
            NameChange::MovesSoon { of, soon: true } => {
                after.moves_soon.insert(of.clone());
            }
            NameChange::MovesSoon { of, soon: false } => {
                after.moves_soon.remove(of);
            }
            NameChange::Chosen { policy, label: Some(label) } => {
                after.chosen.insert(policy.clone(), label.clone());
            }
            NameChange::Chosen { policy, label: None } => {
                after.chosen.remove(policy);
            }
            NameChange::Pinned { policy, .. } => {
                after.pins.remove(policy);
            }
            NameChange::Lowered { record, .. } => {
                after.lowered.remove(record);
            }
            NameChange::Zone { .. } | NameChange::Record { .. } => {}
        }
    }
}

/// Whether secondaries have to fetch a signed zone again, so that no signature of theirs runs out.
fn ages(zone: &Zone, agreed: Option<&AgreedZone>, wall: Timestamp) -> bool {
    let age = agreed.map_or(0, |agreed| wall.0.saturating_sub(agreed.changed.wall.0));
    zone.dnssec && i64::try_from(RESIGN_EVERY.as_millis()).is_ok_and(|limit| limit < age)
}

/// What no answer depends on any more, and what is planned.
fn forgotten(
    wanted: &BTreeMap<String, VerdictRule>,
    known: &Known,
    agreed: &AgreedNames,
) -> Vec<NameChange> {
    let gone = agreed.health.keys().chain(&agreed.moves_soon);
    let gone: BTreeSet<&String> = gone.filter(|key| !wanted.contains_key(*key)).collect();
    let soon =
        wanted.keys().filter(|key| known.soon.contains(*key) != agreed.moves_soon.contains(*key));
    let soon =
        soon.map(|key| NameChange::MovesSoon { of: key.clone(), soon: known.soon.contains(key) });
    gone.into_iter().map(|key| NameChange::Forget { of: key.clone() }).chain(soon).collect()
}

/// What has become of the failover policies of a zone.
fn decided(zone: &str, before: &Sticky, after: &Sticky) -> Vec<NameChange> {
    let ids: BTreeSet<&FailoverId> = before.chosen.keys().chain(after.chosen.keys()).collect();
    let other = ids.into_iter().filter(|id| before.chosen.get(id) != after.chosen.get(id));
    let chosen = other.map(|id| NameChange::Chosen {
        policy: policy_key(zone, id),
        label: after.chosen.get(id).cloned(),
    });
    let over = before.pins.keys().filter(|id| !after.pins.contains_key(id));
    let over = over.map(|id| NameChange::Pinned { policy: policy_key(zone, id), pin: None });
    let ended = before.lowered.keys().filter(|id| !after.lowered.contains_key(id));
    let ended = ended.map(|id| NameChange::Lowered { record: policy_key(zone, id), until: None });
    chosen.chain(over).chain(ended).collect()
}

/// What is remembered of policies whose zone is not there any more.
fn orphaned(topology: &Topology, agreed: &AgreedNames) -> Vec<NameChange> {
    let gone = |key: &&String| {
        let zone = key.split(' ').next().unwrap_or_default();
        !topology.dns.contains_key(zone)
    };
    let chosen = agreed.chosen.keys().filter(gone);
    let chosen = chosen.map(|key| NameChange::Chosen { policy: key.clone(), label: None });
    let pins = agreed.pins.keys().filter(gone);
    let pins = pins.map(|key| NameChange::Pinned { policy: key.clone(), pin: None });
    let lowered = agreed.lowered.keys().filter(gone);
    let lowered = lowered.map(|key| NameChange::Lowered { record: key.clone(), until: None });
    chosen.chain(pins).chain(lowered).collect()
}

/// Whether a client could notice.
fn differs(name: &str, zone: &Zone, before: &AgreedNames, after: &AgreedNames) -> bool {
    let answered = |agreed| {
        let answers = agreed_answers(name, zone, agreed).into_iter();
        answers.map(|answers| (answers.choice, answers.ttl)).collect::<Vec<_>>()
    };
    answered(before) != answered(after)
}

/// What is to be written down where other answers were agreed on.
pub fn changes(before: &AgreedNames, after: &AgreedNames) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut say = |subject: &str, text: String| {
        facts.push(Fact::Names { subject: String::from(subject), epoch: after.epoch, text });
    };
    for (key, now) in &after.health {
        if before.health.get(key).map(|before| before.health) != Some(now.health) {
            say(key, format!("is {} for name servers: {}", now.health, now.why));
        }
    }
    let policies: BTreeSet<&String> = before.chosen.keys().chain(after.chosen.keys()).collect();
    for policy in policies {
        if before.chosen.get(policy) != after.chosen.get(policy) {
            let label = after.chosen.get(policy).map_or("its first value", String::as_str);
            say(policy, format!("{label} serves"));
        }
    }
    let pins: BTreeSet<&String> = before.pins.keys().chain(after.pins.keys()).collect();
    for policy in pins {
        match (before.pins.get(policy), after.pins.get(policy)) {
            (before, Some(pin)) if before != Some(pin) => {
                say(policy, format!("{} is to serve, a person says", pin.label));
            }
            (Some(pin), None) => say(policy, format!("{} need not serve any more", pin.label)),
            (_, _) => {}
        }
    }
    let lowered: BTreeSet<&String> = before.lowered.keys().chain(after.lowered.keys()).collect();
    for record in lowered {
        let until = after.lowered.get(record).copied();
        if before.lowered.get(record).copied() != until {
            say(record, lowered_words(until));
        }
    }
    facts
}
