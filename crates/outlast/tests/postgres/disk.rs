//! Data that is gone, or somebody else's.

use std::fs;
use std::process::Command;

use crate::are_real;
use crate::cluster::{Cluster, THREE};
use crate::wait::{REJOIN, SOON};

/// Traps 15, 16 and 44; A-6.
#[test]
fn data_that_is_gone_or_foreign_is_cloned_again_and_a_second_agent_of_a_node_is_refused() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(THREE);
    let primary = cluster.primary().unwrap();
    let mut others = THREE.nodes.iter().copied().filter(|node| *node != primary);
    let (gone, foreign) = (others.next().unwrap(), others.next().unwrap());
    let writer = cluster.writer(&[gone, foreign]);

    cluster.kill_node(gone);
    fs::remove_dir_all(cluster.data(gone)).unwrap();
    cluster.start_agent(gone);
    cluster.rejoins(gone);
    cluster.until(REJOIN, "all count again", Cluster::is_whole);

    cluster.kill_node(foreign);
    cluster.make_foreign(foreign);
    cluster.start_agent(foreign);
    cluster.rejoins(foreign);
    cluster.until(REJOIN, "all count again", Cluster::is_whole);
    assert_eq!(cluster.primary(), Some(primary));

    refuses_a_second_agent(&cluster, primary);
    let account = cluster.audit(writer);
    for node in [gone, foreign] {
        cluster.until(SOON, "a clone has all rows", |cluster| {
            cluster.rows(node).is_ok_and(|rows| account.acknowledged.is_subset(&rows))
        });
    }
}

fn refuses_a_second_agent(cluster: &Cluster, node: &str) {
    let second = cluster.dir.join("second.toml");
    let text = fs::read_to_string(cluster.file(node)).unwrap();
    let home = format!("data_dir = \"{}\"", cluster.home(node).display());
    let other = format!("data_dir = \"{}\"", cluster.dir.join("second").display());
    fs::write(&second, text.replacen(&home, &other, 1)).unwrap();
    for file in [&cluster.file(node), &second] {
        let run = Command::new("timeout")
            .arg(SOON.as_secs().to_string())
            .arg(env!("CARGO_BIN_EXE_outlast"))
            .arg("run")
            .arg(file)
            .args(["--node", node])
            .output()
            .unwrap();
        assert!(![Some(0), Some(124)].contains(&run.status.code()), "{run:?}");
    }
}
