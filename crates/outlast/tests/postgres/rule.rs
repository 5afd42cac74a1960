//! Who acknowledges, and who may lead.

use std::time::Duration;

use rustix::process::Signal;

use crate::cluster::{Cluster, Plan, THREE};
use crate::ledger::Writer;
use crate::wait::{self, REJOIN, SOON};
use crate::{are_real, processes, sql};

/// Longer than a write takes.
const WAITS: Duration = Duration::from_secs(2);

/// `c` follows and never leads; it acknowledges only while nobody else can.
const C_NEVER_LEADS: Plan = Plan { lines: "priorities = { c = 0 }", ..THREE };

fn counts(cluster: &Cluster, node: &str) -> Option<bool> {
    let says = cluster.says(cluster.primary()?)?;
    says["members"][node]["sync"].as_bool()
}

///
fn nothing_is_acknowledged_that_no_standby_has(cluster: &Cluster, writer: &Writer) {
    let receivers = ["b", "c"].map(|node| processes::of_kind(&cluster.data(node), "walreceiver"));
    let receivers = receivers.concat();
    processes::signal(&receivers, Signal::STOP);
    let before = writer.acknowledged();
    // One may have been under way.
    let more = wait::look(WAITS, || (before + 1 < writer.acknowledged()).then_some(()));
    processes::signal(&receivers, Signal::CONT);
    assert_eq!(
        (receivers.len(), more),
        (2, None),
        "a write is acknowledged that only the primary has"
    );
    cluster.flows(writer);
}

///
#[test]
fn the_rule_names_those_that_receive_and_only_those_that_may_lead_do() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::serving(C_NEVER_LEADS);
    assert_eq!(cluster.primary(), Some("a"));
    let writer = cluster.writer(&[]);
    cluster.kill_node("b");
    cluster
        .until(SOON, "who is away does not count", |cluster| counts(cluster, "b") == Some(false));
    cluster.flows(&writer);
    cluster.start_agent("b");
    cluster.until(REJOIN, "who is back counts", |cluster| counts(cluster, "b") == Some(true));
    cluster.until(SOON, "the change is done", Cluster::is_whole);

    let (done, said) = cluster.verb("a", &["switchover", "orders", "--to", "c"]);
    assert!(!done && said.contains("priority"), "{said}");
    sql::ask(cluster.server("b"), SOON, "select pg_wal_replay_pause()").unwrap();
    cluster.until(SOON, "one that does not replay must not lead", |cluster| {
        let (done, said) = cluster.verb("a", &["switchover", "orders", "--to", "b", "--dry-run"]);
        !done && said.contains("paused")
    });
    cluster.flows(&writer);
    sql::ask(cluster.server("b"), SOON, "select pg_wal_replay_resume()").unwrap();
    cluster.until(SOON, "one that replays again may", |cluster| {
        cluster.verb("a", &["switchover", "orders", "--to", "b", "--dry-run"]).0
    });

    nothing_is_acknowledged_that_no_standby_has(&cluster, &writer);
    writer.use_ports(cluster.write_ports(&["a"]));
    cluster.kill_node("a");
    assert_eq!(cluster.successor("a"), "b", "the priority of c is 0");
    cluster.flows(&writer);
    cluster.audit(writer);
}
