//! Records in Route 53, with its own health checks and its own choice: it goes on when all of our nodes are gone.
//!
//! | here | there |
//! | --- | --- |
//! | failover of two | PRIMARY and SECONDARY, each with its health check |
//! | weighted, multivalue | a set for each value, with its health check |
//! | latency, if the regions are those of AWS | a set for each region; AWS measures |
//! | simple | one set |
//! | alias | an alias inside the zone |
//! | geo, policies in policies, a failover of three | refused |
//!
//! A check that Route 53 can make itself (HTTP, HTTPS, TCP at an address that it reaches) is made there. Of any other (a
//! part, a command, gRPC, a private address) the verdict of our nodes is sent: a health check that is disabled counts as
//! healthy, and as unhealthy once it is inverted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use outlast_aws::route53::{
    Alias, CHANGES_MAX, Change, Check, CheckConfig, Choice, Existing, How, RecordSet, SEARCH_MAX,
    VALUES_MAX,
};
use outlast_aws::{AwsError, Client};
use outlast_core::names;
use outlast_core::topology::{
    Branch, Check as ProbeCheck, Endpoint, Entry, Failback, HealthCheck, HttpCheck, HttpTarget,
    Policy, RecordKind, RecordValue, ValueProbe, WhenAllDown,
};
use ring::digest;

use super::{Outline, Plan, Provider, Trouble, Wanted, WantedRecord};
use crate::name::Name;

/// The highest weight there.
const WEIGHT_MAX: u32 = 255;

/// The intervals there; the shorter one costs more.
const INTERVALS: [u8; 2] = [10, 30];

/// The most answers in a row that turn a health check there.
const THRESHOLD_MAX: u16 = 10;

/// Characters of what tells sets of the same name and type apart.
const IDENTIFIER_MAX: usize = 128;

/// How long a primary must be up at most before it serves again, so that Route 53 does not do much else.
const FAILBACK_MAX: Duration = Duration::from_secs(60);

/// A hosted zone.
#[derive(Clone, Debug)]
pub struct Route53 {
    pub client: Client,
    /// Like `Z1234567890ABC`.
    pub zone_id: String,
    /// Whose health checks they are: several clusters may share an account and a zone.
    pub cluster: String,
}

impl fmt::Display for Route53 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Route 53 zone {}", self.zone_id)
    }
}

/// A health check that is wanted: what it is called by, and what it does.
#[derive(Clone, Debug, PartialEq, Eq)]
struct WantedCheck {
    config: CheckConfig,
    /// For people.
    name: String,
}

/// In this order: what is made is there before it is referred to, and what goes is referred to no more.
#[derive(Clone, Debug, Default)]
pub struct Route53Steps {
    /// By the reference that makes it.
    create: Vec<(String, WantedCheck)>,
    invert: Vec<(Check, bool)>,
    /// Health checks are named by id, or by the reference of one that is to be made.
    changes: Vec<Change>,
    delete: Vec<String>,
}

impl From<AwsError> for Trouble {
    fn from(error: AwsError) -> Trouble {
        let what = error.to_string();
        if matches!(error.code(), Some("InvalidChangeBatch" | "HealthCheckVersionMismatch")) {
            return Trouble::Changed(what);
        }
        match error {
            AwsError::Busy { .. } | AwsError::Unknown(_) | AwsError::Strange(_) => {
                Trouble::Later(what)
            }
            AwsError::Credentials(_) | AwsError::Refused { .. } | AwsError::Unfit(_) => {
                Trouble::Never(what)
            }
        }
    }
}

impl Provider for Route53 {
    type Steps = Route53Steps;

    async fn plan(&self, wanted: &Wanted) -> Result<Plan<Route53Steps>, Trouble> {
        let name = self.client.hosted_zone_name(&self.zone_id).await?;
        let zone = plain(&wanted.zone);
        if name != zone {
            return Err(Trouble::Never(format!(
                "the hosted zone {} is {name}, not {zone}",
                self.zone_id
            )));
        }
        let there = self.client.record_sets(&self.zone_id).await?;
        let checks = self.client.health_checks().await?;
        let plan = Drawing::new(self, wanted).draw(wanted, there, checks);
        let values = |set: &RecordSet| set.values.iter().map(String::len).sum::<usize>();
        let characters: usize = plan
            .steps
            .changes
            .iter()
            .map(|change| match change {
                Change::Create(set) => values(set),
                Change::Delete(existing) => values(&existing.set),
            })
            .sum();
        if CHANGES_MAX < plan.steps.changes.len() || VALUES_MAX < characters {
            return Err(Trouble::Never(format!(
                "{} changes with {characters} characters are more than Route 53 takes in one batch ({CHANGES_MAX}, {VALUES_MAX}); \
                 make them in several steps",
                plan.steps.changes.len()
            )));
        }
        Ok(plan)
    }

