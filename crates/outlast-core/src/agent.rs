//! One node's decisions: what was observed goes in, what must be done comes out.
//!
//! The loop around it reads, calls [`Agent::step`], and does what the actions say, in their order. Same state and same
//! input give the same output, always.

mod joint;
mod judge;

use alloc::borrow::ToOwned as _;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::agreed::SideCommand;
use crate::event::{Fact, Target};
use crate::health::{Belief, Health, Thresholds};
use crate::observers::Report;
use crate::pair::{self, Epoch, Pair, Seen, Side};
#[cfg(test)]
use crate::sim::{Bug, instead};
use crate::time::{Instant, Timestamp};
use crate::topology::{self, Failback, Pool, Standby, Topology};
use crate::view::{ProcessView, ServiceState};

use joint::Joint;
pub(crate) use joint::is_between;
pub use joint::{Agreement, Held as HeldDatabase, ROUTING_LEASE, routing_role};

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
    /// Readers have the view in which a pair serves under this epoch. Feed it for what [`Agent::switching`] lists once
    /// a view that was published after it is in force; left out, failovers end without their last stage.
    Routed {
        service: String,
        epoch: Epoch,
    },
    /// A supervised process changed.
    Process {
        process: String,
        view: ProcessView,
    },
    /// Another node says what it sees.
    Heard {
        node: String,
        report: Report,
    },
    /// What is agreed has changed, or who leads.
    Agreed(Agreement),
    /// The answer to [`Action::Agree`].
    Answered {
        command: SideCommand,
        result: Result<(), String>,
    },
    /// Whether this node may route to pairs: it holds its lease.
    Vouches(bool),
    Tick,
}

/// Everything an agent can want. Closed: there is no other way out.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Record(Fact),
    /// Write who serves each pair to disk: before anybody acts on it. If [`Agent::awaits_save`] after the last action, say
    /// how it went with [`Agent::saved`] or [`Agent::not_saved`], and do what they say.
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
    /// Have this agreed on, as the leader; answer with `Answered`.
    Agree(SideCommand),
}

/// A notice that a backend has returned may be lost; it counts as given this long after the ejection's time.
pub const EJECT_GRACE: Duration = Duration::from_secs(5);

/// Pairs that could not be written to disk decide nothing for this long, and twice as long each time, up to the second.
pub const SAVE_BACKOFF: Duration = Duration::from_secs(1);
pub const SAVE_BACKOFF_MAX: Duration = Duration::from_secs(30);

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
    /// Those of them to which nobody routes yet.
    pub moving: BTreeSet<String>,
    /// This node's name, if it is one of several that decide together.
    pub joint: Option<String>,
}

/// What is believed of one target, and why.
#[derive(Clone, Debug)]
struct Watch {
    belief: Belief,
    since: Timestamp,
    reason: String,
    failing_since: Option<Instant>,
}

/// A decision that is not on disk yet: nobody has heard of it.
#[derive(Clone, Debug)]
struct Unsaved {
    /// The pair as it will be.
    after: Pair,
    wants: Vec<pair::Action>,
    /// Others have been asked to agree.
    asked: bool,
}

/// The disk refuses to take what is decided.
#[derive(Clone, Debug)]
struct SaveTrouble {
    reason: String,
    backoff: Duration,
    /// No pair decides anything before this.
    until: Instant,
}

/// The state of one node's decisions.
#[derive(Clone, Debug)]
pub struct Agent {
    topology: Topology,
    generation: u64,
    watches: BTreeMap<Target, Watch>,
    pairs: BTreeMap<String, Pair>,
    /// Pairs that the topology no longer has: if they come back, their epochs go on.
    retired: BTreeMap<String, Pair>,
    /// Backends out of traffic, and when they are taken to be back at the latest.
    ejected: BTreeMap<(String, String), Instant>,
    draining: BTreeSet<(String, String)>,
    processes: BTreeMap<String, ProcessView>,
    states: BTreeMap<String, (ServiceState, Timestamp)>,
    unsaved: BTreeMap<String, Unsaved>,
    awaits_save: bool,
    save_trouble: Option<SaveTrouble>,
    /// Pairs that have moved and to which nobody routes yet.
    moving: BTreeSet<String>,
    /// `None`: this node decides alone.
    joint: Option<Joint>,
}

