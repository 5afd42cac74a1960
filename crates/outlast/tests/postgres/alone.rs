//! Who is left alone, or always was.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cluster::{Cluster, Plan, THREE};
use crate::wait::{self, BEGIN, REJOIN, SOON, TAKEOVER};
use crate::{are_real, processes, sql};

/// After 10 s without the log of a primary that serves, a standby is made like that one.
const STARVES: Duration = Duration::from_secs(13);

fn asides(cluster: &Cluster) -> usize {
    let names = fs::read_dir(&cluster.dir).unwrap().flatten();
    names.filter(|entry| entry.file_name().to_string_lossy().contains(".aside-")).count()
}

/// Trap 20.
#[test]
fn a_standby_that_is_left_alone_for_long_stays_what_it_is_and_may_be_chosen() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let mut others = THREE.nodes.iter().copied().filter(|node| *node != old);
    let (second, last) = (others.next().unwrap(), others.next().unwrap());
    let writer = cluster.writer(&[old]);
    cluster.kill_node(second);
    cluster.flows(&writer);
    cluster.kill_node(old);
    let postmaster = cluster.postmaster(last);
    assert!(postmaster.is_some());
    let changed = wait::look(STARVES, || (cluster.postmaster(last) != postmaster).then_some(()));
    assert_eq!(changed, None, "it went down although there is nobody to be like");
    cluster.start_agent(second);
    assert_eq!(cluster.successor(old), last, "only it has all that was acknowledged");
    cluster.rejoins(second);
    cluster.flows(&writer);
    assert_eq!((cluster.postmaster(last), asides(&cluster)), (postmaster, 0));
    cluster.start_agent(old);
    cluster.rejoins(old);
    cluster.until(REJOIN, "all count again", Cluster::is_whole);
    cluster.audit(writer);
}

const ONE: Plan = Plan { nodes: &["a", "b", "c"], members: &["a"], lines: "" };

///
#[test]
fn a_single_member_comes_back_as_primary() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(ONE);
    let (epoch, timeline) = (cluster.epoch(), cluster.timeline());
    let writer = cluster.writer(&[]);
    let postmaster = cluster.postmaster("a").unwrap();
    processes::signal(&[postmaster], Signal::KILL);
    cluster.until(TAKEOVER, "another postmaster runs", |cluster| {
        cluster.postmaster("a").is_some_and(|now| now != postmaster)
    });
    cluster.flows(&writer);
    cluster.kill_node("a");
    cluster.start_agent("a");
    cluster.until(BEGIN, "it is back", Cluster::is_whole);
    cluster.flows(&writer);
    assert_eq!((cluster.epoch(), cluster.timeline()), (epoch, timeline));
    cluster.audit(writer);
}

/// the primary's log still arrives at the others.
#[test]
fn an_agent_that_is_silent_for_less_than_its_lease_loses_nothing() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(THREE);
    let primary = cluster.primary().unwrap();
    let other = THREE.nodes.iter().copied().find(|node| *node != primary).unwrap();
    let (epoch, postmaster) = (cluster.epoch(), cluster.postmaster(primary));
    let writer = cluster.writer(&[primary]);
    let agent = [cluster.agent(primary)];
    let since = Instant::now();
    processes::signal(&agent, Signal::STOP);
    let silent = wait::look(SOON, || {
        let heard = cluster.says(other)?["members"][primary]["heard_seconds_ago"].as_f64()?;
        (2.1 < heard).then_some(())
    });
    cluster.flows(&writer);
    processes::signal(&agent, Signal::CONT);
    assert_eq!(silent, Some(()), "nobody has missed it");
    println!("MEASURED silent for {:.2} s", since.elapsed().as_secs_f64());
    cluster.until(SOON, "all is as it was", Cluster::is_whole);
    assert_eq!((cluster.epoch(), cluster.postmaster(primary)), (epoch, postmaster));
    cluster.audit(writer);
}

/// All that `c` has lost is what it remembers, as after a restore from a backup.
fn forget(cluster: &Cluster, node: &str) {
    fs::remove_file(cluster.home(node).join("postgres/orders/member.json")).unwrap();
}

const C_IS_BEST: Plan = Plan { lines: "priorities = { c = 1000 }", ..THREE };

///
#[test]
fn who_is_preferred_leads_if_its_log_is_known_and_not_otherwise() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(C_IS_BEST);
    for known in [true, false] {
        if cluster.primary() != Some("a") {
            let (done, said) = cluster.verb("b", &["switchover", "orders", "--to", "a"]);
            assert!(done, "{said}");
            cluster.until(REJOIN, "all count", Cluster::is_whole);
        }
        // Nobody writes: all have the same.
        let reaches = |cluster: &Cluster, node: &str| {
            sql::ask(cluster.server(node), SOON, "select pg_last_wal_receive_lsn()").ok()
        };
        cluster.until(SOON, "both reach equally far", |cluster| {
            reaches(cluster, "b").is_some_and(|b| Some(b) == reaches(cluster, "c"))
        });
        let (done, said) = cluster.verb("b", &["pause", "--for", "10m", "--why", "a test"]);
        assert!(done, "{said}");
        cluster.kill_node("c");
        if !known {
            forget(&cluster, "c");
        }
        cluster.until(SOON, "c is missed", |cluster| {
            cluster.says("a").is_some_and(|says| says["members"]["c"]["sync"] == false)
        });
        if known {
            cluster.start_agent("c");
            cluster.until(REJOIN, "c counts again", Cluster::is_whole);
        }
        cluster.kill_node("a");
        if !known {
            cluster.start_agent("c");
            cluster.until(REJOIN, "the server of c runs", |cluster| {
                cluster.says("c").is_some_and(|says| says["members"]["c"]["state"] == "standby")
            });
        }
        let (done, said) = cluster.verb("b", &["resume"]);
        assert!(done, "{said}");
        assert_eq!(cluster.successor("a"), if known { "c" } else { "b" }, "c is known: {known}");
        cluster.start_agent("a");
        cluster.until(REJOIN, "all count again", Cluster::is_whole);
    }
    assert!(asides(&cluster) > 0, "what nobody can vouch for is cloned");
}
