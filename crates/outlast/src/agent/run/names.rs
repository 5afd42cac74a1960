//! The addresses of backends that are named by host.

use super::{Loop, Said};

impl Loop {
    /// Resolves the host names of backends in the background.
    pub(super) fn resolve(&self) {
        let hosts: std::collections::BTreeSet<String> = self
            .topology
            .services
            .values()
            .flat_map(|s| s.pool.backends())
            .filter(|b| b.host.parse::<std::net::IpAddr>().is_err())
            .map(|b| b.host.clone())
            .collect();
        if hosts.is_empty() {
            return;
        }
        let (sender, mut resolved) = (self.sender.clone(), self.resolved.clone());
        // Bounded by the resolver's own timeouts; one at a time per tick.
        drop(tokio::task::spawn(async move {
            resolved.retain(|host, _| hosts.contains(host));
            for host in hosts {
                let found = tokio::net::lookup_host((host.as_str(), 0)).await.map(|found| {
                    let all: Vec<std::net::IpAddr> = found.map(|a| a.ip()).collect();
                    all
                });
                match found {
                    Ok(all) => {
                        // The same answer in another order is no change.
                        let keeps = resolved.get(&host).is_some_and(|ip| all.contains(ip));
                        if let (false, Some(&first)) = (keeps, all.first()) {
                            resolved.insert(host, first);
                        }
                    }
                    // The last known address stays in force.
                    Err(error) => tracing::warn!(%error, host, "resolve a backend"),
                }
            }
            sender.send(Said::Resolved(resolved)).await.ok();
        }));
    }
}
