//! Clients of real agents that write down what they asked and what they were told, for the checker to judge.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outlast::cluster::door::{Question, Said, Visitor};
use outlast_core::agreed::{Command, Expected, Item, KvCommand, Reply};
use outlast_core::linear::{Call, Operation};

/// Keys that are in use at the same time.
const KEYS: u64 = 4;
/// So long the same keys are used; the ones before are left as they are, and read again at the end.
const GENERATION: Duration = Duration::from_secs(20);
/// Calls of one connection.
const VISIT_MAX: u64 = 40;
/// How long a client waits for an answer before it takes the connection for broken.
const PATIENCE: Duration = Duration::from_secs(4);
const BETWEEN_CALLS: Duration = Duration::from_millis(2);
const BETWEEN_DIALS: Duration = Duration::from_millis(5);
/// All that clients write lies below this.
const PREFIX: &[u8] = b"history/";

/// SplitMix64: what is drawn from a seed is the same, what it meets is not.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    /// A place in a list that is so long.
    pub(crate) fn place(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("below a length")
    }
}

/// What all clients saw, on one clock.
#[derive(Debug)]
pub(crate) struct History {
    begun: Instant,
    calls: Mutex<Vec<Call>>,
    /// Calls of which it was said that nothing has happened.
    unavailable: AtomicU64,
    over: AtomicBool,
}

impl History {
    pub(crate) fn new() -> Arc<History> {
        Arc::new(History {
            begun: Instant::now(),
            calls: Mutex::default(),
            unavailable: AtomicU64::new(0),
            over: AtomicBool::new(false),
        })
    }

    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).expect("a test ends within centuries")
    }

    /// Lets the clients end after the call that they are in.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub(crate) fn unavailable(&self) -> u64 {
        self.unavailable.load(Ordering::Relaxed)
    }

    pub(crate) fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().expect("no panic while held"))
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn add(&self, call: Call) {
        self.calls.lock().expect("no panic while held").push(call);
    }
}

/// A client on a thread of its own.
#[derive(Debug)]
pub(crate) struct Client {
    number: u64,
    random: Random,
    history: Arc<History>,
    /// Reads show what is newest; else what a node has, which may be stale.
    pub(crate) fresh: bool,
    writes: u64,
    /// What it has last seen of each key that is in use.
    seen: BTreeMap<Vec<u8>, Option<Item>>,
}

impl Client {
    pub(crate) fn new(number: u64, history: &Arc<History>) -> Client {
        Client {
            number,
            random: Random(number),
            history: history.clone(),
            fresh: true,
            writes: 0,
            seen: BTreeMap::new(),
        }
    }

