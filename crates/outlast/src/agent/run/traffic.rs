//! What the data plane says, and what it is told.

use outlast_core::agent::Input;
use outlast_core::event::Fact;
use outlast_proxy::Notice;

use super::Loop;
use super::counters::add_stats;
use crate::dataplane::link::FromLink;
use crate::dataplane::wire::FromProxy;

impl Loop {
    pub(super) fn hear_proxy(&mut self, from: FromLink) {
        let mut facts = Vec::new();
        match from {
            FromLink::Said { pid, message } => match message {
                FromProxy::Applied { generation } => {
                    self.plane.succeed(pid, generation, &mut facts);
                }
                FromProxy::NotApplied { reason, .. } => {
                    tracing::error!(pid, reason, "the proxy refused a table");
                    self.plane.refuse(reason);
                }
                FromProxy::Stats(stats) => self.count(pid, stats),
                FromProxy::Notice(notice) => self.hear_notice(notice),
                FromProxy::Draining { connections } => {
                    tracing::info!(pid, connections, "proxy drains");
                }
                FromProxy::Hello(_) | FromProxy::Sockets { .. } => {}
            },
            FromLink::Gone { pid, reason } => {
                if let Some(last) = self.last_stats.remove(&pid) {
                    add_stats(&mut self.ended_stats, &last);
                }
                if self.plane.gone(pid) {
                    facts.push(Fact::ProxyLost { pid, reason });
                }
            }
        }
        for fact in facts {
            self.record(fact);
        }
        self.revive_proxy();
        self.publish();
        self.confirm_routes();
    }

    /// Tells the core which routes the data plane has in force.
    pub(super) fn confirm_routes(&mut self) {
        if self.plane.settled() {
            for (service, epoch) in self.core.switching() {
                self.step(Input::Routed { service, epoch });
            }
        }
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
        }
    }

    pub(super) fn revive_proxy(&mut self) {
        let mut facts = Vec::new();
        if let Err(error) = self.plane.restart(&mut facts) {
            tracing::error!(error = format!("{error:#}"), "start the proxy again");
        }
        let started = !facts.is_empty();
        for fact in facts {
            self.record(fact);
        }
        if started {
            self.publish();
        }
    }
}
