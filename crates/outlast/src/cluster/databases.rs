//! This node's part in the databases of the cluster: it leads them all if it leads, and holds the lease of each whose
//! primary it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outlast_consensus::boottime;
use outlast_core::agent::{Agreement, HeldDatabase};
use outlast_core::agreed::{
    ClientId, Command, DATABASE_LEASE, DatabaseCommand, Entry, Expected, Held, KvCommand,
    LeaseCommand, Reply, database_role,
};
use outlast_core::database::{DatabaseSight, Lead, MemberState, SILENT_AFTER, Scene, Seen, Wish};
use outlast_core::observers::Verdict;
use outlast_core::time::Instant;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::identity::random_hex;
use super::lease::{moment, until};
use super::thread::Hub;
use crate::agent::shared::wall;

/// How often a leader looks at the databases although it has heard nothing new: while something is under way, and while
/// all is well.
const LOOK_SOON: Duration = Duration::from_millis(100);
const LOOK_EVERY: Duration = Duration::from_millis(400);

/// Who was not heard for this long may be about to be missed.
const OVERDUE: Duration = Duration::from_millis(1_300);

const RENEW_EVERY: Duration = Duration::from_secs(1);

/// After a refusal, or where no majority answers.
const AGAIN: Duration = Duration::from_millis(200);

/// Who says nothing of its own PostgreSQL for this long does not renew the lease of a primary.
const SILENT_MAX: Duration = Duration::from_secs(3);

/// A primary that has ended and asks for another one waits this long for it.
const HAND_OVER_MAX: Duration = Duration::from_secs(10);

/// A primary that does not serve for this long does not renew its lease.
const SERVES_WITHIN: Duration = Duration::from_secs(15);

/// What this node sees of databases, and what people want of them.
#[derive(Clone, Debug, Default)]
pub struct Databases {
    /// When that was said, on the clock that counts suspension.
    pub at: Instant,
    pub wishes: BTreeMap<String, Wish>,
    pub sights: BTreeMap<String, DatabaseSight>,
}

/// What another node has said of databases.
#[derive(Clone, Debug)]
pub struct HeardDatabases {
    pub at: Instant,
    pub sights: BTreeMap<String, DatabaseSight>,
}

/// By node.
pub type AllHeard = BTreeMap<String, HeardDatabases>;

/// The right of this node to be the primary of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrimaryLease {
    /// The reign.
    pub epoch: u64,
    /// On the clock that counts suspension.
    pub until: Instant,
}

/// By database.
pub type PrimaryLeases = BTreeMap<String, PrimaryLease>;

/// What the tasks for databases share.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) own: watch::Receiver<Databases>,
    pub(super) heard: watch::Sender<AllHeard>,
    pub(super) leases: watch::Sender<PrimaryLeases>,
    /// Why the leader does nothing although something is wrong, by database.
    pub(super) stuck: watch::Sender<BTreeMap<String, String>>,
    pub(super) secrets: watch::Sender<Secrets>,
}

/// The passwords with which members of a database know each other, by database.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets(BTreeMap<String, String>);

