//! What agents and their children may do beyond ordinary programs, and what they say where that is too little.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use rustix::thread::CapabilitySet as Set;

use super::{CANDIDATES, FILE, answers, holders, seen_by, vrrp};
use crate::{Lab, NOBODY, each_user, kill, one_user, processes, said, wait, wait_until};

/// docs/rights.md has the same table.
const OWN: Set = Set::DAC_OVERRIDE.union(Set::FOWNER).union(Set::NET_BIND_SERVICE).union(PASSED_ON);
const ADDRESSES: Set = Set::NET_ADMIN.union(Set::NET_RAW);
/// As the data plane has it, too.
const PASSED_ON: Set = Set::IPC_LOCK.union(Set::SYS_NICE).union(Set::SYS_RESOURCE);

/// What the kernel says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct May {
    effective: Set,
    permitted: Set,
    bounding: Set,
    ambient: Set,
    no_new: bool,
}

impl May {
    fn of(pid: u64) -> Option<May> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let set = |name: &str| {
            u64::from_str_radix(field(name)?.trim(), 16).ok().map(Set::from_bits_retain)
        };
        Some(May {
            effective: set("CapEff:")?,
            permitted: set("CapPrm:")?,
            bounding: set("CapBnd:")?,
            ambient: set("CapAmb:")?,
            no_new: field("NoNewPrivs:")?.trim() == "1",
        })
    }
}

/// A process of root that has these, of programs that may have those.
fn roots(has: Set, programs: Set, no_new: bool) -> May {
    let (effective, permitted) = (has, has);
    May { effective, permitted, bounding: programs, ambient: Set::empty(), no_new }
}

fn words(pid: u64) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The children of a process, by the verb of outlast that they are.
fn children(of: u64) -> BTreeMap<String, u64> {
    let pids = processes().into_iter().filter_map(|pid| pid.parse().ok());
    let named = pids
        .filter(|pid| parent_of(*pid) == Some(of))
        .filter_map(|pid| Some((words(pid).get(1)?.clone(), pid)));
    named.collect()
}

/// `None`: it is gone.
fn parent_of(pid: u64) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')?..].split(' ').nth(2)?.parse().ok()
}

fn machine(lab: &Lab, node: &str) -> u64 {
    lab.node(node)["pid"].as_u64().unwrap()
}

/// The agent of a machine, as this side of it sees its number.
fn agent(lab: &Lab, node: &str) -> u64 {
    let machine = machine(lab, node);
    wait("an agent", || children(machine).get("run").copied())
}

fn child(agent: u64, verb: &str) -> u64 {
    wait(verb, || children(agent).get(verb).copied())
}

#[test]
fn an_agent_keeps_what_its_file_needs_and_its_children_what_they_do() {
    each_user(|user| {
        let lab = Lab::up(user, FILE);
        let first = wait("somebody answers on the address", || answers(&lab));
        // A lab cannot give more than it was given.
        let all = May::of(machine(&lab, &first)).unwrap().bounding;
        let own = May::of(agent(&lab, "client")).unwrap();
        assert_eq!(own, roots(OWN & all, all, false), "the agent of a node without addresses");
        let pid = agent(&lab, &first);
        let of_agent = roots((OWN | ADDRESSES) & all, all, false);
        assert_eq!(May::of(pid), Some(of_agent), "the agent of a node with one");
        let plane = roots(PASSED_ON & all, Set::empty(), true);
        assert_eq!(May::of(child(pid, "proxy")), Some(plane));
        let guardian = child(pid, "address-guardian");
        let of_guardian = roots(Set::NET_ADMIN & all, Set::empty(), true);
        assert_eq!(May::of(guardian), Some(of_guardian));
        let log = lab.good(&["logs", &first]);
        assert!(log.contains("running"), "{log}");
        let shown = (OWN | ADDRESSES) & all;
        let shown: Vec<String> =
            shown.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
        let shown = format!("capabilities=\"{}\"", shown.join(" "));
        assert!(log.contains(&shown), "{log}");

        // What is left is enough for its guardian to let go in its place.
        kill(u32::try_from(pid).unwrap());
        wait("another one answers", || answers(&lab).filter(|now| *now != first));
        wait_until("the guardian is done", || parent_of(guardian).is_none());
        let here = said(&lab.exec(&first, &["ip", "-o", "address"]));
        assert!(!here.contains("10.0.0.100") && !here.contains("fd00:5::100"), "{here}");
        let log = lab.good(&["logs", &first]);
        assert!(!log.contains("error: "), "{log}");
    });
}

