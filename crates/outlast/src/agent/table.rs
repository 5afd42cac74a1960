//! From what is believed to what the data plane serves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use outlast_core::health::Health;
use outlast_core::pair::Side;
use outlast_core::topology::{self, Pool, Topology};
use outlast_core::view::{BackendView, View};
use outlast_proxy::table::{
    Backend, BackendState, Balance, Certificate, Eject, Forwarded, Limits, Protocol, ProxyVersion,
    Retry, Service, Table, Timeouts,
};

/// Addresses of backend host names, as last resolved.
pub type Resolved = BTreeMap<String, IpAddr>;

/// Certificates by the paths of chain and key in the file; the data plane itself reads no files.
pub type Certificates = BTreeMap<(String, String), Certificate>;

/// The table for a view. A backend whose name does not resolve is left out: nothing could be sent to it.
pub fn table(
    generation: u64,
    topology: &Topology,
    view: &View,
    resolved: &Resolved,
    certificates: &Certificates,
) -> Table {
    let services = topology.services.iter().filter_map(|(name, spec)| {
        let listen = spec.listen?;
        let seen = view.services.get(name);
        let backends = spec.pool.backends().into_iter().enumerate().filter_map(|(i, backend)| {
            let ip = backend.host.parse().ok().or_else(|| resolved.get(&backend.host).copied())?;
            let seen_backend = seen.and_then(|s| s.backends.get(i));
            Some(Backend {
                name: backend.url.clone(),
                address: SocketAddr::new(ip, backend.port.get()),
                tls_name: backend.tls.then(|| backend.host.clone()),
                state: state(seen_backend, seen.and_then(|s| s.active).map(|(side, _)| side)),
            })
        });
        Some(Service {
            name: name.clone(),
            listen,
            protocol: match spec.protocol {
                topology::Protocol::Http => Protocol::Http,
                topology::Protocol::Tcp => Protocol::Tcp,
            },
            certificates: spec
                .tls
                .iter()
                .filter_map(|tls| certificates.get(&(tls.cert.clone(), tls.key.clone())).cloned())
                .collect(),
            backends: backends.collect(),
            balance: balance(&spec.pool),
            retry: retry(&spec.retry),
            eject: Eject {
                failures: spec.eject.failures,
                rate_5xx: spec.eject.rate_5xx,
                rate_min: spec.eject.rate_min,
                time: spec.eject.time,
                max_time: spec.eject.max_time,
            },
            timeouts: timeouts(&spec.timeouts),
            limits: limits(&spec.limits),
            panic: spec.panic,
            slow_start: spec.slow_start,
            forwarded: match spec.forwarded {
                topology::Forwarded::Off => Forwarded::Off,
                topology::Forwarded::XForwarded => Forwarded::XForwarded,
                topology::Forwarded::Forwarded => Forwarded::Forwarded,
                topology::Forwarded::Both => Forwarded::Both,
            },
            trusted: spec.trusted.iter().map(|n| (n.address, n.prefix)).collect(),
            accept_proxy: spec.proxy_protocol.accept,
            send_proxy: spec.proxy_protocol.send.map(|v| match v {
                topology::ProxyVersion::V1 => ProxyVersion::V1,
                topology::ProxyVersion::V2 => ProxyVersion::V2,
            }),
        })
    });
    Table { generation, services: services.collect() }
}

/// What the data plane may do with a backend.
fn state(seen: Option<&BackendView>, active: Option<Side>) -> BackendState {
    let Some(seen) = seen else { return BackendState::Unknown };
    if active.is_some() && seen.role != active {
        return BackendState::Passive;
    }
    match seen.health {
        _ if seen.draining => BackendState::Draining,
        Health::Unknown => BackendState::Unknown,
        Health::Up => BackendState::Up,
        Health::Down => BackendState::Down,
    }
}

