//! The whole picture as JSON: `/v1/status`, and what `outlast status` and the status page are drawn from.

use std::collections::BTreeMap;
use std::time::Duration;

use outlast_consensus::{NodeId, Role};
use outlast_core::health::{Health, Thresholds};
use outlast_core::pair::Side;
use outlast_core::time::Timestamp;
use outlast_core::topology::{PartKind, PartRef, Protocol, Service};
use outlast_core::units::show_duration;
use outlast_core::view::{
    BackendView, NodeView, PartView, ProcessState, ProcessView, ServiceState, ServiceView,
};
use outlast_proxy::stats::{ErrorKind, Snapshot};
use serde::{Deserialize, Serialize};

use super::address_status::AddressStatus;
pub use super::database_status::{DatabaseStatus, MemberStatus, PausedStatus};
use super::health::UNWATCHED;
use super::scene::Scene;
use super::topology_status::TopologyStatus;
use super::zone_status::ZoneStatus;
use crate::agent::shared::requests;
use crate::cluster::{ClusterView, Phase};

/// The version of the form: it goes up when a field changes its meaning or goes away.
pub const VERSION: u32 = 1;

/// How a thing is, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    #[default]
    Unknown,
    Up,
    Degraded,
    Down,
}

impl Mark {
    pub fn word(self) -> &'static str {
        match self {
            Mark::Unknown => "unknown",
            Mark::Up => "up",
            Mark::Degraded => "degraded",
            Mark::Down => "down",
        }
    }
}

impl From<ServiceState> for Mark {
    fn from(state: ServiceState) -> Mark {
        match state {
            ServiceState::Unknown => Mark::Unknown,
            ServiceState::Up => Mark::Up,
            ServiceState::Degraded => Mark::Degraded,
            ServiceState::Down => Mark::Down,
        }
    }
}

impl From<Health> for Mark {
    fn from(health: Health) -> Mark {
        match health {
            Health::Unknown => Mark::Unknown,
            Health::Up => Mark::Up,
            Health::Down => Mark::Down,
        }
    }
}

/// One agent at a moment. Fields that an older agent does not send have their defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    pub v: u32,
    pub cluster: String,
    pub node: String,
    pub version: String,
    /// When this was true.
    pub at: String,
    pub started_at: String,
    pub uptime_seconds: u64,
    pub stopping: bool,
    /// Counts the topologies that were put in force.
    pub generation: u64,
    /// Why no pair can change sides: who serves cannot be written to disk.
    pub pairs_not_saved: Option<String>,
    /// No database fails over by itself, because people want that.
    pub failover_paused: Option<PausedStatus>,
    /// Of a topology with more than one node.
    pub agreement: Option<AgreementStatus>,
    pub proxy: ProxyStatus,
    pub machine: MachineStatus,
    pub services: BTreeMap<String, ServiceStatus>,
    pub processes: BTreeMap<String, ProcessStatus>,
    pub externals: BTreeMap<String, ExternalStatus>,
    /// Databases, by `NAME` of `[postgres.NAME]`.
    pub postgres: BTreeMap<String, DatabaseStatus>,
    /// Addresses that move, by `NAME` of `[address.NAME]`.
    pub addresses: BTreeMap<String, AddressStatus>,
    /// Zones of the name system, by `ZONE` of `[dns."ZONE"]`.
    pub dns: BTreeMap<String, ZoneStatus>,
    /// Parts of the file that nobody watches, and why not.
    pub unwatched: BTreeMap<String, String>,
}

/// This node among the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgreementStatus {
    /// `starting`, `founding`, `joining`, `running`, `failed`.
    pub phase: String,
    /// What it waits for, or why it failed.
    pub why: Option<String>,
    /// Null: no leader has a majority behind it, as far as this node knows.
    pub leader: Option<String>,
    /// `leader`, `follower`, `candidate`.
    pub role: Option<String>,
    pub term: u64,
    pub commit: u64,
    pub voters: Vec<String>,
    pub learners: Vec<String>,
    pub peers: BTreeMap<String, PeerStatus>,
    pub topology: TopologyStatus,
}

