//! Which side of a pair serves is agreed on: every node routes to the same one, whoever leads, and what one node alone
//! sees moves nothing.

use rustix::process::Signal;
use serde_json::Value;

use super::Nodes;
use crate::stage::{Backend, PROBE, free_port, get, only_at, served, wait_until};

struct Pair {
    nodes: Nodes,
    ports: Vec<u16>,
    primary: Backend,
    _backup: Backend,
}

impl Pair {
    fn start(name: &str, rest: &str) -> Pair {
        let (primary, backup) = (Backend::start("primary"), Backend::start("backup"));
        let mut ports = Vec::new();
        let nodes = Nodes::start_each(name, &["a", "b", "c"], |_node| {
            let port = free_port();
            ports.push(port);
            format!(
                "[service.pair]\nlisten = \"127.0.0.1:{port}\"\nprimary = \"{}\"\nbackup = \"{}\"\n{rest}\n{PROBE}\n",
                primary.url(),
                backup.url()
            )
        });
        nodes.leader();
        for &port in &ports {
            assert_eq!(served(port), "primary");
        }
        let pair = Pair { nodes, ports, primary, _backup: backup };
        pair.all_say("up");
        pair
    }

    fn service(&self, node: &str) -> Value {
        self.nodes.status(node).map(|status| status["services"]["pair"].clone()).unwrap_or_default()
    }

    /// Waits until every node's verdict on the backup is this.
    fn all_say(&self, verdict: &str) {
        for node in &self.nodes.names {
            wait_until("a verdict on the backup", || {
                self.service(node)["backends"][1]["verdict"]["health"] == verdict
            });
        }
    }

    /// Waits until every running node routes to this side, under one epoch.
    fn everybody_routes_to(&self, side: &str) -> u64 {
        let running = self.nodes.running();
        let mut epoch = 0;
        wait_until("one side everywhere", || {
            let active: Vec<Value> =
                running.iter().map(|node| self.service(node)["active"].clone()).collect();
            epoch = active[0]["epoch"].as_u64().unwrap_or_default();
            let same = active
                .iter()
                .all(|a| a["side"] == side && a["epoch"] == epoch && a["moving"] == false);
            same && epoch > 0
        });
        for node in running {
            only_at(self.ports[self.nodes.at(node)], side);
        }
        epoch
    }
}

#[test]
fn every_node_routes_to_the_side_that_all_agreed_on() {
    let mut pair = Pair::start("sides", "failback = { after = \"300ms\" }");
    let first = pair.everybody_routes_to("primary");
    let (swapped, file) = (pair.nodes.stage("a"), &pair.nodes.stage("a").file);
    let text = std::fs::read_to_string(file).unwrap();
    let other = text.replace("primary = ", "was = ").replace("backup = ", "primary = ");
    std::fs::write(file, other.replace("was = ", "backup = ")).unwrap();
    let (obeyed, said) = swapped.verb(&["reload"]);
    assert!(!obeyed && said.contains("give the changed pair another name"), "{said}");
    std::fs::write(file, text).unwrap();
    pair.primary.stop();
    let second = pair.everybody_routes_to("backup");
    assert!(first < second, "{first} {second}");
    let leader = pair.nodes.leader();
    pair.nodes.stage(leader).event(0, "failover_finished", |e| e["to"] == "backup");
    // Who serves outlives whoever decided it.
    pair.nodes.kill(leader);
    assert_eq!(pair.everybody_routes_to("backup"), second);
    pair.primary.restart();
    let third = pair.everybody_routes_to("primary");
    assert!(second < third, "{second} {third}");
    pair.nodes.restart(leader);
    assert_eq!(pair.everybody_routes_to("primary"), third);
}

#[test]
fn a_node_that_is_frozen_does_not_hold_up_a_failover_for_ever() {
    let mut pair = Pair::start("frozen", "failback = \"manual\"");
    let leader = pair.nodes.leader();
    let other = pair.nodes.others(leader)[0];
    pair.nodes.signal(other, Signal::STOP);
    pair.primary.stop();
    wait_until("the leader's node routes to the backup", || {
        let active = &pair.service(leader)["active"];
        active["side"] == "backup" && active["moving"] == false
    });
    pair.nodes.signal(other, Signal::CONT);
    let epoch = pair.everybody_routes_to("backup");
    // Any node can be asked; the leader does it.
    pair.primary.restart();
    let said = pair.nodes.verb(other, &["failback", "pair"]);
    assert!(said.contains("returns to its primary"), "{said}");
    assert!(epoch < pair.everybody_routes_to("primary"));
}

#[test]
fn a_cold_backup_is_started_on_its_own_node_and_serves_everywhere() {
    let (mut primary, backup) = (Backend::start("primary"), Backend::start("backup"));
    backup.be_healthy(false);
    let mut ports = Vec::new();
    // The backup's address is that of node a, and of no other.
    let nodes = Nodes::start_each("cold", &["a", "b", "c"], |_node| {
        let port = free_port();
        ports.push(port);
        format!(
            "[service.pair]\nlisten = \"127.0.0.1:{port}\"\nprimary = \"{}\"\nbackup = \"{}\"\n\
             standby = \"cold\"\nstart = [\"sh\", \"-c\", \"echo $OUTLAST_EPOCH\"]\n\
             failback = \"manual\"\n{PROBE}\n",
            primary.url(),
            backup.url()
        )
    });
    nodes.leader();
    for &port in &ports {
        assert_eq!(served(port), "primary");
    }
    let others = nodes.others("a");
    if !others.contains(&nodes.leader()) {
        nodes.verb("a", &["node", "lead", others[0]]);
        wait_until("another node leads", || nodes.leader() != "a");
    }
    let log = nodes.stage("a").data().join("standby-pair.log");
    primary.stop();
    wait_until("the start command has run at the backup's node", || {
        std::fs::read_to_string(&log).is_ok_and(|text| !text.trim().is_empty())
    });
    assert!(!nodes.stage(others[0]).data().join("standby-pair.log").exists());
    backup.be_healthy(true);
    for &port in &ports {
        only_at(port, "backup");
    }
}

#[test]
fn without_a_majority_a_pair_is_not_routed_to_and_other_services_are() {
    let backend = Backend::start("web");
    let (primary, backup) = (Backend::start("primary"), Backend::start("backup"));
    let mut ports = Vec::new();
    let mut nodes = Nodes::start_each("lost", &["a", "b", "c"], |_node| {
        let (pair, web) = (free_port(), free_port());
        ports.push((pair, web));
        format!(
            "[service.pair]\nlisten = \"127.0.0.1:{pair}\"\nprimary = \"{}\"\nbackup = \"{}\"\n{PROBE}\n\
             [service.web]\nlisten = \"127.0.0.1:{web}\"\nbackends = [\"{}\"]\n{PROBE}\n",
            primary.url(),
            backup.url(),
            backend.url()
        )
    });
    nodes.leader();
    let (pair, web) = ports[nodes.at("a")];
    assert_eq!((served(pair), served(web)), ("primary".to_owned(), "web".to_owned()));
    nodes.kill("b");
    nodes.kill("c");
    wait_until("the pair is not routed to", || {
        get(pair, "/").is_ok_and(|(status, _)| status == 503)
    });
    assert_eq!(get(web, "/").unwrap(), (200, "web".to_owned()));
    wait_until("it says so", || {
        let said = nodes.verb("a", &["status"]);
        said.contains("lease is over") && said.contains("said nothing for")
    });
    nodes.restart("b");
    assert_eq!(served(pair), "primary");
}
