//! Clients that leave no room.

use std::time::Duration;

use crate::are_real;
use crate::cluster::{Cluster, THREE};
use crate::sql::{Failure, Session};
use crate::wait::{self, SOON};

const TOO_MANY: &str = "53300";

/// More than PostgreSQL lets in.
const CROWD: usize = 200;

/// No write within 4 s, and then 10 s to serve again: longer than that.
const NOTHING_HAPPENS: Duration = Duration::from_secs(20);

/// Trap 45.
#[test]
fn superusers_that_take_every_connection_depose_no_primary() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(THREE);
    let (primary, epoch) = (cluster.primary().unwrap(), cluster.epoch());
    let mut crowd = Vec::new();
    let refused = wait::look(SOON, || match Session::open(cluster.server(primary), SOON) {
        Ok(session) => {
            crowd.push(session);
            (CROWD < crowd.len()).then_some(None)
        }
        Err(Failure::Refused { state, .. }) if state == TOO_MANY => Some(Some(())),
        Err(other) => panic!("{other:?}"),
    });
    assert_eq!(refused, Some(Some(())), "{} were let in", crowd.len());
    let deposed = wait::look(NOTHING_HAPPENS, || {
        cluster.primary().filter(|now| *now != primary || cluster.epoch() != epoch)
    });
    assert_eq!(deposed, None, "because {} clients are connected", crowd.len());
    assert_eq!(cluster.primary(), Some(primary));
    drop(crowd);
    cluster.until(SOON, "all is well", Cluster::is_whole);
    assert_eq!(cluster.epoch(), epoch);
}
