//! The laws: what must hold after every step, told from the facts and the published views alone.

use std::borrow::ToOwned as _;
use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;
use std::time::Duration;

use crate::agent::Agent;
use crate::event::{Fact, Target};
use crate::health::Health;
use crate::pair::{ACTIVATE_LIMIT, ANSWER_GRACE, Epoch, FAILED_PAUSE, Side, Stage};
use crate::time::Instant;
use crate::topology::{Failback, Pair, Pool, Standby, Topology};
use crate::view::{ServiceState, View};

pub(super) type Law = Result<(), String>;

/// Fails with the law's name.
macro_rules! law {
    ($holds:expr, $($words:tt)*) => {
        if !$holds {
            return Err(format!($($words)*));
        }
    };
}
pub(super) use law;

/// A failover between its start and its end.
#[derive(Debug)]
struct Open {
    epoch: Epoch,
    commanded: bool,
    started: bool,
    stages: Duration,
}

/// What is known of a pair from its facts.
#[derive(Debug, Default)]
struct Known {
    open: Option<Open>,
    both_down: bool,
    primary_up_since: Option<Instant>,
    failed_at: Option<Instant>,
    asked: bool,
    /// When the answer to the newest command is given up at the latest.
    answered: Option<Instant>,
    /// A failback was told whose route has not been published.
    fails_back: bool,
    /// The newest failover needed a command.
    commanded: bool,
}

/// A command that runs: its epoch and its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Runs {
    pub(super) epoch: Epoch,
    pub(super) ends: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Check {
    topology: Topology,
    /// As the last view says.
    disk_refuses: bool,
    /// Written by SavePairs; outlives the agent.
    pub(super) disk: BTreeMap<String, (Side, Epoch)>,
    /// The last published route of each pair: side, epoch and server; outlives the agent.
    published: BTreeMap<String, (Side, Epoch, String)>,
    epochs: BTreeMap<String, Epoch>,
    health: BTreeMap<Target, Health>,
    drained: BTreeSet<(String, String)>,
    ejected: BTreeSet<(String, String)>,
    states: BTreeMap<String, ServiceState>,
    pairs: BTreeMap<String, Known>,
    pub(super) runs: BTreeMap<String, Runs>,
    /// Pairs whose servers changed, or that an earlier life left: their next route follows other rules.
    excused: BTreeSet<String>,
    pub(super) seen: BTreeMap<&'static str, u64>,
}

fn pair<'a>(topology: &'a Topology, service: &str) -> Option<&'a Pair> {
    match &topology.services.get(service)?.pool {
        Pool::Pair(pair) => Some(pair),
        Pool::Balanced { .. } => None,
    }
}

impl Check {
    /// Another life of the agent begins, with these beliefs; its commands ended with the last one.
    pub(super) fn born(&mut self, topology: &Topology, beliefs: &BTreeMap<Target, Health>) {
        self.topology = topology.clone();
        self.health = beliefs.clone();
        self.drained.clear();
        self.ejected.clear();
        self.states.clear();
        self.pairs.clear();
        self.runs.clear();
        self.take();
        self.excused = topology.services.keys().cloned().collect();
    }

    pub(super) fn reloads(&mut self, topology: &Topology, now: Instant) {
        let old = std::mem::replace(&mut self.topology, topology.clone());
        for name in topology.services.keys() {
            let servers = |t| pair(t, name).map(|p| (p.primary.clone(), p.backup.clone()));
            if servers(&old) != servers(topology) {
                self.excused.insert(name.clone());
                if servers(&old).is_some() && servers(topology).is_some() {
                    self.saw("other servers");
                }
                if let Some(known) = self.pairs.get_mut(name) {
                    (known.primary_up_since, known.failed_at, known.asked) = (None, None, false);
                }
            }
        }
        self.take();
        self.look(now);
    }

    fn take(&mut self) {
        let topology = &self.topology;
        let targets: BTreeSet<Target> =
            crate::agent::targets(topology).into_iter().map(|(target, _)| target).collect();
        self.health.retain(|target, _| targets.contains(target));
        let has = |(service, url): &(String, String)| {
            let service = topology.services.get(service);
            service.is_some_and(|s| s.pool.backends().iter().any(|b| b.url == *url))
        };
        self.drained.retain(has);
        self.ejected.retain(has);
        self.states.retain(|name, _| topology.services.contains_key(name));
        for name in topology.services.keys() {
            self.states.entry(name.clone()).or_default();
        }
        self.runs.retain(|name, _| topology.services.contains_key(name));
    }