    async fn apply(&self, plan: &Plan<Route53Steps>) -> Result<(), Trouble> {
        let steps = &plan.steps;
        let mut made = BTreeMap::new();
        for (reference, wanted) in &steps.create {
            let check = self.client.create_health_check(reference, &wanted.config).await?;
            self.client.name_health_check(&check.id, &wanted.name).await?;
            made.insert(reference.as_str(), check.id);
        }
        for (check, inverted) in &steps.invert {
            self.client.invert_health_check(check, *inverted).await?;
        }
        if !steps.changes.is_empty() {
            let mut changes = steps.changes.clone();
            for change in &mut changes {
                if let Change::Create(set) = change
                    && let Some(id) = set.health_check.as_deref().and_then(|check| made.get(check))
                {
                    set.health_check = Some(id.clone());
                }
            }
            let comment = format!("outlast {}", self.cluster);
            let id = self.client.change_record_sets(&self.zone_id, &comment, &changes).await?;
            tracing::debug!(id, "Route 53 has taken a batch");
        }
        for id in &steps.delete {
            self.client.delete_health_check(id).await?;
        }
        Ok(())
    }
}

/// A plan that is being drawn up.
struct Drawing<'a> {
    zone_id: &'a str,
    zone: String,
    /// What references of our health checks in this zone begin with.
    prefix: String,
    /// By the beginnings of their references.
    checks: BTreeMap<String, WantedCheck>,
    outline: Outline,
}

