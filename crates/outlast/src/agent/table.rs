//! From what is believed to what the data plane serves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use outlast_core::event::Target;
use outlast_core::health::Health;
use outlast_core::topology::{self, Pool, Topology};
use outlast_core::view::{BackendView, ServiceView, View};
use outlast_proxy::table::{
    Backend, BackendState, Balance, Certificate, Eject, Forwarded, Limits, Protocol, ProxyVersion,
    Retry, Service, Table, Timeouts,
};
use serde::Deserialize as _;

/// Addresses of backend host names, as last resolved.
pub type Resolved = BTreeMap<String, IpAddr>;

/// Certificates by the paths of chain and key in the file; the data plane itself reads no files.
pub type Certificates = BTreeMap<(String, String), Certificate>;

/// The table for a view. A backend whose name does not resolve is left out: nothing could be sent to it. `leased`: who serves a
/// pair is agreed on with other nodes, so that this one routes to it only while it vouches for what it knows.
pub fn table(
    generation: u64,
    topology: &Topology,
    view: &View,
    resolved: &Resolved,
    certificates: &Certificates,
    leased: bool,
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
                state: state(seen_backend, seen),
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
            vouched: leased && matches!(spec.pool, Pool::Pair(_)),
            postgres: None,
        })
    });
    Table { generation, services: services.collect() }
}