impl Agent {
    pub fn new(topology: Topology, resume: &Resume, now: Now) -> Agent {
        let mut agent = Agent {
            topology: Topology::default(),
            generation: 0,
            watches: BTreeMap::new(),
            pairs: BTreeMap::new(),
            retired: resume.pairs.iter().map(|(name, &at)| (name.clone(), retired(at))).collect(),
            ejected: BTreeMap::new(),
            draining: BTreeSet::new(),
            processes: BTreeMap::new(),
            states: BTreeMap::new(),
            unsaved: BTreeMap::new(),
            awaits_save: false,
            save_trouble: None,
            // Alone, a node waits for nobody.
            moving: resume.moving.iter().filter(|_| resume.joint.is_some()).cloned().collect(),
            joint: resume.joint.clone().map(Joint::new),
        };
        // Nothing can be under way yet that would have to be reported.
        agent.take(topology, resume, now, &mut Vec::new());
        agent
    }

    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Who serves each pair, for the disk; pairs that have left the topology are in it for their epochs.
    pub fn pairs(&self) -> BTreeMap<String, (Side, Epoch)> {
        let unsaved = self.unsaved.iter().filter(|_| self.joint.is_none());
        let unsaved = unsaved.map(|(name, unsaved)| (name, &unsaved.after));
        let all = self.retired.iter().chain(&self.pairs).chain(unsaved);
        all.map(|(name, pair)| (name.clone(), (pair.active(), pair.epoch()))).collect()
    }

    /// Pairs to which nobody may route yet, for the disk.
    pub fn moving(&self) -> &BTreeSet<String> {
        &self.moving
    }

    /// Pairs whose newest route readers have not confirmed with [`Input::Routed`].
    pub fn switching(&self) -> Vec<(String, Epoch)> {
        let own = self.pairs.iter();
        let own = own.filter_map(|(name, pair)| Some((name.clone(), pair.switching()?)));
        let mut all: BTreeMap<String, Epoch> = own.collect();
        all.extend(self.unconfirmed());
        all.into_iter().collect()
    }

    /// Takes a changed topology; what is still in it keeps its beliefs and its active side.
    pub fn reload(&mut self, topology: Topology, now: Now, out: &mut Vec<Action>) {
        let changes = changes(&self.topology, &topology);
        out.push(Action::Record(Fact::TopologyApplied { changes }));
        self.take(topology, &Resume::default(), now, out);
        self.settle(now, out);
    }

    fn take(&mut self, topology: Topology, resume: &Resume, now: Now, out: &mut Vec<Action>) {
        self.take_watches(&topology, resume, now);
        let before = core::mem::replace(&mut self.topology, topology);
        self.take_pairs(&before, out);
        let topology = &self.topology;
        let known = |(service, backend): &(String, String)| has_backend(topology, service, backend);
        self.ejected.retain(|key, _| known(key));
        self.draining.extend(resume.draining.iter().cloned());
        self.draining.retain(known);
        self.states.retain(|name, _| topology.services.contains_key(name));
        for name in topology.services.keys() {
            self.states.entry(name.clone()).or_insert((ServiceState::Unknown, now.wall));
        }
        self.processes.retain(|name, _| topology.processes.contains_key(name));
        self.generation += 1;
    }

