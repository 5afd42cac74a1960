//! An agent that is one of several: it hears what the others see, decides on pairs only while it leads, and follows what
//! is agreed otherwise.

use alloc::borrow::ToOwned as _;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Action, Agent, Now, Unsaved, say};
use crate::agreed::{
    Agreed, AgreedAddress, AgreedNames, AgreedSide, Database, Notice, SideCommand, Stamp,
    database_role,
};
use crate::event::{Fact, Target};
use crate::health::Health;
use crate::names::{self, Sights};
use crate::observers::{
    Observers, Report, SAY_EVERY, STALE_AFTER, ServiceSight, Sight, Verdict, short,
};
use crate::pair::{Epoch, Seen, Side};
#[cfg(test)]
use crate::sim::{Bug, instead};
use crate::time::Instant;
use crate::topology;
use crate::view::{NodeView, ServiceState};

/// The leader asks again for a pair to be settled after this long without an answer.
const SETTLE_EVERY: Duration = Duration::from_secs(1);

/// Why a pair is not served where no lease is held.
const NO_LEASE: &str =
    "this node's lease is over: which side serves is not known here until a majority answers";

/// Why a pair is not served while it moves.
const MOVING: &str = "changes sides: waits until every node has left the other one";

/// Whether a node says of a pair only that it does not route to it now, which says nothing about the pair's servers.
pub(crate) fn is_between(why: &str) -> bool {
    why.contains(MOVING) || why.contains(NO_LEASE)
}

/// How long a node may route to pairs after it last asked a majority. A failover waits for it only where a node that held
/// one is not heard any more.
pub const ROUTING_LEASE: Duration = Duration::from_secs(3);

const ROUTING: &str = "routes/";

/// The role under which a node may route to pairs.
pub fn routing_role(node: &str) -> String {
    format!("{ROUTING}{node}")
}

/// What is agreed, as far as an agent goes by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Everybody who counts, this node, too.
    pub nodes: BTreeSet<String>,
    /// Who holds a lease to route to pairs.
    pub holders: BTreeSet<String>,
    pub sides: BTreeMap<String, AgreedSide>,
    pub databases: BTreeMap<String, Held>,
    pub addresses: BTreeMap<String, AgreedAddress>,
    pub names: Arc<AgreedNames>,
    /// People want no automatic failover now.
    pub pause: Option<Notice>,
    /// Nodes whose members of databases are paused, because people work on them.
    pub paused: BTreeMap<String, Notice>,
    /// This node leads.
    pub leads: bool,
}

/// A database, and who may serve it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub database: Database,
    /// The node that holds the lease of its primary, and the lease's epoch.
    pub lease: Option<(String, u64)>,
}

impl Agreement {
    pub fn of(agreed: &Agreed, leads: bool) -> Agreement {
        let nodes = agreed.registry().nodes();
        let holders = agreed.leases().held().iter().filter_map(|(role, lease)| {
            let name = role.strip_prefix(ROUTING)?;
            // The lease of a node that was removed runs out like any other.
            let known = nodes.get(&lease.holder).is_some_and(|node| node.name == name);
            Some(if known { name.to_owned() } else { format!("{name} (removed)") })
        });
        let holders = holders.collect();
        let databases = agreed.databases().all().iter().map(|(name, database)| {
            let lease = agreed.leases().get(&database_role(name)).map(|lease| {
                let holder = nodes.get(&lease.holder).map(|node| node.name.clone());
                (holder.unwrap_or_default(), lease.epoch)
            });
            (name.clone(), Held { database: database.clone(), lease })
        });
        let databases = databases.collect();
        let nodes = nodes.values().map(|node| node.name.clone()).collect();
        let pause = agreed.notices().pause().map(|(_, notice)| notice.clone());
        let paused = agreed.notices().paused_nodes();
        let paused = paused.map(|(node, _, notice)| (node.to_owned(), notice.clone())).collect();
        let sides = agreed.sides().all().clone();
        let addresses = agreed.addresses().all().clone();
        let names = agreed.names().all().clone();
        Agreement { nodes, holders, sides, databases, addresses, names, pause, paused, leads }
    }
}

