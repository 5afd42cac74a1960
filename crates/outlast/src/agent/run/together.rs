//! This agent among the others: what it tells them, what it hears, and what it has agreed on.

use std::collections::BTreeMap;
use std::time::Duration;

use outlast_consensus::boottime;
use outlast_core::address;
use outlast_core::agent::{Agreement, Input};
use outlast_core::agreed::SideCommand;
use outlast_core::database::{self as databases, MemberSight};
use outlast_core::names;
use outlast_core::observers::{Report, STALE_AFTER};
use outlast_core::pair::{Epoch, Side};
use outlast_core::time::Instant;
use outlast_core::topology::{Pool, Topology};
use tokio::sync::oneshot;

use super::{Loop, Said};
use crate::addresses::Addresses;
use crate::agent::ports::Known;
use crate::agent::shared::{AddressesView, DatabasesView};
use crate::agent::{standby, state};
use crate::cluster::{Answering, Asked, Cluster, LeaseWish, News, StandbyOrder};
use crate::database::Databases;
use crate::names::Sighted;

/// For as long as this a data plane may be behind what was agreed; then this node lets its lease end.
const BEHIND_MAX: Duration = Duration::from_secs(4);

/// How long an order to another node may be on its way, besides the time that its command may take.
const TRAVEL_MAX: Duration = Duration::from_secs(5);

/// What happens in the cluster; never, where there is none.
pub(super) async fn next_news(cluster: &mut Option<Cluster>) -> Option<News> {
    match cluster {
        Some(cluster) => cluster.news().await,
        None => std::future::pending().await,
    }
}

/// Returns once this node does something else about an address; never, where there is none.
pub(super) async fn address_news(addresses: &mut Option<Addresses>) {
    match addresses {
        Some(addresses) => addresses.changed().await,
        None => std::future::pending().await,
    }
}

/// Whether who serves is agreed on for any service.
fn has_pairs(topology: &Topology) -> bool {
    let ports =
        topology.postgres.values().any(|part| part.listen_write.or(part.listen_read).is_some());
    ports || topology.services.values().any(|service| matches!(service.pool, Pool::Pair(_)))
}

/// The node on which a service's backup runs, if exactly one node has its address.
fn node_of_backup<'a>(topology: &'a Topology, service: &str) -> Option<&'a str> {
    let Pool::Pair(pair) = &topology.services.get(service)?.pool else { return None };
    let mut nodes =
        topology.nodes.iter().filter(|(_, node)| Ok(node.address) == pair.backup.host.parse());
    let (name, _) = nodes.next()?;
    nodes.next().is_none().then_some(name.as_str())
}

impl Loop {
    /// What the ports of databases go by.
    pub(super) fn known_databases(&self) -> Known {
        let Some(cluster) = &self.cluster else { return Known::default() };
        let (of, now) = (cluster.of_databases(), boottime());
        let mut members: BTreeMap<String, BTreeMap<String, MemberSight>> = BTreeMap::new();
        let own = self.says_databases.borrow();
        let heard = of.heard.borrow();
        let fresh = heard.iter().filter(|(_, heard)| now.since(heard.at) <= STALE_AFTER);
        let all =
            fresh.map(|(node, heard)| (node, &heard.sights)).chain([(&self.node, &own.sights)]);
        for (node, sights) in all {
            for (name, sight) in sights {
                if let Some(member) = &sight.member {
                    members.entry(name.clone()).or_default().insert(node.clone(), member.clone());
                }
            }
        }
        let verifiers = self.databases.as_ref().map(Databases::verifiers).unwrap_or_default();
        let databases = self.agreement.databases.clone();
        let paused = self.agreement.paused.keys().cloned().collect();
        Known { agreed: self.agreed, databases, paused, members, verifiers }
    }