    fn saw(&mut self, transition: &'static str) {
        *self.seen.entry(transition).or_default() += 1;
    }

    fn health(&self, service: &str, url: &str) -> Health {
        let target = Target::Backend { service: service.to_owned(), backend: url.to_owned() };
        self.health.get(&target).copied().unwrap_or_default()
    }

    fn is_drained(&self, service: &str, url: &str) -> bool {
        self.drained.contains(&(service.to_owned(), url.to_owned()))
    }

    /// As a pair sees it: a drained side is as good as down.
    fn fit(&self, service: &str, url: &str) -> Health {
        if self.is_drained(service, url) { Health::Down } else { self.health(service, url) }
    }

    fn sides(&self, service: &str) -> (Health, Health) {
        pair(&self.topology, service).map_or((Health::Unknown, Health::Unknown), |pair| {
            (self.fit(service, &pair.primary.url), self.fit(service, &pair.backup.url))
        })
    }

    /// Keeps count of how long each primary has been up.
    pub(super) fn look(&mut self, now: Instant) {
        for name in self.topology.services.keys() {
            let Some(pair) = pair(&self.topology, name) else { continue };
            let up = self.fit(name, &pair.primary.url) == Health::Up;
            let known = self.pairs.entry(name.clone()).or_default();
            known.primary_up_since = known.primary_up_since.or(Some(now)).filter(|_| up);
        }
    }

    pub(super) fn asked(&mut self, service: &str) {
        let on_backup = self.disk.get(service).is_some_and(|saved| saved.0 == Side::Backup);
        self.pairs.entry(service.to_owned()).or_default().asked |= on_backup;
    }