/// What an agent knows because it is one of several.
#[derive(Clone, Debug)]
pub(super) struct Joint {
    me: String,
    agreed: Agreement,
    /// It was heard at least once.
    known: bool,
    observers: Observers,
    /// Epochs of pairs that this node's data plane has in force.
    routes: BTreeMap<String, Epoch>,
    /// Pairs that are to be settled, and when that was asked for.
    settling: BTreeMap<String, Instant>,
    /// This node holds its lease; `None` until that is known.
    vouches: Option<bool>,
}

impl Joint {
    pub(super) fn new(me: String) -> Joint {
        Joint {
            me,
            agreed: Agreement::default(),
            known: false,
            observers: Observers::default(),
            routes: BTreeMap::new(),
            settling: BTreeMap::new(),
            vouches: None,
        }
    }

    /// The epoch of a route that this node's data plane has not confirmed yet.
    pub(super) fn unconfirmed(&self, service: &str, routed: Epoch) -> Option<Epoch> {
        let confirmed = self.routes.get(service).is_some_and(|&confirmed| routed <= confirmed);
        (!confirmed).then_some(routed)
    }

    /// When a pair that was not settled is to be asked for again.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let asked = self.settling.values().filter(|_| self.agreed.leads);
        asked.map(|&asked| (asked + SETTLE_EVERY).max(now)).min()
    }

    /// What all nodes see of a pair.
    pub(super) fn seen(
        &self,
        now: Instant,
        service: &str,
        spec: &topology::Pair,
        own: Seen,
    ) -> Seen {
        let target = |backend: &str| Target::Backend {
            service: service.to_owned(),
            backend: backend.to_owned(),
        };
        let verdict = |backend: &str, own| self.verdict(now, &target(backend), own).health;
        let drained =
            |backend: &str| self.observers.drained(now, &(service.to_owned(), backend.to_owned()));
        let (primary, backup) = (&spec.primary.url, &spec.backup.url);
        Seen {
            primary: verdict(primary, own.primary),
            backup: verdict(backup, own.backup),
            primary_drained: own.primary_drained || drained(primary),
            backup_drained: own.backup_drained || drained(backup),
            primary_failing_since: self.observers.failing_since(
                now,
                &target(primary),
                own.primary_failing_since,
            ),
        }
    }

    fn verdict(&self, now: Instant, target: &Target, own: Health) -> Verdict {
        // Of two nodes, which can only agree through others, one that is gone has no lease, and no say.
        let of = match self.agreed.nodes.len() {
            2 => self.agreed.holders.intersection(&self.agreed.nodes).count(),
            more => more,
        };
        let of = of.max(1);
        let verdict = self.observers.verdict(now, target, own, of);
        #[cfg(test)]
        let alone = Verdict { health: own, ..verdict };
        #[cfg(test)]
        let verdict = instead(Bug::OneObserver, verdict, alone);
        verdict
    }

    /// Whether every other node that may route to pairs was heard a moment ago.
    fn everybody_listens(&self, now: Instant) -> bool {
        let heard = self.observers.all();
        let heard = |node: &String| {
            heard.get(node).is_some_and(|heard| now.since(heard.at) <= 2 * SAY_EVERY)
        };
        self.agreed.holders.iter().all(|node| *node == self.me || heard(node))
    }

    /// Whether nobody can route to the side that a pair had before this epoch.
    fn all_have_left(&self, service: &str, epoch: Epoch) -> bool {
        let left = |node: &String| {
            if *node == self.me {
                self.unconfirmed(service, epoch).is_none()
            } else {
                self.observers.routes(node, service, epoch)
            }
        };
        let left = self.agreed.holders.iter().all(left);
        #[cfg(test)]
        let left = instead(Bug::SettledEarly, left, true);
        left
    }
}

impl Agent {
    /// Whether this node is one of several.
    pub fn is_joint(&self) -> bool {
        self.joint.is_some()
    }

    /// Whether this node decides on pairs.
    pub fn decides(&self) -> bool {
        self.joint.as_ref().is_none_or(|joint| joint.agreed.leads)
    }

