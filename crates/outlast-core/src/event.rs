//! What happened: the closed list of events that the journal keeps.
//!
//! An event knows its name, what it is about, a sentence for people and its fields for programs; the journal's JSON, the
//! terminal and the status page are all printed from these four.

use alloc::borrow::ToOwned as _;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::health::Health;
use crate::pair::{Epoch, Side, Stage};
use crate::time::Timestamp;
use crate::topology::PartRef;
use crate::units::show_duration;
use crate::view::ServiceState;

/// One line of the journal.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Counts up by one on each node; a gap means that lines were lost.
    pub seq: u64,
    pub at: Timestamp,
    pub node: String,
    pub fact: Fact,
}

/// Something that a probe looks at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    Backend {
        service: String,
        backend: String,
    },
    External {
        name: String,
    },
    /// The value of a record of the name system, by the id of its probe.
    Value {
        id: String,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Backend { service, backend } => write!(f, "service.{service} {backend}"),
            Target::External { name } => write!(f, "external.{name}"),
            Target::Value { id } => write!(f, "dns {id}"),
        }
    }
}

/// Everything that can happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    AgentStarted {
        version: String,
        resumed: bool,
    },
    AgentStopping {
        reason: String,
    },
    TopologyApplied {
        changes: String,
    },
    TopologyRefused {
        reason: String,
    },
    HealthChanged {
        target: Target,
        from: Health,
        to: Health,
        reason: String,
        began_ago: Duration,
    },
    ServiceChanged {
        service: String,
        from: ServiceState,
        to: ServiceState,
        reason: String,
    },
    Ejected {
        service: String,
        backend: String,
        reason: String,
        time: Duration,
    },
    Returned {
        service: String,
        backend: String,
    },
    DrainStarted {
        service: String,
        backend: String,
    },
    DrainEnded {
        service: String,
        backend: String,
    },
    FailoverStarted {
        service: String,
        epoch: Epoch,
        from: Side,
        to: Side,
        reason: String,
    },
    FailoverStage {
        service: String,
        epoch: Epoch,
        stage: Stage,
        took: Duration,
    },
    FailoverFinished {
        service: String,
        epoch: Epoch,
        to: Side,
        took: Duration,
    },
    FailoverFailed {
        service: String,
        epoch: Epoch,
        reason: String,
    },
    FailbackFinished {
        service: String,
        epoch: Epoch,
        reason: String,
    },
    BothDown {
        service: String,
    },
    BothDownEnded {
        service: String,
    },
    ProcessStarted {
        process: String,
        pid: u32,
        adopted: bool,
    },
    ProcessExited {
        process: String,
        pid: u32,
        status: String,
    },
    ProcessKilled {
        process: String,
        pid: u32,
        reason: String,
    },
    ProcessWaiting {
        process: String,
        back_off: Duration,
    },
    ProcessReadiness {
        process: String,
        ready: bool,
        reason: String,
    },
    ProxyStarted {
        pid: u32,
    },
    ProxyAdopted {
        pid: u32,
    },
    ProxyReplaced {
        old: u32,
        new: u32,
    },
    ProxyLost {
        pid: u32,
        reason: String,
    },
    ProxySilent {
        pid: u32,
        reason: String,
    },
    ProxyKilled {
        pid: u32,
        reason: String,
    },
    PairsNotSaved {
        reason: String,
    },
    PairsSaved,
    /// The agent may not do what a part of the topology needs on this node.
    CapabilitiesMissing {
        reason: String,
    },
    /// Who is primary, or how writes are acknowledged; agreed on by all nodes.
    Database {
        database: String,
        epoch: u64,
        change: DatabaseChange,
        text: String,
    },
    /// What this node did with an address that moves, or an address did that all agree on.
    Address {
        unit: String,
        epoch: u64,
        change: AddressChange,
        text: String,
    },
    /// What name servers answer by has changed; agreed on by all nodes. `subject` is a part, the value of a record or a
    /// policy.
    Names {
        subject: String,
        epoch: u64,
        text: String,
    },
    /// What this node's name server does, or cannot do.
    NameServer {
        zone: String,
        trouble: bool,
        text: String,
    },
    OrderRefused {
        service: String,
        epoch: Epoch,
        obeyed: Epoch,
    },
    PartUnreachable {
        part: PartRef,
        reason: String,
    },
    LinkUp {
        node: String,
        build: String,
    },
    LinkDown {
        node: String,
        reason: String,
    },
    /// Somebody was refused, by us or we by them.
    LinkRefused {
        node: Option<String>,
        reason: String,
    },
    CertificatesTaken,
    CertificatesRefused {
        reason: String,
    },
    LeaderElected {
        leader: String,
        term: u64,
    },
    LeaderLost,
    ClusterLeft {
        reason: String,
    },
    /// A topology is being voted on.
    TopologyProposed {
        version: u64,
        by: String,
    },
    /// A node cannot run the topology that is being voted on.
    TopologyOpposed {
        version: u64,
        node: String,
        reason: String,
    },
    /// All nodes have said yes.
    TopologyInForce {
        version: u64,
    },
    /// Nothing has changed anywhere.
    TopologyGivenUp {
        version: u64,
        reason: String,
    },
    /// It is in force, and this node does not run it yet.
    TopologyNotTaken {
        version: u64,
        reason: String,
    },
    /// The operator's file says something else than what is in force.
    FileDiffers {
        version: u64,
        reason: String,
    },
}