impl Drawing<'_> {
    fn new<'a>(route53: &'a Route53, wanted: &Wanted) -> Drawing<'a> {
        let whose = format!("{}\0{}", route53.cluster, route53.zone_id);
        Drawing {
            zone_id: &route53.zone_id,
            zone: plain(&wanted.zone),
            prefix: format!("outlast-{}-", short_hash(&whose)),
            checks: BTreeMap::new(),
            outline: Outline::default(),
        }
    }

    fn draw(
        mut self,
        wanted: &Wanted,
        there: Vec<Existing>,
        checks: Vec<Check>,
    ) -> Plan<Route53Steps> {
        let mut ours: BTreeSet<(String, String)> =
            wanted.gone.iter().map(|(owner, kind)| (plain(owner), kind.to_string())).collect();
        let mut to_be: Vec<RecordSet> = Vec::new();
        for record in &wanted.records {
            let key = (plain(&record.owner), record.record.kind.to_string());
            let what = format!("{} {}", record.owner, record.record.kind);
            match self.sets(wanted, record) {
                Ok(sets) => {
                    ours.insert(key);
                    to_be.extend(sets);
                }
                Err(why) => {
                    ours.remove(&key);
                    self.outline.refused.push(format!("{what}: {why}"));
                }
            }
        }
        let mut steps = Route53Steps::default();
        let mut left = BTreeSet::new();
        let ids = self.match_checks(&checks, &mut steps, &mut left);
        for set in &mut to_be {
            if let Some(id) = set.health_check.as_ref().and_then(|key| ids.get(key)) {
                set.health_check = Some(id.clone());
            }
        }
        let is_ours =
            |found: &Existing| ours.contains(&(found.set.name.clone(), found.set.kind.clone()));
        let (mine, foreign): (Vec<_>, Vec<_>) = there.into_iter().partition(is_ours);
        let (kept, gone): (Vec<_>, Vec<_>) = mine.into_iter().partition(|found| {
            let same = |set: &RecordSet| normal(set) == normal(&found.set);
            to_be.iter().any(same)
        });
        let is_new = |set: &&RecordSet| !kept.iter().any(|old| normal(&old.set) == normal(set));
        let mut new: Vec<RecordSet> = to_be.iter().filter(is_new).cloned().collect();
        for set in gone.iter().map(|found| &found.set) {
            self.outline.lines.push(self.line('-', set, &steps, &checks));
        }
        for set in &new {
            self.outline.lines.push(self.line('+', set, &steps, &checks));
        }
        // Route 53 wants the target of an alias to be there.
        let depth = |set: &RecordSet| alias_depth(set, &to_be);
        new.sort_by_key(depth);
        let mut old = gone;
        old.sort_by_key(|found| found.set.alias.is_none());
        steps.changes.extend(old.into_iter().map(Change::Delete));
        steps.changes.extend(new.into_iter().map(Change::Create));
        let used: BTreeSet<&String> = foreign
            .iter()
            .chain(&kept)
            .filter_map(|found| found.set.health_check.as_ref())
            .collect();
        for id in left.into_iter().filter(|id| !used.contains(id)) {
            let check = checks.iter().find(|check| check.id == id);
            let what = check.map(|check| show_check(&check.config)).unwrap_or_default();
            self.outline.lines.push(format!("- health check {what} ({id})"));
            steps.delete.push(id);
        }
        Plan { outline: self.outline, steps }
    }

    /// Finds the health checks that are there, decides on those that are not or not any more; what sets name them by.
    fn match_checks(
        &mut self,
        there: &[Check],
        steps: &mut Route53Steps,
        left: &mut BTreeSet<String>,
    ) -> BTreeMap<String, String> {
        let own = there.iter().filter(|check| check.reference.starts_with(&self.prefix));
        left.extend(own.clone().map(|check| check.id.clone()));
        let mut ids = BTreeMap::new();
        for (key, wanted) in &self.checks {
            let begins = format!("{key}-");
            let same = |check: &&Check| {
                let is_static = wanted.config.disabled;
                let inverted =
                    if is_static { wanted.config.inverted } else { check.config.inverted };
                let config = CheckConfig { inverted, ..check.config.clone() };
                check.reference.starts_with(&begins) && config == wanted.config
            };
            if let Some(found) = own.clone().find(same) {
                left.remove(&found.id);
                ids.insert(key.clone(), found.id.clone());
                if found.config.inverted != wanted.config.inverted {
                    steps.invert.push((found.clone(), wanted.config.inverted));
                    let now = if wanted.config.inverted { "unhealthy" } else { "healthy" };
                    self.outline.lines.push(format!("~ health check {}: {now}", wanted.name));
                }
            } else {
                // A reference is good for one health check ever, even after that is deleted.
                let reference = format!("{begins}{}", nonce());
                self.outline.lines.push(format!(
                    "+ health check {}: {}",
                    wanted.name,
                    show_check(&wanted.config)
                ));
                ids.insert(key.clone(), reference.clone());
                steps.create.push((reference, wanted.clone()));
            }
        }
        ids
    }

    fn line(&self, mark: char, set: &RecordSet, steps: &Route53Steps, checks: &[Check]) -> String {
        let mut line = format!("{mark} {}.", set.name);
        if let Some(ttl) = set.ttl {
            line.push_str(&format!(" {ttl}"));
        }
        line.push_str(&format!(" {}", set.kind));
        match &set.alias {
            Some(alias) => line.push_str(&format!(" as {}.", alias.name)),
            None => line.push_str(&format!(" {}", set.values.join(" "))),
        }
        match &set.choice {
            None => {}
            Some(Choice::Primary) => line.push_str(", primary"),
            Some(Choice::Secondary) => line.push_str(", secondary"),
            Some(Choice::Weight(weight)) => line.push_str(&format!(", weight {weight}")),
            Some(Choice::Region(region)) => line.push_str(&format!(", region {region}")),
            Some(Choice::Multivalue) => line.push_str(", multivalue"),
        }
        if let Some(id) = &set.health_check {
            let new = steps.create.iter().find(|(reference, _)| reference == id);
            let old = checks.iter().find(|check| check.id == *id);
            let config = new.map(|(_, wanted)| &wanted.config).or(old.map(|check| &check.config));
            let shown = config.map_or_else(|| id.clone(), show_check);
            line.push_str(&format!(", if healthy: {shown}"));
        }
        line
    }

    fn warn(&mut self, record: &WantedRecord, what: impl fmt::Display) {
        self.outline.warnings.push(format!("{} {}: {what}", record.owner, record.record.kind));
    }

    /// The sets that say what a record says; why there are none.
    fn sets(&mut self, wanted: &Wanted, record: &WantedRecord) -> Result<Vec<RecordSet>, String> {
        let policy = &record.record.policy;
        let sets = match policy {
            Policy::Simple(list) => vec![self.simple(record, list)],
            // Where a part is, only our nodes know: what is answered now is what there is to say.
            Policy::Failover { follows: Some(_), .. } => {
                let values = record.now.values().into_iter().map(zone_text).collect();
                vec![RecordSet { values, ..self.set(record) }]
            }
            Policy::Failover { entries, failback, follows: None } => {
                self.failover(wanted, record, entries, *failback)?
            }
            Policy::Weighted(entries) => self.weighted(wanted, record, entries)?,
            Policy::Multivalue(list) => self.multivalue(wanted, record, list)?,
            Policy::Latency(entries) => self.latency(wanted, record, entries)?,
            Policy::Geo { .. } => {
                return Err("Route 53 knows countries, not networks of clients; keep policy geo here, or leave it out there".to_owned());
            }
            Policy::Alias { target, evaluate } => {
                let mut set = RecordSet::new(&plain(&record.owner), record.record.kind.word());
                set.alias = Some(self.alias(target, *evaluate));
                vec![set]
            }
        };
        if record.record.when_all_down != WhenAllDown::Open && !matches!(policy, Policy::Simple(_))
        {
            self.warn(record, "when all is down, Route 53 answers as if all were healthy, whatever `when_all_down` says");
        }
        Ok(sets)
    }

    fn set(&self, record: &WantedRecord) -> RecordSet {
        let mut set = RecordSet::new(&plain(&record.owner), record.record.kind.word());
        set.ttl = Some(super::seconds(record.record.ttl));
        set
    }

    fn simple(&self, record: &WantedRecord, list: &[Endpoint]) -> RecordSet {
        RecordSet {
            values: list.iter().map(|endpoint| zone_text(&endpoint.value)).collect(),
            ..self.set(record)
        }
    }

    fn failover(
        &mut self,
        wanted: &Wanted,
        record: &WantedRecord,
        entries: &[Entry],
        failback: Failback,
    ) -> Result<Vec<RecordSet>, String> {
        let [primary, secondary] = entries else {
            return Err(format!(
                "Route 53 has a primary and a secondary, not {}; name two, or make the second an alias of another failover",
                entries.len()
            ));
        };
        let serves = match &primary.what {
            Branch::Value(value) => Some(record.now == names::Choice::One(vec![value.clone()])),
            Branch::Policy(_) => None,
        };
        let mut first = self.entry(wanted, record, primary, "primary", serves)?;
        first.choice = Some(Choice::Primary);
        let mut second = self.entry(wanted, record, secondary, "secondary", None)?;
        second.choice = Some(Choice::Secondary);
        let check = first.health_check.as_ref().and_then(|key| self.checks.get(key));
        // Where our nodes decide, they decide on the way back, too.
        if !check.is_some_and(|check| check.config.disabled) {
            self.warn_of_failback(record, failback);
        }
        Ok(vec![first, second])
    }

    fn warn_of_failback(&mut self, record: &WantedRecord, failback: Failback) {
        match failback {
            Failback::Manual => self.warn(
                record,
                "Route 53 returns to the primary by itself, whatever `failback` says",
            ),
            Failback::After(after) if FAILBACK_MAX < after => self.warn(
                record,
                format_args!(
                    "Route 53 returns to the primary as soon as that is healthy, not after {} s",
                    after.as_secs()
                ),
            ),
            Failback::After(_) => {}
        }
    }

    fn weighted(
        &mut self,
        wanted: &Wanted,
        record: &WantedRecord,
        entries: &[(u16, Entry)],
    ) -> Result<Vec<RecordSet>, String> {
        let most = entries.iter().map(|(weight, _)| u32::from(*weight)).max().unwrap_or(1);
        if WEIGHT_MAX < most {
            self.warn(record, format_args!("weights are sent as shares of {WEIGHT_MAX}"));
        }
        let scaled = |weight: u16| match (u32::from(weight), WEIGHT_MAX < most) {
            (0, _) => 0,
            (weight, false) => weight,
            (weight, true) => (weight * WEIGHT_MAX / most).max(1),
        };
        let sets = entries.iter().map(|(weight, entry)| {
            let mut set = self.entry(wanted, record, entry, &entry.label(), None)?;
            set.choice = Some(Choice::Weight(u8::try_from(scaled(*weight)).unwrap_or(u8::MAX)));
            Ok(set)
        });
        sets.collect()
    }

    fn multivalue(
        &mut self,
        wanted: &Wanted,
        record: &WantedRecord,
        list: &[Endpoint],
    ) -> Result<Vec<RecordSet>, String> {
        if record.record.kind == RecordKind::Cname {
            return Err("Route 53 has no multivalue answers of type CNAME".to_owned());
        }
        let sets = list.iter().map(|endpoint| {
            let Endpoint { value, check } = endpoint.clone();
            let entry = Entry { what: Branch::Value(value.clone()), check };
            let mut set = self.entry(wanted, record, &entry, &value.to_string(), None)?;
            set.choice = Some(Choice::Multivalue);
            Ok(set)
        });
        sets.collect()
    }

    fn latency(
        &mut self,
        wanted: &Wanted,
        record: &WantedRecord,
        entries: &[(String, Entry)],
    ) -> Result<Vec<RecordSet>, String> {
        if let Some((region, _)) = entries.iter().find(|(region, _)| !is_region(region)) {
            return Err(format!(
                "Route 53 measures latency to regions of AWS, and `{region}` is not one like `eu-west-1`"
            ));
        }
        self.warn(record, "Route 53 measures latencies itself, whatever `latencies` says");
        let sets = entries.iter().map(|(region, entry)| {
            let mut set = self.entry(wanted, record, entry, region, None)?;
            set.choice = Some(Choice::Region(region.clone()));
            Ok(set)
        });
        sets.collect()
    }

    /// A set among others: its value or its alias, and its health check. `serves`: our nodes have decided whether this is what is
    /// answered.
    fn entry(
        &mut self,
        wanted: &Wanted,
        record: &WantedRecord,
        entry: &Entry,
        word: &str,
        serves: Option<bool>,
    ) -> Result<RecordSet, String> {
        let mut set = self.set(record);
        match &entry.what {
            Branch::Value(value) => set.values = vec![zone_text(value)],
            Branch::Policy(Policy::Alias { target, evaluate }) => {
                set.ttl = None;
                set.alias = Some(self.alias(target, *evaluate));
            }
            Branch::Policy(inner) => {
                return Err(format!(
                    "Route 53 has no policies in policies; give the inner {} a record of its own, and put an alias of it here",
                    inner.word()
                ));
            }
        }
        // With the name, because some tools tell sets apart by this alone.
        let identifier = format!("{} {word}", record.record.name);
        set.set_identifier = Some(identifier.chars().take(IDENTIFIER_MAX).collect());
        if let Some(check) = &entry.check {
            let (mut key, mut check) = self.check(wanted, record, check);
            if let Some(serves) = serves.filter(|_| check.config.disabled) {
                let what = format!("{} {}", record.owner, record.record.kind);
                check.name = format!("{} for {what}", check.name);
                check.config.inverted = !serves;
                key = format!("serves {what}");
            }
            let key = format!("{}{}", self.prefix, short_hash(&key));
            // What several entries share is called after the first.
            self.checks.entry(key.clone()).or_insert(check);
            set.health_check = Some(key);
        }
        Ok(set)
    }

    fn alias(&self, target: &str, evaluate: bool) -> Alias {
        let name = match target {
            "@" => self.zone.clone(),
            other => format!("{}.{}", other.to_ascii_lowercase(), self.zone),
        };
        Alias { zone_id: self.zone_id.to_owned(), name, evaluate }
    }

    /// A health check, and what tells it from all others.
    fn check(
        &mut self,
        wanted: &Wanted,
        record: &WantedRecord,
        check: &HealthCheck,
    ) -> (String, WantedCheck) {
        match check {
            HealthCheck::Value(probe) => match self.own(record, probe) {
                Ok(config) => {
                    (format!("{config:?}"), WantedCheck { config, name: probe.id.clone() })
                }
                Err(why) => {
                    self.warn(
                        record,
                        format_args!(
                            "Route 53 cannot ask {}: {why}; the verdict of our nodes is sent",
                            probe.host
                        ),
                    );
                    self.told(wanted, check, probe.id.clone())
                }
            },
            HealthCheck::Part(part) => self.told(wanted, check, part.to_string()),
            HealthCheck::Calculated { at_least, of, invert } => {
                let of: Vec<String> = of.iter().map(ToString::to_string).collect();
                let contrary = if *invert { "not " } else { "" };
                self.told(wanted, check, format!("{contrary}{at_least} of {}", of.join(", ")))
            }
        }
    }

    /// A check whose verdict comes from here.
    fn told(&self, wanted: &Wanted, check: &HealthCheck, name: String) -> (String, WantedCheck) {
        let config = CheckConfig {
            how: How::Tcp,
            ip: None,
            port: 80,
            host: Some(self.zone.clone()),
            interval: 30,
            threshold: 1,
            inverted: !wanted.is_healthy(check),
            disabled: true,
        };
        (format!("told {name}"), WantedCheck { config, name })
    }

    /// A check that Route 53 makes itself; why it cannot.
    fn own(&mut self, record: &WantedRecord, probe: &ValueProbe) -> Result<CheckConfig, String> {
        let (how, host, port, header) = match &probe.probe.check {
            ProbeCheck::Tcp { address } => {
                let there = address.as_ref();
                let host = there.map_or(probe.host.clone(), |there| there.host.clone());
                (How::Tcp, host, there.map_or(probe.port, |there| there.port), None)
            }
            ProbeCheck::Http(http) => self.http(record, probe, http)?,
            ProbeCheck::Command(_) => return Err("it runs no commands".to_owned()),
            ProbeCheck::Grpc { .. } => return Err("it speaks no gRPC".to_owned()),
        };
        let ip: Option<IpAddr> = host.parse().ok();
        if ip.is_some_and(|ip| !is_public(ip)) {
            return Err("its address is a private one".to_owned());
        }
        let every = probe.probe.every;
        let interval = match every <= Duration::from_secs(u64::from(INTERVALS[0])) {
            true => INTERVALS[0],
            false => INTERVALS[1],
        };
        let fall = probe.probe.thresholds.fall.get();
        if every != Duration::from_secs(u64::from(interval)) || THRESHOLD_MAX < fall {
            self.warn(
                record,
                format_args!(
                    "Route 53 asks {host} every {interval} s, and {} answers in a row turn it",
                    fall.min(THRESHOLD_MAX)
                ),
            );
        }
        Ok(CheckConfig {
            how,
            ip,
            port: port.get(),
            host: match ip {
                Some(_) => header,
                None => Some(host.trim_end_matches('.').to_owned()),
            },
            interval,
            threshold: u8::try_from(fall.min(THRESHOLD_MAX)).unwrap_or(10),
            inverted: false,
            disabled: false,
        })
    }

    fn http(
        &mut self,
        record: &WantedRecord,
        probe: &ValueProbe,
        http: &HttpCheck,
    ) -> Result<(How, String, std::num::NonZeroU16, Option<String>), String> {
        if http.method != "GET" {
            return Err(format!("it asks with GET, not with {}", http.method));
        }
        let is_host = |name: &String| name.eq_ignore_ascii_case("host");
        if http.headers.iter().any(|(name, _)| !is_host(name)) {
            return Err("it sends no headers".to_owned());
        }
        let (search, too_long) = match &http.body {
            Some(text) if SEARCH_MAX < text.len() => (None, true),
            Some(text) if text.is_empty() => (None, false),
            other => (other.clone(), false),
        };
        if too_long {
            return Err(format!("it searches for {SEARCH_MAX} characters at most"));
        }
        if http.status.0 != [(200, 399)] {
            self.warn(record, "Route 53 takes every status of 200 to 399, whatever `status` says");
        }
        let header =
            http.headers.iter().find(|(name, _)| is_host(name)).map(|(_, host)| host.clone());
        Ok(match &http.target {
            HttpTarget::Path(path) => (
                How::Http { tls: false, path: path.clone(), search },
                probe.host.clone(),
                probe.port,
                header,
            ),
            HttpTarget::Url { tls, authority, path } => (
                How::Http { tls: *tls, path: path.clone(), search },
                authority.host.clone(),
                authority.port,
                header,
            ),
        })
    }
}

