//! What the agent's readers see: /health, /metrics, the status page, the command line.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use outlast_core::time::Timestamp;
use outlast_core::topology::Topology;
use outlast_core::view::View;
use outlast_proxy::stats::Stats;
use tokio::sync::watch;

/// The agent's own state, as far as others may read it.
#[derive(Clone, Debug)]
pub struct Shared {
    pub node: String,
    pub version: &'static str,
    pub started: Instant,
    pub started_at: Timestamp,
    /// The view, and the topology that it is of: published together.
    pub picture: watch::Receiver<Arc<Picture>>,
    pub stats: Arc<Mutex<StatsAt>>,
    pub stopping: watch::Receiver<bool>,
    pub data_dir: std::path::PathBuf,
}

/// One whole picture.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    pub view: View,
    pub topology: Arc<Topology>,
    pub proxy: ProxyView,
    pub probes:
        std::collections::BTreeMap<(outlast_core::event::Target, outlast_host::probe::Code), u64>,
    /// When it was made.
    pub at: Timestamp,
}

/// The data plane as the agent sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyView {
    pub pid: Option<u32>,
    /// Proxies that still drain.
    pub draining: Vec<u32>,
    /// Why the last table was refused, if it was.
    pub refused: Option<String>,
}

/// The data plane's counters, and when they were read.
#[derive(Clone, Debug)]
pub struct StatsAt {
    pub stats: Stats,
    pub at: Instant,
}

/// Now, by the wall clock.
pub fn wall() -> Timestamp {
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
