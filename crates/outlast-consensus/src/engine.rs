//! The two threads of a node's part in the agreement, and what the rest of the agent holds of them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use outlast_core::codec::{Code as _, Malformed};
use outlast_core::time::Instant;
use outlast_raft::{
    Action, Change, Config, Index, Input, Members, Message, Node, NodeId, Payload, Position,
    Refusal, Role, Snapshot, Term, Ticket, Write,
};
use tokio::sync::{oneshot, watch};

use crate::clock::boottime;
use crate::disk::{Files, Home};
use crate::standing::Standing;

/// What may wait for the thread that steps.
const INBOX_MAX: usize = 16_384;

/// The same in bytes of messages and commands.
const INBOX_BYTES_MAX: usize = 32 << 20;

/// What it takes in before it does what follows from it: larger batches share syncs, smaller ones answer sooner.
const BATCH_MAX: usize = 1_024;

/// How old the picture that others see may become.
pub(crate) const PICTURE_EVERY: Duration = Duration::from_millis(200);

/// Entries after which a snapshot takes their place.
const SNAPSHOT_AFTER: u64 = 50_000;

/// The same in bytes.
const SNAPSHOT_AFTER_BYTES: usize = 64 << 20;

/// How long it waits before it tries again to have a snapshot written down, if no thread can be had.
const SNAPSHOT_AGAIN: Duration = Duration::from_secs(1);

/// Bytes of entries that share a sync; the last write may go beyond it. How much waits in all, the node decides: it takes
/// no more while too much is unwritten.
const SYNC_BYTES_MAX: usize = 16 << 20;

/// How long the threads may take to end. A disk that hangs may never be done.
const STOP_MAX: Duration = Duration::from_secs(3);

/// Without a deadline of its own, the thread looks around this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is agreed on: fed alike on every node.
pub trait Machine: Send + 'static {
    /// A committed command and its place in the log; the answer goes to whoever proposed it here. One that cannot be read
    /// stops this node: to skip it would be to disagree.
    fn apply(&mut self, index: Index, command: &[u8]) -> Result<Vec<u8>, Malformed>;
    /// Everything up to here has been applied.
    fn reached(&mut self, index: Index);
    /// What has been applied by now, held so that another thread can write it down while more is applied. To take hold of
    /// it must cost far less than a heartbeat.
    fn snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send>;
    fn restore(&mut self, bytes: &[u8]) -> Result<(), Malformed>;
    /// This node has begun or ceased to lead.
    fn leads(&mut self, leads: bool);
}

/// Takes a message to another node, or drops it; never waits.
pub trait Outgoing: Send + 'static {
    /// `bulk`: parts of a snapshot, which nothing else may wait behind.
    fn send(&self, to: NodeId, bytes: Vec<u8>, bulk: bool);
}

/// How a node takes part.
#[derive(Clone, Debug)]
pub struct Settings {
    pub id: NodeId,
    pub heartbeat: Duration,
    pub election: (Duration, Duration),
    /// Bytes of entries after which a snapshot takes their place.
    pub snapshot_after_bytes: usize,
}

impl Settings {
    pub fn new(id: NodeId) -> Settings {
        let usual = Config::new(id, 0);
        let election = (usual.election_min, usual.election_max);
        let snapshot_after_bytes = SNAPSHOT_AFTER_BYTES;
        Settings { id, heartbeat: usual.heartbeat, election, snapshot_after_bytes }
    }
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its place in the log; strictly increasing, so that it fences.
    pub index: Index,
    pub reply: Vec<u8>,
}

/// Why a command has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProposeError {
    /// Nothing has happened: ask the leader, if it is known.
    NotLeader(Option<NodeId>),
    /// Nothing has happened: ask again in a moment.
    Busy,
    /// It may take effect yet, or never. Ask again with the same number, and it takes effect once.
    Unknown,
    /// This node takes no part any more.
    Stopped,
}

