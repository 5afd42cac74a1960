//! A topology for all nodes, or for none: whatever is in the way, whoever stops or dies meanwhile.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use super::Nodes;
use super::etcd::servers::Servers;
use crate::stage::{Stage, free_port, wait, wait_until};

/// The same file for all nodes of one machine: a directory of its own for each, and no face.
fn file(port: u16, rest: &str) -> String {
    let mut text =
        "[cluster]\nname = \"test\"\ndata_dir = \"data\"\nface = \"off\"\nproxy_threads = 1\n"
            .to_owned();
    for (at, node) in ["a", "b", "c"].iter().enumerate() {
        text += &format!("[node.{node}]\naddress = \"127.0.0.{}\"\nport = {port}\n", at + 1);
    }
    text + rest
}

/// A service that is only probed.
fn probed(name: &str) -> String {
    format!(
        "[service.{name}]\nbackends = [\"http://127.0.0.1:9\"]\nprobe = {{ http = \"/\", every = \"1s\", timeout = \"500ms\" }}\n"
    )
}

fn three(name: &str) -> (Nodes, u16) {
    three_with(name, "")
}

fn three_with(name: &str, rest: &str) -> (Nodes, u16) {
    let (port, names) = (free_port(), ["a", "b", "c"]);
    let mut nodes = Nodes { names: names.to_vec(), stages: Vec::new(), agents: Vec::new(), port };
    for node in names {
        let stage = Stage::new(&format!("{name}-{node}"));
        std::fs::write(&stage.file, file(port, rest)).expect("the directory is ours");
        nodes.agents.push(Some(stage.spawn_node(node)));
        nodes.stages.push(stage);
    }
    nodes.leader();
    (nodes, port)
}

impl Nodes {
    /// Writes a file beside that of a node; the words of `outlast apply` for it.
    fn changed(&self, node: &str, text: &str) -> String {
        let path = self.stage(node).dir.join("new.toml");
        std::fs::write(&path, text).expect("the directory is ours");
        path.display().to_string()
    }

    /// What becomes of it, however busy the machine is.
    fn apply(&self, node: &str, text: &str, words: &[&str]) -> (bool, String) {
        let path = self.changed(node, text);
        let patience: &[&str] =
            if words.contains(&"--timeout") { &[] } else { &["--timeout", "60s"] };
        let words = [words, patience].concat();
        self.stage(node).verb(&[&["apply", path.as_str()], words.as_slice()].concat())
    }

    /// `outlast apply` that goes on beside the test.
    fn applying(&self, node: &str, text: &str, words: &[&str]) -> Child {
        let path = self.changed(node, text);
        Command::new(env!("CARGO_BIN_EXE_outlast"))
            .args(["apply", &path, "--yes", "--data-dir"])
            .arg(self.stage(node).data())
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cargo has built it")
    }

    /// The services that a node runs.
    fn services(&self, node: &str) -> Option<Vec<String>> {
        let status = self.status(node)?;
        Some(status["services"].as_object()?.keys().cloned().collect())
    }

    fn runs(&self, node: &str, services: &[&str]) {
        wait_until(&format!("{node} runs {services:?}"), || {
            self.services(node).is_some_and(|running| running == services)
        });
    }