    pub(super) fn fact(&mut self, now: Instant, fact: &Fact) -> Law {
        match fact {
            Fact::HealthChanged { target, from, to, .. } => {
                let had = self.health.insert(target.clone(), *to).unwrap_or_default();
                law!(had == *from, "{target} was {had}, the fact says {from}");
                law!(from != to, "{target} changed from {from} to {to}");
                self.look(now);
            }
            Fact::ServiceChanged { service, from, to, .. } => {
                let had = self.states.insert(service.clone(), *to).unwrap_or_default();
                law!(had == *from, "{service} was {had}, the fact says {from}");
                law!(from != to, "{service} changed from {from} to {to}");
            }
            Fact::DrainStarted { service, backend } => {
                let new = self.drained.insert((service.clone(), backend.clone()));
                law!(new, "{service} {backend} drained twice");
                self.look(now);
            }
            Fact::DrainEnded { service, backend } => {
                let was = self.drained.remove(&(service.clone(), backend.clone()));
                law!(was, "{service} {backend} was not drained");
                self.look(now);
            }
            Fact::Ejected { service, backend, .. } => {
                let new = self.ejected.insert((service.clone(), backend.clone()));
                law!(new, "{service} {backend} ejected twice");
            }
            Fact::Returned { service, backend } => {
                let was = self.ejected.remove(&(service.clone(), backend.clone()));
                law!(was, "{service} {backend} was not ejected");
            }
            Fact::BothDown { service } => {
                let known = self.pairs.entry(service.clone()).or_default();
                law!(!known.both_down, "{service}: both down twice");
                known.both_down = true;
                let sides = self.sides(service);
                law!(sides == (Health::Down, Health::Down), "{service}: both down at {sides:?}");
            }
            Fact::BothDownEnded { service } => {
                let known = self.pairs.entry(service.clone()).or_default();
                law!(known.both_down, "{service}: was not both down");
                known.both_down = false;
                let (p, b) = self.sides(service);
                law!(p == Health::Up || b == Health::Up, "{service}: both down ended at {p} {b}");
            }
            Fact::FailoverStarted { service, epoch, .. } => {
                self.new_epoch(service, *epoch)?;
                let (primary, _) = self.sides(service);
                law!(primary == Health::Down, "{service}: failover while the primary is {primary}");
                let known = self.pairs.entry(service.clone()).or_default();
                law!(known.open.is_none(), "{service}: two failovers at once");
                let (commanded, started, stages) = (false, false, Duration::ZERO);
                known.open = Some(Open { epoch: *epoch, commanded, started, stages });
                known.commanded = false;
            }
            Fact::FailoverStage { service, epoch, stage, took } => {
                let open = self.open(service, *epoch)?;
                open.stages += *took;
                match stage {
                    Stage::Start => {
                        open.started = true;
                        self.saw("started");
                    }
                    Stage::Switch => self.saw("confirmed"),
                    Stage::Detect | Stage::Ready | Stage::Address | Stage::Names => {}
                }
            }
            Fact::FailoverFinished { service, epoch, took, .. } => {
                let stages = self.open(service, *epoch)?.stages;
                law!(stages <= *took, "{service}: stages took {stages:?} of {took:?}");
                self.close(service);
            }
            Fact::FailoverFailed { service, epoch, reason } => {
                let started = self.open(service, *epoch)?.started;
                self.close(service);
                let other = reason.contains("other servers") || reason.contains("no longer has");
                self.saw(match reason.as_str() {
                    "the backup was not ready in time" if started => "not ready in time",
                    "the backup was not ready in time" => "start too late",
                    "the primary is up again" => "primary returned",
                    _ if other => "abandoned",
                    _ => "start failed",
                });
                let known = self.pairs.entry(service.clone()).or_default();
                known.failed_at = if other { None } else { Some(now) };
            }
            Fact::FailbackFinished { service, epoch, reason } => {
                self.new_epoch(service, *epoch)?;
                let known = self.pairs.entry(service.clone()).or_default();
                law!(known.open.is_none(), "{service}: failback during a failover");
                known.fails_back = true;
                self.failback_reason(now, service, reason)?;
            }
            Fact::TopologyApplied { .. }
            | Fact::PairsNotSaved { .. }
            | Fact::PairsSaved
            | Fact::Database { .. }
            | Fact::Address { .. }
            | Fact::Names { .. }
            | Fact::NameServer { .. } => {}
            Fact::AgentStarted { .. }
            | Fact::AgentStopping { .. }
            | Fact::TopologyRefused { .. }
            | Fact::ProcessStarted { .. }
            | Fact::ProcessExited { .. }
            | Fact::ProcessKilled { .. }
            | Fact::ProcessWaiting { .. }
            | Fact::ProcessReadiness { .. }
            | Fact::ProxyStarted { .. }
            | Fact::ProxyAdopted { .. }
            | Fact::ProxyReplaced { .. }
            | Fact::ProxyLost { .. }
            | Fact::ProxySilent { .. }
            | Fact::ProxyKilled { .. }
            | Fact::OrderRefused { .. }
            | Fact::PartUnreachable { .. }
            | Fact::LinkUp { .. }
            | Fact::LinkDown { .. }
            | Fact::LinkRefused { .. }
            | Fact::CertificatesTaken
            | Fact::CertificatesRefused { .. }
            | Fact::LeaderElected { .. }
            | Fact::LeaderLost
            | Fact::TopologyProposed { .. }
            | Fact::TopologyOpposed { .. }
            | Fact::TopologyInForce { .. }
            | Fact::TopologyGivenUp { .. }
            | Fact::TopologyNotTaken { .. }
            | Fact::FileDiffers { .. }
            | Fact::CapabilitiesMissing { .. }
            | Fact::ClusterLeft { .. } => {
                return Err(format!("the agent said what it cannot know: {fact:?}"));
            }
        }
        Ok(())
    }

    fn new_epoch(&mut self, service: &str, epoch: Epoch) -> Law {
        let last = self.epochs.insert(service.to_owned(), epoch);
        law!(last.is_none_or(|l| l < epoch), "{service}: epoch {epoch:?} after {last:?}");
        let saved = self.disk.get(service).map(|d| d.1);
        law!(saved.is_some_and(|s| epoch <= s), "{service}: told {epoch:?} before it was saved");
        Ok(())
    }

    fn open(&mut self, service: &str, epoch: Epoch) -> Result<&mut Open, String> {
        let known = self.pairs.entry(service.to_owned()).or_default();
        let told = format!("{service}: a fact of {epoch:?} in {:?}", known.open);
        known.open.as_mut().filter(|open| open.epoch == epoch).ok_or(told)
    }

    fn close(&mut self, service: &str) {
        self.pairs.entry(service.to_owned()).or_default().open = None;
    }

