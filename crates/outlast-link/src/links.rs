//! All links of a node: who may come in, who is dialled, what is told to whom.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::connection::{Connection, Runner, certificate_fault, lock};
use crate::event::{LinkEvent, PeerHello, Refusal, RefusalKind};
use crate::handshake::{
    Chain, Expected, Stream, accept, broken, connect, deadline_refusal, greet, plain, refuse,
};
use crate::identity::{Identity, IdentityError, IdentityFiles, Pem, random};
use crate::limits;
use crate::outbox::{NotTaken, Parcel};
use crate::peer::{Peer, PeerStatus, backoff, lasted};
use crate::requests::{Request, RequestError, SendError};
use crate::wire::{Head, Hello, Lane, VERSIONS, Versions};

/// What a message is about: it decides who goes first when there is more to send than the wire takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// Heartbeats, votes, log entries.
    Consensus,
    /// Observations and beliefs.
    Beliefs,
    /// What may take its time: snapshots, backups.
    Bulk,
}

impl Channel {
    pub const ALL: [Channel; 3] = [Channel::Consensus, Channel::Beliefs, Channel::Bulk];

    fn lane(self) -> Lane {
        match self {
            Channel::Consensus => Lane::Consensus,
            Channel::Beliefs => Lane::Beliefs,
            Channel::Bulk => Lane::Bulk,
        }
    }
}

/// A message of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    pub from: Arc<str>,
    pub channel: Channel,
    pub bytes: Vec<u8>,
}

/// Who this node is.
#[derive(Clone, Debug)]
pub struct Config {
    pub cluster: String,
    pub node: String,
    /// The node's number, for the other side; links do not judge it.
    pub id: u64,
    /// The build, for people.
    pub build: String,
    pub versions: Versions,
    pub timing: Timing,
}

impl Config {
    pub fn new(cluster: &str, node: &str, id: u64, build: &str) -> Config {
        Config {
            cluster: cluster.to_owned(),
            node: node.to_owned(),
            id,
            build: build.to_owned(),
            versions: VERSIONS,
            timing: Timing::default(),
        }
    }
}

/// How long things take, at most. Tests make it short; clusters that span continents may want it longer.
#[derive(Clone, Debug)]
pub struct Timing {
    pub handshake_max: Duration,
    pub ping_every: Duration,
    pub measure_every: Duration,
    pub silent_max: Duration,
    pub doubted_max: Duration,
    pub verify_every: Duration,
    pub files_every: Duration,
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    pub dial_grace: Duration,
    pub report_every: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            handshake_max: limits::HANDSHAKE_MAX,
            ping_every: limits::PING_EVERY,
            measure_every: limits::MEASURE_EVERY,
            silent_max: limits::SILENT_MAX,
            doubted_max: limits::DOUBTED_MAX,
            verify_every: limits::VERIFY_EVERY,
            files_every: limits::FILES_EVERY,
            backoff_min: limits::BACKOFF_MIN,
            backoff_max: limits::BACKOFF_MAX,
            dial_grace: limits::DIAL_GRACE,
            report_every: limits::REPORT_EVERY,
        }
    }
}

/// How nodes know each other.
#[derive(Clone, Debug)]
pub enum Security {
    /// Not at all: for a cluster within one machine.
    Loopback,
    /// By certificates of the cluster's CA.
    Tls(Identity),
}

/// Why links do not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// Without TLS, something is beyond this machine.
    Insecure {
        what: String,
    },
    /// The certificate is not of this node.
    OtherNode {
        node: String,
        names: Vec<String>,
    },
    Listener(String),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartError::Insecure { what } => write!(
                f,
                "{what}, and without TLS links stay within one machine: run `outlast certs init` and `outlast certs issue`, \
                 then write `tls` in [cluster]"
            ),
            StartError::OtherNode { node, names } => {
                let of = if names.is_empty() {
                    "no node".to_owned()
                } else {
                    format!("node `{}`", names.join("`, `"))
                };
                write!(
                    f,
                    "the certificate names {of} and this is node `{node}`: run `outlast certs issue {node}` where the CA \
                     is, and bring the files here"
                )
            }
            StartError::Listener(why) => write!(f, "listen for other nodes: {why}"),
        }
    }
}

