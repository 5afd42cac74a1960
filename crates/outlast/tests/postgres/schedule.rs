//! A switchover is asked for at a time.

use std::time::{Duration, SystemTime};

use crate::are_real;
use crate::cluster::{Cluster, THREE};
use crate::wait::{REJOIN, SOON};

fn in_time(after: Duration) -> String {
    let at = SystemTime::now() + after;
    jiff::Timestamp::try_from(at).unwrap().to_string()
}

#[test]
fn a_scheduled_switchover_outlives_who_asked_and_who_led() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(THREE);
    let old = cluster.primary().unwrap();
    let mut others = THREE.members.iter().copied().filter(|node| *node != old);
    let (to, third) = (others.next().unwrap(), others.next().unwrap());
    let writer = cluster.writer(&[third]);
    let switch =
        |when: &str| cluster.verb(third, &["switchover", "orders", "--to", to, "--at", when]);

    let (done, said) = switch("2020-01-01T00:00:00Z");
    assert!(!done && said.contains("has passed"), "{said}");
    let (done, said) = switch(&in_time(Duration::from_secs(3600)));
    assert!(done, "{said}");
    let (_, said) = cluster.verb(old, &["status"]);
    assert!(said.contains(&format!("switchover to node `{to}` at")), "{said}");
    let (done, said) = switch(&in_time(Duration::from_secs(10)));
    assert!(!done && said.contains("--cancel"), "{said}");
    let (done, said) = cluster.verb(old, &["switchover", "orders", "--cancel"]);
    assert!(done, "{said}");
    let (done, said) = cluster.verb(old, &["switchover", "orders", "--cancel"]);
    assert!(!done && said.contains("waits for its time"), "{said}");

    let (done, said) = switch(&in_time(Duration::from_secs(8)));
    assert!(done, "{said}");
    // The agent that was asked is gone, and with it the leader if it is that one.
    cluster.kill_agent(third);
    cluster.until(REJOIN, "it has moved", |cluster| cluster.primary() == Some(to));
    cluster.start_agent(third);
    cluster.until(REJOIN, "all count again", Cluster::is_whole);
    writer.use_ports(cluster.write_ports(&[]));
    cluster.flows(&writer);
    let (_, said) = cluster.verb(old, &["history", "orders"]);
    assert!(said.contains("took it back") && said.contains("scheduled by"), "{said}");
    cluster.audit(writer);
}

#[test]
fn what_cannot_be_begun_at_its_time_is_given_up_with_a_reason() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(THREE);
    let primary = cluster.primary().unwrap();
    let epoch = cluster.epoch();
    let when = in_time(Duration::from_secs(3));
    let (done, said) =
        cluster.verb(primary, &["switchover", "orders", "--to", primary, "--at", &when]);
    assert!(done, "{said}");
    cluster.until(SOON, "it is given up", |cluster| {
        let (_, said) = cluster.verb(primary, &["history", "orders"]);
        said.contains("is the primary already")
    });
    let (_, said) = cluster.verb(primary, &["events", "--subject", "postgres.orders"]);
    assert!(said.contains("is the primary already"), "{said}");
    assert_eq!((cluster.primary(), cluster.epoch()), (Some(primary), epoch));
}