/// What has changed about a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DatabaseChange {
    Created,
    Elects,
    Appointed,
    Opened,
    Rule,
    SwitchoverBegun,
    SwitchoverStep,
    SwitchoverDone,
    SwitchoverFailed,
    SwitchoverScheduled,
    /// It was not begun at its time, or was taken back.
    SwitchoverGivenUp,
    UpkeepBegun,
    UpkeepTurn,
    UpkeepDone,
    UpkeepFailed,
    /// A member was made like the primary: what differed, or everything.
    Rewound,
    Cloned,
}

impl DatabaseChange {
    fn name(self) -> &'static str {
        match self {
            DatabaseChange::Created => "database_created",
            DatabaseChange::Elects => "primary_lost",
            DatabaseChange::Appointed => "primary_appointed",
            DatabaseChange::Opened => "primary_serves",
            DatabaseChange::Rule => "acknowledgement_changed",
            DatabaseChange::SwitchoverBegun => "switchover_begun",
            DatabaseChange::SwitchoverStep => "switchover_step",
            DatabaseChange::SwitchoverDone => "switchover_done",
            DatabaseChange::SwitchoverFailed => "switchover_failed",
            DatabaseChange::SwitchoverScheduled => "switchover_scheduled",
            DatabaseChange::SwitchoverGivenUp => "switchover_given_up",
            DatabaseChange::UpkeepBegun => "upkeep_begun",
            DatabaseChange::UpkeepTurn => "upkeep_turn",
            DatabaseChange::UpkeepDone => "upkeep_done",
            DatabaseChange::UpkeepFailed => "upkeep_failed",
            DatabaseChange::Rewound => "member_rewound",
            DatabaseChange::Cloned => "member_cloned",
        }
    }
}

/// What has changed about an address that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressChange {
    /// All nodes have agreed on another holder.
    Moved,
    /// This node answers on it.
    Taken,
    /// This node has let go of it, as it was told to.
    LetGo,
    /// This node answers on it no more because nobody has granted it more time.
    Lost,
    /// This node holds it on although nobody grants it more time: see [`crate::heartbeat`].
    WentOn,
    /// This node has taken it over from another one without agreement, or could not.
    TookOver,
    TakeoverFailed,
    /// This node has let go of it because the other one of a pair holds it, too.
    Yielded,
    /// Somebody else claims it.
    Rival,
    /// This node cannot hold it, or can again.
    Unable,
    Able,
}

impl AddressChange {
    fn name(self) -> &'static str {
        match self {
            AddressChange::Moved => "address_moved",
            AddressChange::Taken => "address_taken",
            AddressChange::LetGo => "address_let_go",
            AddressChange::Lost => "address_lost",
            AddressChange::WentOn => "address_went_on",
            AddressChange::TookOver => "address_took_over",
            AddressChange::TakeoverFailed => "address_takeover_failed",
            AddressChange::Yielded => "address_yielded",
            AddressChange::Rival => "address_rival",
            AddressChange::Unable => "address_unable",
            AddressChange::Able => "address_able",
        }
    }
}

/// A field's value as a program reads it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Number(u64),
    Flag(bool),
    /// Written in seconds.
    Seconds(Duration),
}

