//! What the data plane serves: one whole table, replaced at once, never edited.
//!
//! The agent makes a table from the topology and its view and sends it over the control socket as JSON. A proxy that has lost
//! its agent goes on with the last table.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Everything that the data plane has to know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Counts up with each table of one agent.
    pub generation: u64,
    pub services: Vec<Service>,
}

/// One listener and the backends behind it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    pub listen: SocketAddr,
    pub protocol: Protocol,
    /// Certificates by SNI, the first is the default; empty: plain.
    #[serde(default)]
    pub certificates: Vec<Certificate>,
    pub backends: Vec<Backend>,
    pub balance: Balance,
    pub retry: Retry,
    pub eject: Eject,
    pub timeouts: Timeouts,
    pub limits: Limits,
    /// At this share of usable backends or below, health is ignored; `None` never ignores it.
    #[serde(default)]
    pub panic: Option<f64>,
    #[serde(default)]
    pub slow_start: Duration,
    pub forwarded: Forwarded,
    /// Networks (address, prefix length) whose forwarding headers are believed.
    #[serde(default)]
    pub trusted: Vec<(IpAddr, u8)>,
    #[serde(default)]
    pub accept_proxy: bool,
    #[serde(default)]
    pub send_proxy: Option<ProxyVersion>,
    /// Served only while this node vouches for what it knows.
    #[serde(default)]
    pub vouched: bool,
    /// What a service of `Protocol::Postgres` has beside.
    #[serde(default)]
    pub postgres: Option<PostgresPort>,
}

/// One of the two ports of a database, whose backends are its members.
///
/// On the write port the primary is `Up` and every other member `Passive`. On the read port the standbys within their lag limit
/// are `Up`, one that has fallen behind is `Draining`, and a member that must not be read from is `Passive` or `Down`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresPort {
    pub kind: PostgresKind,
    /// How long a client waits for a backend that can take it.
    pub hold: Duration,
    /// A switchover is under way: sessions end the transaction that they are in, and begin nothing until a table comes that
    /// is not paused. This table is in force once no transaction is open at any backend of the service.
    #[serde(default)]
    pub paused: bool,
    /// On the read port, the name of the backend that is the primary, if it may stand in: it has to be `Up`, is used only
    /// while no standby can be, and then for sessions that are read-only by default.
    #[serde(default)]
    pub fallback: Option<String>,
    /// `SCRAM-SHA-256$...` of the roles whose sessions may be resumed, as in `pg_authid`; without it, sessions are resumed only
    /// where the server asks for no password.
    #[serde(default)]
    pub verifiers: BTreeMap<String, String>,
}

impl std::fmt::Debug for PostgresPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let PostgresPort { kind, hold, paused, fallback, verifiers } = self;
        f.debug_struct("PostgresPort")
            .field("kind", kind)
            .field("hold", hold)
            .field("paused", paused)
            .field("fallback", fallback)
            .field("verifiers", &verifiers.len())
            .finish()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PostgresKind {
    Write,
    Read,
}

/// PEM texts; the data plane itself reads no files.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    pub chain: String,
    pub key: String,
    /// PEM of the CA that client certificates must be signed by.
    #[serde(default)]
    pub client_ca: Option<String>,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    Http,
    Tcp,
    /// Frontend/backend protocol 3; certificates and `tls_name` are not used, TLS goes through to the backend.
    Postgres,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Its text in the file.
    pub name: String,
    pub address: SocketAddr,
    /// The name to verify and to send as SNI, if the backend speaks TLS.
    #[serde(default)]
    pub tls_name: Option<String>,
    pub state: BackendState,
}

/// What the agent says of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackendState {
    /// Not probed yet: gets nothing.
    Unknown,
    Up,
    Down,
    /// Finishes what it has, gets nothing new.
    Draining,
    /// The side of a pair that does not serve; cut off at once.
    Passive,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Balance {
    RoundRobin,
    Random,
    LeastRequests,
    HashIp,
    HashPath,
    HashHeader(String),
    HashCookie(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retry {
    /// Tries in all.
    pub attempts: u16,
    pub backoff: Duration,
    pub budget: f64,
    pub try_timeout: Duration,
    pub on_connect: bool,
    pub on_reset: bool,
    pub on_timeout: bool,
    pub on_5xx: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Eject {
    /// Failures in a row; 0 is off.
    pub failures: u32,
    #[serde(default)]
    pub rate_5xx: Option<f64>,
    pub rate_min: u32,
    pub time: Duration,
    pub max_time: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    pub connect: Duration,
    pub head: Duration,
    pub body: Duration,
    pub idle: Duration,
    pub backend_idle: Duration,
    pub tunnel: Duration,
    pub drain: Duration,
    pub queue: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub head_bytes: u32,
    pub headers: u16,
    /// 0 is unlimited.
    pub body_bytes: u64,
    pub connections: u32,
    pub requests: u32,
    /// 0 is unlimited.
    pub per_backend: u32,
    pub queue: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Forwarded {
    Off,
    XForwarded,
    Forwarded,
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProxyVersion {
    V1,
    V2,
}

impl Service {
    /// A service with the file's defaults, for tests and benches.
    pub fn plain(
        name: &str,
        listen: SocketAddr,
        protocol: Protocol,
        backends: &[SocketAddr],
    ) -> Service {
        Service {
            name: name.to_owned(),
            listen,
            protocol,
            certificates: Vec::new(),
            backends: backends
                .iter()
                .map(|&address| Backend {
                    name: format!("http://{address}"),
                    address,
                    tls_name: None,
                    state: BackendState::Up,
                })
                .collect(),
            balance: Balance::RoundRobin,
            retry: Retry {
                attempts: 3,
                backoff: Duration::from_millis(100),
                budget: 0.2,
                try_timeout: Duration::from_secs(10),
                on_connect: true,
                on_reset: true,
                on_timeout: true,
                on_5xx: true,
            },
            eject: Eject {
                failures: 5,
                rate_5xx: Some(0.5),
                rate_min: 20,
                time: Duration::from_secs(5),
                max_time: Duration::from_secs(300),
            },
            timeouts: Timeouts {
                connect: Duration::from_secs(2),
                head: Duration::from_secs(10),
                body: Duration::from_secs(30),
                idle: Duration::from_secs(60),
                backend_idle: Duration::from_secs(30),
                tunnel: Duration::from_secs(3600),
                drain: Duration::from_secs(30),
                queue: Duration::from_secs(1),
            },
            limits: Limits {
                head_bytes: 32 << 10,
                headers: 100,
                body_bytes: 0,
                connections: 20_000,
                requests: 10_000,
                per_backend: 0,
                queue: 1000,
            },
            panic: Some(0.0),
            slow_start: Duration::ZERO,
            forwarded: Forwarded::XForwarded,
            trusted: Vec::new(),
            accept_proxy: false,
            send_proxy: None,
            vouched: false,
            postgres: (protocol == Protocol::Postgres).then(|| PostgresPort {
                kind: PostgresKind::Write,
                hold: Duration::from_secs(30),
                paused: false,
                fallback: None,
                verifiers: BTreeMap::new(),
            }),
        }
    }

    /// Whether a peer's forwarding headers are believed.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|&(address, prefix)| {
            outlast_core::topology::Network { address, prefix }.contains(peer)
        })
    }
}
