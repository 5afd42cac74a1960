//! Three real agents that agree through a real etcd.

#[path = "../../../outlast-etcd/tests/servers/mod.rs"]
pub(super) mod servers;

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::Nodes;
use super::history::explain;
use crate::clients::Random;
use crate::stage::{Backend, PROBE, Stage, free_port, get, served, wait_until};
use servers::{ServerTls, Servers};

fn section(servers: &Servers, more: &str) -> String {
    format!("[consensus]\nkind = \"etcd\"\nendpoints = {:?}\n{more}", servers.endpoints())
}

fn three(name: &str, servers: &Servers) -> Nodes {
    let nodes = Nodes::start_through(name, &["a", "b", "c"], &section(servers, ""));
    nodes.leader();
    nodes
}

#[test]
fn through_etcd_what_was_written_anywhere_outlives_each_node_in_turn() {
    let servers = Servers::start("etcd-turns", 1, None);
    let mut nodes = three("etcd-turns", &servers);
    for (turn, node) in ["a", "b", "c"].iter().enumerate() {
        let leader = nodes.leader();
        let (key, value) = (format!("turn/{turn}"), format!("from {node}"));
        nodes.verb(node, &["kv", "put", &key, &value]);
        nodes.kill(leader);
        for other in nodes.others(leader) {
            // No leader is needed for that.
            assert_eq!(nodes.get(other, &key), value, "at {other} after {leader} died");
        }
        let next = nodes.leader();
        assert_ne!(next, leader);
        nodes.restart(leader);
        wait_until("it is back", || {
            nodes
                .agreement(leader)
                .is_some_and(|a| a["phase"] == "running" && !a["leader"].is_null())
        });
        assert_eq!(nodes.get(leader, &key), value, "at {leader} after it came back");
    }
    let said = nodes.verb("a", &["status"]);
    assert!(said.contains("leads, term"), "{said}");
    let leader = nodes.leader();
    let next = nodes.others(leader)[0];
    nodes.verb(leader, &["node", "lead", next]);
    wait_until("the next one leads", || nodes.leader() == next);
}