/// Another node as this one sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerStatus {
    pub address: String,
    pub linked: bool,
    pub for_seconds: Option<u64>,
    /// How old what is known of it is.
    pub silent_seconds: Option<f64>,
    pub round_trip_ms: Option<f64>,
    pub version: Option<String>,
    /// Why there is no link.
    pub why: Option<String>,
    /// What it said last of its services; null: nothing yet.
    pub said: Option<SaidStatus>,
}

/// What a node says that it sees.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SaidStatus {
    pub seconds_ago: f64,
    /// It is new enough to count in verdicts.
    pub counts: bool,
    pub topology_version: u64,
    pub services: BTreeMap<String, SightStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SightStatus {
    pub state: Mark,
    pub why: String,
}

/// What all nodes together say of a backend: up or down is what more than half of them say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VerdictStatus {
    pub health: Mark,
    pub up: usize,
    pub down: usize,
    /// All nodes, also those that say nothing.
    pub of: usize,
}

impl SaidStatus {
    fn of(view: &NodeView) -> SaidStatus {
        let services = view.services.iter().map(|(name, sight)| {
            (name.clone(), SightStatus { state: sight.state.into(), why: sight.why.clone() })
        });
        SaidStatus {
            seconds_ago: view.heard_ago.as_millis() as f64 / 1000.0,
            counts: view.counts,
            topology_version: view.topology_version,
            services: services.collect(),
        }
    }
}

impl AgreementStatus {
    fn of(view: &ClusterView, nodes: &BTreeMap<String, NodeView>) -> AgreementStatus {
        let (phase, why) = match &view.phase {
            Phase::Starting => ("starting", None),
            Phase::Founding { missing } if missing.is_empty() => {
                ("founding", Some("waits for the first voter to found the cluster".to_owned()))
            }
            Phase::Founding { missing } => {
                ("founding", Some(format!("waits for {}", missing.join(", "))))
            }
            Phase::Joining { reason } => ("joining", Some(reason.clone())),
            Phase::Running if view.leader().is_some() => ("running", None),
            Phase::Running => {
                ("running", view.standing.as_ref().and_then(|standing| standing.trouble.clone()))
            }
            Phase::Failed { reason } => ("failed", Some(reason.clone())),
        };
        let name =
            |id: &NodeId| view.names.get(&id.0).cloned().unwrap_or_else(|| format!("id {id}"));
        let standing = view.standing.as_ref();
        let peers = view.peers.iter().map(|(name, peer)| {
            let peer = PeerStatus {
                address: peer.address.clone(),
                linked: peer.linked,
                for_seconds: peer.lasts.map(|lasts| lasts.as_secs()),
                silent_seconds: peer.silent_for.map(|silent| silent.as_secs_f64()),
                round_trip_ms: peer.round_trip.map(|trip| trip.as_secs_f64() * 1e3),
                version: peer.build.clone(),
                why: peer.reason.clone().filter(|_| !peer.linked),
                said: nodes.get(name).map(SaidStatus::of),
            };
            (name.clone(), peer)
        });
        AgreementStatus {
            phase: phase.to_owned(),
            why,
            leader: view.leader().map(str::to_owned),
            role: standing.map(|standing| {
                match standing.role {
                    Role::Leader => "leader",
                    Role::Follower => "follower",
                    Role::Candidate | Role::PreCandidate => "candidate",
                }
                .to_owned()
            }),
            term: standing.map_or(0, |standing| standing.term),
            commit: standing.map_or(0, |standing| standing.commit),
            voters: standing.map_or_else(Vec::new, |s| s.members.voters.iter().map(name).collect()),
            learners: standing
                .map_or_else(Vec::new, |s| s.members.learners.iter().map(name).collect()),
            peers: peers.collect(),
            topology: TopologyStatus::of(&view.topology),
        }
    }
}

