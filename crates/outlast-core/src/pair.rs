//! Decides which side of an active-passive pair serves: failover, failback, never two at once.
//!
//! ```text
//!                      switch: primary down, backup ready to serve
//!   ┌──────────────┐ ────────────────────────────────────────────────────▶ ┌─────────────┐
//!   │  on primary  │ ──command──▶ starting ──started──▶ waiting ───ready───▶ │  on backup  │
//!   └──────────────┘ ◀──failed─────┴─────too late──────────┘                └─────────────┘
//!          ▲                    primary returned                                   │
//!          └────────── sustained, asked for, backup lost ──────────────────────────┘
//! ```
//!
//! `docs/failover.md` names every transition and says when it is taken.

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::health::Health;
#[cfg(test)]
use crate::sim::{Bug, instead};
use crate::time::Instant;
use crate::topology::{Failback, Standby};

/// Fences orders: whoever obeys one refuses all older ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

/// An order that comes too late: a newer one was obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    pub epoch: Epoch,
    pub obeyed: Epoch,
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stale { epoch, obeyed } = self;
        write!(f, "epoch {} is older than {}, which was obeyed before", epoch.0, obeyed.0)
    }
}

/// Whether whoever has obeyed an order of epoch `obeyed` may obey this one. It writes down what it admits before it obeys.
pub fn admit(obeyed: Epoch, epoch: Epoch) -> Result<(), Stale> {
    if epoch < obeyed { Err(Stale { epoch, obeyed }) } else { Ok(()) }
}

/// The two sides of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    Primary,
    Backup,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Side::Primary => "primary",
            Side::Backup => "backup",
        })
    }
}

/// The stages of a failover, each reported with the time it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// From the first failed probe to the belief that the primary is down.
    Detect,
    /// The start or activate command.
    Start,
    /// From the end of the command until the backup's probe says up.
    Ready,
    /// From the order to route until readers had the new route.
    Switch,
    /// From then until an address that follows the pair was held on the other side.
    Address,
    /// From then until name servers answered with the other side.
    Names,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Stage::Detect => "detect",
            Stage::Start => "start",
            Stage::Ready => "ready",
            Stage::Switch => "switch",
            Stage::Address => "address",
            Stage::Names => "names",
        })
    }
}

/// What the pair is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Steady,
    /// The backup's command runs.
    Commanding(Attempt),
    /// The command is done; the backup's probe has not said up yet.
    Awaiting(Attempt),
}

/// A failover under way that needs a command first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attempt {
    epoch: Epoch,
    /// The first failed probe of the primary.
    began: Instant,
    /// When the present stage began.
    since: Instant,
    deadline: Instant,
}

/// A route that was given; readers have not said yet that they have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Switching {
    /// Of the failover.
    epoch: Epoch,
    /// Of the route.
    routed: Epoch,
    began: Instant,
    since: Instant,
}

/// The primary's present outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outage {
    /// The first failed probe.
    began: Instant,
    /// When it was believed.
    believed: Instant,
}

/// What is seen of both sides at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub primary: Health,
    pub backup: Health,
    /// A person took the side out of traffic: it counts as down, and is not started.
    pub primary_drained: bool,
    pub backup_drained: bool,
    /// When the primary's present run of failures began.
    pub primary_failing_since: Option<Instant>,
}

/// What the outside tells a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Beliefs changed, or time went on.
    Look(Seen),
    /// The command of this epoch ended. Every command must end within its limit and be answered.
    CommandDone { epoch: Epoch, result: Result<(), String> },
    /// Readers have the route of this epoch.
    Routed { epoch: Epoch },
    /// A person asks for the primary to serve again.
    Failback,
}

/// What a pair wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Route to this side from now on; answer with `Routed` once readers do.
    Route {
        epoch: Epoch,
        to: Side,
    },
    /// Run the standby's start or activate command.
    Command {
        epoch: Epoch,
    },
    /// Stop a cold standby that is no longer needed.
    Stop {
        epoch: Epoch,
    },
    Started {
        epoch: Epoch,
        reason: String,
    },
    Stage {
        epoch: Epoch,
        stage: Stage,
        took: Duration,
    },
    Finished {
        epoch: Epoch,
        took: Duration,
    },
    Failed {
        epoch: Epoch,
        reason: String,
    },
    FailedBack {
        epoch: Epoch,
        reason: String,
    },
    BothDown,
    BothDownEnded,
}

/// How long an activate command of a warm standby may take.
pub const ACTIVATE_LIMIT: Duration = Duration::from_secs(60);

