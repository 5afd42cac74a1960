//! This node's part in what name servers answer: while it leads it has agreed on what nodes see, and what name servers share
//! in secret is agreed on by all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast_consensus::{Role, Term, boottime};
use outlast_core::address::unit_of;
use outlast_core::agent::Agreement;
use outlast_core::agreed::{
    AgreedNames, ClientId, Command, Entry, Expected, KvCommand, NamesCommand, Reply, Stamp,
};
use outlast_core::health::Health;
use outlast_core::names::{Known, Lead, Sights, places, sights};
use outlast_core::observers::{Report, STALE_AFTER};
use outlast_core::time::Instant;
use outlast_core::topology::Topology;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::agree::Failure;
use super::found::OWN_KEYS;
use super::thread::Hub;
use crate::agent::shared::wall;

/// How often whoever leads looks although nothing has been heard.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// After what could not be agreed on.
const AGAIN: Duration = Duration::from_millis(50);

/// How long a change of a name server's own may take to be agreed on.
const CHANGE_MAX: Duration = Duration::from_secs(2);

/// How long before a planned switchover the answers that depend on it are remembered for less long.
const SOON: Duration = Duration::from_secs(600);

/// Changes of name servers that wait to be agreed on.
pub(super) const CHANGES_MAX: usize = 64;

/// Those that are under way.
const CHANGES_OPEN: usize = 16;

/// For so long after a node has caught up a zone's key may come from a node that was alone: parents know it, and a new one
/// would take the zone away from everybody who validates.
const NEW_KEY_AFTER: Duration = Duration::from_secs(2);

/// How soon a secret is asked for again.
const SECRET_AGAIN: Duration = Duration::from_millis(20);

/// Bytes of the secret that DNS cookies are made with.
const COOKIE_BYTES: usize = 16;

/// What a name server wants to be agreed on, and where the answer goes.
pub type Wanted = (NamesCommand, oneshot::Sender<Result<Reply, String>>);

/// What the name servers of this node go by.
#[derive(Clone, Debug)]
pub struct OfNames {
    pub agreement: watch::Receiver<Arc<Agreement>>,
    /// The agreement is what it was when this node had caught up, or newer.
    pub caught_up: watch::Receiver<bool>,
    pub secrets: watch::Receiver<NameSecrets>,
    pub changes: mpsc::Sender<Wanted>,
}

/// What the servers of a zone share, by its name: see [`cookie_secret`] and [`zone_key`].
#[derive(Clone, Default, PartialEq, Eq)]
pub struct NameSecrets(pub BTreeMap<String, Vec<u8>>);

impl std::fmt::Debug for NameSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NameSecrets of {:?}", self.0.keys())
    }
}

/// The name of the secret that DNS cookies are made with.
pub fn cookie_secret() -> String {
    "cookies".to_owned()
}

/// The name of the key that signs a zone.
pub fn zone_key(zone: &str) -> String {
    format!("keys/{zone}")
}

/// The names of all secrets that a topology needs.
pub fn secrets_of(topology: &Topology) -> BTreeSet<String> {
    let signed = topology.dns.iter().filter(|(_, zone)| zone.dnssec);
    let keys = signed.map(|(name, _)| zone_key(name));
    let cookies = topology.dns.values().any(|zone| zone.cookies);
    keys.chain(cookies.then(cookie_secret)).collect()
}

/// A new secret of this name.
pub fn new_secret(name: &str) -> anyhow::Result<Vec<u8>> {
    if name == cookie_secret() {
        return Ok(super::identity::random::<COOKIE_BYTES>()?.to_vec());
    }
    Ok(outlast_dns::dnssec::ZoneKey::generate()?)
}

fn secret_key(name: &str) -> Vec<u8> {
    [OWN_KEYS, b"dns/", name.as_bytes()].concat()
}

/// What other nodes have said of the things that answers depend on.
#[derive(Debug, Default)]
pub(super) struct Witnesses {
    heard: Mutex<BTreeMap<String, (Instant, Sights)>>,
    /// Somebody sees something else.
    news: Notify,
}

impl Hub {
    pub(super) fn hear_sights(&self, node: &str, report: &Report) {
        let sights = sights(report);
        let mut heard = self.witnesses.heard.lock().expect("no panic while held");
        let before = heard.insert(node.to_owned(), (boottime(), sights.clone()));
        let health = |sights: &Sights| -> Vec<(String, Health)> {
            sights.iter().map(|(key, (health, _))| (key.clone(), *health)).collect()
        };
        if before.is_none_or(|(_, before)| health(&before) != health(&sights)) {
            self.witnesses.news.notify_one();
        }
    }