/// The data plane.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyStatus {
    pub pid: Option<u32>,
    pub draining: Vec<u32>,
    /// Why the last table was refused.
    pub refused: Option<String>,
    /// Since when it has answered nothing, although it runs: nobody knows whether clients are served.
    pub silent_since: Option<String>,
    pub silent_seconds: Option<u64>,
    pub connections: u64,
    pub stats_age_seconds: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineStatus {
    pub disk_used_ratio: Option<f64>,
    pub memory_used_ratio: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceStatus {
    pub state: Mark,
    pub since: Option<String>,
    pub for_seconds: Option<u64>,
    pub why: String,
    pub next: Option<String>,
    pub protocol: String,
    /// Where clients connect; null: only probed, not proxied.
    pub listen: Option<String>,
    /// Of a pair.
    pub active: Option<ActiveStatus>,
    /// Answered requests; of a TCP service connections.
    pub requests: u64,
    /// Requests answered with 5xx; of a TCP service connections that found no backend, or no lease of this node.
    pub failed: u64,
    pub requests_per_second: Option<f64>,
    pub retries: u64,
    pub retries_denied: u64,
    pub in_flight: u64,
    pub connections: u64,
    pub backends: Vec<BackendStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ActiveStatus {
    pub side: String,
    pub epoch: u64,
    /// Nobody is routed to until every node has left the other side.
    pub moving: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendStatus {
    pub name: String,
    /// `primary` or `backup`, of a pair.
    pub role: Option<String>,
    pub health: Mark,
    pub since: Option<String>,
    pub for_seconds: Option<u64>,
    /// What the last probe said.
    pub reason: String,
    /// Results in a row: positive successes, negative failures.
    pub streak: i32,
    /// `going down 1/3`, while results speak against what is believed.
    pub trend: Option<String>,
    /// New requests may go there.
    pub serves: bool,
    pub draining: bool,
    pub ejected: bool,
    /// Where there are several nodes.
    pub verdict: Option<VerdictStatus>,
    pub in_flight: u64,
    pub requests: u64,
    /// Answers with 5xx.
    pub failed: u64,
    /// Tries that went wrong, by kind; only kinds that happened.
    pub errors: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessStatus {
    pub state: String,
    /// `state` and `ready` in one word.
    pub health: Mark,
    pub ready: bool,
    pub since: Option<String>,
    pub for_seconds: Option<u64>,
    pub restarts: u64,
    pub pid: Option<u32>,
    pub reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExternalStatus {
    pub health: Mark,
    pub since: Option<String>,
    pub for_seconds: Option<u64>,
    pub reason: String,
}

impl Status {
    pub fn of(scene: &Scene) -> Status {
        let (picture, view) = (&scene.picture, &scene.picture.view);
        let part = |kind, name: &String| PartRef { kind, name: name.clone() }.to_string();
        let unprobed =
            picture.topology.externals.keys().filter(|n| !view.externals.contains_key(*n));
        let unprobed = unprobed.map(|n| (part(PartKind::External, n), "has no probe".to_owned()));
        let unwatched = scene.unwatched().into_iter();
        let unwatched =
            unwatched.map(|(kind, name)| (format!("{kind}.{name}"), UNWATCHED.to_owned()));
        let of = |(name, service): (&String, &ServiceView)| {
            (name.clone(), service_status(scene, name, service))
        };
        let databases = picture.databases.as_ref();
        Status {
            v: VERSION,
            cluster: picture.topology.cluster.name.clone(),
            node: scene.node.clone(),
            version: scene.version.to_owned(),
            at: scene.now.to_string(),
            started_at: scene.started_at.to_string(),
            uptime_seconds: scene.uptime.as_secs(),
            stopping: scene.stopping,
            generation: view.generation,
            pairs_not_saved: view.not_saved.clone(),
            failover_paused: databases.and_then(|view| view.pause.as_ref()).map(PausedStatus::of),
            agreement: picture.cluster.as_deref().map(|c| AgreementStatus::of(c, &view.nodes)),
            proxy: ProxyStatus {
                pid: picture.proxy.pid,
                draining: picture.proxy.draining.clone(),
                refused: picture.proxy.refused.clone(),
                silent_since: scene.silent().map(|silent| before(scene.now, silent).to_string()),
                silent_seconds: scene.silent().map(|silent| silent.as_secs()),
                connections: scene.stats.connections,
                stats_age_seconds: scene.stats_age.as_millis() as f64 / 1000.0,
            },
            machine: MachineStatus {
                disk_used_ratio: picture.vitals.disk.map(|usage| rounded(usage.share())),
                memory_used_ratio: picture.vitals.memory.map(|usage| rounded(usage.share())),
            },
            services: view.services.iter().map(of).collect(),
            processes: view.processes.iter().map(|(n, p)| (n.clone(), process(scene, p))).collect(),
            externals: view
                .externals
                .iter()
                .map(|(n, e)| (n.clone(), external(scene, e)))
                .collect(),
            postgres: databases.map(DatabaseStatus::all).unwrap_or_default(),
            dns: ZoneStatus::all(picture),
            addresses: AddressStatus::all(&scene.node, picture),
            unwatched: unwatched.chain(unprobed).collect(),
        }
    }

    /// As programs get it.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("plain data always serializes");
        text.push('\n');
        text
    }
}

fn service_status(scene: &Scene, name: &str, view: &ServiceView) -> ServiceStatus {
    let spec = scene.spec(name);
    let counted = scene.counted(name);
    let tcp = spec.is_some_and(|s| s.protocol == Protocol::Tcp);
    let all = counted.map(|c| c.backends.iter().map(|b| &b.counts).chain([&c.own]));
    let failed: u64 = all.map_or(0, |mut all| match tcp {
        false => all.map(|counts| answers(counts, 5)).sum(),
        true => all
            .next_back()
            .map_or(0, |own| error(own, ErrorKind::NoBackend) + error(own, ErrorKind::Unvouched)),
    });
    let (unknown, withheld) = (scene.unknown(name), scene.withheld(name));
    let since = if unknown.is_some() {
        scene.silent().map_or_else(Timestamp::default, |silent| before(scene.now, silent))
    } else {
        view.since
    };
    ServiceStatus {
        state: if unknown.is_some() { Mark::Unknown } else { scene.state(name, view).into() },
        since: moment(since),
        for_seconds: seconds(scene, since),
        why: match unknown.or(withheld.map(str::to_owned)) {
            Some(why) => format!("{why}; {}", view.why),
            None => view.why.clone(),
        },
        next: view.next.clone().or_else(|| what_next(view, spec?)),
        protocol: if tcp { "tcp" } else { "http" }.to_owned(),
        listen: spec.and_then(|s| s.listen).map(|address| address.to_string()),
        active: view
            .active
            .map(|(side, epoch)| (side.to_string(), epoch.0, view.moving))
            .map(|(side, epoch, moving)| ActiveStatus { side, epoch, moving }),
        requests: counted.map_or(0, requests),
        failed,
        requests_per_second: scene.rates.get(name).map(|&rate| rounded(rate)),
        retries: counted.map_or(0, |c| c.retries),
        retries_denied: counted.map_or(0, |c| c.retries_denied),
        in_flight: counted.map_or(0, |c| c.in_flight),
        connections: counted.map_or(0, |c| c.connections),
        backends: view.backends.iter().map(|b| backend_status(scene, name, view, b)).collect(),
    }
}

fn backend_status(
    scene: &Scene,
    service: &str,
    view: &ServiceView,
    backend: &BackendView,
) -> BackendStatus {
    let counted = scene.counted_backend(service, &backend.name);
    let nothing = Snapshot::default();
    let counts = counted.map_or(&nothing, |c| &c.counts);
    let kinds =
        ErrorKind::ALL.into_iter().map(|kind| (kind.word().to_owned(), error(counts, kind)));
    let passive = view.active.is_some_and(|(side, _)| backend.role != Some(side));
    BackendStatus {
        name: backend.name.clone(),
        role: backend.role.map(|role: Side| role.to_string()),
        health: backend.health.into(),
        since: moment(backend.since),
        for_seconds: seconds(scene, backend.since),
        reason: backend.reason.clone(),
        streak: backend.streak,
        trend: scene.spec(service).and_then(|s| trend(backend, s.probe.thresholds)),
        serves: backend.health == Health::Up && !backend.draining && !backend.ejected && !passive,
        draining: backend.draining,
        ejected: backend.ejected,
        verdict: backend.verdict.map(|verdict| VerdictStatus {
            health: verdict.health.into(),
            up: verdict.up,
            down: verdict.down,
            of: verdict.of,
        }),
        in_flight: counted.map_or(0, |c| c.in_flight),
        requests: counts.answers.iter().sum::<u64>() + counts.tunnels,
        failed: answers(counts, 5),
        errors: kinds.filter(|&(_, count)| count > 0).collect(),
    }
}

/// Where a backend's latest results are taking it.
fn trend(backend: &BackendView, thresholds: Thresholds) -> Option<String> {
    let (rise, fall) = (thresholds.rise, thresholds.fall);
    match (backend.health, backend.streak) {
        (Health::Up | Health::Unknown, streak) if streak < 0 => {
            Some(format!("going down {}/{fall}", streak.unsigned_abs()))
        }
        (Health::Down | Health::Unknown, streak) if streak > 0 => {
            Some(format!("going up {streak}/{rise}"))
        }
        (Health::Up | Health::Down | Health::Unknown, _) => None,
    }
}

/// What will happen to a service of which something is not as it should be.
fn what_next(view: &ServiceView, spec: &Service) -> Option<String> {
    let every = show_duration(spec.probe.every);
    let (rise, fall) = (spec.probe.thresholds.rise, spec.probe.thresholds.fall);
    let failing = view.backends.iter().find(|b| b.health == Health::Up && b.streak < 0);
    if let Some(backend) = failing {
        let left = u32::from(fall.get()).saturating_sub(backend.streak.unsigned_abs());
        let (name, probes) = (&backend.name, plural(left, "more failed probe"));
        return Some(format!("{name} is down after {probes}, one every {every}"));
    }
    // The backup of a service that is up may be meant to be down: a cold standby.
    let down = view.backends.iter().find(|b| b.health == Health::Down && !b.draining);
    if let Some(down) = down.filter(|_| view.state != ServiceState::Up) {
        let left = i32::from(rise.get()).saturating_sub(down.streak.max(0)).unsigned_abs();
        let probes = plural(left, "good probe");
        return Some(format!("{} is up after {probes}, one every {every}", down.name));
    }
    if let Some(ejected) = view.backends.iter().find(|b| b.ejected) {
        return Some(format!("{} is tried with one request when its ejection ends", ejected.name));
    }
    let draining = view.backends.iter().find(|b| b.draining)?;
    Some(format!("{} gets no requests until `outlast undrain`", draining.name))
}

fn plural(count: u32, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn process(scene: &Scene, view: &ProcessView) -> ProcessStatus {
    let health = match view.state {
        ProcessState::Running if view.ready => Mark::Up,
        ProcessState::Running | ProcessState::Starting | ProcessState::Stopping => Mark::Degraded,
        ProcessState::Waiting | ProcessState::Stopped => Mark::Down,
    };
    ProcessStatus {
        state: view.state.to_string(),
        health,
        ready: view.ready,
        since: moment(view.since),
        for_seconds: seconds(scene, view.since),
        restarts: view.restarts,
        pid: view.pid,
        reason: view.reason.clone(),
    }
}

fn external(scene: &Scene, view: &PartView) -> ExternalStatus {
    ExternalStatus {
        health: view.health.into(),
        since: moment(view.since),
        for_seconds: seconds(scene, view.since),
        reason: view.reason.clone(),
    }
}

/// Answers of a class, 1 to 5.
fn answers(counts: &Snapshot, class: usize) -> u64 {
    counts.answers.get(class - 1).copied().unwrap_or(0)
}

fn error(counts: &Snapshot, kind: ErrorKind) -> u64 {
    let place = ErrorKind::ALL.iter().position(|&k| k == kind);
    place.and_then(|place| counts.errors.get(place)).copied().unwrap_or(0)
}

/// The moment `ago` before `now`.
fn before(now: Timestamp, ago: Duration) -> Timestamp {
    Timestamp(now.0.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)))
}

fn moment(at: Timestamp) -> Option<String> {
    (at != Timestamp::default()).then(|| at.to_string())
}

fn seconds(scene: &Scene, since: Timestamp) -> Option<u64> {
    scene.ago(since).map(|ago| ago.as_secs())
}

/// To four digits behind the point: more would be noise.
fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}
