//! Members restart because people want it.

use std::process::Child;

use crate::cluster::{Cluster, Plan, THREE};
use crate::wait::{REJOIN, SOON};
use crate::{are_real, processes, sql};

/// More restarts than a primary may crash within a minute.
const OFTEN: usize = 3;

const TWO: Plan = Plan { nodes: &["a", "b", "w"], members: &["a", "b"], lines: "" };

fn postmasters(cluster: &Cluster) -> Vec<Option<i32>> {
    cluster.plan.members.iter().map(|node| cluster.postmaster(node)).collect()
}

/// A setting as a member has it.
fn setting(cluster: &Cluster, node: &str, name: &str) -> Option<String> {
    let rows = sql::ask(cluster.server(node), SOON, &format!("show {name}")).ok()?;
    rows.into_iter().next()?.into_iter().next()?
}

/// Gives all members these parameters, as a changed topology does.
fn set(cluster: &Cluster, parameters: &str) {
    for node in cluster.plan.nodes {
        cluster.write_file(node, &format!("parameters = {{ {parameters} }}"));
        let (done, said) = cluster.verb(node, &["reload"]);
        assert!(done, "{said}");
    }
}

fn need_restart(cluster: &Cluster) -> Vec<&'static str> {
    let Some(says) = cluster.primary().and_then(|primary| cluster.says(primary)) else {
        return Vec::new();
    };
    let needs = |node: &&&str| {
        let needs = says["members"][**node]["needs_restart"].as_array();
        needs.is_some_and(|names| names.iter().any(|name| name == "max_connections"))
    };
    cluster.plan.members.iter().filter(needs).copied().collect()
}

#[test]
fn all_restart_one_after_the_other_and_the_primary_hands_over_first() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let before = postmasters(&cluster);
    let writer = cluster.writer(&[]);
    let (done, said) = cluster.verb(old, &["restart", "orders"]);
    assert!(done, "{said}");
    assert!(said.contains(&format!("node `{old}` hands over")), "{said}");
    cluster.until(SOON, "another is primary", |cluster| {
        cluster.primary().is_some_and(|primary| primary != old)
    });
    cluster.until(REJOIN, "all count again", Cluster::is_whole);
    for (before, now) in before.iter().zip(postmasters(&cluster)) {
        assert!(now.is_some() && *before != now, "every one was started anew");
    }
    cluster.flows(&writer);
    assert_eq!(writer.failures(), [], "clients of the ports see no error");
    cluster.audit(writer);
    let (_, said) = cluster.verb(old, &["history", "orders"]);
    assert!(said.contains("restart of a, b, c asked for by"), "{said}");
    assert!(said.contains("restart of all that were asked for is done"), "{said}");
    assert!(!said.contains("primary no more"), "nobody failed over: {said}");
}

/// It is no crash, however often: nobody takes over, and clients of the ports wait.
#[test]
fn a_primary_that_restarts_in_place_stays_primary() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(THREE);
    let primary = cluster.primary().unwrap();
    let epoch = cluster.epoch();
    let writer = cluster.writer(&[]);
    for _ in 0..OFTEN {
        let before = cluster.postmaster(primary);
        let restart = ["restart", "orders", "--node", primary, "--in-place"];
        let (done, said) = cluster.verb(primary, &restart);
        assert!(done, "{said}");
        assert_ne!(cluster.postmaster(primary), before);
        cluster.flows(&writer);
    }
    assert_eq!((cluster.primary(), cluster.epoch()), (Some(primary), epoch));
    assert_eq!(writer.failures(), [], "clients of the ports see no error");
    cluster.audit(writer);
}

