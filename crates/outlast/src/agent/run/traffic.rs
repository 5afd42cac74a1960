//! What the data plane says, and what it is told.

use outlast_core::agent::{Input, ROUTING_LEASE};
use outlast_core::event::Fact;
use outlast_core::proxies;
use outlast_proxy::Notice;

use super::Loop;
use super::counters::add_stats;
use crate::dataplane::link::FromLink;
use crate::dataplane::wire::FromProxy;

impl Loop {
    pub(super) fn hear_proxy(&mut self, from: FromLink) {
        let (now, mut facts) = (self.now().instant, Vec::new());
        match from {
            FromLink::Said { pid, message } => {
                self.plane.step(now, proxies::Input::Heard { pid }, &mut facts);
                self.hear_message(pid, message, &mut facts);
            }
            FromLink::Lost { pid, reason } => {
                tracing::warn!(pid, reason, "lost the connection to a living proxy");
                self.plane.step(now, proxies::Input::Lost { pid }, &mut facts);
            }
            FromLink::Regained { link } => self.plane.regained(now, *link, &mut facts),
            FromLink::Unreachable { pid, reason } => {
                self.plane.step(now, proxies::Input::Unreachable { pid, reason }, &mut facts);
            }
            FromLink::Gone { pid, reason } => {
                if let Some(last) = self.last_stats.remove(&pid) {
                    add_stats(&mut self.ended_stats, &last);
                }
                self.plane.gone(now, pid, reason, &mut facts);
            }
            FromLink::Started { link } => self.plane.started(now, *link, &mut facts),
            FromLink::NotStarted { reason } => self.plane.not_started(now, &reason, &mut facts),
        }
        self.record_all(facts);
        self.publish();
        self.confirm_routes();
    }

    fn hear_message(&mut self, pid: u32, message: FromProxy, facts: &mut Vec<Fact>) {
        match message {
            FromProxy::Applied { generation } => {
                self.plane.succeed(self.now().instant, pid, generation, facts);
            }
            FromProxy::NotApplied { reason, .. } => {
                tracing::error!(pid, reason, "the proxy refused a table");
                self.plane.refuse(pid, reason);
            }
            FromProxy::Stats(stats) => self.count(pid, stats),
            FromProxy::Notice(notice) => self.hear_notice(notice),
            FromProxy::Draining { connections } => {
                tracing::info!(pid, connections, "proxy drains");
            }
            FromProxy::Hello(_) | FromProxy::Sockets { .. } => {}
        }
    }

    /// Tells the core which routes the data plane has in force.
    pub(super) fn confirm_routes(&mut self) {
        if self.core.is_joint() && (self.pairs_unsaved || self.predecessors_may_route()) {
            return;
        }
        if self.plane.settled() {
            if self.lease.is_some() && !self.vouches {
                self.pass_on_lease();
            }
            for (service, epoch) in self.core.switching() {
                self.step(Input::Routed { service, epoch });
            }
        }
    }

    /// Whether a data plane that drains may still have a lease under which it uses an older route: nobody vouches for it any
    /// more, so that it lasts no longer than a lease.
    fn predecessors_may_route(&mut self) -> bool {
        let now = self.now().instant;
        let leaving: Vec<u32> = self.plane.leaving().collect();
        self.leaving.retain(|pid, _| leaving.contains(pid));
        for pid in leaving {
            self.leaving.entry(pid).or_insert(now);
        }
        self.leaving.values().any(|&since| now.since(since) < ROUTING_LEASE)
    }

    fn hear_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Ejected { service, backend, reason, time } => {
                self.probes.suspect(&service, &backend);
                self.step(Input::Ejected { service, backend, reason, time });
            }
            Notice::Returned { service, backend } => {
                self.step(Input::Returned { service, backend });
            }
            Notice::Suspect { service, backend } => self.probes.suspect(&service, &backend),
            // The agent has said so itself.
            Notice::LeaseBegun => {}
            Notice::LeaseEnded { open } => {
                tracing::warn!(
                    open,
                    "the data plane no longer serves what needs this node's lease: it has ended"
                );
            }
            Notice::NotCut { reason } => {
                tracing::error!(
                    reason,
                    "the data plane has not cut what the lease no longer covers"
                );
            }
        }
    }

    /// Lets the core look at the proxies: one may be due to be started, or to be killed.
    pub(super) fn look_after_proxies(&mut self) {
        let mut facts = Vec::new();
        self.plane.step(self.now().instant, proxies::Input::Tick, &mut facts);
        self.record_all(facts);
    }

    /// Asks every proxy for its counters.
    pub(super) fn ask_proxies(&mut self) {
        let mut facts = Vec::new();
        self.plane.ask_stats(self.now().instant, &mut facts);
        self.plane.reap();
        self.record_all(facts);
    }
}
