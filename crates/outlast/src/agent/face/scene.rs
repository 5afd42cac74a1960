//! Everything that an answer is drawn from: one moment of one agent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outlast_core::time::Timestamp;
use outlast_core::topology::{Address, AddressMode, Service};
use outlast_core::view::{ServiceState, ServiceView};
use outlast_proxy::stats::{BackendStats, ServiceStats, Stats};

use crate::agent::shared::{Picture, Shared, wall};

/// A proxy is asked every second; one that says nothing for longer than this is not taken to serve.
const SILENT_MAX: Duration = Duration::from_secs(5);

/// An agent at a moment. The renderers turn it into text; same scene, same text.
#[derive(Clone, Debug)]
pub struct Scene {
    pub node: String,
    pub version: &'static str,
    pub started_at: Timestamp,
    pub uptime: Duration,
    pub now: Timestamp,
    pub stopping: bool,
    pub picture: Arc<Picture>,
    pub stats: Stats,
    /// How long ago the counters were read.
    pub stats_age: Duration,
    /// Requests a second of each service.
    pub rates: BTreeMap<String, f64>,
}

impl Scene {
    pub fn of(shared: &Shared) -> Scene {
        let picture = shared.picture.borrow().clone();
        let (stats, stats_age, rates) = {
            let stats = shared.stats.lock().expect("no panic while held");
            (stats.stats.clone(), stats.at.elapsed(), stats.rates())
        };
        Scene {
            node: shared.node.clone(),
            version: shared.version,
            started_at: shared.started_at,
            uptime: shared.started.elapsed(),
            now: wall(),
            stopping: *shared.stopping.borrow(),
            picture,
            stats,
            stats_age,
            rates,
        }
    }

    /// For how long the proxy has answered nothing, if that is too long: whether clients are served is not known then.
    pub fn silent(&self) -> Option<Duration> {
        self.picture.proxy.silent.filter(|&silent| SILENT_MAX < silent)
    }

    /// Why nothing can be said of the service's clients, whatever is known of its backends.
    pub fn unknown(&self, service: &str) -> Option<String> {
        self.spec(service)?.listen?;
        if let Some(silent) = self.silent() {
            return Some(format!("the proxy has not answered for {} s", silent.as_secs()));
        }
        let gone = self.picture.proxy.pid.is_none() && !self.stopping;
        gone.then(|| "no proxy runs; one is started".to_owned())
    }

    /// Why this node serves nobody at a service, whatever its backends could do.
    pub fn withheld(&self, service: &str) -> Option<&'static str> {
        let unvouched = self.counted(service).is_some_and(|s| s.unvouched);
        unvouched.then_some(match self.stats.lease.ended {
            0 => "not served: this node holds no lease yet",
            _ => "not served: this node's lease has ended",
        })
    }

    /// How a service is for the clients of this node.
    pub fn state(&self, name: &str, service: &ServiceView) -> ServiceState {
        if self.withheld(name).is_some() { ServiceState::Down } else { service.state }
    }

    /// The service as the file has it.
    pub fn spec(&self, service: &str) -> Option<&Service> {
        self.picture.topology.services.get(service)
    }

    /// What was counted of a service; nothing of one that is only probed.
    pub fn counted(&self, service: &str) -> Option<&ServiceStats> {
        self.stats.services.iter().find(|s| s.name == service)
    }

    pub fn counted_backend(&self, service: &str, backend: &str) -> Option<&BackendStats> {
        self.counted(service)?.backends.iter().find(|b| b.name == backend)
    }

    /// How long ago a moment was; `None` if it is not known, or lies ahead.
    pub fn ago(&self, then: Timestamp) -> Option<Duration> {
        if then == Timestamp::default() {
            return None;
        }
        u64::try_from(self.now.0 - then.0).ok().map(Duration::from_millis)
    }

    /// Whether the data plane has anything to serve.
    pub fn listens(&self) -> bool {
        {
            let topology = &self.picture.topology;
            let ports =
                topology.postgres.values().any(|p| p.listen_write.or(p.listen_read).is_some());
            ports || topology.services.values().any(|s| s.listen.is_some())
        }
    }

    /// Parts of the file that this version does not watch: never to be taken for healthy.
    pub fn unwatched(&self) -> Vec<(&'static str, &String)> {
        let topology = &self.picture.topology;
        let databases = topology.postgres.keys().filter(|_| self.picture.databases.is_none());
        let postgres = databases.map(|name| ("postgres", name));
        let redis = topology.redis.keys().map(|name| ("redis", name));
        let stores = topology.stores.keys().map(|name| ("store", name));
        let none = self.picture.addresses.is_none();
        let agreed = |address: &Address| matches!(address.mode, AddressMode::Lease { .. });
        let addresses = topology.addresses.iter().filter(|(_, address)| none && agreed(address));
        let addresses = addresses.map(|(name, _)| ("address", name));
        let zones = topology.dns.iter().filter(|(_, zone)| zone.listen.is_none());
        let zones = zones.map(|(name, _)| ("dns", name));
        postgres.chain(redis).chain(stores).chain(addresses).chain(zones).collect()
    }
}