impl fmt::Display for ProposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProposeError::NotLeader(Some(leader)) => write!(f, "node {leader} leads"),
            ProposeError::NotLeader(None) => f.write_str("no leader has a majority behind it"),
            ProposeError::Busy => f.write_str("too much is under way"),
            ProposeError::Unknown => f.write_str("whether it took effect is not known"),
            ProposeError::Stopped => f.write_str("this node takes no part any more"),
        }
    }
}

impl std::error::Error for ProposeError {}

/// Why nobody can say that what is applied here is newest.
pub type ReadError = ProposeError;

impl From<Refusal> for ProposeError {
    fn from(refusal: Refusal) -> ProposeError {
        match refusal {
            Refusal::NotLeader { leader } => ProposeError::NotLeader(leader),
            Refusal::Busy
            | Refusal::ChangeUnderWay
            | Refusal::Behind
            | Refusal::NoChange
            | Refusal::LastVoter => ProposeError::Busy,
        }
    }
}

type Answer = oneshot::Sender<Result<Applied, ProposeError>>;

enum Event {
    Message {
        message: Message,
        bytes: usize,
    },
    Written(Ticket),
    /// `term`: only as the leader of it.
    Propose {
        term: Option<Term>,
        command: Arc<[u8]>,
        answer: Answer,
    },
    Read {
        answer: oneshot::Sender<Result<Index, ReadError>>,
    },
    Change {
        change: Change,
        answer: oneshot::Sender<Result<Position, Refusal>>,
    },
    Transfer {
        to: NodeId,
        answer: oneshot::Sender<Result<(), Refusal>>,
    },
    Failed(String),
    Stop,
}

impl Event {
    /// Bytes that it holds while it waits.
    fn weight(&self) -> usize {
        match self {
            Event::Message { bytes, .. } => *bytes,
            Event::Propose { command, .. } => command.len(),
            Event::Written(_)
            | Event::Read { .. }
            | Event::Change { .. }
            | Event::Transfer { .. }
            | Event::Failed(_)
            | Event::Stop => 0,
        }
    }
}

/// The way to the thread that steps.
#[derive(Debug)]
struct Inbox {
    sender: SyncSender<Event>,
    /// Of all that waits.
    bytes: Arc<AtomicUsize>,
}

impl Inbox {
    /// Puts it there, if there is room; never waits.
    fn push(&self, event: Event) -> Result<(), ProposeError> {
        let weight = event.weight();
        let before = self.bytes.fetch_add(weight, Ordering::Relaxed);
        // One alone may be of any size.
        let pushed = if before > 0 && before.saturating_add(weight) > INBOX_BYTES_MAX {
            Err(ProposeError::Busy)
        } else {
            self.sender.try_send(event).map_err(|error| match error {
                TrySendError::Full(_) => ProposeError::Busy,
                TrySendError::Disconnected(_) => ProposeError::Stopped,
            })
        };
        if pushed.is_err() {
            self.bytes.fetch_sub(weight, Ordering::Relaxed);
        }
        pushed
    }
}

/// A thread that has an end which can be waited for.
#[derive(Debug)]
pub struct Running {
    name: &'static str,
    thread: JoinHandle<()>,
    /// Its other side goes with the thread. Nobody shares it; only so may whoever holds it be shared.
    ends: Mutex<Receiver<()>>,
}

impl Running {
    pub fn start(
        name: &'static str,
        work: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<Running> {
        let (until, ends) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            work();
            drop(until);
        })?;
        Ok(Running { name, thread, ends: Mutex::new(ends) })
    }

    /// Waits for its end; one that does not come to it in time is left to itself.
    pub fn end(self, limit: Duration) {
        let ends = self.ends.into_inner().expect("no panic while held");
        match ends.recv_timeout(limit) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                self.thread.join().ok();
            }
            Err(RecvTimeoutError::Timeout) => {
                tracing::error!(
                    thread = self.name,
                    "the thread does not end, its disk may hang: go on without it"
                );
            }
        }
    }
}

/// A node's part in the agreement.
#[derive(Debug)]
pub struct Consensus {
    inbox: Inbox,
    standing: watch::Receiver<Standing>,
    acts_until: Arc<AtomicU64>,
    threads: Vec<Running>,
}