    /// What was written down as agreed.
    fn taken(&self, node: &str) -> Option<Value> {
        let path = self.stage(node).data().join("consensus/topology.json");
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// How many events of this name a node has written down.
    fn count(&self, node: &str, event: &str) -> usize {
        self.stage(node).journal().iter().filter(|e| e["event"] == event).count()
    }

    /// No node has taken anything.
    fn nothing_has_changed(&self) {
        for node in &self.names {
            assert_eq!(self.taken(node), None, "{node}");
            assert_eq!(self.services(node).unwrap_or_default(), [""; 0], "{node}");
        }
    }
}

fn said(child: Child) -> (bool, String) {
    let output = child.wait_with_output().expect("it is ours");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_change_takes_effect_on_all_nodes_and_stays_over_a_restart() {
    let (mut nodes, port) = three("apply");
    let new = file(port, &probed("api"));
    // Looked at first: nothing happens, with or without a terminal.
    let (obeyed, text) = nodes.apply("b", &new, &["--dry-run"]);
    assert!(
        obeyed && text.contains("+ service.api is new") && text.contains("nothing was proposed"),
        "{text}"
    );
    let (obeyed, text) = nodes.apply("b", &new, &[]);
    assert!(!obeyed && text.contains("add --yes"), "{text}");
    nodes.nothing_has_changed();
    let (obeyed, text) = nodes.apply("b", &new, &["--yes"]);
    assert!(obeyed && text.contains("proposed as version 1"), "{text}");
    for node in ["a", "b", "c"] {
        assert!(text.contains(&format!("  {node}  yes\n")), "{text}");
        assert!(text.contains(&format!("  {node}  runs it\n")), "{text}");
        nodes.runs(node, &["api"]);
        assert_eq!(nodes.taken(node).unwrap()["version"], 1);
        nodes.stage(node).event(0, "topology_proposed", |e| e["by"] == "b" && e["version"] == 1);
        nodes.stage(node).event(0, "topology_in_force", |e| e["version"] == 1);
        // The file of each node is as it was, and differs now.
        assert_eq!(std::fs::read_to_string(&nodes.stage(node).file).unwrap(), file(port, ""));
        nodes.stage(node).event(0, "file_differs", |e| e["version"] == 1);
        let (obeyed, text) = nodes.stage(node).verb(&["reload"]);
        assert!(!obeyed && text.contains("outlast apply"), "{text}");
    }
    let (obeyed, text) = nodes.apply("c", &new, &["--yes"]);
    assert!(obeyed && text.contains("nothing to change"), "{text}");
    let (obeyed, text) =
        nodes.apply("c", &file(port, &probed("shop")), &["--yes", "--format", "json"]);
    let json: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    assert!(obeyed && json["outcome"] == "in_force" && json["version"] == 2, "{text}");
    assert_eq!(json["difference"][0]["part"], "service.api");
    assert_eq!(json["nodes"]["a"]["vote"], "yes");
    for node in ["a", "b", "c"] {
        nodes.runs(node, &["shop"]);
    }
    nodes.kill("a");
    nodes.restart("a");
    nodes.runs("a", &["shop"]);
    wait_until("it tells of it", || {
        nodes.agreement("a").is_some_and(|a| {
            a["topology"]["nodes"]["a"]["version"] == 2 && a["topology"]["version"] == 2
        })
    });
    let text = nodes.verb("a", &["status"]);
    assert!(text.contains("version 2 is in force") && text.contains("outlast apply"), "{text}");
    // A file with mistakes keeps nobody from going on with what is agreed.
    nodes.kill("a");
    let broken = file(port, "[service.web]\nlisten = \"nowhere\"\n[");
    std::fs::write(&nodes.stage("a").file, broken).unwrap();
    nodes.restart("a");
    nodes.runs("a", &["shop"]);
    nodes.stage("a").event(0, "file_differs", |e| {
        e["reason"].as_str().is_some_and(|reason| reason.contains("has mistakes"))
    });
    // As large as it may be.
    let mut last = file(port, &probed("last"));
    last += &"#".repeat((256 << 10) - last.len());
    let (obeyed, text) = nodes.apply("a", &(last.clone() + "#"), &["--yes"]);
    assert!(!obeyed && text.contains("262144 at most"), "{text}");
    let (obeyed, text) = nodes.apply("a", &last, &["--yes"]);
    assert!(obeyed, "{text}");
    nodes.runs("c", &["last"]);
    // A new binary is tried with what is agreed, and goes on with it.
    let after = nodes.stage("a").journal().len();
    nodes.verb("a", &["upgrade"]);
    nodes.stage("a").event(after, "agent_started", |_| true);
    nodes.runs("a", &["last"]);
    // What was read again from the log is no news.
    assert_eq!(nodes.count("a", "topology_in_force"), 3);
}

#[test]
fn one_no_stops_it_everywhere_and_every_reason_is_shown() {
    let (nodes, port) = three("no");
    // On one machine only one node can open it.
    let listen = free_port();
    let service = format!("{}listen = \"127.0.0.1:{listen}\"\n", probed("web"));
    let (obeyed, text) = nodes.apply("a", &file(port, &service), &["--yes"]);
    assert!(!obeyed && text.contains("nothing has changed anywhere"), "{text}");
    assert_eq!(text.matches("  no: listen on").count(), 2, "{text}");
    assert!(text.contains("in use") && text.contains("end what uses it"), "{text}");
    nodes.nothing_has_changed();
    wait_until("the listener is let go", || TcpStream::connect(("127.0.0.1", listen)).is_err());
    for node in ["a", "b", "c"] {
        nodes.stage(node).event(0, "topology_given_up", |e| e["version"] == 1);
        nodes.stage(node).event(0, "topology_opposed", |e| e["version"] == 1);
    }
    // What cannot change while agents run.
    let changed = |from: &str, to: &str| {
        let text = file(port, &probed("api"));
        assert!(text.contains(from));
        text.replace(from, to)
    };
    for (from, to, why) in [
        ("name = \"test\"", "name = \"toast\"", "the cluster is called `test`"),
        ("data_dir = \"data\"", "data_dir = \"other\"", "`data_dir` of [cluster]"),
        ("address = \"127.0.0.2\"", "address = \"127.0.0.9\"", "outlast node remove b"),
        ("[node.c]", "[node.d]", "outlast node remove c"),
    ] {
        let (obeyed, text) = nodes.apply("a", &changed(from, to), &["--yes"]);
        assert!(!obeyed && text.contains(why), "{to}: {text}");
    }
    nodes.nothing_has_changed();
    // After a no, the next one is free.
    let taken = TcpListener::bind(("127.0.0.1", listen));
    assert!(taken.is_ok(), "nobody holds it");
    let (obeyed, text) = nodes.apply("c", &file(port, &probed("api")), &["--yes"]);
    assert!(obeyed, "{text}");
}

#[test]
fn a_node_that_does_not_answer_stops_it_in_time() {
    let (nodes, port) = three("silent");
    let leader = nodes.leader();
    let silent = nodes.others(leader)[0];
    nodes.signal(silent, Signal::STOP);
    let (obeyed, text) =
        nodes.apply(leader, &file(port, &probed("api")), &["--yes", "--timeout", "2s"]);
    assert!(!obeyed && text.contains(&format!("no answer from {silent} within 2s")), "{text}");
    nodes.signal(silent, Signal::CONT);
    nodes.stage(silent).event(0, "topology_given_up", |_| true);
    nodes.nothing_has_changed();
}

#[test]
fn of_two_at_once_one_is_refused() {
    let (nodes, port) = three("at-once");
    let leader = nodes.leader();
    let silent = nodes.others(leader)[0];
    nodes.signal(silent, Signal::STOP);
    let first = nodes.applying(leader, &file(port, &probed("one")), &["--timeout", "60s"]);
    nodes.stage(leader).event(0, "topology_proposed", |_| true);
    let other = nodes.others(leader)[1];
    let (obeyed, text) = nodes.apply(other, &file(port, &probed("two")), &["--yes"]);
    assert!(!obeyed && text.contains("is being voted on"), "{text}");
    assert!(text.contains(&format!("proposed on node {leader}")), "{text}");
    nodes.signal(silent, Signal::CONT);
    let (obeyed, text) = said(first);
    assert!(obeyed, "{text}");
    for node in ["a", "b", "c"] {
        nodes.runs(node, &["one"]);
    }
}

#[test]
fn a_proposal_whose_proposer_died_is_given_up_by_the_leader() {
    let (mut nodes, port) = three("orphan");
    let leader = nodes.leader();
    let (proposer, silent) = (nodes.others(leader)[0], nodes.others(leader)[1]);
    nodes.signal(silent, Signal::STOP);
    let mut apply = nodes.applying(proposer, &file(port, &probed("api")), &["--timeout", "3s"]);
    nodes.stage(leader).event(0, "topology_proposed", |_| true);
    // Whoever waits for it dies, and its whole node with it.
    apply.kill().unwrap();
    apply.wait().unwrap();
    nodes.kill(proposer);
    // It may have voted before. Back again, it makes a majority, and one node is still silent.
    nodes.restart(proposer);
    nodes.stage(leader).event(0, "topology_given_up", |e| e["version"] == 1);
    nodes.signal(silent, Signal::CONT);
    nodes.leader();
    wait_until("nobody votes any more", || {
        nodes.agreement(proposer).is_some_and(|a| a["topology"]["proposal"].is_null())
    });
    nodes.nothing_has_changed();
}

#[test]
fn a_leader_that_dies_before_the_end_leaves_one_end_for_all_and_takes_it_when_it_is_back() {
    let (mut nodes, port) = three("heir");
    let leader = nodes.leader();
    let (proposer, silent) = (nodes.others(leader)[0], nodes.others(leader)[1]);
    nodes.signal(silent, Signal::STOP);
    let apply = nodes.applying(proposer, &file(port, &probed("api")), &["--timeout", "60s"]);
    wait("two have said yes", || {
        let agreement = nodes.agreement(proposer)?;
        let votes = agreement["topology"]["proposal"]["votes"].as_object()?;
        (votes.len() == 2).then_some(())
    });
    nodes.kill(leader);
    nodes.signal(silent, Signal::CONT);
    // All three have said yes: whoever leads now brings it into force.
    let (obeyed, text) = said(apply);
    assert!(obeyed && text.contains("version 1 is in force"), "{text}");
    assert!(text.contains(&format!("  {leader}  ")) && text.contains("when it is back"), "{text}");
    nodes.runs(proposer, &["api"]);
    nodes.runs(silent, &["api"]);
    nodes.restart(leader);
    nodes.runs(leader, &["api"]);
    assert_eq!(nodes.taken(leader).unwrap()["version"], 1);
}

#[test]
fn every_mistake_of_a_file_is_told_and_nothing_is_proposed() {
    let (nodes, port) = three("bad");
    let bad = file(port, "[service.web]\nlisten = \"nowhere\"\nbakends = []\n");
    let (obeyed, text) = nodes.apply("a", &bad, &["--yes"]);
    assert!(!obeyed && text.contains("nowhere") && text.contains("bakends"), "{text}");
    assert_eq!(nodes.count("a", "topology_proposed"), 0);
    nodes.nothing_has_changed();
}

#[test]
fn a_new_node_is_linked_to_and_takes_what_is_in_force_and_a_removed_one_is_left() {
    let (mut nodes, port) = three("enlarge");
    let (obeyed, text) = nodes.apply("a", &file(port, &probed("old")), &["--yes"]);
    assert!(obeyed, "{text}");
    let d = format!("[node.d]\naddress = \"127.0.0.4\"\nport = {port}\n");
    let four = file(port, &(d + &probed("api")));
    let (obeyed, text) = nodes.apply("a", &four, &["--yes"]);
    assert!(obeyed && text.contains("let it in with `outlast node add d`"), "{text}");
    let stage = Stage::new("enlarge-d");
    // Its file is an older one.
    std::fs::write(&stage.file, four.replace("service.api", "service.other")).unwrap();
    nodes.agents.push(Some(stage.spawn_node("d")));
    nodes.stages.push(stage);
    nodes.names.push("d");
    wait_until("d waits to be let in", || {
        nodes.agreement("d").is_some_and(|a| {
            a["why"].as_str().is_some_and(|why| why.contains("outlast node add d"))
        })
    });
    nodes.verb("b", &["node", "add", "d"]);
    nodes.runs("d", &["api"]);
    assert_eq!(nodes.taken("d").unwrap()["version"], 2);
    // From now on it votes like all others.
    let (obeyed, text) = nodes.apply("d", &four.replace("service.api", "service.more"), &["--yes"]);
    assert!(obeyed && text.contains("  d  yes") && text.contains("  d  runs it"), "{text}");
    // Without `c` in the file, everybody refuses; once it is removed, nobody does.
    let without = four.replace("[node.c]\naddress = \"127.0.0.3\"", "");
    let without = without.replacen(&format!("\nport = {port}\n[node.d]"), "\n[node.d]", 1);
    let (obeyed, text) = nodes.apply("a", &without, &["--yes"]);
    assert!(!obeyed && text.contains("outlast node remove c"), "{text}");
    nodes.verb("a", &["node", "remove", "c"]);
    let (obeyed, text) = nodes.apply("a", &without, &["--yes"]);
    assert!(obeyed && !text.contains("  c  "), "{text}");
    wait_until("c is left", || nodes.agreement("a").is_some_and(|a| a["peers"].get("c").is_none()));
}

#[test]
fn a_node_without_its_own_copy_takes_it_from_a_snapshot() {
    let (mut nodes, port) = three("snap");
    let (obeyed, text) = nodes.apply("a", &file(port, &probed("api")), &["--yes"]);
    assert!(obeyed, "{text}");
    nodes.kill("c");
    // Its disk is lost, its file is the one from before; whoever replaces it gets a fresh id.
    std::fs::remove_dir_all(nodes.stage("c").data().join("consensus")).unwrap();
    nodes.restart("c");
    wait_until("c is refused", || {
        nodes
            .agreement("c")
            .is_some_and(|a| a["why"].as_str().is_some_and(|why| why.contains("node replace c")))
    });
    assert_eq!(nodes.services("c").unwrap(), [""; 0], "it runs its own file until it has a place");
    nodes.verb("a", &["node", "replace", "c"]);
    nodes.runs("c", &["api"]);
    nodes.stage("c").event(0, "topology_in_force", |_| true);
}

#[test]
fn a_new_agreement_counts_from_one_and_its_first_version_is_taken_all_the_same() {
    let (mut nodes, port) = three("anew");
    for service in ["one", "two"] {
        let (obeyed, text) = nodes.apply("a", &file(port, &probed(service)), &["--yes"]);
        assert!(obeyed, "{text}");
    }
    nodes.runs("b", &["two"]);
    nodes.runs("c", &["two"]);
    for node in ["a", "b", "c"] {
        nodes.kill(node);
        // All logs are gone; what was taken last stays.
        let consensus = nodes.stage(node).data().join("consensus");
        let kept = std::fs::read(consensus.join("topology.json")).unwrap();
        std::fs::remove_dir_all(&consensus).unwrap();
        std::fs::create_dir(&consensus).unwrap();
        std::fs::write(consensus.join("topology.json"), kept).unwrap();
    }
    for node in ["a", "b", "c"] {
        nodes.restart(node);
    }
    nodes.leader();
    for node in ["a", "b", "c"] {
        nodes.runs(node, &["two"]);
    }
    let text = nodes.verb("a", &["status"]);
    assert!(text.contains("none is in force") && text.contains("version 2"), "{text}");
    let (obeyed, text) = nodes.apply("b", &file(port, &probed("three")), &["--yes"]);
    assert!(obeyed && text.contains("version 1 is in force"), "{text}");
    for node in ["a", "b", "c"] {
        assert!(text.contains(&format!("  {node}  runs it\n")), "{text}");
        assert_eq!(nodes.services(node).unwrap(), ["three"], "{node} runs what it says it runs");
        assert_eq!(nodes.taken(node).unwrap()["version"], 1);
    }
}

#[test]
fn an_etcd_that_has_moved_is_reached_as_the_files_say_and_then_as_all_agree() {
    let mut servers = Servers::start("etcd-moved", 3, None);
    let endpoints = servers.endpoints();
    let through = |endpoints: &[String], service: &str| {
        let consensus = format!("[consensus]\nkind = \"etcd\"\nendpoints = {endpoints:?}\n");
        consensus + &probed(service)
    };
    let (mut nodes, port) = three_with("etcd-moved", &through(&endpoints[..1], "one"));
    let two = file(port, &through(&endpoints[..1], "two"));
    let (obeyed, text) = nodes.apply("a", &two, &["--yes"]);
    assert!(obeyed && !text.contains("note:"), "{text}");
    // The only member that is agreed on is gone for good.
    servers.kill(0);
    let three = file(port, &through(&endpoints[1..], "three"));
    for node in ["a", "b", "c"] {
        nodes.kill(node);
        std::fs::write(&nodes.stage(node).file, &three).unwrap();
        nodes.restart(node);
    }
    nodes.leader();
    nodes.runs("b", &["two"]);
    let (obeyed, text) = nodes.apply("b", &three, &["--yes"]);
    assert!(obeyed && text.contains("at the next start of each agent"), "{text}");
    for node in ["a", "b", "c"] {
        assert!(text.contains(&format!("  {node}  runs it\n")), "{text}");
        assert_eq!(nodes.services(node).unwrap(), ["three"], "{node} runs what it says it runs");
    }
}

#[test]
fn who_asked_can_take_it_back() {
    let (nodes, port) = three("back");
    let leader = nodes.leader();
    nodes.signal(nodes.others(leader)[0], Signal::STOP);
    let other = nodes.others(leader)[1];
    let apply = nodes.applying(other, &file(port, &probed("api")), &["--timeout", "60s"]);
    wait("its own vote", || {
        let agreement = nodes.agreement(other)?;
        let votes = agreement["topology"]["proposal"]["votes"].as_object()?;
        (votes.len() == 2).then_some(())
    });
    crate::stage::kill(i32::try_from(apply.id()).unwrap(), Signal::INT);
    let (obeyed, text) = said(apply);
    assert!(!obeyed && text.contains(&format!("taken back on node {other}")), "{text}");
    nodes.stage(leader).event(0, "topology_given_up", |_| true);
    nodes.signal(nodes.others(leader)[0], Signal::CONT);
    nodes.nothing_has_changed();
}

#[test]
fn what_cannot_be_taken_is_told_and_tried_again() {
    let (nodes, port) = three("trouble");
    // After its yes, the disk of one node takes nothing any more.
    let way = nodes.stage("c").data().join("consensus/topology.json.new");
    std::fs::create_dir(&way).unwrap();
    let apply = nodes.applying("a", &file(port, &probed("api")), &["--timeout", "60s"]);
    nodes.stage("c").event(0, "topology_not_taken", |e| e["version"] == 1);
    nodes.runs("a", &["api"]);
    wait_until("everybody knows", || {
        let (_, text) = nodes.stage("b").verb(&["status"]);
        text.contains("c cannot run version 1: write") && text.contains("c has not said")
    });
    assert_eq!(nodes.services("c").unwrap(), [""; 0], "it runs what it ran");
    std::fs::remove_dir(&way).unwrap();
    nodes.runs("c", &["api"]);
    let (obeyed, text) = said(apply);
    assert!(obeyed && text.contains("  c  "), "{text}");
    wait_until("nobody is in trouble", || {
        nodes.agreement("b").is_some_and(|a| {
            let c = &a["topology"]["nodes"]["c"];
            c["version"] == 1 && c["trouble"].is_null()
        })
    });
}
