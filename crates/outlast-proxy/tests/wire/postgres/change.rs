//! The primary changes: planned, with a pause, and otherwise.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use outlast_proxy::stats::ErrorKind;
use outlast_proxy::table::Table;

use super::client::{Client, message, query};
use super::server::Server;
use super::{LONG, SLEEPERS, counts, gate, port, primary};
use crate::harness::{Gate, LIMIT, until};

const NAME: &str = "SHOW cluster_name";

fn pause(gate: &Gate) {
    gate.change(|service| port(service).paused = true);
}

/// A session of psql that is given one statement after another.
struct Psql {
    process: Child,
    lines: Receiver<String>,
}

impl Psql {
    fn start(gate: &Gate, user: &str, options: &str) -> Psql {
        let to = format!(
            "host=127.0.0.1 port={} user={user} dbname=postgres {options}",
            gate.address.port()
        );
        let mut process = Command::new("psql")
            .args(["-X", "-A", "-t", "-q", &to])
            .env("PGPASSWORD", "pencil")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql is installed");
        let out = BufReader::new(process.stdout.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            out.lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        Psql { process, lines }
    }

    fn send(&mut self, text: &str) {
        self.process.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(LIMIT).expect("a line of psql")
    }

    fn ask(&mut self, text: &str) -> String {
        self.send(&format!("{text};\n"));
        self.line()
    }

    /// What it has complained about by its end.
    fn end(mut self) -> String {
        drop(self.process.stdin.take());
        let mut said = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[test]
fn a_planned_switchover_costs_no_client_an_error() {
    let (one, two) = (Server::start("one"), Server::start("two"));
    for server in [&one, &two] {
        assert_eq!(server.client().ask("CREATE TABLE t (a int)"), "");
    }
    let gate = gate(&[one.address, two.address], |_| {});
    let mut idle: Vec<Client> = (0..3).map(|_| Client::begin(gate.address, "postgres")).collect();
    for client in &mut idle {
        assert_eq!(client.ask(NAME), "one");
    }
    let mut psql = Psql::start(&gate, "postgres", "");
    assert_eq!(psql.ask(NAME), "one");
    let mut working = Client::begin(gate.address, "postgres");
    working.ask("BEGIN; INSERT INTO t VALUES (1)");
    let (mut bound, mut temporary) =
        (Client::begin(gate.address, "postgres"), Client::begin(gate.address, "postgres"));
    bound.send([message('P', b"name\0SELECT 1\0\0\0"), message('S', b"")].concat());
    bound.answer();
    temporary.ask("CREATE TEMP TABLE x (a int)");

    let applying = paused(&gate);
    // Nothing begins: neither where a session rests, nor a new one.
    idle[0].send(query(NAME));
    psql.send("SHOW cluster_name;\n");
    let coming = {
        let address = gate.address;
        std::thread::spawn(move || Client::begin(address, "postgres").ask(NAME))
    };
    until("the new one waits", || counts(&gate).waiting >= 1);
    until("servers have been left", || gate.stats().backends[0].in_flight == 3);
    assert_eq!(applying.look().map_err(|u| u.open), Err(1), "a transaction is open");
    assert_eq!(working.ask("SELECT count(*) FROM t"), "1");
    working.ask("COMMIT");
    applying.wait(LIMIT).expect("no transaction is open");

    gate.change(|service| primary(service, None));
    assert_eq!(bound.farewell().code(), "57P01");
    let end = temporary.farewell();
    assert!(
        end.field(b'M').contains("bound to it by a statement that may have changed it"),
        "{end:?}"
    );
    gate.change(|service| {
        primary(service, Some(1));
        port(service).paused = false;
    });
    assert_eq!(idle[0].said(), "two");
    assert_eq!(psql.line(), "two");
    assert_eq!(coming.join().unwrap(), "two");
    for client in &mut idle {
        assert_eq!(client.ask(NAME), "two");
    }
    assert_eq!(working.ask("SELECT count(*) FROM t"), "0", "another server");
    assert_eq!(psql.end(), "");
    assert_eq!((counts(&gate).resumed, counts(&gate).bound, counts(&gate).waiting), (5, 2, 0));
    assert_eq!(one.client().ask("SELECT count(*) FROM t"), "1");
}

/// A table that pauses, on its way into force.
fn paused(gate: &Gate) -> outlast_proxy::Applying {
    let mut table = gate.proxy.table();
    port(&mut table.services[0]).paused = true;
    let services = table.services;
    gate.proxy.apply(Table { generation: 2, services }, std::collections::BTreeMap::new()).unwrap()
}

#[test]
fn a_switchover_that_is_given_up_costs_nobody_anything() {
    let server = Server::start("one");
    let gate = gate(&[server.address], |_| {});
    let (mut idle, mut bound) =
        (Client::begin(gate.address, "postgres"), Client::begin(gate.address, "postgres"));
    bound.ask("SET application_name = 'kept'");
    pause(&gate);
    until("one has left", || gate.stats().backends[0].in_flight == 1);
    idle.send(query(NAME));
    bound.send(query("SHOW application_name"));
    until("one waits", || counts(&gate).waiting == 1);
    gate.change(|service| port(service).paused = false);
    assert_eq!(idle.said(), "one");
    assert_eq!(bound.said(), "kept");
    assert_eq!((counts(&gate).resumed, counts(&gate).bound), (1, 0));
    // And a second one is awaited again.
    bound.ask("BEGIN");
    let applying = paused(&gate);
    assert!(applying.look().is_err());
    bound.ask("COMMIT");
    applying.wait(LIMIT).unwrap();
}

#[test]
fn an_unplanned_failover_cuts_what_is_under_way_and_resumes_what_rests() {
    let (one, two) = (Server::start("one"), Server::start("two"));
    let gate = gate(&[one.address, two.address], |_| {});
    let [mut resting, mut open, mut busy, mut bound] =
        [0; 4].map(|_| Client::begin(gate.address, "postgres"));
    bound.ask("SET work_mem = '1MB'");
    open.ask("BEGIN");
    resting.ask("SELECT 1");
    busy.send(query("SELECT pg_sleep(60)"));
    let mut watcher = one.client();
    until("it sleeps", || watcher.ask(SLEEPERS) == "1");
    gate.change(|service| primary(service, None));
    let end = busy.farewell();
    assert_eq!(end.code(), "08006");
    assert!(
        end.field(b'M').contains("whether the last statement took effect is unknown"),
        "{end:?}"
    );
    let end = open.farewell();
    assert_eq!(end.code(), "57P01");
    assert!(end.field(b'M').contains("rolled back"), "{end:?}");
    assert_eq!(bound.farewell().code(), "57P01");
    resting.send(query(NAME));
    until("it waits", || counts(&gate).waiting == 1);
    gate.change(|service| primary(service, Some(1)));
    assert_eq!(resting.said(), "two");
    assert_eq!(gate.errors(0, ErrorKind::CutOff), 3);
    assert_eq!((counts(&gate).resumed, counts(&gate).bound, counts(&gate).held), (1, 1, 1));
}

#[test]
fn a_server_that_dies_takes_only_what_was_under_way_with_it() {
    let mut server = Server::start("one");
    let gate = gate(&[server.address], |service| service.timeouts.connect = LONG);
    let [mut resting, mut open] = [0; 2].map(|_| Client::begin(gate.address, "postgres"));
    resting.ask("SELECT 1");
    open.ask("BEGIN");
    server.stop();
    let end = open.farewell();
    assert!(["57P01", "57P02", "57P03"].contains(&end.code().as_str()), "{end:?}");
    let told = gate.notices();
    assert!(matches!(told[0], outlast_proxy::Notice::Suspect { .. }), "{told:?}");
    // Its table still says that it is up: it is tried until it is there again.
    resting.send(query(NAME));
    until("it waits", || counts(&gate).waiting == 1);
    server.start_again();
    assert_eq!(resting.said(), "one");
    assert_eq!(counts(&gate).resumed, 1);
}

#[test]
fn passwords_are_not_asked_for_again() {
    let (one, two) = (Server::start("one"), Server::start("two"));
    one.client().ask("CREATE ROLE ada LOGIN PASSWORD 'pencil'");
    let verifier = one.client().ask("SELECT rolpassword FROM pg_authid WHERE rolname = 'ada'");
    assert!(verifier.starts_with("SCRAM-SHA-256$"), "{verifier}");
    two.client().ask(&format!("CREATE ROLE ada LOGIN PASSWORD '{verifier}'"));
    let gate = gate(&[one.address, two.address], |service| {
        port(service).verifiers.insert("ada".to_owned(), verifier.clone());
    });
    assert!(!format!("{:?}", gate.proxy.table()).contains("SCRAM"), "a secret in a log");
    let mut psql = Psql::start(&gate, "ada", "");
    assert_eq!(psql.ask(NAME), "one");
    pause(&gate);
    gate.change(|service| {
        primary(service, Some(1));
        port(service).paused = false;
    });
    assert_eq!(
        psql.ask("SELECT current_user || ' ' || current_setting('cluster_name')"),
        "ada two"
    );
    assert_eq!(psql.end(), "");
    // Without its verifier, a session cannot go back.
    let mut psql = Psql::start(&gate, "ada", "");
    assert_eq!(psql.ask(NAME), "two");
    gate.change(|service| port(service).verifiers.clear());
    gate.change(|service| primary(service, Some(0)));
    psql.send("SHOW cluster_name;\n");
    until("it is refused", || counts(&gate).bound == 1);
    let said = psql.end();
    assert!(said.contains("a password that only its client knows"), "{said}");
}

#[test]
fn a_statement_is_cancelled_where_it_runs() {
    let (one, two) = (Server::start("one"), Server::start("two"));
    let gate = gate(&[one.address, two.address], |_| {});
    let mut client = Client::begin(gate.address, "postgres");
    for server in [&one, &two] {
        client.send(query("SELECT pg_sleep(60)"));
        let mut watcher = server.client();
        until("it sleeps", || watcher.ask(SLEEPERS) == "1");
        let packet = [&[0, 0, 0, 16, 4, 210, 22, 46], client.key.as_slice()].concat();
        let mut cancel = crate::harness::Wire::connect(gate.address);
        cancel.send(packet);
        assert_eq!(cancel.rest().unwrap_or_default(), b"");
        assert_eq!(client.said(), "57014");
        // The key that the client has means its session at the next server as well.
        gate.change(|service| primary(service, Some(1)));
    }
}

#[test]
fn a_session_that_has_discarded_everything_may_go_on_elsewhere() {
    let (one, two) = (Server::start("one"), Server::start("two"));
    let gate = gate(&[one.address, two.address], |_| {});
    let mut client = Client::begin(gate.address, "postgres");
    client.ask("SET work_mem = '1MB'");
    client.ask("PREPARE a AS SELECT 1");
    client.ask("DISCARD ALL");
    // Rows that were copied leave nothing behind, either.
    client.ask("CREATE TABLE t (a int)");
    client.send(query("COPY t FROM STDIN"));
    client.send([message('d', b"1\n"), message('d', b"2\n"), message('c', b"")].concat());
    assert_eq!(client.said(), "");
    assert_eq!(client.ask("SELECT count(*) FROM t"), "2");
    gate.change(|service| primary(service, Some(1)));
    assert_eq!(client.ask(NAME), "two");
    assert_eq!(counts(&gate).resumed, 1);
}

/// Transactions of a load, each with a statement of its own and one that goes in three messages.
const LOAD: &str = "BEGIN;\nINSERT INTO t VALUES (1);\nCOMMIT;\n";

#[test]
fn under_load_no_switchover_costs_a_transaction_or_makes_it_happen_twice() {
    let servers = [Server::start("one"), Server::start("two")];
    for server in &servers {
        server.client().ask("CREATE TABLE t (a int)");
    }
    let gate = gate(&[servers[0].address, servers[1].address], |_| {});
    let script = std::env::temp_dir().join(format!("outlast-load-{}.sql", std::process::id()));
    std::fs::write(&script, LOAD).unwrap();
    let port_number = gate.address.port().to_string();
    let load = Command::new("pgbench")
        .args([
            "-n",
            "-h",
            "127.0.0.1",
            "-p",
            &port_number,
            "-U",
            "postgres",
            "-c",
            "6",
            "-t",
            "500",
        ])
        .args([std::ffi::OsStr::new("-f"), script.as_os_str(), "postgres".as_ref()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("pgbench is installed");
    let mut ask = servers.each_ref().map(Server::client);
    let mut count =
        |which: usize| -> u64 { ask[which].ask("SELECT count(*) FROM t").parse().unwrap() };
    for turn in 0..4 {
        let (old, new) = (turn % 2, (turn + 1) % 2);
        let before = count(old);
        until("it has some load", || count(old) > before + 20);
        paused(&gate).wait(LIMIT).expect("no transaction is open");
        let at_rest = count(old);
        gate.change(|service| primary(service, None));
        assert_eq!(count(old), at_rest, "nothing is done in a pause");
        gate.change(|service| {
            primary(service, Some(new));
            port(service).paused = false;
        });
    }
    let output = load.wait_with_output().unwrap();
    std::fs::remove_file(&script).ok();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("actually processed: 3000/3000"),
        "{output:?}"
    );
    assert_eq!(count(0) + count(1), 3000);
    assert!(counts(&gate).resumed >= 6, "{:?}", counts(&gate));
}
