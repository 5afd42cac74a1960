//! What follows a failover: an address that moves with the pair, and names that lead to it. The node that decided on the
//! failover writes down how long each took, so that its journal has all of it: detect, start, ready, switch, address, names.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outlast_core::address::plans;
use outlast_core::event::Fact;
use outlast_core::names::{places, places_alone, policy_key};
use outlast_core::pair::{Epoch, Stage};
use outlast_core::topology::{Entry, PartKind, PartRef, Policy, Topology};

use super::Loop;

/// What has not followed by then is not waited for.
const TRAIL_MAX: Duration = Duration::from_secs(60);

/// Failovers that are still followed, by service.
#[derive(Debug, Default)]
pub(super) struct Trails(BTreeMap<String, Trail>);

#[derive(Debug)]
struct Trail {
    epoch: Epoch,
    /// When the stage before was done.
    since: Instant,
    began: Instant,
    address: bool,
}

impl Trails {
    pub(super) fn note(&mut self, fact: &Fact) {
        if let Fact::FailoverFinished { service, epoch, .. } = fact {
            let now = Instant::now();
            let trail = Trail { epoch: *epoch, since: now, began: now, address: false };
            self.0.insert(service.clone(), trail);
        } else if let Fact::FailoverStarted { service, .. }
        | Fact::FailbackFinished { service, .. } = fact
        {
            self.0.remove(service);
        }
    }
}

impl Loop {
    /// Writes down what has followed.
    pub(super) fn follow_trails(&mut self) {
        if self.trails.0.is_empty() {
            return;
        }
        let mut facts = Vec::new();
        let (now_at, answered) = match &self.cluster {
            Some(_) => (places(&self.topology, &self.agreement), self.agreement.names.clone()),
            None => (places_alone(&self.sides()), self.name_servers.seen().agreed.clone()),
        };
        let (topology, agreement) = (&self.topology, &self.agreement);
        self.trails.0.retain(|service, trail| {
            let part = PartRef { kind: PartKind::Service, name: service.clone() };
            let mut done = |trail: &mut Trail, stage| {
                let (service, epoch, took) = (service.clone(), trail.epoch, trail.since.elapsed());
                facts.push(Fact::FailoverStage { service, epoch, stage, took });
                trail.since = Instant::now();
            };
            let addresses = plans(topology);
            let mut followers = addresses
                .iter()
                .filter(|(_, plan)| plan.follows.as_ref() == Some(&part))
                .peekable();
            if !trail.address && followers.peek().is_some() {
                let there = followers.all(|(unit, plan)| {
                    let holder = agreement.addresses.get(unit).and_then(|it| it.holder.clone());
                    holder.is_some() && holder == plan.wanted(topology, agreement)
                });
                if !there {
                    return trail.began.elapsed() < TRAIL_MAX;
                }
                done(trail, Stage::Address);
            }
            trail.address = true;
            let names = following(topology, &part);
            if names.is_empty() {
                return false;
            }
            let place = now_at.get(&part.to_string()).copied();
            let there = names.iter().all(|(policy, labels)| {
                let chosen = answered.chosen.get(policy).or(labels.first());
                place.is_some_and(|place| labels.get(place) == chosen)
            });
            if there {
                done(trail, Stage::Names);
            }
            !there && trail.began.elapsed() < TRAIL_MAX
        });
        self.record_all(facts);
    }
}

/// The policies that follow a part, and their entries.
fn following(topology: &Topology, part: &PartRef) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    for (zone, of) in &topology.dns {
        for record in &of.records {
            if let Policy::Failover { entries, follows: Some(followed), .. } = &record.policy
                && followed == part
            {
                let id = outlast_core::names::FailoverId::of(record);
                all.insert(policy_key(zone, &id), entries.iter().map(Entry::label).collect());
            }
        }
    }
    all
}
