//! The exact shape of a topology: what `outlast.toml` says once every mistake has been ruled out.
//!
//! Nothing here is checked again: a value of these types makes sense. Parsing, defaults and complaints live in the binary.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::num::{NonZeroU16, NonZeroU32};
use core::time::Duration;

use crate::health::Thresholds;

mod address;
mod zone;

pub use address::*;
pub use zone::*;

/// Services that listen on one node: their sockets are handed from proxy to proxy in one message.
pub const LISTENERS_MAX: usize = 512;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    pub cluster: Cluster,
    pub consensus: Consensus,
    pub nodes: BTreeMap<String, Node>,
    pub services: BTreeMap<String, Service>,
    pub processes: BTreeMap<String, Process>,
    pub postgres: BTreeMap<String, Postgres>,
    pub redis: BTreeMap<String, Redis>,
    pub stores: BTreeMap<String, Store>,
    pub addresses: BTreeMap<String, Address>,
    pub dns: BTreeMap<String, Zone>,
    pub externals: BTreeMap<String, External>,
    pub objectives: BTreeMap<String, Objective>,
    pub agreements: BTreeMap<String, Agreement>,
    pub cost: Cost,
    pub notify: BTreeMap<String, Notify>,
    pub backups: BTreeMap<String, Backup>,
}

/// `[cluster]`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    pub name: String,
    pub data_dir: String,
    /// How nodes know each other; `None`: they do not, and stay within one machine.
    pub tls: Option<ClusterTls>,
    /// Where agents reach each other, on nodes that do not say otherwise.
    pub port: LinkPort,
    /// Where /health, /metrics and the status page are served; `None` turns them off.
    pub face: Option<SocketAddr>,
    /// Worker threads of the proxy; `None`: one per core.
    pub proxy_threads: Option<NonZeroU16>,
}

/// Paths of the cluster's CAs, of this node's certificate chain and key, and of what was revoked, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterTls {
    pub ca: String,
    pub cert: String,
    pub key: String,
    pub crl: Option<String>,
}

/// The port of an agent towards other agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkPort(pub NonZeroU16);

impl Default for LinkPort {
    fn default() -> LinkPort {
        LinkPort(NonZeroU16::new(8901).expect("it is not zero"))
    }
}

/// Paths of a CA (to verify the other side), a certificate chain and its key, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub ca: Option<String>,
    pub cert: String,
    pub key: String,
}

/// `[consensus]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consensus {
    pub kind: ConsensusKind,
    pub voters: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConsensusKind {
    #[default]
    Embedded,
    Etcd {
        endpoints: Vec<String>,
        tls: Option<EtcdTls>,
    },
}

/// `tls` of `[consensus]`: paths, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTls {
    /// Who signed the certificates of etcd's members.
    pub ca: String,
    /// This node's certificate chain and its key, where etcd asks for them.
    pub own: Option<(String, String)>,
}

/// `[node.NAME]`: one machine with one agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub address: IpAddr,
    /// Where its agent is reached, if not at the cluster's port.
    pub port: Option<LinkPort>,
    pub region: Option<String>,
    pub zone: Option<String>,
    pub reliability: Option<Reliability>,
    /// In the currency of `[cost]`.
    pub cost_per_month: Option<f64>,
}

impl Topology {
    /// Where the agent of each node is reached by the others.
    pub fn link_addresses(&self) -> BTreeMap<String, SocketAddr> {
        let address = |node: &Node| {
            SocketAddr::new(node.address, node.port.unwrap_or(self.cluster.port).0.get())
        };
        self.nodes.iter().map(|(name, node)| (name.clone(), address(node))).collect()
    }
}

/// How often a thing is there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reliability {
    /// A share of time, above 0 and at most 1.
    Availability(f64),
    /// Mean time between failures and mean time to repair; availability is mtbf / (mtbf + mttr).
    Mtbf { mtbf: Duration, mttr: Duration },
}

impl Reliability {
    /// The share of time that the thing is there, 0 to 1.
    pub fn availability(self) -> f64 {
        match self {
            Reliability::Availability(share) => share,
            Reliability::Mtbf { mtbf, mttr } => {
                mtbf.as_secs_f64() / (mtbf.as_secs_f64() + mttr.as_secs_f64())
            }
        }
    }
}

/// A reference to another part of the file, written `postgres.orders`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartRef {
    pub kind: PartKind,
    pub name: String,
}

/// The kinds of part that can be named in `needs` and `may_use`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PartKind {
    Service,
    Process,
    Postgres,
    Redis,
    Store,
    Address,
    External,
}

impl PartKind {
    pub const ALL: [PartKind; 7] = [
        PartKind::Service,
        PartKind::Process,
        PartKind::Postgres,
        PartKind::Redis,
        PartKind::Store,
        PartKind::Address,
        PartKind::External,
    ];

