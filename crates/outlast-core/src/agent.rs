//! One node's decisions: what was observed goes in, what must be done comes out.
//!
//! The loop around it reads, calls [`Agent::step`], and does what the actions say, in their order. Same state and same
//! input give the same output, always.

use alloc::borrow::ToOwned as _;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use crate::event::{Fact, Target};
use crate::health::{Belief, Health, Thresholds};
use crate::pair::{self, Epoch, Pair, Seen, Side};
use crate::time::{Instant, Timestamp};
use crate::topology::{PartKind, PartRef, Pool, Service, Topology};
use crate::view::{BackendView, PartView, ProcessView, ServiceState, ServiceView, View};

/// Everything that can happen to an agent. Closed: there is no other way in.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    Probed {
        target: Target,
        ok: bool,
        reason: String,
    },
    /// The data plane took a backend out of traffic.
    Ejected {
        service: String,
        backend: String,
        reason: String,
        time: Duration,
    },
    /// The data plane lets it serve again.
    Returned {
        service: String,
        backend: String,
    },
    /// A standby's command ended.
    CommandDone {
        service: String,
        epoch: Epoch,
        result: Result<(), String>,
    },
    /// A person takes a backend out of traffic, or puts it back.
    Drain {
        service: String,
        backend: String,
        on: bool,
    },
    /// A person asks a pair to return to its primary.
    Failback {
        service: String,
    },
    /// A supervised process changed.
    Process {
        process: String,
        view: ProcessView,
    },
    Tick,
}

/// Everything an agent can want. Closed: there is no other way out.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Record(Fact),
    /// Write who serves each pair to disk: before anybody acts on it.
    SavePairs,
    /// Give readers a new view.
    Publish,
    /// Run the standby's start or activate command; answer with `CommandDone`.
    StandbyCommand {
        service: String,
        epoch: Epoch,
    },
    /// Stop a standby that is no longer needed.
    StandbyStop {
        service: String,
        epoch: Epoch,
    },
}

/// Now, on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    pub instant: Instant,
    pub wall: Timestamp,
}

/// What an earlier life of the agent left behind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resume {
    pub beliefs: BTreeMap<Target, Health>,
    /// Service and backend that a person took out of traffic.
    pub draining: BTreeSet<(String, String)>,
    pub pairs: BTreeMap<String, (Side, Epoch)>,
}

/// What is believed of one target, and why.
#[derive(Clone, Debug)]
struct Watch {
    belief: Belief,
    since: Timestamp,
    reason: String,
    failing_since: Option<Instant>,
}

/// The state of one node's decisions.
#[derive(Debug)]
pub struct Agent {
    topology: Topology,
    generation: u64,
    watches: BTreeMap<Target, Watch>,
    pairs: BTreeMap<String, Pair>,
    ejected: BTreeSet<(String, String)>,
    draining: BTreeSet<(String, String)>,
    processes: BTreeMap<String, ProcessView>,
    states: BTreeMap<String, (ServiceState, Timestamp)>,
}

impl Agent {
    pub fn new(topology: Topology, resume: &Resume, now: Now) -> Agent {
        let mut agent = Agent {
            topology: Topology::default(),
            generation: 0,
            watches: BTreeMap::new(),
            pairs: BTreeMap::new(),
            ejected: BTreeSet::new(),
            draining: BTreeSet::new(),
            processes: BTreeMap::new(),
            states: BTreeMap::new(),
        };
        agent.take(topology, resume, now);
        agent
    }

    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Who serves each pair, for the disk.
    pub fn pairs(&self) -> BTreeMap<String, (Side, Epoch)> {
        self.pairs
            .iter()
            .map(|(name, pair)| (name.clone(), (pair.active(), pair.epoch())))
            .collect()
    }

    /// Takes a changed topology; what is still in it keeps its beliefs and its active side.
    pub fn reload(&mut self, topology: Topology, now: Now, out: &mut Vec<Action>) {
        let changes = changes(&self.topology, &topology);
        self.take(topology, &Resume::default(), now);
        out.push(Action::Record(Fact::TopologyApplied { changes }));
        self.settle(now, out);
    }