/// How many aliases lie between a set and values.
fn alias_depth(set: &RecordSet, all: &[RecordSet]) -> usize {
    let mut names = vec![set];
    for depth in 0..all.len() {
        let targets: Vec<&RecordSet> = names
            .iter()
            .filter_map(|set| set.alias.as_ref())
            .flat_map(|alias| {
                all.iter().filter(|set| set.name == alias.name && set.kind == names[0].kind)
            })
            .collect();
        if targets.is_empty() {
            return depth + usize::from(names.iter().any(|set| set.alias.is_some()));
        }
        names = targets;
    }
    all.len()
}

/// A set in the form in which two are compared.
fn normal(set: &RecordSet) -> RecordSet {
    let mut set = set.clone();
    for value in &mut set.values {
        *value = match set.kind.as_str() {
            "AAAA" => value.parse::<Ipv6Addr>().map_or(value.clone(), |ip| ip.to_string()),
            "CNAME" => value.trim_end_matches('.').to_ascii_lowercase(),
            _ => value.clone(),
        };
    }
    set.values.sort();
    set
}

fn show_check(config: &CheckConfig) -> String {
    if config.disabled {
        return format!("{} say our nodes", if config.inverted { "unhealthy" } else { "healthy" });
    }
    let host = match (&config.ip, &config.host) {
        (Some(IpAddr::V6(ip)), _) => format!("[{ip}]"),
        (Some(ip), _) => ip.to_string(),
        (None, host) => host.clone().unwrap_or_default(),
    };
    let (what, search) = match &config.how {
        How::Tcp => (format!("tcp {host}:{}", config.port), None),
        How::Http { tls, path, search } => {
            let scheme = if *tls { "https" } else { "http" };
            (format!("{scheme}://{host}:{}{path}", config.port), search.as_ref())
        }
        How::Other(word) => (word.clone(), None),
    };
    let search = search.map_or(String::new(), |text| format!(" has {text:?}"));
    format!("{what}{search} every {} s, {} in a row", config.interval, config.threshold)
}

