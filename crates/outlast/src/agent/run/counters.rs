//! The counters of every proxy, living and ended: what was counted stays counted.

use std::time::Instant;

use outlast_proxy::stats::Stats;

use super::Loop;

impl Loop {
    /// Sums the counters of every proxy, living and ended, so that an upgrade loses none.
    pub(super) fn count(&mut self, pid: u32, stats: Stats) {
        self.last_stats.insert(pid, stats);
        let mut all = self.ended_stats.clone();
        let serving = self.plane.serving();
        for (pid, stats) in &self.last_stats {
            add_stats(&mut all, stats);
            if Some(*pid) == serving {
                take_gauges(&mut all, stats);
            }
        }
        self.stats.lock().expect("no panic while held").take(
            all,
            Instant::now(),
            Some(pid) == serving,
        );
    }
}

/// Adds counters; gauges are left as they are.
pub(super) fn add_stats(to: &mut Stats, from: &Stats) {
    to.lease.ended += from.lease.ended;
    for service in &from.services {
        let at = to.services.iter().position(|s| s.name == service.name).unwrap_or_else(|| {
            to.services.push(outlast_proxy::stats::ServiceStats {
                name: service.name.clone(),
                ..Default::default()
            });
            to.services.len() - 1
        });
        let sum = &mut to.services[at];
        sum.own.add(&service.own);
        sum.retries += service.retries;
        sum.retries_denied += service.retries_denied;
        sum.postgres.add(&service.postgres);
        for backend in &service.backends {
            let at =
                sum.backends.iter().position(|b| b.name == backend.name).unwrap_or_else(|| {
                    sum.backends.push(outlast_proxy::stats::BackendStats {
                        name: backend.name.clone(),
                        ..Default::default()
                    });
                    sum.backends.len() - 1
                });
            sum.backends[at].counts.add(&backend.counts);
        }
    }
}

/// Takes what is true only now from the serving proxy.
fn take_gauges(to: &mut Stats, from: &Stats) {
    to.connections = from.connections;
    to.lease.left = from.lease.left;
    for service in &from.services {
        let Some(sum) = to.services.iter_mut().find(|s| s.name == service.name) else { continue };
        sum.connections = service.connections;
        sum.in_flight = service.in_flight;
        sum.unvouched = service.unvouched;
        sum.postgres.waiting = service.postgres.waiting;
        for backend in &service.backends {
            if let Some(sum) = sum.backends.iter_mut().find(|b| b.name == backend.name) {
                sum.in_flight = backend.in_flight;
                sum.ejected = backend.ejected;
            }
        }
    }
}
