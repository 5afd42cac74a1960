//! The threads of the cluster's part of an agent, and what the rest of the agent holds of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use outlast_consensus::{Agreement, Home, NodeId, Outgoing, Role};
use outlast_core::agent::Agreement as AgentAgreement;
use outlast_core::agreed::SideCommand;
use outlast_core::observers::Report;
use outlast_core::topology::{ConsensusKind, Topology};
use outlast_link::{Channel, Identity as Certificates, IdentityFiles, Inboxes, Links, Security};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::addresses::{Asked, Desk, OfAddresses};
use super::agree::Client;
use super::databases::{AllHeard, Databases, PrimaryLeases, Secrets, Shelf};
use super::door;
use super::found::Founding;
use super::heartbeat;
use super::identity::{self, Identity};
use super::lease::LeaseWish;
use super::names::{self, NameSecrets, OfNames, Wanted, Witnesses};
use super::replica::Replica;
use super::share::{Answering, NEWS_MAX, News, StandbyOrder, WISHES_MAX, Wish};
use super::topology::{Errand, Running};
use super::view::{ClusterView, Phase};

/// Questions of this node about addresses that wait.
const ASKED_MAX: usize = 8;

/// Events of links that wait.
const EVENTS_MAX: usize = 1024;

/// How long a leader that ends waits for another one to take over.
const HAND_OVER_MAX: Duration = Duration::from_millis(500);

/// How often a node without a place in a cluster asks around.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(200);

/// How long another node may take to answer.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(2);

/// What the cluster's part of an agent needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    pub topology: Topology,
    /// Relative paths of the file count from here.
    pub base: PathBuf,
    pub node: String,
    pub data_dir: PathBuf,
    /// What the agent runs, and where it is told what else to check and to take.
    pub running: watch::Receiver<Running>,
    pub errands: mpsc::Sender<Errand>,
    /// What this node sees of databases.
    pub databases: watch::Receiver<Databases>,
    /// The topology that this node runs.
    pub in_force: watch::Receiver<Arc<Topology>>,
}

