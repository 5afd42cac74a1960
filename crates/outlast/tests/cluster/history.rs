//! Clients of real agents write down what they saw while agents are killed and frozen; one order must explain it all.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use outlast_core::linear::{Start, TRIES_MAX, Verdict, check};
use rustix::process::Signal;

use super::{Nodes, three};
use crate::clients::{Client, History, Random, held, read_all};
use crate::stage::{wait, wait_until};

const CLIENTS: u64 = 5;

/// How long agents are tormented; `OUTLAST_HISTORY_SECONDS` makes it longer.
fn storm() -> Duration {
    let asked = std::env::var("OUTLAST_HISTORY_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(asked.unwrap_or(12))
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
        let count = 1 + usize::from(random.below(5) == 0);
        let mut chosen = nodes.names.clone();
        chosen.rotate_left(random.place(3));
        chosen.truncate(count);
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
    let told = explain(&mut three("history"), |nodes, until| {
        let (kills, freezes) = torment(nodes, &mut Random(7), until);
        format!("{kills} kills, {freezes} freezes")
    });
    println!("{told}");
}

/// Lets clients ask while something is done to the nodes, and demands an order that explains all answers. What it was.
pub(super) fn explain(
    nodes: &mut Nodes,
    fate: impl FnOnce(&mut Nodes, Instant) -> String,
) -> String {
    let dirs: Vec<_> = nodes.stages.iter().map(crate::stage::Stage::data).collect();
    let history = History::new();
    let clients: Vec<_> =
        (0..CLIENTS).map(|number| Client::new(number, &history).live(dirs.clone())).collect();
    let told = fate(nodes, Instant::now() + storm());
    // A key that no client touches: each node brings it to the leader, and a majority to its disks.
    for node in &nodes.names {
        wait_until("all agree again", || nodes.stage(node).verb(&["kv", "put", "storm", "over"]).0);
    }
    history.end();
    for client in clients {
        client.join().expect("a client that finds a mistake says which");
    }
    let mut calls = history.take();
    let keys: BTreeSet<_> = calls.iter().map(|call| call.key.clone()).collect();
    let keys: Vec<_> = keys.into_iter().collect();
    calls.extend(wait("all agents answer", || read_all(&history, &dirs, &keys)));
    wait_until("all hold the same", || {
        let all: Vec<_> = dirs.iter().map(|dir| held(dir)).collect();
        all[0].is_some() && all.iter().all(|held| *held == all[0])
    });
    let (count, refused) = (calls.len(), history.unavailable());
    let unanswered = calls.iter().filter(|call| call.returned.is_none()).count();
    assert!(count > 200, "only {count} calls");
    match check(&calls, Start::Empty, TRIES_MAX) {
        Verdict::Linearizable => {
            format!("{count} calls, {unanswered} without an answer, {refused} refused, {told}")
        }
        Verdict::Violated(violation) => panic!("{violation}"),
        Verdict::Undecided { key } => {
            panic!("too many open calls on {} for a verdict", String::from_utf8_lossy(&key))
        }
    }
}