impl std::error::Error for StartError {}

/// What other nodes sent. Each part can be given to whoever works on it; what is not taken is bounded for each node,
/// and holds up neither other nodes nor other channels.
#[derive(Debug)]
pub struct Inboxes {
    pub consensus: Inbox,
    pub beliefs: Inbox,
    pub bulk: Inbox,
    pub requests: Requests,
}

/// The messages of one channel, from all nodes. What waits is bounded for each node by the credit that it has.
#[derive(Debug)]
pub struct Inbox {
    receiver: mpsc::UnboundedReceiver<(Incoming, Arc<Peer>)>,
}

impl Inbox {
    /// The next message; `None` once the links have stopped.
    pub async fn next(&mut self) -> Option<Incoming> {
        self.receiver.recv().await.map(taken)
    }

    /// A message that is there already.
    pub fn next_now(&mut self) -> Option<Incoming> {
        self.receiver.try_recv().ok().map(taken)
    }
}

fn taken((incoming, peer): (Incoming, Arc<Peer>)) -> Incoming {
    peer.taken(incoming.channel.lane(), incoming.bytes.len());
    incoming
}

/// The questions of other nodes.
#[derive(Debug)]
pub struct Requests {
    receiver: mpsc::UnboundedReceiver<(Request, Arc<Peer>)>,
}

impl Requests {
    /// The next request; `None` once the links have stopped.
    pub async fn next(&mut self) -> Option<Request> {
        let (request, peer) = self.receiver.recv().await?;
        peer.taken(Lane::Requests, request.bytes.len());
        Some(request)
    }
}

/// The links of this node to all others. Dropped, they stop as with [`Links::stop`], unwaited.
#[derive(Debug)]
pub struct Links {
    shared: Arc<Shared>,
    root: Mutex<Option<JoinHandle<()>>>,
}

pub(crate) type Peers = Arc<BTreeMap<String, Arc<Peer>>>;

/// The ends of the inboxes that are ours.
#[derive(Debug)]
struct Outlets {
    consensus: mpsc::UnboundedSender<(Incoming, Arc<Peer>)>,
    beliefs: mpsc::UnboundedSender<(Incoming, Arc<Peer>)>,
    bulk: mpsc::UnboundedSender<(Incoming, Arc<Peer>)>,
    requests: mpsc::UnboundedSender<(Request, Arc<Peer>)>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    hello: Hello,
    /// `None`: no TLS.
    identity: Mutex<Option<Identity>>,
    peers: Mutex<Peers>,
    events: mpsc::Sender<LinkEvent>,
    events_lost: AtomicU64,
    /// `None` once everything has ended: then the inboxes end too.
    outlets: Mutex<Option<Outlets>>,
    strangers: Mutex<BTreeMap<Option<IpAddr>, usize>>,
    reports: Mutex<BTreeMap<(IpAddr, RefusalKind), (Instant, u64)>>,
    files: watch::Sender<Option<IdentityFiles>>,
    stopping: watch::Sender<bool>,
    peers_changed: Notify,
}