    fn take(&mut self, topology: Topology, resume: &Resume, now: Now) {
        let mut watches = BTreeMap::new();
        for (target, thresholds) in targets(&topology) {
            let watch = match self.watches.remove(&target) {
                Some(mut old) => {
                    old.belief.retune(thresholds);
                    old
                }
                None => Watch {
                    belief: match resume.beliefs.get(&target) {
                        Some(&health) => Belief::resume(thresholds, health),
                        None => Belief::new(thresholds),
                    },
                    since: now.wall,
                    reason: "not probed yet".to_owned(),
                    failing_since: None,
                },
            };
            watches.insert(target, watch);
        }
        self.watches = watches;
        let mut pairs = BTreeMap::new();
        for (name, service) in &topology.services {
            let Pool::Pair(spec) = &service.pool else { continue };
            let pair = match self.pairs.remove(name) {
                Some(mut old) => {
                    old.retune(spec.standby.clone(), spec.failback);
                    old
                }
                None => {
                    let &(active, epoch) =
                        resume.pairs.get(name).unwrap_or(&(Side::Primary, Epoch(0)));
                    Pair::new(spec.standby.clone(), spec.failback, active, epoch)
                }
            };
            pairs.insert(name.clone(), pair);
        }
        self.pairs = pairs;
        let known = |(service, backend): &(String, String)| {
            topology
                .services
                .get(service)
                .is_some_and(|s| s.pool.backends().iter().any(|b| b.url == *backend))
        };
        self.draining.extend(resume.draining.iter().cloned());
        self.ejected.retain(known);
        self.draining.retain(known);
        self.states.retain(|name, _| topology.services.contains_key(name));
        self.processes.retain(|name, _| topology.processes.contains_key(name));
        self.topology = topology;
        self.generation += 1;
    }

