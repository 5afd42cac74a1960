//! Two nodes and an address: with a witness never held twice; with `split_brain = "accept"` held by whoever is left; with
//! neither held by nobody, and that is said.

use std::time::Instant;

use serde_json::Value;

use super::seen_by;
use crate::{Lab, each_user, said, wait, wait_until};

const TWO: &str = r#"
[cluster]
name = "pair"
data_dir = "/var/lib/outlast-of-a-test"
face = "[::]:8900"
proxy_threads = 1
[node.a]
address = "10.0.0.1"
[node.b]
address = "10.0.0.2"
[address.edge]
ips = ["10.0.0.100/24", "fd00:5::100/64"]
interface = "eth0"
"#;

const BOTH: [&str; 2] = ["a", "b"];

fn accepting() -> String {
    format!("{TWO}split_brain = \"accept\"\n")
}

fn holds(lab: &Lab, node: &str) -> bool {
    seen_by(lab, node)["here"] == true
}

fn holders(lab: &Lab) -> Vec<&'static str> {
    BOTH.into_iter().filter(|node| holds(lab, node)).collect()
}

/// What a node says of what it does without agreement.
fn unagreed(lab: &Lab, node: &str) -> String {
    seen_by(lab, node)["unagreed"].as_str().unwrap_or_default().to_owned()
}

fn events(lab: &Lab, node: &str, name: &str) -> Vec<Value> {
    let script = "cat /var/lib/outlast-of-a-test/journal/*";
    let text = said(&lab.exec(node, &["sh", "-c", script]));
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["event"] == name).collect()
}

fn they_hear_each_other(lab: &Lab) {
    wait_until("they hear each other", || BOTH.iter().all(|node| unagreed(lab, node).is_empty()));
}

/// Its agent is gone, and nothing else.
fn kill_agent(lab: &Lab, node: &str) {
    let script = "for p in /proc/[0-9]*; do \
        tr '\\0' ' ' < $p/cmdline | grep -q 'outlast[ ]run ' && kill -9 ${p#/proc/}; done; true";
    assert!(lab.exec(node, &["sh", "-c", script]).status.success());
}

/// The one that holds it, once both know that they agree on that. Which one it is, a busy machine has a say in.
fn agreed(lab: &Lab) -> &'static str {
    wait("both say that one holds it", || {
        let seen = BOTH.map(|node| seen_by(lab, node));
        let [one] = <[&str; 1]>::try_from(
            BOTH.into_iter()
                .zip(&seen)
                .filter(|(_, seen)| seen["here"] == true)
                .map(|(node, _)| node)
                .collect::<Vec<_>>(),
        )
        .ok()?;
        seen.iter().all(|seen| seen["holder"] == one).then_some(one)
    })
}

fn other(node: &str) -> &'static str {
    if node == "a" { "b" } else { "a" }
}

fn reaches(lab: &Lab, from: &str) -> bool {
    lab.exec(from, &["ping", "-c", "1", "-W", "1", "10.0.0.100"]).status.success()
}

#[test]
fn two_nodes_that_accept_it_hold_an_address_whatever_happens_to_one() {
    each_user(|user| {
        let lab = Lab::up(user, &accepting());
        let one = agreed(&lab);
        they_hear_each_other(&lab);
        let next = other(one);
        let killed = Instant::now();
        lab.good(&["kill", one]);
        wait_until("the other one takes over", || holds(&lab, next));
        println!("power off at {one}: {next} holds it after {:?}", killed.elapsed());
        let words = format!("since {one} is not heard");
        wait_until("it says that", || unagreed(&lab, next).contains(&words));
        let took = events(&lab, next, "address_took_over");
        let text = took[0]["text"].as_str().unwrap();
        println!("{text}");
        for step in ["verify", "serve", "take", "announce", "tell"] {
            assert!(text.contains(step), "{text}");
        }
        lab.good(&["start", one]);
        agreed(&lab);
        wait_until("both reach it", || BOTH.iter().all(|node| reaches(&lab, node)));

        they_hear_each_other(&lab);
        let (one, killed) = (agreed(&lab), Instant::now());
        let next = other(one);
        kill_agent(&lab, one);
        wait_until("the other one takes over", || holds(&lab, next));
        println!("agent of {one} killed: {next} holds it after {:?}", killed.elapsed());
        lab.good(&["start", one]);
        agreed(&lab);

        they_hear_each_other(&lab);
        let one = agreed(&lab);
        lab.good(&["pause", one, "--for", "60s"]);
        wait_until("the other one takes over", || holds(&lab, other(one)));
        lab.good(&["resume", one]);
        agreed(&lab);
    });
}

#[test]
fn two_nodes_that_accept_it_both_hold_an_address_while_they_are_parted_and_one_does_afterwards() {
    each_user(|user| {
        let lab = Lab::up(user, &accepting());
        agreed(&lab);
        they_hear_each_other(&lab);
        lab.good(&["cut", "a", "--for", "60s"]);
        wait_until("both hold it", || holders(&lab) == BOTH);
        for node in BOTH {
            let other = other(node);
            let words = format!(
                "since {other} is not heard: if it lives and is only cut off, both hold it"
            );
            wait_until("it says so", || unagreed(&lab, node).contains(&words));
            let text = said(&lab.exec(node, &["outlast", "status"]));
            assert!(text.contains("split_brain"), "{text}");
        }
        let healed = Instant::now();
        lab.good(&["heal"]);
        let one = wait("one lets go", || <[&str; 1]>::try_from(holders(&lab)).ok());
        println!("healed: {one:?} holds it alone after {:?}", healed.elapsed());
        wait_until("all reach it", || BOTH.iter().all(|node| reaches(&lab, node)));
        println!("both reach it after {:?}", healed.elapsed());
        agreed(&lab);
        let yielded = BOTH.map(|node| events(&lab, node, "address_yielded").len());
        assert_ne!(yielded, [0, 0]);
    });
}

