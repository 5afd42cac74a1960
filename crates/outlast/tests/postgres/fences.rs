//! Three fences keep an old primary from clients: the agent, the keeper, and the ports. Each one suffices when the two others
//! are taken away.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cluster::{Cluster, THREE};
use crate::sql::Session;
use crate::wait::{REJOIN, SOON, look};
use crate::{are_real, processes};

/// The lease, and time to end what runs.
const FENCED: Duration = Duration::from_secs(8);

fn others(than: &str) -> Vec<&'static str> {
    THREE.nodes.iter().copied().filter(|node| *node != than).collect()
}

/// Nothing of the server runs any more; who is frozen collects no dead children.
fn is_dead(cluster: &Cluster, node: &str) -> bool {
    processes::of_server(&cluster.data(node)).iter().all(|pid| processes::is_dead(*pid))
}

#[test]
fn an_agent_whose_lease_is_over_ends_its_server_without_keeper_or_proxy() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let mut frozen = cluster.keeper(old);
    frozen.extend(cluster.proxy(old));
    assert_eq!(frozen.len(), 2);
    processes::signal(&frozen, Signal::STOP);
    let since = Instant::now();
    for node in others(old) {
        cluster.kill_agent(node);
    }
    cluster.until(FENCED, "its server is dead", |cluster| is_dead(cluster, old));
    println!("MEASURED the agent alone: dead after {:.2} s", since.elapsed().as_secs_f64());
    processes::signal(&frozen, Signal::CONT);
    for node in others(old) {
        cluster.start_agent(node);
    }
    cluster.until(REJOIN, "all is as it was", Cluster::is_whole);
}

///
#[test]
fn a_keeper_ends_the_server_of_a_frozen_agent_without_a_proxy() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let writer = cluster.writer(&[old]);
    let mut frozen = cluster.proxy(old);
    frozen.push(cluster.agent(old));
    assert_eq!(frozen.len(), 2);
    processes::signal(&frozen, Signal::STOP);
    let since = Instant::now();
    cluster.until(FENCED, "its server is dead", |cluster| is_dead(cluster, old));
    println!("MEASURED the keeper alone: dead after {:.2} s", since.elapsed().as_secs_f64());
    cluster.successor(old);
    cluster.flows(&writer);
    processes::signal(&frozen, Signal::CONT);
    cluster.rejoins(old);
    cluster.audit(writer);
}

#[test]
fn a_port_cuts_its_sessions_although_agent_and_keeper_are_frozen_and_the_server_lives() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let writer = cluster.writer(&[old]);
    let mut through = Session::open(cluster.write_port(old), SOON).unwrap();
    let mut direct = Session::open(cluster.server(old), SOON).unwrap();
    // It has a state of its own, and cannot be moved.
    through.ask("create temporary table mine ()").unwrap();
    let mut frozen = cluster.keeper(old);
    frozen.push(cluster.agent(old));
    assert_eq!(frozen.len(), 2);
    processes::signal(&frozen, Signal::STOP);
    let since = Instant::now();
    let cut = look(FENCED, || through.ask("select count(*) from mine").is_err().then_some(()));
    println!("MEASURED the port alone: cut after {:.2} s", since.elapsed().as_secs_f64());
    assert_eq!(cut, Some(()), "the port still leads to a primary without a lease");
    assert!(direct.ask("select 1").is_ok(), "the server was to live on");
    let patience = Duration::from_secs(2);
    let late = Session::open(cluster.write_port(old), patience)
        .and_then(|mut session| session.ask("select 1"));
    assert!(late.is_err(), "the port lets others in");
    cluster.successor(old);
    cluster.flows(&writer);
    assert!(direct.ask("select 1").is_ok(), "the server lives on");
    processes::signal(&frozen, Signal::CONT);
    cluster.rejoins(old);
    cluster.audit(writer);
}