impl Secrets {
    pub fn get(&self, database: &str) -> Option<&String> {
        self.0.get(database)
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Random bytes of a password.
const SECRET_BYTES: usize = 24;

fn secret_key(database: &str) -> Vec<u8> {
    format!("outlast/postgres/{database}/secret").into_bytes()
}

impl Hub {
    /// Notes what another node sees of databases.
    pub(super) fn hear_databases(&self, node: &str, sights: BTreeMap<String, DatabaseSight>) {
        if sights.is_empty() && !self.shelf.heard.borrow().contains_key(node) {
            return;
        }
        let heard = HeardDatabases { at: boottime(), sights };
        self.shelf.heard.send_modify(|all| {
            all.insert(node.to_owned(), heard);
        });
    }

    /// Decides for all, while this node leads.
    pub(super) async fn lead_databases(self: Arc<Self>) {
        let mut heard = self.shelf.heard.subscribe();
        let mut own = self.shelf.own.clone();
        let mut agreement = self.replica.agreement.subscribe();
        let mut leads: BTreeMap<String, Lead> = BTreeMap::new();
        loop {
            let now = agreement.borrow_and_update().clone();
            let may = now.leads && self.consensus().is_some_and(|consensus| consensus.may_act());
            if !may {
                leads.clear();
                self.show_stuck(BTreeMap::new());
            } else if self.look_at_databases(&mut leads, &now).await {
                continue;
            }
            let pause = if !may || self.hurries(&now) { LOOK_SOON } else { LOOK_EVERY };
            tokio::select! {
                () = tokio::time::sleep(pause), if now.leads => {}
                Ok(()) = heard.changed(), if now.leads => {}
                Ok(()) = own.changed(), if now.leads => {}
                Ok(()) = agreement.changed() => {}
            }
        }
    }

    /// Whether something is under way in which time decides.
    fn hurries(&self, agreement: &Agreement) -> bool {
        let now = boottime();
        let changes = |held: &HeldDatabase| {
            let database = &held.database;
            !database.reign.open
                || database.election.is_some()
                || database.switchover.is_some()
                || database.upkeep.is_some()
                || database.confirms.len() > 1
        };
        agreement.databases.values().any(changes)
            || self.shelf.heard.borrow().values().any(|heard| OVERDUE < now.since(heard.at))
    }

    /// Whether something was agreed on, after which everything has to be looked at anew.
    async fn look_at_databases(
        &self,
        leads: &mut BTreeMap<String, Lead>,
        agreement: &Agreement,
    ) -> bool {
        let own = self.shelf.own.borrow().clone();
        leads.retain(|name, _| own.wishes.contains_key(name));
        let (mut stuck, mut changed) = (BTreeMap::new(), false);
        for (name, wish) in &own.wishes {
            let scene = self.scene(name, wish, &own, agreement);
            let lead = leads.entry(name.clone()).or_default();
            let command = lead.decide(boottime(), &scene);
            if let Some(why) = &lead.stuck {
                stuck.insert(name.clone(), why.clone());
            }
            let Some(command) = command else { continue };
            tracing::debug!(database = name, ?command, "decide");
            match self.agree_as_leader(Command::Database(command.clone())).await {
                Ok(()) => changed = true,
                Err(why) => {
                    tracing::debug!(database = name, why, ?command, "it is not agreed on");
                    stuck.entry(name.clone()).or_insert(why);
                }
            }
        }
        self.show_stuck(stuck);
        changed
    }

    fn show_stuck(&self, stuck: BTreeMap<String, String>) {
        self.shelf.stuck.send_if_modified(|before| {
            let changed = *before != stuck;
            *before = stuck;
            changed
        });
    }

    fn scene<'a>(
        &self,
        name: &'a str,
        wish: &'a Wish,
        own: &Databases,
        agreement: &'a Agreement,
    ) -> Scene<'a> {
        let now = boottime();
        let heard = self.shelf.heard.borrow();
        let me = &self.settings.node;
        let own_at = (me, own.at, &own.sights);
        let all = heard.iter().map(|(node, heard)| (node, heard.at, &heard.sights)).chain([own_at]);
        let all: Vec<_> = all.filter(|(node, ..)| agreement.nodes.contains(*node)).collect();
        let port = |member: &str| {
            let fresh = all.iter().filter(|(_, at, _)| now.since(*at) <= SILENT_AFTER);
            let votes =
                fresh.filter_map(|(_, _, sights)| sights.get(name)?.ports.get(member).copied());
            Verdict::of(votes, agreement.nodes.len()).health
        };
        let members = wish.members.iter().map(|member| {
            let said = all.iter().find(|(node, ..)| *node == member);
            let seen = Seen {
                sight: said.and_then(|(_, _, sights)| sights.get(name)?.member.clone()),
                heard_ago: said.map_or(Duration::MAX, |(_, at, _)| now.since(*at)),
                port: port(member),
            };
            (member.clone(), seen)
        });
        let members = members.collect();
        let held = agreement.databases.get(name);
        Scene {
            name,
            wish,
            agreed: held.map(|held| &held.database),
            leased: held.is_some_and(|held| held.lease.is_some()),
            members,
            paused: agreement.pause.is_some(),
            resting: agreement.paused.keys().cloned().collect(),
            wall: wall(),
        }
    }

