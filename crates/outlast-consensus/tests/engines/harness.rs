//! Nodes in one process: real threads and files, and a network that is a table.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outlast_consensus::{
    Applied, Consensus, Home, Index, Machine, Members, NodeId, Outgoing, ProposeError, Role,
    Settings, Snapshot, Standing,
};
use outlast_core::codec::{Code as _, Malformed};

/// Nothing here takes so long, not even on a machine with much else to do.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Waits until there is something, with a limit.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "{what}: not in time");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || holds().then_some(()));
}

/// An empty directory of this test's own.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("engines-{name}"));
    if dir.exists() {
        std::fs::remove_dir_all(&dir).unwrap();
    }
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// What stands in the way of a snapshot that is being written down.
pub(crate) type Gate = Arc<Mutex<()>>;

/// Keeps everything that it is fed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tape {
    pub(crate) said: Arc<Mutex<Vec<Vec<u8>>>>,
    /// While a test holds it, no snapshot is written down.
    pub(crate) gate: Gate,
}

impl Machine for Tape {
    fn apply(&mut self, _: Index, command: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut said = self.said.lock().unwrap();
        said.push(command.to_vec());
        Ok((said.len() as u64).to_bytes())
    }

    fn reached(&mut self, _: Index) {}

    fn snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        let (said, gate) = (self.said.lock().unwrap().clone(), self.gate.clone());
        Box::new(move || {
            let _open = gate.lock().unwrap();
            let mut bytes = Vec::new();
            outlast_core::codec::encode_list(said.iter(), &mut bytes);
            bytes
        })
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let mut reader = outlast_core::codec::Reader::new(bytes);
        *self.said.lock().unwrap() = outlast_core::codec::decode_list(&mut reader)?;
        reader.end()
    }

    fn leads(&mut self, _: bool) {}
}

type Living = Arc<Mutex<BTreeMap<NodeId, Arc<Consensus>>>>;

/// Brings what a node says to whoever lives.
struct Wire(Living);

impl Outgoing for Wire {
    fn send(&self, to: NodeId, bytes: Vec<u8>, _: bool) {
        let other = self.0.lock().unwrap().get(&to).cloned();
        if let Some(other) = other {
            other.deliver(&bytes, |_| true).unwrap();
        }
    }
}

/// Nodes with the ids from 1, each with its directory.
pub(crate) struct Nodes {
    pub(crate) dir: PathBuf,
    living: Living,
    pub(crate) tapes: BTreeMap<u64, Tape>,
    pub(crate) snapshot_after_bytes: Option<usize>,
}

impl Nodes {
    /// The directories of so many voters; none of them lives yet.
    pub(crate) fn found(name: &str, voters: u64) -> Nodes {
        let nodes = Nodes {
            dir: scratch(name),
            living: Living::default(),
            tapes: BTreeMap::new(),
            snapshot_after_bytes: None,
        };
        for id in 1..=voters {
            nodes.create(id, Members::voters(1..=voters));
        }
        nodes
    }

    /// The same, and they live.
    pub(crate) fn start_all(name: &str, voters: u64) -> Nodes {
        let mut nodes = Nodes::found(name, voters);
        (1..=voters).for_each(|id| nodes.start(id));
        nodes
    }

    pub(crate) fn home(&self, id: u64) -> PathBuf {
        self.dir.join(id.to_string())
    }

    pub(crate) fn create(&self, id: u64, members: Members) {
        drop(Home::create(&self.home(id), Snapshot::begin(members)).unwrap());
    }

    /// Starts a node from what its directory has.
    pub(crate) fn start(&mut self, id: u64) {
        let home = Home::open(&self.home(id)).unwrap().expect("it was created");
        let tape = Tape::default();
        let mut settings = Settings::new(NodeId(id));
        // Patient: a loaded machine must not make a test fail.
        settings.election = (Duration::from_millis(500), Duration::from_secs(1));
        if let Some(bytes) = self.snapshot_after_bytes {
            settings.snapshot_after_bytes = bytes;
        }
        let wire = Wire(self.living.clone());
        let consensus = Consensus::start(&settings, home, tape.clone(), wire).unwrap();
        self.living.lock().unwrap().insert(NodeId(id), Arc::new(consensus));
        self.tapes.insert(id, tape);
    }

    /// Stops a node; how long that took.
    pub(crate) fn stop(&self, id: u64) -> Duration {
        let consensus = self.living.lock().unwrap().remove(&NodeId(id)).expect("it lives");
        // Others may be about to tell it something.
        let mut consensus = Some(consensus);
        let consensus =
            wait_for("nobody else holds it", || match Arc::try_unwrap(consensus.take()?) {
                Ok(alone) => Some(alone),
                Err(shared) => {
                    consensus = Some(shared);
                    None
                }
            });
        let begun = Instant::now();
        consensus.stop();
        begun.elapsed()
    }

    pub(crate) fn ids(&self) -> BTreeSet<u64> {
        self.living.lock().unwrap().keys().map(|id| id.0).collect()
    }

    pub(crate) fn node(&self, id: u64) -> Arc<Consensus> {
        self.living.lock().unwrap().get(&NodeId(id)).expect("it lives").clone()
    }

    pub(crate) fn standing(&self, id: u64) -> Standing {
        self.node(id).standing().borrow().clone()
    }

    /// The one that may act as leader.
    pub(crate) fn leader(&self) -> u64 {
        wait_for("a leader", || {
            let ids = self.ids();
            ids.into_iter()
                .find(|&id| self.standing(id).role == Role::Leader && self.node(id).may_act())
        })
    }

    /// Has something agreed on by whoever leads.
    pub(crate) fn propose(&self, text: &str) -> Applied {
        wait_for("it is agreed on", || {
            let leader = self.node(self.leader());
            match now(leader.propose(text.as_bytes().to_vec())) {
                Ok(applied) => Some(applied),
                Err(ProposeError::NotLeader(_) | ProposeError::Busy) => None,
                Err(error @ (ProposeError::Unknown | ProposeError::Stopped)) => panic!("{error}"),
            }
        })
    }

    pub(crate) fn said(&self, id: u64) -> Vec<String> {
        let said = self.tapes[&id].said.lock().unwrap();
        said.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }

    /// Waits until all that live have applied this, and nothing else.
    pub(crate) fn all_say(&self, texts: &[String]) {
        for id in self.ids() {
            until(&format!("node {id} has applied all of it"), || {
                self.said(id).len() >= texts.len()
            });
            assert_eq!(self.said(id), texts, "node {id}");
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What they hold of each other is not to be untangled after a failure.
            std::mem::forget(std::mem::take(&mut *self.living.lock().unwrap()));
            return;
        }
        for id in self.ids() {
            self.stop(id);
        }
    }
}

/// Waits for an answer, with a limit.
pub(crate) fn now<T>(answer: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(LIMIT, answer).await })
        .expect("an answer within the limit")
}

pub(crate) fn texts(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("entry {n}")).collect()
}
