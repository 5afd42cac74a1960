//! The read port: standbys in turn, and the primary in their stead if it may.

use std::collections::BTreeMap;

use outlast_proxy::table::{BackendState, PostgresKind};

use super::client::{Client, query};
use super::server::Server;
use super::{counts, gate, port};
use crate::harness::{Gate, Wire, until};

const NAME: &str = "SHOW cluster_name";
const WRITE: &str = "CREATE TABLE t (a int)";

fn states(gate: &Gate, states: [BackendState; 3]) {
    gate.change(|service| {
        service.backends.iter_mut().zip(states).for_each(|(b, state)| b.state = state);
    });
}

#[test]
fn reads_go_to_standbys_and_to_the_primary_only_in_their_stead() {
    use BackendState::{Down, Draining, Passive, Up};
    let servers = [Server::start("primary"), Server::standby("one"), Server::standby("two")];
    let gate = gate(&[servers[0].address, servers[1].address, servers[2].address], |service| {
        port(service).kind = PostgresKind::Read;
        port(service).fallback = Some(service.backends[0].name.clone());
        service.backends.iter_mut().for_each(|b| b.state = Up);
    });
    let mut clients: Vec<Client> =
        (0..6).map(|_| Client::begin(gate.address, "postgres")).collect();
    let mut turns = BTreeMap::new();
    for client in &mut clients {
        *turns.entry(client.ask(NAME)).or_insert(0) += 1;
        assert_eq!(client.ask(WRITE), "25006");
    }
    assert_eq!(turns, BTreeMap::from([("one".to_owned(), 3), ("two".to_owned(), 3)]));

    // One falls behind: what rests leaves it, what is under way ends first.
    let mut working = clients.pop().unwrap();
    let here = working.ask(NAME);
    let other = if here == "one" { "two" } else { "one" };
    working.ask("BEGIN");
    let behind = if here == "one" { 1 } else { 2 };
    gate.change(|service| service.backends[behind].state = Draining);
    until("only what is under way is left", || gate.stats().backends[behind].in_flight == 1);
    for client in &mut clients {
        assert_eq!(client.ask(NAME), other);
    }
    assert_eq!(working.ask(NAME), here);
    working.ask("COMMIT");
    assert_eq!(working.ask(NAME), other);

    // Both are gone: the primary stands in, and may not be written to.
    states(&gate, [Up, Down, Down]);
    assert_eq!(working.ask(NAME), "primary");
    assert_eq!(working.ask(WRITE), "25006");
    let mut wire = Wire::connect(gate.address);
    wire.send(outlast_proxy::postgres::startup::TLS_REQUEST);
    let refused = String::from_utf8_lossy(&wire.rest().unwrap()).into_owned();
    assert!(refused.contains("57P03") && refused.contains("without TLS"), "{refused}");

    // Without a fallback nobody stands in.
    gate.change(|service| port(service).fallback = None);
    states(&gate, [Passive, Down, Up]);
    assert_eq!(working.ask(NAME), "two");
    assert_eq!(Client::begin(gate.address, "postgres").ask(NAME), "two");
}

#[test]
fn a_standby_that_becomes_the_primary_lets_no_reader_write() {
    let (server, other) = (Server::start("promoted"), Server::standby("standby"));
    let gate = gate(&[server.address, other.address], |service| {
        port(service).kind = PostgresKind::Read;
        service.backends[0].state = BackendState::Up;
        service.backends[1].state = BackendState::Down;
    });
    let [mut resting, mut open] = [0; 2].map(|_| Client::begin(gate.address, "postgres"));
    resting.ask("SELECT 1");
    open.ask("BEGIN");
    gate.change(|service| port(service).fallback = Some(service.backends[0].name.clone()));
    assert_eq!(open.farewell().code(), "57P01");
    assert_eq!(resting.ask(WRITE), "25006");
    assert_eq!(counts(&gate).resumed, 1);
    // And a session that is read-only says so itself.
    resting.send(query("SHOW default_transaction_read_only"));
    assert_eq!(resting.said(), "on");
}