impl Links {
    /// Listens for and dials the other nodes of a cluster. `peers` may contain this node; it is skipped.
    pub fn start(
        config: Config,
        listener: TcpListener,
        peers: &BTreeMap<String, SocketAddr>,
        security: Security,
        events: mpsc::Sender<LinkEvent>,
    ) -> Result<(Links, Inboxes), StartError> {
        let identity = match security {
            Security::Loopback => None,
            Security::Tls(identity) => Some(identity),
        };
        let ours = listener.local_addr().map_err(|e| StartError::Listener(e.to_string()))?;
        match &identity {
            Some(identity) => check_names(identity, &config.node)?,
            None if ours.ip().to_canonical().is_loopback() => check_loopback(peers)?,
            None => {
                let what = format!("[cluster] has no `tls`, this node listens at {ours}");
                return Err(StartError::Insecure { what });
            }
        }
        let hello = Hello {
            versions: config.versions,
            cluster: config.cluster.clone(),
            node: config.node.clone(),
            id: config.id,
            instance: random(),
            build: config.build.clone(),
        };
        let (consensus, for_consensus) = mpsc::unbounded_channel();
        let (beliefs, for_beliefs) = mpsc::unbounded_channel();
        let (bulk, for_bulk) = mpsc::unbounded_channel();
        let (requests, for_requests) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            config,
            hello,
            identity: Mutex::new(identity),
            peers: Mutex::default(),
            events,
            events_lost: AtomicU64::new(0),
            outlets: Mutex::new(Some(Outlets { consensus, beliefs, bulk, requests })),
            strangers: Mutex::default(),
            reports: Mutex::default(),
            files: watch::Sender::new(None),
            stopping: watch::Sender::new(false),
            peers_changed: Notify::new(),
        });
        shared.follow(peers);
        let root = Mutex::new(Some(tokio::spawn(root(shared.clone(), listener))));
        let inboxes = Inboxes {
            consensus: Inbox { receiver: for_consensus },
            beliefs: Inbox { receiver: for_beliefs },
            bulk: Inbox { receiver: for_bulk },
            requests: Requests { receiver: for_requests },
        };
        Ok((Links { shared, root }, inboxes))
    }

    /// Queues a message if there is room. One that does not fit is dropped and counted: for what is sent again anyway.
    pub fn try_send(&self, node: &str, channel: Channel, bytes: Vec<u8>) -> Result<(), SendError> {
        let (peer, connection) = self.shared.connection(node)?;
        let parcel = Parcel { head: Head::None, body: bytes };
        connection.push(channel.lane(), parcel).map_err(|(why, _)| {
            if why == NotTaken::Full {
                peer.dropped.fetch_add(1, Relaxed);
            }
            SendError::from(why)
        })
    }

    /// Queues a message as soon as there is room, for so long at most.
    pub async fn send(
        &self,
        node: &str,
        channel: Channel,
        bytes: Vec<u8>,
        limit: Duration,
    ) -> Result<(), SendError> {
        let (_, connection) = self.shared.connection(node)?;
        let push = connection.push_when_room(channel.lane(), Head::None, bytes);
        match tokio::time::timeout(limit, push).await {
            Ok(pushed) => pushed.map_err(SendError::from),
            Err(_elapsed) => Err(SendError::Full),
        }
    }

    /// Asks a node and waits for its answer, for so long at most.
    pub async fn request(
        &self,
        node: &str,
        bytes: Vec<u8>,
        limit: Duration,
    ) -> Result<Vec<u8>, RequestError> {
        /// Gives the place back, also when nobody waits any more.
        struct Place<'a>(&'a Connection, u64);
        impl Drop for Place<'_> {
            fn drop(&mut self) {
                self.0.forget_answer(self.1);
            }
        }

        let not_sent = RequestError::NotSent;
        let (_, connection) = self.shared.connection(node).map_err(not_sent)?;
        let (id, answer) = connection.expect_answer().map_err(|e| not_sent(e.into()))?;
        let place = Place(&connection, id);
        let mut sent = false;
        let exchange = async {
            let push = connection.push_when_room(Lane::Requests, Head::Request(id), bytes);
            push.await.map_err(|e| not_sent(e.into()))?;
            sent = true;
            answer.await.unwrap_or(Err(RequestError::Lost))
        };
        let outcome = tokio::time::timeout(limit, exchange).await;
        drop(place);
        match outcome {
            Ok(answer) => answer,
            Err(_elapsed) if sent => Err(RequestError::Deadline),
            Err(_elapsed) => Err(not_sent(SendError::Full)),
        }
    }

    /// Every other node of the topology and whether it can be spoken to.
    pub fn peers(&self) -> BTreeMap<String, PeerStatus> {
        let peers = self.shared.peers();
        peers.iter().map(|(name, peer)| (name.clone(), peer.status())).collect()
    }

    /// Takes a changed topology: nodes that are gone are left, new ones dialled. Refused as by [`Links::start`].
    pub fn follow(&self, peers: &BTreeMap<String, SocketAddr>) -> Result<(), StartError> {
        if lock(&self.shared.identity).is_none() {
            check_loopback(peers)?;
        }
        self.shared.follow(peers);
        Ok(())
    }

    /// Takes new certificates. Connections go on, unless their certificate is not good any more: then they are closed.
    pub fn reload_identity(&self, identity: Identity) -> Result<(), StartError> {
        self.shared.take_identity(identity)
    }

    /// Looks at these files from now on and takes what they hold whenever that changes.
    pub fn follow_files(&self, files: IdentityFiles) {
        self.shared.files.send_replace(Some(files));
    }

    /// Events that were not reported because their receiver did not keep up.
    pub fn events_lost(&self) -> u64 {
        self.shared.events_lost.load(Relaxed)
    }

    /// Sends what is queued, says goodbye and ends all tasks; takes [`limits::STOP_MAX`] and a moment at most.
    pub async fn stop(&self) {
        self.shared.stop();
        let root = lock(&self.root).take();
        if let Some(root) = root {
            // It cannot be cancelled by anybody else, and its panic has been printed.
            drop(root.await);
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

fn check_names(identity: &Identity, node: &str) -> Result<(), StartError> {
    if identity.nodes().iter().any(|name| name == node) {
        return Ok(());
    }
    Err(StartError::OtherNode { node: node.to_owned(), names: identity.nodes().to_vec() })
}

fn check_loopback(peers: &BTreeMap<String, SocketAddr>) -> Result<(), StartError> {
    match peers.iter().find(|(_, address)| !address.ip().to_canonical().is_loopback()) {
        None => Ok(()),
        Some((node, address)) => {
            let what = format!("[cluster] has no `tls`, node `{node}` is at {}", address.ip());
            Err(StartError::Insecure { what })
        }
    }
}

impl Shared {
    fn peers(&self) -> Peers {
        lock(&self.peers).clone()
    }

    fn connection(&self, node: &str) -> Result<(Arc<Peer>, Arc<Connection>), SendError> {
        let peer = lock(&self.peers).get(node).cloned().ok_or(SendError::Unknown)?;
        let connection = peer.current().ok_or(SendError::Down)?;
        Ok((peer, connection))
    }

    pub(crate) fn report(&self, event: LinkEvent) {
        if self.events.try_send(event).is_err() {
            self.events_lost.fetch_add(1, Relaxed);
        }
    }

    /// Reports a refusal, but not the same one again and again: a scanner must not fill the journal.
    fn report_refusal(&self, node: Option<&str>, address: SocketAddr, refusal: Refusal) {
        let now = Instant::now();
        let every = self.config.timing.report_every;
        let mut reports = lock(&self.reports);
        if reports.len() >= limits::REPORTS_MAX {
            reports.retain(|_, (at, _)| at.elapsed() < every);
        }
        let room = reports.len() < limits::REPORTS_MAX;
        let unreported = match reports.get_mut(&(address.ip(), refusal.kind)) {
            Some((at, count)) if now.duration_since(*at) < every => {
                *count += 1;
                return;
            }
            Some((at, count)) => {
                *at = now;
                std::mem::take(count)
            }
            None if room => {
                reports.insert((address.ip(), refusal.kind), (now, 0));
                0
            }
            None => return,
        };
        drop(reports);
        let node = node.map(str::to_owned);
        self.report(LinkEvent::Refused { node, address, refusal, unreported });
    }

    fn follow(&self, wanted: &BTreeMap<String, SocketAddr>) {
        let mut peers = lock(&self.peers);
        let mut next = BTreeMap::new();
        for (name, address) in wanted.iter().filter(|(name, _)| **name != self.config.node) {
            let peer = match peers.get(name) {
                Some(peer) => peer.clone(),
                None => Arc::new(Peer::new(name, *address)),
            };
            *lock(&peer.address) = *address;
            next.insert(name.clone(), peer);
        }
        let gone: Vec<_> =
            peers.values().filter(|peer| !next.contains_key(&*peer.name)).cloned().collect();
        *peers = Arc::new(next);
        drop(peers);
        gone.iter().for_each(|peer| peer.remove());
        self.peers_changed.notify_one();
    }

    fn take_identity(&self, identity: Identity) -> Result<(), StartError> {
        check_names(&identity, &self.config.node)?;
        let fault = identity.fault().map(str::to_owned);
        *lock(&self.identity) = Some(identity);
        for peer in self.peers().values() {
            if let Some(connection) = peer.current() {
                self.verify(&connection);
            }
        }
        self.report(LinkEvent::IdentityTaken { fault });
        Ok(())
    }

    /// Ends a connection whose certificate is not good any more.
    pub(crate) fn verify(&self, connection: &Connection) {
        if let Some((_, why)) = self.certificate_fault(connection.chain.as_ref()) {
            connection.expel(&format!("its certificate is not good any more: {why}"));
        }
    }

    fn certificate_fault(
        &self,
        chain: Option<&Chain>,
    ) -> Option<(rustls::CertificateError, String)> {
        let judge = lock(&self.identity).as_ref().map(|identity| identity.judge.clone());
        certificate_fault(chain?, judge?.as_ref())
    }

    fn stop(&self) {
        self.stopping.send_replace(true);
        for peer in self.peers().values() {
            if let Some(connection) = peer.current() {
                connection.close("the node stops");
            }
        }
    }

    fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    pub(crate) fn deliver(&self, lane: Lane, bytes: Vec<u8>, peer: &Arc<Peer>) {
        let outlets = lock(&self.outlets);
        let Some(outlets) = outlets.as_ref() else { return };
        let (channel, inbox) = match lane {
            Lane::Consensus => (Channel::Consensus, &outlets.consensus),
            Lane::Beliefs => (Channel::Beliefs, &outlets.beliefs),
            Lane::Bulk => (Channel::Bulk, &outlets.bulk),
            // They carry a number and went elsewhere.
            Lane::Requests | Lane::Answers => return,
        };
        let incoming = Incoming { from: peer.name.clone(), channel, bytes };
        if let Err(mpsc::error::SendError((incoming, peer))) = inbox.send((incoming, peer.clone()))
        {
            // Nobody wants it any more.
            peer.taken(lane, incoming.bytes.len());
        }
    }

    pub(crate) fn deliver_request(&self, request: Request, peer: &Arc<Peer>) {
        let outlets = lock(&self.outlets);
        let Some(outlets) = outlets.as_ref() else { return };
        let sent = outlets.requests.send((request, peer.clone()));
        if let Err(mpsc::error::SendError((request, peer))) = sent {
            peer.taken(Lane::Requests, request.bytes.len());
            request.reply.refuse("nobody answers requests here");
        }
    }

    /// A place among those who have not shown who they are; `None` if there are too many.
    fn enter(self: &Arc<Self>, ip: IpAddr) -> Option<Stranger> {
        let nodes = self.peers().values().filter(|p| lock(&p.address).ip() == ip).count();
        let (whose, max) = if nodes > 0 {
            (Some(ip), nodes * limits::STRANGERS_OF_NODE_MAX)
        } else {
            (None, limits::STRANGERS_MAX)
        };
        let mut strangers = lock(&self.strangers);
        let count = strangers.entry(whose).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        drop(strangers);
        Some(Stranger { shared: self.clone(), whose })
    }

    /// Whether the greeting is one of ours, and the version to speak.
    fn judge(&self, hello: &Hello) -> Result<u32, Refusal> {
        if hello.cluster != self.config.cluster {
            let text = format!(
                "it belongs to cluster `{}`, this is cluster `{}`",
                plain(&hello.cluster),
                self.config.cluster
            );
            return Err(Refusal::new(RefusalKind::OtherCluster, text));
        }
        if hello.instance == self.hello.instance {
            let text =
                "the address of that node is our own: compare the addresses in the topology file";
            return Err(Refusal::new(RefusalKind::Ourselves, text));
        }
        let name = plain(&hello.node);
        if hello.node == self.config.node {
            let text = format!("it says that it is node `{name}`, and so are we");
            return Err(Refusal::new(RefusalKind::DuplicateNode, text));
        }
        let Some(peer) = self.peers().get(&hello.node).cloned() else {
            let text = format!(
                "node `{name}` is not in the topology of node `{}`: add it to the file there, or take it out of service",
                self.config.node
            );
            return Err(Refusal::new(RefusalKind::UnknownNode, text));
        };
        let Some(version) = self.config.versions.common(hello.versions) else {
            let text = format!(
                "node `{name}` (build {}) speaks versions {} of the protocol, node `{}` (build {}) versions {}: upgrade \
                 the older one, one version at a time",
                plain(&hello.build),
                hello.versions,
                self.config.node,
                self.config.build,
                self.config.versions
            );
            return Err(Refusal::new(RefusalKind::Versions, text));
        };
        peer.may_come(hello, self.config.timing.doubted_max)?;
        Ok(version)
    }
}

/// Somebody who has not shown who it is.
#[derive(Debug)]
struct Stranger {
    shared: Arc<Shared>,
    whose: Option<IpAddr>,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut strangers = lock(&self.shared.strangers);
        if let Some(count) = strangers.get_mut(&self.whose) {
            *count -= 1;
            if *count == 0 {
                strangers.remove(&self.whose);
            }
        }
    }
}

/// Owns every task of the links: accepts, has peers dialled, watches files, and ends them all.
async fn root(shared: Arc<Shared>, listener: TcpListener) {
    let mut tasks = JoinSet::new();
    let mut stopping = shared.stopping.subscribe();
    tasks.spawn(watch_files(shared.clone()));
    loop {
        for peer in shared.peers().values() {
            if !peer.dialled.swap(true, Relaxed) {
                tasks.spawn(keep_dialling(shared.clone(), peer.clone()));
            }
        }
        tokio::select! {
            () = stopped(&mut stopping) => break,
            () = shared.peers_changed.notified() => {}
            Some(ended) = tasks.join_next() => drop(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => receive(&shared, stream, address, &mut tasks),
                // The queue of the kernel keeps those who wait.
                Err(_) => tokio::time::sleep(limits::ACCEPT_PAUSE).await,
            },
        }
    }
    drop(listener);
    // One that came up at this very moment was not yet told.
    shared.stop();
    let ended = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(limits::STOP_MAX + limits::FAREWELL_MAX, ended).await.is_err() {
        tasks.shutdown().await;
    }
    *lock(&shared.outlets) = None;
}

/// Waits for the order to stop.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // The sender lives in `Shared`, which whoever waits here holds.
    drop(stopping.wait_for(|stop| *stop).await);
}

