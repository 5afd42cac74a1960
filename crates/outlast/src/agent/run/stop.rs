//! The end: not ready first, then drained, then by force.

use std::time::Duration;

use outlast_core::event::Fact;
use tokio::sync::mpsc;

use super::together::next_news;
use super::{End, Loop, Signals};
use crate::agent::processes::Processes;
use crate::cluster::LeaseWish;

/// Open work has this long before it is closed by force.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// While proxies end, how often they are looked after at least.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// After this even the kernel has had time to end what was killed.
const KILLED_MAX: Duration = Duration::from_secs(50);

impl Loop {
    fn wish_lease(&self, wish: LeaseWish) {
        if let Some(cluster) = &self.cluster {
            cluster.want_lease(wish);
        }
    }

    fn end_proxies(&mut self, deadline: Duration) {
        let mut facts = Vec::new();
        self.plane.stop(self.now().instant, deadline, &mut facts);
        self.record_all(facts);
    }

    /// Others take them at once, before anything here ends.
    pub(super) async fn let_go_of_addresses(&mut self) {
        let addresses = self.addresses.take();
        let leased = async {
            if let Some(mut addresses) = addresses {
                addresses.end().await;
            }
        };
        tokio::join!(self.routers.end(), leased);
        while let Ok(fact) = self.facts_told.try_recv() {
            self.record(fact);
        }
    }

    /// Not ready first, then drain, then the end by force.
    pub(super) async fn stop(
        &mut self,
        reason: &str,
        lead: Duration,
        signals: &mut Signals,
    ) -> End {
        self.record(Fact::AgentStopping { reason: reason.to_owned() });
        self.stopping.send_replace(true);
        self.accord.close();
        self.let_go_of_addresses().await;
        // Until the listeners close, clients still come: probes and failover go on.
        let lead_ends = tokio::time::Instant::now() + lead;
        while tokio::time::Instant::now() < lead_ends {
            tokio::select! {
                () = tokio::time::sleep_until(lead_ends) => {}
                Some(said) = self.inbox.recv() => self.hear(said),
                Some(said) = self.links.recv() => self.hear_proxy(said),
                Some(report) = self.reports.recv() => self.hear_process(report),
                // The others must not wait for this node, nor its clients for a lease that is not passed on.
                news = next_news(&mut self.cluster) => self.hear_cluster(news),
                // A second signal cuts the pause.
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
            }
        }
        // What drains is not vouched for any more.
        self.wish_lease(LeaseWish::RunOut);
        self.end_proxies(DRAIN_MAX);
        let begun = tokio::time::Instant::now();
        let mut forced = false;
        // Ends: the core kills what has not ended by its deadline.
        while !self.plane.all_gone() {
            let wake = self.plane.wake_in(self.now().instant);
            tokio::select! {
                Some(from) = self.links.recv() => self.hear_proxy(from),
                news = next_news(&mut self.cluster) => self.hear_cluster(news),
                () = tokio::time::sleep(wake.unwrap_or(LOOK_AGAIN)) => self.look_after_proxies(),
                () = tokio::time::sleep_until(begun + KILLED_MAX) => {
                    tracing::error!("a killed proxy does not end");
                    forced = true;
                    break;
                }
                _ = signals.interrupt.recv() => {
                    forced = true;
                    self.end_proxies(Duration::ZERO);
                }
            }
        }
        self.wish_lease(LeaseWish::GiveBack);
        self.plane.reap();
        // A proxy that used its whole time had something left to cut off.
        forced |= DRAIN_MAX <= begun.elapsed();
        self.stop_processes().await;
        if let Some(mut databases) = self.databases.take() {
            databases.end().await;
        }
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
