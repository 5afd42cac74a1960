//! How a database begins, and where its ports lead.

use std::time::{Duration, Instant};

use crate::are_real;
use crate::cluster::{Cluster, THREE};
use crate::ledger::TABLE;
use crate::sql::{self, Failure, READ_ONLY};
use crate::wait::{BEGIN, SOON};

const ANSWER: Duration = Duration::from_secs(10);

///
#[test]
fn three_empty_nodes_become_a_database_whose_ports_lead_where_they_should() {
    if !are_real() {
        return;
    }
    let began = Instant::now();
    let cluster = Cluster::start(THREE);
    cluster.until(BEGIN, "the database serves with all members", Cluster::is_whole);
    println!("made in {:.1} s", began.elapsed().as_secs_f64());
    let primary = cluster.primary().unwrap();
    cluster.write(TABLE).unwrap();
    let from = |port, what: &str| sql::ask(port, ANSWER, what);
    for (id, node) in THREE.nodes.iter().enumerate() {
        from(cluster.write_port(node), &format!("insert into ledger values ({id})")).unwrap();
        let role = from(cluster.read_port(node), "select pg_is_in_recovery()").unwrap();
        assert_eq!(role, [[Some("t".to_owned())]], "the read port of {node}");
        cluster.until(SOON, "a standby has the row", |cluster| {
            let rows =
                from(cluster.read_port(node), &format!("select from ledger where id = {id}"));
            rows.is_ok_and(|rows| rows.len() == 1)
        });
        let refused = from(cluster.read_port(node), "insert into ledger values (99)");
        assert!(
            matches!(&refused, Err(Failure::Refused { state, .. }) if state == READ_ONLY),
            "{refused:?}"
        );
    }
    let role = from(cluster.write_port(primary), "select pg_is_in_recovery()").unwrap();
    assert_eq!(role, [[Some("f".to_owned())]]);
}