    /// Has the nodes agree on a password for each database, and keeps what was agreed on at hand.
    pub(super) async fn share_secrets(self: Arc<Self>) {
        let mut own = self.shelf.own.clone();
        loop {
            let names: Vec<String> = own.borrow_and_update().wishes.keys().cloned().collect();
            let known = self.replica.read(|agreed| {
                let items = agreed.space().items();
                let known = names.iter().filter_map(|name| {
                    let value = items.get(&secret_key(name))?.value.to_vec();
                    Some((name.clone(), String::from_utf8(value).ok()?))
                });
                Secrets(known.collect())
            });
            for name in names.iter().filter(|name| known.get(name).is_none()) {
                self.propose_secret(name).await;
            }
            let all = names.len() == known.0.len();
            self.shelf.secrets.send_if_modified(|before| {
                let changed = *before != known;
                *before = known;
                changed
            });
            let others = |own: &Databases| own.wishes.keys().ne(names.iter());
            tokio::select! {
                () = tokio::time::sleep(AGAIN), if !all => {}
                // Whoever says it ends first: then this ends, too.
                Ok(()) = async { own.wait_for(others).await.map(drop) } => {}
                else => std::future::pending::<()>().await,
            }
        }
    }

    async fn propose_secret(&self, name: &str) {
        let secret = match random_hex::<SECRET_BYTES>() {
            Ok(secret) => secret,
            Err(error) => return tracing::error!(%error, "make a password"),
        };
        let command = KvCommand::Cas {
            key: secret_key(name),
            expected: Expected::Absent,
            value: secret.into_bytes(),
            session: None,
        };
        // Another node may have been first.
        if let Err(failure) = self.write_as_node(Command::Kv(command)).await {
            tracing::debug!(database = name, ?failure, "agree on a password");
        }
    }

    /// Holds the lease of each database whose primary this node is.
    pub(super) async fn hold_databases(self: Arc<Self>) {
        let mut agreement = self.replica.agreement.subscribe();
        let mut keeping: BTreeMap<String, (u64, AbortHandle)> = BTreeMap::new();
        loop {
            let now = agreement.borrow_and_update().clone();
            let mine = |held: &HeardLease| held.holder == self.settings.node;
            let leases = now.databases.iter().filter_map(|(name, held)| HeardLease::of(name, held));
            let leases: Vec<HeardLease> = leases.filter(mine).collect();
            keeping.retain(|name, (epoch, task)| {
                let keep = !task.is_finished()
                    && leases.iter().any(|lease| lease.name == *name && lease.epoch == *epoch);
                if !keep {
                    task.abort();
                    self.shelf.leases.send_if_modified(|leases| leases.remove(name).is_some());
                }
                keep
            });
            for lease in leases {
                let (name, epoch) = (lease.name.clone(), lease.epoch);
                keeping.entry(name).or_insert_with(|| {
                    // Held in `keeping`, and aborted when the lease is another's.
                    let task = tokio::task::spawn(self.clone().keep_database(lease));
                    (epoch, task.abort_handle())
                });
            }
            for (name, held) in &now.databases {
                self.regain(name, held).await;
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                Ok(()) = agreement.changed() => {}
            }
        }
    }

