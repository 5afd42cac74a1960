//! The one picture that every reader gets, published whole: proxy, /health, /metrics, status.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::health::Health;
use crate::observers::{ServiceSight, Verdict};
use crate::pair::{Epoch, Side};
use crate::time::Timestamp;

/// What a node believes and has decided. Never edited, only replaced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Counts the topologies that this agent has applied.
    pub generation: u64,
    pub services: BTreeMap<String, ServiceView>,
    pub externals: BTreeMap<String, PartView>,
    pub processes: BTreeMap<String, ProcessView>,
    /// Why no pair can change sides: what is decided cannot be written to disk.
    pub not_saved: Option<String>,
    /// What the other nodes said last; none where there is only one.
    pub nodes: BTreeMap<String, NodeView>,
}

/// Another node, by what it said last.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    pub heard_ago: Duration,
    /// It was heard so lately that its word counts.
    pub counts: bool,
    pub build: String,
    pub topology_version: u64,
    pub services: BTreeMap<String, ServiceSight>,
}

/// One service as its clients find it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceView {
    pub state: ServiceState,
    pub since: Timestamp,
    /// One sentence: why it is in this state.
    pub why: String,
    /// What will happen next, if anything is under way.
    pub next: Option<String>,
    pub backends: Vec<BackendView>,
    /// Of a pair: who serves, and since which epoch.
    pub active: Option<(Side, Epoch)>,
    /// Of a pair: nobody is routed to until every node has left the other side.
    pub moving: bool,
}

/// Whether clients are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceState {
    #[default]
    Unknown,
    Up,
    /// Serves, with less than it should have.
    Degraded,
    Down,
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ServiceState::Unknown => "unknown",
            ServiceState::Up => "up",
            ServiceState::Degraded => "degraded",
            ServiceState::Down => "down",
        })
    }
}

/// One backend of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendView {
    /// Its text in the file.
    pub name: String,
    pub health: Health,
    pub since: Timestamp,
    /// What the last probe said.
    pub reason: String,
    /// Consecutive results so far: positive successes, negative failures.
    pub streak: i32,
    pub draining: bool,
    pub ejected: bool,
    pub role: Option<Side>,
    /// What all nodes say of it, where there are several.
    pub verdict: Option<Verdict>,
}

/// Something outside that is watched.
#[derive(Clone, Debug, PartialEq)]
pub struct PartView {
    pub health: Health,
    pub since: Timestamp,
    pub reason: String,
}

/// A program that the agent keeps alive.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessView {
    pub state: ProcessState,
    pub since: Timestamp,
    pub ready: bool,
    pub restarts: u64,
    pub pid: Option<u32>,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// Runs; the startup probe has not succeeded yet.
    Starting,
    Running,
    /// Is being stopped.
    Stopping,
    /// Waits for its back-off to end.
    Waiting,
    /// Stopped for good, because the agent stops or the topology no longer has it.
    Stopped,
}

impl fmt::Display for ProcessState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ProcessState::Starting => "starting",
            ProcessState::Running => "running",
            ProcessState::Stopping => "stopping",
            ProcessState::Waiting => "waiting",
            ProcessState::Stopped => "stopped",
        })
    }
}