    /// Asks the agents with these data directories until the history ends.
    pub(crate) fn live(mut self, dirs: Vec<PathBuf>) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be built").block_on(self.visits(&dirs));
        })
    }

    async fn visits(&mut self, dirs: &[PathBuf]) {
        while !self.history.is_over() {
            // A connection for a while, so that clients move from node to node.
            let dir = &dirs[self.random.place(dirs.len())];
            let Ok(mut visitor) = Visitor::connect(dir).await else {
                tokio::time::sleep(BETWEEN_DIALS).await;
                continue;
            };
            for _ in 0..=self.random.below(VISIT_MAX) {
                let key = self.key();
                if self.ask(&mut visitor, key).await.is_none() || self.history.is_over() {
                    break;
                }
                tokio::time::sleep(BETWEEN_CALLS).await;
            }
        }
    }

    fn key(&mut self) -> Vec<u8> {
        let generation = self.history.begun.elapsed().as_secs() / GENERATION.as_secs();
        let key = format!("{generation}/{}", self.random.below(KEYS));
        [PREFIX, key.as_bytes()].concat()
    }

    /// A value that nobody else writes.
    fn value(&mut self) -> Vec<u8> {
        self.writes += 1;
        format!("{}-{}", self.number, self.writes).into_bytes()
    }

    fn question(&mut self, key: &[u8]) -> (Question, Operation) {
        let key = key.to_vec();
        match self.random.below(20) {
            0..8 => {
                let question = Question::Get { key, fresh: self.fresh };
                (question, Operation::Get { seen: None })
            }
            8..14 => {
                let value = self.value();
                let put = KvCommand::Put { key, value: value.clone(), session: None };
                (Question::Write { command: Command::Kv(put) }, Operation::Put { value })
            }
            14..16 => {
                let delete = KvCommand::Delete { key, expected: None };
                (Question::Write { command: Command::Kv(delete) }, Operation::Delete)
            }
            _ => {
                let seen = self.seen.get(&key).cloned().flatten();
                // Values are unique, so that to expect the last change is to expect its value.
                let expected = match &seen {
                    Some(item) => Expected::Modified { index: item.modified_index },
                    None => Expected::Absent,
                };
                let value = self.value();
                let cas = KvCommand::Cas { key, expected, value: value.clone(), session: None };
                let expected = seen.map(|item| item.value);
                let operation = Operation::Cas { expected, value, done: false };
                (Question::Write { command: Command::Kv(cas) }, operation)
            }
        }
    }

    /// Asks once; `None`: the connection is gone.
    async fn ask(&mut self, visitor: &mut Visitor, key: Vec<u8>) -> Option<()> {
        let (question, mut operation) = self.question(&key);
        let invoked = self.history.now();
        let said = tokio::time::timeout(PATIENCE, visitor.ask(&question)).await;
        let mut returned = Some(self.history.now());
        let said = said.ok().and_then(Result::ok);
        match (&said, &mut operation) {
            (Some(Said::Item { item }), Operation::Get { seen }) => {
                *seen = item.as_ref().map(|item| item.value.clone());
                self.seen.insert(key.clone(), item.clone());
            }
            (Some(Said::Replied { reply, .. }), Operation::Cas { done, .. }) => {
                *done = !matches!(reply, Reply::Refused { .. });
            }
            (Some(Said::Replied { reply, .. }), Operation::Put { .. } | Operation::Delete) => {
                assert!(!matches!(reply, Reply::Refused { .. }), "{reply}");
            }
            (Some(Said::Unavailable { .. }), _) => {
                self.history.unavailable.fetch_add(1, Ordering::Relaxed);
                return Some(());
            }
            (Some(Said::Unknown { .. }) | None, Operation::Get { .. }) => {
                return said.map(drop);
            }
            (Some(Said::Unknown { .. }) | None, _) => returned = None,
            (Some(other), operation) => panic!("{other:?} is no answer to {operation:?}"),
        }
        self.history.add(Call { client: self.number, key, operation, invoked, returned });
        said.map(drop)
    }
}

/// Who reads at the end; below it are the clients.
const READER: u64 = 1000;

/// Reads every key at every node, one after the other: the end of the history, which shows whether what was acknowledged
/// is still there. `None`: an agent did not answer.
pub(crate) fn read_all(history: &History, dirs: &[PathBuf], keys: &[Vec<u8>]) -> Option<Vec<Call>> {
    let read = async {
        let mut calls = Vec::new();
        for (client, dir) in (READER..).zip(dirs) {
            let mut visitor = Visitor::connect(dir).await.ok()?;
            for key in keys {
                let question = Question::Get { key: key.clone(), fresh: true };
                let invoked = history.now();
                let said = tokio::time::timeout(PATIENCE, visitor.ask(&question)).await;
                let returned = Some(history.now());
                let Ok(Ok(Said::Item { item })) = said else { return None };
                let operation = Operation::Get { seen: item.map(|item| item.value) };
                calls.push(Call { client, key: key.clone(), operation, invoked, returned });
            }
        }
        Some(calls)
    };
    alone(read)
}

/// All that clients have written, as a node has it.
pub(crate) fn held(dir: &Path) -> Option<Vec<(Vec<u8>, Item)>> {
    alone(async {
        let mut visitor = Visitor::connect(dir).await.ok()?;
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let question = Question::List { prefix: PREFIX.to_vec(), after, fresh: false };
            let said = tokio::time::timeout(PATIENCE, visitor.ask(&question)).await;
            let Ok(Ok(Said::Page { items, more })) = said else { return None };
            all.extend(items);
            if !more {
                return Some(all);
            }
            after = all.last().map(|(key, _)| key.clone());
        }
    })
}

fn alone<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be built").block_on(work)
}