    pub(super) fn decides_on(&self, service: &str) -> bool {
        let waits = self.joint.is_some()
            && (self.moving.contains(service) || self.unsaved.contains_key(service));
        self.decides() && !waits
    }

    /// Whether this node's data plane lacks what is agreed.
    pub fn is_behind(&self) -> bool {
        !self.unconfirmed().is_empty()
    }

    /// What is agreed and followed here, and not confirmed by this node's data plane yet; also of pairs that its topology
    /// does not have, to which it cannot route.
    pub(super) fn unconfirmed(&self) -> BTreeMap<String, Epoch> {
        let Some(joint) = &self.joint else { return BTreeMap::new() };
        let sides = joint.agreed.sides.iter().filter(|(service, side)| {
            let pair = self.pairs.get(*service).or(self.retired.get(*service));
            pair.is_some_and(|pair| pair.routed() == side.epoch)
        });
        let epochs = sides.filter_map(|(service, side)| {
            Some((service.clone(), joint.unconfirmed(service, side.epoch)?))
        });
        epochs.collect()
    }

    /// What all nodes say of a target; `None` where there is only one.
    pub fn verdict(&self, now: Instant, target: &Target) -> Option<Verdict> {
        let own = self.watches.get(target).map_or(Health::Unknown, |w| w.belief.health());
        Some(self.joint.as_ref()?.verdict(now, target, own))
    }

    /// What every node that is heard sees of the things that answers of name servers depend on; `me` is this one.
    pub fn witnesses(&self, now: Instant, me: &str) -> BTreeMap<String, Sights> {
        let own = (me.to_owned(), names::sights(&self.report(now)));
        let fresh = self.joint.iter().flat_map(|joint| joint.observers.fresh(now));
        let others = fresh.map(|(node, heard)| (node.clone(), names::sights(&heard.report)));
        others.chain([own]).collect()
    }

    pub(super) fn node_views(&self, now: Instant) -> BTreeMap<String, NodeView> {
        let Some(joint) = &self.joint else { return BTreeMap::new() };
        let views = joint.observers.all().iter().map(|(name, heard)| {
            let heard_ago = now.since(heard.at);
            let report = &heard.report;
            let view = NodeView {
                heard_ago,
                counts: heard_ago <= STALE_AFTER,
                build: report.build.clone(),
                topology_version: report.topology_version,
                services: report.services.clone(),
            };
            (name.clone(), view)
        });
        views.collect()
    }

    /// What this node tells the others.
    pub fn report(&self, now: Instant) -> Report {
        let targets = self.watches.iter().map(|(target, watch)| {
            let sight = Sight {
                health: watch.belief.health(),
                failing_for: watch.failing_since.map(|since| now.since(since)),
                reason: short(&watch.reason),
            };
            (target.clone(), sight)
        });
        let services = self.topology.services.keys().map(|name| {
            let (state, why) = self.judge(name);
            (name.clone(), ServiceSight { state, why: short(&why) })
        });
        Report {
            targets: targets.collect(),
            services: services.collect(),
            draining: self.draining.clone(),
            routes: self.joint.as_ref().map(|joint| joint.routes.clone()).unwrap_or_default(),
            ..Report::default()
        }
    }

    /// Why this node routes a pair to nobody.
    pub(super) fn not_routed(&self, service: &str) -> Option<(ServiceState, String)> {
        if self.moving.contains(service) {
            return Some((ServiceState::Down, MOVING.to_owned()));
        }
        match self.joint.as_ref()?.vouches {
            Some(true) => None,
            Some(false) => Some((ServiceState::Down, NO_LEASE.to_owned())),
            None => Some((ServiceState::Unknown, "this node waits for its lease".to_owned())),
        }
    }

    /// Whether it says anything new.
    pub(super) fn hear_node(&mut self, now: Now, node: String, report: Report) -> bool {
        let Some(joint) = &mut self.joint else { return false };
        if !joint.agreed.nodes.contains(&node) {
            return false;
        }
        let before = joint.observers.fresh(now.instant).find(|(name, _)| **name == node);
        let new = before.is_none_or(|(_, heard)| report.differs(&heard.report));
        joint.observers.hear(now.instant, node, report);
        new
    }

