//! A second fault while the first is being dealt with.

use rustix::process::Signal;

use crate::cluster::{Cluster, THREE};
use crate::wait::{REJOIN, SOON, TAKEOVER};
use crate::{are_real, processes};

/// Rows, before the next death.
const SERVES: usize = 40;

#[test]
fn a_successor_that_dies_at_once_is_replaced_too_and_nothing_is_lost() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(THREE);
    let first = cluster.primary().unwrap();
    let writer = cluster.writer(&[first]);
    cluster.kill_node(first);
    let second = cluster.successor(first);
    cluster.kill_node(second);
    // Two of three are gone: nobody takes over before one is back.
    cluster.start_agent(first);
    let third = THREE.nodes.iter().find(|node| ![first, second].contains(node)).unwrap();
    let served = cluster.successor(second);
    assert_eq!(served, *third, "only the third has all that was acknowledged");
    cluster.rejoins(first);
    cluster.flows(&writer);
    cluster.start_agent(second);
    cluster.rejoins(second);
    cluster.until(REJOIN, "all count again", Cluster::is_whole);
    cluster.audit(writer);
}

/// Trap 40.
#[test]
fn a_primary_that_dies_again_and_again_hands_over() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let writer = cluster.writer(&[]);
    let mut deaths = 0;
    let mut served = writer.acknowledged();
    cluster.wait(TAKEOVER, "another member serves", |cluster| {
        if cluster.primary()? != old {
            return Some(());
        }
        // Each time it serves for a moment first.
        if served + SERVES < writer.acknowledged() {
            processes::signal(&[cluster.postmaster(old)?], Signal::KILL);
            served = writer.acknowledged();
            deaths += 1;
        }
        None
    });
    assert_eq!(deaths, 3, "it is given up once it has died that often");
    cluster.flows(&writer);
    cluster.rejoins(old);
    cluster.audit(writer);
}

/// A primary that is closed for a switchover dies.
#[test]
fn a_primary_that_dies_in_its_switchover_is_replaced_and_nothing_is_lost() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let mut others = THREE.nodes.iter().copied().filter(|node| *node != old);
    let (to, third) = (others.next().unwrap(), others.next().unwrap());
    let writer = cluster.writer(&[old]);
    let receiver = processes::of_kind(&cluster.data(to), "walreceiver");
    processes::signal(&receiver, Signal::STOP);
    let switch = cluster.begin_verb(third, &["switchover", "orders", "--to", to, "--pause", "20s"]);
    cluster.until(SOON, "the primary is closed", |cluster| {
        let step = cluster.says(third).map(|says| says["switchover"].to_string());
        step.is_some_and(|step| step.contains("last of its log"))
    });
    cluster.kill_node(old);
    processes::signal(&receiver, Signal::CONT);
    cluster.successor(old);
    cluster.flows(&writer);
    let end = switch.wait_with_output().unwrap();
    println!("the switchover: {}", String::from_utf8_lossy(&end.stdout));
    cluster.start_agent(old);
    cluster.rejoins(old);
    cluster.until(REJOIN, "all count again", Cluster::is_whole);
    cluster.audit(writer);
}
