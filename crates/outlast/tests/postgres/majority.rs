//! Too few nodes agree, or none was there for a while.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, THREE};
use crate::wait::{self, BEGIN, SOON};
use crate::{are_real, sql};

/// The lease, and time to end what runs.
const FENCED: Duration = Duration::from_secs(8);

/// Longer than a takeover takes.
const NOTHING_HAPPENS: Duration = Duration::from_secs(6);

fn accepts_writes(cluster: &Cluster, node: &str) -> bool {
    let limit = Duration::from_secs(1);
    let written = sql::ask(cluster.server(node), limit, "create temporary table tried ()");
    written.is_ok()
}

/// and the cold restart of all nodes.
#[test]
fn without_a_majority_nobody_accepts_writes_and_with_it_all_is_as_it_was() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(THREE);
    let primary = cluster.primary().unwrap();
    let others: Vec<&str> = THREE.nodes.iter().copied().filter(|node| *node != primary).collect();
    let writer = cluster.writer(&others);
    assert!(accepts_writes(&cluster, primary));
    let began = Instant::now();
    for node in &others {
        cluster.kill_agent(node);
    }
    cluster.until(FENCED, "the primary accepts no writes", |cluster| {
        !accepts_writes(cluster, primary)
    });
    println!("MEASURED majority lost: fenced after {:.2} s", began.elapsed().as_secs_f64());
    let promoted = wait::look(NOTHING_HAPPENS, || {
        THREE.nodes.iter().find(|node| accepts_writes(&cluster, node))
    });
    assert_eq!(promoted, None, "without a majority");
    for node in &others {
        cluster.start_agent(node);
    }
    let since = Instant::now();
    cluster.until(BEGIN, "a majority is back", |cluster| cluster.primary().is_some());
    cluster.flows(&writer);
    println!("MEASURED majority back: serves after {:.2} s", since.elapsed().as_secs_f64());
    cluster.until(BEGIN, "all count again", Cluster::is_whole);

    for node in THREE.nodes {
        cluster.kill_node(node);
    }
    for node in THREE.nodes {
        cluster.start_agent(node);
    }
    let since = Instant::now();
    cluster.until(BEGIN, "all is back", Cluster::is_whole);
    cluster.flows(&writer);
    println!("MEASURED cold restart: serves after {:.2} s", since.elapsed().as_secs_f64());
    cluster.until(SOON, "all count again", Cluster::is_whole);
    cluster.audit(writer);
}