#[test]
fn an_address_that_comes_later_is_held_once_the_agent_has_taken_its_rights_up_again() {
    each_user(|user| {
        let before = FILE.split("[address.edge]").next().unwrap();
        let lab = Lab::up(user, before);
        wait_until("a leader", || {
            lab.exec("a", &["outlast", "kv", "get", "k"]).status.code() == Some(1)
        });
        // Who takes a changed file alone is told at once.
        lab.write(FILE);
        let reload = said(&lab.exec("c", &["outlast", "reload"]));
        assert!(reload.contains("\nwarning: address.edge needs CAP_NET_ADMIN"), "{reload}");
        let file = lab.dir.join("new.toml").display().to_string();
        fs::write(&file, FILE).unwrap();
        let apply = lab.exec("a", &["outlast", "apply", &file, "--yes", "--timeout", "30s"]);
        assert!(apply.status.success(), "{}", said(&apply));
        let upgrade = "which this agent gave up when it started because nothing needed it: `outlast upgrade` on this node takes that up again";
        for node in CANDIDATES {
            wait_until("it says what to do", || {
                seen_by(&lab, node)["trouble"].as_str().is_some_and(|why| why.contains(upgrade))
            });
            let events = said(&lab.exec(node, &["outlast", "events", "--last", "100"]));
            assert!(
                events.contains("address.edge needs CAP_NET_ADMIN and CAP_NET_RAW"),
                "{events}"
            );
        }
        assert!(holders(&lab, &CANDIDATES).is_empty());
        for node in CANDIDATES {
            let upgrade = lab.exec(node, &["outlast", "upgrade"]);
            assert!(upgrade.status.success(), "{}", said(&upgrade));
            wait_until("it can hold it", || {
                let seen = seen_by(&lab, node);
                seen.is_object() && seen["trouble"].is_null()
            });
        }
        wait("somebody answers on the address", || answers(&lab));
    });
}

#[test]
fn a_program_that_comes_later_has_an_agent_that_keeps_all_once_that_was_upgraded() {
    each_user(|user| {
        let lab = Lab::up(user, FILE);
        let pid = agent(&lab, "client");
        let all = May::of(machine(&lab, "client")).unwrap().bounding;
        lab.write(&format!(
            "{FILE}[process.later]\nnodes = [\"client\"]\ncommand = [\"sleep\", \"1000\"]\n"
        ));
        let says = "process.later starts programs, and this agent gave up what they may need when it started because the file named none: `outlast upgrade` on this node takes that up again";
        let reload = said(&lab.exec("client", &["outlast", "reload"]));
        assert!(reload.contains(&format!("\nwarning: {says}")), "{reload}");
        // What was said is not said again.
        let again = said(&lab.exec("client", &["outlast", "reload"]));
        assert!(!again.contains("warning: process.later"), "{again}");
        // It has all that root may have, all the same.
        let has = roots(all, all, false);
        let program = || {
            let pids = processes().into_iter().filter_map(|pid| pid.parse().ok());
            pids.filter(|pid| parent_of(*pid) == Some(agent(&lab, "client")))
                .find(|pid| words(*pid) == ["sleep", "1000"])
        };
        assert_eq!(May::of(wait("the program", program)), Some(has));
        assert_eq!(May::of(pid), Some(roots(OWN & all, all, false)));
        let upgrade = lab.exec("client", &["outlast", "upgrade"]);
        assert!(upgrade.status.success(), "{}", said(&upgrade));
        wait_until("the agent has all again", || May::of(pid) == Some(has));
    });
}

/// Ends the lab's own agent of a node; how it was run.
fn end_own_agent(lab: &Lab, node: &str) -> Vec<String> {
    let own = agent(lab, node);
    let run = words(own);
    end(own);
    run
}

fn end(pid: u64) {
    let number = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(number, Signal::TERM).ok();
    wait_until("an agent has ended", || parent_of(pid).is_none());
}

/// An agent that is started by hand, in place of the lab's own.
struct ByHand {
    /// What brings it into its machine, and waits for its end.
    child: Child,
    run: Vec<String>,
    log: PathBuf,
}

impl ByHand {
    /// Run like this, but through `setpriv` with these words.
    fn start(lab: &Lab, node: &str, run: &[String], setpriv: &[&str]) -> ByHand {
        let log = lab.dir.join(format!("by-hand-{node}.log"));
        let to = File::create(&log).unwrap();
        let mut command = lab.command(&[&["exec", node, "--", "setpriv"], setpriv].concat());
        command.args(run).stdout(Stdio::null()).stderr(to);
        ByHand { child: command.spawn().unwrap(), run: run.to_owned(), log }
    }

    fn find(&self) -> Option<u64> {
        let mut pids = processes().into_iter().filter_map(|pid| pid.parse().ok());
        pids.find(|pid| words(*pid) == self.run)
    }

    fn agent(&self) -> u64 {
        wait("an agent that was started by hand", || self.find())
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let agent = self.find().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(agent) = agent {
            kill_process(agent, Signal::TERM).ok();
        }
        self.child.wait().ok();
    }
}

/// Status, log and journal say it, and somebody else holds the address.
fn says_what_it_lacks(lab: &Lab, agent: &ByHand, says: &str) {
    let trouble = wait("it says why it cannot hold the address", || {
        seen_by(lab, "a")["trouble"].as_str().map(str::to_owned)
    });
    assert_eq!(trouble, says);
    let status = said(&lab.exec("a", &["outlast", "status"]));
    assert!(status.contains(&format!("this node: {says}")), "{status}");
    for source in [agent.log(), said(&lab.exec("a", &["outlast", "events", "--last", "100"]))] {
        assert!(source.contains(says), "{source}");
    }
    wait("another one answers", || answers(lab).filter(|now| now != "a"));
}