    pub(super) fn vouches(&mut self, vouches: bool) {
        if let Some(joint) = &mut self.joint {
            joint.vouches = Some(vouches);
        }
    }

    /// This node's data plane has a route in force.
    pub(super) fn confirmed(&mut self, service: &str, epoch: Epoch) {
        let Some(joint) = &mut self.joint else { return };
        // What a newer order has overtaken says nothing, nor does what was never agreed on.
        let agreed = joint.agreed.sides.get(service).is_some_and(|side| side.epoch == epoch);
        let pair = self.pairs.get(service).or(self.retired.get(service));
        if agreed && pair.is_some_and(|pair| pair.routed() == epoch) {
            joint.routes.insert(service.to_owned(), epoch);
        }
    }

    /// Takes over what is agreed.
    pub(super) fn follow(&mut self, agreement: Agreement, out: &mut Vec<Action>) {
        let Some(joint) = &mut self.joint else { return };
        joint.observers.retain(&agreement.nodes);
        joint.known = true;
        let led = core::mem::replace(&mut joint.agreed, agreement.clone()).leads;
        if led && !agreement.leads {
            self.stop_deciding(out);
        }
        let mut moved = false;
        for (service, agreed) in &agreement.sides {
            moved |= self.follow_side(service, agreed, out);
        }
        if moved {
            // What was thought not to be agreed on may have been, or is overtaken.
            self.save_trouble = None;
            out.push(Action::SavePairs);
        }
    }

    fn follow_side(&mut self, service: &str, agreed: &AgreedSide, out: &mut Vec<Action>) -> bool {
        let own = self.unsaved.get(service).map(|unsaved| unsaved.after.epoch());
        if own == Some(agreed.epoch) {
            // The answer to it is on its way.
            return false;
        }
        let known = self.pairs.get_mut(service).or(self.retired.get_mut(service));
        let Some(pair) = known else {
            // It will be needed when a topology has the pair.
            self.retired.insert(service.to_owned(), super::retired((agreed.side, agreed.epoch)));
            if !agreed.settled {
                self.moving.insert(service.to_owned());
            }
            return true;
        };
        let newer = (pair.active(), pair.epoch()) != (agreed.side, agreed.epoch);
        if newer {
            let mut wants = Vec::new();
            pair.follow(agreed.side, agreed.epoch, &mut wants);
            say(service, wants, out);
        }
        let changed = match agreed.settled {
            true => self.moving.remove(service),
            false => self.moving.insert(service.to_owned()),
        };
        if let Some(joint) = &mut self.joint {
            if agreed.settled {
                joint.settling.remove(service);
            }
            // What was confirmed of another life's epochs says nothing about these.
            if joint.routes.get(service).is_some_and(|&routed| agreed.epoch < routed) {
                joint.routes.remove(service);
            }
        }
        newer || changed
    }

    /// Nobody serves a pair of which nothing is agreed yet: each node may remember something else of it.
    fn begin_sides(&mut self, now: Now) {
        let Some(joint) = &self.joint else { return };
        let new = self.pairs.keys().filter(|name| !joint.agreed.sides.contains_key(*name));
        let new: Vec<String> = new.cloned().collect();
        for service in new {
            self.moving.insert(service.clone());
            if !self.decides() || self.unsaved.contains_key(&service) || self.is_held(now) {
                continue;
            }
            let Some(pair) = self.pairs.get(&service) else { continue };
            let (mut after, mut wants) = (pair.clone(), Vec::new());
            after.reseat(pair.active(), &mut wants);
            let unsaved = Unsaved { after, wants, asked: false };
            self.unsaved.insert(service, unsaved);
        }
    }

    /// Another node leads: what is not agreed on was never decided, and what is under way is for the other to judge.
    fn stop_deciding(&mut self, out: &mut Vec<Action>) {
        self.unsaved.clear();
        self.save_trouble = None;
        if let Some(joint) = &mut self.joint {
            joint.settling.clear();
        }
        for (service, pair) in &mut self.pairs {
            let mut wants = Vec::new();
            pair.let_go(&mut wants);
            say(service, wants, out);
        }
    }

