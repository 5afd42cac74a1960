//! People keep the database from failing over by itself, or have it fail over now.

use std::time::{Duration, Instant};

use crate::are_real;
use crate::cluster::{Cluster, THREE};
use crate::wait::{self, SOON};

/// Longer than a takeover takes.
const NOTHING_HAPPENS: Duration = Duration::from_secs(9);

///
#[test]
fn nobody_takes_over_while_failover_is_paused_but_after_it_and_when_asked() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let other = THREE.nodes.iter().copied().find(|node| *node != old).unwrap();
    let writer = cluster.writer(&[old]);
    let (done, said) = cluster.verb(other, &["pause", "--for", "10m", "--why", "a test"]);
    assert!(done, "{said}");
    let (done, said) = cluster.verb(other, &["pause"]);
    assert!(!done && said.contains(": a test already; `outlast resume` comes first"), "{said}");
    cluster.until(SOON, "the pause is shown", |cluster| {
        cluster.verb(old, &["status"]).1.contains("failover is paused by")
    });
    cluster.kill_node(old);
    let took_over = wait::look(NOTHING_HAPPENS, || {
        cluster.primary_but(&[old]).filter(|primary| *primary != old)
    });
    assert_eq!(took_over, None, "although failover is paused");
    let since = Instant::now();
    let (done, said) = cluster.verb(other, &["resume", "--node", "nosuch"]);
    assert!(!done && said.contains("there is no node `nosuch`; there is `a`"), "{said}");
    let (done, said) = cluster.verb(other, &["resume"]);
    assert!(done, "{said}");
    let new = cluster.successor(old);
    cluster.flows(&writer);
    println!("MEASURED after a pause: {:.2} s", since.elapsed().as_secs_f64());
    cluster.start_agent(old);
    cluster.rejoins(old);
    cluster.until(SOON, "all count again", Cluster::is_whole);

    let since = Instant::now();
    let (done, said) = cluster.verb(other, &["failover", "orders"]);
    assert!(!done && said.contains("--yes"), "nobody can be asked: {said}");
    let (done, said) = cluster.verb(other, &["failover", "orders", "--yes"]);
    assert!(done, "{said}");
    cluster.successor(new);
    cluster.flows(&writer);
    println!("MEASURED failover by hand: blackout {:.2} s", writer.blackout(since).as_secs_f64());
    cluster.rejoins(new);
    let (done, said) = cluster.verb(other, &["history", "orders"]);
    assert!(done && said.contains("asked for it"), "{said}");
    let (done, said) = cluster.verb(other, &["history", "nosuch"]);
    assert!(!done && said.contains("there is orders"), "{said}");
    let (done, said) = cluster.verb(other, &["resume"]);
    assert!(done && said.contains("failover is not paused, nor is anything else"), "{said}");
    cluster.audit(writer);
}