fn receive(shared: &Arc<Shared>, stream: TcpStream, address: SocketAddr, tasks: &mut JoinSet<()>) {
    let Some(stranger) = shared.enter(address.ip()) else {
        let text = "too many connections at once that have not shown who they are";
        shared.report_refusal(None, address, Refusal::new(RefusalKind::Crowded, text));
        return;
    };
    let shared = shared.clone();
    tasks.spawn(async move {
        let limit = shared.config.timing.handshake_max;
        let mut stopping = shared.stopping.subscribe();
        let begun = tokio::select! {
            () = stopped(&mut stopping) => return,
            begun = tokio::time::timeout(limit, welcome(&shared, stream, address)) => begun,
        };
        drop(stranger);
        match begun.unwrap_or_else(|_elapsed| Err(deadline_refusal(limit))) {
            Ok(runner) => drop(runner.run().await),
            Err(refusal) if refusal.kind == RefusalKind::AlreadyConnected => {}
            Err(refusal) => shared.report_refusal(None, address, refusal),
        }
    });
}

async fn welcome(
    shared: &Arc<Shared>,
    stream: TcpStream,
    address: SocketAddr,
) -> Result<Box<Runner>, Refusal> {
    tune(&stream, &shared.config.timing).map_err(|e| broken(&e, "the other side"))?;
    let identity = lock(&shared.identity).clone();
    if identity.is_none() && !address.ip().to_canonical().is_loopback() {
        let refusal = Refusal::new(
            RefusalKind::Insecure,
            "this cluster runs without TLS, and then nodes speak only within one machine: run `outlast certs init` and \
             `outlast certs issue`, then write `tls` in [cluster]",
        );
        refuse(&mut Stream::Plain(stream), &crate::wire::PREAMBLE, &refusal).await;
        return Err(refusal);
    }
    let (stream, chain) = accept(stream, identity.as_ref()).await?;
    begin(shared, stream, chain, address, None).await
}

