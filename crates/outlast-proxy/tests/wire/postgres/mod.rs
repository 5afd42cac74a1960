//! Sessions of PostgreSQL before real servers and scripted ones.

mod begin;
mod change;
mod client;
mod malformed;
mod read;
mod scripted;
mod server;

use std::net::SocketAddr;
use std::time::Duration;

use outlast_proxy::stats::PostgresStats;
use outlast_proxy::table::{BackendState, PostgresPort, Protocol, Service};

use crate::harness::Gate;

/// A write port whose first server is the primary.
fn gate(servers: &[SocketAddr], tune: impl FnOnce(&mut Service)) -> Gate {
    Gate::start(Protocol::Postgres, 2, servers, |service| {
        service.backends.iter_mut().skip(1).for_each(|b| b.state = BackendState::Passive);
        tune(service);
    })
}

fn port(service: &mut Service) -> &mut PostgresPort {
    service.postgres.as_mut().expect("a service of PostgreSQL")
}

/// Long enough for whatever is expected to happen before it.
const LONG: Duration = Duration::from_secs(30);

const SHORT: Duration = Duration::from_millis(200);

/// This server is the primary from now on, or none is.
fn primary(service: &mut Service, which: Option<usize>) {
    for (i, backend) in service.backends.iter_mut().enumerate() {
        backend.state = if Some(i) == which { BackendState::Up } else { BackendState::Passive };
    }
}

/// How many sessions of a server sleep.
const SLEEPERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";

fn counts(gate: &Gate) -> PostgresStats {
    gate.stats().postgres
}
