//! The threads of the cluster's part of an agent, and what the rest of the agent holds of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use outlast_consensus::{Consensus, Home, Members, NodeId, Outgoing, ProposeError, Role, Snapshot};
use outlast_core::agreed::{Agreed, ClientId, Command, Entry, Reply};
use outlast_core::codec::Code as _;
use outlast_core::event::Fact;
use outlast_core::topology::{ConsensusKind, Topology};
use outlast_link::{
    Channel, Identity as Certificates, IdentityFiles, Inbox, Inboxes, LinkEvent, Links, Request,
    RequestError, Requests, Security,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ask::{Answer, Ask};
use super::found::{Founding, OWN_KEYS, claim_key};
use super::identity::{self, Identity};
use super::replica::{Feeder, Replica};
use super::view::{ClusterView, PeerView, Phase};
use super::{door, duties};
use crate::agent::shared::wall;

/// Facts that wait for the journal.
const FACTS_MAX: usize = 1024;

/// Events of links that wait.
const EVENTS_MAX: usize = 1024;

/// How long a leader that ends waits for another one to take over.
const HAND_OVER_MAX: Duration = Duration::from_millis(500);

/// How often a node without a place in a cluster asks around.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// How long another node may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// How often the picture of the cluster is drawn anew.
const VIEW_EVERY: Duration = Duration::from_millis(500);

/// Questions of other nodes that are worked on at the same time.
const QUESTIONS_MAX: usize = 1024;

/// Between two tries, unless the leader changes before.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// What the cluster's part of an agent needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    pub topology: Topology,
    /// Relative paths of the file count from here.
    pub base: PathBuf,
    pub node: String,
    pub data_dir: PathBuf,
}

/// The cluster's part of an agent. Dropped, it ends.
#[derive(Debug)]
pub struct Cluster {
    view: watch::Receiver<Arc<ClusterView>>,
    facts: mpsc::Receiver<Fact>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Cluster {
    /// Opens what it needs, so that what is wrong is known at once, and starts.
    pub fn start(settings: Settings) -> anyhow::Result<Cluster> {
        let topology = &settings.topology;
        if let ConsensusKind::Etcd { .. } = topology.consensus.kind {
            bail!(
                "`kind = \"etcd\"` of [consensus] is not there yet; take it out, and the nodes agree by themselves"
            );
        }
        let founding = Founding::of(topology);
        let mut identity =
            identity::load(&settings.data_dir, &topology.cluster.name, &settings.node)?;
        let home = Home::open(&identity::dir(&settings.data_dir)).context("open the log")?;
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
        let (facts_in, facts) = mpsc::channel(FACTS_MAX);
        let (stop, stopping) = watch::channel(false);
        let hub = Hub {
            replica: Replica::new(),
            consensus: OnceLock::new(),
            links: OnceLock::new(),
            heard: Arc::default(),
            founding,
            identity: Mutex::new(identity),
            phase: Mutex::default(),
            client: tokio::sync::Mutex::new(None),
            publish,
            facts: facts_in,
            settings,
        };
        let thread = std::thread::Builder::new()
            .name("cluster".to_owned())
            .spawn(move || hub.run(listener, security, home, &addresses, stopping))
            .context("start the cluster's thread")?;
        Ok(Cluster { view, facts, stop, thread: Some(thread) })
    }

    /// The cluster as this node sees it.
    pub fn view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.view.clone()
    }

    /// What is worth a line in the journal.
    pub async fn fact(&mut self) -> Option<Fact> {
        self.facts.recv().await
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
    consensus: OnceLock<Consensus>,
    links: OnceLock<Arc<Links>>,
    /// Names of ids that spoke to us before we had a registry to look them up.
    heard: Arc<Mutex<BTreeMap<u64, String>>>,
    founding: Founding,
    identity: Mutex<Identity>,
    phase: Mutex<Phase>,
    /// This node's own number as a client of what is agreed, and that of its last command.
    client: tokio::sync::Mutex<Option<Client>>,
    publish: watch::Sender<Arc<ClusterView>>,
    facts: mpsc::Sender<Fact>,
    pub(super) settings: Settings,
}

/// Who sends commands, so that each takes effect once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    id: ClientId,
    sequence: u64,
}

/// Why something was not agreed on or read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing has happened.
    Unavailable(String),
    /// It may have happened.
    Unknown(String),
}

