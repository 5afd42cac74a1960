//! What the data plane counts. Every counter is read without stopping anybody.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper bounds of the latency histogram, in microseconds; a last bucket without bound follows.
pub const BUCKETS_US: [u64; 14] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 200_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// Why a try at a backend, or a whole request, failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ErrorKind {
    Connect,
    Reset,
    Timeout,
    /// The backend's answer could not be understood.
    BadAnswer,
    Status5xx,
    /// No backend could take the request.
    NoBackend,
    /// A limit of the service was reached.
    Limit,
    /// The request was refused as malformed.
    BadRequest,
    /// The client went away.
    ClientGone,
    /// Cut off: by a change of roles, with the lease of this node, or when the time for draining was over.
    CutOff,
    /// Nobody vouches for this service now.
    Unvouched,
}

impl ErrorKind {
    pub const ALL: [ErrorKind; 11] = [
        ErrorKind::Connect,
        ErrorKind::Reset,
        ErrorKind::Timeout,
        ErrorKind::BadAnswer,
        ErrorKind::Status5xx,
        ErrorKind::NoBackend,
        ErrorKind::Limit,
        ErrorKind::BadRequest,
        ErrorKind::ClientGone,
        ErrorKind::CutOff,
        ErrorKind::Unvouched,
    ];

    /// The word in metrics.
    pub fn word(self) -> &'static str {
        match self {
            ErrorKind::Connect => "connect",
            ErrorKind::Reset => "reset",
            ErrorKind::Timeout => "timeout",
            ErrorKind::BadAnswer => "bad_answer",
            ErrorKind::Status5xx => "status_5xx",
            ErrorKind::NoBackend => "no_backend",
            ErrorKind::Limit => "limit",
            ErrorKind::BadRequest => "bad_request",
            ErrorKind::ClientGone => "client_gone",
            ErrorKind::CutOff => "cut_off",
            ErrorKind::Unvouched => "unvouched",
        }
    }
}

/// Counters of one backend, or of what a service answered by itself.
#[derive(Debug, Default)]
pub struct Counters {
    /// Final answers by class, 1xx to 5xx.
    pub answers: [AtomicU64; 5],
    pub errors: [AtomicU64; ErrorKind::ALL.len()],
    pub latency: [AtomicU64; BUCKETS_US.len() + 1],
    pub latency_sum_us: AtomicU64,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    /// TCP connections, or upgraded ones.
    pub tunnels: AtomicU64,
}

impl Counters {
    pub(crate) fn answered(&self, status: u16, took: Duration) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.answers[class].fetch_add(1, Relaxed);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_US.partition_point(|&bound| bound < us);
        self.latency[bucket].fetch_add(1, Relaxed);
        self.latency_sum_us.fetch_add(us, Relaxed);
    }

    pub(crate) fn failed(&self, kind: ErrorKind) {
        self.errors[kind as usize].fetch_add(1, Relaxed);
    }

    pub fn snapshot(&self) -> Snapshot {
        let read = |counters: &[AtomicU64]| counters.iter().map(|c| c.load(Relaxed)).collect();
        Snapshot {
            answers: read(&self.answers),
            errors: read(&self.errors),
            latency: read(&self.latency),
            latency_sum_us: self.latency_sum_us.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            tunnels: self.tunnels.load(Relaxed),
        }
    }
}

/// Counters at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub answers: Vec<u64>,
    /// In the order of `ErrorKind::ALL`.
    pub errors: Vec<u64>,
    /// In the order of `BUCKETS_US`, not cumulative.
    pub latency: Vec<u64>,
    pub latency_sum_us: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub tunnels: u64,
}

impl Snapshot {
    /// Adds another process's counts of the same thing.
    pub fn add(&mut self, other: &Snapshot) {
        let add = |to: &mut Vec<u64>, from: &[u64]| {
            to.resize(to.len().max(from.len()), 0);
            to.iter_mut().zip(from).for_each(|(a, b)| *a += b);
        };
        add(&mut self.answers, &other.answers);
        add(&mut self.errors, &other.errors);
        add(&mut self.latency, &other.latency);
        self.latency_sum_us += other.latency_sum_us;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.tunnels += other.tunnels;
    }
}

/// Everything counted by one data plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub services: Vec<ServiceStats>,
    /// Open client connections.
    pub connections: u64,
    pub lease: LeaseStats,
}

/// The lease of this node, as its data plane knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStats {
    /// For how long it still lasts; `None`: nobody vouches.
    pub left: Option<Duration>,
    /// How often it has ended.
    pub ended: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStats {
    pub name: String,
    /// What the proxy answered by itself, without a backend.
    pub own: Snapshot,
    pub retries: u64,
    pub retries_denied: u64,
    /// Not served now: it needs somebody to vouch for it, and nobody does.
    pub unvouched: bool,
    pub connections: u64,
    pub in_flight: u64,
    pub backends: Vec<BackendStats>,
    #[serde(default)]
    pub postgres: PostgresStats,
}

/// What only a service of PostgreSQL counts. Its sessions are `tunnels` of their backends, cut ones are errors of the kind
/// `CutOff`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresStats {
    /// Clients that wait for a backend now.
    pub waiting: u64,
    /// Clients that had to wait.
    pub held: u64,
    /// Sessions that went on at a backend after they had lost one.
    pub resumed: u64,
    /// Sessions that could not, because of what they were bound to.
    pub bound: u64,
}

impl PostgresStats {
    /// Adds another process's counters; what is true only now is left as it is.
    pub fn add(&mut self, other: &PostgresStats) {
        self.held += other.held;
        self.resumed += other.resumed;
        self.bound += other.bound;
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStats {
    pub name: String,
    pub in_flight: u64,
    pub ejected: bool,
    pub counts: Snapshot,
}