impl Fact {
    /// The event's stable name: `health_changed`.
    pub fn name(&self) -> &'static str {
        match self {
            Fact::AgentStarted { .. } => "agent_started",
            Fact::AgentStopping { .. } => "agent_stopping",
            Fact::TopologyApplied { .. } => "topology_applied",
            Fact::TopologyRefused { .. } => "topology_refused",
            Fact::HealthChanged { .. } => "health_changed",
            Fact::ServiceChanged { .. } => "service_changed",
            Fact::Ejected { .. } => "ejected",
            Fact::Returned { .. } => "returned",
            Fact::DrainStarted { .. } => "drain_started",
            Fact::DrainEnded { .. } => "drain_ended",
            Fact::FailoverStarted { .. } => "failover_started",
            Fact::FailoverStage { .. } => "failover_stage",
            Fact::FailoverFinished { .. } => "failover_finished",
            Fact::FailoverFailed { .. } => "failover_failed",
            Fact::FailbackFinished { .. } => "failback_finished",
            Fact::BothDown { .. } => "both_down",
            Fact::BothDownEnded { .. } => "both_down_ended",
            Fact::ProcessStarted { .. } => "process_started",
            Fact::ProcessExited { .. } => "process_exited",
            Fact::ProcessKilled { .. } => "process_killed",
            Fact::ProcessWaiting { .. } => "process_waiting",
            Fact::ProcessReadiness { .. } => "process_readiness",
            Fact::ProxyStarted { .. } => "proxy_started",
            Fact::ProxyAdopted { .. } => "proxy_adopted",
            Fact::ProxyReplaced { .. } => "proxy_replaced",
            Fact::ProxyLost { .. } => "proxy_lost",
            Fact::ProxySilent { .. } => "proxy_silent",
            Fact::ProxyKilled { .. } => "proxy_killed",
            Fact::PairsNotSaved { .. } => "pairs_not_saved",
            Fact::PairsSaved => "pairs_saved",
            Fact::CapabilitiesMissing { .. } => "capabilities_missing",
            Fact::Database { change, .. } => change.name(),
            Fact::Address { change, .. } => change.name(),
            Fact::Names { .. } => "names_changed",
            Fact::NameServer { .. } => "name_server",
            Fact::OrderRefused { .. } => "order_refused",
            Fact::PartUnreachable { .. } => "part_unreachable",
            Fact::LinkUp { .. } => "link_up",
            Fact::LinkDown { .. } => "link_down",
            Fact::LinkRefused { .. } => "link_refused",
            Fact::CertificatesTaken => "certificates_taken",
            Fact::CertificatesRefused { .. } => "certificates_refused",
            Fact::LeaderElected { .. } => "leader_elected",
            Fact::LeaderLost => "leader_lost",
            Fact::ClusterLeft { .. } => "cluster_left",
            Fact::TopologyProposed { .. } => "topology_proposed",
            Fact::TopologyOpposed { .. } => "topology_opposed",
            Fact::TopologyInForce { .. } => "topology_in_force",
            Fact::TopologyGivenUp { .. } => "topology_given_up",
            Fact::TopologyNotTaken { .. } => "topology_not_taken",
            Fact::FileDiffers { .. } => "file_differs",
        }
    }

    /// The part of the topology that the event is about: `service.web`, `process.api`, `agent`.
    pub fn subject(&self) -> String {
        match self {
            Fact::AgentStarted { .. }
            | Fact::AgentStopping { .. }
            | Fact::PairsNotSaved { .. }
            | Fact::PairsSaved
            | Fact::CapabilitiesMissing { .. } => "agent".to_owned(),
            Fact::Database { database, .. } => alloc::format!("postgres.{database}"),
            Fact::Address { unit, .. } => alloc::format!("address.{unit}"),
            Fact::Names { subject, .. } => subject.clone(),
            Fact::NameServer { zone, .. } => alloc::format!("dns.{zone}"),
            Fact::TopologyApplied { .. }
            | Fact::TopologyRefused { .. }
            | Fact::TopologyProposed { .. }
            | Fact::TopologyOpposed { .. }
            | Fact::TopologyInForce { .. }
            | Fact::TopologyGivenUp { .. }
            | Fact::TopologyNotTaken { .. }
            | Fact::FileDiffers { .. } => "topology".to_owned(),
            Fact::HealthChanged { target, .. } => match target {
                Target::Backend { service, .. } => alloc::format!("service.{service}"),
                Target::External { name } => alloc::format!("external.{name}"),
                Target::Value { id } => alloc::format!("dns {id}"),
            },
            Fact::ServiceChanged { service, .. }
            | Fact::Ejected { service, .. }
            | Fact::Returned { service, .. }
            | Fact::DrainStarted { service, .. }
            | Fact::DrainEnded { service, .. }
            | Fact::FailoverStarted { service, .. }
            | Fact::FailoverStage { service, .. }
            | Fact::FailoverFinished { service, .. }
            | Fact::FailoverFailed { service, .. }
            | Fact::FailbackFinished { service, .. }
            | Fact::BothDown { service }
            | Fact::BothDownEnded { service }
            | Fact::OrderRefused { service, .. } => alloc::format!("service.{service}"),
            Fact::ProcessStarted { process, .. }
            | Fact::ProcessExited { process, .. }
            | Fact::ProcessKilled { process, .. }
            | Fact::ProcessWaiting { process, .. }
            | Fact::ProcessReadiness { process, .. } => alloc::format!("process.{process}"),
            Fact::ProxyStarted { .. }
            | Fact::ProxyAdopted { .. }
            | Fact::ProxyReplaced { .. }
            | Fact::ProxyLost { .. }
            | Fact::ProxySilent { .. }
            | Fact::ProxyKilled { .. } => "proxy".to_owned(),
            Fact::PartUnreachable { part, .. } => part.to_string(),
            Fact::LinkUp { node, .. }
            | Fact::LinkDown { node, .. }
            | Fact::LinkRefused { node: Some(node), .. } => alloc::format!("node.{node}"),
            Fact::LinkRefused { node: None, .. }
            | Fact::CertificatesTaken
            | Fact::CertificatesRefused { .. } => "links".to_owned(),
            Fact::LeaderElected { .. } | Fact::LeaderLost | Fact::ClusterLeft { .. } => {
                "consensus".to_owned()
            }
        }
    }

    /// The event's details, in a fixed order.
    pub fn fields(&self) -> Vec<(&'static str, Value)> {
        use Value::{Flag, Number, Seconds, Text};
        let text = |t: &dyn ToString| Text(t.to_string());
        match self {
            Fact::AgentStarted { version, resumed } => {
                alloc::vec![("version", text(version)), ("resumed", Flag(*resumed))]
            }
            Fact::AgentStopping { reason }
            | Fact::TopologyRefused { reason }
            | Fact::PairsNotSaved { reason }
            | Fact::CapabilitiesMissing { reason } => {
                alloc::vec![("reason", text(reason))]
            }
            Fact::TopologyApplied { changes } => alloc::vec![("changes", text(changes))],
            Fact::HealthChanged { target, from, to, reason, began_ago } => {
                let mut fields = Vec::new();
                if let Target::Backend { backend, .. } = target {
                    fields.push(("backend", text(backend)));
                }
                fields.extend([
                    ("from", text(from)),
                    ("to", text(to)),
                    ("reason", text(reason)),
                    ("began_ago", Seconds(*began_ago)),
                ]);
                fields
            }
            Fact::ServiceChanged { from, to, reason, .. } => {
                alloc::vec![("from", text(from)), ("to", text(to)), ("reason", text(reason))]
            }
            Fact::Ejected { backend, reason, time, .. } => {
                alloc::vec![
                    ("backend", text(backend)),
                    ("reason", text(reason)),
                    ("time", Seconds(*time))
                ]
            }
            Fact::Returned { backend, .. }
            | Fact::DrainStarted { backend, .. }
            | Fact::DrainEnded { backend, .. } => {
                alloc::vec![("backend", text(backend))]
            }
            Fact::FailoverStarted { epoch, from, to, reason, .. } => alloc::vec![
                ("epoch", Number(epoch.0)),
                ("from", text(from)),
                ("to", text(to)),
                ("reason", text(reason))
            ],
            Fact::FailoverStage { epoch, stage, took, .. } => {
                alloc::vec![
                    ("epoch", Number(epoch.0)),
                    ("stage", text(stage)),
                    ("took", Seconds(*took))
                ]
            }
            Fact::FailoverFinished { epoch, to, took, .. } => {
                alloc::vec![("epoch", Number(epoch.0)), ("to", text(to)), ("took", Seconds(*took))]
            }
            Fact::FailoverFailed { epoch, reason, .. }
            | Fact::FailbackFinished { epoch, reason, .. } => {
                alloc::vec![("epoch", Number(epoch.0)), ("reason", text(reason))]
            }
            Fact::BothDown { .. } | Fact::BothDownEnded { .. } | Fact::PairsSaved => Vec::new(),
            Fact::NameServer { text: what, .. } => alloc::vec![("text", text(what))],
            Fact::Database { epoch, text: what, .. }
            | Fact::Address { epoch, text: what, .. }
            | Fact::Names { epoch, text: what, .. } => {
                alloc::vec![("epoch", Number(*epoch)), ("text", text(what))]
            }
            Fact::OrderRefused { epoch, obeyed, .. } => {
                alloc::vec![("epoch", Number(epoch.0)), ("obeyed", Number(obeyed.0))]
            }
            Fact::ProcessStarted { pid, adopted, .. } => {
                alloc::vec![("pid", Number(u64::from(*pid))), ("adopted", Flag(*adopted))]
            }
            Fact::ProcessExited { pid, status, .. } => {
                alloc::vec![("pid", Number(u64::from(*pid))), ("status", text(status))]
            }
            Fact::ProcessKilled { pid, reason, .. }
            | Fact::ProxyLost { pid, reason }
            | Fact::ProxySilent { pid, reason }
            | Fact::ProxyKilled { pid, reason } => {
                alloc::vec![("pid", Number(u64::from(*pid))), ("reason", text(reason))]
            }
            Fact::ProcessWaiting { back_off, .. } => alloc::vec![("back_off", Seconds(*back_off))],
            Fact::ProcessReadiness { ready, reason, .. } => {
                alloc::vec![("ready", Flag(*ready)), ("reason", text(reason))]
            }
            Fact::ProxyStarted { pid } | Fact::ProxyAdopted { pid } => {
                alloc::vec![("pid", Number(u64::from(*pid)))]
            }
            Fact::ProxyReplaced { old, new } => {
                alloc::vec![("old", Number(u64::from(*old))), ("new", Number(u64::from(*new)))]
            }
            Fact::PartUnreachable { reason, .. }
            | Fact::LinkDown { reason, .. }
            | Fact::LinkRefused { reason, .. }
            | Fact::CertificatesRefused { reason }
            | Fact::ClusterLeft { reason } => alloc::vec![("reason", text(reason))],
            Fact::LinkUp { build, .. } => alloc::vec![("build", text(build))],
            Fact::CertificatesTaken | Fact::LeaderLost => Vec::new(),
            Fact::LeaderElected { leader, term } => {
                alloc::vec![("leader", text(leader)), ("term", Number(*term))]
            }
            Fact::TopologyProposed { version, by } => {
                alloc::vec![("version", Number(*version)), ("by", text(by))]
            }
            Fact::TopologyOpposed { version, node, reason } => alloc::vec![
                ("version", Number(*version)),
                ("by", text(node)),
                ("reason", text(reason))
            ],
            Fact::TopologyInForce { version } => alloc::vec![("version", Number(*version))],
            Fact::TopologyGivenUp { version, reason }
            | Fact::TopologyNotTaken { version, reason }
            | Fact::FileDiffers { version, reason } => {
                alloc::vec![("version", Number(*version)), ("reason", text(reason))]
            }
        }
    }

    /// How loud the event is: an error means that someone must look.
    pub fn severity(&self) -> Severity {
        match self {
            Fact::BothDown { .. }
            | Fact::FailoverFailed { .. }
            | Fact::ProxyLost { .. }
            | Fact::ProxySilent { .. }
            | Fact::PairsNotSaved { .. }
            | Fact::OrderRefused { .. }
            | Fact::CertificatesRefused { .. }
            | Fact::LeaderLost
            | Fact::ClusterLeft { .. }
            | Fact::TopologyNotTaken { .. } => Severity::Error,
            Fact::HealthChanged { to: Health::Down, .. }
            | Fact::ServiceChanged { to: ServiceState::Down, .. }
            | Fact::Ejected { .. }
            | Fact::TopologyRefused { .. }
            | Fact::FailoverStarted { .. }
            | Fact::ProcessExited { .. }
            | Fact::ProcessKilled { .. }
            | Fact::ProcessWaiting { .. }
            | Fact::ProxyKilled { .. }
            | Fact::LinkDown { .. }
            | Fact::LinkRefused { .. }
            | Fact::PartUnreachable { .. }
            | Fact::TopologyOpposed { .. }
            | Fact::TopologyGivenUp { .. }
            | Fact::Database {
                change:
                    DatabaseChange::Elects
                    | DatabaseChange::SwitchoverFailed
                    | DatabaseChange::SwitchoverGivenUp
                    | DatabaseChange::UpkeepFailed,
                ..
            }
            | Fact::Address {
                change:
                    AddressChange::Lost
                    | AddressChange::WentOn
                    | AddressChange::TookOver
                    | AddressChange::TakeoverFailed
                    | AddressChange::Yielded
                    | AddressChange::Rival
                    | AddressChange::Unable,
                ..
            }
            | Fact::NameServer { trouble: true, .. }
            | Fact::CapabilitiesMissing { .. }
            | Fact::FileDiffers { .. } => Severity::Warn,
            Fact::AgentStarted { .. }
            | Fact::AgentStopping { .. }
            | Fact::TopologyApplied { .. }
            | Fact::HealthChanged { to: Health::Up | Health::Unknown, .. }
            | Fact::ServiceChanged { .. }
            | Fact::Returned { .. }
            | Fact::DrainStarted { .. }
            | Fact::DrainEnded { .. }
            | Fact::FailoverStage { .. }
            | Fact::FailoverFinished { .. }
            | Fact::FailbackFinished { .. }
            | Fact::BothDownEnded { .. }
            | Fact::ProcessStarted { .. }
            | Fact::ProcessReadiness { .. }
            | Fact::ProxyStarted { .. }
            | Fact::ProxyAdopted { .. }
            | Fact::ProxyReplaced { .. }
            | Fact::LinkUp { .. }
            | Fact::CertificatesTaken
            | Fact::LeaderElected { .. }
            | Fact::TopologyProposed { .. }
            | Fact::TopologyInForce { .. }
            | Fact::Database { .. }
            | Fact::Address { .. }
            | Fact::Names { .. }
            | Fact::NameServer { .. }
            | Fact::PairsSaved => Severity::Info,
        }
    }
}

