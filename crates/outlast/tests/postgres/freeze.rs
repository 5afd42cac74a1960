//! A primary that stands still.

use std::time::Instant;

use rustix::process::Signal;

use crate::cluster::{Cluster, THREE};
use crate::sql::Session;
use crate::wait::{REJOIN, SOON, TAKEOVER};
use crate::{are_real, processes};

/// Trap 5.
#[test]
fn a_frozen_server_is_killed_and_another_member_takes_over() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let writer = cluster.writer(&[]);
    let since = Instant::now();
    let frozen = processes::of_server(&cluster.data(old));
    processes::signal(&frozen, Signal::STOP);
    cluster.successor(old);
    cluster.flows(&writer);
    println!("MEASURED frozen server: blackout {:.2} s", writer.blackout(since).as_secs_f64());
    let ended = |cluster: &Cluster| {
        let now = processes::of_server(&cluster.data(old));
        frozen.iter().all(|pid| !now.contains(pid))
    };
    cluster.until(SOON, "the frozen server was killed", ended);
    cluster.rejoins(old);
    cluster.audit(writer);
}

/// A-11, trap 49.
#[test]
fn a_frozen_node_is_replaced_and_acknowledges_nothing_when_it_wakes() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let writer = cluster.writer(&[old]);
    let mut direct: Vec<Session> =
        (0..3).map(|_| Session::open(cluster.server(old), REJOIN).unwrap()).collect();
    for session in &mut direct {
        session.ask("select 1").unwrap();
    }
    let since = Instant::now();
    let mut frozen = cluster.processes(old);
    frozen.push(cluster.agent(old));
    processes::signal(&frozen, Signal::STOP);
    let asks = direct.into_iter().enumerate().map(|(id, mut session)| {
        std::thread::spawn(move || session.ask(&format!("insert into ledger values ({id})")))
    });
    let asks: Vec<_> = asks.collect();
    cluster.wait(TAKEOVER, "another member serves", |cluster| {
        cluster.primary_but(&[old]).filter(|primary| *primary != old)
    });
    cluster.flows(&writer);
    println!("MEASURED frozen node: blackout {:.2} s", writer.blackout(since).as_secs_f64());
    processes::signal(&frozen, Signal::CONT);
    for ask in asks {
        let answer = ask.join().unwrap();
        assert!(answer.is_err(), "a deposed primary has acknowledged a write");
    }
    cluster.rejoins(old);
    cluster.until(SOON, "all count again", Cluster::is_whole);
    cluster.audit(writer);
}