/// Wait this long after a failed failover before another command.
pub const FAILED_PAUSE: Duration = Duration::from_secs(30);

/// Whoever runs a command ends it at its limit. An answer that is still missing after this is lost.
pub const ANSWER_GRACE: Duration = Duration::from_secs(60);

/// Readers that have not said by then that they have a route count as having had it when it was ordered.
pub const SWITCH_LIMIT: Duration = Duration::from_secs(1);

/// How the backup can take over now.
enum Way {
    Switch,
    /// Only after its command, which may take this long until the backup is ready.
    Command(Duration),
}

/// The state of one pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    standby: Standby,
    failback: Failback,
    active: Side,
    /// The highest epoch ever used.
    epoch: Epoch,
    /// The epoch of the route in force.
    routed: Epoch,
    phase: Phase,
    /// Since when the primary has been up without a break.
    primary_up_since: Option<Instant>,
    outage: Option<Outage>,
    /// An attempt has failed in this outage.
    attempt_failed: bool,
    both_down: bool,
    /// No command before this.
    not_before: Instant,
    /// A command that has not been answered, and when its answer counts as lost.
    unanswered: Option<(Epoch, Instant)>,
    /// A cold standby was started and has not been stopped since.
    started: bool,
    switching: Option<Switching>,
    /// Several nodes agree on who serves: each change that they are told of has an epoch of its own.
    several: bool,
    failback_asked: bool,
    seen: Seen,
}

impl Pair {
    /// A pair that carries on with the side and epoch that were last agreed.
    pub fn new(standby: Standby, failback: Failback, active: Side, epoch: Epoch) -> Pair {
        Pair {
            standby,
            failback,
            active,
            epoch,
            routed: epoch,
            phase: Phase::Steady,
            primary_up_since: None,
            outage: None,
            attempt_failed: false,
            both_down: false,
            not_before: Instant::default(),
            unanswered: None,
            started: active == Side::Backup,
            switching: None,
            several: false,
            failback_asked: false,
            seen: Seen::default(),
        }
    }

    pub fn active(&self) -> Side {
        self.active
    }

    /// The highest epoch that was ever used; an order that is under way may carry it.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The epoch since which the active side serves: each route has a higher one than the route before it.
    pub fn routed(&self) -> Epoch {
        self.routed
    }

    /// The epoch of a route that readers have not confirmed yet.
    pub fn switching(&self) -> Option<Epoch> {
        self.switching.map(|switching| switching.routed)
    }

    /// Whether several nodes agree on who serves.
    pub fn of_several(&mut self, several: bool) {
        self.several = several;
    }

    /// Another node decides from now on: what was under way is for it to judge, and what was asked for is to be asked of it.
    pub fn let_go(&mut self, out: &mut Vec<Action>) {
        self.end("another node decides now", out);
        self.failback_asked = false;
    }

    /// Takes changed settings and keeps who serves.
    pub fn retune(&mut self, standby: Standby, failback: Failback) {
        self.standby = standby;
        self.failback = failback;
    }

    /// The sides are other servers than before: ends what was under way and routes under a new epoch.
    pub fn reseat(&mut self, active: Side, out: &mut Vec<Action>) {
        self.end("the pair was given other servers", out);
        self.epoch = self.epoch.next();
        self.primary_up_since = None;
        self.outage = None;
        self.attempt_failed = false;
        self.not_before = Instant::default();
        self.started = active == Side::Backup;
        self.failback_asked = false;
        self.seen = Seen::default();
        self.route(active, out);
    }

    /// Nobody routes to the new side yet: its switch is counted from when they may.
    pub fn postpone(&mut self, now: Instant) {
        if let Some(switching) = &mut self.switching {
            switching.since = now;
        }
    }

    /// This is agreed on. What was under way here ends, and what was never agreed on is forgotten, its epochs, too.
    pub fn follow(&mut self, active: Side, epoch: Epoch, out: &mut Vec<Action>) {
        self.end("another node decides now", out);
        // A move that moves nothing comes before a standby's command.
        let command = self.active == Side::Primary && active == Side::Primary;
        self.started |= active == Side::Backup || command;
        self.active = active;
        self.epoch = epoch;
        self.routed = epoch;
        self.attempt_failed = false;
        self.failback_asked = false;
    }

    /// Reports the end of what was under way: the pair changes or leaves.
    pub fn end(&mut self, reason: &str, out: &mut Vec<Action>) {
        self.finish_switching(out);
        match core::mem::replace(&mut self.phase, Phase::Steady) {
            Phase::Steady => {}
            Phase::Commanding(attempt) | Phase::Awaiting(attempt) => {
                out.push(Action::Failed { epoch: attempt.epoch, reason: reason.to_owned() });
            }
        }
    }