    /// Databases, for people.
    pub(super) fn databases_view(&self) -> Option<DatabasesView> {
        let of = self.cluster.as_ref()?.of_databases();
        let (now, heard, own) = (boottime(), of.heard.borrow(), self.says_databases.borrow());
        let mut members: BTreeMap<String, BTreeMap<String, _>> = BTreeMap::new();
        for (name, part) in &self.topology.postgres {
            for node in &part.nodes {
                let (at, sights) = match heard.get(node) {
                    _ if *node == self.node => (own.at, Some(&own.sights)),
                    Some(heard) => (heard.at, Some(&heard.sights)),
                    None => (Instant::default(), None),
                };
                let sight = sights.and_then(|sights| sights.get(name)?.member.clone());
                let known = (now.since(at), sight);
                members.entry(name.clone()).or_default().insert(node.clone(), known);
            }
        }
        // Whoever leads says why it does nothing.
        let mut stuck = of.stuck.borrow().clone();
        for heard in heard.values().filter(|heard| now.since(heard.at) <= STALE_AFTER) {
            for (name, sight) in &heard.sights {
                if let Some(why) = &sight.stuck {
                    stuck.entry(name.clone()).or_insert_with(|| why.clone());
                }
            }
        }
        let agreed = self.agreement.databases.iter();
        let wish = |part| databases::Wish::of(&self.topology, part);
        let wishes = self.topology.postgres.iter().map(|(name, part)| (name.clone(), wish(part)));
        Some(DatabasesView {
            wishes: wishes.collect(),
            agreed: agreed.map(|(name, held)| (name.clone(), held.database.clone())).collect(),
            members,
            stuck,
            pause: self.agreement.pause.clone(),
            paused: self.agreement.paused.clone(),
        })
    }

    /// Addresses that move, for people.
    pub(super) fn addresses_view(&self) -> Option<AddressesView> {
        let addresses = self.addresses.as_ref()?;
        Some(AddressesView { agreed: self.agreement.addresses.clone(), seen: addresses.seen() })
    }

    /// Which side of each pair serves, as this node knows it.
    pub(super) fn sides(&self) -> BTreeMap<String, Side> {
        self.core.pairs().into_iter().map(|(name, (side, _))| (name, side)).collect()
    }

    /// Tells this node's name servers what it sees: where it is alone, they go by that.
    pub(super) fn tell_name_servers(&self, now: Instant) {
        if self.cluster.is_some() || self.topology.dns.is_empty() {
            return;
        }
        let sighted = Sighted {
            sights: names::sights(&self.core.report(now)),
            places: names::places_alone(&self.sides()),
        };
        self.say_sights.send_if_modified(|before| {
            let health = |sighted: &Sighted| -> Vec<_> {
                sighted.sights.iter().map(|(key, (health, _))| (key.clone(), *health)).collect()
            };
            let differs = health(before) != health(&sighted) || before.places != sighted.places;
            *before = sighted;
            differs
        });
    }

    /// Writes down what has changed about databases and addresses.
    fn note_databases(&mut self, next: &Agreement) {
        let mut facts = Vec::new();
        for (name, held) in &next.databases {
            let before = self.agreement.databases.get(name).map(|held| &held.database);
            facts.extend(databases::changes(name, before, &held.database));
        }
        // Where they were when this agent started is no news.
        if self.agreed {
            facts.extend(address::moves(&self.agreement.addresses, &next.addresses));
            facts.extend(names::changes(&self.agreement.names, &next.names));
        }
        self.record_all(facts);
    }

    pub(super) fn hear_cluster(&mut self, news: Option<News>) {
        match news {
            Some(News::Fact(fact)) => self.record(fact),
            Some(News::Heard { node, report }) => self.step(Input::Heard { node, report }),
            Some(News::Agreed(agreement)) => {
                let changed = self.agreement.databases != agreement.databases
                    || self.agreement.addresses != agreement.addresses
                    || self.agreement.paused != agreement.paused;
                self.note_databases(&agreement);
                self.agreement.clone_from(&agreement);
                self.agreed = true;
                self.step(Input::Agreed(agreement));
                if changed {
                    self.databases_changed = true;
                    self.publish();
                }
            }
            Some(News::Answered { command, result }) => {
                self.step(Input::Answered { command, result });
            }
            Some(News::Lease(until)) => {
                self.lease = until;
                self.step(Input::Vouches(until.is_some()));
                self.pass_on_lease();
            }
            Some(News::Asked(asked)) => self.asked(asked),
            None => {
                // Its part of the agent has ended: nothing can be decided any more.
                self.cluster = None;
                self.step(Input::Agreed(Agreement { leads: false, ..self.agreement.clone() }));
                self.lease = None;
                self.step(Input::Vouches(false));
                self.pass_on_lease();
            }
        }
    }

    /// Tells the data plane until when it may route to pairs. What was agreed on while this node had no lease is in its
    /// table first.
    pub(super) fn pass_on_lease(&mut self) {
        if self.lease.is_some() && !self.vouches && !self.plane.settled() {
            return;
        }
        if self.lease.is_some() || self.vouches {
            self.plane.vouch(self.lease);
        }
        self.vouches = self.lease.is_some();
    }