impl Consensus {
    /// Takes part with what `home` has; the machine has been fed with nothing yet.
    pub fn start(
        settings: &Settings,
        home: Home,
        mut machine: impl Machine,
        outgoing: impl Outgoing,
    ) -> std::io::Result<Consensus> {
        let (saved, files) = home.split();
        if !saved.snapshot.data.is_empty() {
            machine.restore(&saved.snapshot.data).map_err(std::io::Error::other)?;
            machine.reached(saved.snapshot.index);
        }
        let (inbox, events) = std::sync::mpsc::sync_channel(INBOX_MAX);
        let (to_disk, writes) = std::sync::mpsc::channel();
        let node = Node::start(config(settings), saved, boottime());
        let (publish, standing) = watch::channel(Standing::of(node.status(boottime())));
        let acts_until = Arc::new(AtomicU64::new(0));
        let bytes = Arc::new(AtomicUsize::new(0));
        let stepper = Stepper {
            node,
            machine,
            outgoing,
            to_disk,
            publish,
            acts_until: acts_until.clone(),
            waiting_bytes: bytes.clone(),
            snapshot_after_bytes: settings.snapshot_after_bytes,
            encoding: None,
            encode_after: boottime(),
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            next_read: 0,
            led: false,
            pictured: None,
        };
        let back = inbox.clone();
        let writer = Running::start("consensus-disk", move || write(files, &writes, &back))?;
        let stepper = Running::start("consensus", move || {
            // A broken invariant must not leave a node that seems to lead.
            let (lease, publish) = (stepper.acts_until.clone(), stepper.publish.clone());
            let run = std::panic::AssertUnwindSafe(|| stepper.run(&events));
            if std::panic::catch_unwind(run).is_err() {
                lease.store(0, Ordering::Release);
                publish.send_modify(|standing| {
                    standing.role = Role::Follower;
                    standing.leader = None;
                    standing.may_act = false;
                    standing.serves = false;
                    standing.failed = Some("an invariant is broken; the log says which".to_owned());
                });
            }
        })?;
        let inbox = Inbox { sender: inbox, bytes };
        Ok(Consensus { inbox, standing, acts_until, threads: vec![stepper, writer] })
    }

    /// A message from another node, if `honest` says that its sender is who it says. Too many at once are dropped: they
    /// come again.
    pub fn deliver(
        &self,
        bytes: &[u8],
        honest: impl FnOnce(NodeId) -> bool,
    ) -> Result<(), Malformed> {
        let message = Message::from_bytes(bytes)?;
        if !honest(message.from) {
            return Err(Malformed("it is of another node than the link"));
        }
        self.inbox.push(Event::Message { message, bytes: bytes.len() }).ok();
        Ok(())
    }

    /// Has a command agreed on; returns once it has been applied here.
    pub async fn propose(&self, command: Vec<u8>) -> Result<Applied, ProposeError> {
        self.propose_in(None, command).await
    }

    /// The same, unless this node leads in another term, or not at all, once it is its turn.
    pub async fn propose_in(
        &self,
        term: Option<Term>,
        command: Vec<u8>,
    ) -> Result<Applied, ProposeError> {
        let (answer, result) = oneshot::channel();
        self.ask(Event::Propose { term, command: Arc::from(command), answer })?;
        result.await.unwrap_or(Err(ProposeError::Unknown))
    }

    /// Returns once everything that anybody knew of when it was called has been applied here. Only the leader can say so.
    pub async fn read(&self) -> Result<Index, ReadError> {
        let (answer, result) = oneshot::channel();
        self.ask(Event::Read { answer })?;
        result.await.unwrap_or(Err(ProposeError::NotLeader(None)))
    }

    /// Changes one member; returns once the change is in the leader's log. It is done when `commit` has passed its index.
    pub async fn change(&self, change: Change) -> Result<Position, Refusal> {
        let (answer, result) = oneshot::channel();
        let gone = Refusal::NotLeader { leader: None };
        self.ask(Event::Change { change, answer }).map_err(|_refused| gone)?;
        result.await.unwrap_or(Err(gone))
    }

