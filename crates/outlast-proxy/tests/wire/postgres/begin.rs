//! How sessions begin: at once, after a wait, through TLS, or not.

use std::process::Command;
use std::time::Duration;

use outlast_core::time::Instant;
use outlast_proxy::stats::ErrorKind;
use outlast_proxy::table::BackendState;

use super::client::{Client, query};
use super::server::{Server, free};
use super::{SHORT, counts, gate, port, primary};
use crate::harness::{Wire, nobody, until};

const NAME: &str = "SHOW cluster_name";

#[test]
fn a_client_waits_for_its_primary_and_goes_on() {
    let server = Server::start("one");
    let gate = gate(&[server.address], |service| primary(service, None));
    let address = gate.address;
    let coming = std::thread::spawn(move || Client::begin(address, "postgres").ask(NAME));
    until("it waits", || counts(&gate).waiting == 1);
    gate.change(|service| primary(service, Some(0)));
    assert_eq!(coming.join().unwrap(), "one");
    assert_eq!((counts(&gate).held, counts(&gate).waiting), (1, 0));
    let backend = &gate.stats().backends[0];
    assert_eq!(backend.counts.tunnels, 1);
    until("it has gone", || gate.stats().backends[0].in_flight == 0);
}

#[test]
fn a_server_that_is_not_there_yet_is_tried_again() {
    let address = free();
    let gate = gate(&[address], |_| {});
    let to = gate.address;
    let coming = std::thread::spawn(move || Client::begin(to, "postgres").ask(NAME));
    until("it waits", || counts(&gate).waiting == 1);
    let _server = Server::with("late", address, |_| {});
    assert_eq!(coming.join().unwrap(), "late");
}

#[test]
fn nobody_waits_for_ever() {
    let gate = gate(&[nobody()], |service| port(service).hold = SHORT);
    let refused = Client::try_begin(gate.address, &[("user", "ada")]).unwrap_err();
    assert_eq!((refused.code().as_str(), refused.field(b'S').as_str()), ("57P03", "FATAL"));
    assert!(refused.field(b'H').contains("connect again"), "{refused:?}");
    assert_eq!(gate.own_errors(ErrorKind::NoBackend), 1);
    // And not too many at once.
    gate.change(|service| {
        port(service).hold = super::LONG;
        service.limits.queue = 1;
    });
    let waiting = std::net::TcpStream::connect(gate.address).unwrap();
    let mut waiting = Wire::over(waiting);
    waiting.send(outlast_proxy::postgres::startup::packet(&[("user", "ada")]));
    until("one waits", || counts(&gate).waiting == 1);
    let refused = Client::try_begin(gate.address, &[("user", "ada")]).unwrap_err();
    assert_eq!(refused.code(), "57P03");
    assert!(refused.field(b'M').contains("too many"), "{refused:?}");
    // Whoever goes does not wait any more.
    drop(waiting);
    until("nobody waits", || counts(&gate).waiting == 0);
}

#[test]
fn connections_beyond_the_limit_are_told_so() {
    let gate = gate(&[nobody()], |service| service.limits.connections = 1);
    let _first = Wire::connect(gate.address);
    until("it is counted", || gate.stats().connections == 1);
    let refused = Client::try_begin(gate.address, &[("user", "ada")]).unwrap_err();
    assert_eq!(refused.code(), "53300");
}

#[test]
fn what_the_server_refuses_is_told_in_its_own_words() {
    let server = Server::start("one");
    let gate = gate(&[server.address], |_| {});
    let refused = Client::try_begin(gate.address, &[("user", "nobody")]).unwrap_err();
    assert_eq!(refused.code(), "28000");
    let refused =
        Client::try_begin(gate.address, &[("user", "postgres"), ("database", "x")]).unwrap_err();
    assert_eq!(refused.code(), "3D000");
    let mut client = Client::begin(gate.address, "postgres");
    assert_eq!(client.ask("SELECT 1/0"), "22012");
    assert_eq!(client.ask("SELECT repeat('x', 3000000)").len(), 3_000_000);
    let long = "y".repeat(2_000_000);
    assert_eq!(client.ask(&format!("SELECT '{long}'")), long);
}

#[test]
fn tls_goes_through_and_ends_with_the_role() {
    let key = rcgen::generate_simple_self_signed(["db.example".to_owned()]).unwrap();
    let server = Server::with("one", free(), |data| {
        std::fs::write(data.join("server.crt"), key.cert.pem()).unwrap();
        std::fs::write(data.join("server.key"), key.signing_key.serialize_pem()).unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(data.join("server.key"), std::fs::Permissions::from_mode(0o600))
            .unwrap();
        let settings = std::fs::read_to_string(data.join("postgresql.conf")).unwrap();
        std::fs::write(data.join("postgresql.conf"), format!("{settings}\nssl = on\n")).unwrap();
    });
    let gate = gate(&[server.address], |_| {});
    let to = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=require",
        gate.address.port()
    );
    let asked = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let output = Command::new("psql").args(["-X", "-A", "-t", "-c", asked, &to]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "t\n", "{output:?}");
    // In the middle of a session.
    let mut psql = Command::new("psql")
        .args(["-X", "-A", "-t", "-c", "SELECT pg_sleep(60)", &to])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut watcher = server.client();
    until("it sleeps", || watcher.ask(super::SLEEPERS) == "1");
    gate.change(|service| primary(service, None));
    assert!(!psql.wait().unwrap().success());
    assert_eq!(gate.errors(0, ErrorKind::CutOff), 1);
}

#[test]
fn a_server_without_tls_says_so_and_the_client_goes_on() {
    let server = Server::start("one");
    let gate = gate(&[server.address], |_| {});
    let to = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=prefer",
        gate.address.port()
    );
    let output = Command::new("psql").args(["-X", "-A", "-t", "-c", NAME, &to]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "one\n", "{output:?}");
}

#[test]
fn sessions_end_with_the_lease_unless_they_rest() {
    let server = Server::start("one");
    let gate = gate(&[server.address], |service| service.vouched = true);
    let guard = gate.proxy.guard();
    std::thread::spawn(move || guard.watch());
    let address = gate.address;
    let coming = std::thread::spawn(move || Client::begin(address, "postgres"));
    until("it waits", || counts(&gate).waiting == 1);
    let for_long = Instant::from_start(Duration::from_secs(u64::from(u32::MAX)));
    gate.proxy.vouch(for_long);
    let mut resting = coming.join().unwrap();
    let mut busy = Client::begin(gate.address, "postgres");
    busy.send(query("SELECT pg_sleep(60)"));
    resting.ask("SELECT 1");
    gate.proxy.vouch(Instant::default());
    assert_eq!(busy.farewell().code(), "08006");
    resting.send(query(NAME));
    until("it waits", || counts(&gate).waiting == 1);
    assert_eq!(gate.stats().backends[0].in_flight, 0);
    gate.proxy.vouch(for_long);
    assert_eq!(resting.said(), "one");
    // Nothing was wrong with the server.
    assert_eq!(gate.proxy.table().services[0].backends[0].state, BackendState::Up);
}