fn balance(pool: &Pool) -> Balance {
    let Pool::Balanced { balance, .. } = pool else { return Balance::RoundRobin };
    match balance {
        topology::Balance::RoundRobin => Balance::RoundRobin,
        topology::Balance::Random => Balance::Random,
        topology::Balance::LeastRequests => Balance::LeastRequests,
        topology::Balance::Hash(topology::HashKey::ClientIp) => Balance::HashIp,
        topology::Balance::Hash(topology::HashKey::Path) => Balance::HashPath,
        topology::Balance::Hash(topology::HashKey::Header(name)) => {
            Balance::HashHeader(name.clone())
        }
        topology::Balance::Hash(topology::HashKey::Cookie(name)) => {
            Balance::HashCookie(name.clone())
        }
    }
}

fn retry(spec: &topology::Retry) -> Retry {
    Retry {
        attempts: spec.attempts.get(),
        backoff: spec.backoff,
        budget: spec.budget,
        try_timeout: spec.try_timeout,
        on_connect: spec.on.connect,
        on_reset: spec.on.reset,
        on_timeout: spec.on.timeout,
        on_5xx: spec.on.status_5xx,
    }
}

fn timeouts(spec: &topology::Timeouts) -> Timeouts {
    Timeouts {
        connect: spec.connect,
        head: spec.head,
        body: spec.body,
        idle: spec.idle,
        backend_idle: spec.backend_idle,
        tunnel: spec.tunnel,
        drain: spec.drain,
        queue: spec.queue,
    }
}

fn limits(spec: &topology::Limits) -> Limits {
    Limits {
        head_bytes: spec.head_bytes,
        headers: spec.headers,
        body_bytes: spec.body_bytes,
        connections: spec.connections.get(),
        requests: spec.requests.get(),
        per_backend: spec.per_backend,
        queue: spec.queue,
    }
}

/// Reads every certificate and key that the file names.
pub fn certificates(topology: &Topology, base: &Path) -> anyhow::Result<Certificates> {
    let read = |what: &str, path: &str| {
        let path = base.join(path);
        std::fs::read_to_string(&path)
            .map_err(|e| anyhow::anyhow!("read the {what} {}: {e}", path.display()))
    };
    let mut certificates = BTreeMap::new();
    for tls in topology.services.values().flat_map(|s| &s.tls) {
        let certificate = Certificate {
            chain: read("certificate", &tls.cert)?,
            key: read("private key", &tls.key)?,
            client_ca: tls.ca.as_ref().map(|ca| read("CA", ca)).transpose()?,
        };
        certificates.insert((tls.cert.clone(), tls.key.clone()), certificate);
    }
    Ok(certificates)
}

/// What a table says about health, for an agent that takes over from another.
pub fn beliefs(table: &Table) -> BTreeMap<outlast_core::event::Target, Health> {
    let of = |service: &Service, backend: &Backend| {
        let health = match backend.state {
            BackendState::Up => Health::Up,
            BackendState::Down => Health::Down,
            BackendState::Unknown | BackendState::Draining | BackendState::Passive => return None,
        };
        let target = outlast_core::event::Target::Backend {
            service: service.name.clone(),
            backend: backend.name.clone(),
        };
        Some((target, health))
    };
    table.services.iter().flat_map(|s| s.backends.iter().filter_map(move |b| of(s, b))).collect()
}

/// The backends that a table holds out of traffic, for an agent that takes over from another.
pub fn draining(table: &Table) -> BTreeSet<(String, String)> {
    let of = |service: &Service| {
        let name = service.name.clone();
        let drained = service.backends.iter().filter(|b| b.state == BackendState::Draining);
        drained.map(|b| (name.clone(), b.name.clone())).collect::<Vec<_>>()
    };
    table.services.iter().flat_map(of).collect()
}

/// The addresses that a table has for the host names of a topology, for an agent that takes over from another: without
/// them, it would take those backends out of traffic until it has resolved their names.
pub fn resolved(topology: &Topology, table: &Table) -> Resolved {
    let of = |service: &Service| {
        let spec = topology.services.get(&service.name)?;
        let hosts = spec.pool.backends().into_iter().filter_map(|backend| {
            let known = service.backends.iter().find(|b| b.name == backend.url)?;
            Some((backend.host.clone(), known.address.ip()))
        });
        Some(hosts.collect::<Vec<_>>())
    };
    table.services.iter().filter_map(of).flatten().collect()
}
