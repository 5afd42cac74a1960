//! A primary that dies, with its node or alone.

use std::fs;
use std::time::Instant;

use rustix::process::Signal;

use crate::cluster::{Cluster, THREE};
use crate::wait::{REJOIN, SOON, TAKEOVER};
use crate::{are_real, processes, sql};

///
#[test]
fn another_member_takes_over_from_a_dead_node_and_no_acknowledged_row_is_lost() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let writer = cluster.writer(&[old]);
    let since = Instant::now();
    leave_a_row_that_nobody_else_has(&cluster, old);
    cluster.kill_node(old);
    let new = cluster.successor(old);
    cluster.flows(&writer);
    println!("MEASURED dead node: blackout {:.2} s", writer.blackout(since).as_secs_f64());
    cluster.start_agent(old);
    cluster.rejoins(old);
    cluster.until(SOON, "all count again", Cluster::is_whole);
    let account = cluster.audit(writer);
    assert_eq!(cluster.primary(), Some(new), "the old primary comes back as a standby");
    cluster.until(SOON, "the old primary has what the others have", |cluster| {
        let rows = cluster.rows(old).unwrap();
        account.acknowledged.is_subset(&rows) && rows.is_subset(&account.tried)
    });
    assert!(aside(&cluster, old).is_empty(), "what differs is enough: no clone");
    let (_, said) = cluster.verb(old, &["events"]);
    assert!(said.contains(&format!("node `{old}` was rewound to node `{new}`")), "{said}");
}

/// Written while nothing is sent, by a session that does not wait for others.
pub(crate) fn leave_a_row_that_nobody_else_has(cluster: &Cluster, primary: &str) {
    let data = cluster.data(primary);
    processes::signal(&processes::of_kind(&data, "walsender"), Signal::STOP);
    let alone = "set synchronous_commit = local; insert into ledger values (0)";
    let written = sql::ask(cluster.server(primary), SOON, alone);
    processes::signal(&processes::of_server(&data), Signal::KILL);
    written.unwrap();
}

/// Data directories that were put aside.
pub(crate) fn aside(cluster: &Cluster, node: &str) -> Vec<String> {
    let names = fs::read_dir(&cluster.dir).unwrap().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&format!("{node}-orders.aside"))).collect()
}

/// after it: the same cluster.
#[test]
fn a_dead_postmaster_serves_again_in_its_place_and_one_that_cannot_start_hands_over() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let (epoch, timeline) = (cluster.epoch(), cluster.timeline());
    let writer = cluster.writer(&[]);

    let since = Instant::now();
    let postmaster = cluster.postmaster(old).unwrap();
    processes::signal(&[postmaster], Signal::KILL);
    cluster.until(TAKEOVER, "another postmaster runs", |cluster| {
        cluster.postmaster(old).is_some_and(|now| now != postmaster)
    });
    cluster.flows(&writer);
    println!("MEASURED dead postmaster: blackout {:.2} s", writer.blackout(since).as_secs_f64());
    assert_eq!(
        (cluster.primary(), cluster.epoch(), cluster.timeline()),
        (Some(old), epoch, timeline)
    );
    cluster.until(SOON, "all count again", Cluster::is_whole);

    let since = Instant::now();
    let control = cluster.data(old).join("global/pg_control");
    fs::rename(&control, control.with_extension("away")).unwrap();
    processes::signal(&processes::of_server(&cluster.data(old)), Signal::KILL);
    cluster.successor(old);
    cluster.flows(&writer);
    println!(
        "MEASURED data that cannot be used: blackout {:.2} s",
        writer.blackout(since).as_secs_f64()
    );
    cluster.rejoins(old);
    cluster.until(REJOIN, "all count again", Cluster::is_whole);
    assert_eq!(aside(&cluster, old).len(), 1, "what cannot be used is kept aside");
    cluster.audit(writer);
}