    /// Feeds one input; pushes what must be done, in the order of doing.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Vec<Action>) {
        match input {
            Input::Probed { target, ok, reason } => self.probed(now, target, ok, reason, out),
            Input::Ejected { service, backend, reason, time } => {
                if self.ejected.insert((service.clone(), backend.clone())) {
                    out.push(Action::Record(Fact::Ejected { service, backend, reason, time }));
                }
            }
            Input::Returned { service, backend } => {
                if self.ejected.remove(&(service.clone(), backend.clone())) {
                    out.push(Action::Record(Fact::Returned { service, backend }));
                }
            }
            Input::CommandDone { service, epoch, result } => {
                self.step_pair(now, &service, pair::Input::CommandDone { epoch, result }, out);
            }
            Input::Drain { service, backend, on } => self.drain(service, backend, on, out),
            Input::Failback { service } => {
                self.step_pair(now, &service, pair::Input::Failback, out);
            }
            Input::Process { process, view } => {
                self.processes.insert(process, view);
            }
            Input::Tick => {}
        }
        self.settle(now, out);
    }

    /// When `step` wants to be called again even if nothing happens.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        self.pairs.values().filter_map(|pair| pair.deadline(now)).min()
    }

    fn probed(
        &mut self,
        now: Now,
        target: Target,
        ok: bool,
        reason: String,
        out: &mut Vec<Action>,
    ) {
        // A late answer about something that the topology no longer has.
        let Some(watch) = self.watches.get_mut(&target) else { return };
        watch.failing_since = if ok { None } else { watch.failing_since.or(Some(now.instant)) };
        let from = watch.belief.health();
        watch.reason = reason;
        if let Some(to) = watch.belief.observe(ok) {
            watch.since = now.wall;
            let began_ago =
                watch.failing_since.map(|began| now.instant.since(began)).unwrap_or_default();
            let reason = watch.reason.clone();
            out.push(Action::Record(Fact::HealthChanged { target, from, to, reason, began_ago }));
        }
    }

    fn drain(&mut self, service: String, backend: String, on: bool, out: &mut Vec<Action>) {
        let known = self
            .topology
            .services
            .get(&service)
            .is_some_and(|s| s.pool.backends().iter().any(|b| b.url == backend));
        if !known {
            return;
        }
        let key = (service.clone(), backend.clone());
        let changed = if on { self.draining.insert(key) } else { self.draining.remove(&key) };
        if changed {
            out.push(Action::Record(match on {
                true => Fact::DrainStarted { service, backend },
                false => Fact::DrainEnded { service, backend },
            }));
        }
    }

    /// Lets every pair look, judges every service and publishes.
    fn settle(&mut self, now: Now, out: &mut Vec<Action>) {
        let names: Vec<String> = self.pairs.keys().cloned().collect();
        for name in names {
            if let Some(seen) = self.seen(&name) {
                self.step_pair(now, &name, pair::Input::Look(seen), out);
            }
        }
        for name in self.topology.services.keys() {
            let (to, reason) = self.judge(name);
            let from = self.states.get(name).map_or(ServiceState::Unknown, |(state, _)| *state);
            if from != to {
                self.states.insert(name.clone(), (to, now.wall));
                out.push(Action::Record(Fact::ServiceChanged {
                    service: name.clone(),
                    from,
                    to,
                    reason,
                }));
            } else if !self.states.contains_key(name) {
                self.states.insert(name.clone(), (to, now.wall));
            }
        }
        out.push(Action::Publish);
    }

    fn seen(&self, service: &str) -> Option<Seen> {
        let Pool::Pair(spec) = &self.topology.services.get(service)?.pool else { return None };
        let watch = |backend: &str| {
            self.watches
                .get(&Target::Backend { service: service.to_owned(), backend: backend.to_owned() })
        };
        let health = |backend: &str| {
            let drained = self.draining.contains(&(service.to_owned(), backend.to_owned()));
            // A drained side is not to serve: as good as down.
            if drained {
                Health::Down
            } else {
                watch(backend).map_or(Health::Unknown, |w| w.belief.health())
            }
        };
        Some(Seen {
            primary: health(&spec.primary.url),
            backup: health(&spec.backup.url),
            primary_failing_since: watch(&spec.primary.url).and_then(|w| w.failing_since),
        })
    }

    fn step_pair(&mut self, now: Now, service: &str, input: pair::Input, out: &mut Vec<Action>) {
        let Some(pair) = self.pairs.get_mut(service) else { return };
        let mut wants = Vec::new();
        pair.step(now.instant, input, &mut wants);
        let service = service.to_owned();
        for want in wants {
            if matches!(want, pair::Action::Command { .. }) {
                // The epoch is written down before the order is given.
                out.push(Action::SavePairs);
            }
            out.push(match want {
                pair::Action::Route { .. } => Action::SavePairs,
                pair::Action::Command { epoch } => {
                    Action::StandbyCommand { service: service.clone(), epoch }
                }
                pair::Action::Stop { epoch } => {
                    Action::StandbyStop { service: service.clone(), epoch }
                }
                pair::Action::Started { epoch, reason } => Action::Record(Fact::FailoverStarted {
                    service: service.clone(),
                    epoch,
                    from: Side::Primary,
                    to: Side::Backup,
                    reason,
                }),
                pair::Action::Stage { epoch, stage, took } => Action::Record(Fact::FailoverStage {
                    service: service.clone(),
                    epoch,
                    stage,
                    took,
                }),
                pair::Action::Finished { epoch, took } => Action::Record(Fact::FailoverFinished {
                    service: service.clone(),
                    epoch,
                    to: Side::Backup,
                    took,
                }),
                pair::Action::Failed { epoch, reason } => {
                    Action::Record(Fact::FailoverFailed { service: service.clone(), epoch, reason })
                }
                pair::Action::FailedBack { epoch, reason } => {
                    Action::Record(Fact::FailbackFinished {
                        service: service.clone(),
                        epoch,
                        reason,
                    })
                }
                pair::Action::BothDown => {
                    Action::Record(Fact::BothDown { service: service.clone() })
                }
                pair::Action::BothDownEnded => {
                    Action::Record(Fact::BothDownEnded { service: service.clone() })
                }
            });
        }
    }

    fn backend_health(&self, service: &str, backend: &str) -> Health {
        self.watches
            .get(&Target::Backend { service: service.to_owned(), backend: backend.to_owned() })
            .map_or(Health::Unknown, |w| w.belief.health())
    }

    /// The health of a part that a service names; `Unknown` for parts that nobody watches yet.
    fn part_health(&self, part: &PartRef) -> Health {
        match part.kind {
            PartKind::Service => match self.judge(&part.name).0 {
                ServiceState::Unknown => Health::Unknown,
                ServiceState::Up | ServiceState::Degraded => Health::Up,
                ServiceState::Down => Health::Down,
            },
            PartKind::External => {
                let target = Target::External { name: part.name.clone() };
                self.watches.get(&target).map_or(Health::Unknown, |w| w.belief.health())
            }
            PartKind::Process => match self.processes.get(&part.name) {
                Some(process) if process.ready => Health::Up,
                Some(_) => Health::Down,
                None => Health::Unknown,
            },
            PartKind::Postgres | PartKind::Redis | PartKind::Store | PartKind::Address => {
                Health::Unknown
            }
        }
    }

    /// Whether clients of a service are served, and why. `needs` has no cycles: the parser saw to that.
    fn judge(&self, name: &str) -> (ServiceState, String) {
        let Some(service) = self.topology.services.get(name) else {
            return (ServiceState::Unknown, "not in the topology".to_owned());
        };
        if let Some(need) = service.needs.iter().find(|need| self.part_health(need) == Health::Down)
        {
            return (ServiceState::Down, alloc::format!("needs {need}, which is down"));
        }
        let (state, why) = self.judge_backends(name, service);
        let missing: Vec<String> = service
            .may_use
            .iter()
            .filter(|part| self.part_health(part) == Health::Down)
            .map(ToString::to_string)
            .collect();
        match state {
            ServiceState::Up | ServiceState::Degraded if !missing.is_empty() => {
                (ServiceState::Degraded, alloc::format!("goes on without {}", missing.join(", ")))
            }
            ServiceState::Unknown
            | ServiceState::Up
            | ServiceState::Degraded
            | ServiceState::Down => (state, why),
        }
    }

    fn judge_backends(&self, name: &str, service: &Service) -> (ServiceState, String) {
        if let (Pool::Pair(spec), Some(pair)) = (&service.pool, self.pairs.get(name)) {
            let primary = self.backend_health(name, &spec.primary.url);
            let backup = self.backend_health(name, &spec.backup.url);
            return match (pair.active(), primary, backup) {
                (Side::Primary, Health::Up, _) => {
                    (ServiceState::Up, "the primary serves".to_owned())
                }
                (Side::Backup, _, Health::Up) => {
                    (ServiceState::Degraded, "the backup serves".to_owned())
                }
                (Side::Primary, Health::Unknown, _) | (Side::Backup, _, Health::Unknown) => {
                    (ServiceState::Unknown, "not probed yet".to_owned())
                }
                (Side::Primary, Health::Down, Health::Down)
                | (Side::Backup, Health::Down, Health::Down) => {
                    (ServiceState::Down, "primary and backup are both down".to_owned())
                }
                (Side::Primary, Health::Down, _) => {
                    (ServiceState::Down, "the primary is down".to_owned())
                }
                (Side::Backup, _, Health::Down) => {
                    (ServiceState::Down, "the backup is down".to_owned())
                }
            };
        }
        let backends = service.pool.backends();
        let healths: Vec<Health> =
            backends.iter().map(|b| self.backend_health(name, &b.url)).collect();
        let count = |health| healths.iter().filter(|&&h| h == health).count();
        let out_of_traffic = backends
            .iter()
            .zip(&healths)
            .filter(|(b, h)| {
                let key = (name.to_owned(), b.url.clone());
                **h == Health::Up && (self.ejected.contains(&key) || self.draining.contains(&key))
            })
            .count();
        let (all, up, unknown) =
            (backends.len(), count(Health::Up) - out_of_traffic, count(Health::Unknown));
        let enough = usize::from(service.at_least.get());
        let why = alloc::format!("{up} of {all} backends up");
        if up == all {
            (ServiceState::Up, why)
        } else if up >= enough && unknown == 0 {
            (ServiceState::Degraded, why)
        } else if up >= enough {
            (ServiceState::Up, alloc::format!("{why}, {unknown} not probed yet"))
        } else if up + unknown >= enough && unknown > 0 {
            (ServiceState::Unknown, alloc::format!("{why}, {unknown} not probed yet"))
        } else {
            (ServiceState::Down, alloc::format!("{why}, {enough} needed"))
        }
    }

    /// The whole picture, for readers.
    pub fn view(&self, now: Instant) -> View {
        let services = self
            .topology
            .services
            .iter()
            .map(|(name, service)| (name.clone(), self.service_view(now, name, service)));
        let externals = self.watches.iter().filter_map(|(target, watch)| match target {
            Target::External { name } => Some((
                name.clone(),
                PartView {
                    health: watch.belief.health(),
                    since: watch.since,
                    reason: watch.reason.clone(),
                },
            )),
            Target::Backend { .. } => None,
        });
        View {
            generation: self.generation,
            services: services.collect(),
            externals: externals.collect(),
            processes: self.processes.clone(),
        }
    }

    fn service_view(&self, now: Instant, name: &str, service: &Service) -> ServiceView {
        let (state, why) = self.judge(name);
        let pair = self.pairs.get(name);
        let roles = [Side::Primary, Side::Backup];
        let backends = service.pool.backends().into_iter().enumerate().map(|(i, backend)| {
            let key = (name.to_owned(), backend.url.clone());
            let watch = self
                .watches
                .get(&Target::Backend { service: key.0.clone(), backend: key.1.clone() });
            BackendView {
                name: backend.url.clone(),
                health: watch.map_or(Health::Unknown, |w| w.belief.health()),
                since: watch.map(|w| w.since).unwrap_or_default(),
                reason: watch.map(|w| w.reason.clone()).unwrap_or_default(),
                streak: watch.map_or(0, |w| w.belief.streak()),
                draining: self.draining.contains(&key),
                ejected: self.ejected.contains(&key),
                role: pair.and(roles.get(i).copied()),
            }
        });
        ServiceView {
            state,
            since: self.states.get(name).map(|&(_, since)| since).unwrap_or_default(),
            why,
            next: pair.and_then(|p| p.next(now)),
            backends: backends.collect(),
            active: pair.map(|p| (p.active(), p.epoch())),
        }
    }
}