#[test]
fn through_etcd_one_wins_and_locks_end_with_their_holders() {
    let servers = Servers::start("etcd-one", 1, None);
    let nodes = three("etcd-one", &servers);
    nodes.verb("a", &["kv", "cas", "chief", "me", "--absent"]);
    let (obeyed, said) = nodes.stage("b").verb(&["kv", "cas", "chief", "you", "--absent"]);
    assert!(!obeyed && said.contains("refused"), "{said}");
    assert_eq!(nodes.get("c", "chief"), "me");
    let script = "echo token $OUTLAST_TOKEN";
    let lock = |node: &str| nodes.stage(node).lock(&["kv", "lock", "job", "--ttl", "2s"], script);
    let tokens = [lock("a"), lock("b"), lock("c")];
    assert!(tokens.is_sorted() && tokens[0] < tokens[2], "{tokens:?}");
    // Whose holder dies is handed on when its session is over: the leader sees to that.
    let data = nodes.stage("a").data();
    let mut holder = std::process::Command::new(env!("CARGO_BIN_EXE_outlast"))
        .args(["kv", "lock", "job", "--ttl", "1s", "--data-dir"])
        .arg(&data)
        .args(["--", "sh", "-c", "echo held; exec sleep 60"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let out = holder.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    assert_eq!(line.trim(), "held");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(lock("b") > tokens[2]);
    // Watching: what is there from an index on.
    nodes.verb("b", &["kv", "put", "seen/1", "x"]);
    let listed = nodes.verb("c", &["kv", "list", "seen/"]);
    assert!(listed.contains("seen/1"), "{listed}");
}

#[test]
fn through_etcd_nodes_come_and_go() {
    let servers = Servers::start("etcd-grow", 1, None);
    let mut nodes = Nodes::start_through("etcd-grow", &["a", "b", "c"], &section(&servers, ""));
    nodes.leader();
    // A node that the file of the others does not have.
    let text = std::fs::read_to_string(&nodes.stage("c").file).unwrap();
    let stage = Stage::new("etcd-grow-d");
    let port = free_port();
    let own = text.find("[consensus]").map(|at| text[at..].to_owned()).unwrap();
    stage.write(&format!("{own}[node.d]\naddress = \"127.0.0.4\"\nport = {port}\n"));
    nodes.agents.push(Some(stage.spawn_node("d")));
    nodes.stages.push(stage);
    nodes.names.push("d");
    wait_until("d waits", || {
        nodes.agreement("d").is_some_and(|a| {
            a["phase"] == "joining"
                && a["why"].as_str().is_some_and(|why| why.contains("node add d"))
        })
    });
    nodes.verb("a", &["node", "add", "d", "--address", &format!("127.0.0.4:{port}")]);
    wait_until("d takes part", || nodes.agreement("d").is_some_and(|a| a["phase"] == "running"));
    nodes.verb("d", &["kv", "put", "k", "v"]);
    assert_eq!(nodes.get("a", "k"), "v");
    let listed = nodes.verb("b", &["node", "list"]);
    assert!(
        listed.lines().any(|line| line.contains(" d ") && line.contains("learner")),
        "{listed}"
    );
    nodes.verb("b", &["node", "remove", "a"]);
    wait_until("a is out", || nodes.agreement("a").is_some_and(|a| a["phase"] == "joining"));
    wait_until("another leads", || {
        nodes.agreement("b").is_some_and(|a| a["leader"].as_str().is_some_and(|l| l != "a"))
    });
}

#[test]
fn through_etcd_nodes_agree_which_side_of_a_pair_serves() {
    let servers = Servers::start("etcd-pair", 1, None);
    let (mut primary, backup) = (Backend::start("primary"), Backend::start("backup"));
    let mut ports = Vec::new();
    let nodes = Nodes::start_each("etcd-pair", &["a", "b", "c"], |_node| {
        let (port, consensus) = (free_port(), section(&servers, ""));
        ports.push(port);
        format!(
            "{consensus}[service.pair]\nlisten = \"127.0.0.1:{port}\"\nprimary = \"{}\"\nbackup = \"{}\"\n{PROBE}\n",
            primary.url(),
            backup.url()
        )
    });
    nodes.leader();
    for &port in &ports {
        assert_eq!(served(port), "primary");
    }
    for node in &nodes.names {
        wait_until("a verdict on the backup", || {
            nodes.status(node).is_some_and(|status| {
                status["services"]["pair"]["backends"][1]["verdict"]["health"] == "up"
            })
        });
    }
    primary.stop();
    for &port in &ports {
        wait_until("the backup serves", || get(port, "/").is_ok_and(|(_, who)| who == "backup"));
    }
}

#[test]
fn without_a_majority_of_etcd_nodes_say_so_and_go_on_when_it_is_back() {
    let mut servers = Servers::start("etcd-majority", 3, None);
    let nodes = three("etcd-majority", &servers);
    nodes.verb("b", &["kv", "put", "k", "v"]);
    servers.kill(0);
    nodes.verb("a", &["kv", "put", "k", "w"]);
    servers.kill(1);
    for node in ["a", "b", "c"] {
        wait_until("no leader", || nodes.agreement(node).is_some_and(|a| a["leader"].is_null()));
    }
    let (obeyed, said) = nodes.stage("a").verb(&["kv", "put", "k", "x"]);
    assert!(!obeyed && said.contains("no majority of etcd"), "{said}");
    assert_eq!(nodes.verb("a", &["kv", "get", "k", "--local"]).trim_end(), "w");
    let said = nodes.verb("a", &["status"]);
    assert!(said.contains("no majority of etcd has answered"), "{said}");
    nodes.stage("a").event(0, "leader_lost", |_| true);
    servers.run(0);
    nodes.leader();
    nodes.verb("c", &["kv", "put", "k", "y"]);
    assert_eq!(nodes.get("a", "k"), "y");
}

#[test]
fn etcd_is_reached_with_certificates_and_not_without() {
    let dir = std::env::temp_dir().join(format!("outlast-etcd-certs-{}", std::process::id()));
    let tls = ServerTls::make(&dir);
    let other = ServerTls::make(&dir.join("other"));
    let servers = Servers::start("etcd-tls", 1, Some(&tls));
    let words = |ca: &Path, own: bool| {
        let own = match own {
            true => format!(", cert = {:?}, key = {:?}", tls.cert, tls.key),
            false => String::new(),
        };
        section(&servers, &format!("tls = {{ ca = {ca:?}{own} }}\n"))
    };
    let nodes = Nodes::start_through("etcd-tls", &["a", "b", "c"], &words(&tls.ca, true));
    nodes.leader();
    nodes.verb("a", &["kv", "put", "k", "v"]);
    assert_eq!(nodes.get("b", "k"), "v");
    for (ca, own, why) in [(&other.ca, true, "certificate"), (&tls.ca, false, "etcd at")] {
        let nodes = Nodes::start_through("etcd-tls-not", &["a", "b"], &words(ca, own));
        wait_until("it says why", || {
            nodes.agreement("a").is_some_and(|a| {
                a["phase"] == "joining" && a["why"].as_str().is_some_and(|w| w.contains(why))
            })
        });
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Kills and freezes agents and kills members of etcd, now and then a majority of either.
fn torment(
    nodes: &mut Nodes,
    servers: &mut Servers,
    random: &mut Random,
    until: Instant,
) -> String {
    let (mut kills, mut freezes, mut members) = (0, 0, 0);
    let pause = |millis: u64| {
        #[expect(clippy::disallowed_methods, reason = "between one fault and the next")]
        std::thread::sleep(Duration::from_millis(millis));
    };
    while Instant::now() < until {
        pause(100 + random.below(600));
        let count = 1 + u64::from(random.below(5) == 0);
        let first = random.below(3);
        let chosen: Vec<usize> = (first..first + count)
            .map(|at| usize::try_from(at % 3).expect("below three"))
            .collect();
        match random.below(3) {
            0 => {
                for &at in &chosen {
                    nodes.kill(nodes.names[at]);
                    kills += 1;
                }
                pause(random.below(700));
                for &at in &chosen {
                    nodes.restart(nodes.names[at]);
                }
            }
            1 => {
                for &at in &chosen {
                    nodes.signal(nodes.names[at], Signal::STOP);
                    freezes += 1;
                }
                pause(50 + random.below(2_500));
                for &at in &chosen {
                    nodes.signal(nodes.names[at], Signal::CONT);
                }
            }
            _ => {
                for &at in &chosen {
                    servers.kill(at);
                    members += 1;
                }
                pause(random.below(2_000));
                for &at in &chosen {
                    servers.run(at);
                }
                // A member takes a while to be one again; a second death meanwhile is another fault than these.
                pause(random.below(1_000));
            }
        }
    }
    format!("{kills} kills, {freezes} freezes, {members} deaths of members of etcd")
}

#[test]
fn one_order_explains_what_clients_saw_while_agents_and_members_of_etcd_died() {
    let mut servers = Servers::start("etcd-history", 3, None);
    let mut nodes = three("etcd-history", &servers);
    let fate = |nodes: &mut Nodes, until| torment(nodes, &mut servers, &mut Random(11), until);
    println!("{}", explain(&mut nodes, fate));
}
