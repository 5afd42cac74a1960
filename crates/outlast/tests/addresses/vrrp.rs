//! Addresses of the mode `vrrp`, on real machines of a lab: nobody is asked who has them.

use serde_json::Value;

use super::{answers, answers_from};
use crate::{Lab, each_user, one_user, wait, wait_until};

/// Two that may have the address, and one that asks for it.
pub(super) const FILE: &str = r#"
[cluster]
name = "routers"
data_dir = "/var/lib/outlast-of-a-test"
face = "[::]:8900"
proxy_threads = 1
[node.a]
address = "10.0.0.1"
[node.b]
address = "10.0.0.2"
[node.client]
address = "10.0.0.4"
[address.edge]
ip = "10.0.0.100/24"
interface = "eth0"
nodes = ["a", "b"]
mode = "vrrp"
vrrp_id = 51
advert = "500ms"
preempt = true
preempt_delay = "1s"
"#;

/// RFC 9568 6.1, with the priority 140 of the second of two nodes, in seconds.
const SKEW: f64 = (256.0 - 140.0) / 256.0 * 0.5;
const DOWN: f64 = 3.0 * 0.5 + SKEW;
/// How much later everything may be on a machine with other things to do.
const LATE: f64 = 0.7;

/// What a node says of an address.
fn seen_by(lab: &Lab, node: &str, address: &str) -> Value {
    let output = lab.exec(node, &["outlast", "status", "--format", "json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    status["addresses"][address].clone()
}

/// What a node has written down of an address, the last one of this kind.
fn last_event(lab: &Lab, node: &str, what: &str) -> Value {
    let events = ["outlast", "events", "--format", "json", "--last", "100"];
    let output = lab.exec(node, &events);
    let text = String::from_utf8(output.stdout).unwrap();
    let mut events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.rfind(|event| event["event"] == what).unwrap_or_default()
}

fn moment(event: &Value) -> f64 {
    let text = event["at"].as_str().unwrap_or_else(|| panic!("{event} has a time"));
    // All machines have one clock, and the test is over before midnight, or begins again.
    let (_, time) = text.split_once('T').unwrap();
    let parts = time.trim_end_matches('Z').split(':');
    parts.fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap())
}

#[test]
fn of_two_virtual_routers_the_other_one_is_active_in_time_when_one_dies_or_is_stopped() {
    each_user(|user| {
        let lab = Lab::up(user, FILE);
        wait_until("the preferred one answers", || answers(&lab).as_deref() == Some("a"));
        wait_until("the other one hears it", || seen_by(&lab, "b", "edge")["holder"] == "a");
        let backup = seen_by(&lab, "b", "edge");
        assert_eq!(backup["here"], false, "{backup}");
        assert_eq!(backup["router"]["state"], "backup");
        assert_eq!(backup["router"]["priority"], 140);
        assert_eq!(backup["router"]["peers"]["10.0.0.1"]["priority"], 150);
        let table = lab.exec("b", &["outlast", "status"]);
        let table = String::from_utf8(table.stdout).unwrap();
        assert!(table.contains("VRRP 51: active at a; this node: backup, 140"), "{table}");
        assert!(!table.contains("this version does not"), "{table}");

        lab.good(&["kill", "a"]);
        wait_until("the other one answers", || answers(&lab).as_deref() == Some("b"));
        let taken = last_event(&lab, "b", "address_taken");
        let text = taken["text"].as_str().unwrap_or_default();
        let silent = text.split("10.0.0.1 has said nothing for ").nth(1).expect(text);
        let silent = outlast_core::units::parse_duration(silent).expect(text).as_secs_f64();
        assert!((DOWN - 0.01..DOWN + LATE).contains(&silent), "{text}");
        println!("silent for {silent} s, {DOWN} s by the standard");

        lab.good(&["start", "a"]);
        wait_until("the preferred one takes over again", || {
            answers(&lab).as_deref() == Some("a") && seen_by(&lab, "b", "edge")["here"] == false
        });
        let let_go = last_event(&lab, "b", "address_let_go");
        let text = let_go["text"].as_str().unwrap_or_default();
        assert!(text.contains("10.0.0.1 is active, with the priority 150"), "{let_go}");

        lab.good(&["pause", "a", "--for", "60s"]);
        wait_until("the other one answers", || answers(&lab).as_deref() == Some("b"));
        lab.good(&["resume", "a"]);
        wait_until("it knows that it was late", || {
            !last_event(&lab, "a", "address_lost").is_null()
        });
        wait_until("it takes over again", || answers(&lab).as_deref() == Some("a"));

        lab.good(&["stop", "a"]);
        let taken = wait("the other one has taken it", || {
            let taken = last_event(&lab, "b", "address_taken");
            taken["text"].as_str()?.contains("10.0.0.1 has given it up").then_some(taken)
        });
        wait_until("the other one answers", || answers(&lab).as_deref() == Some("b"));
        lab.good(&["start", "a"]);
        wait_until("the first one is back", || answers(&lab).as_deref() == Some("a"));
        let let_go = wait("it has said why it let go", || {
            let output = lab.exec("a", &["outlast", "events", "--format", "json"]);
            let text = String::from_utf8(output.stdout).unwrap();
            let events = text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
            let is_end = |event: &Value| event["text"].as_str().is_some_and(|t| t.contains("ends"));
            events.filter(|event| event["event"] == "address_let_go").find(is_end)
        });
        let took = moment(&taken) - moment(&let_go);
        assert!(took < SKEW + LATE, "{took} s: {let_go} {taken}");
        println!("taken {took} s after it was let go, {SKEW} s by the standard");
    });
}

/// Of both kinds, and only as long as all is well.
const GROUP: &str = r#"
group = "all"
track = [{ script = ["sh", "-c", "! test -e /tmp/ill"], every = "200ms", weight = -50 }]
[address.edge6]
ips = ["fe80::100/64", "fd00:5::100/64"]
interface = "eth0"
nodes = ["a", "b"]
mode = "vrrp"
vrrp_id = 51
advert = "500ms"
preempt = true
preempt_delay = "0s"
group = "all"
"#;

/// Nodes that have all addresses, and none that has one of them.
fn all_are_at(lab: &Lab, node: &str) -> bool {
    ["a", "b"].iter().all(|other| {
        let output = lab.exec(other, &["ip", "-o", "addr"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let mut here =
            ["10.0.0.100/", "fe80::100/", "fd00:5::100/"].map(|ip| text.contains(ip)).into_iter();
        if *other == node { here.all(|is| is) } else { !here.any(|is| is) }
    })
}

#[test]
fn a_group_of_virtual_routers_goes_where_all_is_well_and_leaves_a_node_without_agent_or_link() {
    each_user(|user| {
        let file = FILE.replace("preempt_delay = \"1s\"", "preempt_delay = \"0s\"");
        let lab = Lab::up(user, &(file + GROUP));
        wait_until("the preferred one has all", || all_are_at(&lab, "a"));
        let run = |words: &[&str]| assert!(lab.exec("a", words).status.success(), "{words:?}");

        run(&["touch", "/tmp/ill"]);
        wait_until("the other one has all", || all_are_at(&lab, "b"));
        let ill = seen_by(&lab, "a", "edge6");
        assert_eq!(ill["router"]["priority"], 100, "{ill}");
        assert!(ill["trouble"].as_str().unwrap().contains("script"), "{ill}");
        assert_eq!(ill["here"], false);
        run(&["rm", "/tmp/ill"]);
        wait_until("the preferred one has all again", || all_are_at(&lab, "a"));
        wait_until("nothing is amiss", || seen_by(&lab, "a", "edge")["trouble"].is_null());

        run(&["ip", "link", "set", "eth0", "down"]);
        wait_until("it leaves a dark link", || all_are_at(&lab, "b"));
        assert_eq!(seen_by(&lab, "a", "edge")["trouble"], "interface eth0 is down");
        assert_eq!(seen_by(&lab, "a", "edge")["router"]["state"], "idle");
        run(&["ip", "link", "set", "eth0", "up"]);
        wait_until("it comes back with the link", || all_are_at(&lab, "a"));

        run(&["pkill", "-9", "-f", "outlast run"]);
        wait_until("it leaves a node without an agent", || all_are_at(&lab, "b"));
        lab.good(&["start", "a"]);
        wait_until("it comes back with the agent", || all_are_at(&lab, "a"));
    });
}

/// One node of ours, and a keepalived on another machine that the file knows as a peer.
const BESIDE: &str = r#"
nodes = ["a"]
unicast = true
peers = ["10.0.0.4"]
"#;

const KEEPALIVED: &str = "global_defs {
 vrrp_version 3
}
vrrp_instance edge {
 state BACKUP
 interface eth0
 virtual_router_id 51
 priority 200
 advert_int 0.5
 unicast_src_ip 10.0.0.4
 unicast_peer {
  10.0.0.1
 }
 virtual_ipaddress {
  10.0.0.100/24
 }
}
";

#[test]
fn a_node_takes_turns_with_a_keepalived_that_it_speaks_to_alone() {
    one_user(|user| {
        let lab = Lab::up(user, &FILE.replace("nodes = [\"a\", \"b\"]", BESIDE));
        wait_until("who is alone answers", || answers_from(&lab, "b").as_deref() == Some("a"));
        let run = "printf %s \"$1\" >/tmp/k.conf && exec keepalived --dont-fork --log-console --vrrp \
                   --use-file /tmp/k.conf --pid /tmp/k.pid --vrrp_pid /tmp/v.pid";
        let words = ["exec", "client", "--", "sh", "-c", run, "sh", KEEPALIVED];
        let log = std::fs::File::create(lab.dir.join("keepalived.log")).unwrap();
        let mut command = lab.command(&words);
        let mut keepalived = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        wait_until("keepalived is active", || seen_by(&lab, "a", "edge")["holder"] == "client");
        let seen = seen_by(&lab, "a", "edge");
        assert_eq!(seen["here"], false, "{seen}");
        let peer = &seen["router"]["peers"]["10.0.0.4"];
        assert_eq!((&peer["priority"], &peer["node"]), (&200.into(), &"client".into()), "{seen}");
        assert_eq!(peer["checksum"], "with-pseudo-header");
        wait_until("keepalived answers", || answers_from(&lab, "b").as_deref() == Some("client"));

        assert!(lab.exec("client", &["pkill", "-F", "/tmp/k.pid"]).status.success());
        wait_until("the node answers", || answers_from(&lab, "b").as_deref() == Some("a"));
        let taken = last_event(&lab, "a", "address_taken");
        assert!(taken["text"].as_str().unwrap().contains("10.0.0.4 has given it up"), "{taken}");
        keepalived.wait().unwrap();
    });
}