    /// Hands the lead to another voter.
    pub async fn transfer(&self, to: NodeId) -> Result<(), Refusal> {
        let (answer, result) = oneshot::channel();
        let gone = Refusal::NotLeader { leader: None };
        self.ask(Event::Transfer { to, answer }).map_err(|_refused| gone)?;
        result.await.unwrap_or(Err(gone))
    }

    /// How this node stands. Who leads, who the members are and whether it goes on can be waited for; how far the log is
    /// can only be looked at: it would wake whoever waits again and again.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Until when this node may do what only the leader does; later answers put it off.
    pub fn acts_until(&self) -> Instant {
        Instant::from_start(Duration::from_nanos(self.acts_until.load(Ordering::Acquire)))
    }

    /// Whether this node may do, right now, what only the leader does.
    pub fn may_act(&self) -> bool {
        boottime() < self.acts_until()
    }

    fn ask(&self, event: Event) -> Result<(), ProposeError> {
        self.inbox.push(event)
    }

    /// Ends both threads; what has been written stays. Takes 3 s at most, even if the disk hangs.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // The one that steps waits for nobody, so there is soon room for it.
        self.inbox.sender.send(Event::Stop).ok();
        let begun = std::time::Instant::now();
        for thread in self.threads.drain(..) {
            thread.end(STOP_MAX.saturating_sub(begun.elapsed()));
        }
    }
}

impl Drop for Consensus {
    fn drop(&mut self) {
        self.end();
    }
}

fn config(settings: &Settings) -> Config {
    let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), settings.id.0);
    let mut config = Config::new(settings.id, seed);
    config.heartbeat = settings.heartbeat;
    (config.election_min, config.election_max) = settings.election;
    config
}

/// The thread that writes: whatever has come while it wrote shares the next sync.
fn write(mut files: Files, writes: &Receiver<Write>, back: &SyncSender<Event>) {
    while let Ok(first) = writes.recv() {
        let mut bytes = first.weight();
        let mut batch = vec![first];
        while bytes < SYNC_BYTES_MAX
            && let Ok(next) = writes.try_recv()
        {
            bytes += next.weight();
            batch.push(next);
        }
        let ticket = batch.last().expect("at least one").ticket;
        if let Err(error) = files.write(&batch) {
            // Nobody knows what is on the disk now: this node must not go on from what it believes.
            tracing::error!(%error, "write the log");
            back.send(Event::Failed(error.to_string())).ok();
            return;
        }
        if back.send(Event::Written(ticket)).is_err() {
            return;
        }
    }
}

struct Stepper<M, O> {
    node: Node,
    machine: M,
    outgoing: O,
    to_disk: Sender<Write>,
    publish: watch::Sender<Standing>,
    acts_until: Arc<AtomicU64>,
    waiting_bytes: Arc<AtomicUsize>,
    snapshot_after_bytes: usize,
    encoding: Option<Encoding>,
    encode_after: Instant,
    writes: BTreeMap<Index, (Term, Answer)>,
    reads: BTreeMap<u64, oneshot::Sender<Result<Index, ReadError>>>,
    next_read: u64,
    led: bool,
    pictured: Option<(Instant, Role, Term, Option<NodeId>)>,
}

/// A snapshot that another thread is writing down, and what it stands for.
struct Encoding {
    index: Index,
    term: Term,
    members: Members,
    thread: JoinHandle<Arc<[u8]>>,
}

