//! One task per probed target: ask, report, wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outlast_core::event::Target;
use outlast_core::names::value_probes;
use outlast_core::topology::{Backend, Probe, Topology};
use outlast_host::probe::{Code, Prober, first_offset, round};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::run::Said;

/// Two probes of one target are at least this far apart, however often traffic suspects it.
const GAP_MIN: Duration = Duration::from_millis(100);

/// The running probes.
#[derive(Debug)]
pub(super) struct Probes {
    prober: Prober,
    inbox: mpsc::Sender<Said>,
    tasks: BTreeMap<Target, Task>,
}

#[derive(Debug)]
struct Task {
    what: What,
    now: Arc<Notify>,
    handle: JoinHandle<()>,
}

/// What a task asks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct What {
    probe: Probe,
    backend: Option<Backend>,
}

impl Probes {
    pub(super) fn new(inbox: mpsc::Sender<Said>) -> Probes {
        Probes { prober: Prober::new(), inbox, tasks: BTreeMap::new() }
    }

    /// Starts, stops and restarts tasks until they are what the topology says.
    pub(super) fn follow(&mut self, topology: &Topology) {
        let mut wanted = BTreeMap::new();
        for (name, service) in &topology.services {
            for backend in service.pool.backends() {
                let target =
                    Target::Backend { service: name.clone(), backend: backend.url.clone() };
                wanted.insert(
                    target,
                    What { probe: service.probe.clone(), backend: Some(backend.clone()) },
                );
            }
        }
        for (name, external) in &topology.externals {
            if let Some(probe) = &external.probe {
                let what = What { probe: probe.clone(), backend: None };
                wanted.insert(Target::External { name: name.clone() }, what);
            }
        }
        for zone in topology.dns.values() {
            for value in value_probes(zone).into_values() {
                let url = value.host.clone();
                let backend =
                    Backend { url, tls: false, host: value.host.clone(), port: value.port };
                let what = What { probe: value.probe.clone(), backend: Some(backend) };
                wanted.insert(Target::Value { id: value.id.clone() }, what);
            }
        }
        self.tasks.retain(|target, task| {
            let keep = wanted.get(target) == Some(&task.what);
            if !keep {
                task.handle.abort();
            }
            keep
        });
        for (target, what) in wanted {
            if !self.tasks.contains_key(&target) {
                let task = self.start(target.clone(), what);
                self.tasks.insert(target, task);
            }
        }
    }

    /// Traffic says that something is wrong there: ask at once.
    pub(super) fn suspect(&self, service: &str, backend: &str) {
        let target = Target::Backend { service: service.to_owned(), backend: backend.to_owned() };
        if let Some(task) = self.tasks.get(&target) {
            task.now.notify_one();
        }
    }

    fn start(&self, target: Target, what: What) -> Task {
        let (prober, inbox, now) =
            (self.prober.clone(), self.inbox.clone(), Arc::new(Notify::new()));
        let (asked, woken) = (what.clone(), now.clone());
        // Held in `tasks`, aborted when its target goes.
        let handle = tokio::task::spawn(async move {
            let seed = seed(&target);
            tokio::time::sleep(first_offset(asked.probe.every, seed) + asked.probe.delay).await;
            for turn in 0.. {
                let answer = prober
                    .ask(&asked.probe.check, asked.backend.as_ref(), asked.probe.timeout)
                    .await;
                // The prober's own trouble says nothing about the target.
                if answer.code != Code::Internal {
                    let said = Said::Probed { target: target.clone(), answer };
                    if inbox.send(said).await.is_err() {
                        return;
                    }
                }
                tokio::time::sleep(GAP_MIN.min(asked.probe.every)).await;
                let rest = round(asked.probe.every, seed, turn).saturating_sub(GAP_MIN);
                tokio::select! {
                    () = tokio::time::sleep(rest) => {}
                    () = woken.notified() => {}
                }
            }
        });
        Task { what, now, handle }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.tasks.values().for_each(|task| task.handle.abort());
    }
}

/// A target's place in the round, the same on every start.
fn seed(target: &Target) -> u64 {
    outlast_proxy::balance::hash(target.to_string().as_bytes())
}