    fn take_watches(&mut self, topology: &Topology, resume: &Resume, now: Now) {
        let mut watches = BTreeMap::new();
        for (target, thresholds) in targets(topology) {
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
    }

    fn take_pairs(&mut self, before: &Topology, out: &mut Vec<Action>) {
        let mut left = core::mem::take(&mut self.pairs);
        for (name, service) in &self.topology.services {
            let Pool::Pair(spec) = &service.pool else { continue };
            let pair = match (left.remove(name), self.retired.remove(name)) {
                (Some(mut old), _) => {
                    let mut wants = Vec::new();
                    // Several nodes go on as agreed until one of them has another side agreed on.
                    let side =
                        seat(before, name, spec, old.active()).filter(|_| self.joint.is_none());
                    #[cfg(test)]
                    let side = instead(Bug::SideKept, side, None);
                    if let Some(side) = side {
                        old.reseat(side, &mut wants);
                        out.push(Action::SavePairs);
                    }
                    old.retune(spec.standby.clone(), spec.failback);
                    say(name, wants, out);
                    old
                }
                (None, Some(mut back)) => {
                    back.retune(spec.standby.clone(), spec.failback);
                    back
                }
                (None, None) => {
                    let (standby, failback) = (spec.standby.clone(), spec.failback);
                    Pair::new(standby, failback, Side::Primary, Epoch::default())
                }
            };
            let mut pair = pair;
            pair.of_several(self.joint.is_some());
            self.pairs.insert(name.clone(), pair);
        }
        for (name, mut pair) in left {
            let mut wants = Vec::new();
            pair.end("the topology no longer has the pair", &mut wants);
            say(&name, wants, out);
            // Whatever serves when it comes back does so under an epoch of its own.
            if self.joint.is_none() {
                pair.reseat(Side::Primary, &mut Vec::new());
            }
            #[cfg(test)]
            let pair = instead(Bug::EpochForgotten, pair, retired((Side::Primary, Epoch(0))));
            self.retired.insert(name, pair);
            out.push(Action::SavePairs);
        }
    }

    /// Feeds one input; pushes what must be done, in the order of doing.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Vec<Action>) {
        match input {
            Input::Probed { target, ok, reason } => self.probed(now, target, ok, reason, out),
            Input::Ejected { service, backend, reason, time } => {
                let until = now.instant + time + EJECT_GRACE;
                let known = has_backend(&self.topology, &service, &backend);
                let key = (service.clone(), backend.clone());
                // A notice of a backend that the topology no longer has comes too late.
                if known && self.ejected.insert(key, until).is_none() {
                    out.push(Action::Record(Fact::Ejected { service, backend, reason, time }));
                }
            }
            Input::Returned { service, backend } => self.returned((service, backend), out),
            Input::CommandDone { service, epoch, result } => {
                let done = pair::Input::CommandDone { epoch, result };
                match self.retired.get_mut(&service) {
                    // It has nothing to decide, but may come back.
                    Some(pair) => pair.step(now.instant, done, &mut Vec::new()),
                    None => self.step_pair(now, &service, done, out),
                }
            }
            Input::Drain { service, backend, on } => self.drain(service, backend, on, out),
            Input::Failback { service } if self.decides() => {
                self.step_pair(now, &service, pair::Input::Failback, out);
            }
            // Whoever asked is sent to the node that decides.
            Input::Failback { .. } => {}
            Input::Routed { service, epoch } => {
                self.confirmed(&service, epoch);
                // Of a pair that moves, the old side is out of traffic; the new one is not in it yet.
                if !self.moving.contains(&service) {
                    self.step_pair(now, &service, pair::Input::Routed { epoch }, out);
                }
            }
            Input::Process { process, view } => {
                // The last words of a process that the topology no longer has change nothing.
                if self.topology.processes.contains_key(&process) {
                    self.processes.insert(process, view);
                }
            }
            Input::Heard { node, report } => {
                if !self.hear_node(now, node, report) {
                    // It is as it was a second ago.
                    return;
                }
            }
            Input::Agreed(agreement) => self.follow(agreement, out),
            Input::Answered { command, result } => self.answered(now, &command, result, out),
            Input::Vouches(vouches) => self.vouches(vouches),
            Input::Tick => {}
        }
        self.settle(now, out);
    }

