//! Two nodes have PostgreSQL, a third only a voice.

use std::time::{Duration, Instant};

use crate::are_real;
use crate::cluster::{Cluster, Plan};
use crate::wait::{self, REJOIN, SOON};

const TWO: Plan = Plan { nodes: &["a", "b", "w"], members: &["a", "b"], lines: "" };
/// Writes go on while only one of the two is there.
const TWO_THAT_GO_ON: Plan = Plan { lines: "acks_min = 0", ..TWO };
const TWO_ASYNC: Plan = Plan { lines: "durability = \"async\"", ..TWO };

/// Longer than a write takes.
const WAITS: Duration = Duration::from_secs(2);

#[test]
fn of_two_members_and_a_witness_the_other_takes_over_and_waits_for_a_second_copy() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(TWO);
    let old = cluster.primary().unwrap();
    let writer = cluster.writer(&[old]);
    cluster.kill_node(old);
    cluster.successor(old);
    let before = writer.acknowledged();
    let more = wait::look(WAITS, || (before + 1 < writer.acknowledged()).then_some(()));
    assert_eq!(more, None, "a write is acknowledged that only one node has");
    cluster.start_agent(old);
    cluster.rejoins(old);
    cluster.flows(&writer);
    cluster.until(SOON, "all count again", Cluster::is_whole);
    cluster.audit(writer);
}

#[test]
fn with_acks_min_0_the_one_that_is_left_goes_on_alone_and_nobody_takes_over_what_only_it_has() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(TWO_THAT_GO_ON);
    let old = cluster.primary().unwrap();
    let writer = cluster.writer(&[old]);
    cluster.kill_node(old);
    let new = cluster.successor(old);
    cluster.flows(&writer);
    // What is written now is nowhere else.
    cluster.start_agent(old);
    cluster.rejoins(old);
    cluster.until(SOON, "both count again", Cluster::is_whole);
    cluster.flows(&writer);

    cluster.kill_node(old);
    cluster.until(SOON, "it goes on alone", |cluster| {
        cluster.says(new).is_some_and(|says| says["acknowledged_by"].to_string().contains("alone"))
    });
    cluster.flows(&writer);
    cluster.kill_node(new);
    cluster.start_agent(old);
    let taken = wait::look(WAITS * 5, || cluster.primary().filter(|node| *node == old));
    assert_eq!(taken, None, "who lacks acknowledged writes has become primary");
    cluster.start_agent(new);
    cluster.until(REJOIN, "all are there again", Cluster::is_whole);
    cluster.flows(&writer);
    cluster.audit(writer);
}

#[test]
fn without_acknowledgements_of_others_a_takeover_waits_for_the_lease() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(TWO_ASYNC);
    let old = cluster.primary().unwrap();
    let writer = cluster.writer(&[old]);
    let since = Instant::now();
    cluster.kill_node(old);
    cluster.successor(old);
    cluster.flows(&writer);
    println!("MEASURED dead node, async: blackout {:.2} s", writer.blackout(since).as_secs_f64());
    cluster.start_agent(old);
    cluster.rejoins(old);
    let rows = cluster.rows(cluster.primary().unwrap()).unwrap();
    let account = writer.end();
    assert!(rows.is_subset(&account.tried), "rows that nobody wrote");
    let lost = account.acknowledged.iter().filter(|id| !rows.contains(id)).count();
    println!("{lost} acknowledged rows lost, which this mode allows");
}