/// Greets, and makes the connection the one of its node.
async fn begin(
    shared: &Arc<Shared>,
    stream: Stream,
    chain: Option<Chain>,
    address: SocketAddr,
    dialled: Option<&str>,
) -> Result<Box<Runner>, Refusal> {
    let expected = Expected { ours: shared.hello.clone(), dialled: dialled.map(str::to_owned) };
    let last_word = |hello: &Hello, version: u32, chain: Option<&Chain>| {
        // It may have been revoked since TLS looked at it.
        if let Some((_, why)) = shared.certificate_fault(chain) {
            let text =
                format!("the certificate of node `{}` is refused: {why}", plain(&hello.node));
            return Err(Refusal::new(RefusalKind::Revoked, text));
        }
        let gone = || Refusal::new(RefusalKind::UnknownNode, "it is not in the topology any more");
        let peer = shared.peers().get(&hello.node).cloned().ok_or_else(gone)?;
        let said = PeerHello {
            address,
            id: hello.id,
            instance: hello.instance,
            build: plain(&hello.build),
            version,
            dialled: dialled.is_some(),
        };
        let we_decide = shared.config.node < hello.node;
        let connection = peer.install(shared, hello, said, chain.cloned(), we_decide)?;
        let installed = Installed { shared: shared.clone(), peer, connection, runs: false };
        if shared.is_stopping() {
            installed.connection.close("the node stops");
        }
        Ok(installed)
    };
    let (greeted, mut installed) =
        greet(stream, chain, &expected, |hello| shared.judge(hello), last_word).await?;
    installed.runs = true;
    let runner = Runner::new(
        shared.clone(),
        installed.peer.clone(),
        installed.connection.clone(),
        greeted.stream,
        &greeted.leftover,
    );
    Ok(Box::new(runner))
}