/// Every target of a topology and its thresholds.
pub fn targets(topology: &Topology) -> Vec<(Target, Thresholds)> {
    let backends = topology.services.iter().flat_map(|(name, service)| {
        service.pool.backends().into_iter().map(move |backend| {
            let target = Target::Backend { service: name.clone(), backend: backend.url.clone() };
            (target, service.probe.thresholds)
        })
    });
    let externals = topology.externals.iter().filter_map(|(name, external)| {
        let probe = external.probe.as_ref()?;
        Some((Target::External { name: name.clone() }, probe.thresholds))
    });
    backends.chain(externals).collect()
}

/// What differs between two topologies, for people.
fn changes(old: &Topology, new: &Topology) -> String {
    let mut words = Vec::new();
    for name in new.services.keys().filter(|n| !old.services.contains_key(*n)) {
        words.push(alloc::format!("service.{name} added"));
    }
    for name in old.services.keys().filter(|n| !new.services.contains_key(*n)) {
        words.push(alloc::format!("service.{name} removed"));
    }
    for (name, service) in &new.services {
        if old.services.get(name).is_some_and(|before| before != service) {
            words.push(alloc::format!("service.{name} changed"));
        }
    }
    for name in new.processes.keys().filter(|n| old.processes.get(*n) != new.processes.get(*n)) {
        words.push(alloc::format!("process.{name} changed"));
    }
    for name in old.processes.keys().filter(|n| !new.processes.contains_key(*n)) {
        words.push(alloc::format!("process.{name} removed"));
    }
    if words.is_empty() { "nothing that runs changed".to_owned() } else { words.join(", ") }
}
