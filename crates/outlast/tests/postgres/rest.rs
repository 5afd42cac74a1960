//! People work on one node: its member is counted on for nothing meanwhile.

use std::time::Duration;

use rustix::process::Signal;

use crate::cluster::{Cluster, Plan, THREE};
use crate::wait::{self, REJOIN, SOON};
use crate::{are_real, processes, sql};

const TWO: Plan = Plan { nodes: &["a", "b", "w"], members: &["a", "b"], lines: "" };

/// Longer than an agent takes to start a standby that went down.
const NOTHING_HAPPENS: Duration = Duration::from_secs(5);

fn counts(cluster: &Cluster, node: &str) -> Option<bool> {
    let says = cluster.says(cluster.primary()?)?;
    says["members"][node]["sync"].as_bool()
}

#[test]
fn a_paused_node_is_left_alone_until_it_is_resumed() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(THREE);
    let primary = cluster.primary().unwrap();
    let mut others = THREE.members.iter().copied().filter(|node| *node != primary);
    let (rests, third) = (others.next().unwrap(), others.next().unwrap());
    let writer = cluster.writer(&[rests]);

    let (done, said) = cluster.verb(primary, &["pause", "--node", primary]);
    assert!(!done && said.contains("switch over first"), "{said}");
    let pause = ["pause", "--node", rests, "--for", "10m", "--why", "more memory"];
    let (done, said) = cluster.verb(primary, &pause);
    assert!(done && said.contains("counted on for nothing"), "{said}");
    assert_eq!(counts(&cluster, rests), Some(false));
    let (_, said) = cluster.verb(third, &["status"]);
    assert!(said.contains("paused by") && said.contains("more memory"), "{said}");
    let (done, said) = cluster.verb(primary, &["pause", "--node", third]);
    assert!(!done && said.contains("writes would have to wait"), "{said}");
    let (done, said) = cluster.verb(primary, &["switchover", "orders", "--to", rests]);
    assert!(!done && said.contains("paused"), "{said}");
    cluster.until(SOON, "it has no readers", |cluster| {
        let asked = "select inet_server_addr()";
        let read = sql::ask(cluster.read_port(rests), SOON, asked);
        let third = cluster.server(third).ip().to_string();
        read.is_ok_and(|rows| rows == [vec![Some(third)]])
    });

    // A person stops its PostgreSQL, and nobody starts it.
    let postmaster = cluster.postmaster(rests).unwrap();
    processes::signal(&[postmaster], Signal::INT);
    cluster.until(SOON, "it is down", |cluster| cluster.postmaster(rests).is_none());
    let started = wait::look(NOTHING_HAPPENS, || cluster.postmaster(rests));
    assert_eq!(started, None, "although it is paused");
    cluster.flows(&writer);
    assert_eq!(writer.failures(), [], "clients of the ports see no error");
    // Not even a new agent does.
    cluster.kill_agent(rests);
    cluster.start_agent(rests);
    let started = wait::look(NOTHING_HAPPENS, || cluster.postmaster(rests));
    assert_eq!(started, None, "although it is paused");

    let (done, said) = cluster.verb(primary, &["resume", "--node", rests]);
    assert!(done, "{said}");
    cluster.rejoins(rests);
    cluster.until(REJOIN, "all count again", Cluster::is_whole);
    cluster.flows(&writer);
    cluster.audit(writer);
}

#[test]
fn the_last_standby_is_paused_only_by_force_and_the_pause_ends_by_itself() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(TWO);
    let primary = cluster.primary().unwrap();
    let standby = TWO.members.iter().copied().find(|node| *node != primary).unwrap();
    let (done, said) = cluster.verb(primary, &["pause", "--node", standby]);
    assert!(!done && said.contains("writes would have to wait"), "{said}");
    let pause = ["pause", "--node", standby, "--force", "--for", "25s"];
    let (done, said) = cluster.verb(primary, &pause);
    assert!(done && said.contains("wait for it"), "{said}");
    cluster.until(REJOIN, "the pause is over", |cluster| {
        let says = cluster.says(standby);
        says.is_some_and(|says| says["members"][standby]["paused"].is_null())
    });
    cluster.until(SOON, "all is as it was", Cluster::is_whole);
}
