//! The end: not ready first, then drained, then by force.

use std::time::Duration;

use outlast_core::event::Fact;
use tokio::sync::mpsc;

use super::{End, Loop, Signals};
use crate::agent::processes::Processes;
use crate::dataplane::link::FromLink;

/// Open work has this long before it is closed by force.
const DRAIN_MAX: Duration = Duration::from_secs(30);

impl Loop {
    /// Not ready first, then drain, then the end by force.
    pub(super) async fn stop(
        &mut self,
        reason: &str,
        lead: Duration,
        signals: &mut Signals,
    ) -> End {
        self.record(Fact::AgentStopping { reason: reason.to_owned() });
        self.stopping.send_replace(true);
        // Until the listeners close, clients still come: probes and failover go on.
        let lead_ends = tokio::time::Instant::now() + lead;
        while tokio::time::Instant::now() < lead_ends {
            tokio::select! {
                () = tokio::time::sleep_until(lead_ends) => {}
                Some(said) = self.inbox.recv() => self.hear(said),
                Some(said) = self.links.recv() => self.hear_proxy(said),
                Some(report) = self.reports.recv() => self.hear_process(report),
                // A second signal cuts the pause.
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
            }
        }
        self.plane.drain(DRAIN_MAX);
        let begun = tokio::time::Instant::now();
        let until = begun + DRAIN_MAX + Duration::from_secs(2);
        let mut forced = false;
        while !self.plane.all_gone() {
            tokio::select! {
                Some(from) = self.links.recv() => if let FromLink::Gone { pid, .. } = from {
                    self.plane.gone(pid);
                },
                () = tokio::time::sleep_until(until) => {
                    forced = true;
                    break;
                }
                _ = signals.interrupt.recv() => {
                    forced = true;
                    self.plane.drain_now();
                }
                else => break,
            }
        }
        // A proxy that used its whole time had something left to cut off.
        forced |= DRAIN_MAX <= begun.elapsed();
        self.stop_processes().await;
        tracing::info!(forced, "stopped");
        End::Stopped { forced }
    }

    /// Stops the programs, and goes on writing down what they report.
    async fn stop_processes(&mut self) {
        let mut processes = std::mem::replace(
            &mut self.processes,
            Processes::new(self.node.clone(), self.data_dir.clone(), mpsc::channel(1).0),
        );
        let stopping = processes.stop();
        tokio::pin!(stopping);
        loop {
            tokio::select! {
                () = &mut stopping => break,
                Some(report) = self.reports.recv() => self.hear_process(report),
            }
        }
        while let Ok(report) = self.reports.try_recv() {
            self.hear_process(report);
        }
    }
}
