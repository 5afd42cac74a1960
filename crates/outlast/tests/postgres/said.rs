//! What every node says of the database.

use serde_json::Value;

use crate::cluster::{Cluster, THREE};
use crate::wait::{REJOIN, SOON};
use crate::{are_real, sql};

/// How far behind a standby has to fall to be told from one that follows.
const BEHIND: f64 = 2.0;

fn lag(says: &Value, node: &str) -> Option<f64> {
    says["members"][node]["lag_seconds"].as_f64()
}

#[test]
fn every_node_says_how_far_a_standby_is_behind_and_why_nothing_is_done() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(THREE);
    let primary = cluster.primary().unwrap();
    let standby = THREE.members.iter().copied().find(|node| *node != primary).unwrap();
    let writer = cluster.writer(&[primary]);
    let ask = |what: &str| sql::ask(cluster.server(standby), SOON, what).unwrap();
    ask("select pg_wal_replay_pause()");
    cluster.until(SOON, "it falls behind", |cluster| {
        THREE.nodes.iter().all(|node| {
            let says = cluster.says(node);
            says.is_some_and(|says| lag(&says, standby).is_some_and(|lag| BEHIND < lag))
        })
    });
    ask("select pg_wal_replay_resume()");
    cluster.until(SOON, "it has caught up", |cluster| {
        let says = cluster.says(primary);
        says.is_some_and(|says| lag(&says, standby).is_some_and(|lag| lag < BEHIND))
    });
    cluster.until(REJOIN, "all count again", Cluster::is_whole);

    let (done, said) = cluster.verb(standby, &["pause", "--for", "10m"]);
    assert!(done, "{said}");
    cluster.kill_node(primary);
    let others: Vec<&str> = THREE.nodes.iter().copied().filter(|node| *node != primary).collect();
    cluster.until(SOON, "each node says why", |cluster| {
        others.iter().all(|node| {
            let why = cluster.says(node).map(|says| says["why"].to_string());
            why.is_some_and(|why| why.contains("failover is paused"))
        })
    });
    let (done, said) = cluster.verb(standby, &["resume"]);
    assert!(done, "{said}");
    cluster.successor(primary);
    writer.use_ports(cluster.write_ports(&[primary]));
    cluster.flows(&writer);
    assert!(writer.acknowledged() > 0);
    cluster.audit(writer);
}