impl<M: Machine, O: Outgoing> Stepper<M, O> {
    fn run(mut self, events: &Receiver<Event>) {
        let failed = loop {
            let now = boottime();
            let wait = self.node.deadline().map_or(LOOK_EVERY, |at| at.since(now).min(LOOK_EVERY));
            let first = match events.recv_timeout(wait) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break None,
            };
            match self.turn(first.into_iter().chain(events.try_iter().take(BATCH_MAX))) {
                Ok(()) => {}
                Err(End::Stopped) => break None,
                Err(End::Failed(reason)) => break Some(reason),
            }
        };
        self.acts_until.store(0, Ordering::Release);
        if let Some(encoding) = self.encoding.take() {
            // Not needed any more, but it is ours to see it end.
            encoding.thread.join().ok();
        }
        self.machine.leads(false);
        let mut last = Standing::of(self.node.status(boottime()));
        last.role = Role::Follower;
        last.leader = None;
        last.may_act = false;
        last.serves = false;
        last.failed = failed;
        self.publish.send_replace(last);
        // Everybody who waits is told by their channel's end.
    }

    /// Takes in what has come, then does what follows from it.
    fn turn(&mut self, events: impl Iterator<Item = Event>) -> Result<(), End> {
        let mut out = Vec::new();
        let mut proposals = Vec::new();
        let mut now = boottime();
        for event in events {
            // Events that come while earlier ones are handled are later than those: whoever was heard was heard then.
            now = boottime();
            self.waiting_bytes.fetch_sub(event.weight(), Ordering::Relaxed);
            match event {
                Event::Propose { term, command, answer } => proposals.push((term, command, answer)),
                Event::Message { message, .. } => {
                    self.node.step(now, Input::Message(message), &mut out);
                }
                Event::Written(ticket) => self.node.step(now, Input::Written(ticket), &mut out),
                Event::Read { answer } => {
                    let id = self.next_read;
                    self.next_read += 1;
                    self.reads.insert(id, answer);
                    if let Err(refusal) = self.node.read(now, id, &mut out)
                        && let Some(answer) = self.reads.remove(&id)
                    {
                        answer.send(Err(refusal.into())).ok();
                    }
                }
                Event::Change { change, answer } => {
                    answer.send(self.node.change(now, change, &mut out)).ok();
                }
                Event::Transfer { to, answer } => {
                    answer.send(self.node.transfer(now, to, &mut out)).ok();
                }
                Event::Failed(reason) => return Err(End::Failed(reason)),
                Event::Stop => return Err(End::Stopped),
            }
        }
        if !proposals.is_empty() {
            self.propose(now, proposals, &mut out);
        }
        if self.node.deadline().is_some_and(|at| at <= now) {
            self.node.step(now, Input::Tick, &mut out);
        }
        // Before anything is sent that lets another one lead.
        self.publish_lease();
        self.act(out)?;
        self.snapshot_when_long(now)?;
        self.show(now);
        Ok(())
    }

    fn publish_lease(&self) {
        let until = self
            .node
            .acts_until()
            .map_or(0, |until| u64::try_from(until.since_start().as_nanos()).unwrap_or(u64::MAX));
        self.acts_until.store(until, Ordering::Release);
    }

    fn propose(
        &mut self,
        now: Instant,
        proposals: Vec<(Option<Term>, Arc<[u8]>, Answer)>,
        out: &mut Vec<Action>,
    ) {
        let (reign, leader) = self.node.reign();
        let (mut commands, mut answers) = (Vec::new(), Vec::new());
        for (term, command, answer) in proposals {
            if term.is_some_and(|term| term != reign) {
                answer.send(Err(ProposeError::NotLeader(leader))).ok();
            } else {
                commands.push(command);
                answers.push(answer);
            }
        }
        if commands.is_empty() {
            return;
        }
        match self.node.propose(now, commands, out) {
            Ok(first) => {
                for (index, answer) in (first.index..).zip(answers) {
                    self.writes.insert(index, (first.term, answer));
                }
            }
            Err(refusal) => {
                for answer in answers {
                    answer.send(Err(refusal.into())).ok();
                }
            }
        }
    }

    fn act(&mut self, out: Vec<Action>) -> Result<(), End> {
        for action in out {
            match action {
                Action::Write(write) => {
                    self.to_disk.send(write).map_err(|_ended| {
                        End::Failed("the thread that writes the log has ended".to_owned())
                    })?;
                }
                Action::Send(message) => {
                    let bulk = matches!(message.body, outlast_raft::Body::Snapshot(_));
                    self.outgoing.send(message.to, message.to_bytes(), bulk);
                }
                Action::Apply(entries) => {
                    let last = entries.last().map(|entry| entry.index);
                    for entry in entries {
                        let reply = match &entry.payload {
                            Payload::Command(bytes) => {
                                self.machine.apply(entry.index, bytes).map_err(|error| {
                                    let index = entry.index;
                                    End::Failed(format!("entry {index} of the log: {error}"))
                                })?
                            }
                            Payload::Blank | Payload::Members(_) => Vec::new(),
                        };
                        if let Some((term, answer)) = self.writes.remove(&entry.index) {
                            let result = if term == entry.term {
                                Ok(Applied { index: entry.index, reply })
                            } else {
                                // Another leader's entry stands in its place: it never took effect.
                                Err(ProposeError::NotLeader(None))
                            };
                            answer.send(result).ok();
                        }
                    }
                    if let Some(last) = last {
                        self.machine.reached(last);
                    }
                }
                Action::Restore(snapshot) => {
                    if let Err(error) = self.machine.restore(&snapshot.data) {
                        return Err(End::Failed(format!("the leader's snapshot: {error}")));
                    }
                    self.machine.reached(snapshot.index);
                    // Whether those took effect, this node will never know.
                    self.writes = self.writes.split_off(&(snapshot.index + 1));
                }
                Action::ReadReady { id } => {
                    if let Some(answer) = self.reads.remove(&id) {
                        answer.send(Ok(self.node.applied().0)).ok();
                    }
                }
                Action::ReadFailed { id } => {
                    if let Some(answer) = self.reads.remove(&id) {
                        answer.send(Err(ProposeError::NotLeader(None))).ok();
                    }
                }
            }
        }
        Ok(())
    }

    /// A big state takes longer to write down than a heartbeat may be late, so another thread does it.
    fn snapshot_when_long(&mut self, now: Instant) -> Result<(), End> {
        if let Some(encoding) = self.encoding.take_if(|encoding| encoding.thread.is_finished()) {
            let Encoding { index, term, members, thread } = encoding;
            let data = thread.join().map_err(|_panicked| {
                End::Failed("the snapshot cannot be written down".to_owned())
            })?;
            let mut out = Vec::new();
            self.node.compact(now, Snapshot { index, term, members, data }, &mut out);
            self.act(out)?;
        }
        let long = SNAPSHOT_AFTER <= self.node.uncompacted()
            || self.snapshot_after_bytes <= self.node.uncompacted_bytes();
        if !long || self.encoding.is_some() || now < self.encode_after {
            return Ok(());
        }
        let (index, term, members) = self.node.applied();
        let write_down = self.machine.snapshot();
        let thread = std::thread::Builder::new().name("snapshot".to_owned());
        match thread.spawn(move || Arc::from(write_down())) {
            Ok(thread) => self.encoding = Some(Encoding { index, term, members, thread }),
            Err(error) => {
                tracing::warn!(%error, "write down a snapshot a little later");
                self.encode_after = now + SNAPSHOT_AGAIN;
            }
        }
        Ok(())
    }

    /// Lets others see how the node stands, at once if something has changed.
    fn show(&mut self, now: Instant) {
        let until = self
            .node
            .acts_until()
            .map_or(0, |until| u64::try_from(until.since_start().as_nanos()).unwrap_or(u64::MAX));
        self.acts_until.store(until, Ordering::Release);
        let leads = self.node.role() == Role::Leader;
        if leads != self.led {
            self.led = leads;
            self.machine.leads(leads);
            if !leads {
                // The next leader decides what becomes of them.
                for (_, (_, answer)) in std::mem::take(&mut self.writes) {
                    answer.send(Err(ProposeError::Unknown)).ok();
                }
            }
        }
        let (term, leader) = self.node.reign();
        let at = |since: Instant| now.since(since) < PICTURE_EVERY;
        let same = self.pictured.is_some_and(|(since, role, t, l)| {
            at(since) && role == self.node.role() && t == term && l == leader
        });
        if !same {
            self.pictured = Some((now, self.node.role(), term, leader));
            let next = Standing::of(self.node.status(now));
            self.publish.send_if_modified(|known| {
                let news = known.is_news(&next);
                *known = next;
                news
            });
        }
    }
}

enum End {
    Stopped,
    Failed(String),
}
