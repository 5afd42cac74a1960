//! A node that this one speaks to: its connection if there is one, what is held of it, and who dials it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::connection::{Connection, lock};
use crate::event::{LinkEvent, PeerHello, Refusal, RefusalKind};
use crate::handshake::Chain;
use crate::inflow::Held;
use crate::links::Shared;
use crate::wire::{Hello, Lane};

/// What is known of a node, for people and for `outlast status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    pub address: SocketAddr,
    /// `None`: it cannot be spoken to.
    pub connection: Option<ConnectionStatus>,
    /// Why there is no connection, as far as is known.
    pub reason: Option<String>,
    /// Messages that were dropped because a queue was full.
    pub dropped: u64,
    /// What it sent and nobody has taken yet, in bytes.
    pub held_bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionStatus {
    pub hello: PeerHello,
    pub lasts: Duration,
    pub silent_for: Duration,
    /// `None` until the first ping was answered.
    pub round_trip: Option<Duration>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub queued_bytes: usize,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: Arc<str>,
    pub(crate) address: Mutex<SocketAddr>,
    current: Mutex<Option<Arc<Connection>>>,
    held: Mutex<Holds>,
    /// Told when a connection comes or goes, and at the end.
    pub(crate) changed: Notify,
    pub(crate) removed: AtomicBool,
    pub(crate) dialled: AtomicBool,
    pub(crate) dropped: AtomicU64,
    reason: Mutex<Option<String>>,
}

/// What is held of a node in each lane, and for which connection that is counted.
#[derive(Debug, Default)]
struct Holds {
    lanes: [Held; Lane::ALL.len()],
    owner: Option<Arc<Connection>>,
}

impl Holds {
    fn is_of(&self, connection: &Arc<Connection>) -> bool {
        self.owner.as_ref().is_some_and(|owner| Arc::ptr_eq(owner, connection))
    }

    fn give_credit(&mut self, lane: Lane) {
        if let Some(owner) = &self.owner
            && let Some(bytes) = self.lanes[lane.index()].credit(lane)
        {
            owner.grant(lane, bytes);
        }
    }
}

impl Peer {
    pub(crate) fn new(name: &str, address: SocketAddr) -> Peer {
        Peer {
            name: name.into(),
            address: Mutex::new(address),
            current: Mutex::default(),
            held: Mutex::default(),
            changed: Notify::new(),
            removed: AtomicBool::new(false),
            dialled: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            reason: Mutex::default(),
        }
    }

    pub(crate) fn current(&self) -> Option<Arc<Connection>> {
        lock(&self.current).clone()
    }

