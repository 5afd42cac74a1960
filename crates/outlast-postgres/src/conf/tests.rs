use std::path::PathBuf;

use super::*;
use crate::settings::{Address, Tls};

fn settings() -> Settings {
    let peer = |host: &str| Address { host: host.to_owned(), port: 5432 };
    Settings {
        database: "orders".to_owned(),
        node: "db-1".to_owned(),
        data_dir: PathBuf::from("/data/orders"),
        run_dir: PathBuf::from("/run/orders"),
        bin_dir: PathBuf::from("/bin"),
        os_user: None,
        listen: None,
        port: 5432,
        peers: [("db-2", peer("10.0.0.2")), ("db-3", peer("fd00::3")), ("db-4", peer("four"))]
            .map(|(name, address)| (name.to_owned(), address))
            .into(),
        parameters: [("work_mem", "it's"), ("synchronous_commit", "off")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        tls: None,
        hba: Vec::new(),
        replication_secret: "secret".to_owned(),
        keeper: Vec::new(),
    }
}

/// Trap 24.
#[test]
fn names_of_standbys_are_quoted_and_never_mean_all() {
    let sync = |count, names: &[&str]| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Quorum { count, names }.value()
    };
    assert_eq!(sync(1, &["db-2", "a\"b"]).unwrap(), "ANY 1 (\"db-2\",\"a\"\"b\")");
    for (count, names) in [(1, &["*"][..]), (0, &["a"]), (2, &["a"]), (1, &[])] {
        assert!(sync(count, names).is_err(), "{count} {names:?}");
    }
}

#[test]
fn only_peers_may_replicate_and_a_closed_server_lets_nobody_else_in() {
    let open = hba_part(&settings(), &Shape::default());
    assert_eq!(
        open,
        "local all outlast peer map=outlast\n\
         host all outlast all reject\n\
         host postgres,replication outlast_replication 10.0.0.2/32 scram-sha-256\n\
         host postgres,replication outlast_replication fd00::3/128 scram-sha-256\n\
         host postgres,replication outlast_replication \"four\" scram-sha-256\n\
         local all,replication outlast_replication reject\n\
         host all,replication outlast_replication all reject\n"
    );
    let closed = hba_part(&settings(), &Shape { closed: true, ..Shape::default() });
    let rest = "local all,replication all reject\nhost all,replication all all reject\n";
    assert_eq!(closed, format!("{open}{rest}"));
    let tls = Tls { ca: "a".into(), cert: "b".into(), key: "c".into(), node_suffix: None };
    let part = hba_part(&Settings { tls: Some(tls), ..settings() }, &Shape::default());
    assert!(part.contains("hostssl postgres,replication outlast_replication 10.0.0.2/32"));
    assert!(!part.contains("\nhost postgres"));
}

#[test]
fn what_the_user_wrote_stays_below_our_part() {
    let once = with_part("local all all peer\n", "first\n");
    assert_eq!(once, format!("{BEGIN}\nfirst\n{END}\nlocal all all peer\n"));
    assert_eq!(
        with_part(&once, "second\n"),
        format!("{BEGIN}\nsecond\n{END}\nlocal all all peer\n")
    );
    let main = included_last("work_mem = 1\n").unwrap();
    assert_eq!(main, format!("work_mem = 1\n{INCLUDE}\n"));
    assert_eq!(included_last(&main), None);
    // Whatever stands behind it would win.
    let behind = format!("{INCLUDE}\nfsync = off\n");
    assert_eq!(included_last(&behind).unwrap(), format!("fsync = off\n{INCLUDE}\n"));
}

/// `ALTER SYSTEM SET synchronous_standby_names = ''` would undo what the agent has been told.
#[test]
fn what_alter_system_sets_does_not_outlive_our_own() {
    let system =
        "# Do not edit\nwork_mem = '4MB'\nSynchronous_Standby_Names = ''\nprimary_conninfo='x'\n";
    assert_eq!(without_ours(system).as_deref(), Some("# Do not edit\nwork_mem = '4MB'\n"));
    assert_eq!(without_ours("# Do not edit\nwork_mem = '4MB'\n"), None);
    // What has bounds is set where they are kept.
    for line in ["synchronous_commit = 'off'", "wal_level = 'minimal'", "max_wal_senders = '0'"] {
        assert_eq!(without_ours(line).as_deref(), Some(""), "{line}");
    }
}

#[test]
fn the_file_says_what_it_was_made_of() {
    let address = Address { host: "10.0.0.2".to_owned(), port: 6000 };
    let shape = Shape {
        v: VERSION,
        upstream: Some(Upstream { node: "db-2".to_owned(), address, relays: None }),
        sync: Some(Quorum { count: 1, names: vec!["x".to_owned()] }),
        closed: true,
        primary: false,
    };
    let control = Demands { max_connections: 700, ..Demands::DEFAULT };
    let text = text(&settings(), &shape, Some(control)).unwrap();
    for line in [
        "work_mem = 'it''s'",
        "synchronous_standby_names = 'ANY 1 (\"x\")'",
        "default_transaction_read_only = 'on'",
        "primary_slot_name = 'outlast_db__1'",
        "max_connections = '700'",
        "restart_after_crash = 'off'",
        "synchronous_commit = 'on'",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    assert!(text.contains("primary_conninfo = 'host=''10.0.0.2'' port=''6000'' user="), "{text}");
    assert!(text.contains("application_name=''db-1''") && !text.contains("secret"), "{text}");
    let dir = std::env::temp_dir().join(format!("outlast-postgres-conf-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(FILE), text.replace("\"v\":1", "\"v\":9")).unwrap();
    assert!(Shape::read(&dir).unwrap_err().to_string().contains("version 9"));
    std::fs::write(dir.join(FILE), text).unwrap();
    assert_eq!(Shape::read(&dir).unwrap(), shape);
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(Shape::read(&dir).unwrap(), Shape::default());
}