    pub(super) fn command(&mut self, now: Instant, service: &str, epoch: Epoch) -> Law {
        let saved = self.disk.get(service).map(|d| d.1);
        law!(saved.is_some_and(|s| epoch <= s), "{service}: command {epoch:?} before it was saved");
        if let Some(runs) = self.runs.get(service) {
            law!(runs.ends <= now, "{service}: a command while that of {:?} runs", runs.epoch);
        }
        let (_, backup) = self.sides(service);
        let mut limit = ACTIVATE_LIMIT;
        match pair(&self.topology, service).map(|p| &p.standby) {
            Some(Standby::Cold { start_limit, .. }) => {
                limit = *start_limit;
                law!(backup == Health::Down, "{service}: start of a backup that is {backup}");
            }
            Some(Standby::Warm { activate: Some(_) }) => {
                law!(backup == Health::Up, "{service}: activation of a backup that is {backup}");
            }
            Some(standby @ (Standby::Hot | Standby::Warm { activate: None })) => {
                return Err(format!("{service}: a command for {standby:?}"));
            }
            None => return Err(format!("{service}: a command for what is no pair")),
        }
        let known = self.pairs.entry(service.to_owned()).or_default();
        let rested = known.failed_at.is_none_or(|at| FAILED_PAUSE <= now.since(at));
        law!(rested, "{service}: a command without a pause after the last failure");
        known.commanded = true;
        known.answered = Some(now + limit + ANSWER_GRACE);
        self.open(service, epoch)?.commanded = true;
        self.saw("command");
        Ok(())
    }

    pub(super) fn stop(&self, now: Instant, service: &str) -> Law {
        let running = self.runs.get(service).is_some_and(|r| now < r.ends);
        law!(!running, "{service}: stopped while its start runs");
        let (primary, _) = self.sides(service);
        law!(primary == Health::Up, "{service}: stopped while the primary is {primary}");
        Ok(())
    }

    /// Checks what readers are given.
    pub(super) fn publish(&mut self, now: Instant, view: &View) -> Law {
        self.disk_refuses = view.not_saved.is_some();
        for (name, service) in &view.services {
            let state = self.states.get(name).copied().unwrap_or_default();
            let fresh = self.excused.contains(name);
            law!(fresh || state == service.state, "{name}: {} shown, {state} told", service.state);
            for backend in &service.backends {
                let key = (name.clone(), backend.name.clone());
                let health = self.health(name, &backend.name);
                law!(backend.health == health, "{} shown {}", backend.name, backend.health);
                law!(backend.draining == self.drained.contains(&key), "{key:?} drain");
                law!(backend.ejected == self.ejected.contains(&key), "{key:?} ejection");
            }
            if let Some((side, epoch)) = service.active {
                self.route(now, name, side, epoch)?;
            }
        }
        self.excused.clear();
        Ok(())
    }

    fn route(&mut self, now: Instant, name: &str, side: Side, epoch: Epoch) -> Law {
        let Some(pair) = pair(&self.topology, name).cloned() else {
            return Err(format!("{name} is shown as a pair"));
        };
        let url = match side {
            Side::Primary => &pair.primary.url,
            Side::Backup => &pair.backup.url,
        };
        if let Some(&(saved, highest)) = self.disk.get(name) {
            law!(saved == side, "{name}: {side} published, {saved} saved");
            law!(epoch <= highest, "{name}: {epoch:?} published, {highest:?} saved");
        } else {
            law!((side, epoch) == (Side::Primary, Epoch(0)), "{name}: published before saved");
        }
        let route = (side, epoch, url.clone());
        let last = self.published.insert(name.to_owned(), route.clone());
        let excused = self.excused.contains(name);
        if let Some(last) = last.filter(|last| *last != route) {
            law!(last.1 < epoch, "{name}: route {route:?} after {last:?}");
            if last.0 != side && !excused {
                self.moves(name, side)?;
            }
        }
        if !excused {
            // A disk that refuses holds every decision up.
            if !self.disk_refuses {
                self.nothing_left_undone(now, name, &pair, side)?;
            }
        }
        Ok(())
    }

    /// A route may move only for these reasons.
    fn moves(&mut self, name: &str, to: Side) -> Law {
        let (primary, backup) = self.sides(name);
        let known = self.pairs.entry(name.to_owned()).or_default();
        match to {
            Side::Backup => {
                law!(backup == Health::Up, "{name}: routed to a backup that is {backup}");
                law!(primary == Health::Down, "{name}: routed off a primary that is {primary}");
                let commanded = known.commanded;
                self.saw(if commanded { "ready" } else { "switch" });
            }
            Side::Primary => {
                law!(primary == Health::Up, "{name}: routed to a primary that is {primary}");
                let told = std::mem::take(&mut known.fails_back);
                law!(told, "{name}: failback without a word");
            }
        }
        Ok(())
    }

