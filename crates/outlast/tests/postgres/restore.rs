//! A database of what lies on one node.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use crate::are_real;
use crate::cluster::{Cluster, THREE};
use crate::ledger::TABLE;
use crate::wait::BEGIN;

/// Runs one of PostgreSQL's programs as the account that is to have the data.
fn run(cluster: &Cluster, program: &str, words: &[&str]) {
    let mut command = Command::new(cluster.bin.join(program));
    command.args(words).current_dir(&cluster.dir).env("PGHOST", &cluster.dir);
    command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
    if rustix::process::geteuid().is_root() {
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let line = passwd.lines().find(|line| line.starts_with("postgres:")).unwrap();
        let fields: Vec<&str> = line.split(':').collect();
        command.uid(fields[2].parse().unwrap()).gid(fields[3].parse().unwrap());
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {output:?}");
}

/// A base backup of a database that outlast has never seen, in the place of a member's data.
fn lay_backup(cluster: &Cluster, data: &Path) {
    let source = cluster.dir.join("source");
    let (source, data) = (source.to_str().unwrap(), data.to_str().unwrap());
    let socket = format!("-c listen_addresses= -c port=5432 -k {}", cluster.dir.display());
    let log = cluster.dir.join("source.log");
    run(cluster, "initdb", &["--no-sync", "--username=postgres", "-D", source]);
    let start = ["-w", "-D", source, "-o", &socket, "-l", log.to_str().unwrap(), "start"];
    run(cluster, "pg_ctl", &start);
    for sql in [TABLE, "insert into ledger select generate_series(1, 100)"] {
        run(cluster, "psql", &["-qXc", sql]);
    }
    run(cluster, "pg_basebackup", &["--checkpoint=fast", "--no-sync", "-D", data]);
    run(cluster, "pg_ctl", &["-w", "-D", source, "-m", "immediate", "stop"]);
    assert!(Path::new(data).join("backup_label").exists());
}

///
#[test]
fn a_base_backup_that_lies_on_one_node_becomes_the_database() {
    if !are_real() {
        return;
    }
    let mut cluster = Cluster::new(THREE);
    fs::set_permissions(&cluster.dir, fs::Permissions::from_mode(0o777)).unwrap();
    lay_backup(&cluster, &cluster.data("b"));
    for node in THREE.nodes {
        cluster.start_agent(node);
    }
    cluster.until(BEGIN, "the database serves with all members", Cluster::is_whole);
    assert_eq!(cluster.primary(), Some("b"), "only it has data");
    cluster.write("insert into ledger values (101)").unwrap();
    for node in THREE.nodes {
        cluster.until(BEGIN, &format!("{node} has all rows"), |cluster| {
            cluster.rows(node).is_ok_and(|rows| rows.len() == 101)
        });
    }
}
