//! One agent: what it has applied, what it has heard, whether it holds the lease, and what it wants.

use std::borrow::ToOwned as _;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use std::vec::Vec;

use super::driver::node_of;
use super::{DEPOSED_AFTER, Kind, NAMES, ORDERS, Slip, World};
use crate::agreed::{
    Agreed, Command, Confirm, DATABASE_LEASE, DatabaseCommand, Held, LeaseClock, LeaseCommand,
    Recruit, Reply, database_role,
};
use crate::database::{Lead, Member, MemberSight, SILENT_AFTER, Scene, Seen, Server};
use crate::health::Health;
use crate::time::Instant;

/// An agent that does not know whether it holds the lease asks first, for this long.
const ASKS_FIRST: u64 = 2_000;
const SAYS_EVERY: u64 = 500;

/// What a proposal was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Nothing,
    Renewal { epoch: u64 },
    Regain,
}

#[derive(Debug)]
pub(super) struct Mind {
    agreed: Agreed,
    clock: LeaseClock,
    lead: Lead,
    member: Member,
    held: Option<Held>,
    lease_asked: Option<u64>,
    renew_at: u64,
    seen: BTreeMap<usize, (Instant, MemberSight)>,
    inbox: VecDeque<(u64, usize, MemberSight)>,
    said: MemberSight,
    said_at: u64,
    /// It thinks that it leads until then.
    leads_until: u64,
    /// What the leader has last said is newest, when this agent first asked.
    current_from: Option<u64>,
    current_at: Option<u64>,
    look_at: u64,
}

impl Mind {
    pub(super) fn new(name: &str) -> Mind {
        Mind {
            agreed: Agreed::default(),
            clock: LeaseClock::default(),
            lead: Lead::default(),
            member: Member::new(name.to_owned()),
            held: None,
            lease_asked: None,
            renew_at: 0,
            seen: BTreeMap::new(),
            inbox: VecDeque::new(),
            said: MemberSight::default(),
            said_at: 0,
            leads_until: 0,
            current_from: None,
            current_at: None,
            look_at: 0,
        }
    }
}

impl World {
    pub(super) fn take_over(&mut self, leader: usize) {
        let at = self.moment(leader).now;
        let index = self.log.len();
        self.apply(leader, index);
        if let Some(mind) = &mut self.nodes[leader].mind {
            mind.lead.rest();
            mind.clock.took_over(at, &mind.agreed);
        }
    }

    fn apply(&mut self, node: usize, until: usize) {
        let at = self.moment(node).now;
        let Some(mind) = &mut self.nodes[node].mind else { return };
        let from = usize::try_from(mind.agreed.index()).unwrap_or_default();
        if until <= from {
            return;
        }
        for (index, entry) in (1..).zip(&self.log).skip(from).take(until - from) {
            mind.agreed.apply(index, entry);
        }
        mind.clock.observe(at, &mind.agreed);
    }

    pub(super) fn think(&mut self, node: usize) {
        self.catch_up(node);
        self.hear(node);
        self.hold_lease(node);
        if self.members().contains(&node) {
            self.act(node);
        }
        self.say(node);
        self.decide(node);
    }

    fn catch_up(&mut self, node: usize) {
        let now = self.now;
        let Some(leader) = self.leader else { return };
        if !self.talk(node, leader) {
            return;
        }
        let newest = self.log.len();
        let Some(mind) = &mut self.nodes[node].mind else { return };
        let from = *mind.current_from.get_or_insert(newest as u64);
        let behind = newest as u64 - mind.agreed.index();
        if leader == node {
            mind.leads_until = now + DEPOSED_AFTER;
            self.apply(node, newest);
        } else if behind > 0 && self.rng.per_mille(400) {
            let count = self.rng.between(1, behind + 1);
            self.apply(node, newest - usize::try_from(behind - count).unwrap_or_default());
        }
        let Some(mind) = &mut self.nodes[node].mind else { return };
        if from <= mind.agreed.index() {
            mind.current_at.get_or_insert(now);
        }
    }

    fn hear(&mut self, node: usize) {
        let (now, at) = (self.now, self.moment(node).now);
        let Some(mind) = &mut self.nodes[node].mind else { return };
        for _ in 0..mind.inbox.len() {
            let Some((due, from, sight)) = mind.inbox.pop_front() else { return };
            if due <= now {
                mind.seen.insert(from, (at, sight));
            } else {
                mind.inbox.push_back((due, from, sight));
            }
        }
    }