    /// Says whether a node that greets may come in, before the other side has said what it thinks.
    pub(crate) fn may_come(&self, hello: &Hello, doubted_max: Duration) -> Result<(), Refusal> {
        match lock(&self.current).as_ref() {
            Some(current) if current.hello.instance != hello.instance => {
                refuse_duplicate(current, hello, doubted_max)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Makes a connection the one of this node. `we_decide`: ours is the last word; else the other side has decided.
    pub(crate) fn install(
        &self,
        shared: &Shared,
        hello: &Hello,
        said: PeerHello,
        chain: Option<Chain>,
        we_decide: bool,
    ) -> Result<Arc<Connection>, Refusal> {
        let mut current = lock(&self.current);
        if self.removed.load(Relaxed) {
            let text = format!("node `{}` is not in the topology any more", self.name);
            return Err(Refusal::new(RefusalKind::UnknownNode, text));
        }
        if let Some(old) = current.as_ref() {
            if old.hello.instance != hello.instance {
                refuse_duplicate(old, hello, shared.config.timing.doubted_max)?;
            }
            if we_decide {
                old.doubt();
                let text = "there is a connection already";
                return Err(Refusal::new(RefusalKind::AlreadyConnected, text));
            }
        }
        let connection = Arc::new(Connection::new(self.name.clone(), said.clone(), chain));
        let old = current.replace(connection.clone());
        *lock(&self.reason) = None;
        {
            let mut holds = lock(&self.held);
            holds.owner = Some(connection.clone());
            for lane in Lane::ALL {
                holds.lanes[lane.index()].begin(lane);
                holds.give_credit(lane);
            }
        }
        if let Some(old) = old {
            let reason = "another connection took its place";
            old.close(reason);
            shared.report(LinkEvent::Down {
                node: self.name.to_string(),
                reason: reason.to_owned(),
                lasted: old.since.elapsed(),
            });
        }
        shared.report(LinkEvent::Up { node: self.name.to_string(), hello: said });
        drop(current);
        self.changed.notify_waiters();
        Ok(connection)
    }

    /// A connection is over.
    pub(crate) fn ended(&self, shared: &Shared, connection: &Arc<Connection>, reason: &str) {
        let mut current = lock(&self.current);
        if current.as_ref().is_some_and(|c| Arc::ptr_eq(c, connection)) {
            *current = None;
            lock(&self.held).owner = None;
            *lock(&self.reason) = Some(reason.to_owned());
            shared.report(LinkEvent::Down {
                node: self.name.to_string(),
                reason: reason.to_owned(),
                lasted: connection.since.elapsed(),
            });
        }
        drop(current);
        self.changed.notify_waiters();
    }

    /// A dial came to nothing; true if the reason is a new one.
    pub(crate) fn unreachable(&self, reason: &str) -> bool {
        let mut known = lock(&self.reason);
        let new = known.as_deref() != Some(reason);
        *known = Some(reason.to_owned());
        new
    }

    pub(crate) fn remove(&self) {
        let current = lock(&self.current);
        self.removed.store(true, Relaxed);
        if let Some(current) = current.as_ref() {
            current.close("the node is not in the topology any more");
        }
        drop(current);
        self.changed.notify_waiters();
    }

    /// A piece arrived. False: it may not be sent.
    #[must_use]
    pub(crate) fn receive(&self, connection: &Arc<Connection>, lane: Lane, bytes: usize) -> bool {
        let mut holds = lock(&self.held);
        if !holds.is_of(connection) {
            return false;
        }
        let good = holds.lanes[lane.index()].receive(lane, bytes);
        holds.give_credit(lane);
        good
    }

    /// A whole message waits to be taken.
    pub(crate) fn waits(&self, lane: Lane, bytes: usize) {
        lock(&self.held).lanes[lane.index()].complete(Some(bytes));
    }

    /// A whole message went to somebody who waited for it.
    pub(crate) fn taken_at_once(&self, lane: Lane) {
        let mut holds = lock(&self.held);
        holds.lanes[lane.index()].complete(None);
        holds.give_credit(lane);
    }

    /// A message that waited was taken.
    pub(crate) fn taken(&self, lane: Lane, bytes: usize) {
        let mut holds = lock(&self.held);
        holds.lanes[lane.index()].take(bytes);
        holds.give_credit(lane);
    }

    pub(crate) fn status(&self) -> PeerStatus {
        let connection = self.current().map(|connection| ConnectionStatus {
            hello: connection.hello.clone(),
            lasts: connection.since.elapsed(),
            silent_for: connection.silent_for(),
            round_trip: connection.round_trip(),
            bytes_in: connection.bytes_in.load(Relaxed),
            bytes_out: connection.bytes_out.load(Relaxed),
            queued_bytes: connection.queued_bytes(),
        });
        PeerStatus {
            address: *lock(&self.address),
            connection,
            reason: lock(&self.reason).clone(),
            dropped: self.dropped.load(Relaxed),
            held_bytes: lock(&self.held).lanes.iter().map(Held::bytes).sum(),
        }
    }
}

/// Of two that claim one name the first stays while it is alive; it has to show that it is.
fn refuse_duplicate(
    current: &Connection,
    hello: &Hello,
    doubted_max: Duration,
) -> Result<(), Refusal> {
    if current.is_over() {
        return Ok(());
    }
    current.doubt();
    let text = format!(
        "node `{}` is connected already from {} by another agent (started as {:016x}, this one as {:016x}): two \
         machines must not run under one name; after a crash this passes within {doubted_max:?}",
        hello.node, current.hello.address, current.hello.instance, hello.instance
    );
    Err(Refusal::new(RefusalKind::DuplicateNode, text))
}

/// The pause before the next dial: it doubles with each failure, and is spread so that nodes do not dial in step.
pub(crate) fn backoff(failures: u32, min: Duration, max: Duration, random: u64) -> Duration {
    let pause = min.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(max);
    // Between a half and the whole of it.
    let share = (random % 512) as u32;
    pause / 2 + pause / 1024 * share
}

/// How long a connection must last so that the next dial comes at once.
pub(crate) fn lasted(since: Instant, backoff_max: Duration) -> bool {
    since.elapsed() >= backoff_max
}
