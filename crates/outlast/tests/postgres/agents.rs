//! An agent that dies while its PostgreSQL lives.

use std::time::Instant;

use crate::are_real;
use crate::cluster::{Cluster, THREE};
use crate::wait::{SOON, TAKEOVER};

/// Trap 8.
#[test]
fn an_agent_that_comes_back_in_time_finds_its_server_and_one_that_does_not_loses_it() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let (epoch, postmaster) = (cluster.epoch(), cluster.postmaster(old).unwrap());
    let writer = cluster.writer(&[old]);
    let since = Instant::now();
    cluster.kill_agent(old);
    cluster.start_agent(old);
    cluster.until(SOON, "the agent is there again", |cluster| cluster.primary() == Some(old));
    cluster.until(SOON, "all count", Cluster::is_whole);
    println!("MEASURED agent restarted: blackout {:.2} s", writer.blackout(since).as_secs_f64());
    assert_eq!((cluster.epoch(), cluster.postmaster(old)), (epoch, Some(postmaster)));

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