    /// One sentence about what is under way, if anything is.
    pub fn next(&self, now: Instant) -> Option<String> {
        match (&self.phase, self.active) {
            (Phase::Commanding(_), _) => Some("the backup is being started".to_owned()),
            (Phase::Awaiting(_), _) => Some("waiting until the backup is ready".to_owned()),
            (Phase::Steady, Side::Primary) => {
                let waits = self.primary() == Health::Down
                    && matches!(self.way(), Some(Way::Command(_)))
                    && now < self.command_from();
                waits.then(|| {
                    alloc::format!(
                        "tries to start the backup again in {}",
                        crate::units::show_duration(self.command_from().since(now))
                    )
                })
            }
            (Phase::Steady, Side::Backup) => self.next_failback(now),
        }
    }

    fn next_failback(&self, now: Instant) -> Option<String> {
        if self.failback_asked {
            return Some("failback to the primary as soon as it is up".to_owned());
        }
        match self.failback {
            Failback::Manual => {
                Some("stays on the backup until `outlast failback` (failback is manual)".to_owned())
            }
            Failback::After(after) => self.primary_up_since.map(|since| {
                let left = after.saturating_sub(now.since(since));
                alloc::format!("failback to the primary in {}", crate::units::show_duration(left))
            }),
        }
    }

