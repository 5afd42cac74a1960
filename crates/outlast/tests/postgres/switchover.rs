//! The primary moves because somebody wants it to.

use std::time::Instant;

use rustix::process::Signal;

use crate::cluster::{Cluster, Plan, THREE};
use crate::wait::{REJOIN, SOON};
use crate::{are_real, processes, sql};

/// A standby whose disk stalls makes a switchover lead back to where it began; then it may be asked for again.
const TRIES_MAX: usize = 3;

/// A name that is where the primary is.
const FOLLOWED: &str = r#"
[dns."example.com"]
listen = "NAMES"
records = [
  { name = "db", type = "A", policy = "failover", values = ["192.0.2.1", "192.0.2.2", "192.0.2.3"], follows = "postgres.orders" },
]
"#;

/// Moves the primary, and says how that went.
pub(crate) fn moved(cluster: &Cluster, from: &str, to: &str) -> String {
    for _ in 1..TRIES_MAX {
        let (done, said) = cluster.verb(from, &["switchover", "orders", "--to", to]);
        if done {
            return said;
        }
        assert!(said.contains("given up"), "{said}");
        cluster.until(SOON, "all is as it was", Cluster::is_whole);
    }
    let (done, said) = cluster.verb(from, &["switchover", "orders", "--to", to]);
    assert!(done, "{said}");
    said
}

/// A-34, trap 50.
#[test]
fn the_primary_moves_there_and_back_without_an_error_or_a_loss() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(Plan { lines: FOLLOWED, ..THREE });
    let first = cluster.primary().unwrap();
    let second = THREE.nodes.iter().copied().find(|node| *node != first).unwrap();
    let leads_to = |node: &str| {
        let nth = THREE.nodes.iter().position(|name| *name == node).unwrap() + 1;
        let what = format!("the name leads to {node}");
        cluster.until(SOON, &what, |cluster| {
            cluster.name("db.example.com") == format!("192.0.2.{nth}")
        });
    };
    leads_to(first);
    let writer = cluster.writer(&[]);
    for to in [second, first] {
        let since = Instant::now();
        let said = moved(&cluster, first, to);
        assert_eq!(said.lines().filter(|line| line.contains(" of 8 ")).count(), 8, "{said}");
        cluster.flows(&writer);
        println!("MEASURED switchover: blackout {:.2} s", writer.blackout(since).as_secs_f64());
        cluster.until(SOON, "it is primary", |cluster| cluster.primary() == Some(to));
        leads_to(to);
        cluster.until(SOON, "all count again", Cluster::is_whole);
        for node in THREE.nodes {
            let read = sql::ask(cluster.read_port(node), SOON, "select pg_is_in_recovery()");
            assert_eq!(read, Ok(vec![vec![Some("t".to_owned())]]), "the read port of {node}");
            assert!(cluster.rows(node).is_ok(), "nobody stays closed: {node}");
        }
    }
    assert_eq!(writer.failures(), [], "clients of the ports see no error");
    cluster.audit(writer);
}

/// A-34: it goes back to where it began.
#[test]
fn a_switchover_that_cannot_be_finished_leaves_the_old_primary_writable() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let mut others = THREE.nodes.iter().copied().filter(|node| *node != old);
    let (to, third) = (others.next().unwrap(), others.next().unwrap());
    let epoch = cluster.epoch();
    let writer = cluster.writer(&[third]);

    // It says that it receives, and never has the last of the log.
    let receiver = processes::of_kind(&cluster.data(to), "walreceiver");
    assert_eq!(receiver.len(), 1);
    processes::signal(&receiver, Signal::STOP);
    let since = Instant::now();
    let switch = ["switchover", "orders", "--to", to, "--pause", "2s"];
    let (done, said) = cluster.verb(old, &switch);
    processes::signal(&receiver, Signal::CONT);
    assert!(!done && said.contains("given up"), "{said}");
    cluster.flows(&writer);
    println!(
        "MEASURED switchover given up: blackout {:.2} s",
        writer.blackout(since).as_secs_f64()
    );
    assert_eq!((cluster.primary(), cluster.epoch()), (Some(old), epoch));
    assert_eq!(writer.failures(), [], "clients of the ports see no error");
    cluster.until(REJOIN, "all count again", Cluster::is_whole);

    cluster.kill_node(third);
    cluster.until(SOON, "the third is missed", |cluster| !cluster.is_standby_of(third, old));
    let (done, said) = cluster.verb(old, &["switchover", "orders", "--to", third]);
    assert!(!done && said.contains(third), "{said}");
    let (done, said) = cluster.verb(old, &["switchover", "orders", "--to", old]);
    assert!(!done && said.contains("already"), "{said}");
    cluster.flows(&writer);
    assert_eq!((cluster.primary(), cluster.epoch()), (Some(old), epoch));
    cluster.audit(writer);
}

/// A-34: the agent of the old primary dies while that is closed.
#[test]
fn an_agent_that_dies_in_a_switchover_opens_again_what_it_had_closed() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let mut others = THREE.nodes.iter().copied().filter(|node| *node != old);
    let (to, third) = (others.next().unwrap(), others.next().unwrap());
    let epoch = cluster.epoch();
    let writer = cluster.writer(&[old]);
    let receiver = processes::of_kind(&cluster.data(to), "walreceiver");
    processes::signal(&receiver, Signal::STOP);
    let switch = cluster.begin_verb(third, &["switchover", "orders", "--to", to, "--pause", "4s"]);
    cluster.until(SOON, "the primary is closed", |cluster| {
        let step = cluster.says(third).map(|says| says["switchover"].to_string());
        step.is_some_and(|step| step.contains("last of its log"))
    });
    cluster.kill_agent(old);
    cluster.start_agent(old);
    let end = switch.wait_with_output().unwrap();
    processes::signal(&receiver, Signal::CONT);
    assert_eq!(end.status.code(), Some(1), "{}", String::from_utf8_lossy(&end.stdout));
    cluster.flows(&writer);
    assert_eq!((cluster.primary(), cluster.epoch()), (Some(old), epoch));
    cluster.audit(writer);
}
