//! What the nodes of a cluster see of the same things, and what they see together.
//!
//! One observer can be wrong: its own network may be what is broken. So nodes tell each other what they believe, and a
//! verdict on a thing is what more than half of all nodes say of it. Where there is no such majority, it is unknown.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::agreed::form::{coded_enum, coded_struct};
use crate::database::DatabaseSight;
use crate::event::Target;
use crate::health::Health;
use crate::pair::Epoch;
use crate::time::Instant;
use crate::view::ServiceState;

/// A node says what it sees at least this often.
pub const SAY_EVERY: Duration = Duration::from_secs(1);

/// What was said longer ago than this counts no more.
pub const STALE_AFTER: Duration = Duration::from_secs(4);

/// Bytes of a reason that travel along.
pub const REASON_MAX: usize = 200;

/// What one node sees, as it tells the others. Durations count from when it was said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub build: String,
    /// Of the topology that it runs, by the count of the cluster; 0: its own file.
    pub topology_version: u64,
    pub targets: BTreeMap<Target, Sight>,
    pub services: BTreeMap<String, ServiceSight>,
    /// Service and backend that a person took out of traffic at this node.
    pub draining: BTreeSet<(String, String)>,
    /// Pairs whose route of this epoch its data plane has in force.
    pub routes: BTreeMap<String, Epoch>,
    pub databases: BTreeMap<String, DatabaseSight>,
}

coded_struct!(Report version 3 { build, topology_version, targets, services, draining, routes, databases });

/// What is believed of one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    pub health: Health,
    /// Since the first failed probe of the present run of failures.
    pub failing_for: Option<Duration>,
    /// What the last change was founded on; at most [`REASON_MAX`] bytes.
    pub reason: String,
}

coded_struct!(Sight { health, failing_for, reason });

/// How clients of a node are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSight {
    pub state: ServiceState,
    pub why: String,
}

coded_struct!(ServiceSight { state, why });

coded_enum!(Health, "a health that is not known here", { 1 = Unknown, 2 = Up, 3 = Down });
coded_enum!(ServiceState, "a state that is not known here", { 1 = Unknown, 2 = Up, 3 = Degraded, 4 = Down });
coded_enum!(Target, "a target that is not known here", { 1 = Backend { service, backend }, 2 = External { name }, 3 = Value { id } });

impl Report {
    /// Whether anything that others would act on is different: reasons and durations are not.
    pub fn differs(&self, other: &Report) -> bool {
        let healths = |report: &Report| -> Vec<Health> {
            report.targets.values().map(|sight| sight.health).collect()
        };
        let states = |report: &Report| -> Vec<ServiceState> {
            report.services.values().map(|sight| sight.state).collect()
        };
        self.topology_version != other.topology_version
            || !self.targets.keys().eq(other.targets.keys())
            || healths(self) != healths(other)
            || states(self) != states(other)
            || self.draining != other.draining
            || self.routes != other.routes
            || !self.databases.keys().eq(other.databases.keys())
            || self.databases.iter().any(|(name, sight)| {
                other.databases.get(name).is_none_or(|other| sight.differs(other))
            })
    }
}

/// A reason that is short enough to travel.
pub fn short(reason: &str) -> String {
    let end = reason.floor_char_boundary(REASON_MAX);
    String::from(&reason[..end])
}

/// What all nodes together say of a thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub health: Health,
    pub up: usize,
    pub down: usize,
    /// All nodes, also those that say nothing.
    pub of: usize,
}

impl Verdict {
    /// Those of `of` that have a word count each once.
    pub fn of(votes: impl Iterator<Item = Health>, of: usize) -> Verdict {
        let (mut up, mut down) = (0, 0);
        for vote in votes {
            match vote {
                Health::Up => up += 1,
                Health::Down => down += 1,
                Health::Unknown => {}
            }
        }
        let health = match of / 2 {
            half if up > half => Health::Up,
            half if down > half => Health::Down,
            _ => Health::Unknown,
        };
        Verdict { health, up, down, of }
    }
}

/// What another node said, and when that was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub report: Report,
    pub at: Instant,
}

/// What all the others have said last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observers {
    heard: BTreeMap<String, Heard>,
}

impl Observers {
    pub fn hear(&mut self, now: Instant, node: String, report: Report) {
        self.heard.insert(node, Heard { report, at: now });
    }

    /// Only these nodes count from now on.
    pub fn retain(&mut self, nodes: &BTreeSet<String>) {
        self.heard.retain(|name, _| nodes.contains(name));
    }

    /// What each node said last, however old.
    pub fn all(&self) -> &BTreeMap<String, Heard> {
        &self.heard
    }

