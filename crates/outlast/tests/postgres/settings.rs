//! Settings that PostgreSQL does not take.

use crate::are_real;
use crate::cluster::{Cluster, Plan, THREE};
use crate::wait::{BEGIN, REJOIN, SOON};

/// What PostgreSQL says of a name that it does not know.
const UNKNOWN: &str = "unrecognized configuration parameter \"max_conections\"";
const MISSPELT: &str = "parameters = { max_conections = 300 }";

/// What a member says is wrong with it.
fn trouble(cluster: &Cluster, node: &str) -> String {
    let says = cluster.says(node).unwrap_or_default();
    says["members"][node]["trouble"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_setting_that_postgresql_does_not_take_is_voted_down_and_seen_where_it_is_in_force() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(THREE);
    let node = cluster.primary().unwrap();
    cluster.write_file(node, MISSPELT);
    let file = cluster.file(node).display().to_string();
    let (done, said) = cluster.verb(node, &["apply", &file, "--yes"]);
    assert!(!done && said.contains(UNKNOWN) && said.contains("postgres.orders"), "{said}");
    assert_eq!(trouble(&cluster, node), "", "it is in force nowhere");

    // A node that takes its own file asks nobody.
    let (done, said) = cluster.verb(node, &["reload"]);
    assert!(done, "{said}");
    cluster.until(REJOIN, "it is seen", |cluster| trouble(cluster, node).contains(UNKNOWN));
    cluster.write_file(node, "");
    let (done, said) = cluster.verb(node, &["reload"]);
    assert!(done, "{said}");
    cluster.until(SOON, "nothing is wrong any more", |cluster| trouble(cluster, node).is_empty());
}

#[test]
fn a_database_with_a_setting_that_is_not_taken_is_not_made_and_says_why() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::start(Plan { lines: MISSPELT, ..THREE });
    let says = |cluster: &Cluster| {
        THREE.members.iter().any(|node| trouble(cluster, node).contains(UNKNOWN))
    };
    cluster.until(BEGIN, "it says why", says);
    for node in THREE.nodes {
        cluster.write_file(node, "");
        let (done, said) = cluster.verb(node, &["reload"]);
        assert!(done, "{said}");
    }
    cluster.until(BEGIN, "the database serves with all members", Cluster::is_whole);
}