    /// A primary whose lease has run out, and whose reign nobody has ended, asks for it again.
    async fn regain(&self, name: &str, held: &HeldDatabase) {
        let reign = &held.database.reign;
        let lost = held.lease.is_none()
            && held.database.election.is_none()
            && reign.primary == self.settings.node;
        if !lost || !self.is_worthy(name, &held.database) || self.has_ended(name) {
            return;
        }
        let command = DatabaseCommand::Regain { database: name.to_owned(), epoch: reign.epoch };
        let command = Command::Database(command);
        let entry = Entry { origin: ClientId::NOBODY, sequence: 0, wall: wall(), command };
        let limit = tokio::time::Instant::now() + RENEW_EVERY;
        if let Err(failure) = self.propose(&entry, limit).await {
            tracing::debug!(database = name, ?failure, "ask for the lease of a primary again");
        }
    }

    /// Whether this node's PostgreSQL is such that it may go on as primary.
    fn is_worthy(&self, name: &str, database: &outlast_core::agreed::Database) -> bool {
        let own = self.shelf.own.borrow();
        if SILENT_MAX < boottime().since(own.at) {
            return false;
        }
        let Some(member) = own.sights.get(name).and_then(|sight| sight.member.as_ref()) else {
            return false;
        };
        let reign = &database.reign;
        !reign.open || member.serves == Some(reign.epoch) || member.since <= SERVES_WITHIN
    }

    /// Whether this node's PostgreSQL is down, and it asks for another primary.
    fn has_ended(&self, name: &str) -> bool {
        let own = self.shelf.own.borrow();
        let member = own.sights.get(name).and_then(|sight| sight.member.as_ref());
        member.is_some_and(|member| {
            // If nobody takes over, it starts again itself.
            member.gives_up.is_some()
                && member.state == MemberState::Down
                && member.since <= HAND_OVER_MAX
        })
    }

    /// Renews one lease until it is over or lost.
    async fn keep_database(self: Arc<Self>, lease: HeardLease) {
        let Some(node) = self.identity().id else { return };
        let HeardLease { name, epoch, reign, .. } = lease;
        let mut held: Option<Held> = None;
        loop {
            let database = self.replica.read(|agreed| agreed.databases().get(&name).cloned());
            let sent = moment();
            if held.as_mut().is_some_and(|held| held.check(sent).is_err()) {
                return;
            }
            if self.has_ended(&name) {
                // It was killed here: nobody has to wait for the end of its lease.
                let role = database_role(&name);
                let release = LeaseCommand::Release { role, node, epoch };
                self.repeat(release, DATABASE_LEASE / 2).await.ok();
                return;
            }
            if database.is_some_and(|database| self.is_worthy(&name, &database)) {
                let limit = held.map_or(DATABASE_LEASE / 2, |held| until(held.ends()));
                let renew = LeaseCommand::Renew { role: database_role(&name), node, epoch };
                match self.repeat(renew, limit).await {
                    Ok((_, Reply::Done)) => {
                        match &mut held {
                            Some(held) => held.renewed(sent, moment()),
                            None => held = Some(Held::granted(epoch, DATABASE_LEASE, sent)),
                        }
                        if let Some(held) = held {
                            let lease = PrimaryLease { epoch: reign, until: held.ends() };
                            self.shelf.leases.send_modify(|leases| {
                                leases.insert(name.clone(), lease);
                            });
                        }
                    }
                    Ok((_, other)) => {
                        tracing::warn!(database = name, %other, "the lease of the primary is lost");
                        return;
                    }
                    Err(failure) => {
                        tracing::debug!(database = name, ?failure, "renew the lease of a primary");
                    }
                }
            }
            let pause = if held.is_some() { RENEW_EVERY } else { AGAIN };
            tokio::time::sleep(pause).await;
        }
    }
}

/// A lease as the agreement has it.
#[derive(Clone, Debug)]
struct HeardLease {
    name: String,
    holder: String,
    epoch: u64,
    reign: u64,
}

impl HeardLease {
    fn of(name: &str, held: &HeldDatabase) -> Option<HeardLease> {
        let (holder, epoch) = held.lease.clone()?;
        let reign = held.database.reign.epoch;
        // That of a reign that is over is not renewed.
        let lasts = held.database.election.is_none() && reign <= epoch;
        lasts.then(|| HeardLease { name: name.to_owned(), holder, epoch, reign })
    }
}