    /// The section's word in the file.
    pub fn word(self) -> &'static str {
        match self {
            PartKind::Service => "service",
            PartKind::Process => "process",
            PartKind::Postgres => "postgres",
            PartKind::Redis => "redis",
            PartKind::Store => "store",
            PartKind::Address => "address",
            PartKind::External => "external",
        }
    }
}

impl fmt::Display for PartRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.kind.word(), self.name)
    }
}

/// `[service.NAME]`: what clients reach, and the backends that serve it.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Where the proxy listens; `None`: the service is probed and counted, not proxied.
    pub listen: Option<SocketAddr>,
    pub protocol: Protocol,
    /// Certificates that the proxy terminates TLS with, chosen by SNI; the first is the default. Empty: plain.
    pub tls: Vec<TlsFiles>,
    pub pool: Pool,
    /// A file without one gets a TCP connect probe.
    pub probe: Probe,
    pub retry: Retry,
    pub eject: Eject,
    pub timeouts: Timeouts,
    pub limits: Limits,
    /// At this share of usable backends or below, health is ignored; `None` never ignores it.
    pub panic: Option<f64>,
    /// A backend that comes up gets its full share after this long; zero at once.
    pub slow_start: Duration,
    pub forwarded: Forwarded,
    /// Peers whose `X-Forwarded-*` and PROXY headers are believed.
    pub trusted: Vec<Network>,
    pub proxy_protocol: ProxyProtocol,
    /// Parts without which this service is down.
    pub needs: Vec<PartRef>,
    /// Parts without which this service is degraded.
    pub may_use: Vec<PartRef>,
    /// How many backends must be up for the service to be up (k of n).
    pub at_least: NonZeroU16,
    /// Of one backend's own software, on top of its node.
    pub reliability: Option<Reliability>,
    /// Whether its loss counts as an outage when single points of failure are sought.
    pub critical: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Tcp,
}

/// Who serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Active-active: every healthy backend.
    Balanced { backends: Vec<Backend>, balance: Balance },
    /// Active-passive: one serves, one waits.
    Pair(Pair),
}

impl Pool {
    /// All backends; of a pair the primary first.
    pub fn backends(&self) -> Vec<&Backend> {
        match self {
            Pool::Balanced { backends, .. } => backends.iter().collect(),
            Pool::Pair(pair) => alloc::vec![&pair.primary, &pair.backup],
        }
    }
}

/// One server behind a service. Its text in the file (`http://10.0.0.1:3000`) is its name within the service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    pub url: String,
    pub tls: bool,
    /// Host name or IP address, without brackets.
    pub host: String,
    pub port: NonZeroU16,
}

impl Backend {
    /// `host:port`, with brackets round an IPv6 address.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            alloc::format!("[{}]:{}", self.host, self.port)
        } else {
            alloc::format!("{}:{}", self.host, self.port)
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    Random,
    /// Power of two choices: of two random backends, the one with fewer requests in flight.
    LeastRequests,
    /// The same key goes to the same backend while it is usable (rendezvous hashing).
    Hash(HashKey),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    ClientIp,
    Path,
    Header(String),
    Cookie(String),
}

/// A primary and the backup that takes over when it is down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub primary: Backend,
    pub backup: Backend,
    pub standby: Standby,
    pub failback: Failback,
}

/// How ready the backup is before it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standby {
    /// Runs and could serve at any moment.
    Hot,
    /// Runs; `activate`, if given, makes it ready to serve (leave read-only mode, say).
    Warm { activate: Option<Command> },
    /// Does not run: `start` starts it; it serves once its probe says up, within `start_limit`.
    Cold { start: Command, stop: Option<Command>, start_limit: Duration },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failback {
    /// Return once the primary has been up without a break for this long.
    After(Duration),
    /// Stay until a person says so.
    Manual,
}

/// A program and its arguments; no shell between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command(pub Vec<String>);

/// How a thing is asked how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub check: Check,
    pub every: Duration,
    /// Shorter than `every`.
    pub timeout: Duration,
    pub thresholds: Thresholds,
    /// Wait this long after the start of what is probed (Kubernetes: initialDelaySeconds).
    pub delay: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    Http(HttpCheck),
    /// A connection that opens. `None`: of the backend's own address.
    Tcp {
        address: Option<Authority>,
    },
    /// Exit status 0. `{backend}` in an argument stands for the backend's `host:port`.
    Command(Command),
    /// `grpc.health.v1.Health/Check` answers SERVING. `None`: at the backend's own address.
    Grpc {
        service: String,
        address: Option<Authority>,
        tls: bool,
        tls_verify: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    pub target: HttpTarget,
    pub method: String,
    pub status: StatusSet,
    /// Text that the first 64 KiB of the body must contain.
    pub body: Option<String>,
    pub headers: Vec<(String, String)>,
    pub tls_verify: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpTarget {
    /// A path on the backend that is probed.
    Path(String),
    /// A whole URL.
    Url { tls: bool, authority: Authority, path: String },
}

/// Host and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Authority {
    pub host: String,
    pub port: NonZeroU16,
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// HTTP status codes that count as success, as inclusive ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusSet(pub Vec<(u16, u16)>);

impl StatusSet {
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|&(low, high)| (low..=high).contains(&status))
    }
}