/// What the data plane may do with a backend.
fn state(seen: Option<&BackendView>, service: Option<&ServiceView>) -> BackendState {
    let Some(seen) = seen else { return BackendState::Unknown };
    let active = service.and_then(|service| service.active).map(|(side, _)| side);
    let moving = service.is_some_and(|service| service.moving);
    if moving || (active.is_some() && seen.role != active) {
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

/// What an agent that takes over reads from a proxy's table. The table may be of another build: whatever it does not have
/// is left out, and whatever is not known here is passed over, so that no new field costs what was believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inherited {
    pub generation: u64,
    services: Vec<InheritedService>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct InheritedService {
    name: String,
    backends: Vec<InheritedBackend>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct InheritedBackend {
    name: String,
    address: Option<SocketAddr>,
    state: Option<BackendState>,
}

impl Inherited {
    /// Nothing, if it is no table at all.
    pub fn read(table: &serde_json::Value) -> Option<Inherited> {
        let generation = table["generation"].as_u64().unwrap_or_default();
        let services = table["services"].as_array()?.iter().filter_map(|service| {
            let backends = service["backends"].as_array().into_iter().flatten();
            let backends = backends.filter_map(|backend| {
                Some(InheritedBackend {
                    name: backend["name"].as_str()?.to_owned(),
                    address: backend["address"].as_str().and_then(|a| a.parse().ok()),
                    state: BackendState::deserialize(&backend["state"]).ok(),
                })
            });
            let name = service["name"].as_str()?.to_owned();
            Some(InheritedService { name, backends: backends.collect() })
        });
        Some(Inherited { generation, services: services.collect() })
    }

    /// Whether it serves anything.
    pub fn serves(&self) -> bool {
        !self.services.is_empty()
    }

    fn backends(&self) -> impl Iterator<Item = (&str, &InheritedBackend)> {
        self.services.iter().flat_map(|s| s.backends.iter().map(|b| (s.name.as_str(), b)))
    }

    /// What was believed.
    pub fn beliefs(&self) -> BTreeMap<Target, Health> {
        let of = |(service, backend): (&str, &InheritedBackend)| {
            let health = match backend.state? {
                BackendState::Up => Health::Up,
                BackendState::Down => Health::Down,
                BackendState::Unknown | BackendState::Draining | BackendState::Passive => {
                    return None;
                }
            };
            let (service, backend) = (service.to_owned(), backend.name.clone());
            Some((Target::Backend { service, backend }, health))
        };
        self.backends().filter_map(of).collect()
    }

    /// The backends that are held out of traffic.
    pub fn draining(&self) -> BTreeSet<(String, String)> {
        let drained = self.backends().filter(|(_, b)| b.state == Some(BackendState::Draining));
        drained.map(|(service, b)| (service.to_owned(), b.name.clone())).collect()
    }

    /// The addresses of the host names of a topology: without them, the agent would take those backends out of traffic
    /// until it has resolved their names.
    pub fn resolved(&self, topology: &Topology) -> Resolved {
        let of = |(service, known): (&str, &InheritedBackend)| {
            let backends = topology.services.get(service)?.pool.backends();
            let backend = backends.into_iter().find(|b| b.url == known.name)?;
            Some((backend.host.clone(), known.address?.ip()))
        };
        self.backends().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A table as the first build wrote it. It is never written anew: proxies that run have it.
    const FIRST: &str = include_str!("expected/table.json");

    fn target(backend: &str) -> Target {
        Target::Backend { service: "web".to_owned(), backend: backend.to_owned() }
    }

    fn check_inherited(table: &Value) {
        let inherited = Inherited::read(table).unwrap();
        assert!(inherited.serves());
        assert_eq!(
            inherited.beliefs(),
            BTreeMap::from([
                (target("http://10.0.0.1:3000"), Health::Up),
                (target("http://db.test:3000"), Health::Down),
            ])
        );
        let drained = ("web".to_owned(), "http://10.0.0.3:3000".to_owned());
        assert_eq!(inherited.draining(), BTreeSet::from([drained]));
        let text = r#"
            [cluster]
            name = "t"
            [service.web]
            listen = "127.0.0.1:8080"
            backends = ["http://10.0.0.1:3000", "http://db.test:3000", "http://10.0.0.3:3000"]
            probe = { http = "/" }
        "#;
        let topology = crate::file::parse("t", text).map_err(|c| c.to_string()).unwrap();
        assert_eq!(inherited.resolved(&topology)["db.test"], IpAddr::from([10, 0, 0, 2]));
    }

    #[test]
    fn pairs_need_the_lease_of_a_node_that_has_one() {
        let text = r#"
            [cluster]
            name = "t"
            [service.shop]
            listen = "127.0.0.1:8080"
            backends = ["http://10.0.0.1:3000"]
            probe = { http = "/" }
            [service.billing]
            listen = "127.0.0.1:8081"
            primary = "http://10.0.0.1:4000"
            backup = "http://10.0.0.2:4000"
            probe = { http = "/" }
        "#;
        let topology = crate::file::parse("t", text).map_err(|c| c.to_string()).unwrap();
        for leased in [false, true] {
            let (view, none) = (View::default(), Resolved::new());
            let table = table(1, &topology, &view, &none, &Certificates::new(), leased);
            let vouched = table.services.iter().filter(|s| s.vouched).map(|s| s.name.as_str());
            let expected: &[&str] = if leased { &["billing"] } else { &[] };
            assert_eq!(vouched.collect::<Vec<_>>(), expected);
        }
        // A table of a build that knew no leases.
        let old: Table = serde_json::from_str(FIRST).unwrap();
        assert!(old.services.iter().all(|s| !s.vouched));
    }

    #[test]
    fn a_table_of_the_first_build_stays_readable() {
        let table: Table = serde_json::from_str(FIRST).unwrap();
        assert_eq!((table.generation, table.services.len()), (7, 1));
        check_inherited(&serde_json::from_str(FIRST).unwrap());
    }

    #[test]
    fn a_table_without_what_has_a_default_is_readable() {
        let mut table: Value = serde_json::from_str(FIRST).unwrap();
        let service = table["services"][0].as_object_mut().unwrap();
        for key in ["certificates", "panic", "slow_start", "trusted", "accept_proxy", "send_proxy"]
        {
            assert!(service.remove(key).is_some(), "{key}");
        }
        for part in ["eject", "backends"] {
            assert!(service.contains_key(part), "{part}");
        }
        assert!(service["eject"].as_object_mut().unwrap().remove("rate_5xx").is_some());
        service.insert("invented_later".to_owned(), json!({ "a": 1 }));
        serde_json::from_value::<Table>(table).unwrap();
    }

    #[test]
    fn what_was_believed_survives_fields_that_are_new_and_fields_that_are_gone() {
        let mut table: Value = serde_json::from_str(FIRST).unwrap();
        table["invented_later"] = json!([1]);
        let service = table["services"][0].as_object_mut().unwrap();
        service.retain(|key, _| ["name", "backends"].contains(&key.as_str()));
        service.insert("invented_later".to_owned(), json!("x"));
        for backend in service["backends"].as_array_mut().unwrap() {
            let backend = backend.as_object_mut().unwrap();
            backend.remove("tls_name");
            backend.insert("weight".to_owned(), json!(3));
        }
        // States of another build, and a backend that is no backend.
        let backends = service["backends"].as_array_mut().unwrap();
        backends.push(json!({ "name": "http://10.0.0.4:3000", "state": "Quarantined" }));
        backends.push(json!(17));
        table["services"].as_array_mut().unwrap().push(json!({ "port": 1 }));
        assert!(serde_json::from_value::<Table>(table.clone()).is_err(), "no Table any more");
        check_inherited(&table);
        assert_eq!(Inherited::read(&Value::Null), None);
    }
}
