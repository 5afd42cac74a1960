//! Three real agents: they found a cluster, agree, outlive any one of them, and take back who was away.

mod apply;
mod etcd;
mod history;
mod pairs;
mod visitors;

use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;

use crate::stage::{Agent, Stage, free_port, wait, wait_until};

/// Nodes of one topology on one machine, each with a directory of its own.
struct Nodes {
    names: Vec<&'static str>,
    stages: Vec<Stage>,
    agents: Vec<Option<Agent>>,
    /// Where each listens for the others, at an address of its own.
    port: u16,
}

impl Nodes {
    /// `node` sections for all.
    fn start(name: &str, all: &[&'static str], voters: &[&str]) -> Nodes {
        let consensus = match voters {
            [] => String::new(),
            voters => format!("[consensus]\nvoters = {voters:?}\n"),
        };
        Nodes::start_each(name, all, |_| consensus.clone())
    }

    /// The same, with a section about how they agree.
    fn start_through(name: &str, all: &[&'static str], consensus: &str) -> Nodes {
        Nodes::start_each(name, all, |_| consensus.to_owned())
    }

    /// The same, with what each has for itself, which begins within `[cluster]`.
    fn start_each(name: &str, all: &[&'static str], mut own: impl FnMut(&str) -> String) -> Nodes {
        let port = free_port();
        let mut sections = String::new();
        for (at, node) in all.iter().enumerate() {
            sections +=
                &format!("[node.{node}]\naddress = \"127.0.0.{}\"\nport = {port}\n", at + 1);
        }
        let mut nodes = Nodes { names: all.to_vec(), stages: Vec::new(), agents: Vec::new(), port };
        for node in all {
            let stage = Stage::new(&format!("{name}-{node}"));
            stage.write(&(own(node) + &sections));
            nodes.agents.push(Some(stage.spawn_node(node)));
            nodes.stages.push(stage);
        }
        nodes
    }

    fn at(&self, node: &str) -> usize {
        self.names.iter().position(|name| *name == node).expect("one of ours")
    }

    fn stage(&self, node: &str) -> &Stage {
        &self.stages[self.at(node)]
    }

    fn kill(&mut self, node: &str) {
        let at = self.at(node);
        let agent = self.agents[at].take().expect("it runs");
        agent.signal(Signal::KILL);
        agent.end();
    }

    fn signal(&self, node: &str, signal: Signal) {
        self.agents[self.at(node)].as_ref().expect("it runs").signal(signal);
    }

    fn restart(&mut self, node: &str) {
        let at = self.at(node);
        self.agents[at] = Some(self.stages[at].spawn_node(self.names[at]));
    }

    fn status(&self, node: &str) -> Option<Value> {
        let answer = self.stage(node).status()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        serde_json::from_str(body).ok()
    }

    fn agreement(&self, node: &str) -> Option<Value> {
        Some(self.status(node)?["agreement"].clone())
    }

    fn running(&self) -> Vec<&'static str> {
        let runs = |name: &&str| self.agents[self.at(name)].is_some();
        self.names.iter().copied().filter(runs).collect()
    }

    /// The leader that all running nodes name.
    fn leader(&self) -> &'static str {
        wait("a leader that all name", || {
            let running = self.names.iter().filter(|name| self.agents[self.at(name)].is_some());
            let named: Option<Vec<String>> = running
                .map(|name| self.agreement(name)?["leader"].as_str().map(str::to_owned))
                .collect();
            let named = named?;
            let first = named.first()?;
            let same = named.iter().all(|name| name == first);
            let leader = self.names.iter().find(|name| *name == first)?;
            (same && self.agents[self.at(leader)].is_some()).then_some(*leader)
        })
    }

    fn others(&self, node: &str) -> Vec<&'static str> {
        self.names.iter().filter(|name| **name != node).copied().collect()
    }

    /// A verb at a node; fails unless it is obeyed.
    fn verb(&self, node: &str, words: &[&str]) -> String {
        let (obeyed, said) = self.stage(node).verb(words);
        assert!(obeyed, "{words:?} at {node}: {said}");
        said
    }

    fn get(&self, node: &str, key: &str) -> String {
        self.verb(node, &["kv", "get", key]).trim_end().to_owned()
    }
}

fn three(name: &str) -> Nodes {
    let nodes = Nodes::start(name, &["a", "b", "c"], &[]);
    nodes.leader();
    nodes
}

#[test]
fn what_was_written_anywhere_outlives_each_node_in_turn() {
    let mut nodes = three("turns");
    for (turn, node) in ["a", "b", "c", "a"].iter().enumerate() {
        let leader = nodes.leader();
        let (key, value) = (format!("turn/{turn}"), format!("from {node}"));
        nodes.verb(node, &["kv", "put", &key, &value]);
        nodes.kill(leader);
        for other in nodes.others(leader) {
            assert_eq!(nodes.get(other, &key), value, "at {other} after {leader} died");
        }
        nodes.restart(leader);
        wait_until("it is back", || {
            nodes
                .agreement(leader)
                .is_some_and(|a| a["phase"] == "running" && !a["leader"].is_null())
        });
        assert_eq!(nodes.get(leader, &key), value, "at {leader} after it came back");
    }
}