/// The cluster's part of an agent. Dropped, it ends.
#[derive(Debug)]
pub struct Cluster {
    view: watch::Receiver<Arc<ClusterView>>,
    news: mpsc::Receiver<News>,
    wishes: mpsc::Sender<Wish>,
    say: watch::Sender<Report>,
    want_lease: watch::Sender<LeaseWish>,
    of_databases: OfDatabases,
    of_addresses: OfAddresses,
    of_names: OfNames,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// What the cluster tells those who run databases.
#[derive(Clone, Debug)]
pub struct OfDatabases {
    pub agreement: watch::Receiver<Arc<AgentAgreement>>,
    /// The agreement is what it was when this node had caught up, or newer.
    pub caught_up: watch::Receiver<bool>,
    pub heard: watch::Receiver<AllHeard>,
    pub leases: watch::Receiver<PrimaryLeases>,
    pub stuck: watch::Receiver<BTreeMap<String, String>>,
    /// With what members of a database know each other.
    pub secrets: watch::Receiver<Secrets>,
}

impl Cluster {
    /// Opens what it needs, so that what is wrong is known at once, and starts.
    pub fn start(settings: Settings) -> anyhow::Result<Cluster> {
        let topology = &settings.topology;
        let founding = Founding::of(topology);
        let mut identity =
            identity::load(&settings.data_dir, &topology.cluster.name, &settings.node)?;
        let home = Home::open(&identity::dir(&settings.data_dir)).context("open the log")?;
        complain_of_other_kind(&settings, home.is_some())?;
        // A log whose id was never written down was never used.
        let home = home.filter(|_| identity.id.is_some());
        if let Some(torn) = home.as_ref().map(|home| home.torn).filter(|&torn| torn > 0) {
            tracing::warn!(bytes = torn, "cut a torn end off the log");
        }
        if home.is_none() && identity.id.is_some() {
            // What this disk has promised is gone: it is another disk now.
            identity = identity::renew(&settings.data_dir, &identity)?;
        }
        let addresses = topology.link_addresses();
        let ours = *addresses.get(&settings.node).context("this node is not in the topology")?;
        let listener = std::net::TcpListener::bind(ours)
            .with_context(|| format!("listen for other nodes at {ours}"))?;
        listener.set_nonblocking(true).context("prepare the listener for other nodes")?;
        let security = security(&settings)?;
        let (publish, view) = watch::channel(Arc::new(ClusterView::default()));
        let (news_in, news) = mpsc::channel(NEWS_MAX);
        let (wishes, to_grant) = mpsc::channel(WISHES_MAX);
        let (say, said) = watch::channel(Report::default());
        let (want_lease, lease_wanted) = watch::channel(LeaseWish::RunOut);
        let (stop, stopping) = watch::channel(false);
        let replica = Replica::new();
        let shelf = Shelf {
            own: settings.databases.clone(),
            heard: watch::Sender::default(),
            leases: watch::Sender::default(),
            stuck: watch::Sender::default(),
            secrets: watch::Sender::default(),
        };
        let of_databases = OfDatabases {
            agreement: replica.agreement.subscribe(),
            caught_up: replica.caught_up.subscribe(),
            heard: shelf.heard.subscribe(),
            leases: shelf.leases.subscribe(),
            stuck: shelf.stuck.subscribe(),
            secrets: shelf.secrets.subscribe(),
        };
        let (questions, asked) = mpsc::channel(ASKED_MAX);
        let desk = Desk::new(settings.in_force.clone(), heartbeat::kept(&settings.data_dir));
        let of_addresses = OfAddresses {
            questions,
            nudges: desk.nudge.subscribe(),
            agreement: replica.agreement.subscribe(),
            heartbeat_key: desk.key.subscribe(),
        };
        let (changes, to_change) = mpsc::channel(names::CHANGES_MAX);
        let name_secrets = watch::Sender::new(NameSecrets::default());
        let of_names = OfNames {
            agreement: replica.agreement.subscribe(),
            caught_up: replica.caught_up.subscribe(),
            secrets: name_secrets.subscribe(),
            changes,
        };
        let hub = Hub {
            witnesses: Witnesses::default(),
            name_secrets,
            replica,
            shelf,
            desk,
            consensus: OnceLock::new(),
            links: OnceLock::new(),
            heard: Arc::default(),
            founding,
            identity: Mutex::new(identity),
            phase: Mutex::default(),
            client: tokio::sync::Mutex::new(None),
            publish,
            news: news_in,
            said,
            settings,
        };
        let thread = std::thread::Builder::new()
            .name("cluster".to_owned())
            .spawn(move || {
                let from_loop = FromLoop { wishes: to_grant, lease_wanted, asked, to_change };
                hub.run(listener, security, home, &addresses, from_loop, stopping);
            })
            .context("start the cluster's thread")?;
        Ok(Cluster {
            view,
            news,
            wishes,
            say,
            want_lease,
            of_databases,
            of_addresses,
            of_names,
            stop,
            thread: Some(thread),
        })
    }

    /// The cluster as this node sees it.
    pub fn view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.view.clone()
    }

    /// What the agent's loop has to hear.
    pub async fn news(&mut self) -> Option<News> {
        self.news.recv().await
    }

    /// What it tells those who run databases.
    pub fn of_databases(&self) -> OfDatabases {
        self.of_databases.clone()
    }

    /// What it tells those who carry addresses.
    pub fn of_addresses(&self) -> OfAddresses {
        self.of_addresses.clone()
    }

    /// What it tells those who answer for names.
    pub fn of_names(&self) -> OfNames {
        self.of_names.clone()
    }

    /// Tells the other nodes what this one sees.
    pub fn say(&self, report: Report) {
        self.say.send_if_modified(|before| {
            let differs = report.differs(before);
            // The words may be newer; they go along with the next one.
            *before = report;
            differs
        });
    }

    /// What becomes of this node's lease to route to pairs.
    pub fn want_lease(&self, wanted: LeaseWish) {
        self.want_lease.send_if_modified(|before| std::mem::replace(before, wanted) != wanted);
    }

    /// Has something agreed on; the answer is among the news. False: there will be none.
    pub fn agree(&self, command: SideCommand) -> bool {
        self.wish(Wish::Agree(command))
    }

    /// Asks the leader to let a pair return to its primary.
    pub fn failback(&self, service: String, answer: Answering) {
        self.wish(Wish::Failback { service, answer });
    }

    /// Has another node obey an order about a standby within a time.
    pub fn order(&self, node: String, order: StandbyOrder, limit: Duration, answer: Answering) {
        self.wish(Wish::Standby { node, order, limit, answer });
    }