    fn failback_reason(&mut self, now: Instant, name: &str, reason: &str) -> Law {
        let Some(pair) = pair(&self.topology, name) else {
            return Err(format!("{name}: failback of what is no pair"));
        };
        let drained = self.is_drained(name, &pair.backup.url);
        let (_, backup) = self.sides(name);
        let failback = pair.failback;
        let known = self.pairs.entry(name.to_owned()).or_default();
        let asked = std::mem::take(&mut known.asked);
        let sustained = match (failback, known.primary_up_since) {
            (Failback::After(after), Some(since)) => after <= now.since(since),
            (Failback::After(_) | Failback::Manual, _) => false,
        };
        let (transition, holds) = match reason {
            "the backup is drained" => ("backup drained", drained),
            "the backup is down" => ("backup lost", backup == Health::Down),
            "asked for" => ("asked for", asked),
            _ => ("sustained", sustained),
        };
        law!(holds, "{name}: failback too soon, because {reason}");
        self.saw(transition);
        Ok(())
    }

    /// What could be decided has been.
    fn nothing_left_undone(&self, now: Instant, name: &str, pair: &Pair, side: Side) -> Law {
        let (primary, backup) = self.sides(name);
        let Some(known) = self.pairs.get(name) else { return Ok(()) };
        let hot = matches!(pair.standby, Standby::Hot | Standby::Warm { activate: None });
        let idle = known.open.is_none();
        match side {
            Side::Primary if primary == Health::Down && backup == Health::Up && idle => {
                law!(!hot, "{name}: no failover to a backup that is up");
            }
            // A start may begin as late as the pause and the longest wait for an answer allow.
            Side::Primary
                if (primary, backup) == (Health::Down, Health::Down)
                    && matches!(pair.standby, Standby::Cold { .. })
                    && !self.is_drained(name, &pair.backup.url)
                    && idle =>
            {
                let wait = known.failed_at.map(|at| at + FAILED_PAUSE).max(known.answered);
                law!(wait.is_some_and(|w| now <= w), "{name}: nobody starts the cold backup");
            }
            Side::Backup if primary == Health::Up => {
                law!(backup != Health::Down, "{name}: stays on a backup that is down");
                if let (Failback::After(after), Some(since)) =
                    (pair.failback, known.primary_up_since)
                {
                    law!(now.since(since) < after, "{name}: failback is overdue");
                }
            }
            Side::Primary | Side::Backup => {}
        }
        let both = (primary, backup) == (Health::Down, Health::Down);
        let cold = matches!(pair.standby, Standby::Cold { .. });
        law!(!both || cold || known.both_down, "{name}: both are down and nobody says so");
        let one = primary == Health::Up || backup == Health::Up;
        law!(!one || !known.both_down, "{name}: one is up and nobody says so");
        Ok(())
    }

    /// Nothing was due between the last step and this one.
    pub(super) fn slept(&self, now: Instant) -> Law {
        for (name, known) in &self.pairs {
            let on_backup = self.published.get(name).is_some_and(|p| p.0 == Side::Backup);
            let Some(pair) = pair(&self.topology, name).filter(|_| on_backup) else { continue };
            if let (Failback::After(after), Some(since)) = (pair.failback, known.primary_up_since) {
                let awake = now <= since + after || self.disk_refuses;
                law!(awake, "{name}: a failback was slept through");
            }
        }
        Ok(())
    }

    /// Once the world has healed: everything is up, on its primary.
    pub(super) fn healed(&self, now: Instant, agent: &Agent, asked: bool) -> Law {
        let view = agent.view(now);
        for (name, service) in &view.services {
            let manual = pair(&self.topology, name)
                .is_some_and(|p| p.failback == Failback::Manual && !asked);
            let on_backup = service.active.is_some_and(|(side, _)| side == Side::Backup);
            law!(manual || !on_backup, "{name} is still on its backup: {:?}", service.next);
            let well = match service.state {
                ServiceState::Up => true,
                ServiceState::Degraded => on_backup,
                ServiceState::Unknown | ServiceState::Down => false,
            };
            law!(well, "{name} is still {}: {}", service.state, service.why);
        }
        law!(agent.switching().is_empty(), "a switch was never ended");
        Ok(())
    }
}