    /// Asks for the lease and for its renewal, and arms what kills the primary when it is over.
    fn hold_lease(&mut self, node: usize) {
        let (now, moment) = (self.now, self.moment(node));
        let role = database_role(ORDERS);
        let down = !self.nodes[node].postgres.is_primary_soon();
        let Some(mind) = &mut self.nodes[node].mind else { return };
        if mind.held.is_some_and(|held| mind.agreed.index() < held.epoch()) {
            return;
        }
        let Some(id) = mind.agreed.registry().id_of(NAMES[node]) else { return };
        let Some(database) = mind.agreed.databases().get(ORDERS) else { return };
        let lease = mind.agreed.leases().get(&role).copied();
        let own = lease.filter(|lease| lease.holder == id);
        if mind.current_at.is_none() || mind.lease_asked.is_some_and(|asked| now < asked + 500) {
            return;
        }
        let held = mind.held.as_mut().and_then(|held| held.check(moment).ok());
        let reigns = database.election.is_none() && database.reign.primary == NAMES[node];
        let epoch = database.reign.epoch;
        let (asked, command) = match (own, held) {
            (Some(own), _) if !reigns && down && database.reign.primary != NAMES[node] => {
                let epoch = own.epoch;
                let release = LeaseCommand::Release { role, node: id, epoch };
                (Asked::Nothing, Command::Lease(release))
            }
            _ if !reigns => return,
            (Some(own), Some(held)) if own.epoch == held && now < mind.renew_at => return,
            (Some(own), _)
                if mind.held.is_none_or(|h| h.epoch() != own.epoch) || held.is_some() =>
            {
                let epoch = own.epoch;
                let renew = LeaseCommand::Renew { role, node: id, epoch };
                (Asked::Renewal { epoch }, Command::Lease(renew))
            }
            // A right that has ended does not come back.
            (Some(_), _) | (None, _) => {
                let regain = DatabaseCommand::Regain { database: ORDERS.to_owned(), epoch };
                (Asked::Regain, Command::Database(regain))
            }
        };
        mind.lease_asked = Some(now);
        mind.renew_at = now + 1_000;
        self.propose(node, false, asked, command);
    }

    pub(super) fn answer(&mut self, proposal: &super::Proposal, reply: Reply) {
        let node = proposal.node;
        let (sent, at) = (proposal.sent, self.moment(node));
        let asked = proposal.asked;
        let Some(mind) = &mut self.nodes[node].mind else { return };
        match (asked, reply) {
            (Asked::Renewal { epoch }, Reply::Done) => {
                match mind.held.as_mut().filter(|held| held.epoch() == epoch) {
                    Some(held) => held.renewed(sent, at),
                    None => mind.held = Some(Held::granted(epoch, DATABASE_LEASE, sent)),
                }
                mind.lease_asked = None;
            }
            (Asked::Regain, Reply::Granted { epoch }) => {
                mind.held = Some(Held::granted(epoch, DATABASE_LEASE, sent));
                mind.lease_asked = None;
            }
            _ => return,
        }
        let until = mind.held.map(|held| held.ends());
        let keeper = &mut self.nodes[node].keeper_until;
        *keeper = until.max(*keeper);
    }

    /// Whether this node holds the lease of the primary.
    fn is_leased(&mut self, node: usize) -> bool {
        let moment = self.moment(node);
        let late = self.slip == Some(Slip::KilledLate);
        let Some(mind) = &mut self.nodes[node].mind else { return false };
        let Some(held) = mind.held else { return false };
        let lease = mind.agreed.leases().get(&database_role(ORDERS));
        // What was granted may not be applied here yet.
        let same = lease.is_some_and(|lease| lease.epoch == held.epoch())
            || mind.agreed.index() < held.epoch();
        let lasts = mind.held.as_mut().is_some_and(|held| held.check(moment).is_ok());
        same && lasts || late && moment.now < held.ends() + Duration::from_secs(8)
    }

    fn act(&mut self, node: usize) {
        let (now, at) = (self.now, self.moment(node).now);
        let leased = self.is_leased(node);
        let local = self.local(node);
        let Some(mind) = &mut self.nodes[node].mind else { return };
        let Some(current_at) = mind.current_at else { return };
        let asks = mind.held.is_none() && now < current_at + ASKS_FIRST;
        if asks && local.server == Server::Primary {
            return;
        }
        let agreed = mind.agreed.databases().get(ORDERS);
        let epoch = agreed.map_or(0, |agreed| agreed.epoch());
        let source = agreed.and_then(|agreed| {
            let primary = NAMES.iter().position(|name| *name == agreed.reign.primary)?;
            let (heard, sight) = mind.seen.get(&primary)?;
            (at.since(*heard) <= SILENT_AFTER).then_some(sight)
        });
        let relay = agreed.and_then(|agreed| {
            let (heard, sight) = mind.seen.get(&node_of(agreed.upstream(NAMES[node])))?;
            (at.since(*heard) <= SILENT_AFTER).then_some(sight)
        });
        let order = mind.member.decide(at, agreed, leased, &local, source, relay);
        if let Some(order) = order {
            self.give(node, order, epoch);
        }
    }