    fn wish(&self, wish: Wish) -> bool {
        let sent = self.wishes.try_send(wish);
        if let Err(error) = &sent {
            tracing::error!(%error, "the cluster's part of this agent does not keep up");
        }
        sent.is_ok()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// What the rest of the agent sends.
struct FromLoop {
    wishes: mpsc::Receiver<Wish>,
    lease_wanted: watch::Receiver<LeaseWish>,
    asked: mpsc::Receiver<Asked>,
    to_change: mpsc::Receiver<Wanted>,
}

/// What was agreed on in one way does not move to the other by itself.
fn complain_of_other_kind(settings: &Settings, has_log: bool) -> anyhow::Result<()> {
    let dir = settings.data_dir.display();
    let beyond = "what was agreed on there would be left behind";
    match settings.topology.consensus.kind {
        ConsensusKind::Embedded => {
            let mark = outlast_etcd::mark_path(&settings.data_dir);
            ensure!(
                !mark.exists(),
                "{} says that this cluster agrees through etcd: {beyond}; put `kind = \"etcd\"` back, or \
                 delete that file on each node",
                mark.display()
            );
        }
        ConsensusKind::Etcd { .. } => ensure!(
            !has_log,
            "{dir}/consensus holds a log of this cluster's own: {beyond}; take `kind = \"etcd\"` out, or \
             delete that directory on each node"
        ),
    }
    Ok(())
}

fn security(settings: &Settings) -> anyhow::Result<(Security, Option<IdentityFiles>)> {
    let lab = settings.data_dir.join(super::LAB_CERTS);
    let at = |path: &String| settings.base.join(path);
    let files = match &settings.topology.cluster.tls {
        Some(tls) => IdentityFiles {
            ca: at(&tls.ca),
            cert: at(&tls.cert),
            key: at(&tls.key),
            crl: tls.crl.as_ref().map(at),
        },
        None if lab.is_dir() => IdentityFiles {
            ca: lab.join("ca.pem"),
            cert: lab.join("node.pem"),
            key: lab.join("node.key"),
            crl: None,
        },
        None => return Ok((Security::Loopback, None)),
    };
    let pem = files.read().context("read the certificates of [cluster] tls")?;
    let certificates =
        Certificates::from_pem(&pem).context("use the certificates of [cluster] tls")?;
    Ok((Security::Tls(certificates), Some(files)))
}

/// Everything that the tasks of the cluster share.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) replica: Arc<Replica>,
    pub(super) shelf: Shelf,
    pub(super) desk: Desk,
    pub(super) witnesses: Witnesses,
    pub(super) name_secrets: watch::Sender<NameSecrets>,
    pub(super) consensus: OnceLock<Box<dyn Agreement>>,
    pub(super) links: OnceLock<Arc<Links>>,
    /// Names of ids that spoke to us before we had a registry to look them up.
    pub(super) heard: Arc<Mutex<BTreeMap<u64, String>>>,
    pub(super) founding: Founding,
    pub(super) identity: Mutex<Identity>,
    pub(super) phase: Mutex<Phase>,
    /// This node's own number as a client of what is agreed, and that of its last command.
    pub(super) client: tokio::sync::Mutex<Option<Client>>,
    pub(super) publish: watch::Sender<Arc<ClusterView>>,
    pub(super) news: mpsc::Sender<News>,
    /// What this node sees.
    pub(super) said: watch::Receiver<Report>,
    pub(super) settings: Settings,
}

impl Hub {
    fn run(
        self,
        listener: std::net::TcpListener,
        security: (Security, Option<IdentityFiles>),
        home: Option<Home>,
        addresses: &BTreeMap<String, SocketAddr>,
        from_loop: FromLoop,
        mut stopping: watch::Receiver<bool>,
    ) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "start the cluster's runtime");
                return;
            }
        };
        let hub = Arc::new(self);
        // Lives until all is over: what the lead is handed over with is heard by these tasks.
        let mut tasks = JoinSet::new();
        let ended = runtime.block_on(async {
            hub.clone().begin(listener, security, home, addresses, from_loop, &mut tasks)?;
            // Ends at the first of: told to, or a task that must not end has ended.
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => Ok(()),
                ended = tasks.join_next() => Err(anyhow::anyhow!("a task of the cluster ended: {ended:?}")),
            }
        });
        if let Err(error) = ended {
            tracing::error!(
                error = format!("{error:#}"),
                "the cluster's part of this agent has ended"
            );
            hub.set_phase(Phase::Failed { reason: format!("{error:#}") });
            hub.show();
        }
        runtime.block_on(hub.hand_over());
        if let Some(links) = hub.links.get() {
            runtime.block_on(links.stop());
        }
        drop(tasks);
        runtime.shutdown_background();
    }

    /// A leader that ends hands the lead over first: others go on at once instead of after an election's silence.
    async fn hand_over(&self) {
        let Some(consensus) = self.consensus() else { return };
        let mut standing = consensus.standing();
        let (role, voters) = {
            let now = standing.borrow();
            (now.role, now.members.voters.clone())
        };
        if role != Role::Leader {
            return;
        }
        let (names, peers) = (self.replica.names(), self.links().peers());
        let linked = voters.into_iter().find(|id| {
            let peer = names.get(&id.0).and_then(|name| peers.get(name));
            peer.is_some_and(|peer| peer.connection.is_some())
        });
        if let Some(next) = linked
            && consensus.transfer(next).await.is_ok()
        {
            let handed = standing.wait_for(|now| now.role != Role::Leader);
            // Whoever does not take it in this time is elected a moment later.
            tokio::time::timeout(HAND_OVER_MAX, handed).await.ok();
        }
    }

    fn begin(
        self: Arc<Self>,
        listener: std::net::TcpListener,
        (security, files): (Security, Option<IdentityFiles>),
        home: Option<Home>,
        addresses: &BTreeMap<String, SocketAddr>,
        from_loop: FromLoop,
        tasks: &mut JoinSet<()>,
    ) -> anyhow::Result<()> {
        let id = self.identity().id.unwrap_or_default();
        let (name, node) = (&self.settings.topology.cluster.name, &self.settings.node);
        let config = outlast_link::Config::new(name, node, id, crate::VERSION);
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let (links, inboxes) = Links::start(config, listener, addresses, security, events_in)?;
        if let Some(files) = files {
            links.follow_files(files);
        }
        self.links.set(Arc::new(links)).ok();
        let Inboxes { consensus, beliefs, bulk, requests } = inboxes;
        tasks.spawn(self.clone().deliver(consensus));
        tasks.spawn(self.clone().deliver(bulk));
        tasks.spawn(self.clone().hear_beliefs(beliefs));
        tasks.spawn(self.clone().say());
        tasks.spawn(self.clone().tell_agreement());
        tasks.spawn(self.clone().grant_wishes(from_loop.wishes));
        tasks.spawn(self.clone().hold_lease(from_loop.lease_wanted));
        tasks.spawn(self.clone().lead_databases());
        tasks.spawn(self.clone().hold_databases());
        tasks.spawn(self.clone().share_secrets());
        tasks.spawn(self.clone().lead_addresses());
        tasks.spawn(self.clone().share_heartbeat_key());
        tasks.spawn(self.clone().carry_questions(from_loop.asked));
        tasks.spawn(self.clone().lead_names());
        tasks.spawn(self.clone().agree_on_names(from_loop.to_change));
        tasks.spawn(self.clone().share_name_secrets());
        tasks.spawn(self.clone().answer_all(requests));
        tasks.spawn(self.clone().hear_links(events));
        tasks.spawn(self.clone().draw());
        tasks.spawn(self.clone().follow_topologies());
        tasks.spawn(door::listen(self.clone(), door::bind(&self.settings.data_dir)?));
        tasks.spawn(self.take_part(home));
        Ok(())
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity.lock().expect("no panic while held").clone()
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        *self.phase.lock().expect("no panic while held") = phase;
    }

    pub(super) fn links(&self) -> &Arc<Links> {
        self.links.get().expect("started before any task")
    }

    /// `None`: this node takes no part yet.
    pub(super) fn consensus(&self) -> Option<&dyn Agreement> {
        self.consensus.get().map(|consensus| &**consensus)
    }
}

/// Takes what consensus says to the other nodes.
pub(super) struct Wire {
    pub(super) links: Arc<Links>,
    pub(super) replica: Arc<Replica>,
    pub(super) heard: Arc<Mutex<BTreeMap<u64, String>>>,
}

impl Outgoing for Wire {
    fn send(&self, to: NodeId, bytes: Vec<u8>, bulk: bool) {
        let channel = if bulk { Channel::Bulk } else { Channel::Consensus };
        let names = self.replica.names();
        // What cannot be sent now comes again.
        if let Some(name) = names.get(&to.0) {
            self.links.try_send(name, channel, bytes).ok();
        } else {
            let name = self.heard.lock().expect("no panic while held").get(&to.0).cloned();
            if let Some(name) = name {
                self.links.try_send(&name, channel, bytes).ok();
            }
        }
    }
}