    /// Whether the outcome of [`Action::SavePairs`] is to be told before anything else.
    pub fn awaits_save(&self) -> bool {
        self.awaits_save
    }

    /// What was decided is on disk: now it is said and done.
    pub fn saved(&mut self, now: Now, out: &mut Vec<Action>) {
        self.awaits_save = false;
        if self.save_trouble.take().is_some() {
            out.push(Action::Record(Fact::PairsSaved));
        }
        for (service, unsaved) in core::mem::take(&mut self.unsaved) {
            self.pairs.insert(service.clone(), unsaved.after);
            self.told(now, &service, unsaved.wants, out);
        }
        self.judge_all(now, out);
    }

    /// What was decided is not on disk: it was not decided. It will be, if there is still reason to, after a pause.
    pub fn not_saved(&mut self, now: Now, reason: String, out: &mut Vec<Action>) {
        self.awaits_save = false;
        #[cfg(test)]
        if instead(Bug::ActsUnsaved, false, true) {
            for (service, unsaved) in core::mem::take(&mut self.unsaved) {
                self.pairs.insert(service.clone(), unsaved.after);
                self.told(now, &service, unsaved.wants, out);
            }
        }
        self.unsaved.clear();
        self.refused(now, reason, out);
    }

    /// Nothing is decided for a while, because nobody would know of it.
    fn refused(&mut self, now: Now, reason: String, out: &mut Vec<Action>) {
        let before = self.save_trouble.as_ref().map(|trouble| trouble.backoff);
        if before.is_none() {
            out.push(Action::Record(Fact::PairsNotSaved { reason: reason.clone() }));
        }
        let backoff = before.map_or(SAVE_BACKOFF, |b| (b * 2).min(SAVE_BACKOFF_MAX));
        let until = now.instant + backoff;
        self.save_trouble = Some(SaveTrouble { reason, backoff, until });
        self.judge_all(now, out);
    }