    /// When `step` wants to be called again even if nothing happens; a step at that moment always gets on.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let phase = match (&self.phase, self.active) {
            (Phase::Commanding(attempt) | Phase::Awaiting(attempt), _) => Some(attempt.deadline),
            (Phase::Steady, Side::Primary) if self.primary() == Health::Down => {
                self.way().map(|_| self.command_from())
            }
            (Phase::Steady, Side::Primary) => None,
            (Phase::Steady, Side::Backup) => match self.failback {
                Failback::After(after) => self.primary_up_since.map(|since| since + after),
                Failback::Manual => None,
            },
        };
        let switching = self.switching.map(|switching| switching.since + SWITCH_LIMIT);
        let at = phase.into_iter().chain(switching).min();
        #[cfg(test)]
        let at = instead(Bug::Oversleeps, at, at.filter(|_| self.active == Side::Primary));
        at.map(|at| at.max(now))
    }

    /// Feeds one input; pushes what must be done, in the order of doing.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Action>) {
        self.hear(now, input, out);
        self.decide_on(now, out);
    }

    /// Takes an input in and decides nothing on it: who serves and the epoch stay as they are.
    pub(crate) fn hear(&mut self, now: Instant, input: Input, out: &mut Vec<Action>) {
        self.unanswered = self.unanswered.filter(|&(_, lost)| now < lost);
        match input {
            Input::Look(seen) => self.look(now, seen),
            Input::CommandDone { epoch, result } => self.command_done(now, epoch, result, out),
            Input::Routed { epoch } => self.confirm(now, epoch, out),
            Input::Failback => self.failback_asked = self.active == Side::Backup,
        }
        if self.switching.is_some_and(|s| s.since + SWITCH_LIMIT <= now) {
            self.finish_switching(out);
        }
    }

    /// Decides on all that was heard.
    pub(crate) fn decide_on(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.advance(now, out);
        self.report_both_down(out);
    }

    fn look(&mut self, now: Instant, seen: Seen) {
        self.seen = seen;
        match self.primary() {
            Health::Up => {
                self.primary_up_since = self.primary_up_since.or(Some(now));
                self.outage = None;
                self.attempt_failed = false;
            }
            Health::Down => {
                self.primary_up_since = None;
                let began = seen.primary_failing_since.filter(|_| !seen.primary_drained);
                self.outage =
                    self.outage.or(Some(Outage { began: began.unwrap_or(now), believed: now }));
            }
            Health::Unknown => {
                self.primary_up_since = None;
                self.outage = None;
            }
        }
    }

    /// A drained side is not to serve: as good as down.
    fn primary(&self) -> Health {
        if self.seen.primary_drained { Health::Down } else { self.seen.primary }
    }

    fn backup(&self) -> Health {
        if self.seen.backup_drained { Health::Down } else { self.seen.backup }
    }

    fn advance(&mut self, now: Instant, out: &mut Vec<Action>) {
        match self.phase.clone() {
            Phase::Steady => self.decide(now, out),
            Phase::Commanding(attempt) | Phase::Awaiting(attempt) if attempt.deadline <= now => {
                self.give_up(now, attempt.epoch, "the backup was not ready in time", out);
                self.decide(now, out);
            }
            // Even if the primary is up again: two commands must never run at once, so this one's end is waited for.
            Phase::Commanding(_) => {}
            Phase::Awaiting(Attempt { epoch, began, since, .. }) => {
                match (self.primary(), self.backup()) {
                    (Health::Up, _) => {
                        self.give_up(now, epoch, "the primary is up again", out);
                        self.decide(now, out);
                    }
                    (Health::Down, Health::Up) => {
                        let took = now.since(since);
                        out.push(Action::Stage { epoch, stage: Stage::Ready, took });
                        self.switch(now, epoch, began, out);
                    }
                    // Unknown: it was drained, is so no longer, and its probe has not spoken yet.
                    (Health::Down | Health::Unknown, _) => {}
                }
            }
        }
    }

    fn decide(&mut self, now: Instant, out: &mut Vec<Action>) {
        match (self.active, self.primary()) {
            (Side::Primary, Health::Down) => match self.way() {
                Some(Way::Switch) => {
                    let (epoch, began) = self.start_failover(now, out);
                    self.switch(now, epoch, began, out);
                }
                Some(Way::Command(limit)) if self.command_from() <= now => {
                    let (epoch, began) = self.start_failover(now, out);
                    let deadline = now + limit;
                    self.phase = Phase::Commanding(Attempt { epoch, began, since: now, deadline });
                    self.unanswered = Some((epoch, deadline + ANSWER_GRACE));
                    self.started = true;
                    out.push(Action::Command { epoch });
                }
                Some(Way::Command(_)) | None => {}
            },
            (Side::Primary, Health::Up) => self.stop_leftover(out),
            (Side::Backup, Health::Up) => {
                if let Some(reason) = self.failback_reason(now) {
                    self.fail_back(reason, out);
                }
            }
            (Side::Primary, Health::Unknown) | (Side::Backup, Health::Unknown | Health::Down) => {}
        }
    }

    /// How the backup could take over, going by what is known of it.
    fn way(&self) -> Option<Way> {
        let backup = self.backup();
        #[cfg(test)]
        let backup = if backup == Health::Unknown {
            instead(Bug::UnknownIsUp, backup, Health::Up)
        } else {
            backup
        };
        match (&self.standby, backup) {
            (
                Standby::Hot | Standby::Warm { activate: None } | Standby::Cold { .. },
                Health::Up,
            ) => Some(Way::Switch),
            (Standby::Warm { activate: Some(_) }, Health::Up) => Some(Way::Command(ACTIVATE_LIMIT)),
            (Standby::Cold { start_limit, .. }, Health::Down) if !self.seen.backup_drained => {
                Some(Way::Command(*start_limit))
            }
            (Standby::Hot | Standby::Warm { .. } | Standby::Cold { .. }, Health::Down)
            | (Standby::Hot | Standby::Warm { .. } | Standby::Cold { .. }, Health::Unknown) => None,
        }
    }

    /// From when on a command may be given.
    fn command_from(&self) -> Instant {
        let (rested, answered) = (self.not_before, self.unanswered.map(|(_, lost)| lost));
        #[cfg(test)]
        let rested = instead(Bug::NoPause, rested, Instant::default());
        #[cfg(test)]
        let answered = instead(Bug::TwoCommands, answered, None);
        answered.map_or(rested, |lost| lost.max(rested))
    }

    fn start_failover(&mut self, now: Instant, out: &mut Vec<Action>) -> (Epoch, Instant) {
        let epoch = self.epoch.next();
        self.epoch = epoch;
        let outage = self.outage.unwrap_or(Outage { began: now, believed: now });
        let reason = if self.seen.primary_drained {
            "the primary is drained"
        } else {
            "the primary is down"
        };
        let took = outage.believed.since(outage.began);
        out.push(Action::Started { epoch, reason: reason.to_owned() });
        out.push(Action::Stage { epoch, stage: Stage::Detect, took });
        (epoch, outage.began)
    }

    fn command_done(
        &mut self,
        now: Instant,
        done: Epoch,
        result: Result<(), String>,
        out: &mut Vec<Action>,
    ) {
        if self.unanswered.is_some_and(|(epoch, _)| epoch == done) {
            self.unanswered = None;
        }
        match self.phase.clone() {
            Phase::Commanding(attempt) if attempt.epoch == done => match result {
                Ok(()) => {
                    let took = now.since(attempt.since);
                    out.push(Action::Stage { epoch: done, stage: Stage::Start, took });
                    self.phase = Phase::Awaiting(Attempt { since: now, ..attempt });
                }
                Err(reason) => self.give_up(now, done, &reason, out),
            },
            // The answer to an order that was given up.
            Phase::Steady | Phase::Commanding(_) | Phase::Awaiting(_) => {}
        }
    }

    fn switch(&mut self, now: Instant, epoch: Epoch, began: Instant, out: &mut Vec<Action>) {
        // What the others have agreed on under the attempt's epoch is that the primary goes on.
        if self.several && matches!(self.phase, Phase::Awaiting(_)) {
            self.epoch = self.epoch.next();
        }
        self.phase = Phase::Steady;
        self.switching = Some(Switching { epoch, routed: self.epoch, began, since: now });
        self.route(Side::Backup, out);
    }

    fn route(&mut self, to: Side, out: &mut Vec<Action>) {
        assert!(self.routed < self.epoch, "every route has an epoch of its own");
        self.active = to;
        self.routed = self.epoch;
        out.push(Action::Route { epoch: self.epoch, to });
    }

    fn confirm(&mut self, now: Instant, routed: Epoch, out: &mut Vec<Action>) {
        let Some(Switching { epoch, began, since, routed: awaited }) = self.switching else {
            return;
        };
        if routed == awaited {
            self.switching = None;
            out.push(Action::Stage { epoch, stage: Stage::Switch, took: now.since(since) });
            out.push(Action::Finished { epoch, took: now.since(began) });
        }
    }

    /// Ends a failover whose readers said nothing.
    fn finish_switching(&mut self, out: &mut Vec<Action>) {
        if let Some(Switching { epoch, began, since, .. }) = self.switching.take() {
            out.push(Action::Finished { epoch, took: since.since(began) });
        }
    }

    fn give_up(&mut self, now: Instant, epoch: Epoch, reason: &str, out: &mut Vec<Action>) {
        self.phase = Phase::Steady;
        self.not_before = now + FAILED_PAUSE;
        self.attempt_failed = self.primary() != Health::Up;
        out.push(Action::Failed { epoch, reason: reason.to_owned() });
    }

    /// Why the pair, with its primary up, should return to it now.
    fn failback_reason(&self, now: Instant) -> Option<String> {
        if self.seen.backup_drained {
            return Some("the backup is drained".to_owned());
        }
        if self.backup() == Health::Down {
            return Some("the backup is down".to_owned());
        }
        if self.failback_asked {
            return Some("asked for".to_owned());
        }
        let Failback::After(after) = self.failback else { return None };
        #[cfg(test)]
        let after = instead(Bug::FailbackAtOnce, after, Duration::ZERO);
        self.primary_up_since.filter(|&since| since + after <= now).map(|_| {
            alloc::format!("primary has been up for {}", crate::units::show_duration(after))
        })
    }

    fn fail_back(&mut self, reason: String, out: &mut Vec<Action>) {
        self.finish_switching(out);
        self.failback_asked = false;
        self.epoch = self.epoch.next();
        #[cfg(test)]
        (self.epoch = instead(Bug::SameEpoch, self.epoch, self.routed));
        self.route(Side::Primary, out);
        out.push(Action::FailedBack { epoch: self.epoch, reason });
        self.stop_leftover(out);
    }

    /// Stops a cold standby that was started, but never while its start command still runs. The primary is up: until
    /// then a standby that comes up late may still be needed.
    fn stop_leftover(&mut self, out: &mut Vec<Action>) {
        let can_stop = matches!(self.standby, Standby::Cold { stop: Some(_), .. });
        if can_stop && self.started && self.unanswered.is_none() {
            self.started = false;
            out.push(Action::Stop { epoch: self.epoch });
        }
    }

    fn report_both_down(&mut self, out: &mut Vec<Action>) {
        let cold = matches!(self.standby, Standby::Cold { .. });
        // A cold backup is meant to be down while the primary serves; it is about to be started.
        let start_ahead = cold
            && self.active == Side::Primary
            && !self.attempt_failed
            && !self.seen.backup_drained;
        let both = self.primary() == Health::Down && self.backup() == Health::Down;
        let one = self.primary() == Health::Up || self.backup() == Health::Up;
        if !self.both_down && both && !start_ahead {
            self.both_down = true;
            out.push(Action::BothDown);
        } else if self.both_down && one {
            self.both_down = false;
            out.push(Action::BothDownEnded);
        }
    }
}

#[cfg(test)]
mod tests;
