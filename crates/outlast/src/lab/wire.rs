//! What owner, keeper, machines and verbs say to each other, over Unix sockets, in the form of [`outlast::dataplane::wire`].
//!
//! All of them come from one binary, but a verb may come from a newer one than the lab: it is told which build the lab is.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::plan::{Node, Plan};

/// From the owner to the keeper. When the owner is gone, so is the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToKeeper {
    /// The first. The lock on the lab's directory comes with it.
    Build(Box<Plan>),
    Down,
}

/// From the keeper to the owner.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromKeeper {
    /// Something happened, for people.
    Said(String),
    /// Every node has started; how each is, for people.
    Up(Status),
    /// It cannot be built.
    Failed(String),
}

/// From the keeper to a machine.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToMachine {
    /// The first: who it is.
    Be {
        node: Box<Node>,
        lab: PathBuf,
        file: PathBuf,
        program: PathBuf,
    },
    /// The cable is in.
    Plugged,
    StartAgent,
    /// End the agent politely, then everything.
    Stop,
    /// Freeze all but yourself, or let them go on.
    Freeze,
    Thaw,
}

/// From a machine to the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromMachine {
    Failed(String),
    AgentStarted {
        pid: u32,
    },
    /// It can be asked.
    AgentAnswers,
    AgentEnded {
        code: i32,
    },
    Frozen,
}

/// What a verb asks of the keeper; one question for each connection.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    Status,
    Down,
    Enter { node: String },
    Cut { groups: Vec<Vec<String>>, one_way: bool, lasts: Duration },
    Loss { from: String, to: Option<String>, of_a_million: u32, lasts: Duration },
    Delay { from: String, to: Option<String>, delay: Duration, jitter: Duration, lasts: Duration },
    Heal { what: Option<String> },
    Kill { node: String, back_after: Option<Duration> },
    Stop { node: String },
    Start { node: String },
    Pause { node: String, lasts: Duration },
    Resume { node: String },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// For people.
    Done(String),
    Refused(String),
    Status(Status),
    /// A pidfd of the machine's first process comes with it.
    Door {
        rootless: bool,
        file: PathBuf,
        program: PathBuf,
    },
}

/// How a lab is: also what `outlast lab status --format json` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Status {
    pub(super) v: u32,
    pub(super) name: String,
    pub(super) file: PathBuf,
    pub(super) dir: PathBuf,
    pub(super) rootless: bool,
    /// The process that holds the lab.
    pub(super) owner: u32,
    /// Every agent has answered, or has had its time.
    pub(super) up: bool,
    pub(super) nodes: Vec<NodeStatus>,
    pub(super) faults: Vec<FaultStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct NodeStatus {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) state: NodeState,
    pub(super) for_seconds: f64,
    /// Of the machine's first process, as this machine numbers it.
    pub(super) pid: Option<u32>,
    pub(super) agent: AgentState,
    /// When the power comes back.
    pub(super) back_in_seconds: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum NodeState {
    Starting,
    Running,
    Paused,
    Stopping,
    /// Stopped politely.
    Stopped,
    /// By `kill`, or because its first process ended.
    Dead,
}

impl NodeState {
    pub(super) fn word(self) -> &'static str {
        match self {
            NodeState::Starting => "starting",
            NodeState::Running => "running",
            NodeState::Paused => "paused",
            NodeState::Stopping => "stopping",
            NodeState::Stopped => "stopped",
            NodeState::Dead => "dead",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AgentState {
    None,
    Starting,
    Running,
    /// Above 128 it was a signal.
    Ended(i32),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct FaultStatus {
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) text: String,
    pub(super) heals_in_seconds: f64,
}