    /// When `step` wants to be called again even if nothing happens.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let held = self.save_trouble.as_ref().map(|trouble| trouble.until);
        // Alone, it is tried again at that moment; others are asked again when there is something to ask.
        let held = match self.joint {
            Some(_) => held.filter(|&until| now < until),
            None => held.map(|until| until.max(now)),
        };
        let pairs = self.pairs.iter().filter(|(name, _)| held.is_none() && self.decides_on(name));
        let pairs = pairs.filter_map(|(_, pair)| pair.deadline(now)).chain(held);
        let settling = self.joint.as_ref().and_then(|joint| joint.deadline(now));
        pairs.chain(settling).chain(self.ejected.values().map(|&until| until.max(now))).min()
    }

    fn returned(&mut self, key: (String, String), out: &mut Vec<Action>) {
        if self.ejected.remove(&key).is_some() {
            let (service, backend) = key;
            out.push(Action::Record(Fact::Returned { service, backend }));
        }
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
        if !has_backend(&self.topology, &service, &backend) {
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
        let over = self.ejected.iter().filter(|&(_, &until)| until <= now.instant);
        for key in over.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.returned(key, out);
        }
        let names: Vec<String> = self.pairs.keys().cloned().collect();
        for name in names {
            if self.moving.contains(&name)
                && let Some(pair) = self.pairs.get_mut(&name)
            {
                pair.postpone(now.instant);
            }
            if let Some(seen) = self.seen(now, &name) {
                self.step_pair(now, &name, pair::Input::Look(seen), out);
            }
        }
        let retry = self.save_trouble.as_ref().is_some_and(|trouble| trouble.until <= now.instant);
        if self.joint.is_some() {
            self.ask_others(now, out);
            self.judge_all(now, out);
        } else if retry || !self.unsaved.is_empty() {
            self.awaits_save = true;
            out.push(Action::SavePairs);
        } else {
            self.judge_all(now, out);
        }
    }

    fn judge_all(&mut self, now: Now, out: &mut Vec<Action>) {
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
            }
        }
        out.push(Action::Publish);
    }

    fn seen(&self, now: Now, service: &str) -> Option<Seen> {
        let Pool::Pair(spec) = &self.topology.services.get(service)?.pool else { return None };
        let watch = |backend: &str| {
            self.watches
                .get(&Target::Backend { service: service.to_owned(), backend: backend.to_owned() })
        };
        let health = |backend: &str| watch(backend).map_or(Health::Unknown, |w| w.belief.health());
        let drained =
            |backend: &str| self.draining.contains(&(service.to_owned(), backend.to_owned()));
        let seen = Seen {
            primary: health(&spec.primary.url),
            backup: health(&spec.backup.url),
            primary_drained: drained(&spec.primary.url),
            backup_drained: drained(&spec.backup.url),
            primary_failing_since: watch(&spec.primary.url).and_then(|w| w.failing_since),
        };
        Some(match &self.joint {
            Some(joint) => joint.seen(now.instant, service, spec, seen),
            None => seen,
        })
    }

    /// No pair decides anything now: nobody would know of it.
    fn is_held(&self, now: Now) -> bool {
        self.save_trouble.as_ref().is_some_and(|trouble| now.instant < trouble.until)
    }

    fn step_pair(&mut self, now: Now, service: &str, input: pair::Input, out: &mut Vec<Action>) {
        let decides = !self.is_held(now) && self.decides_on(service);
        let Some(before) = self.pairs.get(service) else { return };
        let mut pair = self.unsaved.get(service).map_or(before, |unsaved| &unsaved.after).clone();
        let (mut heard, mut wants) = (Vec::new(), Vec::new());
        pair.hear(now.instant, input, &mut heard);
        let before = pair.clone();
        if decides {
            pair.decide_on(now.instant, &mut wants);
        }
        let changed = (pair.active(), pair.epoch()) != (before.active(), before.epoch());
        #[cfg(test)]
        let changed = instead(Bug::SavedLate, changed, false);
        match self.unsaved.get_mut(service) {
            // Part of a decision that is not out yet.
            Some(unsaved) => {
                unsaved.after = pair;
                unsaved.wants.extend(heard.into_iter().chain(wants));
            }
            None if changed => {
                self.pairs.insert(service.to_owned(), before);
                let unsaved = Unsaved { after: pair, wants, asked: false };
                self.unsaved.insert(service.to_owned(), unsaved);
                self.told(now, service, heard, out);
            }
            None => {
                self.pairs.insert(service.to_owned(), pair);
                heard.extend(wants);
                self.told(now, service, heard, out);
            }
        }
    }

    /// Says and does what a pair wants.
    fn told(&mut self, now: Now, service: &str, wants: Vec<pair::Action>, out: &mut Vec<Action>) {
        let stopped = wants.iter().any(|want| matches!(want, pair::Action::Stop { .. }));
        say(service, wants, out);
        if stopped {
            self.forget_backup(now, service, out);
        }
    }

    /// What was believed of a standby that is being stopped is no longer known.
    fn forget_backup(&mut self, now: Now, service: &str, out: &mut Vec<Action>) {
        let Some(Pool::Pair(spec)) = self.topology.services.get(service).map(|s| &s.pool) else {
            return;
        };
        let backend = spec.backup.url.clone();
        let target = Target::Backend { service: service.to_owned(), backend };
        let Some(watch) = self.watches.get_mut(&target) else { return };
        let from = watch.belief.health();
        watch.belief.forget();
        watch.failing_since = None;
        if from != Health::Unknown {
            watch.since = now.wall;
            watch.reason = "the standby is being stopped".to_owned();
            out.push(Action::Record(Fact::HealthChanged {
                target,
                from,
                to: Health::Unknown,
                reason: watch.reason.clone(),
                began_ago: Duration::ZERO,
            }));
        }
    }
}