/// When and how often a request is tried again on another backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Tries in all, the first one included.
    pub attempts: NonZeroU16,
    /// Before the second retry; the first goes to another backend at once. Doubles, with jitter.
    pub backoff: Duration,
    /// Retries per request, as a share, over ten seconds; a floor of ten retries a second is always allowed.
    pub budget: f64,
    /// Until the response head has arrived, for each try.
    pub try_timeout: Duration,
    pub on: RetryOn,
}

/// What is worth a retry. A request that may have been acted on is only repeated when its method is idempotent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOn {
    pub connect: bool,
    pub reset: bool,
    pub timeout: bool,
    pub status_5xx: bool,
}

/// When traffic itself shows that a backend is bad, it gets none for a while. Never the last one.
#[derive(Clone, Debug, PartialEq)]
pub struct Eject {
    /// Connect errors, resets and timeouts in a row; 0 turns it off.
    pub failures: u32,
    /// Share of 5xx answers among at least `rate_min` requests within ten seconds; `None` turns it off.
    pub rate_5xx: Option<f64>,
    pub rate_min: u32,
    /// The first ejection lasts this long; it doubles each time, up to `max_time`.
    pub time: Duration,
    pub max_time: Duration,
}

/// Every wait of the proxy has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    /// From the first byte of a request to the end of its head.
    pub head: Duration,
    /// Between two reads or writes of a body, either side.
    pub body: Duration,
    /// Between two requests of one client.
    pub idle: Duration,
    /// Of a pooled connection to a backend.
    pub backend_idle: Duration,
    /// Without a byte in either direction, of a TCP connection or an upgraded one.
    pub tunnel: Duration,
    /// How long open work may go on after its backend or its proxy is to leave.
    pub drain: Duration,
    /// In the queue for a free slot.
    pub queue: Duration,
}

/// Every size of the proxy has a name. 0 means no limit only where it says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request or response head.
    pub head_bytes: u32,
    pub headers: u16,
    /// Bytes of a request body; 0 is unlimited.
    pub body_bytes: u64,
    /// Client connections of the service.
    pub connections: NonZeroU32,
    /// Requests in flight of the service.
    pub requests: NonZeroU32,
    /// Requests in flight to one backend; 0 is unlimited.
    pub per_backend: u32,
    /// Requests that may wait for a free slot.
    pub queue: u32,
}

/// What backends are told about the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    Off,
    /// `X-Forwarded-For`, `-Proto`, `-Host`.
    XForwarded,
    /// RFC 7239.
    Forwarded,
    Both,
}

/// `10.0.0.0/8`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    pub address: IpAddr,
    pub prefix: u8,
}

impl Network {
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (network, ip, bits) = match (self.address, ip) {
            (IpAddr::V4(n), IpAddr::V4(ip)) => {
                (u128::from(n.to_bits()), u128::from(ip.to_bits()), 32)
            }
            (IpAddr::V6(n), IpAddr::V6(ip)) => (n.to_bits(), ip.to_bits(), 128),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
        };
        let host_bits = u32::from(u8::saturating_sub(bits, self.prefix));
        (network ^ ip).checked_shr(host_bits).unwrap_or(0) == 0
    }
}

/// HAProxy's PROXY protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Clients (of `trusted` networks) must send it.
    pub accept: bool,
    pub send: Option<ProxyVersion>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    V1,
    V2,
}

/// `[process.NAME]`: a program that the agent starts and keeps alive.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    pub nodes: Vec<String>,
    pub command: Command,
    pub directory: Option<String>,
    pub environment: BTreeMap<String, String>,
    pub user: Option<String>,
    /// For the Deployment that `outlast export kubernetes` prints.
    pub image: Option<String>,
    pub startup: Option<Probe>,
    pub liveness: Option<Probe>,
    pub readiness: Option<Probe>,
    /// Between SIGTERM and SIGKILL.
    pub stop_timeout: Duration,
    pub memory_limit: Option<u64>,
    /// Cores.
    pub cpu_limit: Option<f64>,
    pub needs: Vec<PartRef>,
}