/// Trap 42: what standbys must not have lower than their primary rises there first, and gets lower at the primary first.
#[test]
fn settings_take_effect_at_once_or_with_a_restart_of_those_that_need_it() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(THREE);
    let primary = cluster.primary().unwrap();
    let before = postmasters(&cluster);
    let (done, said) = cluster.verb(primary, &["restart", "orders", "--pending"]);
    assert!(done && said.contains("no member needs a restart"), "{said}");

    set(&cluster, "work_mem = \"7MB\", max_connections = \"130\"");
    for node in THREE.members {
        cluster.until(SOON, "a setting counts at once", |cluster| {
            setting(cluster, node, "work_mem").as_deref() == Some("7MB")
        });
    }
    assert_eq!(postmasters(&cluster), before, "nobody was restarted for it");
    cluster.until(SOON, "all need a restart", |cluster| need_restart(cluster).len() == 3);
    let (done, said) = cluster.verb(primary, &["restart", "orders", "--pending"]);
    assert!(done, "{said}");
    cluster.until(REJOIN, "all count again", Cluster::is_whole);
    for node in THREE.members {
        assert_eq!(setting(&cluster, node, "max_connections").as_deref(), Some("130"), "{node}");
    }
    assert_eq!(need_restart(&cluster), [""; 0]);

    let epoch = cluster.epoch();
    let primary = cluster.primary().unwrap();
    set(&cluster, "max_connections = \"90\"");
    cluster.until(SOON, "all need a restart", |cluster| need_restart(cluster).len() == 3);
    let (done, said) = cluster.verb(primary, &["restart", "orders", "--pending"]);
    assert!(done, "{said}");
    let first = said.lines().next().unwrap_or_default();
    assert!(first.contains(&format!("node `{primary}` has restarted")), "{said}");
    assert_eq!((cluster.primary(), cluster.epoch()), (Some(primary), epoch));
    for node in THREE.members {
        cluster.until(SOON, "all have less", |cluster| {
            setting(cluster, node, "max_connections").as_deref() == Some("90")
        });
    }
    let (_, said) = cluster.verb(primary, &["history", "orders"]);
    assert!(!said.contains("primary no more"), "nobody failed over: {said}");
}

#[test]
fn a_restart_goes_on_without_the_command_and_the_agent_that_were_asked() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(TWO);
    let primary = cluster.primary().unwrap();
    let standby = TWO.members.iter().copied().find(|node| *node != primary).unwrap();
    let before = postmasters(&cluster);
    let mut asked: Child = cluster.begin_verb("w", &["restart", "orders", "--in-place"]);
    cluster.until(SOON, "it is agreed on", |cluster| {
        cluster.says(standby).is_some_and(|says| says["upkeep"].is_string())
    });
    cluster.kill_agent("w");
    asked.kill().ok();
    asked.wait().unwrap();
    cluster.until(REJOIN, "all have restarted", |cluster| {
        let now = postmasters(cluster);
        let anew = now.iter().zip(&before).all(|(now, before)| now.is_some() && now != before);
        anew && cluster.says(standby).is_some_and(|says| says["upkeep"].is_null())
    });
    cluster.until(REJOIN, "all count again", Cluster::is_whole);
    let (_, said) = cluster.verb(primary, &["history", "orders"]);
    assert!(said.contains("restart of all that were asked for is done"), "{said}");
}

/// The agent of the member dies in the middle of its restart: the next one carries it to its end.
#[test]
fn a_restart_outlives_the_agent_of_the_member_that_restarts() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(THREE);
    let primary = cluster.primary().unwrap();
    let standby = THREE.members.iter().copied().find(|node| *node != primary).unwrap();
    let before = cluster.postmaster(standby).unwrap();
    let restart = ["restart", "orders", "--node", standby];
    let asked = cluster.begin_verb(primary, &restart);
    cluster.until(SOON, "it ends", |cluster| {
        cluster.postmaster(standby) != Some(before)
            || processes::of_kind(&cluster.data(standby), "walreceiver").is_empty()
    });
    cluster.kill_agent(standby);
    cluster.start_agent(standby);
    let end = asked.wait_with_output().unwrap();
    assert!(end.status.success(), "{}", String::from_utf8_lossy(&end.stdout));
    assert_ne!(cluster.postmaster(standby), Some(before));
    cluster.until(REJOIN, "all count again", Cluster::is_whole);
}

#[test]
fn what_nothing_moves_is_refused_and_a_member_goes_on_through_a_change() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(THREE);
    let before = postmasters(&cluster);
    let node = THREE.members[0];
    let file = std::fs::read_to_string(cluster.file(node)).unwrap();
    for (key, is, will) in [
        ("port", "port = 7432", "port = 7433"),
        ("data_dir", "a-orders\"", "a-other\""),
        ("version", "version = 1", "version = 2"),
    ] {
        let changed = file.replacen(is, will, 1);
        assert_ne!(changed, file, "{key}");
        std::fs::write(cluster.file(node), changed).unwrap();
        let (done, said) = cluster.verb(node, &["reload"]);
        let refused = said.contains(&format!("`{key}` of postgres.orders cannot change"));
        assert!(!done && refused, "{said}");
    }
    let changed = file.replacen("trust", "reject", 1);
    std::fs::write(cluster.file(node), changed).unwrap();
    let (done, said) = cluster.verb(node, &["reload"]);
    assert!(done, "{said}");
    cluster.until(SOON, "who may connect counts at once", |cluster| cluster.rows(node).is_err());
    assert_eq!(postmasters(&cluster), before, "nobody was restarted for it");
}