fn has_backend(topology: &Topology, service: &str, backend: &str) -> bool {
    let service = topology.services.get(service);
    service.is_some_and(|s| s.pool.backends().iter().any(|b| b.url == backend))
}

/// A pair that was saved, until the topology says what it is like.
fn retired((active, epoch): (Side, Epoch)) -> Pair {
    Pair::new(Standby::Hot, Failback::Manual, active, epoch)
}

/// The side that serves once a pair has these servers; `None`: they are the same as before.
fn seat(before: &Topology, name: &str, spec: &topology::Pair, active: Side) -> Option<Side> {
    let Some(Pool::Pair(old)) = before.services.get(name).map(|s| &s.pool) else { return None };
    if (&old.primary, &old.backup) == (&spec.primary, &spec.backup) {
        return None;
    }
    let serves = match active {
        Side::Primary => &old.primary,
        Side::Backup => &old.backup,
    };
    // Who serves goes on serving, whatever it is called now. A new server begins as the file says: the primary first.
    Some(if *serves == spec.backup { Side::Backup } else { Side::Primary })
}

/// Puts what a pair wants into the agent's words.
fn say(service: &str, wants: Vec<pair::Action>, out: &mut Vec<Action>) {
    for want in wants {
        let service = service.to_owned();
        let fact = match want {
            // It is in the view that is published next.
            pair::Action::Route { .. } => continue,
            pair::Action::Command { epoch } => {
                out.push(Action::StandbyCommand { service, epoch });
                continue;
            }
            pair::Action::Stop { epoch } => {
                out.push(Action::StandbyStop { service, epoch });
                continue;
            }
            pair::Action::Started { epoch, reason } => {
                let (from, to) = (Side::Primary, Side::Backup);
                Fact::FailoverStarted { service, epoch, from, to, reason }
            }
            pair::Action::Stage { epoch, stage, took } => {
                Fact::FailoverStage { service, epoch, stage, took }
            }
            pair::Action::Finished { epoch, took } => {
                Fact::FailoverFinished { service, epoch, to: Side::Backup, took }
            }
            pair::Action::Failed { epoch, reason } => {
                Fact::FailoverFailed { service, epoch, reason }
            }
            pair::Action::FailedBack { epoch, reason } => {
                Fact::FailbackFinished { service, epoch, reason }
            }
            pair::Action::BothDown => Fact::BothDown { service },
            pair::Action::BothDownEnded => Fact::BothDownEnded { service },
        };
        out.push(Action::Record(fact));
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
    let zones = topology.dns.values();
    let values = zones.flat_map(|zone| crate::names::value_probes(zone).into_values());
    let values =
        values.map(|value| (Target::Value { id: value.id.clone() }, value.probe.thresholds));
    backends.chain(externals).chain(values).collect()
}

/// What differs between two topologies, for people.
fn changes(old: &Topology, new: &Topology) -> String {
    let mut words = Vec::new();
    if old.cluster != new.cluster {
        words.push("cluster changed".to_owned());
    }
    compare("service", &old.services, &new.services, &mut words);
    compare("process", &old.processes, &new.processes, &mut words);
    compare("external", &old.externals, &new.externals, &mut words);
    if words.is_empty() { "nothing that runs changed".to_owned() } else { words.join(", ") }
}

fn compare<T: PartialEq>(
    kind: &str,
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
    words: &mut Vec<String>,
) {
    let mut word = |name: &str, what: &str| words.push(alloc::format!("{kind}.{name} {what}"));
    new.keys().filter(|name| !old.contains_key(*name)).for_each(|name| word(name, "added"));
    old.keys().filter(|name| !new.contains_key(*name)).for_each(|name| word(name, "removed"));
    for (name, part) in new {
        if old.get(name).is_some_and(|before| before != part) {
            word(name, "changed");
        }
    }
}

#[cfg(test)]
mod tests;