/// A connection that is the one of its node already and has no task yet. If none comes of it, it is over: the other side
/// may go, or the time be up, between the last word and the first frame.
struct Installed {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    connection: Arc<Connection>,
    runs: bool,
}

impl Drop for Installed {
    fn drop(&mut self) {
        if !self.runs {
            let reason = "it ended with the greeting";
            self.connection.end(reason);
            self.peer.ended(&self.shared, &self.connection, reason);
        }
    }
}

/// Keeps a connection to one node, dialling whenever there is none.
async fn keep_dialling(shared: Arc<Shared>, peer: Arc<Peer>) {
    let timing = &shared.config.timing;
    let mut stopping = shared.stopping.subscribe();
    let mut failures = 0;
    let mut pause =
        if *shared.config.node > *peer.name { timing.dial_grace } else { Duration::ZERO };
    loop {
        tokio::select! {
            () = stopped(&mut stopping) => return,
            wanted = is_wanted(&peer, pause) => if !wanted { return },
        }
        let address = *lock(&peer.address);
        let dialled = tokio::select! {
            () = stopped(&mut stopping) => return,
            dialled = dial(&shared, &peer, address) => dialled,
        };
        match dialled {
            Ok(runner) => {
                let since = Instant::now();
                runner.run().await;
                if lasted(since, timing.backoff_max) {
                    failures = 0;
                }
            }
            // The other one is about to be there.
            Err(refusal) if refusal.kind == RefusalKind::AlreadyConnected => {}
            Err(refusal) => {
                if peer.current().is_none() && peer.unreachable(&refusal.text) {
                    report_failed_dial(&shared, &peer, address, refusal);
                }
            }
        }
        failures += 1;
        pause = backoff(failures, timing.backoff_min, timing.backoff_max, random());
    }
}

