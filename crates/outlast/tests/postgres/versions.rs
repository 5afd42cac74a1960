//! The short of it on other versions of PostgreSQL: `OUTLAST_PG_VERSIONS` names them, `OUTLAST_PG18_BIN` says where 18 is.

use std::path::PathBuf;
use std::time::Instant;

use crate::are_real;
use crate::cluster::{Cluster, THREE};
use crate::wait::{REJOIN, SOON};

fn others() -> Vec<PathBuf> {
    let named = std::env::var("OUTLAST_PG_VERSIONS").unwrap_or_default();
    let names = named.split([',', ' ']).filter(|version| !version.is_empty() && *version != "15");
    let found = names.map(|version| {
        let bin = std::env::var_os(format!("OUTLAST_PG{version}_BIN"));
        PathBuf::from(bin.unwrap_or_else(|| panic!("OUTLAST_PG{version}_BIN says where it is")))
    });
    found.collect()
}

#[test]
fn other_versions_are_made_fail_over_switch_over_and_rejoin() {
    if !are_real() {
        return;
    }
    for bin in others() {
        // They come as a link to where they are, and are found from there.
        let bin = bin.canonicalize().unwrap();
        println!("with {}", bin.display());
        let began = Instant::now();
        let mut cluster = Cluster::serving_with(THREE, bin);
        let old = cluster.primary().unwrap();
        let writer = cluster.writer(&[old]);
        crate::death::leave_a_row_that_nobody_else_has(&cluster, old);
        cluster.kill_node(old);
        let new = cluster.successor(old);
        cluster.flows(&writer);
        cluster.start_agent(old);
        cluster.rejoins(old);
        cluster.until(REJOIN, "all count again", Cluster::is_whole);
        assert!(crate::death::aside(&cluster, old).is_empty(), "what differs is enough: no clone");
        crate::switchover::moved(&cluster, new, old);
        cluster.flows(&writer);
        cluster.until(SOON, "it is primary", |cluster| cluster.primary() == Some(old));
        cluster.until(REJOIN, "all count again", Cluster::is_whole);
        cluster.audit(writer);
        println!("MEASURED all of it: {:.1} s", began.elapsed().as_secs_f64());
    }
}