    /// Nodes whose word counts, and what they say.
    pub fn fresh(&self, now: Instant) -> impl Iterator<Item = (&String, &Heard)> {
        self.heard.iter().filter(move |(_, heard)| now.since(heard.at) <= STALE_AFTER)
    }

    /// What this node and the others, `of` in all, say of a target.
    pub fn verdict(&self, now: Instant, target: &Target, own: Health, of: usize) -> Verdict {
        let others = self.fresh(now).map(|(_, heard)| {
            heard.report.targets.get(target).map_or(Health::Unknown, |sight| sight.health)
        });
        Verdict::of(others.chain([own]), of)
    }

    /// Since when a target fails, going by whoever noticed first.
    pub fn failing_since(
        &self,
        now: Instant,
        target: &Target,
        own: Option<Instant>,
    ) -> Option<Instant> {
        let others = self.fresh(now).filter_map(|(_, heard)| {
            let failing_for = heard.report.targets.get(target)?.failing_for?;
            Some(heard.at - failing_for)
        });
        others.chain(own).min()
    }

    /// Whether a person has taken a backend out of traffic at any other node.
    pub fn drained(&self, now: Instant, key: &(String, String)) -> bool {
        self.fresh(now).any(|(_, heard)| heard.report.draining.contains(key))
    }

    /// Whether a node has said that its data plane has this epoch of a pair, or a later one. That stays true, however
    /// old the word is.
    pub fn routes(&self, node: &str, service: &str, epoch: Epoch) -> bool {
        let routed = self.heard.get(node).and_then(|heard| heard.report.routes.get(service));
        routed.is_some_and(|&routed| epoch <= routed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Code as _;
    use alloc::borrow::ToOwned as _;

    fn target() -> Target {
        Target::Backend { service: "web".to_owned(), backend: "http://10.0.0.1".to_owned() }
    }

    fn says(health: Health) -> Report {
        let sight = Sight { health, ..Sight::default() };
        Report { targets: BTreeMap::from([(target(), sight)]), ..Report::default() }
    }

    /// `own others... => health`; letters are u, d and ?, a dot is a node that has said nothing.
    fn check_verdict(votes: &str, expected: Health) {
        let health = |c| match c {
            'u' => Health::Up,
            'd' => Health::Down,
            _ => Health::Unknown,
        };
        let mut observers = Observers::default();
        for (i, vote) in votes.chars().enumerate().skip(1).filter(|(_, c)| *c != '.') {
            observers.hear(Instant::default(), alloc::format!("n{i}"), says(health(vote)));
        }
        let own = votes.chars().next().map_or(Health::Unknown, health);
        let verdict = observers.verdict(Instant::default(), &target(), own, votes.len());
        assert_eq!(verdict.health, expected, "{votes}: {verdict:?}");
    }

    #[test]
    fn a_verdict_is_what_more_than_half_of_all_nodes_say() {
        check_verdict("u", Health::Up);
        check_verdict("uu", Health::Up);
        check_verdict("u.", Health::Unknown);
        check_verdict("ud", Health::Unknown);
        check_verdict("uud", Health::Up);
        check_verdict("ddu", Health::Down);
        check_verdict("dd.", Health::Down);
        check_verdict("d?.", Health::Unknown);
        check_verdict("d..", Health::Unknown);
        check_verdict("uudd.", Health::Unknown);
        check_verdict("dddu.", Health::Down);
    }

    #[test]
    fn what_was_said_long_ago_counts_no_more() {
        let mut observers = Observers::default();
        observers.hear(Instant::default(), "b".to_owned(), says(Health::Down));
        let at = |after: Duration| {
            observers.verdict(Instant::from_start(after), &target(), Health::Down, 3).health
        };
        assert_eq!(at(STALE_AFTER), Health::Down);
        assert_eq!(at(STALE_AFTER + Duration::from_nanos(1)), Health::Unknown);
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let mut report = says(Health::Down);
        report.routes.insert("billing".to_owned(), Epoch(4));
        report.draining.insert(("web".to_owned(), "http://10.0.0.1".to_owned()));
        let why = ServiceSight { state: ServiceState::Degraded, why: "1 of 2".to_owned() };
        report.services.insert("web".to_owned(), why);
        assert_eq!(Report::from_bytes(&report.to_bytes()), Ok(report.clone()));
        let mut later = report.clone();
        later.targets.values_mut().for_each(|sight| sight.failing_for = Some(SAY_EVERY));
        assert!(!later.differs(&report));
        later.routes.insert("billing".to_owned(), Epoch(5));
        assert!(later.differs(&report));
    }
}