/// `[postgres.NAME]`
#[derive(Clone, Debug, PartialEq)]
pub struct Postgres {
    pub nodes: Vec<String>,
    pub version: u16,
    pub data_dir: String,
    pub listen_write: Option<SocketAddr>,
    pub listen_read: Option<SocketAddr>,
    pub durability: Durability,
    pub lag_limit: u64,
    /// Who is chosen as primary among members whose logs are equally long; 0: never.
    pub priorities: BTreeMap<String, u32>,
    /// The region in which it is made; members of others then follow asynchronously. `None`: all members are equal.
    pub home: Option<String>,
    pub region_failover: RegionFailover,
    /// Where PostgreSQL's programs are; `None`: where the system's packages put this version.
    pub bin_dir: Option<String>,
    /// Where PostgreSQL itself listens, on each node's address.
    pub port: NonZeroU16,
    /// Who runs it on this system. It refuses to run as root.
    pub user: String,
    /// How long a client waits for a primary before it is told that there is none.
    pub hold: Duration,
    /// Who may connect from where, as lines of `pg_hba.conf`.
    pub hba: Vec<String>,
    /// The primary serves the read port while no standby can.
    pub read_from_primary: bool,
    pub parameters: BTreeMap<String, String>,
    pub reliability: Option<Reliability>,
}

/// Who has another region take over where the region of the primary is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RegionFailover {
    /// A person.
    #[default]
    Manual,
    Automatic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Async,
    /// An acknowledged write is on `acks` other nodes; on `acks_min` while not more are there.
    Quorum {
        acks: NonZeroU16,
        acks_min: u16,
    },
}

/// `[redis.NAME]`
#[derive(Clone, Debug, PartialEq)]
pub struct Redis {
    pub nodes: Vec<String>,
    pub sentinel: Option<SocketAddr>,
    pub reliability: Option<Reliability>,
}

/// `[store.NAME]`
#[derive(Clone, Debug, PartialEq)]
pub struct Store {
    pub nodes: Vec<String>,
    pub mode: StoreMode,
    pub listen: SocketAddr,
    pub reliability: Option<Reliability>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreMode {
    Quorum,
    ActiveActive,
}

/// `[external.NAME]`: a part that somebody else runs, or that outlast only counts.
#[derive(Clone, Debug, PartialEq)]
pub struct External {
    pub url: Option<String>,
    pub probe: Option<Probe>,
    pub reliability: Option<Reliability>,
    /// How many of it there are, each as reliable as `reliability` says.
    pub instances: NonZeroU16,
    /// How many of them must work.
    pub at_least: NonZeroU16,
}

/// `[objective.NAME]` (SLO)
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    pub service: PartRef,
    pub availability: Option<f64>,
    /// Percentile (95.0 for p95) and the latency that it must not exceed.
    pub latency: Vec<(f64, Duration)>,
    pub window: Duration,
    pub rto: Option<Duration>,
    pub rpo: Option<Duration>,
}

/// `[agreement.NAME]` (SLA)
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    pub objective: String,
    pub promise: f64,
    pub timezone: String,
    /// Below this availability, this percentage of the fee is returned; highest first.
    pub credits: Vec<Credit>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Credit {
    pub below: f64,
    pub percent: f64,
}

/// `[cost]`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cost {
    /// Revenue that an hour of outage loses.
    pub revenue_per_hour: Option<f64>,
    /// As written, for people: "$", "EUR".
    pub currency: Option<String>,
}

/// `[notify.NAME]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notify {
    pub pagerduty_key_file: Option<String>,
    pub slack_webhook_file: Option<String>,
    pub email: Option<Email>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Email {
    pub smtp: String,
    pub to: Vec<String>,
}

/// `[backup.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    pub of: PartRef,
    pub to: String,
    pub full: String,
    pub incremental: Option<String>,
    pub keep: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_its_own_addresses_only() {
        let net = |a: &str, prefix| Network { address: a.parse().unwrap(), prefix };
        let ip = |a: &str| a.parse::<IpAddr>().unwrap();
        assert!(net("10.0.0.0", 8).contains(ip("10.9.8.7")));
        assert!(!net("10.0.0.0", 8).contains(ip("11.0.0.1")));
        assert!(net("0.0.0.0", 0).contains(ip("1.2.3.4")));
        assert!(net("192.168.1.1", 32).contains(ip("192.168.1.1")));
        assert!(!net("192.168.1.1", 32).contains(ip("192.168.1.0")));
        assert!(net("fd00::", 8).contains(ip("fd12::1")));
        assert!(net("::", 0).contains(ip("fe80::1")));
        assert!(!net("::", 0).contains(ip("1.2.3.4")));
    }
}