    fn say(&mut self, node: usize) {
        let (now, at) = (self.now, self.moment(node).now);
        let local = self.local(node);
        let leased = self.is_leased(node);
        let member = self.members().contains(&node);
        let slow = now < self.nodes[node].slow_reports_until;
        let Some(mind) = &mut self.nodes[node].mind else { return };
        if mind.current_at.is_none() || !member {
            return;
        }
        let agreed = mind.agreed.databases().get(ORDERS);
        let sight = mind.member.sight(at, agreed, leased, &local);
        if now < mind.said_at + SAYS_EVERY && !sight.differs(&mind.said) {
            return;
        }
        mind.said = sight.clone();
        mind.said_at = now;
        for other in 0..self.size {
            if !self.reach(node, other) {
                continue;
            }
            let times = match self.rng.between(0, 100) {
                0..3 => 0,
                3..6 => 2,
                _ => 1,
            };
            for _ in 0..times {
                let late = if slow || self.rng.per_mille(10) { 3_000 } else { 60 };
                let delay = if other == node { 1 } else { self.rng.between(1, late) };
                if let Some(mind) = &mut self.nodes[other].mind {
                    mind.inbox.push_back((now + delay, node, sight.clone()));
                }
            }
        }
    }

    /// What the leader wants, or who thinks that it leads.
    fn decide(&mut self, node: usize) {
        let (now, at) = (self.now, self.moment(node).now);
        let ports = self.ports(node);
        let (wish, paused) = (self.wish.clone(), self.paused);
        let (resting, wall) = (self.resting.clone(), self.moment(node).wall);
        let Some(mind) = &mut self.nodes[node].mind else { return };
        if mind.leads_until <= now {
            mind.lead.rest();
            return;
        }
        if now < mind.look_at {
            return;
        }
        mind.look_at = now + 100;
        let members = mind.seen.iter().map(|(&other, (heard, sight))| {
            let heard_ago = at.since(*heard);
            let seen = Seen { sight: Some(sight.clone()), heard_ago, port: ports[other] };
            (NAMES[other].to_owned(), seen)
        });
        let members = members.collect();
        let agreed = mind.agreed.databases().get(ORDERS);
        let leased = mind.agreed.leases().get(&database_role(ORDERS)).is_some();
        let (name, wish) = (ORDERS, &wish);
        let scene = Scene { name, wish, agreed, leased, members, paused, resting, wall };
        let command = mind.lead.decide(at, &scene);
        let over = mind.clock.over(at);
        for command in over.into_iter().chain(command.map(Command::Database)) {
            self.propose(node, true, Asked::Nothing, command);
        }
    }

    /// A person who has waited for reports in vain has the furthest of those that have reported appointed.
    pub(super) fn accept_loss(&mut self) {
        let database = self.truth.databases().get(ORDERS);
        let election = database.and_then(|database| database.election.as_ref());
        let epoch = election.map(|election| election.epoch);
        if self.ledger.election.is_none_or(|(known, _)| Some(known) != epoch) {
            self.ledger.election = epoch.map(|epoch| (epoch, self.now));
        }
        let (Some(database), Some((epoch, since))) = (database, self.ledger.election) else {
            return;
        };
        let waits = self.kind != Kind::Losing || self.now < since + 3_000;
        if waits || !self.rng.per_mille(10) {
            return;
        }
        let Some(leader) = self.leader else { return };
        let Some(mind) = &self.nodes[leader].mind else { return };
        let recruits = mind.seen.iter().filter_map(|(&node, (_, sight))| {
            let part = database.is_part(sight.lineage, sight.reaches);
            let stopped = sight.stopped == Some(epoch) && sight.system == database.system;
            let node = NAMES[node].to_owned();
            (part && stopped).then_some(Recruit { node, reaches: sight.reaches })
        });
        let recruits: Vec<Recruit> = recruits.collect();
        let Some(best) = recruits.iter().max_by_key(|recruit| recruit.reaches) else { return };
        let node = best.node.clone();
        let of = self.wish.members.iter().filter(|name| **name != node).cloned().collect();
        let next = Confirm { since: 0, acks: self.wish.acks, of };
        let database = ORDERS.to_owned();
        let command =
            DatabaseCommand::Appoint { database, epoch, node, recruits, next, losing: true };
        self.ledger.losses += 1;
        self.propose(leader, false, Asked::Nothing, Command::Database(command));
    }

    /// Whether most nodes reach each PostgreSQL, a little late.
    fn ports(&mut self, _leader: usize) -> Vec<Health> {
        let mut ports = Vec::new();
        for node in 0..self.size {
            let answers = self.is_up(node) && self.nodes[node].postgres.runs(self.now);
            let reached = (0..self.size).filter(|&other| answers && self.talk(node, other)).count();
            let since = &mut self.ports_down_since[node];
            if reached * 2 > self.size {
                *since = u64::MAX;
            } else {
                *since = (*since).min(self.now);
            }
            let down = since.saturating_add(1_000) <= self.now;
            ports.push(if down { Health::Down } else { Health::Up });
        }
        ports
    }
}
