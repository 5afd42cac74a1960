//! What a standby still needs is kept for it, and not for ever.

use crate::are_real;
use crate::cluster::{Cluster, Plan, THREE};
use crate::sql;
use crate::wait::{REJOIN, SOON};

/// Less than is written here.
const BOUNDED: Plan = Plan {
    lines: "parameters = { max_slot_wal_keep_size = \"32MB\", wal_keep_size = \"0\", max_wal_size = \"64MB\" }",
    ..THREE
};

/// Segments of 16 MiB that are written while a standby is away.
const SEGMENTS: usize = 12;

/// Name and state of each slot on a server.
fn slots(cluster: &Cluster, node: &str) -> Vec<(String, String)> {
    let sql = "select slot_name, coalesce(wal_status, '-') || ' ' || active from pg_replication_slots order by 1";
    let rows = sql::ask(cluster.server(node), SOON, sql).unwrap_or_default();
    let pair = |row: sql::Row| Some((row.first()?.clone()?, row.get(1)?.clone()?));
    rows.into_iter().filter_map(pair).collect()
}

/// From where on a slot keeps log, unless it has lost that.
fn keeps_from(cluster: &Cluster, node: &str, slot: &str) -> Option<String> {
    let sql = format!(
        "select restart_lsn::text from pg_replication_slots where slot_name = '{slot}' and wal_status <> 'lost'"
    );
    let rows = sql::ask(cluster.server(node), SOON, &sql).unwrap();
    rows.first()?.first()?.clone()
}

fn are_used(cluster: &Cluster, node: &str, count: usize) -> bool {
    let used =
        |(name, state): &(String, String)| name.starts_with("outlast_") && state.ends_with(" true");
    slots(cluster, node).iter().filter(|slot| used(slot)).count() == count
}

/// as far as it applies; trap 36.
#[test]
fn slots_are_on_every_member_survive_a_failover_and_keep_no_more_than_they_may() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(BOUNDED);
    let old = cluster.primary().unwrap();
    for node in THREE.nodes {
        cluster.until(SOON, &format!("slots for both others on {node}"), |cluster| {
            slots(cluster, node).len() == 2
        });
    }
    cluster.until(SOON, "both are used", |cluster| are_used(cluster, old, 2));
    cluster.kill_node(old);
    let new = cluster.successor(old);
    let kept = format!("outlast_{old}");
    let found = slots(&cluster, new);
    assert!(found.iter().any(|(name, _)| *name == kept), "{found:?}");
    let from = keeps_from(&cluster, new, &kept);
    assert!(from.is_some(), "{found:?}");

    // While the old one is away, more is written than is kept.
    let write = |sql: &str| sql::ask(cluster.server(new), SOON, sql).unwrap();
    for segment in 0..SEGMENTS {
        write(&format!("insert into ledger values ({segment})"));
        write("select pg_switch_wal()");
    }
    write("checkpoint");
    let bytes = write("select sum(size) from pg_ls_waldir()");
    let bytes: u64 = bytes[0][0].as_ref().unwrap().parse().unwrap();
    println!("MEASURED {} MiB of log after {SEGMENTS} segments", bytes >> 20);
    assert!(bytes < 160 << 20, "{bytes} bytes are kept");
    // It is lost, or was made anew already; nobody uses it, so nothing else moves it.
    assert_ne!(keeps_from(&cluster, new, &kept), from);
    cluster.start_agent(old);
    // A rewind would not be enough, and is not tried.
    cluster.until(SOON, "it was made anew", |cluster| cluster.is_standby_of(old, new));
    cluster.until(REJOIN, "all count again", Cluster::is_whole);
    cluster.until(SOON, "the lost slot was made anew", |cluster| are_used(cluster, new, 2));
    let rows = cluster.rows(old).unwrap();
    assert_eq!(rows.len(), SEGMENTS);
}
