//! The two ports of each database: one leads to the primary, the other to the standbys.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::database::Verifiers;
use outlast_core::agent::HeldDatabase;
use outlast_core::agreed::{Database, UpkeepKind};
use outlast_core::database::{MemberSight, Readable, readable};
use outlast_core::topology::{Postgres, Topology};
use outlast_proxy::table::{Backend, BackendState, PostgresKind, PostgresPort, Protocol, Service};

/// A connection to a member is made, or tried again, within this time.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// Sessions may be idle for as long as they like.
const IDLE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is known of the databases.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// What is agreed was heard.
    pub(super) agreed: bool,
    pub(super) databases: BTreeMap<String, HeldDatabase>,
    /// Nodes on which people work.
    pub(super) paused: BTreeSet<String>,
    /// What each node says of its member, if that is fresh: by database, then by node.
    pub(super) members: BTreeMap<String, BTreeMap<String, MemberSight>>,
    pub(super) verifiers: Verifiers,
}

/// The name under which a port is counted.
fn port_name(database: &str, kind: PostgresKind) -> String {
    let kind = match kind {
        PostgresKind::Write => "write",
        PostgresKind::Read => "read",
    };
    format!("postgres.{database}.{kind}")
}

fn listens(part: &Postgres) -> impl Iterator<Item = (PostgresKind, SocketAddr)> {
    let write = part.listen_write.map(|address| (PostgresKind::Write, address));
    write.into_iter().chain(part.listen_read.map(|address| (PostgresKind::Read, address)))
}

/// Where clients are awaited, by the name of the part.
pub(super) fn listeners(topology: &Topology) -> impl Iterator<Item = (String, SocketAddr)> {
    topology.postgres.iter().flat_map(|(name, part)| {
        listens(part).map(move |(kind, address)| (port_name(name, kind), address))
    })
}

/// The services of all databases.
pub(super) fn services(topology: &Topology, known: &Known) -> Vec<Service> {
    let ports = topology.postgres.iter().flat_map(|(name, part)| {
        listens(part)
            .map(move |(kind, address)| service(topology, known, name, part, kind, address))
    });
    ports.collect()
}

fn service(
    topology: &Topology,
    known: &Known,
    name: &str,
    part: &Postgres,
    kind: PostgresKind,
    listen: SocketAddr,
) -> Service {
    let agreed = known.databases.get(name).map(|held| &held.database);
    let primary = agreed.and_then(Database::serving);
    let backends = part.nodes.iter().filter_map(|node| {
        let address = SocketAddr::new(topology.nodes.get(node)?.address, part.port.get());
        let state = match (kind, known.agreed) {
            (_, false) => BackendState::Unknown,
            (PostgresKind::Write, _) if primary == Some(node) => BackendState::Up,
            (PostgresKind::Write, _) => BackendState::Passive,
            (PostgresKind::Read, _) => read_state(known, name, part, agreed, node),
        };
        Some(Backend { name: node.clone(), address, tls_name: None, state })
    });
    let mut service = Service::plain(&port_name(name, kind), listen, Protocol::Postgres, &[]);
    service.backends = backends.collect();
    service.vouched = true;
    service.eject.failures = 0;
    service.eject.rate_5xx = None;
    service.timeouts.connect = CONNECT_MAX;
    service.timeouts.tunnel = IDLE_MAX;
    service.postgres = Some(PostgresPort {
        kind,
        hold: part.hold,
        paused: kind == PostgresKind::Write
            && agreed.is_some_and(|agreed| {
                agreed.is_closed()
                    || is_shut(known, name, agreed)
                    || is_restarting(known, name, agreed)
            }),
        fallback: primary.filter(|_| kind == PostgresKind::Read && part.read_from_primary).cloned(),
        verifiers: known.verifiers.0.get(name).cloned().unwrap_or_default(),
    });
    service
}

/// The primary still lets nobody in, although its switchover was given up: it is about to open.
fn is_shut(known: &Known, name: &str, agreed: &Database) -> bool {
    let members = known.members.get(name);
    let primary = members.and_then(|members| members.get(&agreed.reign.primary));
    primary.is_some_and(|primary| primary.closed.is_some())
}

/// The primary ends because people want it to restart: clients wait for it.
fn is_restarting(known: &Known, name: &str, agreed: &Database) -> bool {
    let primary = &agreed.reign.primary;
    let turn = agreed.turn_of(primary).is_some_and(|(kind, _)| kind == UpkeepKind::Restart);
    let sight = known.members.get(name).and_then(|members| members.get(primary));
    turn && sight.is_some_and(|sight| sight.serves != Some(agreed.reign.epoch))
}

/// What the read port may do with a member.
fn read_state(
    known: &Known,
    name: &str,
    part: &Postgres,
    agreed: Option<&Database>,
    node: &str,
) -> BackendState {
    let leaves = known.paused.contains(node)
        || agreed.is_some_and(|agreed| agreed.turn_of(node).is_some() || agreed.is_remade(node));
    let none = BTreeMap::new();
    let members = known.members.get(name).unwrap_or(&none);
    match readable(agreed, members, node, part.lag_limit) {
        Readable::Primary if part.read_from_primary => BackendState::Up,
        Readable::Primary => BackendState::Passive,
        Readable::Yes if leaves => BackendState::Draining,
        Readable::Yes => BackendState::Up,
        Readable::NoNew => BackendState::Draining,
        Readable::No => BackendState::Down,
    }
}