/// Waits until a node has had no connection for so long. False: it is not to be dialled any more.
async fn is_wanted(peer: &Peer, pause: Duration) -> bool {
    loop {
        let mut changed = std::pin::pin!(peer.changed.notified());
        changed.as_mut().enable();
        if peer.removed.load(Relaxed) {
            return false;
        }
        if peer.current().is_some() {
            changed.await;
        } else if tokio::time::timeout(pause, changed).await.is_err() {
            return true;
        }
    }
}

fn report_failed_dial(shared: &Shared, peer: &Peer, address: SocketAddr, refusal: Refusal) {
    if matches!(refusal.kind, RefusalKind::Broken | RefusalKind::Deadline) {
        let node = peer.name.to_string();
        shared.report(LinkEvent::Unreachable { node, address, reason: refusal.text });
    } else {
        shared.report_refusal(Some(&peer.name), address, refusal);
    }
}

async fn dial(
    shared: &Arc<Shared>,
    peer: &Peer,
    address: SocketAddr,
) -> Result<Box<Runner>, Refusal> {
    let limit = shared.config.timing.handshake_max;
    let who = format!("node `{}`", peer.name);
    let dialling = async {
        let stream = TcpStream::connect(address).await.map_err(|e| broken(&e, &who))?;
        tune(&stream, &shared.config.timing).map_err(|e| broken(&e, &who))?;
        let identity = lock(&shared.identity).clone();
        let (stream, chain) = connect(stream, &peer.name, identity.as_ref()).await?;
        begin(shared, stream, chain, address, Some(&peer.name)).await
    };
    tokio::time::timeout(limit, dialling).await.unwrap_or_else(|_elapsed| {
        Err(Refusal::new(RefusalKind::Deadline, format!("{who}: no greeting within {limit:?}")))
    })
}