#[test]
fn an_agent_without_the_capabilities_for_an_address_says_so_and_leaves_it_to_others() {
    each_user(|user| {
        let lab = Lab::up(user, FILE);
        wait("somebody answers on the address", || answers(&lab));
        let taken = ["--bounding-set=-net_admin,-net_raw", "--inh-caps=-net_admin,-net_raw"];
        let run = end_own_agent(&lab, "a");
        let agent = ByHand::start(&lab, "a", &run, &taken);
        let says = "address.edge needs CAP_NET_ADMIN and CAP_NET_RAW, which this agent does not have: it is root without that, so look at what starts it (systemd: `CapabilityBoundingSet`; a container: `--cap-add`)";
        says_what_it_lacks(&lab, &agent, says);
    });
}

#[test]
fn what_a_group_lacks_is_said_of_its_addresses() {
    one_user(|user| {
        let group = "group = \"gateway\"\n";
        let inner = "[address.inner]\nip = \"10.0.0.101/24\"\ninterface = \"eth0\"\nnodes = [\"a\", \"b\", \"c\"]\n";
        let lab = Lab::up(user, &format!("{FILE}{group}{inner}{group}"));
        wait("somebody answers on the address", || answers(&lab));
        let taken = ["--bounding-set=-net_raw", "--inh-caps=-net_raw"];
        let run = end_own_agent(&lab, "a");
        let agent = ByHand::start(&lab, "a", &run, &taken);
        let says = "address.edge and address.inner need CAP_NET_RAW, which this agent does not have: it is root without that, so look at what starts it (systemd: `CapabilityBoundingSet`; a container: `--cap-add`)";
        says_what_it_lacks(&lab, &agent, says);
    });
}

#[test]
fn a_node_of_a_virtual_router_says_so_as_well() {
    one_user(|user| {
        let lab = Lab::up(user, vrrp::FILE);
        wait("somebody answers on the address", || answers(&lab));
        let taken = ["--bounding-set=-net_raw", "--inh-caps=-net_raw"];
        let run = end_own_agent(&lab, "a");
        let agent = ByHand::start(&lab, "a", &run, &taken);
        let says = "address.edge needs CAP_NET_RAW, which this agent does not have: it is root without that, so look at what starts it (systemd: `CapabilityBoundingSet`; a container: `--cap-add`)";
        says_what_it_lacks(&lab, &agent, says);
    });
}

#[test]
fn an_agent_that_is_not_root_holds_an_address_with_the_capabilities_that_it_was_given() {
    assert!(geteuid().is_root(), "run this test as root: nobody else has another user in its lab");
    let lab = Lab::up(None, FILE);
    wait("somebody answers on the address", || answers(&lab));
    let nobody = NOBODY.to_string();
    let user =
        [format!("--reuid={nobody}"), format!("--regid={nobody}"), "--clear-groups".to_owned()];
    let user: Vec<&str> = user.iter().map(String::as_str).collect();
    let run = end_own_agent(&lab, "a");
    let owner = format!("{nobody}:{nobody}");
    let chown = ["chown", "-R", &owner, "/var/lib/outlast-of-a-test"];
    assert!(lab.exec("a", &chown).status.success());
    let without = ByHand::start(&lab, "a", &run, &user);
    let says = "address.edge needs CAP_NET_ADMIN and CAP_NET_RAW, which this agent does not have: give it to the agent (systemd: `AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW`), or run it as root";
    says_what_it_lacks(&lab, &without, says);
    drop(without);

    // As a service manager does it. What is given besides, and not needed, is given up.
    let passed = "+net_admin,+net_raw,+sys_time";
    let (inherits, passes) = (format!("--inh-caps={passed}"), format!("--ambient-caps={passed}"));
    let given = ByHand::start(&lab, "a", &run, &[&user[..], &[&inherits, &passes]].concat());
    wait_until("it can hold the address", || {
        let seen = seen_by(&lab, "a");
        seen.is_object() && seen["trouble"].is_null()
    });
    let pid = given.agent();
    let may = May::of(pid).unwrap();
    assert_eq!((may.effective, may.permitted, may.ambient), (ADDRESSES, ADDRESSES, ADDRESSES));
    let none = Set::empty();
    for (verb, has) in [("proxy", none), ("address-guardian", Set::NET_ADMIN)] {
        let may = May::of(child(pid, verb)).unwrap();
        assert_eq!((may.effective, may.permitted, may.ambient), (has, has, none), "{verb}");
        assert!(may.no_new, "{verb}");
    }
    let holder = wait("another one answers", || answers(&lab));
    lab.good(&["stop", &holder]);
    wait_until("it answers itself", || answers(&lab).is_some_and(|now| now == "a"));
}
