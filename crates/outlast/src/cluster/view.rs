//! What people and other parts of the agent see of the cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use outlast_consensus::Standing;

use super::topology::TopologyState;

/// A picture of the cluster as this node sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterView {
    pub phase: Phase,
    pub standing: Option<Standing>,
    /// Names by id, of the nodes that are registered.
    pub names: BTreeMap<u64, String>,
    pub peers: BTreeMap<String, PeerView>,
    /// What is in force, what is proposed, and what each node runs; without the text.
    pub topology: TopologyState,
}

/// How far this node has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Not begun.
    #[default]
    Starting,
    /// There is no cluster yet, and these have not been heard.
    Founding {
        missing: Vec<String>,
    },
    /// There is a cluster, and this node has no place in it yet.
    Joining {
        reason: String,
    },
    Running,
    /// It takes no part, and will not by itself.
    Failed {
        reason: String,
    },
}

/// A node as this one sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerView {
    pub address: String,
    pub linked: bool,
    /// How long the link lasts, or why there is none.
    pub lasts: Option<Duration>,
    pub reason: Option<String>,
    pub silent_for: Option<Duration>,
    pub round_trip: Option<Duration>,
    pub build: Option<String>,
}

impl ClusterView {
    /// The leader's name, while one has a majority behind it as far as this node knows.
    pub fn leader(&self) -> Option<&str> {
        let leader = self.standing.as_ref()?.leader?;
        self.names.get(&leader.0).map(String::as_str)
    }
}
