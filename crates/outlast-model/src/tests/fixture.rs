//! Topologies as a file would say them, in a few words.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use outlast_core::health::Thresholds;
use outlast_core::topology::{
    Backend, Balance, Check, Eject, External, Forwarded, Limits, Node, Pool, Probe, Protocol,
    ProxyProtocol, Reliability, Retry, RetryOn, Service, Timeouts, Topology,
};

pub(super) fn count(n: u16) -> NonZeroU16 {
    NonZeroU16::new(n).unwrap()
}

pub(super) fn add_node(topology: &mut Topology, name: &str, availability: Option<f64>) {
    let last = u8::try_from(topology.nodes.len() + 1).unwrap();
    let node = Node {
        address: [10, 0, 0, last].into(),
        port: None,
        region: None,
        zone: None,
        reliability: availability.map(Reliability::Availability),
        cost_per_month: None,
    };
    topology.nodes.insert(name.to_owned(), node);
}

pub(super) fn external(availability: Option<f64>, instances: u16, at_least: u16) -> External {
    External {
        url: None,
        probe: None,
        reliability: availability.map(Reliability::Availability),
        instances: count(instances),
        at_least: count(at_least),
    }
}

/// A service with a backend on each of the nodes, of which one must be up.
pub(super) fn service(topology: &Topology, nodes: &[&str], needs: &[&str]) -> Service {
    let hosts: Vec<String> =
        nodes.iter().map(|node| topology.nodes[*node].address.to_string()).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    service_at(&hosts, needs)
}

pub(super) fn service_at(hosts: &[&str], needs: &[&str]) -> Service {
    let backends = (0..).zip(hosts).map(|(number, host)| backend(host, 3000 + number)).collect();
    Service {
        listen: None,
        protocol: Protocol::Http,
        tls: Vec::new(),
        pool: Pool::Balanced { backends, balance: Balance::RoundRobin },
        probe: Probe {
            check: Check::Tcp { address: None },
            every: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            thresholds: Thresholds { rise: count(2), fall: count(3) },
            delay: Duration::ZERO,
        },
        retry: Retry {
            attempts: count(1),
            backoff: Duration::ZERO,
            budget: 0.0,
            try_timeout: Duration::from_secs(1),
            on: RetryOn { connect: false, reset: false, timeout: false, status_5xx: false },
        },
        eject: Eject {
            failures: 0,
            rate_5xx: None,
            rate_min: 0,
            time: Duration::ZERO,
            max_time: Duration::ZERO,
        },
        timeouts: Timeouts {
            connect: Duration::ZERO,
            head: Duration::ZERO,
            body: Duration::ZERO,
            idle: Duration::ZERO,
            backend_idle: Duration::ZERO,
            tunnel: Duration::ZERO,
            drain: Duration::ZERO,
            queue: Duration::ZERO,
        },
        limits: Limits {
            head_bytes: 0,
            headers: 0,
            body_bytes: 0,
            connections: NonZeroU32::MIN,
            requests: NonZeroU32::MIN,
            per_backend: 0,
            queue: 0,
        },
        panic: None,
        slow_start: Duration::ZERO,
        forwarded: Forwarded::Off,
        trusted: Vec::new(),
        proxy_protocol: ProxyProtocol::default(),
        needs: needs.iter().map(|text| part(text)).collect(),
        may_use: Vec::new(),
        at_least: count(1),
        reliability: None,
        critical: true,
    }
}

pub(super) fn backend(host: &str, port: u16) -> Backend {
    Backend {
        url: format!("http://{host}:{port}"),
        tls: false,
        host: host.to_owned(),
        port: count(port),
    }
}

/// `postgres.orders`
pub(super) fn part(text: &str) -> outlast_core::topology::PartRef {
    use outlast_core::topology::{PartKind, PartRef};
    let (word, name) = text.split_once('.').unwrap();
    let kind = PartKind::ALL.into_iter().find(|kind| kind.word() == word).unwrap();
    PartRef { kind, name: name.to_owned() }
}