#[test]
fn of_two_nodes_of_which_one_hears_the_other_one_holds_an_address() {
    each_user(|user| {
        let lab = Lab::up(user, &accepting());
        let one = agreed(&lab);
        they_hear_each_other(&lab);
        // What it sends is lost: the other one takes over, and it hears that this one cannot know better.
        lab.good(&["cut", one, other(one), "--one-way", "--for", "60s"]);
        wait_until("the other one alone holds it", || holders(&lab) == [other(one)]);
        lab.good(&["heal"]);
        agreed(&lab);
    });
}

#[test]
fn a_pair_of_which_one_node_alone_votes_holds_an_address_without_that_node_too() {
    let slow = "heartbeat = { every = \"1s\", timeout = \"2s\" }\n";
    let file = format!("{}{slow}[consensus]\nvoters = [\"a\"]\n", accepting());
    each_user(|user| {
        let lab = Lab::up(user, &file);
        agreed(&lab);
        they_hear_each_other(&lab);
        lab.good(&["cut", "a", "--for", "60s"]);
        wait_until("both hold it", || holders(&lab) == BOTH);
        lab.good(&["heal"]);
        agreed(&lab);
        they_hear_each_other(&lab);
        let killed = Instant::now();
        lab.good(&["kill", "a"]);
        wait_until("b takes over", || holds(&lab, "b"));
        println!("power off at a, 1s and 2s: b holds it after {:?}", killed.elapsed());
        lab.good(&["start", "a"]);
        agreed(&lab);
    });
}

#[test]
fn a_node_that_starts_alone_waits_for_the_other_one_before_it_takes_an_address() {
    each_user(|user| {
        let lab = Lab::up(user, &accepting());
        agreed(&lab);
        they_hear_each_other(&lab);
        lab.good(&["kill", "a"]);
        lab.good(&["kill", "b"]);
        lab.good(&["start", "b"]);
        let words = "a has not been heard since this node started";
        wait_until("b says that it waits", || unagreed(&lab, "b").contains(words));
        assert!(!holds(&lab, "b"));
        wait_until("b takes it", || holds(&lab, "b"));
        lab.good(&["start", "a"]);
        agreed(&lab);
    });
}

#[test]
fn strangers_cannot_pass_for_the_other_node_of_a_pair() {
    each_user(|user| {
        let lab = Lab::up(user, &accepting());
        agreed(&lab);
        they_hear_each_other(&lab);
        // Not sealed, too long, and empty.
        let script = "for n in 1 2 3; do for s in 1 60 1400 1500; do \
            head -c $s /dev/urandom > /dev/udp/10.0.0.1/8901; done; done";
        assert!(lab.exec("b", &["bash", "-c", script]).status.success());
        wait_until("a has counted them", || {
            lab.good(&["logs", "a"]).contains("datagrams at the port for heartbeats do not count")
        });
        agreed(&lab);
        they_hear_each_other(&lab);
    });
}

#[test]
fn two_nodes_that_do_not_accept_it_leave_an_address_alone_and_say_what_to_write() {
    each_user(|user| {
        let lab = Lab::up(user, TWO);
        agreed(&lab);
        lab.good(&["kill", "a"]);
        let why = wait("b says why", || Some(unagreed(&lab, "b")).filter(|why| !why.is_empty()));
        assert!(why.contains("nobody takes it over"), "{why}");
        assert!(why.contains("split_brain = \"accept\"") && why.contains("third [node.NAME]"));
        let text = said(&lab.exec("b", &["outlast", "status"]));
        assert!(text.contains("nobody takes it over"), "{text}");
        lab.good(&["start", "a"]);
        wait_until("one of them holds it again", || holders(&lab).len() == 1);
    });
}

#[test]
fn two_nodes_with_a_witness_never_both_hold_an_address() {
    let file = TWO.replace("[address.edge]", "[node.w]\naddress = \"10.0.0.3\"\n[address.edge]");
    let file = format!("{file}nodes = [\"a\", \"b\"]\n");
    each_user(|user| {
        let lab = Lab::up(user, &file);
        agreed(&lab);
        let from_witness = |node: &'static str| {
            let url = "http://10.0.0.100:8900/v1/status";
            let output = lab.exec("w", &["curl", "-s", "-m", "1", url]);
            serde_json::from_slice::<Value>(&output.stdout)
                .is_ok_and(|status| status["node"] == node)
        };
        wait_until("the witness reaches it", || BOTH.into_iter().any(&from_witness));
        let faults = [["kill", "start"], ["pause", "resume"], ["cut", "heal"]];
        for [fault, end] in faults {
            let one = agreed(&lab);
            lab.good(&[fault, one, "--for", "60s"]);
            wait_until("the other one holds it", || from_witness(other(one)));
            // One that is cut off had let go before anybody else answered.
            assert!(fault != "cut" || !holds(&lab, one));
            let words = [end, one];
            lab.good(if end == "heal" { &words[..1] } else { &words });
        }
        agreed(&lab);
    });
}
