//! The programs that this node's agent keeps alive.

use std::path::PathBuf;

use outlast_core::topology::Topology;
use tokio::sync::mpsc;

use super::run::Said;

/// The supervised programs of one node.
#[derive(Debug)]
pub struct Processes {
    node: String,
    data_dir: PathBuf,
    inbox: mpsc::Sender<Said>,
}

impl Processes {
    pub fn new(node: String, data_dir: PathBuf, inbox: mpsc::Sender<Said>) -> Processes {
        Processes { node, data_dir, inbox }
    }

    /// Starts, stops and restarts programs until they are what the topology says.
    pub fn follow(&mut self, _topology: &Topology) {}

    /// Stops them all.
    pub async fn stop(&mut self) {}
}
