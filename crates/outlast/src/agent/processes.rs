//! The programs that this node's agent keeps alive.

use std::collections::BTreeMap;
use std::path::PathBuf;

use outlast_core::topology::{Process, Topology};
use outlast_host::probe::Prober;
use outlast_host::process::{Cgroups, Report, Setting, Supervisor};
use tokio::sync::mpsc;

/// The supervised programs of one node.
#[derive(Debug)]
pub(super) struct Processes {
    node: String,
    setting: Setting,
    running: BTreeMap<String, (Process, Supervisor)>,
}

impl Processes {
    pub(super) fn new(node: String, data_dir: PathBuf, reports: mpsc::Sender<Report>) -> Processes {
        let setting =
            Setting { data_dir, prober: Prober::new(), cgroups: Cgroups::open(), reports };
        Processes { node, setting, running: BTreeMap::new() }
    }

    /// Starts, stops and restarts programs until they are what the topology says.
    pub(super) fn follow(&mut self, topology: &Topology) {
        let here = |p: &&Process| p.nodes.is_empty() || p.nodes.contains(&self.node);
        let wanted: BTreeMap<&String, &Process> =
            topology.processes.iter().filter(|(_, p)| here(p)).collect();
        let leaving: Vec<String> = self
            .running
            .iter()
            .filter(|(name, (process, _))| wanted.get(name) != Some(&process))
            .map(|(name, _)| name.clone())
            .collect();
        let mut stopping = BTreeMap::new();
        for name in leaving {
            if let Some((_, supervisor)) = self.running.remove(&name) {
                stopping.insert(name, supervisor);
            }
        }
        for (name, process) in wanted {
            if self.running.contains_key(name) {
                continue;
            }
            // A changed program starts when the old one has ended.
            let (before, setting) = (stopping.remove(name), self.setting.clone());
            let supervisor = Supervisor::start_after(before, name, process.clone(), setting);
            self.running.insert(name.clone(), (process.clone(), supervisor));
        }
        for supervisor in stopping.into_values() {
            // Bounded by the program's own stop timeout.
            drop(tokio::task::spawn(supervisor.stop()));
        }
    }

    /// Stops them all, at once.
    pub(super) async fn stop(&mut self) {
        let mut stopping = tokio::task::JoinSet::new();
        for (_, supervisor) in std::mem::take(&mut self.running).into_values() {
            stopping.spawn(supervisor.stop());
        }
        stopping.join_all().await;
    }

    /// Leaves them running, for the agent's next life to adopt.
    pub(super) async fn leave(&mut self) {
        for (_, supervisor) in std::mem::take(&mut self.running).into_values() {
            supervisor.leave().await;
        }
    }
}
