//! What the agent's readers see: /health, /metrics, the status page, the command line.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::addresses::AllSeen;
use crate::addresses::vrrp::AllRouters;
use crate::cluster::ClusterView;
use crate::names;
use outlast_core::agreed::{AgreedAddress, Database, Notice};
use outlast_core::database::{MemberSight, Wish};
use outlast_core::event::Target;
use outlast_core::time::Timestamp;
use outlast_core::topology::Topology;
use outlast_core::view::View;
use outlast_host::journal::Line;
use outlast_host::probe::Code;
use outlast_host::vitals::{self, Usage};
use outlast_proxy::stats::{ServiceStats, Stats};
use tokio::sync::watch;

/// Events that are kept in memory for the status page.
pub const RECENT_MAX: usize = 50;

/// Rates are means over this long.
const RATE_WINDOW: Duration = Duration::from_secs(10);

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
    pub recent: Recent,
}

/// One whole picture.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    pub view: View,
    pub topology: Arc<Topology>,
    pub proxy: ProxyView,
    pub probes: BTreeMap<(Target, Code), u64>,
    pub vitals: Vitals,
    /// `None` where there is only one node.
    pub cluster: Option<Arc<ClusterView>>,
    /// `None` where nobody could agree on them.
    pub databases: Option<DatabasesView>,
    /// `None` where nobody could agree on them.
    pub addresses: Option<AddressesView>,
    pub names: Arc<names::Seen>,
    /// Addresses that nobody agrees on, by unit.
    pub routers: AllRouters,
    /// When it was made.
    pub at: Timestamp,
}

/// Addresses that move, as this node knows them, by unit.
#[derive(Clone, Debug, Default)]
pub struct AddressesView {
    pub agreed: BTreeMap<String, AgreedAddress>,
    /// Those that this node may hold.
    pub seen: AllSeen,
}

/// Databases as this node knows them.
#[derive(Clone, Debug, Default)]
pub struct DatabasesView {
    /// What people want of each.
    pub wishes: BTreeMap<String, Wish>,
    pub agreed: BTreeMap<String, Database>,
    /// By database and node: how long ago it was heard, and what it said.
    pub members: BTreeMap<String, BTreeMap<String, (Duration, Option<MemberSight>)>>,
    /// Why the leader does nothing although something is wrong.
    pub stuck: BTreeMap<String, String>,
    /// Nobody takes over by itself now.
    pub pause: Option<Notice>,
    /// Nodes whose members are paused.
    pub paused: BTreeMap<String, Notice>,
}

/// The data plane as the agent sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyView {
    pub pid: Option<u32>,
    /// Proxies that still drain.
    pub draining: Vec<u32>,
    /// Why the last table was refused, if it was.
    pub refused: Option<String>,
    /// For how long it has answered nothing, while the agent asked.
    pub silent: Option<Duration>,
}

/// How full the machine is; `None` where it would not say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Vitals {
    /// The file system that holds the data directory.
    pub disk: Option<Usage>,
    pub memory: Option<Usage>,
}

impl Vitals {
    pub fn read(data_dir: &Path) -> Vitals {
        Vitals { disk: vitals::disk(data_dir).ok(), memory: vitals::memory().ok() }
    }
}

/// The newest events, oldest first: the status page reads no disk.
#[derive(Clone, Debug, Default)]
pub struct Recent(Arc<Mutex<VecDeque<Line>>>);

impl Recent {
    pub fn push(&self, line: Line) {
        let mut lines = self.0.lock().expect("no panic while held");
        if lines.len() == RECENT_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    pub fn lines(&self) -> Vec<Line> {
        self.0.lock().expect("no panic while held").iter().cloned().collect()
    }
}

/// The data plane's counters, and when they were read.
#[derive(Clone, Debug)]
pub struct StatsAt {
    pub stats: Stats,
    pub at: Instant,
    /// Requests of each service at earlier readings, oldest first.
    before: VecDeque<(Instant, BTreeMap<String, u64>)>,
}

impl StatsAt {
    /// Nothing counted yet.
    pub fn new(at: Instant) -> StatsAt {
        StatsAt { stats: Stats::default(), at, before: VecDeque::new() }
    }

    /// Takes a newer reading. `fresh`: the serving proxy has given it, not one that drains.
    pub fn take(&mut self, stats: Stats, at: Instant, fresh: bool) {
        let requests = stats.services.iter().map(|s| (s.name.clone(), requests(s)));
        self.before.push_back((at, requests.collect()));
        // One reading that is at least a window old stays, to count from.
        let old = |(read, _): &(Instant, _)| at.duration_since(*read) >= RATE_WINDOW;
        while self.before.get(1).is_some_and(old) {
            self.before.pop_front();
        }
        self.stats = stats;
        if fresh {
            self.at = at;
        }
    }

    /// Requests a second of each service; a service that was read only once has no rate.
    pub fn rates(&self) -> BTreeMap<String, f64> {
        let (Some((first_at, first)), Some((last_at, last))) =
            (self.before.front(), self.before.back())
        else {
            return BTreeMap::new();
        };
        let seconds = last_at.duration_since(*first_at).as_secs_f64();
        if seconds <= 0.0 {
            return BTreeMap::new();
        }
        let rate = |(name, &now): (&String, &u64)| {
            let since = now.saturating_sub(*first.get(name)?);
            Some((name.clone(), since as f64 / seconds))
        };
        last.iter().filter_map(rate).collect()
    }
}

/// What clients have asked of a service: requests that were answered, and TCP connections or upgraded ones.
pub fn requests(service: &ServiceStats) -> u64 {
    let all = service.backends.iter().map(|b| &b.counts).chain([&service.own]);
    all.map(|counts| counts.answers.iter().sum::<u64>() + counts.tunnels).sum()
}

/// Now, by the wall clock.
pub fn wall() -> Timestamp {
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use outlast_proxy::stats::Snapshot;

    #[test]
    fn a_rate_is_a_mean_over_the_window() {
        let counted = |answers: u64| Stats {
            services: vec![ServiceStats {
                name: "web".to_owned(),
                own: Snapshot { answers: vec![0, answers], ..Snapshot::default() },
                ..ServiceStats::default()
            }],
            ..Stats::default()
        };
        let start = Instant::now();
        let mut stats = StatsAt::new(start);
        assert_eq!(stats.rates(), BTreeMap::new());
        stats.take(counted(100), start, true);
        assert_eq!(stats.rates(), BTreeMap::new());
        for second in 1..=30 {
            stats.take(counted(100 + second * 7), start + Duration::from_secs(second), true);
        }
        assert_eq!(stats.rates(), BTreeMap::from([("web".to_owned(), 7.0)]));
        assert_eq!(stats.before.len(), 11);
        // Another proxy, whose counters begin again.
        stats.take(counted(0), start + Duration::from_secs(31), true);
        assert_eq!(stats.rates()["web"], 0.0);
        // One that drains says nothing about the one that serves.
        stats.take(counted(0), start + Duration::from_secs(40), false);
        assert_eq!(stats.at, start + Duration::from_secs(31));
    }
}
