//! Clients of real agents write down what they saw while agents are killed and frozen; one order must explain it all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outlast::cluster::door::{Question, Said, Visitor};
use outlast_core::agreed::{Command, Expected, Item, KvCommand, Reply};
use outlast_core::linear::{Call, Operation, Start, TRIES_MAX, Verdict, check};
use rustix::process::Signal;

use super::{Nodes, three};
use crate::stage::wait_until;

const CLIENTS: u64 = 5;
const KEYS: u64 = 4;

/// How long agents are tormented; `OUTLAST_HISTORY_SECONDS` makes it longer.
fn storm() -> Duration {
    let asked = std::env::var("OUTLAST_HISTORY_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(asked.unwrap_or(12))
}

/// SplitMix64: the faults of a seed are the same, what they meet is not.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

struct Client {
    number: u64,
    random: Random,
    begun: Instant,
    calls: Arc<Mutex<Vec<Call>>>,
    writes: u64,
}

impl Client {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).expect("it fits, and a runtime can be built")
    }

    /// A value that nobody else writes.
    fn value(&mut self) -> Vec<u8> {
        self.writes += 1;
        format!("{}-{}", self.number, self.writes).into_bytes()
    }

    /// Asks once; `None`: the connection is gone.
    async fn ask(
        &mut self,
        visitor: &mut Visitor,
        key: &[u8],
        seen: &mut Option<Item>,
    ) -> Option<()> {
        let (question, operation) = match self.random.below(20) {
            0..8 => {
                let question = Question::Get { key: key.to_vec(), fresh: true };
                (question, Operation::Get { seen: None })
            }
            8..14 => {
                let value = self.value();
                let put = KvCommand::Put { key: key.to_vec(), value: value.clone(), session: None };
                (Question::Write { command: Command::Kv(put) }, Operation::Put { value })
            }
            14..16 => {
                let delete = KvCommand::Delete { key: key.to_vec(), expected: None };
                (Question::Write { command: Command::Kv(delete) }, Operation::Delete)
            }
            _ => {
                // Values are unique, so that to expect the last change is to expect its value.
                let expected = match seen {
                    Some(item) => Expected::Modified { index: item.modified_index },
                    None => Expected::Absent,
                };
                let value = self.value();
                let cas = KvCommand::Cas {
                    key: key.to_vec(),
                    expected,
                    value: value.clone(),
                    session: None,
                };
                let expected = seen.as_ref().map(|item| item.value.clone());
                let operation = Operation::Cas { expected, value, done: false };
                (Question::Write { command: Command::Kv(cas) }, operation)
            }
        };
        let invoked = self.now();
        let said = visitor.ask(&question).await;
        let returned = Some(self.now());
        let mut call =
            Call { client: self.number, key: key.to_vec(), operation, invoked, returned };
        let gone = said.is_err();
        match (said, &mut call.operation) {
            (Ok(Said::Item { item }), Operation::Get { seen: told }) => {
                *told = item.as_ref().map(|item| item.value.clone());
                *seen = item;
            }
            (
                Ok(Said::Replied { reply: Reply::Refused { .. }, .. }),
                Operation::Cas { done, .. },
            ) => *done = false,
            (Ok(Said::Replied { .. }), Operation::Cas { done, .. }) => *done = true,
            (Ok(Said::Replied { reply, .. }), _) => {
                assert!(!matches!(reply, Reply::Refused { .. }), "{reply}");
            }
            // It took no effect.
            (Ok(Said::Unavailable { .. }), _) => return Some(()),
            (Ok(Said::Unknown { .. }) | Err(_), Operation::Get { .. }) => {
                return (!gone).then_some(());
            }
            (Ok(Said::Unknown { .. }) | Err(_), _) => call.returned = None,
            (Ok(other), operation) => panic!("{other:?} is no answer to {operation:?}"),
        }
        self.calls.lock().expect("no panic while held").push(call);
        (!gone).then_some(())
    }

    async fn live(&mut self, dirs: &[std::path::PathBuf], over: &AtomicBool) {
        while !over.load(Ordering::Acquire) {
            let at = usize::try_from(self.random.below(dirs.len() as u64))
                .expect("it fits, and a runtime can be built");
            let Ok(mut visitor) = Visitor::connect(&dirs[at]).await else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            let mut seen =
                vec![None; usize::try_from(KEYS).expect("it fits, and a runtime can be built")];
            // A connection for a while, so that clients move from node to node.
            for _ in 0..self.random.below(40) + 1 {
                let key = self.random.below(KEYS);
                let name = format!("k{key}").into_bytes();
                let place =
                    &mut seen[usize::try_from(key).expect("it fits, and a runtime can be built")];
                // A node that stands still answers late or never.
                let asked = self.ask(&mut visitor, &name, place).await;
                if asked.is_none() || over.load(Ordering::Acquire) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
}

/// Kills and freezes agents, now and then a majority of them.
fn torment(nodes: &mut Nodes, random: &mut Random, until: Instant) -> (u64, u64) {
    let (mut kills, mut freezes) = (0, 0);
    let pause = |millis: u64| {
        #[expect(clippy::disallowed_methods, reason = "between one fault and the next")]
        std::thread::sleep(Duration::from_millis(millis));
    };
    while Instant::now() < until {
        pause(100 + random.below(600));
        let count = 1 + u64::from(random.below(5) == 0);
        let first = random.below(3);
        let chosen: Vec<&str> = (first..first + count)
            .map(|at| {
                nodes.names[usize::try_from(at % 3).expect("it fits, and a runtime can be built")]
            })
            .collect();
        if random.below(3) > 0 {
            for node in &chosen {
                nodes.kill(node);
                kills += 1;
            }
            pause(random.below(700));
            for node in &chosen {
                nodes.restart(node);
            }
        } else {
            for node in &chosen {
                nodes.signal(node, Signal::STOP);
                freezes += 1;
            }
            pause(50 + random.below(1_200));
            for node in &chosen {
                nodes.signal(node, Signal::CONT);
            }
        }
    }
    (kills, freezes)
}

#[test]
fn one_order_explains_what_clients_saw_while_agents_were_killed_and_frozen() {
    let mut nodes = three("history");
    let dirs: Vec<_> = nodes.stages.iter().map(crate::stage::Stage::data).collect();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let (begun, over) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (calls, over, dirs) = (calls.clone(), over.clone(), dirs.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("it fits, and a runtime can be built");
                let random = Random(number);
                let mut client = Client { number, random, begun, calls, writes: 0 };
                runtime.block_on(client.live(&dirs, &over));
            })
        })
        .collect();
    let (kills, freezes) = torment(&mut nodes, &mut Random(7), Instant::now() + storm());
    // A key that no client touches: each node brings it to the leader, and a majority to its disks.
    for node in &nodes.names {
        wait_until("all agree again", || nodes.stage(node).verb(&["kv", "put", "storm", "over"]).0);
    }
    over.store(true, Ordering::Release);
    for client in clients {
        client.join().expect("it fits, and a runtime can be built");
    }
    let calls = std::mem::take(&mut *calls.lock().expect("no panic while held"));
    let unanswered = calls.iter().filter(|call| call.returned.is_none()).count();
    println!(
        "{} calls, {unanswered} without an answer, {kills} kills, {freezes} freezes",
        calls.len()
    );
    assert!(calls.len() > 200, "only {} calls", calls.len());
    match check(&calls, Start::Empty, TRIES_MAX) {
        Verdict::Linearizable => {}
        Verdict::Violated(violation) => panic!("{violation}"),
        Verdict::Undecided { key } => {
            panic!("too many open calls on {} for a verdict", String::from_utf8_lossy(&key));
        }
    }
}
