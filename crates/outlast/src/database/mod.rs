//! The databases of this node: each member's PostgreSQL, led by what is agreed.
//!
//! All of it runs on a thread of its own. A disk that hangs holds up this thread and nothing else: leases, votes and traffic
//! go on elsewhere.

mod carry;
mod kept;
mod lag;
mod member;
mod place;
mod ports;
mod trials;
mod watch;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outlast_consensus::boottime;
use outlast_core::database::{DatabaseSight, Wish};
use outlast_core::event::Fact;
use outlast_core::topology::Topology;
use tokio::sync::{mpsc, watch as watching};
use tokio::task::{AbortHandle, JoinSet};

use crate::apart::Apart;
use crate::cluster::{self, OfDatabases};

pub use place::{KEEP, keep};
pub use trials::Trials;

/// How often a node says what it sees of databases, although nothing has changed.
const SAY_EVERY: Duration = Duration::from_millis(500);

/// What a node that runs databases knows of itself.
#[derive(Clone, Debug)]
pub struct Home {
    pub node: String,
    pub data_dir: PathBuf,
    /// Relative paths of the file count from here.
    pub base: PathBuf,
}

/// The databases of this node. Dropped, it leaves PostgreSQL running.
#[derive(Debug)]
pub struct Databases {
    topology: watching::Sender<Arc<Topology>>,
    stop: watching::Sender<Stop>,
    verifiers: watching::Receiver<Verifiers>,
    thread: Apart,
}

/// What the roles' passwords are compared with, by database and role. Never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Verifiers(pub BTreeMap<String, BTreeMap<String, String>>);

impl std::fmt::Debug for Verifiers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What becomes of PostgreSQL when the agent ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stop {
    #[default]
    No,
    /// The next agent finds it.
    Leave,
    End,
}

/// What every database's task shares.
#[derive(Debug)]
struct Office {
    home: Home,
    cluster: OfDatabases,
    says: watching::Sender<cluster::Databases>,
    verifiers: watching::Sender<Verifiers>,
    stop: watching::Receiver<Stop>,
    facts: mpsc::Sender<Fact>,
}

impl Databases {
    pub fn start(
        home: Home,
        topology: Arc<Topology>,
        cluster: OfDatabases,
        says: watching::Sender<cluster::Databases>,
        facts: mpsc::Sender<Fact>,
    ) -> anyhow::Result<Databases> {
        let (topology, follow) = watching::channel(topology);
        let (stop, stopping) = watching::channel(Stop::No);
        let verifiers = watching::Sender::default();
        let known = verifiers.subscribe();
        let office = Arc::new(Office { home, cluster, says, verifiers, stop: stopping, facts });
        let thread = Apart::start("databases", move || live(office, follow))?;
        Ok(Databases { topology, stop, verifiers: known, thread })
    }

    /// What the roles' passwords are compared with.
    pub fn verifiers(&self) -> Verifiers {
        self.verifiers.borrow().clone()
    }

    /// Another topology is in force.
    pub fn follow(&self, topology: Arc<Topology>) {
        self.topology.send_replace(topology);
    }

    /// Stops PostgreSQL on this node; returns once it has ended, or was killed.
    pub async fn end(&mut self) {
        self.stop.send_replace(Stop::End);
        self.thread.ended().await;
    }
}

impl Drop for Databases {
    fn drop(&mut self) {
        self.stop.send_if_modified(|stop| {
            let goes_on = *stop == Stop::No;
            if goes_on {
                *stop = Stop::Leave;
            }
            goes_on
        });
    }
}

/// Runs what each database of the topology needs, until told to stop.
///
/// A member goes on through a change of the topology: what it does is not interrupted.
async fn live(office: Arc<Office>, mut topology: watching::Receiver<Arc<Topology>>) {
    let mut stop = office.stop.clone();
    let follow = topology.clone();
    let mut members = JoinSet::new();
    let mut running: BTreeMap<String, AbortHandle> = BTreeMap::new();
    loop {
        let now = topology.borrow_and_update().clone();
        office.begin(&now);
        let mut watchers = JoinSet::new();
        watchers.spawn(office.clone().say_again());
        running.retain(|name, member| {
            let stays = now.postgres.get(name).is_some_and(|p| p.nodes.contains(&office.home.node));
            if !stays {
                member.abort();
            }
            stays
        });
        for (name, part) in &now.postgres {
            for node in part.nodes.iter().filter(|node| **node != office.home.node) {
                if let Some(other) = now.nodes.get(node) {
                    let address = SocketAddr::new(other.address, part.port.get());
                    watchers.spawn(ports::watch(
                        office.clone(),
                        name.clone(),
                        node.clone(),
                        address,
                    ));
                }
            }
            if part.nodes.contains(&office.home.node) && !running.contains_key(name) {
                let member = member::run(office.clone(), name.clone(), follow.clone());
                running.insert(name.clone(), members.spawn(member));
            }
        }
        tokio::select! {
            // Whoever says that it ends drops the topology next: its end must not be taken for another topology.
            biased;
            _ = stop.wait_for(|stop| *stop != Stop::No) => {
                // A member ends its PostgreSQL itself, or leaves it running.
                let ended = async { while members.join_next().await.is_some() {} };
                tokio::time::timeout(member::END_MAX, ended).await.ok();
                return;
            }
            _ = topology.wait_for(|next| next.postgres != now.postgres || next.nodes != now.nodes) => {}
        }
    }
}

impl Office {
    /// Says what is wanted of each database, and nothing yet of what is seen.
    fn begin(&self, topology: &Topology) {
        let wishes =
            topology.postgres.iter().map(|(name, part)| (name.clone(), Wish::of(topology, part)));
        let wishes: BTreeMap<String, Wish> = wishes.collect();
        self.says.send_modify(|says| {
            says.sights.retain(|name, _| wishes.contains_key(name));
            for name in wishes.keys() {
                says.sights.entry(name.clone()).or_default();
            }
            says.wishes = wishes;
            says.at = boottime();
        });
    }

    /// Changes what this node says of a database; the others hear of it at once if it matters.
    fn say(&self, database: &str, change: impl FnOnce(&mut DatabaseSight)) {
        self.say_if(database, change, DatabaseSight::differs);
    }

    /// The same while others wait for how far a log reaches.
    fn say_each_step(&self, database: &str, change: impl FnOnce(&mut DatabaseSight)) {
        let reaches = |sight: &DatabaseSight| sight.member.as_ref().map(|member| member.reaches);
        let moved = |now: &DatabaseSight, before: &DatabaseSight| {
            now.differs(before) || reaches(now) != reaches(before)
        };
        self.say_if(database, change, moved);
    }

    fn say_if(
        &self,
        database: &str,
        change: impl FnOnce(&mut DatabaseSight),
        matters: impl FnOnce(&DatabaseSight, &DatabaseSight) -> bool,
    ) {
        self.says.send_if_modified(|says| {
            says.at = boottime();
            let Some(sight) = says.sights.get_mut(database) else { return false };
            let before = sight.clone();
            change(sight);
            matters(sight, &before)
        });
    }

    fn record(&self, fact: Fact) {
        if let Err(error) = self.facts.try_send(fact) {
            tracing::warn!(%error, "the journal does not keep up with the databases");
        }
    }

    fn show_verifiers(&self, database: &str, verifiers: BTreeMap<String, String>) {
        self.verifiers.send_if_modified(|all| {
            let before = all.0.insert(database.to_owned(), verifiers.clone());
            before.as_ref() != Some(&verifiers)
        });
    }

    async fn say_again(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SAY_EVERY).await;
            self.says.send_modify(|_| {});
        }
    }
}