/// Sends at once, notices a peer that is gone, and keeps what is not yet sent where its order can still be chosen.
fn tune(stream: &TcpStream, timing: &Timing) -> std::io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(timing.silent_max))?;
    // The kernel counts these in seconds.
    const SECOND: Duration = Duration::from_secs(1);
    let keepalive = TcpKeepalive::new()
        .with_time(timing.silent_max.max(SECOND))
        .with_interval(SECOND)
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    let batch = u32::try_from(limits::BATCH_MAX).unwrap_or(u32::MAX);
    socket.set_tcp_notsent_lowat(batch)
}

/// Reads the files again and again; takes what they hold when it changes.
async fn watch_files(shared: Arc<Shared>) {
    let mut stopping = shared.stopping.subscribe();
    let mut wanted = shared.files.subscribe();
    let mut last: Option<Pem> = None;
    let mut refused = None;
    loop {
        let files = wanted.borrow_and_update().clone();
        if let Some(files) = files {
            let read = tokio::task::spawn_blocking(move || files.read()).await;
            let read =
                read.unwrap_or_else(|e| Err(IdentityError(format!("read certificates: {e}"))));
            let outcome = match read {
                Ok(pem) if last.as_ref() == Some(&pem) => Ok(()),
                Ok(pem) => {
                    let taken = Identity::from_pem(&pem).map_err(|e| e.0).and_then(|identity| {
                        shared.take_identity(identity).map_err(|e| e.to_string())
                    });
                    taken.map(|()| last = Some(pem))
                }
                Err(error) => Err(error.0),
            };
            report_files(&shared, outcome.err(), &mut refused);
        }
        tokio::select! {
            () = stopped(&mut stopping) => return,
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(shared.config.timing.files_every) => {}
        }
    }
}

/// Files may be read in the middle of being replaced, so only what fails twice in the same way is reported, and once.
fn report_files(shared: &Shared, fault: Option<String>, refused: &mut Option<(String, u32)>) {
    *refused = fault.map(|fault| {
        let times = match refused.take() {
            Some((known, times)) if known == fault => times.saturating_add(1),
            Some(_) | None => 1,
        };
        if times == 2 {
            shared.report(LinkEvent::IdentityRefused { reason: fault.clone() });
        }
        (fault, times)
    });
}