/// A value as in a zone file.
fn zone_text(value: &RecordValue) -> String {
    match value {
        RecordValue::A(ip) => ip.to_string(),
        RecordValue::Aaaa(ip) => ip.to_string(),
        RecordValue::Cname(name) => name.trim_end_matches('.').to_ascii_lowercase(),
        RecordValue::Txt(text) => {
            let mut quoted = String::from("\"");
            for byte in text.bytes() {
                match byte {
                    b'"' | b'\\' => quoted.extend(['\\', char::from(byte)]),
                    b' '..=b'~' => quoted.push(char::from(byte)),
                    _ => quoted.push_str(&format!("\\{byte:03o}")),
                }
            }
            quoted.push('"');
            quoted
        }
    }
}

/// A name as Route 53 has it: without a dot at its end.
fn plain(name: &Name) -> String {
    name.to_string().trim_end_matches('.').to_owned()
}

/// Whether it is a name like `eu-west-1`; not whether there is such a region.
fn is_region(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [words @ .., number] = &parts[..] else { return false };
    2 <= words.len()
        && words.iter().all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase()))
        && matches!(number.as_bytes(), [b'1'..=b'9'])
}

/// Whether checkers on the internet can reach it. Route 53 refuses others.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let is_shared = a == 100 && (64..128).contains(&b);
            !(ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_broadcast()
                || ip.is_multicast()
                || ip == Ipv4Addr::UNSPECIFIED
                || is_shared)
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unique_local()
                || ip.is_unicast_link_local())
        }
    }
}

/// Sixteen digits that are the same for the same text.
fn short_hash(text: &str) -> String {
    hex(&digest::digest(&digest::SHA256, text.as_bytes()).as_ref()[..8])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Twelve digits that nobody has drawn before.
fn nonce() -> String {
    let mut bytes = [0; 6];
    let drawn = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes);
    // Without chance a second one is refused by Route 53, and nothing worse.
    hex(if drawn.is_ok() { &bytes } else { &[0; 6] })
}
