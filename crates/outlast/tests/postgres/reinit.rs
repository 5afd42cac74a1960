//! A standby is made anew because people want it.

use std::fs;

use crate::are_real;
use crate::cluster::{Cluster, Plan, THREE};
use crate::wait::{REJOIN, SOON};

const TWO: Plan = Plan { nodes: &["a", "b", "w"], members: &["a", "b"], lines: "" };
const ALONE: Plan = Plan { lines: "acks_min = 0", ..TWO };

/// Directories beside a member's data that were kept.
fn kept(cluster: &Cluster, node: &str) -> usize {
    let name = format!("{node}-orders.aside-");
    let beside = fs::read_dir(&cluster.dir).unwrap().flatten();
    beside.filter(|entry| entry.file_name().to_string_lossy().starts_with(&name)).count()
}

#[test]
fn a_standby_is_cloned_anew_and_its_old_data_kept() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(THREE);
    let primary = cluster.primary().unwrap();
    let standby = THREE.members.iter().copied().find(|node| *node != primary).unwrap();
    let epoch = cluster.epoch();
    let writer = cluster.writer(&[]);
    // What only this directory has is gone from the new one.
    let mark = cluster.data(standby).join("mark");
    fs::write(&mark, "old").unwrap();

    let (done, said) = cluster.verb(primary, &["reinit", "orders", "--node", primary, "--yes"]);
    assert!(!done && said.contains("is the primary"), "{said}");
    let (done, said) = cluster.verb(primary, &["reinit", "orders", "--node", standby]);
    assert!(!done && said.contains("--yes"), "nobody can be asked: {said}");
    assert!(mark.exists() && kept(&cluster, standby) == 0, "nothing was changed");

    let (done, said) = cluster.verb(primary, &["reinit", "orders", "--node", standby, "--yes"]);
    assert!(done && said.contains("was made anew"), "{said}");
    assert!(!mark.exists());
    assert_eq!(kept(&cluster, standby), 1);
    cluster.until(REJOIN, "all count again", Cluster::is_whole);
    cluster.flows(&writer);
    assert_eq!((cluster.primary(), cluster.epoch()), (Some(primary), epoch));
    assert_eq!(writer.failures(), [], "clients of the ports see no error");
    cluster.audit(writer);
    let (_, said) = cluster.verb(primary, &["history", "orders"]);
    assert!(said.contains(&format!("reinit of {standby} asked for by")), "{said}");
    let (_, said) = cluster.verb(standby, &["events"]);
    let cloned = format!("node `{standby}` was cloned from node `{primary}`; what it had is in");
    assert!(said.contains(&cloned), "{said}");
}

#[test]
fn a_standby_without_which_writes_would_wait_is_not_made_anew() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(TWO);
    let primary = cluster.primary().unwrap();
    let standby = TWO.members.iter().copied().find(|node| *node != primary).unwrap();
    let (done, said) = cluster.verb(primary, &["reinit", "orders", "--node", standby, "--yes"]);
    assert!(!done && said.contains("writes would have to wait"), "{said}");
    assert!(said.contains("set `acks_min = 0` in [postgres.orders]"), "{said}");
    assert_eq!(kept(&cluster, standby), 0);
    cluster.until(SOON, "all is as it was", Cluster::is_whole);
}

#[test]
fn the_only_standby_is_made_anew_where_writes_may_go_on_without_it() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(ALONE);
    let primary = cluster.primary().unwrap();
    let standby = ALONE.members.iter().copied().find(|node| *node != primary).unwrap();
    let writer = cluster.writer(&[]);
    let (done, said) = cluster.verb(primary, &["reinit", "orders", "--node", standby, "--yes"]);
    assert!(done && said.contains("was made anew"), "{said}");
    cluster.until(REJOIN, "both count again", Cluster::is_whole);
    cluster.flows(&writer);
    cluster.audit(writer);
}
