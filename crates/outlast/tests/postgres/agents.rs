//! An agent that dies while its PostgreSQL lives.

use std::time::{Duration, Instant};

use crate::are_real;
use crate::cluster::{Cluster, THREE};
use crate::ledger::Writer;
use crate::wait::{REJOIN, SOON, TAKEOVER};

/// The lease of a primary lasts 4.7 s from a renewal, which is a second old at most.
const IN_TIME: Duration = Duration::from_millis(2500);

/// A machine that is busy may not bring an agent back in time; then there is nothing to see, and it is tried again.
const TRIES: u32 = 8;

/// Restarts the primary's agent until that was fast enough for its server to go on; says who is primary then.
fn restart_in_time(cluster: &mut Cluster, writer: &Writer, mut old: &'static str) -> &'static str {
    for _ in 0..TRIES {
        let (epoch, postmaster) =
            (cluster.epoch(), cluster.postmaster(old).expect("a primary runs"));
        let since = Instant::now();
        cluster.kill_agent(old);
        cluster.start_agent(old);
        cluster.until(SOON, "the agent answers", |cluster| cluster.says(old).is_some());
        cluster.until(SOON, "it agrees with the others", |cluster| cluster.primary().is_some());
        let took = since.elapsed();
        cluster.until(REJOIN, "all count", Cluster::is_whole);
        println!("MEASURED agent restarted in {:.2} s", took.as_secs_f64());
        if took < IN_TIME {
            println!("MEASURED blackout {:.2} s", writer.blackout(since).as_secs_f64());
            let now = (cluster.primary(), cluster.epoch(), cluster.postmaster(old));
            assert_eq!(now, (Some(old), epoch, Some(postmaster)));
            return old;
        }
        old = cluster.wait(SOON, "somebody is primary", Cluster::primary);
    }
    panic!("this machine is too busy: no agent was back within {IN_TIME:?} in {TRIES} tries");
}

/// Trap 8.
#[test]
fn an_agent_that_comes_back_in_time_finds_its_server_and_one_that_does_not_loses_it() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let writer = cluster.writer(&[old]);
    let old = restart_in_time(&mut cluster, &writer, old);

    let since = Instant::now();
    cluster.kill_agent(old);
    cluster.until(TAKEOVER, "the keeper has killed the server", |cluster| {
        cluster.postmaster(old).is_none()
    });
    cluster.successor(old);
    cluster.flows(&writer);
    println!("MEASURED agent dead: blackout {:.2} s", writer.blackout(since).as_secs_f64());
    cluster.start_agent(old);
    cluster.rejoins(old);
    cluster.audit(writer);
}