impl Hub {
    fn run(
        self,
        listener: std::net::TcpListener,
        security: (Security, Option<IdentityFiles>),
        home: Option<Home>,
        addresses: &BTreeMap<String, SocketAddr>,
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
        let ended = runtime.block_on(async {
            let mut tasks = JoinSet::new();
            hub.clone().begin(listener, security, home, addresses, &mut tasks)?;
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
        tasks.spawn(self.clone().drop_all(beliefs));
        tasks.spawn(self.clone().answer_all(requests));
        tasks.spawn(self.clone().hear_links(events));
        tasks.spawn(self.clone().draw());
        tasks.spawn(door::listen(self.clone(), door::bind(&self.settings.data_dir)?));
        tasks.spawn(self.take_part(home));
        Ok(())
    }

    fn identity(&self) -> Identity {
        self.identity.lock().expect("no panic while held").clone()
    }

    fn set_phase(&self, phase: Phase) {
        *self.phase.lock().expect("no panic while held") = phase;
    }

    pub(super) fn links(&self) -> &Arc<Links> {
        self.links.get().expect("started before any task")
    }

    /// `None`: this node takes no part yet.
    pub(super) fn consensus(&self) -> Option<&Consensus> {
        self.consensus.get()
    }

    /// Finds this node's place, then looks after what a leader has to do.
    async fn take_part(self: Arc<Self>, home: Option<Home>) {
        let home = match home {
            Some(home) => Ok(home),
            None => self.find_a_place().await,
        };
        if let Err(error) = home.and_then(|home| self.start_consensus(home)) {
            let reason = format!("{error:#}");
            tracing::error!(reason, "take part in the cluster");
            self.set_phase(Phase::Failed { reason });
            return std::future::pending().await;
        }
        self.set_phase(Phase::Running);
        self.show();
        duties::look_after(self).await;
    }

    fn start_consensus(self: &Arc<Self>, home: Home) -> anyhow::Result<()> {
        let id = NodeId(self.identity().id.context("the log is there, and the node's id is not")?);
        let feeder = Feeder::new(self.replica.clone());
        let wire = Wire {
            links: self.links().clone(),
            replica: self.replica.clone(),
            heard: self.heard.clone(),
        };
        let settings = outlast_consensus::Settings::new(id);
        let consensus = Consensus::start(&settings, home, feeder, wire).context("start")?;
        self.consensus.set(consensus).ok();
        Ok(())
    }

    /// Asks around until there is a cluster to found or to join.
    async fn find_a_place(&self) -> anyhow::Result<Home> {
        loop {
            let answers = self.ask_everybody().await;
            let own = self.settings.node.clone();
            if let Some((peer, plan)) = answers.iter().find_map(|(name, answer)| match answer {
                Answer::Who { joined: false, plan, .. } if *plan != self.founding.plan => {
                    Some((name, plan))
                }
                _ => None,
            }) {
                self.set_phase(Phase::Joining {
                    reason: format!(
                        "node `{peer}` would found another cluster than this node (plan {plan:x} and {:x}): \
                         give all nodes the same nodes, addresses and voters in the topology file",
                        self.founding.plan
                    ),
                });
            } else if let Some((id, claim)) = joined(&answers) {
                let reason = match id {
                    None => format!(
                        "the cluster does not know this node: on one of its nodes run `outlast node add {own}`"
                    ),
                    Some(id) => match self.take(id, claim).await {
                        // It has promised nothing under this id yet: whoever leads brings it everything.
                        Ok(true) => return self.make_home(id, Snapshot::begin(Members::default())),
                        Ok(false) => format!(
                            "id {id} belongs to a disk that this node no longer has: on another node run \
                             `outlast node replace {own}`"
                        ),
                        Err(failure) => format!("taking id {id} waits: {failure:?}"),
                    },
                };
                self.set_phase(Phase::Joining { reason });
            } else {
                let mut tokens = BTreeMap::from([(own.clone(), self.identity().token)]);
                tokens.extend(answers.iter().filter_map(|(name, answer)| match answer {
                    Answer::Who { token, .. } => Some((name.clone(), *token)),
                    _ => None,
                }));
                tokens.retain(|name, _| self.founding.voters.contains(name));
                let missing: Vec<String> = self
                    .founding
                    .voters
                    .iter()
                    .filter(|v| !tokens.contains_key(*v))
                    .cloned()
                    .collect();
                if missing.is_empty() && self.founding.founder() == Some(&own) {
                    let (snapshot, ids) = self.founding.begin(&tokens);
                    let id = *ids.get(&own).context("a founder has an id")?;
                    return self.make_home(id, snapshot);
                }
                self.set_phase(Phase::Founding { missing });
            }
            self.show();
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Whether this disk has the id, or can have it.
    async fn take(&self, id: u64, claim: Option<u64>) -> Result<bool, Failure> {
        match claim {
            Some(token) => Ok(token == self.identity().token),
            None => self.claim(id).await,
        }
    }

    fn make_home(&self, id: u64, begin: Snapshot) -> anyhow::Result<Home> {
        let home = Home::create(&identity::dir(&self.settings.data_dir), begin);
        let home = home.context("make the log")?;
        // Last: a log without an id has never been used.
        let identity = Identity { id: Some(id), ..self.identity() };
        identity::save(&self.settings.data_dir, &identity)?;
        *self.identity.lock().expect("no panic while held") = identity;
        Ok(home)
    }

    async fn ask_everybody(&self) -> BTreeMap<String, Answer> {
        let ask = Ask::WhoAreYou { plan: self.founding.plan }.to_bytes();
        let mut asked = JoinSet::new();
        for name in self.links().peers().into_keys() {
            let (links, ask) = (self.links().clone(), ask.clone());
            asked.spawn(async move {
                let answer = links.request(&name, ask, ANSWER_MAX).await.ok()?;
                Answer::from_bytes(&answer).ok().map(|answer| (name, answer))
            });
        }
        asked.join_all().await.into_iter().flatten().collect()
    }

    /// Takes an id for this disk. False: another disk has it.
    async fn claim(&self, id: u64) -> Result<bool, Failure> {
        let ask = Ask::Claim { id, token: self.identity().token }.to_bytes();
        let mut failure = Failure::Unavailable("nobody answers".to_owned());
        for name in self.links().peers().into_keys() {
            let Ok(bytes) = self.links().request(&name, ask.clone(), ANSWER_MAX * 2).await else {
                continue;
            };
            match Answer::from_bytes(&bytes) {
                Ok(Answer::Done { reply: Reply::Written { .. }, .. }) => return Ok(true),
                Ok(Answer::Done { .. }) => return Ok(false),
                Ok(other) => failure = Failure::Unavailable(format!("{name} says {other:?}")),
                Err(error) => failure = Failure::Unavailable(format!("{name}: {error}")),
            }
        }
        Err(failure)
    }

    async fn deliver(self: Arc<Self>, mut inbox: Inbox) {
        while let Some(incoming) = inbox.next().await {
            let Some(consensus) = self.consensus() else { continue };
            let name: &str = &incoming.from;
            let known = self.replica.names();
            let honest = consensus.deliver(&incoming.bytes, |from| match known.get(&from.0) {
                Some(registered) => registered == name,
                // A node that has no registry yet hears from those who bring it.
                None => {
                    let mut heard = self.heard.lock().expect("no panic while held");
                    heard.entry(from.0).or_insert_with(|| name.to_owned()) == name
                }
            });
            if let Err(error) = honest {
                tracing::warn!(node = name, %error, "drop what is no message of this node");
            }
        }
    }

    async fn drop_all(self: Arc<Self>, mut inbox: Inbox) {
        while inbox.next().await.is_some() {}
    }

    async fn answer_all(self: Arc<Self>, mut requests: Requests) {
        let room = Arc::new(Semaphore::new(QUESTIONS_MAX));
        let mut open = JoinSet::new();
        while let Some(request) = requests.next().await {
            while open.try_join_next().is_some() {}
            let Ok(place) = room.clone().try_acquire_owned() else {
                request.reply.refuse("too many questions at once");
                continue;
            };
            let hub = self.clone();
            open.spawn(async move {
                hub.answer(request).await;
                drop(place);
            });
        }
    }

    async fn answer(&self, request: Request) {
        let answer = match Ask::from_bytes(&request.bytes) {
            Ok(ask) => self.answer_to(&request.from, ask).await,
            Err(error) => return request.reply.refuse(&error.to_string()),
        };
        // Who asked may have gone.
        request.reply.send(answer.to_bytes()).await.ok();
    }

    async fn answer_to(&self, from: &str, ask: Ask) -> Answer {
        match ask {
            Ask::WhoAreYou { .. } => {
                let (your_id, your_claim) = self.replica.read(|agreed| {
                    let id = agreed.registry().id_of(from);
                    (id, id.and_then(|id| claim_of(agreed, id)))
                });
                Answer::Who {
                    joined: self.consensus().is_some(),
                    plan: self.founding.plan,
                    token: self.identity().token,
                    your_id,
                    your_claim,
                }
            }
            Ask::Propose { entry } => match self.consensus() {
                None => Answer::NotLeader { leader: None },
                Some(consensus) => proposed(consensus.propose(entry.to_bytes()).await),
            },
            Ask::ReadIndex => match self.consensus() {
                None => Answer::NotLeader { leader: None },
                Some(consensus) => match consensus.read().await {
                    Ok(index) => Answer::Index { index },
                    Err(error) => refused(error),
                },
            },
            Ask::Claim { id, token } => {
                let ours = self.replica.read(|agreed| agreed.registry().id_of(from) == Some(id));
                if !ours {
                    return Answer::Refused { reason: format!("{id} is not the id of `{from}`") };
                }
                self.claimed(id, token).await
            }
        }
    }

    /// Notes which disk has an id; asked again for the same disk, the answer is the same.
    async fn claimed(&self, id: u64, token: u64) -> Answer {
        use outlast_core::agreed::{Expected, KvCommand};
        let (key, value) = (claim_key(id), token.to_string().into_bytes());
        let claim = KvCommand::Cas {
            key: key.clone(),
            expected: Expected::Absent,
            value: value.clone(),
            session: None,
        };
        match self.write_as_node(Command::Kv(claim)).await {
            Ok((index, reply)) => {
                let ours = self.replica.read(|agreed| {
                    agreed.space().items().get(&key).is_some_and(|item| item.value == value)
                });
                let reply = if ours { Reply::Written { version: 1 } } else { reply };
                Answer::Done { index, reply }
            }
            Err(Failure::Unavailable(_)) => Answer::Busy,
            Err(Failure::Unknown(_)) => Answer::Unknown,
        }
    }

    /// Has a command of this node's own agreed on.
    pub(super) async fn write_as_node(&self, command: Command) -> Result<(u64, Reply), Failure> {
        let mut client = self.client.lock().await;
        self.write(&mut client, command, ANSWER_MAX).await
    }

    /// Has a client's command agreed on, once, wherever the leader is.
    pub(super) async fn write(
        &self,
        client: &mut Option<Client>,
        command: Command,
        limit: Duration,
    ) -> Result<(u64, Reply), Failure> {
        let deadline = Instant::now() + limit;
        let known = match client {
            Some(client) => client,
            None => {
                let introduce = entry(ClientId::NOBODY, 0, Command::Introduce);
                match self.propose(&introduce, deadline).await? {
                    (_, Reply::Introduced { client: id }) => {
                        client.insert(Client { id: ClientId(id), sequence: 0 })
                    }
                    (_, other) => {
                        return Err(Failure::Unavailable(format!("introduce: {other:?}")));
                    }
                }
            }
        };
        known.sequence += 1;
        self.propose(&entry(known.id, known.sequence, command), deadline).await
    }

    /// Brings an entry to the leader until it is agreed on. The entry carries its number, so it takes effect once.
    pub(super) async fn propose(
        &self,
        entry: &Entry,
        deadline: Instant,
    ) -> Result<(u64, Reply), Failure> {
        let mut sent = false;
        let mut why = "this node takes no part in the cluster yet".to_owned();
        let mut standing = self.consensus().map(Consensus::standing);
        while Instant::now() < deadline {
            if let (Some(consensus), Some(standing)) = (self.consensus(), &mut standing) {
                let (role, leader) = {
                    let now = standing.borrow_and_update();
                    (now.role, now.leader)
                };
                let answer = if role == Role::Leader {
                    proposed(consensus.propose(entry.to_bytes()).await)
                } else {
                    match leader.and_then(|leader| self.replica.names().get(&leader.0).cloned()) {
                        None => Answer::NotLeader { leader: None },
                        Some(name) => {
                            let ask = Ask::Propose { entry: entry.clone() }.to_bytes();
                            self.asked(&name, ask, deadline).await
                        }
                    }
                };
                match answer {
                    Answer::Done { index, reply } => return Ok((index, reply)),
                    Answer::Unknown => {
                        sent = true;
                        why = "the leader went while it was under way".to_owned();
                    }
                    Answer::NotLeader { .. } => {
                        why = "no leader has a majority of the voters behind it".to_owned();
                    }
                    Answer::Busy => why = "too much is under way".to_owned(),
                    Answer::Refused { reason } => why = reason,
                    Answer::Who { .. } | Answer::Index { .. } => {
                        why = "an answer to another question".to_owned();
                    }
                }
                tokio::select! {
                    _ = standing.changed() => {}
                    () = tokio::time::sleep(TRY_AGAIN) => {}
                }
            } else {
                tokio::time::sleep(TRY_AGAIN).await;
                standing = self.consensus().map(Consensus::standing);
            }
        }
        Err(if sent { Failure::Unknown(why) } else { Failure::Unavailable(why) })
    }

    /// Makes sure that what is applied here has everything that anybody knew of when this was called.
    pub(super) async fn catch_up(&self, limit: Duration) -> Result<u64, Failure> {
        let deadline = Instant::now() + limit;
        let mut why = "this node takes no part in the cluster yet".to_owned();
        while Instant::now() < deadline {
            if let Some(consensus) = self.consensus() {
                let (role, leader) = {
                    let standing = consensus.standing();
                    let now = standing.borrow();
                    (now.role, now.leader)
                };
                let answer = if role == Role::Leader {
                    match consensus.read().await {
                        Ok(index) => return Ok(index),
                        Err(error) => refused(error),
                    }
                } else {
                    match leader.and_then(|leader| self.replica.names().get(&leader.0).cloned()) {
                        None => Answer::NotLeader { leader: None },
                        Some(name) => self.asked(&name, Ask::ReadIndex.to_bytes(), deadline).await,
                    }
                };
                if let Answer::Index { index } = answer {
                    let mut reached = self.replica.reached.subscribe();
                    let here = reached.wait_for(|reached| index <= *reached);
                    if let Ok(Ok(_)) = tokio::time::timeout_at(deadline, here).await {
                        return Ok(index);
                    }
                    why = "this node is behind the leader".to_owned();
                } else {
                    why = "no leader has a majority of the voters behind it".to_owned();
                }
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
        Err(Failure::Unavailable(why))
    }

    async fn asked(&self, name: &str, ask: Vec<u8>, deadline: Instant) -> Answer {
        let limit = deadline.saturating_duration_since(Instant::now()).min(ANSWER_MAX);
        match self.links().request(name, ask, limit).await {
            Ok(bytes) => Answer::from_bytes(&bytes)
                .unwrap_or_else(|error| Answer::Refused { reason: error.to_string() }),
            Err(RequestError::NotSent(_)) => Answer::NotLeader { leader: None },
            Err(RequestError::Refused(reason)) => Answer::Refused { reason },
            Err(RequestError::Lost | RequestError::Deadline) => Answer::Unknown,
        }
    }

    pub(super) fn record(&self, fact: Fact) {
        if self.facts.try_send(fact).is_err() {
            tracing::warn!("the journal does not keep up with the cluster");
        }
    }

    async fn hear_links(self: Arc<Self>, mut events: mpsc::Receiver<LinkEvent>) {
        while let Some(event) = events.recv().await {
            let fact = match event {
                LinkEvent::Up { node, hello } => Fact::LinkUp { node, build: hello.build },
                LinkEvent::Down { node, reason, .. } => Fact::LinkDown { node, reason },
                LinkEvent::Unreachable { node, address, reason } => {
                    Fact::LinkDown { node, reason: format!("{address}: {reason}") }
                }
                LinkEvent::Refused { node, address, refusal, unreported } => {
                    let more = match unreported {
                        0 => String::new(),
                        more => format!(" (and {more} times more)"),
                    };
                    Fact::LinkRefused { node, reason: format!("{address}: {refusal}{more}") }
                }
                LinkEvent::IdentityTaken { fault: None } => Fact::CertificatesTaken,
                LinkEvent::IdentityTaken { fault: Some(reason) }
                | LinkEvent::IdentityRefused { reason } => Fact::CertificatesRefused { reason },
            };
            self.record(fact);
        }
        std::future::pending().await
    }

    /// Draws the picture again and again, and notes who leads.
    async fn draw(self: Arc<Self>) {
        let mut led_by: Option<Option<String>> = None;
        let mut failed = false;
        loop {
            self.show();
            let view = self.publish.borrow().clone();
            let leader = view.leader().map(str::to_owned);
            if view.phase == Phase::Running && led_by.as_ref() != Some(&leader) {
                let term = view.standing.as_ref().map_or(0, |standing| standing.term);
                match &leader {
                    Some(leader) => {
                        self.record(Fact::LeaderElected { leader: leader.clone(), term })
                    }
                    None if led_by.is_some() => self.record(Fact::LeaderLost),
                    None => {}
                }
                led_by = Some(leader);
            }
            let reason = view.standing.as_ref().and_then(|standing| standing.failed.clone());
            if let Some(reason) = reason.filter(|_| !failed) {
                failed = true;
                self.set_phase(Phase::Failed { reason });
            }
            let changed = async {
                match self.consensus() {
                    Some(consensus) => {
                        let mut standing = consensus.standing();
                        standing.mark_unchanged();
                        let before = standing.borrow().leader;
                        standing.wait_for(|now| now.leader != before).await.ok();
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(VIEW_EVERY) => {}
                () = changed => {}
            }
        }
    }

    fn show(&self) {
        let phase = self.phase.lock().expect("no panic while held").clone();
        let standing = self.consensus().map(|consensus| consensus.standing().borrow().clone());
        let peers = self.links().peers().into_iter().map(|(name, status)| {
            let connection = status.connection.as_ref();
            let peer = PeerView {
                address: status.address.to_string(),
                linked: connection.is_some(),
                lasts: connection.map(|connection| connection.lasts),
                reason: status.reason.clone(),
                silent_for: connection.map(|connection| connection.silent_for),
                round_trip: connection.and_then(|connection| connection.round_trip),
                build: connection.map(|connection| connection.hello.build.clone()),
            };
            (name, peer)
        });
        let peers = peers.collect();
        let names = self.replica.names().as_ref().clone();
        let topology_version = self.replica.read(|agreed| agreed.topology().version());
        let view = ClusterView { phase, standing, names, peers, topology_version };
        self.publish.send_replace(Arc::new(view));
    }
}

/// Somebody who has a log already, and the id that we have there.
fn joined(answers: &BTreeMap<String, Answer>) -> Option<(Option<u64>, Option<u64>)> {
    let joined = answers.values().filter_map(|answer| match answer {
        Answer::Who { joined: true, your_id, your_claim, .. } => Some((*your_id, *your_claim)),
        _ => None,
    });
    // Who knows more of us is further: ids and claims only come.
    joined.max()
}

/// The token of the disk that has this id.
fn claim_of(agreed: &Agreed, id: u64) -> Option<u64> {
    let item = agreed.space().items().get(&claim_key(id))?;
    std::str::from_utf8(&item.value).ok()?.parse().ok()
}

fn entry(origin: ClientId, sequence: u64, command: Command) -> Entry {
    Entry { origin, sequence, wall: wall(), command }
}

fn proposed(result: Result<outlast_consensus::Applied, ProposeError>) -> Answer {
    match result {
        Ok(applied) => match Reply::from_bytes(&applied.reply) {
            Ok(reply) => Answer::Done { index: applied.index, reply },
            Err(error) => Answer::Refused { reason: error.to_string() },
        },
        Err(error) => refused(error),
    }
}

fn refused(error: ProposeError) -> Answer {
    match error {
        ProposeError::NotLeader(leader) => Answer::NotLeader { leader: leader.map(|id| id.0) },
        ProposeError::Busy => Answer::Busy,
        ProposeError::Unknown => Answer::Unknown,
        ProposeError::Stopped => Answer::NotLeader { leader: None },
    }
}

/// Takes what consensus says to the other nodes.
struct Wire {
    links: Arc<Links>,
    replica: Arc<Replica>,
    heard: Arc<Mutex<BTreeMap<u64, String>>>,
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

/// Whether people's commands may touch this.
pub(super) fn is_own(command: &Command) -> bool {
    use outlast_core::agreed::KvCommand;
    match command {
        Command::Kv(
            KvCommand::Put { key, .. } | KvCommand::Delete { key, .. } | KvCommand::Cas { key, .. },
        ) => key.starts_with(OWN_KEYS),
        Command::Introduce
        | Command::Node(_)
        | Command::Topology(_)
        | Command::Lease(_)
        | Command::Notice(_)
        | Command::Procedure(_)
        | Command::Session(_)
        | Command::Lock(_)
        | Command::Record { .. } => false,
    }
}

/// Something that can be looked up in what is agreed.
pub(super) fn look<T>(hub: &Hub, at: impl FnOnce(&Agreed) -> T) -> T {
    hub.replica.read(at)
}
