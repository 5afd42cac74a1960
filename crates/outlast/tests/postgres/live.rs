//! What counts at once when a changed topology is applied.

use rustix::process::geteuid;

use crate::are_real;
use crate::isolation::Lab;
use crate::ledger::TABLE;
use crate::wait::{BEGIN, SOON};

/// Whom the primary's commits wait for, as PostgreSQL itself says.
fn waits_for(lab: &Lab) -> String {
    let Some(primary) = lab.primary() else { return String::new() };
    let host = ["a", "b", "c"].iter().position(|node| *node == primary).unwrap() + 1;
    let sql = "show synchronous_standby_names";
    lab.sql(&format!("10.0.0.{host}"), "5432", sql).trim().to_owned()
}

/// there is no list with priorities here; the number of copies and the mode are changed instead.
#[test]
fn copies_and_durability_change_while_clients_write() {
    if !are_real() {
        return;
    }
    if !geteuid().is_root() {
        println!("NOT RUN: PostgreSQL in the lab needs root");
        return;
    }
    let lab = Lab::up("live");
    lab.until(BEGIN, "the database serves with all members", || lab.is_whole());
    lab.sql("10.0.0.4", "6432", TABLE);
    let primary = lab.primary().unwrap();
    let standbys: Vec<String> =
        ["a", "b", "c"].iter().filter(|n| **n != primary).map(|n| format!("\"{n}\"")).collect();
    let both = standbys.join(",");
    lab.until(SOON, "commits wait for one", || waits_for(&lab) == format!("ANY 1 ({both})"));
    let changes = [
        ("acks = 2\n", format!("ANY 2 ({both})")),
        ("durability = \"async\"\n", String::new()),
        ("", format!("ANY 1 ({both})")),
    ];
    for (id, (lines, rule)) in changes.into_iter().enumerate() {
        let file = lab.write_file("new.toml", lines);
        let applied = lab.exec("a", &["outlast", "apply", &file, "--yes", "--timeout", "30s"]);
        assert!(applied.status.success(), "{lines}: {applied:?}");
        lab.until(SOON, &format!("commits wait for `{rule}`"), || waits_for(&lab) == rule);
        lab.sql("10.0.0.4", "6432", &format!("insert into ledger values ({id})"));
        assert_eq!(lab.primary(), Some(primary), "nothing moves for it");
    }
    assert_eq!(lab.sql("10.0.0.4", "6432", "select count(*) from ledger").trim(), "3");
}