/// How loud an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Info,
    Warn,
    Error,
}

impl fmt::Display for Fact {
    /// The event as a sentence without its subject.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fact::AgentStarted { version, resumed: false } => {
                write!(f, "started, version {version}")
            }
            Fact::AgentStarted { version, resumed: true } => {
                write!(
                    f,
                    "started, version {version}, carrying on with what the running proxy believed"
                )
            }
            Fact::AgentStopping { reason } => write!(f, "stopping: {reason}"),
            Fact::TopologyApplied { changes } => write!(f, "applied: {changes}"),
            Fact::TopologyRefused { reason } => {
                write!(f, "refused, the old one stays in force: {reason}")
            }
            Fact::HealthChanged { target, from, to, reason, began_ago } => {
                if let Target::Backend { backend, .. } = target {
                    write!(f, "{backend} ")?;
                }
                write!(f, "{from} -> {to}: {reason}")?;
                if *to == Health::Down && !began_ago.is_zero() {
                    write!(f, " (began {} ago)", show_duration(*began_ago))?;
                }
                Ok(())
            }
            Fact::ServiceChanged { from, to, reason, .. } => write!(f, "{from} -> {to}: {reason}"),
            Fact::Ejected { backend, reason, time, .. } => {
                write!(f, "{backend} ejected for {}: {reason}", show_duration(*time))
            }
            Fact::Returned { backend, .. } => write!(f, "{backend} returned after ejection"),
            Fact::DrainStarted { backend, .. } => write!(f, "{backend} drains: no new requests"),
            Fact::DrainEnded { backend, .. } => write!(f, "{backend} takes requests again"),
            Fact::FailoverStarted { epoch, from, to, reason, .. } => {
                write!(f, "failover {from} -> {to}, epoch {}: {reason}", epoch.0)
            }
            Fact::FailoverStage { stage, took, .. } => {
                write!(f, "failover stage `{stage}` took {}", show_duration(*took))
            }
            Fact::FailoverFinished { to, took, .. } => {
                write!(
                    f,
                    "failover finished, {to} serves, {} after the first failed probe",
                    show_duration(*took)
                )
            }
            Fact::FailoverFailed { reason, .. } => write!(f, "failover failed: {reason}"),
            Fact::FailbackFinished { reason, .. } => {
                write!(f, "failback finished, primary serves: {reason}")
            }
            Fact::BothDown { .. } => f.write_str("primary and backup are both down"),
            Fact::BothDownEnded { .. } => f.write_str("no longer both down"),
            Fact::ProcessStarted { pid, adopted: false, .. } => write!(f, "started, pid {pid}"),
            Fact::ProcessStarted { pid, adopted: true, .. } => {
                write!(f, "found running, pid {pid}")
            }
            Fact::ProcessExited { pid, status, .. } => write!(f, "pid {pid} exited: {status}"),
            Fact::ProcessKilled { pid, reason, .. } => write!(f, "killed pid {pid}: {reason}"),
            Fact::ProcessWaiting { back_off, .. } => {
                write!(f, "restarts in {}", show_duration(*back_off))
            }
            Fact::ProcessReadiness { ready: true, reason, .. } => write!(f, "ready: {reason}"),
            Fact::ProcessReadiness { ready: false, reason, .. } => write!(f, "not ready: {reason}"),
            Fact::ProxyStarted { pid } => write!(f, "started, pid {pid}"),
            Fact::ProxyAdopted { pid } => write!(f, "found running, pid {pid}"),
            Fact::ProxyReplaced { old, new } => {
                write!(f, "pid {new} took over from pid {old}, which ends")
            }
            Fact::ProxyLost { pid, reason } => write!(f, "pid {pid} is gone: {reason}"),
            Fact::ProxySilent { pid, reason } => {
                write!(f, "pid {pid} lives and does not answer, it is replaced: {reason}")
            }
            Fact::ProxyKilled { pid, reason } => write!(f, "killed pid {pid}: {reason}"),
            Fact::PairsNotSaved { reason } => {
                write!(f, "no pair changes sides until it can be written down: {reason}")
            }
            Fact::Database { text, .. }
            | Fact::Address { text, .. }
            | Fact::Names { text, .. }
            | Fact::NameServer { text, .. } => f.write_str(text),
            Fact::PairsSaved => f.write_str("who serves each pair can be written down again"),
            Fact::OrderRefused { epoch, obeyed, .. } => {
                write!(
                    f,
                    "an order of epoch {} was refused: one of epoch {} was obeyed before",
                    epoch.0, obeyed.0
                )
            }
            Fact::PartUnreachable { reason, .. } => write!(f, "unreachable: {reason}"),
            Fact::LinkUp { build, .. } => write!(f, "linked, version {build}"),
            Fact::LinkDown { reason, .. } => write!(f, "no link: {reason}"),
            Fact::LinkRefused { reason, .. } => write!(f, "a link was refused: {reason}"),
            Fact::CertificatesTaken => f.write_str("new certificates are in use"),
            Fact::CertificatesRefused { reason } => {
                write!(f, "the certificates are no good: {reason}")
            }
            Fact::LeaderElected { leader, term } => write!(f, "{leader} leads, term {term}"),
            Fact::LeaderLost => f.write_str("no leader has a majority of the voters behind it"),
            Fact::ClusterLeft { reason } => {
                write!(f, "this node takes no part any more: {reason}")
            }
            Fact::TopologyProposed { version, by } => {
                write!(f, "version {version} is proposed at {by}: every node is asked")
            }
            Fact::TopologyOpposed { version, node, reason } => {
                write!(f, "{node} is against version {version}: {reason}")
            }
            Fact::TopologyInForce { version } => {
                write!(f, "version {version} is in force: every node said yes")
            }
            Fact::TopologyGivenUp { version, reason } => {
                write!(f, "version {version} is given up, nothing has changed: {reason}")
            }
            Fact::TopologyNotTaken { version, reason } => {
                write!(f, "version {version} is in force and does not run here yet: {reason}")
            }
            Fact::FileDiffers { reason, .. } | Fact::CapabilitiesMissing { reason } => {
                f.write_str(reason)
            }
        }
    }
}