    fn asked(&mut self, asked: Asked) {
        match asked {
            Asked::Failback { service, answer } if self.core.decides() => {
                self.let_fail_back(service, answer);
            }
            Asked::Failback { answer, .. } => {
                answer.send(Err("another node leads now; ask again".to_owned())).ok();
            }
            Asked::Standby(order, answer) => {
                let (topology, dir) = (&self.topology, &self.data_dir);
                standby::obey_for(topology, dir, &order, self.sender.clone(), answer);
            }
        }
    }

    /// A person asks a pair to return to its primary.
    pub(super) fn let_fail_back(&mut self, service: String, answer: Answering) {
        if !self.core.pairs().contains_key(&service) {
            let why = format!("service `{service}` is not a pair of primary and backup");
            answer.send(Err(why)).ok();
            return;
        }
        match &self.cluster {
            Some(cluster) if !self.core.decides() => cluster.failback(service, answer),
            Some(_) | None => {
                self.step(Input::Failback { service: service.clone() });
                let said = format!("service.{service} returns to its primary once that is up");
                answer.send(Ok(said)).ok();
            }
        }
    }

    /// Has something agreed on that this node has decided.
    pub(super) fn agree(&mut self, command: SideCommand) {
        let sent = self.cluster.as_ref().is_some_and(|cluster| cluster.agree(command.clone()));
        if !sent {
            let result = Err("the cluster's part of this agent does not answer".to_owned());
            self.step(Input::Answered { command, result });
        }
    }

    /// Has a standby started or stopped on the node where it runs.
    pub(super) fn order_standby(&self, service: String, epoch: Epoch, stop: bool) {
        let order = StandbyOrder { service, epoch: epoch.0, stop };
        let node = node_of_backup(&self.topology, &order.service);
        let there = node.filter(|node| *node != self.node).map(str::to_owned);
        let (Some(cluster), Some(node)) = (&self.cluster, there) else {
            let (answer, answered) = oneshot::channel();
            let (topology, dir) = (&self.topology, &self.data_dir);
            standby::obey_for(topology, dir, &order, self.sender.clone(), answer);
            self.await_standby(order, answered);
            return;
        };
        let limit = standby::job(&self.topology, &order).map_or(Duration::ZERO, |(_, limit)| limit);
        let (answer, answered) = oneshot::channel();
        cluster.order(node, order.clone(), limit + TRAVEL_MAX, answer);
        self.await_standby(order, answered);
    }

    fn await_standby(
        &self,
        order: StandbyOrder,
        answered: oneshot::Receiver<Result<String, String>>,
    ) {
        let inbox = self.sender.clone();
        // Ends with the answer, which has a limit.
        drop(tokio::task::spawn(async move {
            let result = answered.await.unwrap_or_else(|_| Err("nobody has answered".to_owned()));
            let StandbyOrder { service, epoch, stop } = order;
            if stop {
                if let Err(reason) = result {
                    tracing::error!(service, reason, "stop the standby");
                }
                return;
            }
            let done = Said::CommandDone { service, epoch: Epoch(epoch), result: result.map(drop) };
            // An agent that is ending needs no answer.
            inbox.send(done).await.ok();
        }));
    }

    /// Tries again to write down what was agreed on.
    pub(super) fn save_again(&mut self) {
        if self.pairs_unsaved {
            let saved = state::save(&self.data_dir, &self.core.pairs(), self.core.moving());
            self.pairs_unsaved = saved.is_err();
        }
    }

    /// Tells the others what this node sees, and whether it is to route to pairs.
    pub(super) fn tell_others(&mut self) {
        let now = self.now().instant;
        let behind = self.core.is_behind();
        self.behind_since = if behind { self.behind_since.or(Some(now)) } else { None };
        let Some(cluster) = &self.cluster else { return };
        let too_long = self.behind_since.is_some_and(|since| BEHIND_MAX < now.since(since));
        if !*self.stopping.borrow() {
            let may = !too_long && !self.pairs_unsaved;
            cluster.want_lease(match has_pairs(&self.topology) && may {
                true => LeaseWish::Hold,
                false => LeaseWish::RunOut,
            });
        }
        let topology_version = self.accord.version();
        cluster.say(Report { topology_version, ..self.core.report(now) });
    }
}
