//! What the rest of the agent holds of a node's part in an agreement that lies in etcd.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outlast_consensus::{
    Agreement, Answering, Applied, Change, Index, Machine, Members, NodeId, Position, ProposeError,
    ReadError, Refusal, Role, Running, Standing, Term,
};
use outlast_core::codec::Malformed;
use outlast_core::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};

use crate::client::{Endpoint, Tls};
use crate::engine::{self, Driver};
use crate::mark;

/// What may wait for the loop.
const INBOX_MAX: usize = 16_384;

/// How long an end may take, even if the disk or a name server hangs.
const STOP_MAX: Duration = Duration::from_secs(3);

/// Who takes part, by what is agreed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roll {
    /// This node; `None`: it does not belong to the cluster.
    pub own: Option<NodeId>,
    /// Voters may lead, learners only follow; etcd alone counts votes.
    pub members: Members,
}

/// How a node takes part.
pub struct Settings {
    /// The cluster's name in the topology.
    pub cluster: String,
    pub endpoints: Vec<Endpoint>,
    pub tls: Option<Tls>,
    /// Where the node remembers what it has seen of etcd.
    pub data_dir: PathBuf,
    /// What a cluster that is not there yet begins with.
    pub begin: (Index, Vec<u8>),
    /// Asked after each change.
    pub roll: Box<dyn Fn() -> Roll + Send>,
    /// Entries after which a snapshot takes their place, and bytes of the log.
    pub snapshot_after: u64,
    pub snapshot_after_bytes: u64,
}

/// The usual [`Settings::snapshot_after`].
pub const SNAPSHOT_AFTER: u64 = 10_000;

/// The usual [`Settings::snapshot_after_bytes`].
pub const SNAPSHOT_AFTER_BYTES: u64 = 64 << 20;

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { cluster, endpoints, .. } = self;
        f.debug_struct("Settings")
            .field("cluster", cluster)
            .field("endpoints", endpoints)
            .finish_non_exhaustive()
    }
}

pub(crate) type Answer = oneshot::Sender<Result<Applied, ProposeError>>;
pub(crate) type ReadAnswer = oneshot::Sender<Result<Index, ReadError>>;
pub(crate) type Handed = oneshot::Sender<Result<(), Refusal>>;

pub(crate) enum Event {
    /// `reign`: the term in which this node must lead for it.
    Propose {
        command: Vec<u8>,
        reign: Option<u64>,
        answer: Answer,
    },
    Read {
        answer: ReadAnswer,
    },
    Transfer {
        to: NodeId,
        answer: Handed,
    },
}

/// A node's part in an agreement that lies in etcd.
#[derive(Debug)]
pub struct Etcd {
    inbox: mpsc::Sender<Event>,
    standing: watch::Receiver<Standing>,
    acts_until: Arc<AtomicU64>,
    /// Dropped, it tells the loop to end: a full inbox is not in its way.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<Running>,
}

impl Etcd {
    /// Begins to take part; returns at once, whether etcd answers or not.
    pub fn start(settings: Settings, machine: impl Machine) -> std::io::Result<Etcd> {
        let mark_path = mark::path(&settings.data_dir);
        let mark = mark::load(&mark_path, &settings.cluster)?;
        if let Some(tls) = &settings.tls {
            tls.config().map_err(std::io::Error::other)?;
        }
        let (inbox, events) = mpsc::channel(INBOX_MAX);
        let (publish, standing) = watch::channel(nobody());
        let acts_until = Arc::new(AtomicU64::new(0));
        let (lease, tell) = (acts_until.clone(), publish.clone());
        let driver = Driver::new(settings, machine, (mark_path, mark), publish, acts_until.clone());
        let (stop, stopped) = oneshot::channel();
        let thread = Running::start("consensus-etcd", move || {
            // A broken invariant must not leave a node that seems to lead.
            let run = std::panic::AssertUnwindSafe(|| engine::run(driver, events, stopped));
            if std::panic::catch_unwind(run).is_err() {
                lease.store(0, Ordering::Release);
                let failed = Some("an invariant is broken; the log says which".to_owned());
                tell.send_replace(Standing { failed, ..nobody() });
            }
        })?;
        Ok(Etcd { inbox, standing, acts_until, stop: Some(stop), thread: Some(thread) })
    }

    fn put(
        &self,
        command: Vec<u8>,
        reign: Option<u64>,
    ) -> Answering<'_, Result<Applied, ProposeError>> {
        let (answer, result) = oneshot::channel();
        let asked = self.ask(Event::Propose { command, reign, answer });
        Box::pin(async move {
            asked?;
            result.await.unwrap_or(Err(ProposeError::Unknown))
        })
    }

    fn ask(&self, event: Event) -> Result<(), ProposeError> {
        self.inbox.try_send(event).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Busy,
            mpsc::error::TrySendError::Closed(_) => ProposeError::Stopped,
        })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            thread.end(STOP_MAX);
        }
    }
}

impl Agreement for Etcd {
    fn propose(&self, command: Vec<u8>) -> Answering<'_, Result<Applied, ProposeError>> {
        self.put(command, None)
    }

    fn propose_as_leader(
        &self,
        term: Term,
        command: Vec<u8>,
    ) -> Answering<'_, Result<Applied, ProposeError>> {
        self.put(command, Some(term))
    }

    fn read(&self) -> Answering<'_, Result<Index, ReadError>> {
        let (answer, result) = oneshot::channel();
        let asked = self.ask(Event::Read { answer });
        Box::pin(async move {
            asked?;
            result.await.unwrap_or(Err(ProposeError::NotLeader(None)))
        })
    }

    /// The members are those that are registered; nothing else has to be changed.
    fn change(&self, _change: Change) -> Answering<'_, Result<Position, Refusal>> {
        Box::pin(std::future::ready(Err(Refusal::NoChange)))
    }

    fn transfer(&self, to: NodeId) -> Answering<'_, Result<(), Refusal>> {
        let (answer, result) = oneshot::channel();
        let asked = self.ask(Event::Transfer { to, answer });
        let gone = Refusal::NotLeader { leader: None };
        Box::pin(async move {
            asked.map_err(|_refused| gone)?;
            result.await.unwrap_or(Err(gone))
        })
    }

    fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    fn acts_until(&self) -> Instant {
        Instant::from_start(Duration::from_nanos(self.acts_until.load(Ordering::Acquire)))
    }

    fn deliver(
        &self,
        _bytes: &[u8],
        _honest: &mut dyn FnMut(NodeId) -> bool,
    ) -> Result<(), Malformed> {
        Err(Malformed("this node agrees through etcd and has no log of its own"))
    }
}

/// Before anything is known.
pub(crate) fn nobody() -> Standing {
    Standing {
        id: NodeId(0),
        role: Role::Follower,
        term: 0,
        leader: None,
        members: Members::default(),
        commit: 0,
        last: 0,
        durable: 0,
        snapshot: 0,
        quorum_age: None,
        may_act: false,
        handed: false,
        serves: false,
        trouble: None,
        failed: None,
    }
}

pub(crate) fn random() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0_u8)
}