    /// Has agreed on what nodes see, while this node leads.
    pub(super) async fn lead_names(self: Arc<Self>) {
        let mut agreement = self.replica.agreement.subscribe();
        let mut topology = self.desk.topology.clone();
        let mut said = self.said.clone();
        let mut reign: Option<(Term, Lead)> = None;
        loop {
            let known = topology.borrow_and_update().clone();
            let now = agreement.borrow_and_update().clone();
            let own = sights(&said.borrow_and_update());
            let idle = known.dns.is_empty() && now.names.zones.is_empty();
            let term = if now.leads && !idle { self.names_term(&reign).await } else { None };
            let pause = match term {
                None => {
                    reign = None;
                    LOOK_EVERY
                }
                Some(term) => {
                    let (_, lead) = match &mut reign {
                        Some(reign) if reign.0 == term => reign,
                        _ => reign.insert((term, Lead::default())),
                    };
                    // What was known before the term began may be old news.
                    let (agreed, now) = self
                        .replica
                        .read(|agreed| (agreed.names().all().clone(), Agreement::of(agreed, true)));
                    self.bring_sights(lead, own, &now);
                    match self.look_at_names(term, lead, &known, (&now, &agreed)).await {
                        Some(pause) => pause,
                        None => continue,
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause), if !idle => {}
                () = self.witnesses.news.notified() => {}
                Ok(()) = agreement.changed() => {}
                Ok(()) = topology.changed() => {}
                Ok(()) = said.changed() => {}
            }
        }
    }

    /// The term in which this node leads and knows all that was agreed on before it.
    async fn names_term(&self, reign: &Option<(Term, Lead)>) -> Option<Term> {
        let consensus = self.consensus().filter(|consensus| consensus.may_act())?;
        let term = {
            let standing = consensus.standing();
            let now = standing.borrow();
            (now.role == Role::Leader).then_some(now.term)?
        };
        if reign.as_ref().is_some_and(|(known, _)| *known == term) {
            return Some(term);
        }
        consensus.read().await.ok()?;
        Some(term)
    }

    fn bring_sights(&self, lead: &mut Lead, own: Sights, agreement: &Agreement) {
        lead.hear(&self.settings.node, own);
        let (now, peers) = (boottime(), self.links().peers());
        let heard = self.witnesses.heard.lock().expect("no panic while held");
        for (node, (at, sights)) in heard.iter() {
            let linked = peers.get(node).is_some_and(|peer| peer.connection.is_some());
            let counts = linked && agreement.nodes.contains(node);
            if counts && now.since(*at) <= STALE_AFTER {
                lead.hear(node, sights.clone());
            } else {
                lead.lose(node);
            }
        }
    }

    /// How long to rest; `None`: look again, there is something new.
    async fn look_at_names(
        &self,
        term: Term,
        lead: &mut Lead,
        topology: &Topology,
        (agreement, agreed): (&Agreement, &AgreedNames),
    ) -> Option<Duration> {
        let (now, known) = (boottime(), known(topology, agreement));
        let look = lead.look(now, wall(), topology, &known, agreed);
        let command = match look.command {
            Some(command) if agreed.epoch == 0 => {
                Some(self.with_what_was_kept(topology, agreed, command).await)
            }
            command => command,
        };
        let Some(command) = command else {
            let again = look.again.map_or(LOOK_EVERY, |at| at.since(now));
            return Some(again.clamp(Duration::from_millis(1), LOOK_EVERY));
        };
        let stamp = Stamp { index: agreed.epoch + 1, wall: wall() };
        if let Err(why) = agreed.changed(stamp, &command) {
            tracing::warn!(%why, "what name servers should answer by cannot be agreed on");
            return Some(LOOK_EVERY);
        }
        match self.agree_in(term, Command::Names(command)).await {
            Ok(()) => None,
            Err(why) => {
                tracing::debug!(why, "other answers are not agreed on");
                Some(AGAIN)
            }
        }
    }

    /// A node that was alone, or in a cluster that is founded anew, brings the records that updates had added to its zones.
    async fn with_what_was_kept(
        &self,
        topology: &Topology,
        agreed: &AgreedNames,
        command: NamesCommand,
    ) -> NamesCommand {
        let (data_dir, topology) = (self.settings.data_dir.clone(), topology.clone());
        let (agreed, bare) = (agreed.clone(), command.clone());
        // It reads the disk, and makes whole zones to see whether they could be answered.
        let whole = move || crate::names::founding(&data_dir, &topology, &agreed, bare);
        tokio::task::spawn_blocking(whole).await.unwrap_or(command)
    }

    /// Has agreed on what name servers of this node want.
    pub(super) async fn agree_on_names(self: Arc<Self>, mut changes: mpsc::Receiver<Wanted>) {
        let mut open = JoinSet::new();
        while let Some((command, answer)) = changes.recv().await {
            while open.try_join_next().is_some() {}
            if open.len() >= CHANGES_OPEN {
                open.join_next().await;
            }
            let hub = self.clone();
            open.spawn(async move { hub.agree_on_change(command, answer).await });
        }
        std::future::pending::<()>().await;
    }

    async fn agree_on_change(
        &self,
        command: NamesCommand,
        answer: oneshot::Sender<Result<Reply, String>>,
    ) {
        let entry = Entry {
            origin: ClientId::NOBODY,
            sequence: 0,
            wall: wall(),
            command: Command::Names(command),
        };
        let deadline = tokio::time::Instant::now() + CHANGE_MAX;
        let result = match self.propose(&entry, deadline).await {
            Ok((_, reply)) => Ok(reply),
            Err(Failure::Unavailable(why) | Failure::Unknown(why)) => Err(why),
        };
        // Whoever asked may have given up.
        answer.send(result).ok();
    }

    /// Has the nodes agree on what name servers share in secret, and keeps what was agreed on at hand.
    pub(super) async fn share_name_secrets(self: Arc<Self>) {
        let mut topology = self.desk.topology.clone();
        let kept = crate::names::kept_secrets(&self.settings.data_dir);
        let mut catching_up = self.replica.caught_up.subscribe();
        let mut caught_up: Option<Instant> = None;
        loop {
            if *catching_up.borrow_and_update() {
                caught_up.get_or_insert_with(boottime);
            }
            let wanted = secrets_of(&topology.borrow_and_update());
            let known = self.replica.read(|agreed| {
                let items = agreed.space().items();
                let known = wanted.iter().filter_map(|name| {
                    Some((name.clone(), items.get(&secret_key(name))?.value.to_vec()))
                });
                NameSecrets(known.collect())
            });
            let all = known.0.len() == wanted.len();
            self.name_secrets.send_if_modified(|before| {
                let changed = *before != known;
                before.clone_from(&known);
                changed
            });
            if !all {
                let ripe = caught_up.is_some_and(|at| NEW_KEY_AFTER <= boottime().since(at));
                for name in wanted.iter().filter(|name| !known.0.contains_key(*name)) {
                    let kept = kept.0.get(name).cloned();
                    if kept.is_some() || ripe || *name == cookie_secret() {
                        self.propose_name_secret(name, kept).await;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(SECRET_AGAIN), if !all => {}
                Ok(()) = topology.changed() => {}
                Ok(()) = catching_up.changed(), if caught_up.is_none() => {}
                else => std::future::pending::<()>().await,
            }
        }
    }

    /// A node that was alone goes on with what it has: parents and clients know the key.
    async fn propose_name_secret(&self, name: &str, kept: Option<Vec<u8>>) {
        let value = match kept.map_or_else(|| new_secret(name), Ok) {
            Ok(value) => value,
            Err(error) => return tracing::error!(%error, name, "make a secret of name servers"),
        };
        let command = KvCommand::Cas {
            key: secret_key(name),
            expected: Expected::Absent,
            value,
            session: None,
        };
        // Another node may have been first.
        if let Err(failure) = self.write_as_node(Command::Kv(command)).await {
            tracing::debug!(name, ?failure, "agree on a secret of name servers");
        }
    }
}

/// What is known of parts without asking vantage points.
fn known(topology: &Topology, agreement: &Agreement) -> Known {
    // While it is switched over as planned, it is neither gone nor anywhere.
    let settled = agreement
        .databases
        .iter()
        .filter(|(_, held)| held.lease.is_some() || held.database.switchover.is_none());
    let databases = settled.map(|(name, held)| {
        let sight = match &held.lease {
            Some((holder, _)) => (Health::Up, format!("{holder} is its primary")),
            None => (Health::Down, "it has no primary".to_owned()),
        };
        (format!("postgres.{name}"), sight)
    });
    let addresses = topology.addresses.iter().filter_map(|(name, address)| {
        let agreed = agreement.addresses.get(&unit_of(name, address))?;
        let sight = match &agreed.holder {
            Some(holder) => (Health::Up, format!("{holder} holds it")),
            None => (Health::Down, "nobody holds it".to_owned()),
        };
        Some((format!("address.{name}"), sight))
    });
    let now = wall();
    let soon = agreement.databases.iter().filter(|(_, held)| {
        let at = held.database.scheduled.as_ref().map(|scheduled| scheduled.when);
        let limit = i64::try_from(SOON.as_millis()).unwrap_or(i64::MAX);
        held.database.switchover.is_some() || at.is_some_and(|at| at.0 <= now.0 + limit)
    });
    Known {
        agreed: databases.chain(addresses).collect(),
        places: places(topology, agreement),
        soon: soon.map(|(name, _)| format!("postgres.{name}")).collect(),
    }
}