#[test]
fn without_a_majority_nothing_is_written_or_called_newest_and_old_values_can_be_read() {
    let mut nodes = three("minority");
    nodes.verb("b", &["kv", "put", "k", "v"]);
    assert_eq!(nodes.get("a", "k"), "v");
    nodes.kill("b");
    nodes.kill("c");
    wait_until("no leader", || nodes.agreement("a").is_some_and(|a| a["leader"].is_null()));
    let (obeyed, said) = nodes.stage("a").verb(&["kv", "put", "k", "w"]);
    assert!(!obeyed && said.contains("majority"), "{said}");
    assert_eq!(nodes.verb("a", &["kv", "get", "k", "--local"]).trim_end(), "v");
    let said = nodes.verb("a", &["status"]);
    assert!(said.contains("no leader has a majority"), "{said}");
    nodes.stage("a").event(0, "leader_lost", |_| true);
    nodes.restart("b");
    nodes.leader();
    assert_eq!(nodes.get("a", "k"), "v");
}

#[test]
fn all_at_once_can_die_and_come_back() {
    let mut nodes = three("all");
    nodes.verb("c", &["kv", "put", "k", "v"]);
    for node in ["a", "b", "c"] {
        nodes.kill(node);
    }
    for node in ["a", "b", "c"] {
        nodes.restart(node);
    }
    nodes.leader();
    assert_eq!(nodes.get("b", "k"), "v");
}

#[test]
fn compare_and_set_and_locks_let_one_win() {
    let nodes = three("one");
    nodes.verb("a", &["kv", "cas", "chief", "me", "--absent"]);
    let (obeyed, said) = nodes.stage("b").verb(&["kv", "cas", "chief", "you", "--absent"]);
    assert!(!obeyed && said.contains("refused"), "{said}");
    assert_eq!(nodes.get("c", "chief"), "me");
    let counter: PathBuf = nodes.stage("a").dir.join("counter");
    std::fs::write(&counter, "0").unwrap();
    let script = format!(
        "n=$(cat {0}); sleep 0.02; echo $((n + 1)) > {0}; echo token $OUTLAST_TOKEN",
        counter.display()
    );
    let tokens: Vec<u64> = std::thread::scope(|scope| {
        let runs: Vec<_> = ["a", "b", "c", "a", "b", "c"]
            .iter()
            .map(|node| {
                let (stage, script) = (nodes.stage(node), script.clone());
                scope.spawn(move || stage.lock(&["kv", "lock", "count", "--ttl", "2s"], &script))
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert_eq!(std::fs::read_to_string(&counter).unwrap().trim(), "6");
    let mut distinct = tokens.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), tokens.len(), "each holder has a token of its own: {tokens:?}");
}

#[test]
fn a_new_node_learns_then_votes_and_a_removed_one_is_gone() {
    let mut nodes = Nodes::start("grow", &["a", "b", "c", "d"], &["a", "b", "c"]);
    nodes.leader();
    let voters = |nodes: &Nodes, node: &str| -> Vec<String> {
        let agreement = nodes.agreement(node).unwrap_or_default();
        let names = agreement["voters"].as_array().cloned().unwrap_or_default();
        names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    wait_until("d takes part", || {
        nodes.agreement("d").is_some_and(|a| a["phase"] == "running" && !a["leader"].is_null())
    });
    nodes.verb("d", &["kv", "put", "k", "v"]);
    nodes.verb("a", &["node", "promote", "d"]);
    wait_until("d votes", || voters(&nodes, "d").contains(&"d".to_owned()));
    nodes.verb("b", &["node", "remove", "a"]);
    wait_until("a is out", || {
        let voters = voters(&nodes, "d");
        voters.len() == 3 && !voters.contains(&"a".to_owned())
    });
    nodes.kill("a");
    // Three voters: one may die.
    nodes.kill("b");
    wait_until("two of three go on", || nodes.stage("d").verb(&["kv", "get", "k"]).0);
    assert_eq!(nodes.get("d", "k"), "v");
}

#[test]
fn a_voter_that_lost_its_disk_is_refused_until_it_is_replaced() {
    let mut nodes = three("wiped");
    nodes.verb("a", &["kv", "put", "k", "v"]);
    nodes.kill("c");
    std::fs::remove_dir_all(nodes.stage("c").data().join("consensus")).unwrap();
    nodes.restart("c");
    wait_until("c is refused", || {
        nodes.agreement("c").is_some_and(|a| {
            a["phase"] == "joining"
                && a["why"].as_str().is_some_and(|w| w.contains("node replace c"))
        })
    });
    nodes.verb("a", &["node", "replace", "c"]);
    wait_until("c takes part again", || {
        nodes.agreement("c").is_some_and(|a| {
            let voters = a["voters"].as_array().map_or(0, Vec::len);
            a["phase"] == "running" && voters == 3 && !a["leader"].is_null()
        })
    });
    assert_eq!(nodes.get("c", "k"), "v");
}

#[test]
fn a_witness_votes_and_hands_the_lead_on() {
    let nodes = three("witness");
    let leader = nodes.leader();
    nodes.verb(leader, &["node", "promote", leader, "--witness"]);
    wait_until("a voter leads", || nodes.leader() != leader);
    let said = nodes.verb(leader, &["node", "list"]);
    assert!(said.contains("witness"), "{said}");
    let voter = nodes.leader();
    nodes.verb(voter, &["kv", "put", "k", "v"]);
    assert_eq!(nodes.get(leader, "k"), "v");
}

#[test]
fn the_lead_can_be_handed_over() {
    let nodes = three("hand");
    let leader = nodes.leader();
    let next = nodes.others(leader)[0];
    nodes.verb(leader, &["node", "lead", next]);
    wait_until("the next one leads", || nodes.leader() == next);
    nodes.verb(leader, &["kv", "put", "k", "v"]);
    assert_eq!(nodes.get(next, "k"), "v");
}