    /// Asks for what was decided to be agreed on, and for what was moved to be settled.
    pub(super) fn ask_others(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.joint.as_ref().is_some_and(|joint| joint.known) {
            self.begin_sides(now);
        }
        let everybody_listens =
            self.joint.as_ref().is_some_and(|joint| joint.everybody_listens(now.instant));
        for (service, unsaved) in self.unsaved.iter_mut().filter(|(_, unsaved)| !unsaved.asked) {
            unsaved.asked = true;
            let (to, epoch) = (unsaved.after.active(), unsaved.after.epoch());
            let stays = self.pairs.get(service).is_some_and(|pair| pair.active() == to);
            // A primary to which clients return can serve. Where everybody is there, no request is lost by it.
            let known = self.joint.as_ref().is_some_and(|j| j.agreed.sides.contains_key(service));
            let settled = known && (stays || (to == Side::Primary && everybody_listens));
            let service = service.clone();
            out.push(Action::Agree(SideCommand::Move { service, to, epoch, settled }));
        }
        let Some(joint) = self.joint.as_mut().filter(|joint| joint.agreed.leads) else { return };
        for service in &self.moving {
            let Some(pair) = self.pairs.get(service).or(self.retired.get(service)) else {
                continue;
            };
            let asked = joint.settling.get(service);
            if asked.is_some_and(|&asked| now.instant < asked + SETTLE_EVERY) {
                continue;
            }
            if joint.all_have_left(service, pair.epoch()) {
                joint.settling.insert(service.clone(), now.instant);
                let (service, epoch) = (service.clone(), pair.epoch());
                out.push(Action::Agree(SideCommand::Settle { service, epoch }));
            }
        }
    }

    /// The others have agreed to what this node decided, or have not.
    pub(super) fn answered(
        &mut self,
        now: Now,
        command: &SideCommand,
        result: Result<(), String>,
        out: &mut Vec<Action>,
    ) {
        let SideCommand::Move { service, epoch, settled, .. } = command else { return };
        // It may answer a decision that was given up meanwhile.
        let is_it = |unsaved: &mut Unsaved| unsaved.after.epoch() == *epoch;
        let Some(unsaved) = self
            .unsaved
            .get_mut(service)
            .is_some_and(is_it)
            .then(|| self.unsaved.remove(service))
            .flatten()
        else {
            return;
        };
        match result {
            Ok(()) => {
                let agreed = self.joint.as_ref().and_then(|joint| joint.agreed.sides.get(service));
                let overtaken = agreed.is_some_and(|side| *epoch < side.epoch)
                    || !self.pairs.contains_key(service);
                if overtaken {
                    return;
                }
                if self.save_trouble.take().is_some() {
                    out.push(Action::Record(Fact::PairsSaved));
                }
                self.note_agreed(command);
                self.pairs.insert(service.clone(), unsaved.after);
                if !settled && !self.is_settled(service, *epoch) {
                    self.moving.insert(service.clone());
                }
                out.push(Action::SavePairs);
                self.told(now, service, unsaved.wants, out);
            }
            Err(reason) => {
                // It may have been agreed on all the same, or something newer.
                let agreed = self.joint.as_ref().and_then(|joint| joint.agreed.sides.get(service));
                if let Some(agreed) = agreed.copied()
                    && self.follow_side(service, &agreed, out)
                {
                    out.push(Action::SavePairs);
                } else {
                    self.refused(now, reason, out);
                }
            }
        }
    }

    /// It is agreed, although it has not been applied here yet.
    fn note_agreed(&mut self, command: &SideCommand) {
        let SideCommand::Move { service, to, epoch, settled } = command else { return };
        let Some(joint) = &mut self.joint else { return };
        let side =
            AgreedSide { side: *to, epoch: *epoch, settled: *settled, moved: Stamp::default() };
        let known = joint.agreed.sides.entry(service.clone()).or_insert(side);
        if known.epoch < side.epoch {
            *known = side;
        }
    }

    fn is_settled(&self, service: &str, epoch: Epoch) -> bool {
        let agreed = self.joint.as_ref().and_then(|joint| joint.agreed.sides.get(service));
        agreed.is_some_and(|side| side.epoch == epoch && side.settled)
    }
}
